"""The one place that touches the network: requests, pooled, and an abort that works at once.

Rules that hold here: nothing of the environment is consulted (no proxies, no .netrc); redirects are
not followed, so a credential goes to no other host; compression is not asked for. An exchange may
be aborted from any thread in any phase: its connection notes the socket on the exchange before it
connects, and `shutdown` on that socket wakes a connect, a wait for headers, a silence and a flow.
(close() from another thread can hang; a flag alone is seen only when bytes come.)
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from breath import Breath
from completion import Batch, CompletionRequest
from errors import SluiceError, UpstreamError, UpstreamTimeout
from providers.base import Call, Dialect, Signer, Target

if TYPE_CHECKING:
    from timeouts import Timeouts

MAX_BODY = 64 * 1024 * 1024  # of a whole answer; more is no completion
MAX_ERROR_BODY = 64 * 1024
READ_SIZE = 64 * 1024
MAX_INTERIM = 32
FAREWELL_S = 0.05  # for the last bytes of a body whose meaning is complete already


class Aborted(Exception):
    """The exchange was aborted; nobody waits for its result."""


_opening = threading.local()  # .exchange: the one that this thread is opening


class _Answer(http.client.HTTPResponse):
    """Not for ever "100 Continue"; other interim answers (103 Early Hints) are skipped too."""

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MAX_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200:
                return version, status, reason
            if status == http.client.SWITCHING_PROTOCOLS:  # and its connection is no HTTP any more
                break
            http.client.parse_headers(self.fp)
        raise http.client.BadStatusLine("only interim answers")


class _AbortableConnection(HTTPConnection):
    """Notes its socket on the exchange that it serves."""

    response_class = _Answer
    exchange: Exchange | None = None

    def _new_conn(self) -> socket.socket:
        exchange = self.exchange = _opening.exchange
        deadline = time.monotonic() + float(self.timeout)  # type: ignore[arg-type]
        error: OSError | None = None
        for family, kind, proto, _, address in self._addresses():
            sock = socket.socket(family, kind, proto)
            try:
                for option in self.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                exchange.note(sock, connecting=True)
                sock.connect(address)
                exchange.note(sock)
            except OSError as failure:
                error = failure
                sock.close()
            except Aborted:
                sock.close()
                raise
            else:
                return sock
        if isinstance(error, TimeoutError):
            raise ConnectTimeoutError(self, "connect timed out") from error
        # Never the bare error: urllib3 takes a BrokenPipeError for a request that was sent.
        raise NewConnectionError(self, f"connect failed: {error}") from error

    def _addresses(self) -> list[Any]:
        try:
            return socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as failure:  # UnicodeError: no host could be called that
            raise NewConnectionError(self, f"no address: {failure}") from failure

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:  # from the pool, or connected by the pool for TLS
            self.exchange = _opening.exchange
            self.exchange.note(self.sock)
        super().request(*args, **kwargs)


class _AbortableTLSConnection(_AbortableConnection, HTTPSConnection):
    duplicate: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        # The TLS socket takes the descriptor over and appears only after its handshake; until
        # then a duplicate reaches the same connection.
        self.duplicate = sock.dup()
        try:
            _opening.exchange.note(self.duplicate, connecting=True)
        except Aborted:
            sock.close()
            raise
        return sock

    def connect(self) -> None:
        try:
            super().connect()
            _opening.exchange.note(self.sock)
        finally:
            if self.duplicate is not None:
                _opening.exchange.forget(self.duplicate)
                self.duplicate.close()
                self.duplicate = None


class _AbortablePool(HTTPConnectionPool):
    ConnectionCls = _AbortableConnection

    def _put_conn(self, conn: Any) -> None:
        # Before another exchange can take it: a late abort must not end that one's call.
        exchange = getattr(conn, "exchange", None)
        if exchange is not None:
            conn.exchange = None
            exchange.forget(conn.sock)
        super()._put_conn(conn)


class _AbortableTLSPool(_AbortablePool, HTTPSConnectionPool):
    ConnectionCls = _AbortableTLSConnection


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {
            "http": _AbortablePool,
            "https": _AbortableTLSPool,
        }


class Transport:
    """Connection pools to all providers. One per process; safe to share between threads."""

    def __init__(self, pool_size: int = 1000) -> None:
        self._adapter = _Adapter(pool_connections=64, pool_maxsize=pool_size)

    def exchange(self, call: Call, timeouts: Timeouts, ca_bundle: str | None = None) -> Exchange:
        return Exchange(self._adapter, call, timeouts, ca_bundle)

    def close(self) -> None:
        self._adapter.close()


class Exchange:
    """One HTTP request and its answer.

    `open`, then `chunks` or `read`, then `close`, all in one thread; `abort` from any.
    """

    def __init__(
        self, adapter: HTTPAdapter, call: Call, timeouts: Timeouts, ca_bundle: str | None = None
    ) -> None:
        self._adapter = adapter
        self.call = call
        self._timeouts = timeouts
        self._verify = ca_bundle or True
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._connecting = True
        self._aborted = False
        self._response: requests.Response | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The answer's headers, names in lower case."""
        assert self._response is not None  # noqa: S101 - a caller's mistake, not a state
        return {name.lower(): value for name, value in self._response.headers.items()}

    def open(self) -> int:
        """Send the request and wait for the answer's headers. Returns the status.

        Raises UpstreamError (never reached, broke off), UpstreamTimeout, Aborted.
        """
        _opening.exchange = self
        try:
            with self._failures():
                self._response = self._adapter.send(
                    self._prepared(),
                    stream=True,
                    timeout=(self._timeouts.connect, self._timeouts.longest_silence),
                    verify=self._verify,
                )
        finally:
            _opening.exchange = None
        if self._aborted:  # headers that an abort cut off look like whole ones
            raise Aborted
        return self._response.status_code

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives. Raises as `open`."""
        assert self._response is not None  # noqa: S101
        breath = Breath()
        while True:
            asked = time.monotonic()
            with self._failures():
                chunk = self._response.raw.read1(READ_SIZE, decode_content=True)
            waited = time.monotonic() - asked
            if not chunk:
                if self._aborted:  # where the connection's end is the body's
                    raise Aborted
                return
            yield chunk
            breath.take(waited)

    def read(self, limit: int = MAX_BODY) -> bytes:
        """The whole body, at most `limit` bytes. Raises as `open`, and UpstreamError above it."""
        parts = []
        for chunk in self.chunks():
            parts.append(chunk)
            limit -= len(chunk)
            if limit < 0:
                raise UpstreamError("The upstream's answer was larger than any completion.")
        return b"".join(parts)

    def read_error(self) -> bytes:
        """The body of an error answer: what came of it, bounded, whatever happens meanwhile."""
        parts: list[bytes] = []
        with contextlib.suppress(SluiceError):
            for chunk in self.chunks():
                parts.append(chunk)
                if sum(map(len, parts)) >= MAX_ERROR_BODY:
                    break
        return b"".join(parts)[:MAX_ERROR_BODY]

    def close(self) -> None:
        """Give the connection back if its body is at its end (or ends at once), else close it."""
        response, self._response = self._response, None
        if response is None:
            return
        with contextlib.suppress(Exception):  # it is over; nothing that fails here matters
            with self._lock:
                sock = None if self._aborted else self._socket
            if sock is not None:
                sock.settimeout(FAREWELL_S)
                response.raw.read1(READ_SIZE)
        response.close()

    def abort(self) -> None:
        """End the exchange, in whatever phase it is, within milliseconds."""
        for _ in range(20):
            with self._lock:
                self._aborted = True
                sock, connecting = self._socket, self._connecting
            if sock is None:
                return
            try:
                # Not SSLSocket's own shutdown: that drops its TLS state under the reader's feet.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError as failure:
                if connecting and failure.errno == errno.ENOTCONN:
                    time.sleep(0.001)  # noted, but its connect has not begun yet
                    continue
            return

    def note(self, sock: socket.socket, *, connecting: bool = False) -> None:
        """Called by the connection: this is the socket to shut down. Raises Aborted."""
        with self._lock:
            self._socket, self._connecting = sock, connecting
            if self._aborted:
                raise Aborted

    def forget(self, sock: socket.socket | None) -> None:
        """Called by the connection: that socket is no longer this exchange's."""
        with self._lock:
            if self._socket is sock:
                self._socket = None

    def _prepared(self) -> requests.PreparedRequest:
        for name, value in self.call.headers.items():  # what http.client raises quotes the value
            if not (value.isascii() and value.isprintable()):
                raise UpstreamError(f"{name} holds what no header can: is the key set right?")
        prepared = requests.PreparedRequest()
        prepared.method = self.call.method
        prepared.url = self.call.url
        prepared.headers = requests.structures.CaseInsensitiveDict(self.call.headers)
        prepared.headers["Content-Length"] = str(len(self.call.body))
        prepared.body = self.call.body
        return prepared

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn what requests, urllib3 and the sockets raise into our errors."""
        try:
            yield
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as failure:
            if self._aborted:
                raise Aborted from None
            raise self._explain(failure) from failure

    def _explain(self, failure: Exception) -> UpstreamError:
        timed_out = _caused_by(failure, TimeoutError, urllib3.exceptions.TimeoutError)
        if _caused_by(failure, NewConnectionError):  # which is a TimeoutError by inheritance alone
            timed_out = False
        if self._response is None and self._connecting:
            if timed_out:
                return UpstreamTimeout("connect", self._timeouts.connect)
            if _caused_by(failure, urllib3.exceptions.SSLError):
                return UpstreamError("The upstream's TLS certificate or handshake was not right.")
            return UpstreamError("The upstream could not be reached.")
        if timed_out:
            phase = "first_event" if self._response is None else "idle"
            return UpstreamTimeout(phase, self._timeouts.longest_silence)
        if self._response is None:
            return UpstreamError("The upstream closed the connection before it answered.")
        return UpstreamError("The upstream broke off in the middle of its answer.")


class HttpAttempt:
    """One call to one target over HTTP: what its dialect says, through the transport."""

    def __init__(
        self,
        transport: Transport,
        dialect: Dialect,
        request: CompletionRequest,
        target: Target,
        timeouts: Timeouts,
        signer: Signer | None = None,
    ) -> None:
        self._dialect = dialect
        self._request = request
        self._target = target
        self._signer = signer
        self._exchange = transport.exchange(
            dialect.call(request, target), timeouts, target.provider.ca_bundle
        )

    def events(self) -> Iterator[Batch]:
        if self._signer is not None:  # not before: a signature ages while a call waits
            self._exchange.call = self._signer.sign(self._exchange.call, self._target)
        status = self._exchange.open()
        if not 200 <= status < 300:
            body = self._exchange.read_error()
            raise self._dialect.error(status, self._exchange.headers, body)
        if self._request.stream:
            yield from self._dialect.events(self._exchange.chunks(), self._request)
        else:
            yield self._dialect.complete(self._exchange.read(), self._request)

    def abort(self) -> None:
        self._exchange.abort()

    def wind_up(self) -> None:
        pass

    def close(self) -> None:
        self._exchange.close()


def _caused_by(failure: BaseException | None, *kinds: type[BaseException]) -> bool:
    """Whether a failure is of a kind, or wraps one: requests and urllib3 wrap in several ways."""
    for _ in range(8):
        if failure is None:
            return False
        if isinstance(failure, kinds):
            return True
        # An SSLError's reason is a text.
        inner = (*failure.args, getattr(failure, "reason", None), failure.__cause__)
        failure = next((part for part in inner if isinstance(part, BaseException)), None)
    return False
