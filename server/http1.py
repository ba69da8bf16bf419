"""Subclasses of gunicorn's request and response with fast paths for the usual cases.

- Unusual cases go to gunicorn's own code, so nothing is accepted that it would refuse.
- The gunicorn master loads this module before gevent patches the worker, so it imports only the
  standard library and gunicorn.
- docs/decisions/0012-the-worker.md lists each override with its gain and the private names it uses.
"""

from __future__ import annotations

import io
import re
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.util import hop_headers

NAME = r"[!#$%&'*+\-.^`|~0-9A-Za-z]+"  # without `_`, which gunicorn accepts only from some peers
VALUE = r"[^\x00-\x08\x0a-\x1f\x7f]*"
FIELD = re.compile(rf"({NAME}):({VALUE})(?:\r\n|\Z)")
FIELDS = re.compile(rf"(?:{NAME}:{VALUE}(?:\r\n|\Z))+")
REQUEST_LINE = re.compile(rb"(GET|POST) ((?:/[a-zA-Z0-9_.-]+)+) HTTP/1\.1")


class RequestHead(Request):
    """A request whose header fields are matched in one step, instead of in a dozen steps each."""

    body: Any

    def parse_request_line(self, line: bytes) -> None:
        if found := REQUEST_LINE.fullmatch(line):
            self.method, self.uri = found[1].decode(), found[2].decode()
            self.path, self.query, self.fragment, self.version = self.uri, "", "", (1, 1)
        else:
            super().parse_request_line(line)

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> list[tuple[str, str]]:
        text = data.decode("latin-1")
        # gunicorn limits the length of each line with its CRLF. Here the limit holds for all lines
        # together, which is stricter; longer heads go to gunicorn.
        if not from_trailer and len(text) + 2 <= self.limit_request_field_size:
            fields = plain_fields(text)
            names = {name for name, _ in fields}
            if 0 < len(fields) == len(names) <= self.limit_request_fields:
                if special := names & {"EXPECT", *self.cfg.secure_scheme_headers}:
                    self._apply([field for field in fields if field[0] in special])
                return fields
        parsed: list[tuple[str, str]] = super().parse_headers(data, from_trailer)
        return parsed

    def _apply(self, fields: list[tuple[str, str]]) -> None:
        """Apply fields that concern the connection, if gunicorn's rules let this peer set them."""
        scheme_state, seen, policy = [False], set[str](), self._peer_trusted_for_forwarded()
        for name, value in fields:
            self._apply_header_policy(name, value, scheme_state, seen, *policy)

    def set_body_reader(self) -> None:
        """Set `body`: a BytesIO if all of it arrived with the head."""
        super().set_body_reader()
        reader = self.body.reader
        if isinstance(reader, LengthReader):
            buffered = self.unreader.take_buffered()
            if len(buffered) >= reader.length:
                self.body = io.BytesIO(buffered[: reader.length])
                buffered = buffered[reader.length :]
            self.unreader.unread(buffered)


def plain_fields(text: str) -> list[tuple[str, str]]:
    """Return a head's fields if each is one well-formed line with an unambiguous name, else []."""
    if not FIELDS.fullmatch(text):
        return []
    return [(name.upper(), value.strip(" \t")) for name, value in FIELD.findall(text)]


class FastRequestParser(RequestParser):
    """The requests of a connection."""

    mesg_class = RequestHead

    def finish_body(self, deadline: Any = None, max_bytes: Any = None) -> bool:  # noqa: ARG002 - gunicorn's
        """Return True: the worker has already drained the rest of the body (see `drained`)."""
        return True


class FastResponse(wsgi.Response):
    """A response that handles its headers together, and sends its head with the first part."""

    headers_sent: bool

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        names = [name.lower() for name, _ in headers]
        if not (
            all(names)
            and hop_headers.isdisjoint(names)
            and wsgi.TOKEN_RE.fullmatch("".join(names))
            and wsgi.HEADER_VALUE_RE.fullmatch("".join([value for _, value in headers]))
        ):
            super().process_headers(headers)
            return
        if "content-length" in names:
            self.response_length = int(headers[names.index("content-length")][1])
        self.headers += [(name, value.strip(" \t")) for name, value in headers]

    def send_headers(self) -> None:
        if self.headers_sent or self.upgrade:
            super().send_headers()
            return
        self.sock.sendall(self.head())
        self.headers_sent = True

    def head(self) -> bytes:
        """Return the status line and the header fields."""
        major, minor = self.req.version
        connection = "close" if self.should_close() else "keep-alive"
        framing = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        fields = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        text = (
            f"HTTP/{major}.{minor} {self.status}\r\n"
            f"Server: {self.version}\r\nDate: {http_date(int(time.time()))}\r\n"
            f"Connection: {connection}\r\n{framing}{fields}\r\n"
        )
        return text.encode("latin-1")

    def write(self, data: bytes) -> None:
        if self.upgrade or not data:
            super().write(data)
            return
        if self.chunked:
            framed = b"%X\r\n%b\r\n" % (len(data), data)
        elif self._is_whole(data):
            framed = data
        else:
            super().write(data)
            return
        if not self.headers_sent:
            framed = self.head() + framed
            self.headers_sent = True
        self.sent += len(data)
        self.sock.sendall(framed)

    def _is_whole(self, data: bytes) -> bool:
        """Return True if the data is all of a body, and the response is one that has a body."""
        usual = self.status_code == 200 and self.req.method != "HEAD"
        return usual and not self.sent and self.response_length == len(data)


@lru_cache(maxsize=2)
def http_date(second: int) -> str:
    """Return a time since 1970 in HTTP's format. The responses of one second share it."""
    return formatdate(second, usegmt=True)
