"""The keys of the key file that stay valid while the file is empty, gone or damaged.

- A file in which every line is a key, or was there before, takes effect at once: a key whose line
  is deleted is revoked.
- A file is damaged by a new line that shows no trace of a key, if it is the last line and has no
  line end (the rest is missing), or if no other line is valid. Other invalid lines cost only
  themselves.
- While a damaged file has that line, the keys that it lacks stay valid. If lines before it are
  valid, those are only the keys that came after the last of these lines. A key that an invalid
  JSON object or a comment names isn't among them: an operator has changed it on purpose.
- The module does no I/O. docs/guides/keys.md describes it for operators.
"""

from __future__ import annotations

from keys.key_file import Content, Line

GRACE_S = 60.0
"""How long the keys of a file that is empty or gone stay valid."""


class LastGood:
    """The valid keys of a file, read by read."""

    def __init__(self) -> None:
        self.lines: tuple[Line, ...] = ()
        """The valid lines, in the order of the file; lines that it lacks are at the end."""
        self.kept: tuple[Line, ...] = ()
        """The lines that a damaged file lacks."""
        self._damage: frozenset[int] = frozenset()
        self._known: frozenset[int] = frozenset()
        """The hashes of all alien lines that the last read found."""
        self._until: float | None = None

    @property
    def is_waiting(self) -> bool:
        """Return True if the file is empty or gone, and its keys are still valid."""
        return self._until is not None

    def read(self, content: Content) -> None:
        """Take the content of a file that isn't empty."""
        new = content.alien - self._known
        if new and (content.tail in new or not content.lines):
            self.kept = lost(self.lines, content)
            self._damage = self._damage & content.alien | new
        elif self._damage & content.alien:
            self.kept = without(self.kept, content)
        else:
            self.kept, self._damage = (), frozenset()
        self._known = content.alien
        self._until = None
        self.lines = content.lines + self.kept

    def unreadable(self) -> None:
        """Keep all keys, because the file can't be read."""
        self._until = None

    def missing(self, now: float) -> None:
        """Keep all keys until GRACE_S after the first call for a file that is empty or gone.

        Args:
            now: the time in seconds, from a monotonic clock.
        """
        if self._until is None:
            self._until = now + GRACE_S
        if now >= self._until or not self.lines:
            self.lines = self.kept = ()
            self._damage = self._known = frozenset()
            self._until = None


def lost(old: tuple[Line, ...], new: Content) -> tuple[Line, ...]:
    """Return the old lines that a damaged file lost, rather than an operator deleted."""
    kept = {line.key.id for line in without(old, new)}
    present = [n for n, line in enumerate(old) if line.key.id not in kept] if new.lines else []
    rest = old[max(present, default=-1) + 1 :]
    return tuple(line for line in rest if line.key.id in kept)


def without(lines: tuple[Line, ...], new: Content) -> tuple[Line, ...]:
    """Return the lines of keys that a file has neither in valid nor in invalid lines."""
    taken = {text for line in new.lines for text in (line.key.id, line.key.hash)}
    taken |= {name.decode() for name in new.named}
    return tuple(line for line in lines if taken.isdisjoint((line.key.id, line.key.hash)))
