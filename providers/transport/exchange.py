"""HTTP exchanges with providers: a request is sent, and its response read as it arrives.

- Any thread can abort an exchange, in any phase, within milliseconds.
- Failures are raised as Sluice's own errors. Messages of network libraries never reach a caller.
- adapter.py, pool.py and abort.py do the work on the network.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import requests
import urllib3

from concurrency.yielding import Yielder
from config import ConfigError, Timeouts
from errors import SluiceError, UpstreamError, UpstreamTimeout
from providers.base import UpstreamRequest
from providers.decoding.lenient_json import NOT_JSON
from providers.transport.abort import Aborted, AbortSwitch
from providers.transport.adapter import (
    CLOSED,
    Adapter,
    NotReached,
    ProxyFailed,
    Response,
    address_of,
)
from providers.transport.http1 import Malformed
from providers.transport.pool import Pool
from providers.transport.proxy import Proxy, answered, is_local, is_own, parse
from providers.transport.reasons import BAD_URL, reason_of

MAX_BODY: Final = 64 * 1024 * 1024
"""The largest whole response in bytes; no completion is larger."""
MAX_ERROR_BODY: Final = 64 * 1024
LAST_BYTES_S: Final = 0.05
"""How long `close` waits for the end of a body whose content is already complete."""
MAX_JSON_CHECKS: Final = 20
"""The maximum number of times that an unfinished body is checked for complete JSON."""
GRACE_S: Final = 2.0
"""How long a response may stay open after its answer is complete."""

FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, Malformed, OSError)
"""The exceptions that an adapter and a body raise."""


class Transport:
    """The connections to all providers. A process has one; threads may share it."""

    def __init__(
        self, pool_size: int = 1000, proxy: str = "", ca_bundle: Path | None = None
    ) -> None:
        """Make a transport.

        Args:
            pool_size: the maximum number of idle connections to keep for each host.
            proxy: the URL of a forward proxy for all hosts except this machine; empty for none.
            ca_bundle: a file of certificates to trust instead of the public ones.

        Raises:
            ConfigError: an argument is invalid.
        """
        self._pool = Pool(pool_size)
        self._proxy = parse("SLUICE_PROXY", proxy)
        self._ca_bundle = None if ca_bundle is None else str(ca_bundle)
        if self._ca_bundle is not None:
            try:
                self._pool.trust(self._ca_bundle)
            except OSError as failure:
                raise ConfigError(
                    f"SLUICE_CA_BUNDLE: {self._ca_bundle!r} has no readable certificates: {failure}"
                ) from None

    def exchange(
        self,
        request: UpstreamRequest,
        timeouts: Timeouts,
        ca_bundle: str | None = None,
        proxy: str | None = None,
    ) -> Exchange:
        """Return an exchange that isn't open yet.

        Args:
            ca_bundle: a file of certificates to trust instead of those of this transport.
            proxy: the URL of a forward proxy, or "off" for none; None for this transport's proxy.
        """
        if proxy is not None:
            chosen = parse("proxy", proxy)
        elif self._proxy is None or is_local(urlsplit(request.url).hostname or ""):
            chosen = None
        else:
            chosen = self._proxy
        return Exchange(self._pool, request, timeouts, ca_bundle or self._ca_bundle, chosen)

    def reaches(
        self, url: str, seconds: float, ca_bundle: str | None = None, proxy: str | None = None
    ) -> bool:
        """Return True if a connection to a URL's host can be made. Nothing is sent.

        Args:
            seconds: the time limit.
            ca_bundle, proxy: as in `exchange`.
        """
        request = UpstreamRequest("GET", url, {}, b"")
        return self.exchange(request, Timeouts(connect=seconds), ca_bundle, proxy).reaches()

    def close(self) -> None:
        self._pool.close()


class Exchange:
    """One HTTP request and its response.

    One thread calls `open`, then one of the methods that read, then `close`. Any thread may call
    `abort`.
    """

    def __init__(
        self,
        pool: Pool,
        request: UpstreamRequest,
        timeouts: Timeouts,
        ca_bundle: str | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self.request, self._proxy = request, proxy
        self._pool, self._switch = pool, AbortSwitch()
        self._timeouts, self._verify = timeouts, ca_bundle or True
        self._response: Response | None = None
        self.complete = False
        """True if the content of the body is complete, so that the body may end in any way."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the response, with names in lower case."""
        assert self._response is not None  # noqa: S101 - else the caller made a mistake
        return {name.lower(): value for name, value in self._response.headers.items()}

    @property
    def compressed(self) -> bool:
        return self._fields.get("content-encoding", "identity").lower() != "identity"

    @property
    def media_type(self) -> str:
        return self._fields.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def _fields(self) -> dict[str, str]:
        """The headers of the response, without a copy."""
        assert self._response is not None  # noqa: S101
        return self._response.fields

    def open(self) -> int:
        """Send the request, wait for the headers of the response, and return its status.

        Raises:
            UpstreamError: the host can't be reached, or closed the connection too early.
            UpstreamTimeout: a time limit was exceeded.
            Aborted: the exchange was aborted.
        """
        timeouts = self._timeouts
        try:
            self._response = Adapter(self._pool, self._switch, self._proxy).send(
                self._prepared(),
                stream=True,
                timeout=(timeouts.connect, timeouts.longest_silence),
                verify=self._verify,
            )
        except FAILURES as failure:
            raise self._explained(failure) from failure
        if self._switch.thrown:
            raise Aborted
        if self.request.more:  # it isn't sent again, and may be large
            self.request = msgspec.structs.replace(self.request, body=b"", more=())
        status = self._response.status_code
        if (proxy := self.plain_proxy) is not None and is_own(status, self.headers):
            raise UpstreamError(answered(proxy, status))
        return status

    def reaches(self) -> bool:
        """Return True if a connection to the host can be made, which is closed again."""
        trusted = self._verify if isinstance(self._verify, str) else None
        try:
            Adapter(self._pool, self._switch, self._proxy).reach(
                self.request.url, self._timeouts.connect, trusted
            )
        except FAILURES:
            return False
        return True

    @property
    def plain_proxy(self) -> Proxy | None:
        """The proxy that may have sent the response itself; None if there is none."""
        return None if self.request.url.startswith("https:") else self._proxy

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives. Raises what `open` raises."""
        assert self._response is not None  # noqa: S101
        read, yielder = self._response.raw.read1, Yielder()
        while True:
            asked = time.monotonic()
            try:
                chunk = read(decode_content=True)
            except FAILURES as failure:
                if self.complete and not self._switch.thrown:
                    return
                raise self._explained(failure) from failure
            waited = time.monotonic() - asked
            if not chunk:
                if self._switch.thrown:  # an abort looks like the end of a body without a length
                    raise Aborted
                return
            yield chunk
            yielder.yield_if_due(waited)

    def bounded(self, limit: int = MAX_BODY) -> Iterator[bytes]:
        """Yield the body as it arrives, up to `limit` bytes.

        Raises what `open` raises; UpstreamError for a larger body.
        """
        for chunk in self.chunks():
            limit -= len(chunk)
            if limit < 0:
                raise UpstreamError("The upstream's answer was larger than any completion.")
            yield chunk

    def read(self, limit: int = MAX_BODY) -> bytes:
        """Return the whole body. Raises what `bounded` raises.

        Once the body is complete JSON, it may end in any way, and is ended after GRACE_S.
        """
        parts, checks = [], MAX_JSON_CHECKS
        for chunk in self.bounded(limit):
            parts.append(chunk)
            if checks and self._goes_on and chunk.rstrip().endswith((b"}", b"]")):
                checks -= 1
                if is_json(b"".join(parts)):
                    self.complete = True
                    self.end_body_at(time.monotonic() + GRACE_S)
        return b"".join(parts)

    @property
    def _goes_on(self) -> bool:
        """Return True if the body hasn't ended, according to its framing."""
        assert self._response is not None  # noqa: S101
        body: Any = self._response.raw
        return not body.released

    def read_error(self) -> bytes:
        """Return the body of an error response, or its part that arrived before a failure.

        At most MAX_ERROR_BODY bytes are returned.
        """
        parts: list[bytes] = []
        with contextlib.suppress(SluiceError):
            for chunk in self.chunks():
                parts.append(chunk)
                if sum(map(len, parts)) >= MAX_ERROR_BODY:
                    break
        return b"".join(parts)[:MAX_ERROR_BODY]

    def close(self) -> None:
        """Return the connection to the pool if the body ends at once, else close the connection."""
        if self._response is None:
            return
        body: Any = self._response.raw
        self._response = None
        if body.released:
            return
        with contextlib.suppress(
            Exception
        ):  # the call has ended, so a failure here has no effect on it
            if not self._switch.thrown:
                body.finish(LAST_BYTES_S)
        body.close()

    def abort(self) -> None:
        """End the exchange in any phase, within milliseconds."""
        self._switch.throw()

    def end_body(self) -> bool:
        """End a complete body as if the host had closed the connection. It is thread-safe.

        Return False if the body isn't complete, or was ended before.
        """
        return self.complete and self._switch.end()

    def end_body_at(self, moment: float) -> None:
        """End a complete body at a monotonic time. A later call replaces the time."""
        self._switch.end_at = moment

    def _prepared(self) -> requests.PreparedRequest:
        request, prepared = self.request, requests.PreparedRequest()
        prepared.method, prepared.url, prepared.body = request.method, request.url, request.body
        headers = {"User-Agent": "sluice"} | request.headers
        size = len(request.body)
        if request.more:
            prepared.body = (request.body, *request.more)  # type: ignore[assignment]
            size += sum([part.nbytes for part in request.more])
        headers["Content-Length"] = str(size)
        prepared.headers = headers  # type: ignore[assignment]  # Adapter needs only a mapping
        return prepared

    def _explained(self, failure: Exception) -> Exception:
        """Return Sluice's error for one of FAILURES, or Aborted."""
        if self._switch.thrown:
            return Aborted()
        if isinstance(failure, requests.ConnectTimeout):
            way = f"{self.address} (through the proxy {self._proxy.name})" if self._proxy else None
            return UpstreamTimeout("connect", self._timeouts.connect, way or self.address)
        if isinstance(failure, requests.Timeout | TimeoutError):
            phase = "first_event" if self._response is None else "idle"
            return UpstreamTimeout(phase, self._timeouts.longest_silence)
        if self._response is not None:
            return UpstreamError("The upstream broke off in the middle of its answer.")
        if isinstance(failure, requests.exceptions.InvalidHeader):
            return UpstreamError(f"{failure} holds what no header can: is the key set right?")
        return self._unreached(failure)

    def _unreached(self, failure: Exception) -> UpstreamError:
        """Return the error for a host that sent no response."""
        cause, address = failure.__cause__, self.address
        if isinstance(failure, ProxyFailed):
            return UpstreamError(str(failure), host=address, reason="proxy")
        if isinstance(failure, requests.exceptions.InvalidURL):
            reason = BAD_URL
        elif isinstance(failure, NotReached | requests.exceptions.SSLError):
            reason = reason_of(cause)
        elif isinstance(cause, Malformed) and str(cause) != CLOSED:
            message = f"The upstream {address} sent something that is not HTTP."
            return UpstreamError(message, host=address, reason="not_http")
        else:
            message = f"The upstream {address} closed the connection before it answered."
            return UpstreamError(message, host=address, reason="closed")
        upstream = f"The upstream {address}" if address else "The upstream"
        message = f"{upstream} could not be reached: {reason.text}."
        return UpstreamError(message, host=address or None, reason=reason.code)

    @property
    def address(self) -> str:
        """The host and port of the request's URL, without credentials; empty for an invalid URL."""
        return address_of(self.request.url)


def is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body)
    except NOT_JSON:
        return False
    return True
