"""Threads that are kept: for the next piece of work, as to begin one costs more than most of what
it does; or for one that goes on for ever.

Rules that hold here: plain threading, which runs under gevent and threads alike; nobody waits for
a thread to be free.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

log = logging.getLogger("sluice.crew")

MOST_IDLE = 64

Work: TypeAlias = Callable[[], object]


class Crew:
    """As many threads as there is work at once, of which some stay for more."""

    def __init__(self) -> None:
        self._idle: deque[SimpleQueue[Work]] = deque()

    def start(self, work: Work) -> None:
        """Have it done, by a thread that has nothing else to do. Raises RuntimeError when the
        system has no thread left."""
        try:
            orders = self._idle.pop()
        except IndexError:
            orders = SimpleQueue()
            threading.Thread(target=self._serve, args=(orders,), daemon=True).start()
        orders.put(work)

    def _serve(self, orders: SimpleQueue[Work]) -> None:
        while True:
            try:
                orders.get()()
            except Exception:  # its work's business; the thread stays fit for the next
                log.exception("a thread's work failed")
            if len(self._idle) >= MOST_IDLE:
                return
            self._idle.append(orders)


class Standing:
    """One thread for work that goes on for ever, begun when it is first needed: a process that is
    forked has none of its parent's."""

    def __init__(self, work: Work, name: str) -> None:
        self._work, self._name = work, name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def begun(self) -> bool:
        return self._thread is not None

    def begin(self) -> None:
        """Raises RuntimeError when the system has no thread left."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                    thread.start()
                    self._thread = thread

    def join(self, timeout: float) -> None:
        """Wait for its end, if it was begun. timeout: seconds at most."""
        if self._thread is not None:
            self._thread.join(timeout)
