"""Threads that are kept for the next piece of work: to begin one costs more than most of what it
does.

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
