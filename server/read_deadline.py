"""Deadlines for reading a request: a client that sends one byte a second must still finish in time.

A socket's own timeout bounds each wait separately, so such a client never exceeds it. One thread
checks the deadlines. When one has passed, it sets the socket's timeout to almost nothing, and the
next wait for the client raises TimeoutError.

- This uses plain threading, which works under gevent and with native threads.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

from concurrency.native import BriefLock
from concurrency.threads import BackgroundThread

CHECK_S = 0.5
NO_TIME_S = 0.001


class ReadDeadlines:
    """The sockets that are being read, each with the time at which its deadline passes."""

    def __init__(self) -> None:
        self._lock = BriefLock()
        self._until: dict[socket.socket, float] = {}
        self._thread = BackgroundThread(self._check, "read-deadlines")

    @contextlib.contextmanager
    def within(self, client: socket.socket | None, seconds: float) -> Iterator[None]:
        """Bound the time that all reads in this context may take together.

        Args:
            client: the socket that is read; None: there is no bound.
        """
        if client is None:
            yield
            return
        timeout = client.gettimeout()
        self._thread.start()
        with self._lock:
            self._until[client] = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._lock:
                passed = self._until.pop(client, None) is None
            if passed:
                with contextlib.suppress(OSError):
                    client.settimeout(timeout)

    def _check(self) -> None:
        while True:
            time.sleep(CHECK_S)
            with self._lock:
                now = time.monotonic()
                for client in [c for c, until in self._until.items() if until < now]:
                    del self._until[client]
                    with contextlib.suppress(OSError):
                        client.settimeout(NO_TIME_S)


read_deadlines = ReadDeadlines()
"""The deadlines of this process."""
