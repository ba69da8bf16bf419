"""An adapter for requests that uses Sluice's own connection pool.

- It exists for its speed: requests' HTTPAdapter and urllib3 spend several times as much CPU time on
  a call, most of it for features that a gateway doesn't need (a pool that is looked up by a new key
  each time, retries, cookies, a chain of file objects). See docs/decisions/0010-the-transport.md.
- It copies the private attributes of a blank `requests.Response` to make one quickly.
- Redirects are not followed.
- Compression is not requested, but a compressed response is decoded.
- A request is never sent twice, even if a pooled connection closes before the response: the host
  may have served the request, and billed it.
- A connection is reused only after a body that ended by its own framing, with nothing after it.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping, Sequence
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

from concurrency.yielding import paced
from providers.transport import http1
from providers.transport.abort import READ_SIZE, AbortSwitch
from providers.transport.pool import Origin, Pool
from providers.transport.proxy import Proxy, ProxyError, authority

if TYPE_CHECKING:
    import socket

PORTS: Final = {"http": 80, "https": 443}
UNRESERVED: Final = "%/?:@!$&'()*+,;=-._~[]"
"""The characters that aren't percent-encoded in a request's target, besides letters and digits."""
CLOSED: Final = "closed"
"""The text of the Malformed that stands for a connection closed before any response."""


class NotReached(requests.ConnectionError):
    """No byte of the request was sent."""


class ProxyFailed(NotReached):
    """The proxy can't be reached, or refused the request. The message is meant for callers."""


class Adapter(BaseAdapter):
    """The adapter of one exchange, which the switch can abort."""

    def __init__(self, pool: Pool, switch: AbortSwitch, proxy: Proxy | None = None) -> None:
        super().__init__()
        self._pool, self.switch, self._proxy = pool, switch, proxy

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = True,  # noqa: ARG002 - requests passes it, as the two below
        timeout: float | tuple[float, float | None] | None = None,
        verify: bool | str = True,
        cert: object = None,  # noqa: ARG002
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> Response:
        """Send a request and wait for the head of its response, whose `raw` is the body to read.

        Args:
            timeout: seconds to connect, and the idle timeout in seconds; both are required.
            verify: a file of certificates to trust; True or False means the public ones, because
                verification can't be turned off.

        Raises requests' exceptions, and Aborted.
        """
        connect, silence = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        assert connect is not None  # noqa: S101
        assert silence is not None  # noqa: S101
        self.switch.silence = silence
        more: list[memoryview] = []
        body: Any = request.body
        if isinstance(body, tuple):
            request.body, *more = body
        data, url = _request(request, self._proxy)
        trusted = verify if isinstance(verify, str) else DEFAULT_CA_BUNDLE_PATH
        origin = Origin(url.host, url.port, trusted if url.tls else "", self._proxy)
        sock = self._connection(origin, connect)
        try:
            sock.settimeout(None)
            whole = self._sent(sock, data, more)
            head, reader, data = self._received(sock)
            body = Body(self, origin, sock, reader, data, keep=whole and head.keeps_alive)
        except BaseException as failure:
            self.release(origin, sock, keep=False)
            if isinstance(failure, TimeoutError):
                raise requests.ReadTimeout("no answer") from failure
            if isinstance(failure, OSError | http1.Malformed):
                raise requests.ConnectionError("no answer") from failure
            raise
        return Response(request, head, body)

    def reach(self, url: str, connect: float, trusted: str | None) -> None:
        """Connect to a URL's host, and close the connection. Raises what `send` raises.

        Args:
            connect: seconds.
            trusted: a file of certificates to trust; None for the public ones.
        """
        found = _parse(url)
        ca_bundle = (trusted or DEFAULT_CA_BUNDLE_PATH) if found.tls else ""
        origin = Origin(found.host, found.port, ca_bundle, self._proxy)
        self.release(origin, self._connection(origin, connect), keep=False)

    def close(self) -> None:
        """Do nothing: other exchanges use the pool too."""

    def _connection(self, origin: Origin, timeout: float) -> socket.socket:
        try:
            return self._pool.connection(origin, timeout, self.switch)
        except TimeoutError as failure:
            raise requests.ConnectTimeout("connect timed out") from failure
        except ssl.SSLError as failure:
            raise requests.exceptions.SSLError("no handshake") from failure
        except ProxyError as failure:
            raise ProxyFailed(str(failure)) from failure
        except (OSError, ValueError) as failure:  # ValueError: an impossible host name
            raise NotReached("not connected") from failure

    def _sent(self, sock: socket.socket, data: bytes, more: Sequence[memoryview]) -> bool:
        """Send the data. Return False if the host closed the connection before it had read all.

        The host may have refused the request and sent a response. Other greenlets may run between
        the slices of `more`.
        """
        try:
            self.switch.send(sock, data)
            for part in paced(more) if more else ():
                self.switch.send(sock, part)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _received(
        self, sock: socket.socket
    ) -> tuple[http1.ResponseHead, http1.ResponseReader, bytes]:
        """Return the final head, its reader, and the part of the body that arrived with it."""
        reader, data = http1.ResponseReader(), b""
        while (head := reader.head) is None:
            received = self.switch.receive(sock)
            if not received:
                raise http1.Malformed(CLOSED)
            data = reader.feed(received)
        return head, reader, data

    def release(self, origin: Origin, sock: socket.socket, *, keep: bool) -> None:
        """Give the connection back to the pool, or close it."""
        self.switch.forget()
        if keep:
            self._pool.give_back(origin, sock)
        else:
            sock.close()


class Url(NamedTuple):
    """A parsed URL."""

    tls: bool
    host: str
    """The host to connect to, without the brackets of an IPv6 address."""
    port: int
    host_header: str
    target: str
    """The percent-encoded path and query, as in the request line."""


@lru_cache(maxsize=1024)
def _parse(url: str) -> Url:
    """Parse a URL. Raises requests' InvalidURL."""
    try:
        found = parse_url(url)
        scheme, host = found.scheme or "", found.host or ""
        port = found.port or PORTS[scheme]
        parts = urlsplit(url)  # parse_url resolves dots in paths, and a model may be named ..
        if not host:
            raise ValueError
    except (urllib3.exceptions.HTTPError, KeyError, ValueError) as failure:
        raise requests.exceptions.InvalidURL("no URL that could be called") from failure
    target = quote(parts.path or "/", UNRESERVED)
    if parts.query:
        target += "?" + quote(parts.query, UNRESERVED)
    host_header = host if port == PORTS[scheme] else f"{host}:{port}"
    return Url(scheme == "https", host.strip("[]"), port, host_header, target)


def address_of(url: str) -> str:
    """Return the host and port of a URL, without credentials; empty if the URL is invalid."""
    try:
        found = _parse(url)
    except requests.exceptions.InvalidURL:
        return ""
    return authority(found.host, found.port)


def _request(request: requests.PreparedRequest, proxy: Proxy | None) -> tuple[bytes, Url]:
    """Return a request's bytes and its URL. The bytes are one piece, because each send costs time.

    For an http URL, a proxy gets the whole URL and the proxy's credentials. For an https URL, the
    proxy doesn't see the request.
    """
    url = _parse(request.url or "")
    body = request.body or b""
    assert isinstance(body, bytes)  # noqa: S101
    try:
        method, target, fields = request.method or "", url.target, request.headers
        if proxy is not None and not url.tls:
            target = f"http://{url.host_header}{target}"
            fields = {**fields, **proxy.headers}  # type: ignore[assignment]
        head = http1.request_head(method, target, url.host_header, fields)
    except ValueError as failure:
        raise requests.exceptions.InvalidHeader(str(failure)) from None
    return head + body, url


_BLANK: Final = vars(requests.Response())


class Response(requests.Response):
    """A `requests.Response` that makes its headers and cookie jar on first use.

    Making them takes longer than everything else, and Sluice rarely needs them.
    """

    def __init__(
        self, request: requests.PreparedRequest, head: http1.ResponseHead, body: Body
    ) -> None:
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
    """The body of a response, read as it arrives: the `raw` of a Response."""

    def __init__(
        self,
        adapter: Adapter,
        origin: Origin,
        sock: socket.socket,
        reader: http1.ResponseReader,
        data: bytes,
        *,
        keep: bool,
    ) -> None:
        """Make the body of a response whose head the reader has read.

        Args:
            data: the part of the body that arrived with the head.
            keep: True if the connection may serve another request after the body.
        """
        self._reader, self._ready = reader, data
        self._adapter, self._origin, self._keep = adapter, origin, keep
        self._socket: socket.socket | None = sock
        assert reader.head is not None  # noqa: S101
        coding = reader.head.fields.get("content-encoding", "identity").lower()
        self._decoder = None if coding == "identity" else self._decoded(coding)
        if reader.ended:
            self._release()

    def read1(
        self,
        amount: int = READ_SIZE,  # noqa: ARG002 - part of the protocol of files
        decode_content: bool = False,
    ) -> bytes:
        """Wait for bytes and return them: at most READ_SIZE, whatever `amount` is; none at the end.

        Raises OSError, Malformed, and urllib3's HTTPError.
        """
        if decode_content and self._decoder is not None:
            return self._decoder.read1(READ_SIZE, decode_content=True)
        ready, self._ready = self._ready, b""
        while not ready and (sock := self._socket) is not None:
            ready = self._receive(sock)
        return ready

    read = read1

    def finish(self, seconds: float) -> None:
        """Wait for the end of a body whose content is complete, for at most this many seconds.

        One deadline holds for all reads, so that a slow trailer can't hold the exchange for longer.
        """
        deadline = time.monotonic() + seconds
        while (sock := self._socket) is not None and (left := deadline - time.monotonic()) > 0:
            self._adapter.switch.limit(sock, left)
            if self._receive(sock):
                return

    def _receive(self, sock: socket.socket) -> bytes:
        """Wait for bytes, and return the content in them. Release the connection at the end."""
        if self._reader.fault:
            raise http1.Malformed(self._reader.fault)
        content = b""
        if data := self._adapter.switch.receive(sock):
            content = self._reader.feed(data)
        else:
            self._reader.finish()
        if self._reader.ended:
            self._release()
        return content

    @property
    def released(self) -> bool:
        """Return True if the body has released its connection. Content may still be unread."""
        return self._socket is None

    def close(self) -> None:
        self._release()

    def _release(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            keep = self._keep and self._reader.ended and self._reader.clean
            self._adapter.release(self._origin, sock, keep=keep)

    def _decoded(self, coding: str) -> urllib3.HTTPResponse:
        """Return urllib3's decoder for this body. It bounds the size of what it decodes at once."""
        source: Any = self
        return urllib3.HTTPResponse(
            body=source, headers={"Content-Encoding": coding}, preload_content=False
        )
