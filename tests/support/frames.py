"""Amazon's event stream, written: for tests, and to make fixtures.

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
    """A number that is written in two bytes; likewise below."""


class Byte(int):
    pass


class Long(int):
    pass


class Timestamp(int):
    """Milliseconds since 1970."""


def header(name: str, value: Any) -> bytes:
    """One header; the type is the value's."""
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
    """A frame of header bytes as they are; its checksums are right. length: what it claims."""
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
    """Where the frames of a stream end, as far as their lengths can be true."""
    found, place = [], 0
    while len(stream) - place >= 16:
        (length,) = struct.unpack_from("!I", stream, place)
        place += length
        if length < 16 or place > len(stream):
            break
        found.append(place)
    return found
