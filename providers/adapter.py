"""requests' way to the network here: an adapter that sends over connections of our own pool.

requests' HTTPAdapter and what is below it take 400 to 600 us of a processor for a call under
gevent, most of it for what a gateway has no use for (a pool found by a key that is made anew,
retries, cookies, a chain of file objects); this takes 70.
Rules that hold here: redirects are not followed, compression is not asked for (an answer that is
compressed all the same is understood); a request is never sent twice, not even when a connection
from the pool ends before the answer: it may have been served, and billed. A connection is used
again only after a body that ended by its own framing, with nothing behind it.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import requests
import urllib3
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.util import parse_url

from providers import http1
from providers.connection import Origin, Pool
from providers.switch import READ_SIZE, Switch

if TYPE_CHECKING:
    import socket

MAX_INTERIM: Final = 32
PORTS: Final = {"http": 80, "https": 443}
UNRESERVED: Final = "%/?:@!$&'()*+,;=-._~[]"
"""What stays as it is in a request's target, beside letters and digits."""


class NotReached(requests.ConnectionError):
    """No byte of the request was sent."""


class Adapter(BaseAdapter):
    """For one exchange, which its switch may end."""

    def __init__(self, pool: Pool, switch: Switch) -> None:
        super().__init__()
        self._pool, self.switch = pool, switch

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = True,  # noqa: ARG002 - these three are in requests' protocol
        timeout: float | tuple[float, float | None] | None = None,
        verify: bool | str = True,
        cert: object = None,  # noqa: ARG002
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> requests.Response:
        """Send, and wait for the answer's head; the body is `raw`, to be read as it comes.

        timeout: seconds to connect, and of silence; there must be both. verify: a file of
        certificates to trust, else the public ones; that nothing is verified can't be had. Raises
        requests' exceptions, and Aborted.
        """
        connect, silence = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        assert connect is not None  # noqa: S101
        assert silence is not None  # noqa: S101
        self.switch.silence = silence
        data, place = _request(request)
        trusted = verify if isinstance(verify, str) else DEFAULT_CA_BUNDLE_PATH
        origin = Origin(place.host, place.port, trusted if place.tls else "")
        sock = self._connection(origin, connect)
        try:
            sock.settimeout(None)
            whole = self._sent(sock, data)
            head, rest = self._received(sock)
            body = Body(self, origin, sock, head, rest, keep=whole and head.keeps_alive)
        except BaseException as failure:
            self.release(origin, sock, keep=False)
            if isinstance(failure, TimeoutError):
                raise requests.ReadTimeout("no answer") from failure
            if isinstance(failure, OSError | http1.Malformed):
                raise requests.ConnectionError("no answer") from failure
            raise
        return Response(request, head, body)

    def close(self) -> None:
        """Nothing to do: the pool is others' as well."""

    def _connection(self, origin: Origin, timeout: float) -> socket.socket:
        try:
            return self._pool.connection(origin, timeout, self.switch)
        except TimeoutError as failure:
            raise requests.ConnectTimeout("connect timed out") from failure
        except ssl.SSLError as failure:
            raise requests.exceptions.SSLError("no handshake") from failure
        except (OSError, ValueError) as failure:  # ValueError: no host could be called that
            raise NotReached("not connected") from failure

    def _sent(self, sock: socket.socket, data: bytes) -> bool:
        """Whether all was. A host may answer, refusing, and close before it has read all."""
        try:
            self.switch.send(sock, data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _received(self, sock: socket.socket) -> tuple[http1.Head, bytes]:
        """The answer's head, after those of interim answers, and what came with it."""
        data = self.switch.receive(sock)
        for _ in range(MAX_INTERIM):
            while (found := http1.read_head(data)) is None:
                more = self.switch.receive(sock)
                if not more:
                    raise http1.Malformed("closed")
                data += more
            head, data = found
            if not head.interim:
                return found
            if head.status == http1.SWITCHING_PROTOCOLS:  # its connection is no HTTP any more
                break
        raise http1.Malformed("only interim answers")

    def release(self, origin: Origin, sock: socket.socket, *, keep: bool) -> None:
        """The body is done with its connection."""
        self.switch.forget()
        if keep:
            self._pool.give_back(origin, sock)
        else:
            sock.close()


class Place(NamedTuple):
    """Where a request goes, and what it says of that."""

    tls: bool
    host: str
    port: int
    named: str
    target: str


@lru_cache(maxsize=1024)
def _place(url: str) -> Place:
    try:
        found = parse_url(url)
        scheme, host = found.scheme or "", found.host or ""
        port = found.port or PORTS[scheme]
        parts = urlsplit(url)  # parse_url's path resolves dots, and a model may be called that
        if not host:
            raise ValueError
    except (urllib3.exceptions.HTTPError, KeyError, ValueError) as failure:
        raise requests.exceptions.InvalidURL("no URL that could be called") from failure
    target = quote(parts.path or "/", UNRESERVED)
    if parts.query:
        target += "?" + quote(parts.query, UNRESERVED)
    named = host if port == PORTS[scheme] else f"{host}:{port}"
    return Place(scheme == "https", host.strip("[]"), port, named, target)


def _request(request: requests.PreparedRequest) -> tuple[bytes, Place]:
    """All its bytes, as one piece: each send costs."""
    place = _place(request.url or "")
    body = request.body or b""
    assert isinstance(body, bytes)  # noqa: S101
    try:
        head = http1.request_head(request.method or "", place.target, place.named, request.headers)
    except ValueError as failure:
        raise requests.exceptions.InvalidHeader(str(failure)) from None
    return head + body, place


_BLANK: Final = vars(requests.Response())


class Response(requests.Response):
    """requests' own, but that its headers and its jar of cookies are made when they are asked for:
    they take longer than all the rest, and nobody here asks."""

    def __init__(self, request: requests.PreparedRequest, head: http1.Head, body: Body) -> None:
        vars(self).update(_BLANK)
        del self.headers, self.cookies
        self.history, self.fields = [], head.fields
        self.status_code, self.reason = head.status, head.reason
        self.request, self.url = request, request.url or ""
        self.raw = body

    @cached_property
    def headers(self) -> CaseInsensitiveDict[str]:  # type: ignore[override]
        return CaseInsensitiveDict(self.fields)

    @cached_property
    def cookies(self) -> RequestsCookieJar:  # type: ignore[override]
        return RequestsCookieJar()


class Body:
    """An answer's body as it comes: a Response's `raw`."""

    def __init__(
        self,
        adapter: Adapter,
        origin: Origin,
        sock: socket.socket,
        head: http1.Head,
        rest: bytes,
        *,
        keep: bool,
    ) -> None:
        """rest: what came with the head. keep: whether the connection may serve another request.
        Raises Malformed."""
        self._framing = http1.framing(head)
        self._adapter, self._origin, self._keep = adapter, origin, keep
        self._socket: socket.socket | None = sock
        coding = head.fields.get("content-encoding", "identity").lower()
        self._decoder = None if coding == "identity" else self._decoded(coding)
        self._ready = self._framing.feed(rest)
        if self._framing.ended:
            self._release()

    def read1(
        self,
        amount: int = READ_SIZE,  # noqa: ARG002 - in the protocol of files
        decode_content: bool = False,
    ) -> bytes:
        """What there is, after a wait for it; empty at the end. Whatever amount was asked for, it
        is at most READ_SIZE. Raises OSError, Malformed, urllib3's HTTPError."""
        if decode_content and self._decoder is not None:
            return self._decoder.read1(READ_SIZE, decode_content=True)
        ready, self._ready = self._ready, b""
        while not ready and (sock := self._socket) is not None:
            if self._framing.fault:
                raise http1.Malformed(self._framing.fault)
            if data := self._adapter.switch.receive(sock):
                ready = self._framing.feed(data)
            else:
                self._framing.finish()
            if self._framing.ended:
                self._release()
        return ready

    read = read1

    def finish(self, seconds: float) -> None:
        """Wait a moment for what is left, when there can't be much."""
        if self._socket is not None:
            self._socket.settimeout(seconds)
            self._ready = b""
            self.read1()

    @property
    def released(self) -> bool:
        """Whether its connection is no longer this body's; what came may be still to be read."""
        return self._socket is None

    def close(self) -> None:
        """The connection, unless it was given back already."""
        self._release()

    def _release(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            self._adapter.release(self._origin, sock, keep=self._keep and self._framing.clean)

    def _decoded(self, coding: str) -> urllib3.HTTPResponse:
        """urllib3's understanding of codings, which is bounded, over what comes here."""
        source: Any = self
        return urllib3.HTTPResponse(
            body=source, headers={"Content-Encoding": coding}, preload_content=False
        )
