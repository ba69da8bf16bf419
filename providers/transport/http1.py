"""HTTP/1.1 for a client: the bytes of a request, and the reader of a response.

- llhttp, through httptools, parses heads and chunks. This module adds bounds on sizes, and refuses
  other versions than HTTP/1.0 and 1.1, and framing that could be understood in two ways.
- The module is pure: the result depends on the bytes, never on where they were split.
- http.client isn't used because it returns a stream chunk by chunk, and each chunk costs all the
  steps after a read. See docs/decisions/0010-the-transport.md.

Source: RFC 9112 (read 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD: Final = 128 * 1024
"""The maximum size of a response's head in bytes."""
MAX_FIELDS: Final = 100
"""The maximum number of header fields of a response."""
MAX_TRAILER: Final = 16 * 1024
"""The maximum size in bytes of a trailer, and of a chunk's size line."""
MAX_INTERIM: Final = 32
"""The maximum number of interim responses (100 Continue, 103 Early Hints)."""
SWITCHING_PROTOCOLS: Final = 101
BODILESS: Final = (204, 304)
VERSIONS: Final = {"1.0": 0, "1.1": 1}
REFUSED: Final = (HttpParserError, HttpParserUpgrade)
SPACE: Final = " \t"
"""The characters to strip from the end of a value. str.strip() would remove more than llhttp."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH = re.compile(r"[0-9]{1,18}")


class Malformed(Exception):
    """The bytes are not HTTP, or are HTTP that could be understood in two ways."""


def request_head(method: str, target: str, host: str, fields: Mapping[str, str]) -> bytes:
    """Return the bytes of a request up to its body.

    Raises ValueError for a field that doesn't fit on its line. The message has only the field's
    name, because the value may be a key.
    """
    if not (_are_tokens(tuple(fields)) and _fits("".join(fields.values()))):
        raise ValueError(next(n for n, v in fields.items() if not (_is_token(n) and _fits(v))))
    lines = "".join([f"{name}: {value}\r\n" for name, value in fields.items()])
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode("ascii")


def _fits(value: str) -> bool:
    return value.isascii() and value.isprintable()


@lru_cache(maxsize=256)
def _are_tokens(names: tuple[str, ...]) -> bool:
    return all(map(_is_token, names))


@lru_cache(maxsize=256)
def _is_token(name: str) -> bool:
    return _TOKEN.fullmatch(name) is not None


class ResponseHead(NamedTuple):
    """The head of a response."""

    minor: int
    """The minor version of HTTP/1."""
    status: int
    reason: str
    fields: dict[str, str]
    """The values by names in lower case. The values of a repeated field are joined by a comma."""

    @property
    def keeps_alive(self) -> bool:
        """Return True if the connection may serve another request after this response."""
        if "transfer-encoding" in self.fields and (
            self.minor == 0 or "content-length" in self.fields or self.status in BODILESS
        ):
            return False
        options = self.fields.get("connection", "").lower()
        return "close" not in options and (self.minor > 0 or "keep-alive" in options)


class _Events:
    """The parser's callbacks, in an object of their own to avoid a reference cycle."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        """The parts of the body that the parser found in the data of one feed."""
        self.on_body = self.parts.append
        self.begin()

    def begin(self) -> None:
        self.reason = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.trailer_size: int | None = None
        """The size of the trailer so far in bytes; None before the body."""
        self.complete = False

    def on_message_begin(self) -> None:
        if self.complete:
            raise Malformed("a second response")

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.trailer_size is None:
            self.fields.append((name, value))
            return
        self.trailer_size += len(name) + len(value) + len(": \r\n")
        if self.trailer_size > MAX_TRAILER:
            raise Malformed("the trailer is too long")

    def on_headers_complete(self) -> None:
        self.trailer_size = 0

    def on_message_complete(self) -> None:
        self.complete = True


class ResponseReader:
    """A reader of one response: interim heads, the final head, and the body."""

    __slots__ = (
        *("_chunked", "_events", "_head", "_interim", "_overhead", "_parser", "_searched"),
        *("_sized", "_tail"),
        *("clean", "ended", "fault", "head"),
    )

    def __init__(self) -> None:
        self._events = _Events()
        self._parser = HttpResponseParser(self._events)
        # FastAPI proxies in front of Azure OpenAI send both fields. Then Transfer-Encoding counts,
        # and the connection isn't kept (RFC 9112, 6.3).
        self._parser.set_dangerous_leniencies(lenient_chunked_length=True)
        self._head = bytearray()  # the incomplete head
        self._searched = 0  # the number of its bytes that were searched for its end
        self._tail = b""  # the last bytes of the body, with its framing
        self._interim = 0
        self._chunked = self._sized = False
        self._overhead = 0  # bytes of a chunked body since the last byte of its content
        self.head: ResponseHead | None = None
        self.ended = False
        """True if all of the body arrived."""
        self.clean = False
        """True if the body ended by its own framing, and nothing arrived after it."""
        self.fault = ""
        """The error in the body after the content so far; empty if there is none. No more bytes
        may be fed after an error."""

    def feed(self, data: bytes) -> bytes:
        """Return the part of the data that is content of the body.

        Raises Malformed if the head is invalid. An error in the body is stored in
        `fault` instead, so that the content before it is returned.
        """
        if self.head is None:
            self._head += data
            data = self._read_heads()
        return self._read_body(data) if data and not self.ended else b""

    def finish(self) -> None:
        """Handle the end of the connection: set `ended` or `fault`."""
        if self._chunked:
            # Some hosts omit the blank line after the last chunk. These bytes complete only bodies
            # that lack just that.
            self._read_body(b"\n\r\n" if self._tail.endswith(b"\r") else b"X: \r\n\r\n")
            self.clean = False
        elif not self._sized:
            self.ended = True
        if not self.ended:
            self.fault = "the body broke off"

    def _read_heads(self) -> bytes:
        """Read heads up to the final one, and return the bytes after it. Raises Malformed."""
        while (end := self._end_of_head()) is not None:
            head, rest = self._read_head(bytes(self._head[:end])), bytes(self._head[end:])
            self._head, self._searched = bytearray(rest), 0
            if head.status >= 200:
                self._head, self.head = bytearray(), head
                self._begin_body(head, rest)
                return rest
            self._interim += 1
            if head.status == SWITCHING_PROTOCOLS or self._interim > MAX_INTERIM:
                raise Malformed("no final response")
        return b""

    def _end_of_head(self) -> int | None:
        """Return the position after the first head of the data; None if the head is incomplete.

        Raises Malformed if the data can't be a head.
        """
        data, start = self._head, max(0, self._searched - 3)
        if not data.startswith(b"HTTP/"[: len(data)]):
            raise Malformed("not HTTP")
        end = data.find(b"\r\n\r\n", start, MAX_HEAD)
        if end >= 0:
            return end + 4
        # llhttp would refuse a bare LF too, but only when the end of the head has arrived.
        bare = data.find(b"\n\n", start) >= 0 or data.find(b"\n\r\n", start) >= 0
        if bare or len(data) >= MAX_HEAD:
            raise Malformed("a head without an end")
        self._searched = len(data)
        return None

    def _read_head(self, data: bytes) -> ResponseHead:
        events, parser = self._events, self._parser
        events.begin()
        try:
            parser.feed_data(data)
        except REFUSED:
            raise Malformed("not a head of HTTP/1") from None
        minor = VERSIONS.get(parser.get_http_version())
        if minor is None or events.trailer_size is None or len(events.fields) > MAX_FIELDS:
            raise Malformed("not HTTP/1, or too many headers")
        fields: dict[str, str] = {}
        for raw_name, raw_value in events.fields:
            name = raw_name.decode("latin-1").lower()
            value = raw_value.decode("latin-1").rstrip(SPACE)
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
        reason = events.reason.decode("latin-1").rstrip(SPACE)
        return ResponseHead(minor, parser.get_status_code(), reason, fields)

    def _begin_body(self, head: ResponseHead, rest: bytes) -> None:
        """Check the framing of the body. Raises Malformed if it could be understood in two ways."""
        coding, length = (head.fields.get(n) for n in ("transfer-encoding", "content-length"))
        if head.status in BODILESS:
            self.ended, self.clean = True, not rest
        elif coding is not None:
            if coding.lower() != "chunked":
                raise Malformed("an unknown Transfer-Encoding")
            self._chunked = True
        elif length is not None:
            if not _LENGTH.fullmatch(length):
                raise Malformed("an invalid Content-Length")
            self._sized = True
            self.ended = self._events.complete  # a length of 0
            self.clean = self.ended and not rest

    def _read_body(self, data: bytes) -> bytes:
        events, refused = self._events, False
        try:
            self._parser.feed_data(data)
        except REFUSED:
            refused = True
        body = b"".join(events.parts)
        events.parts.clear()
        self._overhead = 0 if body else self._overhead + len(data)
        tail = self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        if events.complete:
            self.ended = True
            if self._chunked:
                # llhttp skips line ends after a body without a callback.
                rest = not tail.endswith(b"\r\n\r\n") or tail[0] in b"\r\n"
            else:
                rest = len(body) < len(data)
            self.clean = not (refused or rest)
        elif refused:
            self.fault = "an invalid chunk"
        elif self._overhead > MAX_TRAILER:
            self.fault = "the trailer or the size line of a chunk is too long"
        return body
