"""The relay between a provider and a client: a mailbox, and a tally of what came.

A reader puts batches of the provider's events into the mailbox; a writer takes them out and answers
the client. Everything else that can happen to a call (stop, a client gone, a deadline, shutdown) is
a message in the same mailbox, so it is decided in one place: the first End wins.
Rules that hold here: plain threading, which runs under gevent and threads alike; nothing of HTTP,
of a face or of a provider.
"""

from __future__ import annotations

import threading
from collections import deque
from enum import Enum
from typing import TypeAlias

import msgspec

from completion import (
    Batch,
    Delta,
    EndReason,
    Prompt,
    Started,
    Usage,
    Used,
    prompt_tokens,
    utf8_size,
)
from concurrency.native import BriefLock
from errors import SluiceError

BACKLOG = 256 * 1024  # bytes of events that may wait for a slow client, about
EVENT_WEIGHT = 64  # bytes that an event counts beside its text


class End(msgspec.Struct, frozen=True):
    """The last message of a call: why it ended, and what the client is told if that is a
    failure."""

    reason: EndReason
    error: SluiceError | None = None


class Nudge(Enum):
    KEEP_ALIVE = "keep-alive"  # there was silence for a while
    CONTINUED = "continued"  # another call goes on where one broke off
    RELEASE = "release"  # the status line has been held back long enough


Message: TypeAlias = Batch | End | Nudge


class Mailbox:
    """Messages for one writer. Batches wait for room, the others never do."""

    def __init__(self) -> None:
        # No Condition: under gevent its lock is Python code, and slow.
        self._lock = BriefLock()
        self._arrived, self._room = threading.Event(), threading.Event()
        self._messages: deque[Message] = deque()
        self._backlog = 0
        self._end: End | None = None

    def put(self, batch: Batch, weight: int) -> bool:
        """Add a batch, when the backlog has room for it. False: the call has ended."""
        while True:
            with self._lock:
                if self._end is not None:
                    return False
                if self._backlog <= BACKLOG:
                    self._messages.append(batch)
                    self._backlog += weight
                    self._arrived.set()
                    return True
                self._room.clear()
            self._room.wait()

    def nudge(self, nudge: Nudge) -> None:
        with self._lock:
            if self._end is None and nudge not in self._messages:
                self._messages.append(nudge)
                self._arrived.set()

    def end(self, end: End) -> bool:
        """The call is over; the first End wins. Yet an answer that is complete but not yet
        delivered can still be stopped: what waits is then dropped."""
        with self._lock:
            if self._end is not None:
                undelivered = bool(self._messages) and self._end.reason == "completed"
                if not undelivered or end.reason in ("completed", "provider_error", "deadline"):
                    return False
                self._messages.clear()
            self._end = end
            self._messages.append(end)
            self._arrived.set()
            self._room.set()
            return True

    def take(self) -> list[Message]:
        """All that has arrived; waits until there is something."""
        while True:
            with self._lock:
                if self._messages:
                    taken = list(self._messages)
                    self._messages.clear()
                    if self._backlog > BACKLOG:
                        self._room.set()
                    self._backlog = 0
                    return taken
                self._arrived.clear()
            self._arrived.wait()

    @property
    def ended_by(self) -> EndReason | None:
        return self._end.reason if self._end else None

    @property
    def full(self) -> bool:
        return self._backlog > BACKLOG


class Tally:
    """What a call has brought so far, kept by its reader: what the meter goes by, whatever the
    client received of it.

    It is exact as long as no text came after the usage that the provider told last; from there on
    the output is estimated.
    """

    def __init__(self, prompts: tuple[Prompt, ...], echoes: int = 0) -> None:
        """echoes: how often each prompt stands in the answer; that text is not output."""
        self._prompts = prompts
        self._echoed = echoes * sum(utf8_size(p) for p in prompts if isinstance(p, str))
        self._started: Started | None = None
        self._usage: Usage | None = None
        self.pieces = 0
        self._bytes = 0
        self._told = (0, 0)  # pieces and bytes of output by then

    def add(self, batch: Batch) -> int:
        """Count a batch. Returns its weight in a mailbox, in bytes."""
        before = self._bytes
        for event in batch:
            if isinstance(event, Delta):
                self.pieces += 1
                text = event.text
                self._bytes += len(text) if text.isascii() else utf8_size(text)
            elif isinstance(event, Used):
                self._usage = event.usage
                self._told = (self.pieces, self._output_bytes)
            elif isinstance(event, Started):
                self._started = event
        return self._bytes - before + EVENT_WEIGHT * len(batch)

    @property
    def _output_bytes(self) -> int:
        """An echo comes before the output."""
        return max(0, self._bytes - self._echoed)

    @property
    def _untold(self) -> int:
        """Tokens of output since the provider told its usage, about."""
        pieces, output = self._told
        return max(self.pieces - pieces, -(-(self._output_bytes - output) // 4))

    @property
    def input_tokens(self) -> int | None:
        """As the provider tells them; None until it does."""
        if self._usage is not None:
            return self._usage.input_tokens
        return self._started.input_tokens if self._started else None

    @property
    def output_tokens(self) -> int:
        """So far: what the provider told, and an estimate of what came since."""
        return (self._usage.output_tokens if self._usage else 0) + self._untold

    def usage(self, *, failed: bool) -> Usage:
        """What to account for. A provider that refused the call before it began bills nothing;
        in any other case what it didn't tell is estimated."""
        if self._usage is not None:
            if not self._untold:
                return self._usage
            return msgspec.structs.replace(
                self._usage, output_tokens=self.output_tokens, source="estimate"
            )
        if failed and self._started is None:
            return Usage()
        told = self.input_tokens
        return Usage(
            input_tokens=told if told is not None else sum(map(prompt_tokens, self._prompts)),
            output_tokens=self.output_tokens,
            source="estimate",
        )
