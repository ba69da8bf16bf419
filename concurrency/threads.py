"""Threads that are reused for one piece of work after another, and threads that never end.

To start a thread costs more than most of the work that it would do.

- Plain threading, so that this works under gevent and with native threads alike.
- Nothing waits for a thread to be free.
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


class ThreadPool:
    """A pool of threads: as many as there is work at once, of which some stay for more work."""

    def __init__(self) -> None:
        self._idle: deque[SimpleQueue[Work]] = deque()

    def start(self, work: Work) -> None:
        """Do the work in an idle thread, or in a new one.

        Raises RuntimeError when the system has no thread left.
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
            except Exception:  # the thread stays fit for the next piece of work
                log.exception("a thread's work failed")
            if len(self._idle) >= MOST_IDLE:
                return
            self._idle.append(inbox)


class BackgroundThread:
    """A thread for work that never ends. It is started when it is first needed, because a forked
    process has none of its parent's threads."""

    def __init__(self, work: Work, name: str) -> None:
        self._work, self._name = work, name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def started(self) -> bool:
        return self._thread is not None

    def start(self) -> None:
        """Start the thread unless it runs. Raises RuntimeError when the system has none left."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                    thread.start()
                    self._thread = thread

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, if it was started, for `timeout` seconds at most."""
        if self._thread is not None:
            self._thread.join(timeout)
