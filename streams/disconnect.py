"""Noticing that a client has gone, and what becomes of its call: it is cancelled, or drained.

A drain reads on and counts, for nobody, so that the bill is exact where a provider would charge for
the rest of its answer anyway.

- A drain is bounded in time and money. Whatever ends it first counts.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from streams.mailbox import End

TCP_ESTABLISHED = 1


def hung_up(client: socket.socket) -> bool:
    """Return True if the client closed its connection, or its half of it.

    It never waits, and takes no byte: on Linux TCP tells, elsewhere a peek.
    """
    try:
        if sys.platform == "linux" and client.family in (socket.AF_INET, socket.AF_INET6):
            # Works on TLS sockets, and behind pipelined bytes.
            state = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            return state[0] != TCP_ESTABLISHED
        return _at_end(client)
    except OSError:  # closed
        return True


def _at_end(client: socket.socket) -> bool:
    """Return the same where there is no TCP_INFO. A peek can't see an end behind other bytes."""
    timeout = client.gettimeout()
    client.settimeout(0)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except (BlockingIOError, InterruptedError, ValueError):  # ValueError: a TLS socket can't
        return False
    finally:
        client.settimeout(timeout)


class DisconnectPolicy(msgspec.Struct, frozen=True):
    """What is done with calls without a client, and how far a drain may go."""

    policy: str = "cancel"
    """cancel or drain; for the rows that don't say."""
    seconds: float = 30
    cost: int = 50_000_000
    """Nano-dollars from the disconnect on, as far as they are known."""


CANCEL: Final = DisconnectPolicy()


class Drain:
    """A drain that has begun. One thread reads, one waits, and any may end it."""

    def __init__(self, bounds: DisconnectPolicy, spent: Callable[[], int | None]) -> None:
        """Begin a drain.

        Args:
            spent: returns what the call has cost so far, in nano-dollars; None: unknown.
        """
        self.until = time.monotonic() + bounds.seconds
        self._cost = bounds.cost
        self._spent = spent
        self._before = spent()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.ended_by: End | None = None

    def goes_on(self) -> bool:
        """Return True if the reader may read on."""
        if self._over.is_set() or time.monotonic() > self.until:
            return False
        spent = self._spent()
        return spent is None or self._before is None or spent - self._before <= self._cost

    def end(self, end: End) -> bool:
        """End the drain. Return True if this ended it, and nothing did before."""
        with self._lock:
            if self.ended_by is not None:
                return False
            self.ended_by = end
        self._over.set()
        return True

    def wait(self) -> bool:
        """Wait for the end. Return False if the time is up."""
        return self._over.wait(max(0.0, self.until - time.monotonic()))
