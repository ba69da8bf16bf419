"""What ends an exchange that is under way: an abort from any thread, or its host's silence.

Rules that hold here: plain threading, which runs under gevent and threads alike. A `shutdown` of
the socket, noted before its connect begins, wakes a connect, a handshake, a wait for headers, a
silence and a flow. (close() from another thread can hang; a flag alone is seen only when bytes
come.) One thread looks for silences: a socket's own time limit is a timer for each wait, which
under gevent is a third of what an event of a slow stream costs the transport (35 us, now 25).
"""

from __future__ import annotations

import errno
import math
import socket
import time
from typing import Final

from concurrency.native import BriefLock, received, waits_first
from concurrency.threads import BackgroundThread

READ_SIZE: Final = 64 * 1024
SMALL_READ_SIZE: Final = 8 * 1024
"""Where the last receive was not full: to make room for READ_SIZE takes 13 us, for this 1."""
LOOK_S: Final = 0.5


class Aborted(Exception):
    """The exchange was aborted; nobody waits for its result."""


class Switch:
    """Of one exchange."""

    __slots__ = (
        *("_connecting", "_late", "_lock", "_silent_since", "_size", "_socket", "_waits"),
        *("silence", "thrown"),
    )

    def __init__(self) -> None:
        self.silence = math.inf
        """Seconds for which the host may be silent."""
        self.thrown = False
        self._lock = BriefLock()
        self._socket: socket.socket | None = None
        self._connecting = self._late = self._waits = False
        self._silent_since = math.inf
        self._size = SMALL_READ_SIZE

    def throw(self) -> None:
        """End what the exchange is doing, whatever that is; takes milliseconds. May be repeated."""
        for _ in range(20):
            with self._lock:  # nobody else gets the socket meanwhile
                self.thrown = True
                if self._socket is None or _shut(self._socket) or not self._connecting:
                    return
            time.sleep(0.001)  # noted, but its connect has not begun yet

    def note(self, sock: socket.socket, *, connecting: bool = False) -> None:
        """This is the socket to shut down. Raises Aborted."""
        with self._lock:
            self._socket, self._connecting = sock, connecting
            if self.thrown:
                raise Aborted
        if not connecting:
            self._waits = waits_first(sock)
            _silences.watch(self)

    def forget(self) -> None:
        """The socket is no longer this exchange's: a late abort must not end another's call."""
        _silences.leave(self)
        with self._lock:
            self._socket = None

    def send(self, sock: socket.socket, data: bytes) -> None:
        """Raises OSError; TimeoutError when the host was silent for too long."""
        self._silent_since = time.monotonic()
        try:
            sent = sock.send(data)  # sendall of gevent's sockets asks for the buffer's size first
            if sent < len(data):
                sock.sendall(data[sent:])
        except OSError:
            self._check()
            raise
        finally:
            self._silent_since = math.inf

    def receive(self, sock: socket.socket) -> bytes:
        """What came, READ_SIZE at most; empty at the connection's end. Raises as `send`."""
        self._silent_since = time.monotonic()
        try:
            if self._waits and self._size == SMALL_READ_SIZE:
                data = received(sock, SMALL_READ_SIZE)
            else:
                data = sock.recv(self._size)
        except OSError:
            self._check()
            raise
        finally:
            self._silent_since = math.inf
        if not data:
            self._check()
        self._size = READ_SIZE if len(data) == self._size else SMALL_READ_SIZE
        return data

    def look(self, now: float) -> None:
        """End the exchange if its host has been silent for too long."""
        if now - self._silent_since > self.silence:
            with self._lock:
                if self._socket is not None:
                    self._late = True
                    _shut(self._socket)

    def _check(self) -> None:
        if self._late:
            raise TimeoutError


def _shut(sock: socket.socket) -> bool:
    """False: it isn't connected."""
    try:
        # Not SSLSocket's own shutdown: that drops its TLS state under the reader's feet.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError as failure:
        return failure.errno != errno.ENOTCONN
    return True


class _Silences:
    """The exchanges under way, and the thread that looks at them."""

    def __init__(self) -> None:
        self._switches: set[Switch] = set()
        self._thread = BackgroundThread(self._look, "silences")

    def watch(self, switch: Switch) -> None:
        self._switches.add(switch)
        self._thread.start()

    def leave(self, switch: Switch) -> None:
        self._switches.discard(switch)

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_S)
            now = time.monotonic()
            for switch in self._switches.copy():  # at once, while others add theirs
                switch.look(now)


_silences = _Silences()
