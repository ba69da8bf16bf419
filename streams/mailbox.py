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
    EndReason,
)
from concurrency.native import BriefLock
from errors import SluiceError

BACKLOG = 256 * 1024  # bytes of events that may wait for a slow client, about


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
