"""The bodies of chats that a process holds, bounded together."""

from __future__ import annotations

from collections.abc import Callable

from concurrency.native import BriefLock
from errors import Unavailable


class HeldBodies:
    """A counter of the bytes of chats' bodies. A body is held until it can't be sent again."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._lock = BriefLock()

    def take(self, size: int) -> Callable[[], None]:
        """Count a body's bytes, and return a function that gives them back, once.

        Raises:
            Unavailable: there is no room for them now.
        """
        with self._lock:
            room = self.held + size <= self.most
            if room:
                self.held += size
        if not room:
            raise Unavailable("The server holds too many long messages now. Try again.")
        left = [size]

        def give_back() -> None:
            with self._lock:
                self.held -= left.pop() if left else 0

        return give_back
