"""The timeouts of one call, and the times when its client needs a keep-alive comment.

- Nothing here waits or ends a call. The stream checks its deadlines once a second, and acts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from config import Timeouts
from errors import UpstreamTimeout
from providers.base import Target
from streams.mailbox import Nudge

NO_LIMITS: Final[Mapping[str, float]] = MappingProxyType({})


class Deadlines:
    """The timeouts of one call at its current target, and the times at which they started."""

    def __init__(
        self,
        server: Timeouts,
        target: Target,
        *,
        within: Mapping[str, float] = NO_LIMITS,
        keepalive: float = math.inf,
        hold: float = math.inf,
    ) -> None:
        """Start the clocks of a call.

        Args:
            server: the server's timeouts. A provider's row may override them.
            target: the first target of the call.
            within: the caller's own timeouts in seconds, by the names of the fields of Timeouts.
                They can only shorten the others.
            keepalive: the seconds of silence after which a client gets a comment.
            hold: the maximum number of seconds for which the status line is held.
        """
        self._server, self._within = server, within
        self._keepalive, self._hold = keepalive, hold
        self._limits = self.at(target)
        self.opened = self.last_event = self.last_write = time.monotonic()

    def at(self, target: Target) -> Timeouts:
        return self._server.overridden(target.provider.timeouts, self._within)

    def go_to(self, limits: Timeouts, now: float) -> None:
        """Switch to the timeouts of the target at which an attempt starts now."""
        self._limits = limits
        self.last_event = now

    def is_callers_own(self, timeout: UpstreamTimeout, target: Target) -> bool:
        """Return True if the timeout was the caller's own, and shorter than the provider's."""
        own = self._server.overridden(target.provider.timeouts, NO_LIMITS)
        limit: float = getattr(own, timeout.phase)
        return self._within.get(timeout.phase, math.inf) < limit

    @property
    def time_left(self) -> float:
        """The seconds until the total timeout of the call."""
        return self.opened + self._limits.total - time.monotonic()

    def total_passed(self, now: float) -> UpstreamTimeout | None:
        if now - self.opened > self._limits.total:
            return UpstreamTimeout("total", self._limits.total)
        return None

    def first_event_passed(self, began: float, now: float) -> UpstreamTimeout | None:
        limit = self._limits.first_event
        return UpstreamTimeout("first_event", limit) if now - began > limit else None

    def idle_passed(self, now: float) -> UpstreamTimeout | None:
        limit = self._limits.idle
        return UpstreamTimeout("idle", limit) if now - self.last_event > limit else None

    def nudges(self, now: float, *, begun: bool) -> Iterator[Nudge]:
        """Yield the nudges that the writer needs now.

        Args:
            begun: True if the call has had a visible event.
        """
        if not begun and now - self.opened >= self._hold:
            self._hold = math.inf  # once
            yield Nudge.RELEASE
        if now - self.last_write >= self._keepalive:
            self.last_write = now
            yield Nudge.KEEP_ALIVE
