"""A call under way, as its writer sees it: wait for its result, or relay its stream.

Rules that hold here: nothing of HTTP or of a face (the encoder is passed in); whatever ends the
call, it is settled exactly once.
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
    Nudge.CONTINUED: b": the call broke off, and another one goes on from here\n\n",
}


class AttemptRecord(msgspec.Struct, frozen=True):
    """One attempt, as the ledger keeps it. key: which of the operator's. status: the provider's,
    when it failed. cost_nano: None if unknown."""

    provider: str
    model: str
    key: int
    code: str | None
    status: int | None
    input_tokens: int
    output_tokens: int
    cost_nano: int | None
    duration_us: int


class Outcome(msgspec.Struct, frozen=True):
    """What a call came to. Durations are seconds, the cost nano-dollars (None: unknown)."""

    reason: EndReason
    error: SluiceError | None
    usage: Usage
    cost: int | None
    duration: float
    latency: float
    """The provider's part of the duration."""
    first_event: float | None
    status: int
    """The HTTP status that the client saw."""
    attempts: tuple[AttemptRecord, ...] = ()
    """Its attempts."""


class Encoder(Protocol):
    """How a face writes a stream. Each returns whole frames."""

    def begin(self) -> bytes:
        """What a stream begins with; at least a comment, so that the status line goes out."""

    def events(self, batch: Batch) -> bytes:
        """Some events; begins the stream when it has not begun."""

    def last_frames(self, outcome: Outcome) -> bytes:
        """The last frames, whatever ended it."""


class Call:
    """An admitted call, for its writer: either `result`, or `wait` and then `frames`."""

    def __init__(
        self,
        stream: Stream,
        settle: Callable[[Stream, End, int], Outcome],
        hold: Hold | None = None,
    ) -> None:
        """settle: accounts for the call, given the HTTP status that its client saw. hold: the
        tokens that it reserved."""
        self.stream = stream
        self.hold = hold
        self._account = settle
        self._waiting: list[Message] = []
        self._begun = False
        self._lock = threading.Lock()
        self._outcome: Outcome | None = None

    @property
    def held(self) -> int:
        """The tokens that count for it now: those reserved, or once it is settled those used."""
        if self._outcome is not None:
            return self._outcome.usage.total_tokens
        return self.hold.tokens if self.hold else 0

    def result(self) -> tuple[Completion, Outcome]:
        """The whole answer, of a call that was stopped too. Raises SluiceError."""
        events: list[Event] = []
        try:
            while True:
                for message in self.stream.mailbox.take():
                    if isinstance(message, list):
                        events += message
                    elif isinstance(message, End):
                        outcome = self._settle(message)
                        raise_for(message)
                        return fold(events), outcome
        finally:
            self.close()

    def wait(self) -> None:
        """Hold the status line back: until the first event, a failure (raised), or long enough."""
        while not self._waiting:
            for message in self.stream.mailbox.take():
                if message is Nudge.KEEP_ALIVE:  # there is no stream yet
                    continue
                if isinstance(message, End) and not self._waiting and message.error:
                    self._settle(message)
                    raise_for(message)
                self._waiting.append(message)
        self._begun = True

    def frames(self, encoder: Encoder) -> Iterator[bytes]:
        """The stream in a face's format, a write a yield."""
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
                    elif not begun:  # a release may come behind the first event
                        begun = True
                        out.append(encoder.begin())
                data = b"".join(out)
                yield data
                if data:  # events that a face doesn't show are silence
                    self.stream.deadlines.last_write = time.monotonic()
                messages = self.stream.mailbox.take()
        finally:
            self.close()

    def close(self) -> None:
        """The writer is done. If the call has not ended, its client must have gone."""
        if self._outcome is None:
            self.stream.end("client_gone")
            self._settle(End("client_gone"))

    def _settle(self, end: End) -> Outcome:
        if end.reason == "client_gone":  # what its provider brings for nobody counts
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
