"""One active call: its attempts and its end.

`Stream.end` ends a call from any thread: it posts an End to the mailbox and aborts the upstream
call. If the client has disconnected and the policy is to drain, the reader may continue for a
while. The timeouts are in deadlines.py, and the policy for disconnected clients is in
disconnect.py.

- The module uses plain threading, so that it works with gevent and with native threads.
- The module knows nothing of HTTP, faces or providers.
- No lock is held during a wait.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

from completion import (
    CALL_STATES,
    Added,
    Batch,
    CompletionRequest,
    Delta,
    EndReason,
    Finished,
    Opaque,
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
from streams.mailbox import BACKLOG, End, Mailbox
from streams.tally import EVENT_WEIGHT, Tally


class Attempt:
    """One try of a call at one target. All times are monotonic."""

    def __init__(self, target: Target, tally: Tally) -> None:
        self.target = target
        self.tally = tally
        self.began = time.monotonic()
        self.first_event: float | None = None
        """The time of the first sign of life, for example of reasoning or of a ping."""
        self.ended: float | None = None
        self.failure: SluiceError | None = None
        """The error that ended the attempt, if the provider caused it."""
        self.held: Batch = []
        """Added and opaque events before the first visible event, with which the client gets
        them."""
        self.held_size = 0

    def hold(self, batch: Batch) -> bool:
        """Hold a batch's Added and opaque events. Return True if that is as much as may be held."""
        for event in batch:
            if isinstance(event, Added):
                self.held.append(event)
                self.held_size += event.size + EVENT_WEIGHT
            elif isinstance(event, Opaque):
                self.held.append(event)
                self.held_size += len(event.data) + EVENT_WEIGHT
        return self.held_size > BACKLOG


class Stream:
    """One active call. `id` is its stream id, which is unique among the key's active calls."""

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
            target: the first target.
            endpoint: the path of the request.
            client: the client's connection, if the server exposes it.
            disconnect: the policy for a client that disconnects.
            cost: returns the cost of a usage at a target in nano-dollars, or None if it is unknown.
        """
        # The request and its caller.
        self.id, self.key_id, self.endpoint = stream_id, key_id, endpoint
        self.request_id, self.request = request_id, request
        self.traceparent = ""
        self.affinity: str | None = None
        """The caller's affinity key; None for the start of the prompt."""
        self._client = client

        # The call's progress.
        self.target = target
        self.dropped: tuple[str, ...] = ()
        self.attempts: list[Attempt] = []
        self.failures: dict[str, SluiceError] = {}
        """The last failure of each target that was tried or is paused, by the target's name."""
        self.opened_at = time.time()
        self.first_visible: float | None = None
        """The monotonic time of the first event that the client may see. After it, a stream isn't
        retried. When another attempt replaces a whole answer, this is reset."""
        self.stopped_at: float | None = None
        self.continued = False
        self.text: list[str] | None = None
        """The text so far, for a continuation; None if the call can't be continued."""

        # The conditions that may end the call.
        self.deadlines = deadlines
        self.expired: UpstreamTimeout | None = None
        self.drain: Drain | None = None
        self._disconnect, self._cost = disconnect, cost
        self.on_end: Callable[[End], None] | None = None  # takes the end of a resumable call

        # The synchronization of its threads.
        self.mailbox = Mailbox()
        self.turn = threading.Event()
        """Set when a queued call may start or has ended."""
        self._lock, self._over = BriefLock(), threading.Event()
        self._upstream: UpstreamCall | None = None

    @property
    def opened(self) -> float:
        """The monotonic time at which the call was admitted."""
        return self.deadlines.opened

    @property
    def attempt_began(self) -> float:
        return self.attempts[-1].began if self.attempts else self.opened

    @property
    def tally(self) -> Tally:
        return self.attempts[-1].tally if self.attempts else Tally(())

    @property
    def output_tokens(self) -> int:
        """The tokens of output of all attempts so far."""
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
            key_id=self.key_id,
            request_id=self.request_id,
            endpoint=self.endpoint,
            streamed=self.request.stream,
            state=CALL_STATES[bool(self.attempts) + (self.first_visible is not None)],
            resumable=self.mailbox.keeps_answer,
        )

    def pause(self, seconds: float) -> bool:
        """Wait in the reader's thread. Return False if the call has ended."""
        return not self._over.wait(seconds)

    def attach(
        self,
        upstream: UpstreamCall,
        target: Target,
        dropped: tuple[str, ...],
        prompts: tuple[Prompt, ...] | None = None,
        *,
        choices: int = 1,
    ) -> bool:
        """Register a new attempt.

        Args:
            dropped: the names of the hints that the attempt's request lost.
            prompts: the prompts that are sent, if they differ from the request's.
            choices: the number of choices in one response of the provider.

        Returns:
            False if the call has ended and the attempt must not start.
        """
        limits = self.deadlines.at(target)
        echoes = (self.request.n or 1) if self.request.echo else 0
        silent = self.request.max_tokens == 0
        own, chat = self.request.prompts, self.request.chat
        tally = Tally(
            *(prompts or own, echoes),
            choices=choices,
            silent=silent,
            echoed=own,
            estimate=None if chat is None else chat.input_tokens,
        )
        attempt = Attempt(target, tally)
        if self.first_visible is not None and not self.request.stream:
            self.first_visible = None
            self.mailbox.restart()
        with self._lock:
            if self.ended:
                return False
            self._upstream, self.target, self.dropped = upstream, target, dropped
            self.attempts.append(attempt)
            self.expired = None
            self.deadlines.go_to(limits, attempt.began)
            return True

    def detach(self, failure: SluiceError | None) -> None:
        """End the current attempt. Only the total timeout applies until the next one starts."""
        attempt = self.attempts[-1]
        with self._lock:
            attempt.ended, attempt.failure = time.monotonic(), failure
            if failure is not None:
                self.failures[attempt.target.name] = failure
            self._upstream = self.expired = None

    def put(self, batch: Batch) -> bool:
        """Pass a batch to the writer, and wait if the client is slow.

        Batches before the first visible event are only counted. They show that the provider is
        alive, but another attempt may still replace this one.

        Return False if the reader must stop because the call has ended.
        """
        attempt, deadlines = self.attempts[-1], self.deadlines
        tally = attempt.tally
        now = deadlines.last_event = time.monotonic()
        if attempt.first_event is None:
            attempt.first_event = now
        visible = tally.visible
        weight = tally.add(batch)
        if tally.visible == visible and (self.first_visible is None or not batch):
            if not (batch and attempt.hold(batch)):
                return not self.ended or self._drains_on()
            batch = []
        if self.first_visible is None:
            self.first_visible = now
            if self.request.stream and self.request.chat is not None:
                self.request.chat.release()  # a stream isn't retried from now on
            if attempt.held:
                batch, weight = [*attempt.held, *batch], weight + attempt.held_size
                attempt.held = []
        if self.text is not None:
            self.text += [event.text for event in batch if isinstance(event, Delta)]
            if any(isinstance(event, Finished) for event in batch):
                self.text = None
        accepted = self.mailbox.put(batch, weight) or self._drains_on()
        deadlines.last_event = time.monotonic()
        return accepted

    def end(self, reason: EndReason, error: SluiceError | None = None) -> bool:
        """End the call or its drain. Return False if it had already ended.

        The upstream call is aborted at once, in any state, unless a drain starts.
        """
        if reason == "stopped" and self.stopped_at is None:
            self.stopped_at = time.monotonic()
        end = End(reason, error)
        drain = self._new_drain() if reason == "client_gone" and self.on_end is None else None
        with self._lock:  # when the mailbox refuses a batch, the reader must already see the drain
            read = self.mailbox.ended_by == "completed"
            first = self.mailbox.end(end)
            self._over.set()
            self.turn.set()
            upstream, on_end = self._upstream, self.on_end
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
        if first and on_end is not None:
            on_end(end)
        return first

    def record(self, recorder: Mailbox, on_end: Callable[[End], None]) -> None:
        """Make the call resumable, before its reader starts. The call may have ended already.

        Args:
            recorder: takes the place of the mailbox.
            on_end: is called with the call's end.
        """
        with self._lock:
            end = self.mailbox.posted_end
            self.mailbox, self.on_end = recorder, on_end
        if end is not None and recorder.end(end):
            on_end(end)

    def _new_drain(self) -> Drain | None:
        policy = self.target.provider.disconnect or self._disconnect.policy
        return Drain(self._disconnect, self._spent) if policy == "drain" else None

    def _spent(self) -> int | None:
        return self._cost(self.target, self.tally.usage(failed=False))

    def _drains_on(self) -> bool:
        with self._lock:
            drain = self.drain
        return drain is not None and drain.goes_on()

    def reader_left(self) -> None:
        """Record that the reader has finished, which completes any drain."""
        if self.drain is not None:
            self.drain.end(End("completed"))

    def drained(self) -> None:
        """Wait for the end of the drain, if there is one, and end it when its time is up."""
        if self.drain is not None and not self.drain.wait():
            self.end("deadline")

    @property
    def stopped(self) -> bool:
        """True if stop-stream ended the call or its drain."""
        by = self.drain.ended_by if self.drain else None
        return "stopped" in (self.mailbox.ended_by, by and by.reason)

    def look(self, now: float) -> None:
        """Check the client's connection and the deadlines, and act on them.

        The sweeper calls this method once a second.
        """
        if self.drain is not None:
            late = self.deadlines.total_passed(now) or self._late(now)
            if now > self.drain.until or (late and not self._end_if_finished()):
                self.end("deadline")
        elif self._client is not None and hung_up(self._client):
            self.end("client_gone")
            shut(self._client)  # this wakes a writer that is blocked in send
        elif timeout := self.deadlines.total_passed(now):
            if not self._end_if_finished():
                self.end("deadline", timeout)
        elif self.expired is not None:
            # The abort didn't end the attempt within a second, for example because it hangs in DNS.
            self.end("deadline", self.expired)
        elif not self._expire(now):
            for nudge in self.deadlines.nudges(now, begun=self.first_visible is not None):
                self.mailbox.nudge(nudge)

    def _expire(self, now: float) -> bool:
        """Abort the current attempt if it is late. The reader then tries the next target, if any.

        An answer that is finished is ended instead. The upstream call is read under the lock, so
        that the attempt that is aborted is the one that was late, and not its successor.
        """
        with self._lock:
            late, upstream = self._late(now), self._upstream
        if late is None or (upstream is not None and upstream.end_if_finished()):
            return False
        with self._lock:
            if self._upstream is not upstream:
                return False
            self.expired = late
        if upstream is not None:
            upstream.abort()
        return True

    def _end_if_finished(self) -> bool:
        with self._lock:
            upstream = self._upstream
        return upstream is not None and upstream.end_if_finished()

    def _late(self, now: float) -> UpstreamTimeout | None:
        attempt = self.attempts[-1] if self.attempts else None
        if attempt is None or attempt.ended is not None:  # the call is queued, or waits for a retry
            return None
        if attempt.first_event is None:
            return self.deadlines.first_event_passed(attempt.began, now)
        if self.mailbox.full and self.drain is None:  # the client is slow, not the provider
            return None
        return self.deadlines.idle_passed(now)
