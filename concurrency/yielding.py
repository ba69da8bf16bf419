"""Yielding to other greenlets during work that may never have to wait.

Under gevent, a greenlet that doesn't wait blocks all others: no other call, no stop request and no
timer makes progress.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

WORK_S = 0.005
PAUSE_S = 0.0005

_Item = TypeVar("_Item")


class Yielder:
    def __init__(self) -> None:
        self._yielded_at = time.monotonic()

    def yield_if_due(self, waited: float = 0.0) -> None:
        """Yield if the loop has worked for WORK_S seconds. Call this in each round of the loop.

        Args:
            waited: The seconds that this round has waited. During a long enough wait, other
                greenlets ran, so the loop doesn't have to yield.
        """
        now = time.monotonic()
        if waited > PAUSE_S * 4:
            self._yielded_at = now
        elif now - self._yielded_at > WORK_S:
            time.sleep(PAUSE_S)
            self._yielded_at = time.monotonic()


def paced(items: Iterable[_Item]) -> Iterator[_Item]:
    """Yield the items, and yield to other greenlets before an item if that is due."""
    yielder = Yielder()
    for item in items:
        yielder.yield_if_due()
        yield item
