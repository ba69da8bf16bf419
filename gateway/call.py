"""The client's side of an active call: wait for its result, or relay its stream.

- The module knows nothing of HTTP or faces; the encoder is passed in.
- A call is settled exactly once, whatever ends it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from completion import Batch, Completion, EndReason, Event, Usage, fold
from errors import ClientGone, SluiceError
from quota.memory import Hold
from streams.mailbox import (
    End,
    Message,
    Nudge,
)
from streams.stream import Stream

COMMENTS = {
    Nudge.KEEP_ALIVE: b": keep-alive\n\n",
    Nudge.CONTINUED: b": the stream was interrupted; another attempt continues it from here\n\n",
}


class AttemptRecord(msgspec.Struct, frozen=True):
    provider: str
    model: str
    key: int
    """The number of the operator's key."""
    code: str | None
    """The code of the error that ended the attempt."""
    status: int | None
    """The provider's HTTP status, if the attempt failed with one."""
    input_tokens: int
    output_tokens: int
    cost_nano: int | None
    """None if unknown."""
    duration_us: int


class Outcome(msgspec.Struct, frozen=True):
    """The result of a call for billing and metrics.

    Durations are in seconds, and the cost is in nano-dollars (None if unknown).
    """

    reason: EndReason
    error: SluiceError | None
    usage: Usage
    cost: int | None
    duration: float
    latency: float
    """The provider's part of the duration: the time since the last attempt started."""
    first_event: float | None
    """The time from admission to the first event; None if there was none."""
    status: int
    """The HTTP status that the client saw; 499 if it has gone."""
    attempts: tuple[AttemptRecord, ...] = ()
    failures: str = ""
    """The targets that failed and why, for the log."""
    cost_reported: bool = False
    """True if the cost, or a part of it, is the one that the provider reported."""


class Encoder(Protocol):
    """A face's encoder for streams. Each method returns complete frames."""

    def begin(self) -> bytes:
        """Return the start of a stream: at least a comment, so that the status line is sent."""

    def events(self, batch: Batch) -> bytes:
        """Encode events. Prepend the first frame if it hasn't been sent."""

    def last_frames(self, outcome: Outcome) -> bytes:
        """Return the last frames, whatever ended the call."""


class Call:
    """An admitted call. Its writer uses either `result`, or `wait` and then `frames`."""

    def __init__(
        self,
        stream: Stream,
        settle: Callable[[Stream, End, int], Outcome],
        hold: Hold | None = None,
    ) -> None:
        """Make a call.

        Args:
            settle: settles the call; its third argument is the HTTP status that the client saw.
            hold: the tokens that the call reserved.
        """
        self.stream = stream
        self.hold = hold
        self._account = settle
        self._waiting: list[Message] = []
        self._begun = False
        self._lock = threading.Lock()
        self._outcome: Outcome | None = None

    @property
    def held(self) -> int:
        """The tokens that count against the key's limit: those reserved, or after the settlement
        those used."""
        if self._outcome is not None:
            return self._outcome.usage.total_tokens
        return self.hold.tokens if self.hold else 0

    def result(self) -> tuple[Completion, Outcome]:
        """Wait for the whole completion. If the call is stopped, return what has arrived.

        Raises SluiceError if the call fails.
        """
        events: list[Event] = []
        try:
            while True:
                for message in self.stream.mailbox.take():
                    if isinstance(message, list):
                        events += message
                    elif message is Nudge.RESTARTED:
                        events.clear()
                    elif isinstance(message, End):
                        outcome = self._settle(message)
                        raise_for(message)
                        return fold(events), outcome
        finally:
            self.close()

    def wait(self) -> None:
        """Wait until the status line can be sent.

        That is at the first event, at the end of the call, or when the server's hold time is up.
        Raises SluiceError if the call fails before that.
        """
        while not self._waiting:
            for message in self.stream.mailbox.take():
                if message is Nudge.KEEP_ALIVE:  # nothing can be sent before the status line
                    continue
                if isinstance(message, End) and not self._waiting and message.error:
                    self._settle(message)
                    raise_for(message)
                self._waiting.append(message)
        self._begun = True

    def frames(self, encoder: Encoder) -> Iterator[bytes]:
        """Yield the stream in a face's format. Each yield is one write to the client."""
        messages, self._waiting = self._waiting, []
        begun = False
        try:
            while True:
                out = []
                for message in messages:
                    if isinstance(message, list):
                        begun = True
                        out.append(encoder.events(message))
                    elif isinstance(message, End):
                        outcome = self._settle(message)
                        out.append(encoder.last_frames(outcome))
                        yield b"".join(out)
                        return
                    elif message in COMMENTS:
                        out.append(COMMENTS[message])
                    elif not begun:  # a RELEASE may arrive after the first event
                        begun = True
                        out.append(encoder.begin())
                data = b"".join(out)
                yield data
                if data:  # if a face hides an event, the client still sees silence
                    self.stream.deadlines.last_write = time.monotonic()
                messages = self.stream.mailbox.take()
        finally:
            self.close()

    def close(self) -> None:
        """Settle the call as client_gone, unless it has already been settled."""
        if self._outcome is None:
            self.stream.end("client_gone")
            self._settle(End("client_gone"))

    def prepare(self, record: Callable[[Call], None]) -> None:
        """Call `record`, which makes the call resumable. If it raises, end the call and raise."""
        try:
            record(self)
        except BaseException:
            self.close()
            raise

    def settle_as(self, end: End, status: int) -> Outcome:
        """Settle a resumable call, which may outlive its connections.

        Args:
            status: the HTTP status of the first connection's response.
        """
        with self._lock:
            if self._outcome is None:
                self._outcome = self._account(self.stream, end, status)
            return self._outcome

    def _settle(self, end: End) -> Outcome:
        if end.reason == "client_gone":  # a drain adds to the usage
            self.stream.drained()
        with self._lock:
            if self._outcome is None:
                status = 200
                if end.reason == "client_gone":
                    status = ClientGone.status
                elif end.error is not None and not self._begun:
                    status = end.error.status
                self._outcome = self._account(self.stream, end, status)
            return self._outcome


def raise_for(end: End) -> None:
    if end.error is not None:
        raise end.error
    if end.reason == "client_gone":
        raise ClientGone
