"""The mailbox between the reader and the writer of a call.

The reader puts batches of the provider's events into the mailbox. The writer takes them out and
responds to the client. Everything else that can happen to a call (a stop, a disconnect, a deadline,
a shutdown) is a message in this mailbox too.

- The first End wins. Only a stop, a disconnect or a shutdown can still replace the End of a
  completed call, and only until the writer has taken it.
- The module works with gevent and with native threads.
- One thread puts batches, and one takes them; any thread may nudge and end.
- The module knows nothing of HTTP, faces or providers.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import ClassVar, TypeAlias

import msgspec

from completion import (
    Batch,
    EndReason,
)
from concurrency.native import BriefLock, OneWaiterEvent
from errors import SluiceError

BACKLOG = 256 * 1024
"""The approximate number of bytes of events that may wait for a slow client."""


class End(msgspec.Struct, frozen=True):
    """The last message of a call: the reason why it ended, and the client's error, if any."""

    reason: EndReason
    error: SluiceError | None = None


class Nudge(Enum):
    KEEP_ALIVE = "keep-alive"  # nothing was written for a while
    CONTINUED = "continued"  # another attempt continues an interrupted stream
    RESTARTED = "restarted"  # another attempt replaces the part of a whole answer that has arrived
    RELEASE = "release"  # the status line was held for the maximum time


Message: TypeAlias = Batch | End | Nudge


class Mailbox:
    """The queue of messages for one writer. Only batches wait for room in it."""

    keeps_answer: ClassVar[bool] = False
    """True if the answer can be read again."""

    def __init__(self) -> None:
        # A Condition would be slow: under gevent its lock is Python code.
        self._lock = BriefLock()
        self._arrived, self._room = OneWaiterEvent(), OneWaiterEvent()
        self._messages: deque[Message] = deque()
        self._backlog = 0
        self._end: End | None = None

    def put(self, batch: Batch, weight: int) -> bool:
        """Wait until the backlog has room, and add a batch.

        Args:
            weight: the size of the batch in bytes.

        Returns:
            False if the call has ended and the batch was not added.
        """
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

    def restart(self) -> None:
        """Drop all messages, and make the writer discard the batches that it has taken."""
        with self._lock:
            if self._end is None:
                self._messages.clear()
                self._messages.append(Nudge.RESTARTED)
                self._backlog = 0
                self._arrived.set()
                self._room.set()

    def end(self, end: End) -> bool:
        """Post the end of the call. Return False if an earlier End stays in force.

        A completed answer that the writer hasn't taken yet can still be stopped. Its messages are
        dropped.
        """
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
        """Wait for messages, and return all that have arrived."""
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
    def posted_end(self) -> End | None:
        return self._end

    @property
    def ended_by(self) -> EndReason | None:
        return self._end.reason if self._end else None

    @property
    def full(self) -> bool:
        return self._backlog > BACKLOG
