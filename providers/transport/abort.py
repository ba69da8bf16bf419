"""Aborts of active exchanges: by any thread, or at the idle timeout.

- The module uses plain threading, so that it works with gevent and with native threads.
- An abort calls `shutdown` on the socket, which the switch records before its connect starts. That
  interrupts a connect, a handshake, a wait for headers or for the next bytes, and a body that is
  arriving. (close() from another thread can hang, and a flag would be noticed only when bytes
  arrive.)
- One thread checks all exchanges for idle timeouts. With a timeout on each socket, gevent would
  start a timer for each wait, which makes slow streams more expensive: see
  docs/decisions/0010-the-transport.md.
"""

from __future__ import annotations

import errno
import math
import socket
import time
from typing import Final

from concurrency.native import BriefLock, received, waits_first
from concurrency.threads import BackgroundThread

READ_SIZE: Final = 32 * 1024
"""The maximum number of bytes per read: more than most responses have, and quick to allocate."""
LOOK_S: Final = 0.5
"""Seconds between two checks for idle timeouts."""


class Aborted(Exception):
    """The exchange was aborted, and its result is not needed."""


class AbortSwitch:
    """The switch that ends one exchange. Any thread may throw it."""

    __slots__ = (
        *("_connecting", "_late", "_lock", "_silent_since", "_socket", "_waits"),
        *("end_at", "ended", "silence", "thrown"),
    )

    def __init__(self) -> None:
        self.silence = math.inf
        """The idle timeout in seconds."""
        self.thrown = False
        self.end_at = math.inf
        """The monotonic time at which to end the body, whose content is complete."""
        self.ended = False
        """True if the body was ended as if its host had closed the connection."""
        self._lock = BriefLock()
        self._socket: socket.socket | None = None
        self._connecting = self._late = self._waits = False
        self._silent_since = math.inf

    def throw(self) -> None:
        """End the exchange in any phase, within milliseconds. Throwing it again is a no-op."""
        for _ in range(20):
            with self._lock:  # so that the socket can't go to another exchange meanwhile
                self.thrown = True
                if self._socket is None or _shut(self._socket) or not self._connecting:
                    return
            time.sleep(0.001)  # the socket is recorded, but its connect has not started yet

    def end(self) -> bool:
        """End the body as if its host had closed the connection.

        Return False if the body was ended before, or there is none.
        """
        with self._lock:
            if self.ended or self.thrown or self._socket is None:
                return False
            self.ended = True
            _shut(self._socket)
        return True

    def note(self, sock: socket.socket, *, connecting: bool = False) -> None:
        """Record the socket that an abort must shut down. Raises Aborted."""
        with self._lock:
            self._socket, self._connecting = sock, connecting
            if self.thrown:
                raise Aborted
        if not connecting:
            self._waits = waits_first(sock)
            _silences.watch(self)

    def forget(self) -> None:
        """Forget the socket: it may serve another call now, which a late abort must not end."""
        _silences.leave(self)
        with self._lock:
            self._socket = None

    def limit(self, sock: socket.socket, seconds: float) -> None:
        """Let the next `receive` wait for at most this many seconds."""
        self._waits = False
        sock.settimeout(seconds)

    def send(self, sock: socket.socket, data: bytes | memoryview) -> None:
        """Send all the data. Raises OSError, and TimeoutError at the idle timeout."""
        self._silent_since = time.monotonic()
        try:
            sent = sock.send(data)  # gevent's sendall queries the buffer's size first
            if sent < len(data):
                sock.sendall(data[sent:])
        except OSError:
            self._check()
            raise
        finally:
            self._silent_since = math.inf

    def receive(self, sock: socket.socket) -> bytes:
        """Return the bytes that arrived, at most READ_SIZE; none at the end of the connection.

        Raises OSError, and TimeoutError at the idle timeout.
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
        """End the exchange at its idle timeout, or its body at `end_at`.

        Args:
            now: the monotonic time.
        """
        if self.end_at < now > self._silent_since:  # the reader is waiting, so nothing is unread
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
        # Not SSLSocket's own shutdown: that discards the TLS state while the reader uses it.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError as failure:
        return failure.errno != errno.ENOTCONN
    return True


class _Silences:
    """The switches of the active exchanges, and the thread that checks their idle timeouts."""

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
            for (
                switch
            ) in self._switches.copy():  # a copy, because other threads add and remove switches
                switch.look(now)


_silences = _Silences()
