"""Amazon's binary event stream: the bytes of a body in, frames out.

A frame is, with numbers in network order,

    4 bytes   length of the whole frame
    4 bytes   length of its headers
    4 bytes   CRC-32 of the eight bytes before (these twelve are the prelude)
    ...       headers: length of name (1), name, type (1), value
    ...       payload
    4 bytes   CRC-32 of everything before

- It is pure: the result depends on the bytes, never on where they were split.
- Sizes are bounded, and a length is used only after its checksum was verified.
- A frame that is unfinished when the body ends is discarded; the dialect decides whether the answer
  is whole.

Source: Smithy specification, "Amazon Event Stream" (application/vnd.amazon.eventstream, read
2026-11).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, TypeAlias
from uuid import UUID
from zlib import crc32

import msgspec

from errors import UpstreamError

MAX_FRAME: Final = 4 << 20
"""The most bytes of a frame; the format allows 16 MiB and more."""
MAX_HEADERS: Final = 128 << 10
"""The most bytes of its headers, as in the format."""

PRELUDE: Final = struct.Struct("!III")
CHECKSUM: Final = struct.Struct("!I")
LEAST_FRAME: Final = PRELUDE.size + CHECKSUM.size
MAX_CACHED: Final = 512

Value: TypeAlias = bool | int | bytes | str | UUID
Headers: TypeAlias = Mapping[str, Value]


class BinaryFrame(msgspec.Struct, frozen=True, gc=False):
    """One message. A header of type timestamp is a number of milliseconds."""

    headers: Headers
    payload: bytes


def decode(chunks: Iterable[bytes]) -> Iterator[list[BinaryFrame]]:
    """Yield the frames of a body: a list for each chunk that completes one or more.

    An unfinished frame at the end is dropped. Raises UpstreamError for a wrong checksum, an
    impossible length and unreadable headers, after the frames before them.
    """
    rest = bytearray()
    needed = PRELUDE.size
    for chunk in chunks:
        rest += chunk
        if len(rest) < needed:
            continue
        frames: list[BinaryFrame] = []
        try:
            needed = _take(rest, frames)
        except UpstreamError:
            if frames:
                yield frames
            raise
        if frames:
            yield frames


def _take(rest: bytearray, frames: list[BinaryFrame]) -> int:
    """Move the whole frames from the buffer to the list. Return the number of bytes that the buffer
    must have before the next one can be whole."""
    data, start = bytes(rest), 0
    while True:
        left = len(data) - start
        needed = PRELUDE.size
        if left >= needed:
            needed, headers = _prelude(data, start)
        if left < needed:
            del rest[:start]
            return needed
        frames.append(_frame(data[start : start + needed], headers))
        start += needed


def _prelude(data: bytes, start: int) -> tuple[int, int]:
    """Return the length of the frame that begins at `start`, and the length of its headers."""
    length, headers, checksum = PRELUDE.unpack_from(data, start)
    if crc32(data[start : start + 8]) != checksum:
        raise _damaged("the checksum of a frame's prelude is wrong")
    if not LEAST_FRAME + headers <= length <= MAX_FRAME or headers > MAX_HEADERS:
        raise _damaged(f"a frame claims {length} bytes, {headers} of them headers")
    return length, headers


def _frame(data: bytes, headers: int) -> BinaryFrame:
    body_end = len(data) - CHECKSUM.size
    if crc32(memoryview(data)[:body_end]) != CHECKSUM.unpack_from(data, body_end)[0]:
        raise _damaged("the checksum of a frame is wrong")
    start = PRELUDE.size + headers
    block = data[PRELUDE.size : start]
    read = _cached if headers <= MAX_CACHED else _headers
    return BinaryFrame(read(block), data[start:body_end])


def _headers(block: bytes) -> Headers:
    found: dict[str, Value] = {}
    place = 0
    try:
        while place < len(block):
            end = place + 1 + block[place]
            name = block[place + 1 : end].decode()
            read = TYPES[block[end]]
            value, place = read(block, end + 1)
            if not name or name in found or place > len(block):
                raise _damaged("a frame's headers can't be read")
            found[name] = value
    except (IndexError, UnicodeDecodeError, ValueError, struct.error):
        raise _damaged("a frame's headers can't be read") from None
    return found


_cached = lru_cache(maxsize=64)(_headers)
"""Cached, because the frames of an answer repeat a handful of header blocks."""


def _number(kind: str) -> Callable[[bytes, int], tuple[int, int]]:
    number = struct.Struct("!" + kind)

    def read(block: bytes, place: int) -> tuple[int, int]:
        return number.unpack_from(block, place)[0], place + number.size

    return read


_length = _number("H")


def _bytes(block: bytes, place: int) -> tuple[bytes, int]:
    length, place = _length(block, place)
    return block[place : place + length], place + length


def _text(block: bytes, place: int) -> tuple[str, int]:
    value, place = _bytes(block, place)
    return value.decode(), place


TYPES: Final[tuple[Callable[[bytes, int], tuple[Value, int]], ...]] = (
    lambda _, place: (True, place),
    lambda _, place: (False, place),
    _number("b"),
    _number("h"),
    _number("i"),
    _number("q"),
    _bytes,
    _text,
    _number("q"),
    lambda block, place: (UUID(bytes=block[place : place + 16]), place + 16),
)
"""The readers of a header's value, by the number of its type."""


def _damaged(what: str) -> UpstreamError:
    return UpstreamError(f"The upstream's event stream is damaged: {what}.")
