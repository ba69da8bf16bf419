"""A call to a provider over HTTP: sent, read as it comes, and aborted from any thread.

Rules that hold here: an exchange may be aborted in any phase, within milliseconds; what goes wrong
is told in our own errors, and no word of what the network's code says gets out. The network itself
is for adapter.py, connection.py and switch.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import requests
import urllib3

from completion import Batch, CompletionRequest
from concurrency.yielding import Yielder
from errors import SluiceError, UpstreamError, UpstreamTimeout
from providers.adapter import Adapter, NotReached
from providers.base import Call, Dialect, Signer, Target
from providers.connection import Pool
from providers.http1 import Malformed
from providers.switch import Aborted, Switch

if TYPE_CHECKING:
    from config import Timeouts

__all__ = ["MAX_BODY", "MAX_ERROR_BODY", "Aborted", "Exchange", "HttpAttempt", "Transport"]

MAX_BODY: Final = 64 * 1024 * 1024
"""Bytes of a whole answer; more is no completion."""
MAX_ERROR_BODY: Final = 64 * 1024
FAREWELL_S: Final = 0.05
"""For the last bytes of a body whose meaning is complete already."""

FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, Malformed, OSError)
"""What an adapter and a body raise."""


class Transport:
    """Connections to all providers. One per process; safe to share between threads."""

    def __init__(self, pool_size: int = 1000) -> None:
        """pool_size: how many idle connections to one host are kept."""
        self._pool = Pool(pool_size)

    def exchange(self, call: Call, timeouts: Timeouts, ca_bundle: str | None = None) -> Exchange:
        return Exchange(self._pool, call, timeouts, ca_bundle)

    def close(self) -> None:
        self._pool.close()


class Exchange:
    """One HTTP request and its answer.

    `open`, then `chunks` or `read`, then `close`, all in one thread; `abort` from any.
    """

    def __init__(
        self, pool: Pool, call: Call, timeouts: Timeouts, ca_bundle: str | None = None
    ) -> None:
        self.call = call
        self._pool, self._switch = pool, Switch()
        self._timeouts, self._verify = timeouts, ca_bundle or True
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
        timeouts = self._timeouts
        try:
            self._response = Adapter(self._pool, self._switch).send(
                self._prepared(),
                stream=True,
                timeout=(timeouts.connect, timeouts.longest_silence),
                verify=self._verify,
            )
        except FAILURES as failure:
            raise self._explained(failure) from failure
        if self._switch.thrown:
            raise Aborted
        return self._response.status_code

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives. Raises as `open`."""
        assert self._response is not None  # noqa: S101
        read, yielder = self._response.raw.read1, Yielder()
        while True:
            asked = time.monotonic()
            try:
                chunk = read(decode_content=True)
            except FAILURES as failure:
                raise self._explained(failure) from failure
            waited = time.monotonic() - asked
            if not chunk:
                if self._switch.thrown:  # where the connection's end is the body's
                    raise Aborted
                return
            yield chunk
            yielder.yield_if_due(waited)

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
        if self._response is None:
            return
        body: Any = self._response.raw
        self._response = None
        if body.released:
            return
        with contextlib.suppress(Exception):  # it is over; nothing that fails here matters
            if not self._switch.thrown:
                body.finish(FAREWELL_S)
        body.close()

    def abort(self) -> None:
        """End the exchange, in whatever phase it is, within milliseconds."""
        self._switch.throw()

    def _prepared(self) -> requests.PreparedRequest:
        call, prepared = self.call, requests.PreparedRequest()
        prepared.method, prepared.url, prepared.body = call.method, call.url, call.body
        named = {"User-Agent": "sluice"} | call.headers
        named["Content-Length"] = str(len(call.body))
        prepared.headers = named  # type: ignore[assignment]  # a dict will do: all names are ours
        return prepared

    def _explained(self, failure: Exception) -> Exception:
        """What requests, urllib3 and the sockets raise, as one of our errors."""
        if self._switch.thrown:
            return Aborted()
        if isinstance(failure, requests.ConnectTimeout):
            return UpstreamTimeout("connect", self._timeouts.connect)
        if isinstance(failure, requests.Timeout | TimeoutError):
            phase = "first_event" if self._response is None else "idle"
            return UpstreamTimeout(phase, self._timeouts.longest_silence)
        return UpstreamError(self._told(failure))

    def _told(self, failure: Exception) -> str:
        if self._response is not None:
            return "The upstream broke off in the middle of its answer."
        if isinstance(failure, requests.exceptions.InvalidHeader):
            return f"{failure} holds what no header can: is the key set right?"
        if isinstance(failure, requests.exceptions.SSLError):
            return "The upstream's TLS certificate or handshake was not right."
        if isinstance(failure, NotReached | requests.exceptions.InvalidURL):
            return "The upstream could not be reached."
        return "The upstream closed the connection before it answered."


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
