"""How long a call to a provider may take: the server's limits, a provider's own, a caller's.

Rules that hold here: the standard library only, as for config.py, which reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

TIMEOUT_FIELDS = ("connect", "first_event", "idle", "total")


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a call to a provider may take: to connect, until its first event, between two
    events, and in all."""

    connect: float = 10
    first_event: float = 600
    idle: float = 120
    total: float = 1800
    grace: float = 5
    """How much later the transport gives up by itself, should nobody else have."""

    @property
    def longest_silence(self) -> float:
        """When the transport gives up by itself."""
        return max(self.first_event, self.idle) + self.grace

    def overridden(self, own: Mapping[str, float], within: Mapping[str, float]) -> Timeouts:
        """With a provider's own limits, and none above what the caller wants at most."""
        if not (own or within):
            return self
        limits = {name: own.get(name, getattr(self, name)) for name in TIMEOUT_FIELDS}
        return replace(self, **{n: min(v, within.get(n, v)) for n, v in limits.items()})
