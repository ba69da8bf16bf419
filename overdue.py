"""Clients that must be done with something by a given moment, however steadily they dribble on.

A socket's own time limit holds for each wait alone, so a peer that sends a byte a second is never
late by it. One thread takes the patience of those that are overdue: their next wait is none, and
raises TimeoutError where it would have waited.
Rules that hold here: plain threading, which runs under gevent and threads alike.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

from concurrency.native import BriefLock
from concurrency.threads import BackgroundThread

LOOK_S = 0.5
NO_TIME_S = 0.001


class Overdue:
    """The sockets that somebody waits for, and until when."""

    def __init__(self) -> None:
        self._lock = BriefLock()
        self._until: dict[socket.socket, float] = {}
        self._thread = BackgroundThread(self._look, "overdue")

    @contextlib.contextmanager
    def within(self, client: socket.socket | None, seconds: float) -> Iterator[None]:
        """Have so long, within this, for all waits for a socket's peer together."""
        if client is None:
            yield
            return
        patience = client.gettimeout()
        self._thread.start()
        with self._lock:
            self._until[client] = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._lock:
                overdue = self._until.pop(client, None) is None
            if overdue:
                with contextlib.suppress(OSError):
                    client.settimeout(patience)

    def _look(self) -> None:
        while True:
            time.sleep(LOOK_S)
            with self._lock:
                now = time.monotonic()
                for client in [c for c, until in self._until.items() if until < now]:
                    del self._until[client]
                    with contextlib.suppress(OSError):
                        client.settimeout(NO_TIME_S)


overdue = Overdue()
"""The process's own."""
