"""An event that hands over from one greenlet to another faster than gevent's own.

- Only one greenlet waits, without a timeout, and only greenlets of its thread set the event.
- Import this module only under gevent: see `OneWaiterEvent` in native.py.
"""

from __future__ import annotations

from typing import Any

from gevent import get_hub, getcurrent


class GreenletEvent:
    __slots__ = ("_hub", "_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._hub: Any = None
        self._waiter: Any = None

    def set(self) -> None:
        """Set the event. The waiter runs once the caller waits, not at once."""
        if not self._is_set:
            self._is_set = True
            if self._waiter is not None:
                self._hub.loop.run_callback(self._wake)

    def clear(self) -> None:
        self._is_set = False

    def wait(self) -> None:
        """Return when the event is set."""
        if self._is_set:
            return
        self._hub, self._waiter = get_hub(), getcurrent()
        try:
            while not self._is_set:  # it may have been set and cleared again before `_wake`
                self._hub.switch()
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None:  # else an exception was thrown into it meanwhile
            self._waiter.switch()
