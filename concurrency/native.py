"""What threads are under gevent, and what they aren't: a native thread for work that never lets go
of its thread, such as a commit (in a greenlet it would hold up every stream of the process), a lock
that costs no more than it must, and a wait for a socket. This is the one place that names gevent.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class NativeThread:
    """One piece of work at a time. Where threads are greenlets it is done in a thread of the
    system's, else in the caller's own. It must not wait for a greenlet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: Any = None

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The work's result; other threads and greenlets go on meanwhile. Raises what it raises."""

        def guarded() -> tuple[T | None, BaseException | None]:
            try:
                return work(*args, **kwargs), None
            except BaseException as failure:  # noqa: BLE001 - gevent's pool would print it as well
                return None, failure

        with self._lock:
            if not greenlets():
                return work(*args, **kwargs)
            if self._pool is None:  # late: made before a fork it would be the parent's
                from gevent.threadpool import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(max_workers=1)
            result, failure = self._pool.submit(guarded).result()
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]


def greenlets() -> bool:
    """Whether a thread of the threading module is a greenlet."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def waits_first(sock: Any) -> bool:
    """Whether `received` can wait for a socket: where threads are greenlets, and it isn't TLS,
    which may hold what has come already."""
    return greenlets() and type(sock) is sys.modules["gevent.socket"].socket


def received(sock: Any, size: int) -> bytes:
    """What came, after a wait for it, of a socket that `waits_first`. Its own `recv` tries before
    it waits, in vain where a peer is slower than we are: a tenth of what an event of a slow stream
    costs. It knows no time limit. Raises as `recv`."""
    sock.hub.wait(sock._read_event)
    try:
        data: bytes = sock._sock.recv(size)
    except BlockingIOError:  # it looked as if there were some
        data = sock.recv(size)
    return data


def native_lock() -> Callable[[], threading.Lock]:
    """What makes a lock of the system's."""
    if not greenlets():
        return threading.Lock
    found: Callable[[], threading.Lock]
    found = sys.modules["gevent.monkey"].get_original("_thread", "allocate_lock")
    return found


BriefLock: Final = native_lock()
"""A lock to be held for a few statements of which none waits, starts a thread or logs. Under gevent
threading's own is Python code, for holders that let others work meanwhile, and a call takes some
thirty. Whoever waited while holding this one would stop the whole process."""
