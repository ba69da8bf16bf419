"""Decoding of Amazon's binary event stream: the bytes of a body in, frames out.

A frame has these parts, with numbers in network byte order:

    4 bytes   length of the whole frame
    4 bytes   length of the headers
    4 bytes   CRC-32 of the eight bytes above (these twelve bytes are the prelude)
    ...       headers: length of name (1 byte), name, type (1 byte), value
    ...       payload
    4 bytes   CRC-32 of everything above

- The module is pure: the result depends on the bytes, never on where they were split.
- Sizes are bounded, and a length is used only after its checksum has been verified.
- A frame that is unfinished when the body ends is discarded. The dialect decides whether the
  response is complete.

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
"""The maximum size of a frame in bytes. The format allows larger ones, of 16 MiB and more."""
MAX_HEADERS: Final = 128 << 10
"""The maximum size of a frame's headers in bytes, which is also the format's limit."""

PRELUDE: Final = struct.Struct("!III")
CHECKSUM: Final = struct.Struct("!I")
LEAST_FRAME: Final = PRELUDE.size + CHECKSUM.size
MAX_CACHED: Final = 512

Value: TypeAlias = bool | int | bytes | str | UUID
Headers: TypeAlias = Mapping[str, Value]


class BinaryFrame(msgspec.Struct, frozen=True, gc=False):
    """A frame of the stream. Timestamps in its headers are integers, in milliseconds."""

    headers: Headers
    payload: bytes


def decode(chunks: Iterable[bytes]) -> Iterator[list[BinaryFrame]]:
    """Yield the frames of a body, as one list for each chunk that completes at least one frame.

    An unfinished frame at the end is dropped.

    Raises:
        UpstreamError: A checksum is wrong, a length is impossible, or headers are malformed. The
            frames before the error have been yielded.
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
    """Move the complete frames from the buffer `rest` to the list.

    Return the number of bytes that the buffer must hold before another frame can be complete.
    """
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
    """Return the length of the frame that starts at `start`, and the length of its headers."""
    length, headers, checksum = PRELUDE.unpack_from(data, start)
    if crc32(data[start : start + 8]) != checksum:
        raise _corrupt("the checksum of a frame's prelude is wrong")
    if not LEAST_FRAME + headers <= length <= MAX_FRAME or headers > MAX_HEADERS:
        raise _corrupt(f"a frame has an invalid length ({length} bytes, {headers} of them headers)")
    return length, headers


def _frame(data: bytes, headers: int) -> BinaryFrame:
    body_end = len(data) - CHECKSUM.size
    if crc32(memoryview(data)[:body_end]) != CHECKSUM.unpack_from(data, body_end)[0]:
        raise _corrupt("the checksum of a frame is wrong")
    start = PRELUDE.size + headers
    block = data[PRELUDE.size : start]
    read = _cached if headers <= MAX_CACHED else _headers
    return BinaryFrame(read(block), data[start:body_end])


def _headers(block: bytes) -> Headers:
    found: dict[str, Value] = {}
    offset = 0
    try:
        while offset < len(block):
            end = offset + 1 + block[offset]
            name = block[offset + 1 : end].decode()
            read = TYPES[block[end]]
            value, offset = read(block, end + 1)
            if not name or name in found or offset > len(block):
                raise _corrupt("a frame's headers are malformed")
            found[name] = value
    except (IndexError, UnicodeDecodeError, ValueError, struct.error):
        raise _corrupt("a frame's headers are malformed") from None
    return found


_cached = lru_cache(maxsize=64)(_headers)
"""A cached `_headers`, because the frames of a response repeat a handful of header blocks."""


def _number(kind: str) -> Callable[[bytes, int], tuple[int, int]]:
    number = struct.Struct("!" + kind)

    def read(block: bytes, offset: int) -> tuple[int, int]:
        return number.unpack_from(block, offset)[0], offset + number.size

    return read


_length = _number("H")


def _bytes(block: bytes, offset: int) -> tuple[bytes, int]:
    length, offset = _length(block, offset)
    return block[offset : offset + length], offset + length


def _text(block: bytes, offset: int) -> tuple[str, int]:
    value, offset = _bytes(block, offset)
    return value.decode(), offset


TYPES: Final[tuple[Callable[[bytes, int], tuple[Value, int]], ...]] = (
    lambda _, offset: (True, offset),
    lambda _, offset: (False, offset),
    _number("b"),
    _number("h"),
    _number("i"),
    _number("q"),
    _bytes,
    _text,
    _number("q"),
    lambda block, offset: (UUID(bytes=block[offset : offset + 16]), offset + 16),
)
"""The readers of header values, indexed by the number of the value's type."""


def _corrupt(what: str) -> UpstreamError:
    return UpstreamError(f"The upstream's event stream is corrupt: {what}.")
