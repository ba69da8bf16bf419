"""A native thread for work that never lets go of its thread, such as a commit: done in a greenlet
it would hold up every stream of the process. This is the one place that names gevent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class NativeThread:
    """One thread of the system's, whose work is done in the order that it came in. What it runs
    must not wait for a greenlet."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: Any = None

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The work's result; other threads and greenlets go on meanwhile. Raises what it raises."""
        if self._pool is None:  # late: made before a fork it would be the parent's
            self._pool = _pool(self._name)

        def guarded() -> tuple[T | None, BaseException | None]:
            try:
                return work(*args, **kwargs), None
            except BaseException as failure:  # noqa: BLE001 - gevent's pool would print it as well
                return None, failure

        result, failure = self._pool.submit(guarded).result()
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]


def _pool(name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        from gevent.threadpool import ThreadPoolExecutor as GeventExecutor

        return GeventExecutor(max_workers=1)
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
