"""Native threads and locks, and shorter waits for a socket or an event, with gevent and without.

- Outside server/ only this module and greenlet_event.py name gevent.
- Work that blocks without yielding, such as a commit, belongs in a native thread: in a greenlet it
  would block every stream of the process.
- docs/decisions/0012-the-worker.md lists the gains and the private names that are used here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, Final, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class NativeThread:
    """A native thread that does one piece of work at a time.

    Where threads aren't greenlets, the caller's own thread does the work. The work must not wait
    for a greenlet.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: Any = None

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the work. Return its result, or raise its exception.

        Other threads and greenlets run meanwhile.
        """

        def guarded() -> tuple[T | None, BaseException | None]:
            try:
                return work(*args, **kwargs), None
            except BaseException as failure:  # noqa: BLE001 - gevent's pool would print it too
                return None, failure

        with self._lock:
            if not greenlets():
                return work(*args, **kwargs)
            if self._pool is None:  # made late, because a fork doesn't copy its parent's threads
                from gevent.threadpool import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(max_workers=1)
            result, failure = self._pool.submit(guarded).result()
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]


def greenlets() -> bool:
    """Return True if a thread of the threading module is a greenlet."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def waits_first(sock: Any) -> bool:
    """Return True if `received` may be used: threads are greenlets, and the socket isn't TLS.

    A TLS socket may buffer bytes that have arrived.
    """
    return greenlets() and type(sock) is sys.modules["gevent.socket"].socket


def received(sock: Any, size: int) -> bytes:
    """Wait until a socket is readable, without a timeout, and return its bytes.

    `waits_first` must be true for the socket.

    gevent's `recv` tries to read before it waits, which fails on nearly every event of a stream
    that is slower than Sluice. Raises what `recv` raises.
    """
    sock.hub.wait(sock._read_event)
    try:
        data: bytes = sock._sock.recv(size)
    except BlockingIOError:  # a spurious wake-up
        data = sock.recv(size)
    return data


def native_lock() -> Callable[[], threading.Lock]:
    """Return the function that makes a lock of the operating system."""
    if not greenlets():
        return threading.Lock
    allocate: Callable[[], threading.Lock]
    allocate = sys.modules["gevent.monkey"].get_original("_thread", "allocate_lock")
    return allocate


BriefLock: Final = native_lock()
"""A native lock, to hold for a few statements that don't wait, start a thread or log.

Under gevent, threading.Lock is slower, because it lets other greenlets run while one holds it. A
greenlet that waited while holding a BriefLock would stop the whole process.
"""


class PlainEvent(Protocol):
    """An event without timeouts."""

    def set(self) -> None: ...
    def clear(self) -> None: ...
    def wait(self) -> object: ...


def one_waiter_event() -> Callable[[], PlainEvent]:
    """Return the function that makes an event for which only one thread waits."""
    if not greenlets():
        return threading.Event
    from concurrency.greenlet_event import GreenletEvent

    return GreenletEvent


OneWaiterEvent: Final = one_waiter_event()
"""An event for which one thread waits, without a timeout.

Under gevent, it wakes its thread in less time than threading.Event, whose waiters may be several,
have timeouts and be in any thread.
"""
