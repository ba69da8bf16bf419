"""The detection of disconnected clients, and the drain of their calls.

When a client disconnects, its call is cancelled or drained. A drain reads the rest of the answer
only to count its tokens: some providers charge for the whole answer anyway, and the drain keeps the
bill exact.

- A drain is bounded in time and cost. The first bound that is reached ends it.
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

    The check never blocks and consumes no bytes: it reads the TCP state on Linux, and peeks
    elsewhere.
    """
    try:
        if sys.platform == "linux" and client.family in (socket.AF_INET, socket.AF_INET6):
            # The state is correct even for TLS, and if pipelined bytes are unread.
            state = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            return state[0] != TCP_ESTABLISHED
        return _at_end(client)
    except OSError:  # the socket is closed
        return True


def _at_end(client: socket.socket) -> bool:
    """Return True if the client closed its connection, where TCP_INFO doesn't exist.

    A peek can't see the close if unread bytes come before it.
    """
    timeout = client.gettimeout()
    client.settimeout(0)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except (BlockingIOError, InterruptedError, ValueError):  # ValueError: a TLS socket can't peek
        return False
    finally:
        client.settimeout(timeout)


class DisconnectPolicy(msgspec.Struct, frozen=True):
    """The server's policy for calls whose client has disconnected, and the bounds of a drain."""

    policy: str = "cancel"
    """Either cancel or drain. A provider's row may override it."""
    seconds: float = 30
    cost: int = 50_000_000
    """The maximum cost of a drain in nano-dollars. It applies only if the price is known."""


CANCEL: Final = DisconnectPolicy()


class Drain:
    """An active drain. The reader reads on, the writer waits, and any thread may end the drain."""

    def __init__(self, bounds: DisconnectPolicy, spent: Callable[[], int | None]) -> None:
        """Start a drain.

        Args:
            bounds: the policy with the maximum time and cost.
            spent: returns the cost of the call so far in nano-dollars, or None if it is unknown.
        """
        self.until = time.monotonic() + bounds.seconds
        self._cost = bounds.cost
        self._spent = spent
        self._before = spent()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.ended_by: End | None = None

    def goes_on(self) -> bool:
        if self._over.is_set() or time.monotonic() > self.until:
            return False
        spent = self._spent()
        return spent is None or self._before is None or spent - self._before <= self._cost

    def end(self, end: End) -> bool:
        """End the drain. Return False if it had already ended."""
        with self._lock:
            if self.ended_by is not None:
                return False
            self.ended_by = end
        self._over.set()
        return True

    def wait(self) -> bool:
        """Wait for the end of the drain. Return False if its time is up first."""
        return self._over.wait(max(0.0, self.until - time.monotonic()))
