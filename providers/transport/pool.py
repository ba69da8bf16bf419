"""The connection pool: opens connections to providers, with TLS, and keeps them for later calls.

- The environment is never read.
- A connection through a proxy is kept for one host and one proxy.
- The abort switch of an exchange records each connection before its connect starts.
- An idle connection is closed if its host has closed it, or has sent unexpected bytes.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

from concurrency.native import BriefLock
from providers.transport.abort import Aborted, AbortSwitch
from providers.transport.proxy import Proxy, ProxyError, open_tunnel
from providers.transport.reasons import reason_of

IDLE_S: Final = 90.0
"""How long an idle connection is kept. Load balancers drop idle connections without notice."""
MAX_ORIGINS: Final = 64
"""The maximum number of origins for which idle connections are kept."""


class Origin(NamedTuple):
    """A host, its certificates and its proxy. Connections to one origin are interchangeable."""

    host: str
    port: int
    ca_bundle: str
    """A file or folder of certificates to trust; empty for plain TCP."""
    proxy: Proxy | None = None
    """The forward proxy to use; None for a direct connection."""


class Pool:
    """A pool of idle connections, last in, first out. It is thread-safe."""

    def __init__(self, size: int) -> None:
        """Make an empty pool, for at most `size` idle connections for each origin."""
        self._size = size
        self._lock = BriefLock()
        self._idle: dict[Origin, deque[tuple[socket.socket, float]]] = {}
        self._contexts: dict[str, tuple[int, ssl.SSLContext]] = {}
        self._closed = False

    def connection(self, origin: Origin, timeout: float, switch: AbortSwitch) -> socket.socket:
        """Return a connection from the pool or a new one, after its TLS handshake.

        Args:
            timeout: seconds to connect.
            switch: records the connection, so that it can abort it.

        Raises:
            OSError: the connection failed; also TimeoutError, ssl.SSLError and ProxyError.
            ValueError: the host name is impossible.
            Aborted: the switch was thrown.
        """
        while (kept := self._take(origin)) is not None:
            sock, since = kept
            if time.monotonic() - since < IDLE_S and _is_quiet(sock):
                _record(sock, switch)
                return sock
            sock.close()
        deadline = time.monotonic() + timeout
        sock = _connect(origin, deadline, switch)
        if origin.ca_bundle:
            if origin.proxy is not None:
                _open_tunnel(sock, origin, origin.proxy, deadline)
            sock = secured = self._secured(sock, origin)
            _handshake(secured, deadline, switch)
        _record(sock, switch)
        return sock

    def give_back(self, origin: Origin, sock: socket.socket) -> None:
        """Keep a connection for another exchange. The switch must have forgotten it."""
        now, unread = time.monotonic(), _has_unread(sock)
        useless = []
        with self._lock:
            if self._closed or unread:
                useless.append((sock, now))
            else:
                idle = self._idle.setdefault(origin, deque())
                idle.append((sock, now))
                while len(idle) > self._size or now - idle[0][1] > IDLE_S:
                    useless.append(idle.popleft())
                if len(self._idle) > MAX_ORIGINS:
                    useless += self._idle.pop(next(iter(self._idle)))
        for old, _ in useless:
            old.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            useless = [kept for idle in self._idle.values() for kept in idle]
            self._idle.clear()
        for sock, _ in useless:
            sock.close()

    def _take(self, origin: Origin) -> tuple[socket.socket, float] | None:
        with self._lock:
            idle = self._idle.get(origin)
            if idle is None:
                return None
            kept = idle.pop()
            if not idle:
                del self._idle[origin]
            return kept

    def _secured(self, sock: socket.socket, origin: Origin) -> ssl.SSLSocket:
        """Return a TLS socket that takes over the descriptor. No byte is sent yet."""
        try:
            context = self._context(origin.ca_bundle)
            return context.wrap_socket(
                sock, server_hostname=origin.host, do_handshake_on_connect=False
            )
        finally:
            sock.close()  # has no effect once the TLS socket has the descriptor

    def trust(self, ca_bundle: str) -> None:
        """Read a file of certificates. Raises OSError, also ssl.SSLError, if it is invalid."""
        self._context(ca_bundle)

    def _context(self, ca_bundle: str) -> ssl.SSLContext:
        """Return a TLS context, cached until the file changes.

        The cache is needed because reading the public certificates takes 10 ms.
        """
        changed = Path(ca_bundle).stat().st_mtime_ns
        known = self._contexts.get(ca_bundle)
        if known is None or known[0] != changed:
            known = self._contexts[ca_bundle] = changed, _new_context(ca_bundle)
        return known[1]


def _new_context(ca_bundle: str) -> ssl.SSLContext:
    # ssl.create_default_context would read the environment: SSLKEYLOGFILE logs session keys.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    if sys.version_info >= (3, 13):
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    if Path(ca_bundle).is_dir():
        context.load_verify_locations(capath=ca_bundle)
    else:
        context.load_verify_locations(cafile=ca_bundle)
    return context


def _has_unread(sock: socket.socket) -> bool:
    """Return True if the TLS layer has decrypted bytes that belong to no response."""
    return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0


def _is_quiet(sock: socket.socket) -> bool:
    """Return True if nothing arrived while the connection was idle. Doesn't wait."""
    try:
        sock.settimeout(0)
        socket.socket.recv(sock, 1, socket.MSG_PEEK)  # SSLSocket.recv can't peek
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _record(sock: socket.socket, switch: AbortSwitch) -> None:
    try:
        switch.note(sock)
    except Aborted:
        sock.close()
        raise


def _connect(origin: Origin, deadline: float, switch: AbortSwitch) -> socket.socket:
    """Return a connection to the host, or to its proxy."""
    if origin.proxy is None:
        return _connect_to(origin.host, origin.port, deadline, switch)
    try:
        return _connect_to(origin.proxy.host, origin.proxy.port, deadline, switch)
    except TimeoutError:
        raise
    except OSError as failure:
        why = reason_of(failure).text
        raise ProxyError(f"The proxy {origin.proxy.name} could not be reached: {why}.") from failure


def _open_tunnel(sock: socket.socket, origin: Origin, proxy: Proxy, deadline: float) -> None:
    try:
        open_tunnel(sock, proxy, origin.host, origin.port, deadline)
    except BaseException:
        sock.close()
        raise


def _connect_to(host: str, port: int, deadline: float, switch: AbortSwitch) -> socket.socket:
    error: OSError | None = None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, kind, proto, _, address in found:
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            switch.note(sock, connecting=True)
            sock.connect(address)
            return sock
        except OSError as failure:
            error = failure
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise error or OSError("no address")


def _handshake(sock: ssl.SSLSocket, deadline: float, switch: AbortSwitch) -> None:
    try:
        switch.note(sock, connecting=True)
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.do_handshake()
    except BaseException:
        sock.close()
        raise
