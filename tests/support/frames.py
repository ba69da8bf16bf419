"""An encoder of Amazon's event stream, for tests and for writing fixtures:

Path("stream.bin").write_bytes(event("messageStart", {"role": "assistant"}) + ...)
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any
from uuid import UUID
from zlib import crc32


class Short(int):
    """An integer that is encoded in two bytes."""


class Byte(int):
    """An integer that is encoded in one byte."""


class Long(int):
    """An integer that is encoded in eight bytes."""


class Timestamp(int):
    """A time in milliseconds since 1970, encoded in eight bytes."""


def header(name: str, value: Any) -> bytes:
    """Encode a header. The value's Python type decides the header's type."""
    match value:
        case bool():
            kind, data = int(not value), b""
        case Byte():
            kind, data = 2, struct.pack("!b", value)
        case Short():
            kind, data = 3, struct.pack("!h", value)
        case Long():
            kind, data = 5, struct.pack("!q", value)
        case Timestamp():
            kind, data = 8, struct.pack("!q", value)
        case int():
            kind, data = 4, struct.pack("!i", value)
        case bytes():
            kind, data = 6, struct.pack("!H", len(value)) + value
        case str():
            kind, data = 7, struct.pack("!H", len(value.encode())) + value.encode()
        case UUID():
            kind, data = 9, value.bytes
        case _:
            raise TypeError(value)
    return bytes([len(name.encode())]) + name.encode() + bytes([kind]) + data


def sealed(headers: bytes, payload: bytes, length: int | None = None) -> bytes:
    """Encode a frame with correct checksums.

    Args:
        headers: The encoded headers.
        length: The total length that the frame claims. None for the true length.
    """
    claimed = len(headers) + len(payload) + 16 if length is None else length
    prelude = struct.pack("!II", claimed, len(headers))
    prelude += struct.pack("!I", crc32(prelude))
    body = prelude + headers + payload
    return body + struct.pack("!I", crc32(body))


def frame(headers: Mapping[str, Any], payload: bytes = b"") -> bytes:
    return sealed(b"".join(header(name, value) for name, value in headers.items()), payload)


def message(kind: str, headers: Mapping[str, Any], payload: Any) -> bytes:
    data = (
        payload if isinstance(payload, bytes) else json.dumps(payload, ensure_ascii=False).encode()
    )
    return frame({**headers, ":content-type": "application/json", ":message-type": kind}, data)


def event(name: str, payload: Any) -> bytes:
    return message("event", {":event-type": name}, payload)


def exception(name: str, payload: Any) -> bytes:
    return message("exception", {":exception-type": name}, payload)


def ends(stream: bytes) -> list[int]:
    """Return the offsets at which frames end, up to the first frame with an impossible length."""
    found, place = [], 0
    while len(stream) - place >= 16:
        (length,) = struct.unpack_from("!I", stream, place)
        place += length
        if length < 16 or place > len(stream):
            break
        found.append(place)
    return found
