"""One active call: its attempts, and how it is ended.

Whatever ends a call from outside goes through `Stream.end`, which posts the End and aborts the
upstream call; or, when the client has gone and the policy is to drain, lets the reader go on for a
while. Time limits are in deadlines.py, and the policy for clients that disconnect in disconnect.py.

- Plain threading, so that this works under gevent and with native threads alike.
- Nothing of HTTP, of a face or of a provider.
- No lock is held while anything waits.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

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
from errors import SluiceError, UpstreamTimeout
from providers.base import Target, UpstreamCall
from server.sockets import shut
from streams.deadlines import Deadlines
from streams.disconnect import CANCEL, DisconnectPolicy, Drain, hung_up
from streams.mailbox import End, Mailbox
from streams.tally import Tally


class Attempt:
    """One try of a call at one target."""

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
        deadlines: Deadlines,
        *,
        stream_id: str,
        key_id: str,
        endpoint: str,
        request_id: str,
        client: socket.socket | None = None,
        disconnect: DisconnectPolicy = CANCEL,
        cost: Callable[[Target, Usage], int | None] = lambda *_: None,
    ) -> None:
        """Make a call that has no attempt yet.

        Args:
            target: where the call goes first.
            client: the connection of its client, where the server shows it.
            cost: returns what a usage costs at a target, in nano-dollars; None: unknown.
        """
        # Who asked for what.
        self.id, self.key_id, self.endpoint = stream_id, key_id, endpoint
        self.request_id, self.request = request_id, request
        self.traceparent = ""
        self._client = client

        # What the call has come to.
        self.target = target
        self.dropped: tuple[str, ...] = ()
        self.attempts: list[Attempt] = []
        self.opened_at = time.time()
        self.first_event: float | None = None
        self.stopped_at: float | None = None
        self.continued = False
        self.text: list[str] | None = None
        """The text so far, for a continuation; None: there will be none."""

        # What may end it.
        self.deadlines = deadlines
        self.expired: UpstreamTimeout | None = None
        self.drain: Drain | None = None
        self._disconnect, self._cost = disconnect, cost

        # How its threads meet.
        self.mailbox = Mailbox()
        self.turn = threading.Event()
        """Set when a call that waits for its turn has it, or has ended."""
        self._lock, self._over = BriefLock(), threading.Event()
        self._upstream: UpstreamCall | None = None

    @property
    def opened(self) -> float:
        """When the call was admitted, by the monotonic clock."""
        return self.deadlines.opened

    @property
    def attempt_began(self) -> float:
        return self.attempts[-1].began if self.attempts else self.opened

    @property
    def tally(self) -> Tally:
        """The tally of the present attempt."""
        return self.attempts[-1].tally if self.attempts else Tally(())

    @property
    def output_tokens(self) -> int:
        """The tokens of all attempts so far."""
        return sum(attempt.tally.output_tokens for attempt in self.attempts)

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

    def pause(self, seconds: float) -> bool:
        """Let the reader wait. Return False if the call has ended meanwhile."""
        return not self._over.wait(seconds)

    def attach(
        self,
        upstream: UpstreamCall,
        target: Target,
        dropped: tuple[str, ...],
        prompts: tuple[Prompt, ...] | None = None,
    ) -> bool:
        """Begin an attempt at a target. Return False if the call has ended, and nothing begins.

        Args:
            prompts: the prompts that are sent, when they aren't the request's.
        """
        limits = self.deadlines.at(target)
        echoes = (self.request.n or 1) if self.request.echo else 0
        attempt = Attempt(target, Tally(prompts or self.request.prompts, echoes))
        with self._lock:
            if self.ended:
                return False
            self._upstream, self.target, self.dropped = upstream, target, dropped
            self.attempts.append(attempt)
            self.expired = None
            self.deadlines.go_to(limits, attempt.began)
            return True

    def detach(self, failure: SluiceError | None) -> None:
        """End the present attempt. Until the next one begins nothing can be late."""
        attempt = self.attempts[-1]
        with self._lock:
            attempt.ended, attempt.failure = time.monotonic(), failure
            self._upstream = self.expired = None

    def put(self, batch: Batch) -> bool:
        """Pass on what the provider sent, and wait for a slow client.

        Return False if the call has ended.
        """
        attempt, deadlines = self.attempts[-1], self.deadlines
        now = deadlines.last_event = time.monotonic()
        if attempt.first_event is None:
            attempt.first_event = now
            self.first_event = self.first_event or now
        if self.text is not None:
            self.text += [event.text for event in batch if isinstance(event, Delta)]
            if any(isinstance(event, Finished) for event in batch):
                self.text = None
        accepted = self.mailbox.put(batch, attempt.tally.add(batch)) or self._drains_on()
        deadlines.last_event = time.monotonic()
        return accepted

    def end(self, reason: EndReason, error: SluiceError | None = None) -> bool:
        """End the call, or its drain. Return True if this ended it, and nothing did before.

        The upstream call is aborted at once, whatever it is doing, unless a drain begins.
        """
        if reason == "stopped" and self.stopped_at is None:
            self.stopped_at = time.monotonic()
        end = End(reason, error)
        drain = self._new_drain() if reason == "client_gone" else None
        with self._lock:  # the reader, once it is turned away, must find the drain
            read = self.mailbox.ended_by == "completed"
            first = self.mailbox.end(end)
            self._over.set()
            self.turn.set()
            upstream = self._upstream
            if begins := first and not read and upstream is not None and drain is not None:
                self.drain = drain
            drain = self.drain
        if drain is not None and not begins:
            first = reason != "client_gone" and drain.end(end)
        if upstream is not None:
            if begins:
                upstream.wind_up()
            elif reason != "completed" and (first or drain is None):
                upstream.abort()
        return first

    def _new_drain(self) -> Drain | None:
        policy = self.target.provider.disconnect or self._disconnect.policy
        return Drain(self._disconnect, self._spent) if policy == "drain" else None

    def _spent(self) -> int | None:
        return self._cost(self.target, self.tally.usage(failed=False))

    def _drains_on(self) -> bool:
        """Return True if the reader goes on although the call has ended."""
        with self._lock:
            drain = self.drain
        return drain is not None and drain.goes_on()

    def reader_left(self) -> None:
        """Note that the reader is through, however the call ended."""
        if self.drain is not None:
            self.drain.end(End("completed"))

    def drained(self) -> None:
        """Wait for the end of the drain, if there is one."""
        if self.drain is not None and not self.drain.wait():
            self.end("deadline")

    @property
    def stopped(self) -> bool:
        """True if stop-stream ended the call, or its drain."""
        by = self.drain.ended_by if self.drain else None
        return "stopped" in (self.mailbox.ended_by, by and by.reason)

    def look(self, now: float) -> None:
        """Act on what time and the network did to this call. The sweeper calls it each second."""
        if self.drain is not None:
            if now > self.drain.until or self.deadlines.total_passed(now) or self._late(now):
                self.end("deadline")
        elif self._client is not None and hung_up(self._client):
            self.end("client_gone")
            shut(self._client)  # a writer that is blocked in send wakes
        elif timeout := self.deadlines.total_passed(now):
            self.end("deadline", timeout)
        elif self.expired is not None:  # an abort should have ended the attempt: it hangs in DNS
            self.end("deadline", self.expired)
        elif not self._expire(now):
            for nudge in self.deadlines.nudges(now, begun=self.first_event is not None):
                self.mailbox.nudge(nudge)

    def _expire(self, now: float) -> bool:
        """Abort the present attempt if it is late; the reader goes on to a fallback, if there is
        one. The reader can't do so under the lock: what is aborted is the attempt that was late."""
        with self._lock:
            late, upstream = self._late(now), self._upstream
            self.expired = late
        if late is not None and upstream is not None:
            upstream.abort()
        return late is not None

    def _late(self, now: float) -> UpstreamTimeout | None:
        """Return the timeout that has passed for the present attempt."""
        attempt = self.attempts[-1] if self.attempts else None
        if attempt is None or attempt.ended is not None:  # the call waits: for its turn, or a retry
            return None
        if attempt.first_event is None:
            return self.deadlines.first_event_passed(attempt.began, now)
        if self.mailbox.full and self.drain is None:  # it is the client that is slow
            return None
        return self.deadlines.idle_passed(now)
