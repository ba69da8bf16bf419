"""The abort of an exchange that is under way, from any thread or because its host is silent.

- It uses plain threading, which runs under gevent and under threads.
- An abort calls `shutdown` on the socket, which is noted before its connect begins. That wakes a
  connect, a handshake, a wait for headers, a silence and a flow. (close() from another thread can
  hang; a flag alone is seen only when bytes arrive.)
- One thread checks all exchanges for idle timeouts. A timeout of each socket is a timer for each
  wait, which under gevent is a third of what an event of a slow stream costs the transport (35 us
  with timers, 25 us without).
"""

from __future__ import annotations

import errno
import math
import socket
import time
from typing import Final

from concurrency.native import BriefLock, received, waits_first
from concurrency.threads import BackgroundThread

READ_SIZE: Final = 16 * 1024
"""The bytes that are read at once: more than most responses have, and quick to allocate."""
LOOK_S: Final = 0.5


class Aborted(Exception):
    """The exchange was aborted; nobody waits for its result."""


class AbortSwitch:
    """The switch that ends one exchange."""

    __slots__ = (
        *("_connecting", "_late", "_lock", "_silent_since", "_socket", "_waits"),
        *("end_at", "ended", "silence", "thrown"),
    )

    def __init__(self) -> None:
        self.silence = math.inf
        """The idle timeout: seconds for which the host may be silent."""
        self.thrown = False
        self.end_at = math.inf
        """The monotonic time at which the body is ended, because its content is complete."""
        self.ended = False
        """True if the body was ended as if its host had closed the connection."""
        self._lock = BriefLock()
        self._socket: socket.socket | None = None
        self._connecting = self._late = self._waits = False
        self._silent_since = math.inf

    def throw(self) -> None:
        """End the exchange in whatever phase it is, within milliseconds. May be called again."""
        for _ in range(20):
            with self._lock:  # the socket can't be given to another exchange meanwhile
                self.thrown = True
                if self._socket is None or _shut(self._socket) or not self._connecting:
                    return
            time.sleep(0.001)  # noted, but its connect has not begun yet

    def end(self) -> bool:
        """End the body as if its host had closed the connection. Return False if that was done."""
        with self._lock:
            if self.ended or self.thrown or self._socket is None:
                return False
            self.ended = True
            _shut(self._socket)
        return True

    def note(self, sock: socket.socket, *, connecting: bool = False) -> None:
        """Remember the socket that an abort must shut down. Raises Aborted."""
        with self._lock:
            self._socket, self._connecting = sock, connecting
            if self.thrown:
                raise Aborted
        if not connecting:
            self._waits = waits_first(sock)
            _silences.watch(self)

    def forget(self) -> None:
        """Forget the socket, which may now serve another call: a late abort must not end that."""
        _silences.leave(self)
        with self._lock:
            self._socket = None

    def limit(self, sock: socket.socket, seconds: float) -> None:
        """Let the next `receive` wait for at most this many seconds."""
        self._waits = False
        sock.settimeout(seconds)

    def send(self, sock: socket.socket, data: bytes) -> None:
        """Send all the data. Raises OSError, and TimeoutError at the idle timeout."""
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
        """Return the bytes that arrived, at most READ_SIZE; none at the end of the connection.

        Raises what `send` raises.
        """
        self._silent_since = time.monotonic()
        try:
            data = received(sock, READ_SIZE) if self._waits else sock.recv(READ_SIZE)
        except OSError:
            self._check()
            raise
        finally:
            self._silent_since = math.inf
        if not data:
            self._check()
        return data

    def look(self, now: float) -> None:
        """End the exchange if its host has been silent for longer than the idle timeout.

        End the body at `end_at`.
        """
        if self.end_at < now > self._silent_since:  # the reader waits, so nothing is unread
            self.end()
        elif now - self._silent_since > self.silence:
            with self._lock:
                if self._socket is not None:
                    self._late = True
                    _shut(self._socket)

    def _check(self) -> None:
        if self._late:
            raise TimeoutError


def _shut(sock: socket.socket) -> bool:
    """Shut the socket down. Return False if it isn't connected yet."""
    try:
        # Not SSLSocket's own shutdown: that drops its TLS state under the reader's feet.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError as failure:
        return failure.errno != errno.ENOTCONN
    return True


class _Silences:
    """The switches of the exchanges under way, and the thread that checks their idle timeouts."""

    def __init__(self) -> None:
        self._switches: set[AbortSwitch] = set()
        self._thread = BackgroundThread(self._look, "silences")

    def watch(self, switch: AbortSwitch) -> None:
        self._switches.add(switch)
        self._thread.start()

    def leave(self, switch: AbortSwitch) -> None:
        self._switches.discard(switch)

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_S)
            now = time.monotonic()
            for switch in self._switches.copy():  # at once, while others add theirs
                switch.look(now)


_silences = _Silences()
