"""One active call: its attempts, how it is ended, and what time and the network do to it.

Whatever ends a call from outside goes through `Stream.end`, which posts the End and closes the
provider's connection; or, when the client has gone and the policy is to drain, lets the reader go
on for a while. A call has a leg for each attempt that it made.
Rules that hold here: plain threading, which runs under gevent and threads alike; nothing of HTTP,
of a face or of a provider; no lock is held while anything waits.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    EndReason,
    Finished,
    Prompt,
    Summary,
    Usage,
)
from concurrency.native import BriefLock
from config import Timeouts
from drain import CANCEL, Disconnect, Drain
from errors import SluiceError, UpstreamTimeout
from providers.base import Target, UpstreamCall
from relay import End, Mailbox, Nudge, Tally
from server.sockets import hung_up, shut

NO_LIMITS: Final[Mapping[str, float]] = MappingProxyType({})


class Leg:
    """One attempt of a call."""

    def __init__(self, target: Target, tally: Tally) -> None:
        self.target = target
        self.tally = tally
        self.began = time.monotonic()
        self.first_event: float | None = None
        self.ended: float | None = None
        self.failure: SluiceError | None = None
        """What ended it, when that was the provider's doing."""


class Stream:
    """One active call. `id` is what stop-stream knows it by, among one key's calls."""

    def __init__(
        self,
        request: CompletionRequest,
        target: Target,
        *,
        stream_id: str,
        key_id: str,
        endpoint: str,
        request_id: str,
        timeouts: Timeouts,
        within: Mapping[str, float] = NO_LIMITS,
        keepalive: float,
        hold: float,
        client: socket.socket | None = None,
        disconnect: Disconnect = CANCEL,
        cost: Callable[[Target, Usage], int | None] = lambda *_: None,
    ) -> None:
        """timeouts: the server's; rows may have their own. within: what the caller wants at most,
        by the names of Timeouts' fields. cost: what a usage costs there, in nano-dollars; None:
        unknown."""
        self.id, self.key_id, self.endpoint = stream_id, key_id, endpoint
        self.request_id, self.request, self.target = request_id, request, target
        self.dropped: tuple[str, ...] = ()
        self.mailbox = Mailbox()
        self.legs: list[Leg] = []
        self.opened_at = time.time()
        self.opened = self.last_event = self.last_write = time.monotonic()
        self.continued, self.traceparent = False, ""
        self.text: list[str] | None = None  # so far, for a continuation; None: there will be none
        self.turn = threading.Event()  # set when a call that waits for its turn has it, or ended
        self.first_event: float | None = None
        self.expired: UpstreamTimeout | None = None
        self.stopped_at: float | None = None
        self._server_timeouts, self._within, self._client = timeouts, within, client
        self._timeouts = self.timeouts_at(target)
        self._keepalive, self._hold = keepalive, hold
        self._lock, self._over = BriefLock(), threading.Event()
        self._attempt: UpstreamCall | None = None
        self._disconnect, self._cost = disconnect, cost
        self.drain: Drain | None = None

    @property
    def attempts(self) -> int:
        return len(self.legs)

    @property
    def attempt_began(self) -> float:
        return self.legs[-1].began if self.legs else self.opened

    @property
    def tally(self) -> Tally:
        """Of the attempt under way."""
        return self.legs[-1].tally if self.legs else Tally(())

    @property
    def output_tokens(self) -> int:
        """Of all attempts, so far."""
        return sum(leg.tally.output_tokens for leg in self.legs)

    @property
    def ended(self) -> bool:
        return self._over.is_set()

    def summary(self) -> Summary:
        return Summary(
            stream_id=self.id,
            provider=self.target.provider.name,
            model=self.target.model,
            opened_at=self.opened_at,
            input_tokens=self.tally.input_tokens or 0,
            output_tokens=self.output_tokens,
        )

    def timeouts_at(self, target: Target) -> Timeouts:
        """What holds for a call to that target."""
        return self._server_timeouts.overridden(target.provider.timeouts, self._within)

    def impatient(self, timeout: UpstreamTimeout) -> bool:
        """Whether it was the caller's own limit that passed, below the provider's."""
        own = self._server_timeouts.overridden(self.target.provider.timeouts, NO_LIMITS)
        limit: float = getattr(own, timeout.phase)
        return self._within.get(timeout.phase, math.inf) < limit

    @property
    def time_left(self) -> float:
        """Seconds until the call's total time is up."""
        return self.opened + self._timeouts.total - time.monotonic()

    def pause(self, seconds: float) -> bool:
        """The reader waits. False: the call has ended meanwhile."""
        return not self._over.wait(seconds)

    def attach(
        self,
        attempt: UpstreamCall,
        target: Target,
        dropped: tuple[str, ...],
        prompts: tuple[Prompt, ...] | None = None,
    ) -> bool:
        """The reader begins an attempt at a target. prompts: when they aren't the request's. False:
        the call has ended, don't."""
        timeouts = self.timeouts_at(target)
        echoes = (self.request.n or 1) if self.request.echo else 0
        leg = Leg(target, Tally(prompts or self.request.prompts, echoes))
        with self._lock:
            if self.ended:
                return False
            self._attempt, self.target, self.dropped = attempt, target, dropped
            self._timeouts = timeouts
            self.legs.append(leg)
            self.expired = None
            self.last_event = leg.began
            return True

    def detach(self, failure: SluiceError | None) -> None:
        """The attempt is over. Until the next one begins there is nothing that could be late."""
        leg = self.legs[-1]
        with self._lock:
            leg.ended, leg.failure = time.monotonic(), failure
            self._attempt = self.expired = None

    def put(self, batch: Batch) -> bool:
        """The reader has events. Waits for a slow client. False: the call has ended."""
        leg = self.legs[-1]
        self.last_event = time.monotonic()
        if leg.first_event is None:
            leg.first_event = self.last_event
            self.first_event = self.first_event or self.last_event
        if self.text is not None:
            self.text += [event.text for event in batch if isinstance(event, Delta)]
            if any(isinstance(event, Finished) for event in batch):
                self.text = None
        accepted = self.mailbox.put(batch, leg.tally.add(batch)) or self._drains_on()
        self.last_event = time.monotonic()
        return accepted

    def end(self, reason: EndReason, error: SluiceError | None = None) -> bool:
        """The call is over, or its drain. Returns whether it was this that ended it. The provider's
        connection is closed at once, whatever it is doing, unless a drain begins."""
        if reason == "stopped" and self.stopped_at is None:
            self.stopped_at = time.monotonic()
        end = End(reason, error)
        drain = self._new_drain() if reason == "client_gone" else None
        with self._lock:  # the reader, once it is turned away, must find the drain
            read = self.mailbox.ended_by == "completed"
            first = self.mailbox.end(end)
            self._over.set()
            self.turn.set()
            attempt = self._attempt
            if begins := first and not read and attempt is not None and drain is not None:
                self.drain = drain
            drain = self.drain
        if drain is not None and not begins:
            first = reason != "client_gone" and drain.end(end)
        if attempt is not None:
            if begins:
                attempt.wind_up()
            elif reason != "completed" and (first or drain is None):
                attempt.abort()
        return first

    def _new_drain(self) -> Drain | None:
        policy = self.target.provider.disconnect or self._disconnect.policy
        return Drain(self._disconnect, self._spent) if policy == "drain" else None

    def _spent(self) -> int | None:
        return self._cost(self.target, self.tally.usage(failed=False))

    def _drains_on(self) -> bool:
        """Whether the reader goes on although the call has ended."""
        with self._lock:
            drain = self.drain
        return drain is not None and drain.goes_on()

    def reader_left(self) -> None:
        """The reader is through, however the call ended."""
        if self.drain is not None:
            self.drain.end(End("completed"))

    def drained(self) -> None:
        """Wait for the end of the drain, if there is one."""
        if self.drain is not None and not self.drain.wait():
            self.end("deadline")

    @property
    def stopped(self) -> bool:
        """Whether stop-stream ended it, or its drain."""
        by = self.drain.ended_by if self.drain else None
        return "stopped" in (self.mailbox.ended_by, by and by.reason)

    def look(self, now: float) -> None:
        """What time and the network did to this call; the sweeper asks each second."""
        if self.drain is not None:
            self._look_at_drain(self.drain, now)
        elif self._client is not None and hung_up(self._client):
            self.end("client_gone")
            shut(self._client)  # a writer that is blocked in send wakes
        elif now - self.opened > self._timeouts.total:
            self.end("deadline", UpstreamTimeout("total", self._timeouts.total))
        elif self.expired is not None:  # an abort should have ended the attempt: it hangs in DNS
            self.end("deadline", self.expired)
        elif not self._expire(now):
            if self.first_event is None and now - self.opened >= self._hold:
                self._hold = math.inf  # once
                self.mailbox.nudge(Nudge.RELEASE)
            if now - self.last_write >= self._keepalive:
                self.last_write = now
                self.mailbox.nudge(Nudge.KEEP_ALIVE)

    def _look_at_drain(self, drain: Drain, now: float) -> None:
        if now > min(drain.until, self.opened + self._timeouts.total) or self._overdue(now):
            self.end("deadline")

    def _expire(self, now: float) -> bool:
        """Abort the attempt under way if it is overdue; the reader goes on to a fallback, if there
        is one. Under the lock it can't: what is aborted is the attempt that was overdue."""
        with self._lock:
            overdue, attempt = self._overdue(now), self._attempt
            self.expired = overdue
        if overdue is not None and attempt is not None:
            attempt.abort()
        return overdue is not None

    def _overdue(self, now: float) -> UpstreamTimeout | None:
        leg = self.legs[-1] if self.legs else None
        if leg is None or leg.ended is not None:  # it waits: for its turn, or to try again
            return None
        if leg.first_event is None:
            limit = self._timeouts.first_event
            late = now - leg.began > limit
            return UpstreamTimeout("first_event", limit) if late else None
        limit = self._timeouts.idle
        late = now - self.last_event > limit and not (self.mailbox.full and self.drain is None)
        return UpstreamTimeout("idle", limit) if late else None
