"""The time limits of one call: what is too late by them, and when its client hears of the silence.

- Nothing here waits, and nothing here ends a call: the stream asks, once a second, and acts.
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
    """The limits of one call at its present target, and the times that they are measured from."""

    def __init__(
        self,
        server: Timeouts,
        target: Target,
        *,
        within: Mapping[str, float] = NO_LIMITS,
        keepalive: float = math.inf,
        hold: float = math.inf,
    ) -> None:
        """Begin to measure.

        Args:
            server: the server's limits. A provider's row may have its own.
            target: where the call goes first.
            within: what the caller wants at most, by the names of the fields of Timeouts.
            keepalive: seconds of silence after which a client gets a comment.
            hold: seconds for which the status line is held back at most.
        """
        self._server, self._within = server, within
        self._keepalive, self._hold = keepalive, hold
        self._limits = self.at(target)
        self.opened = self.last_event = self.last_write = time.monotonic()

    def at(self, target: Target) -> Timeouts:
        """Return the limits that hold for a call to a target."""
        return self._server.overridden(target.provider.timeouts, self._within)

    def go_to(self, limits: Timeouts, now: float) -> None:
        """An attempt begins, at the target that these limits are of."""
        self._limits = limits
        self.last_event = now

    def is_callers_own(self, timeout: UpstreamTimeout, target: Target) -> bool:
        """Return True if the limit that passed was the caller's, below the provider's."""
        own = self._server.overridden(target.provider.timeouts, NO_LIMITS)
        limit: float = getattr(own, timeout.phase)
        return self._within.get(timeout.phase, math.inf) < limit

    @property
    def time_left(self) -> float:
        """Seconds until the call's total time is up."""
        return self.opened + self._limits.total - time.monotonic()

    def total_passed(self, now: float) -> UpstreamTimeout | None:
        """Return the timeout of the whole call, if it has passed."""
        if now - self.opened > self._limits.total:
            return UpstreamTimeout("total", self._limits.total)
        return None

    def first_event_passed(self, began: float, now: float) -> UpstreamTimeout | None:
        """Return the timeout of an attempt that has brought nothing, if it has passed."""
        limit = self._limits.first_event
        return UpstreamTimeout("first_event", limit) if now - began > limit else None

    def idle_passed(self, now: float) -> UpstreamTimeout | None:
        """Return the timeout of an attempt that has fallen silent, if it has passed."""
        limit = self._limits.idle
        return UpstreamTimeout("idle", limit) if now - self.last_event > limit else None

    def nudges(self, now: float, *, begun: bool) -> Iterator[Nudge]:
        """Return what the client must hear now, as nothing else came.

        Args:
            begun: whether the call has brought an event.
        """
        if not begun and now - self.opened >= self._hold:
            self._hold = math.inf  # once
            yield Nudge.RELEASE
        if now - self.last_write >= self._keepalive:
            self.last_write = now
            yield Nudge.KEEP_ALIVE
