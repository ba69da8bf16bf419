"""Requests and answers as gunicorn reads and writes them, in fewer steps where they are of the
usual form.

Rules that hold here: what is not of the usual form is gunicorn's to judge, by its own code, so that
nothing passes that it would refuse. This is loaded in the master, before gevent patches the worker,
so it imports the standard library and gunicorn alone.
"""

from __future__ import annotations

import io
import re
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Any, ClassVar

from gunicorn import SERVER
from gunicorn.http import wsgi
from gunicorn.http.body import LengthReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.util import hop_headers

NAME = r"[!#$%&'*+\-.^`|~0-9A-Za-z]+"  # no `_`, which gunicorn takes from some peers only
VALUE = r"[^\x00-\x08\x0a-\x1f\x7f]*"
FIELD = re.compile(rf"({NAME}):({VALUE})(?:\r\n|\Z)")
FIELDS = re.compile(rf"(?:{NAME}:{VALUE}(?:\r\n|\Z))+")
LINE = re.compile(rb"(GET|POST) ((?:/[a-zA-Z0-9_.-]+)+) HTTP/1\.1")
CHUNK = b"%X\r\n%b\r\n"
END = CHUNK + b"0\r\n\r\n"
MOST_PEERS = 1000


class RequestHead(Request):
    """A request. gunicorn looks at each field of its head in a dozen steps, which few need."""

    trusted: ClassVar[dict[str, bool]] = {}
    body: Any

    def parse_request_line(self, line: bytes) -> None:
        if found := LINE.fullmatch(line):
            self.method, self.uri = found[1].decode(), found[2].decode()
            self.path, self.query, self.fragment, self.version = self.uri, "", "", (1, 1)
        else:
            super().parse_request_line(line)

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> list[tuple[str, str]]:
        text = data.decode("latin-1")
        if not from_trailer and len(text) <= self.limit_request_field_size:
            found = plain_fields(text)
            names = {name for name, _ in found}
            if 0 < len(found) == len(names) <= self.limit_request_fields:
                if telling := names & {"EXPECT", *self.cfg.secure_scheme_headers}:
                    self.heed([field for field in found if field[0] in telling])
                return found
        parsed: list[tuple[str, str]] = super().parse_headers(data, from_trailer)
        return parsed

    def heed(self, fields: list[tuple[str, str]]) -> None:
        """Those that say something of the connection; gunicorn's rules say who may."""
        scheme_state, seen, policy = [False], set[str](), self._peer_trusted_for_forwarded()
        for name, value in fields:
            self._apply_header_policy(name, value, scheme_state, seen, *policy)

    def set_body_reader(self) -> None:
        super().set_body_reader()
        reader = self.body.reader
        if isinstance(reader, LengthReader):
            here = self.unreader.take_buffered()
            if len(here) >= reader.length:  # a short one came along with the head
                self.body = io.BytesIO(here[: reader.length])
                here = here[reader.length :]
            self.unreader.unread(here)

    def _peer_is_trusted_proxy(self) -> bool:
        host = self.peer_addr[0] if isinstance(self.peer_addr, tuple) else ""
        if host not in self.trusted:
            if len(self.trusted) >= MOST_PEERS:
                self.trusted.clear()
            self.trusted[host] = super()._peer_is_trusted_proxy()
        return self.trusted[host]


def plain_fields(text: str) -> list[tuple[str, str]]:
    """The fields of a head, if each is one well-formed line with a name that means one thing;
    else none."""
    if not FIELDS.fullmatch(text):
        return []
    return [(name.upper(), value.strip(" \t")) for name, value in FIELD.findall(text)]


class FastRequestParser(RequestParser):
    """The requests of a connection."""

    mesg_class = RequestHead

    def finish_body(self, deadline: Any = None, max_bytes: Any = None) -> bool:  # noqa: ARG002 - gunicorn's
        """The worker has taken what an endpoint left of it."""
        return True


class FastResponse(wsgi.Response):
    """An answer, its head made in one go and its chunks sent as they come."""

    headers_sent: bool
    ended = False

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
        if not self.headers_sent:
            self.sock.sendall(self.head())
            self.headers_sent = True

    def write(self, data: bytes) -> None:
        length = len(data)
        if length and self.chunked:
            self.ended = type(data) is not bytes and getattr(data, "last", False)
            data = (END if self.ended else CHUNK) % (length, data)
        elif not length or self.sent or self.response_length != length or self._omits_body:
            super().write(data)
            return
        self.sent += length
        if not self.headers_sent:
            self.headers_sent = True
            data = self.head() + data
        self.sock.sendall(data)

    def close(self) -> None:
        if not self.ended:
            super().close()

    def head(self) -> bytes:
        major, minor = self.req.version
        connection = "close" if self.should_close() else "keep-alive"
        framing = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        fields = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        text = (
            f"HTTP/{major}.{minor} {self.status}\r\n"
            f"Server: {SERVER}\r\nDate: {date(int(time.time()))}\r\n"
            f"Connection: {connection}\r\n{framing}{fields}\r\n"
        )
        return text.encode("latin-1")


@lru_cache(maxsize=2)
def date(moment: int) -> str:
    """A second since 1970 as HTTP has it: many answers share one."""
    return formatdate(moment, usegmt=True)
