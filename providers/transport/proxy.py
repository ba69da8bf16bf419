"""Forward proxies for calls to providers: their URLs, and the tunnel that CONNECT opens.

- Calls to http URLs are sent to the proxy with the whole URL as their target. Calls to https URLs
  go through a tunnel, in which the proxy sees only the host's name and port.
- The connection to the proxy is plain HTTP: TLS inside TLS would need another kind of socket.
- No message contains the user or the password of a proxy.

Source: RFC 9110, sections 9.3.6 (CONNECT) and 11.7 (Proxy-Authorization); RFC 9209 (read 2026-11).
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
import time
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from config import ConfigError
from keys.redaction import Secret
from providers.transport import http1

OFF: Final = ("", "off", "none", "direct")
"""The values that mean no proxy."""
PORT: Final = 80
READ_SIZE: Final = 8192
MARKS: Final = ("proxy-status", "x-squid-error")
"""Response headers that proxies add to their own responses."""
PROXY_AUTHENTICATION_REQUIRED: Final = 407
GATEWAY_STATUSES: Final = (403, 502, 503, 504)
"""The statuses of proxies' refusals."""
VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
HOST: Final = re.compile(r"[A-Za-z0-9_.:-]+")


class Proxy(NamedTuple):
    """A forward proxy."""

    host: str
    """The host to connect to, without the brackets of an IPv6 address."""
    port: int
    authorization: Secret | None = None
    """The value of Proxy-Authorization."""

    @property
    def name(self) -> str:
        """The host and port, for messages."""
        return authority(self.host, self.port)

    @property
    def headers(self) -> dict[str, str]:
        given = self.authorization
        return {} if given is None else {"Proxy-Authorization": given.reveal()}


class ProxyError(OSError):
    """The proxy can't be reached, or refused. The message is meant for callers."""


def parse(where: str, text: str) -> Proxy | None:
    """Return the proxy of a setting, or None if the setting turns the proxy off.

    Args:
        where: the name of the setting, for messages.

    Raises:
        ConfigError: the URL is invalid.
    """
    if text.strip().lower() in OFF:
        return None
    try:
        url = urlsplit(text.strip())
        host, port = url.hostname or "", url.port or PORT
    except ValueError:  # its message may quote the password
        url, host, port = urlsplit(""), "", PORT
    if url.scheme == "https":
        raise ConfigError(f"{where}: https:// proxies aren't supported: use an http:// proxy")
    if url.scheme != "http" or not HOST.fullmatch(host) or url.path.strip("/") or url.query:
        raise ConfigError(f"{where} must be http://[USER:PASSWORD@]HOST[:PORT], or off for none")
    if url.username is None:
        return Proxy(host, port)
    pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return Proxy(host, port, Secret("Basic " + base64.b64encode(pair.encode()).decode()))


def unused(environ: Mapping[str, str]) -> list[str]:
    """Return a warning if the environment has proxy variables, which Sluice doesn't use."""
    given = [name for name in VARIABLES if environ.get(name) or environ.get(name.lower())]
    if not given:
        return []
    warning = (
        f"{', '.join(given)}: Sluice doesn't use the proxy variables of the environment for calls "
        "to providers; to use a proxy, set SLUICE_PROXY, or proxy in a provider's row"
    )
    return [warning]


def is_local(host: str) -> bool:
    """Return True for this machine, which is never called through the server-wide proxy."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def open_tunnel(sock: socket.socket, proxy: Proxy, host: str, port: int, deadline: float) -> None:
    """Let the proxy open a tunnel to a host.

    Args:
        sock: a connection to the proxy.
        deadline: the monotonic time at which the tunnel must be open.

    Raises:
        ProxyError: the proxy refused, or its response is invalid.
        OSError: the connection failed; also TimeoutError.
    """
    target = authority(host, port)
    sock.settimeout(_left(deadline))
    sock.sendall(http1.request_head("CONNECT", target, target, proxy.headers))
    reader, rest = http1.ResponseReader(), b""
    try:
        while (head := reader.head) is None:
            sock.settimeout(_left(deadline))
            if not (data := sock.recv(READ_SIZE)):
                raise ProxyError(f"The proxy {proxy.name} closed the connection.")
            rest = reader.feed(data)
    except http1.Malformed:
        raise ProxyError(f"The proxy {proxy.name} sent an invalid response.") from None
    if not 200 <= head.status < 300:
        raise ProxyError(refusal(proxy, head.status, target))
    if rest:  # in TLS the client sends first, so the bytes aren't the host's
        raise ProxyError(f"The proxy {proxy.name} sent an invalid response.")


def refusal(proxy: Proxy, status: int, target: str = "the upstream") -> str:
    """Return the message for an error status of a CONNECT to `target`."""
    if status == PROXY_AUTHENTICATION_REQUIRED:
        given = "rejected its user or password" if proxy.authorization else "requires a password"
        return f"The proxy {proxy.name} {given} (status 407)."
    return f"The proxy {proxy.name} refused the connection to {target} with status {status}."


def answered(proxy: Proxy, status: int) -> str:
    """Return the message for a response that the proxy sent itself; see `is_own`."""
    if status == PROXY_AUTHENTICATION_REQUIRED:
        return refusal(proxy, status)
    return f"The proxy {proxy.name} responded with status {status} instead of the upstream."


def is_own(status: int, headers: Mapping[str, str]) -> bool:
    """Return True if a proxy sent an error response itself.

    The body helps to decide: providers describe errors in JSON, and proxies don't.

    Args:
        headers: the response's headers, with their names in lower case.
    """
    if status == PROXY_AUTHENTICATION_REQUIRED:
        return True
    if status in GATEWAY_STATUSES and "json" not in headers.get("content-type", "").lower():
        return True
    return status >= 400 and any(name in headers for name in MARKS)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
