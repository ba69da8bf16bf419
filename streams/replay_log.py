"""The log of a resumable stream: its frames, numbered from 1, in a compact form.

Most frames differ only in their text. So the log keeps the text as it is in JSON, and one template
for all frames of a choice. Other frames are kept as they are.

- The module is pure: no lock, no clock, no I/O. One thread at a time may append or trim, and any
  number of threads may read meanwhile.
- The log's templates and entries are all that is needed to send its frames, so a copy of them in
  another process serves as well. Nothing here knows faces or HTTP.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from errors import StreamTrimmed

FrameParts: TypeAlias = tuple[bytes, ...]
"""A template: the parts of a frame between which its text stands, without quotes."""
LogPiece: TypeAlias = tuple[int, bytes | bytearray, int, bytes, bytes | bytearray]
"""Consecutive entries: the number of the first one, their kinds, where their data began in its log,
where each entry ended there (an array of 32-bit numbers), and their data."""

FRAME: Final = 0
"""The kind of an entry that is a whole frame. Other kinds are numbers of templates."""
MOST_TEMPLATES: Final = 255
READ: Final = 64 * 1024
"""About the most bytes of entries that one read returns."""
MOST_JOINED, LONGEST_JOINED = 1024, 16 * 1024
"""The most texts that are joined into one frame, and the most bytes of them: some clients can't
read longer lines."""


class Block(NamedTuple):
    """The entries of a log from `first` on. They are only ever appended to."""

    first: int
    """The number of the first entry."""
    data: bytearray
    ends: array[int]
    """Where each entry ends in the data. An entry counts once its end is there."""
    kinds: bytearray


class ReplayLog:
    def __init__(self) -> None:
        self._block = Block(1, bytearray(), array("I"), bytearray())
        self._templates: list[FrameParts] = [()]

    @property
    def first(self) -> int:
        """The number of the oldest entry that is left."""
        return self._block.first

    @property
    def last(self) -> int:
        """The number of the newest entry; 0 if there has been none."""
        block = self._block
        return block.first + len(block.ends) - 1

    @property
    def size(self) -> int:
        """The bytes of memory that the log takes."""
        _, data, ends, kinds = self._block
        templates = sum(sys.getsizeof(part) for parts in self._templates for part in parts)
        return sum(map(sys.getsizeof, (data, ends, kinds))) + templates

    def add_template(self, parts: FrameParts) -> int | None:
        """Add a template. Return the kind of its entries, or None if the log has too many."""
        if len(self._templates) > MOST_TEMPLATES:
            return None
        self._templates.append(parts)
        return len(self._templates) - 1

    def append(self, kind: int, entry: bytes) -> None:
        """Append an entry.

        Args:
            kind: FRAME, or the template's number.
            entry: a frame, which ends with a blank line; or a text in JSON without quotes.
        """
        _, data, ends, kinds = self._block
        data += entry
        kinds.append(kind)
        ends.append(len(data))

    def read(self, after: int, *, joined: bool = False) -> tuple[bytes, int]:
        """Return frames with their numbers, and the number of the last one.

        Args:
            after: the number of the last frame that the reader has.
            joined: whether consecutive texts of one choice become one frame, with the highest of
                their numbers.

        Raises:
            StreamTrimmed: the frame after that one was dropped.
        """
        block = self._block
        first, data, ends, kinds = block
        at = after - first + 1
        if at < 0:
            raise StreamTrimmed(first)
        count = len(ends)
        begin = ends[at - 1] if 0 < at <= count else 0
        enough = begin + READ
        frames = []
        while at < count and begin < enough:
            kind = kinds[at]
            at = end_of_run(block, at, begin) if joined and kind else at + 1
            end = ends[at - 1]
            entry = bytes(data[begin:end])
            frame = entry.join(self._templates[kind]) if kind else entry
            frames.append(b"id: %d\n%b" % (first + at - 1, frame))
            begin = end
        return b"".join(frames), max(after, first + at - 1)

    def runs(self) -> Iterator[tuple[int, bytes]]:
        """Yield the kinds of all entries and the entries. Consecutive texts of a choice are joined,
        up to a bounded length."""
        block = self._block
        _, data, ends, kinds = block
        at, begin = 0, 0
        while at < len(ends):
            kind = kinds[at]
            at = end_of_run(block, at, begin) if kind else at + 1
            yield kind, bytes(data[begin : ends[at - 1]])
            begin = ends[at - 1]

    @property
    def templates(self) -> Sequence[FrameParts]:
        """The templates, from that with the number 1 on. They are only ever added to."""
        return self._templates[1:]

    @property
    def newest_kind(self) -> int:
        """The number of the newest template."""
        return len(self._templates) - 1

    def set_templates(self, templates: Sequence[FrameParts]) -> None:
        """Add those templates of another log that this one lacks."""
        self._templates += templates[len(self._templates) - 1 :]

    def piece(self, after: int, size: int) -> LogPiece:
        """Return the oldest entries after a number, or an empty piece if there are none.

        Args:
            after: a number up to that of the newest entry.
            size: the most bytes of data, unless the first entry alone has more.
        """
        first, data, ends, kinds = self._block
        at, count = max(after - first + 1, 0), len(ends)
        begin = end = ends[at - 1] if at else 0
        if at < count:
            end = ends[count - 1]
            if end - begin > size:
                count = max(at + 1, bisect_right(ends, begin + size, at, count))
                end = ends[count - 1]
        return first + at, kinds[at:count], begin, ends[at:count].tobytes(), data[begin:end]

    def extend(self, piece: LogPiece) -> None:
        """Append the entries of a piece of another log that this one lacks.

        If entries are missing between this log and the piece, this log starts again at the piece.
        Followers that haven't read what it had get StreamTrimmed.
        """
        first, kinds, base, raw, data = piece
        ends = array("I")
        ends.frombytes(raw)
        skip = self.last + 1 - first
        if skip < 0:
            self._block, skip = Block(first, bytearray(), array("I"), bytearray()), 0
        if skip >= len(ends):
            return
        begin = ends[skip - 1] if skip else base
        _, own_data, own_ends, own_kinds = self._block
        shift = len(own_data) - begin
        own_data += data[begin - base :]
        own_kinds += kinds[skip:]
        own_ends.extend([end + shift for end in ends[skip:]])

    def trim(self, size: int) -> None:
        """Drop the oldest entries, at least `size` bytes of them, but never the newest entry."""
        first, data, ends, kinds = self._block
        drop = min(bisect_left(ends, size) + 1, len(ends) - 1)
        if drop > 0:
            cut = ends[drop - 1]
            left = array("I", [end - cut for end in ends[drop:]])
            self._block = Block(first + drop, data[cut:], left, kinds[drop:])

    def compact(self) -> None:
        """Release the memory that the log holds for further entries."""
        first, data, ends, kinds = self._block
        self._block = Block(first, data[:], ends[:], kinds[:])


def end_of_run(block: Block, at: int, begin: int) -> int:
    """Return the index after the entries that are joined with the one at `at`.

    Args:
        begin: where that entry begins in the data.
    """
    _, _, ends, kinds = block
    window = kinds[at : min(at + MOST_JOINED, len(ends))]
    same = len(window) - len(window.lstrip(window[:1]))
    return max(at + 1, bisect_right(ends, begin + LONGEST_JOINED, at, at + same))
