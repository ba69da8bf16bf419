"""A thread pool, and background threads for work that never ends.

- The pool reuses threads, because starting a thread costs more than most of the work done in it.
- Work never waits for a free thread: the pool starts a new one instead.
- Only the threading module is used, so this works both with native threads and under gevent.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

# The logger's name is kept from earlier releases: see docs/decisions/0013-the-house.md.
log = logging.getLogger("sluice.crew")

MOST_IDLE = 64

Work: TypeAlias = Callable[[], object]


class ThreadPool:
    """An unbounded thread pool. At most MOST_IDLE threads stay idle for later work."""

    def __init__(self) -> None:
        self._idle: deque[SimpleQueue[Work]] = deque()

    def start(self, work: Work) -> None:
        """Run the work in an idle thread or, if there is none, in a new one.

        Raises:
            RuntimeError: The system can't start another thread.
        """
        try:
            inbox = self._idle.pop()
        except IndexError:
            inbox = SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), daemon=True).start()
        inbox.put(work)

    def _serve(self, inbox: SimpleQueue[Work]) -> None:
        while True:
            try:
                inbox.get()()
            except Exception:  # the thread must survive for the next piece of work
                log.exception("work in a pool thread failed")
            if len(self._idle) >= MOST_IDLE:
                return
            self._idle.append(inbox)


class BackgroundThread:
    """A daemon thread for work that never ends.

    It starts on first use, because a forked process doesn't inherit its parent's threads.
    """

    def __init__(self, work: Work, name: str) -> None:
        self._work, self._name = work, name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def started(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        """Start the thread unless it has been started.

        Raises:
            RuntimeError: The system can't start another thread.
        """
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                    thread.start()
                    self._thread = thread

    def join(self, timeout: float) -> None:
        """Wait until the thread ends, for at most `timeout` seconds. No-op if it never started."""
        if self._thread is not None:
            self._thread.join(timeout)
