"""A limit on the total size of the chats' bodies that a process holds."""

from __future__ import annotations

from concurrency.native import BriefLock
from errors import Unavailable


class HeldBodies:
    """A counter of the bytes of chats' bodies. A body is held until it can't be sent again."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self.lock = BriefLock()

    def take(self, size: int) -> HeldBody:
        """Return a body that is counted. Raises what `HeldBody.grow` raises."""
        body = HeldBody(self)
        body.grow(size)
        return body


class HeldBody:
    """The counted bytes of one body. Any thread may release them."""

    def __init__(self, bodies: HeldBodies) -> None:
        self._bodies = bodies
        self.size = 0

    def grow(self, size: int) -> None:
        """Count more bytes. Raises Unavailable if there is no room for them now."""
        bodies = self._bodies
        with bodies.lock:
            room = bodies.held + size <= bodies.most
            if room:
                bodies.held += size
                self.size += size
        if not room:
            raise Unavailable("The server holds too many long messages now. Try again.")

    def release(self) -> None:
        """Give the bytes back. A second call does nothing."""
        with self._bodies.lock:
            self._bodies.held -= self.size
            self.size = 0
