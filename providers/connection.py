"""Connections to providers: opened, TLS and all, and kept for the next call.

Rules that hold here: nothing of the environment is consulted. Each connection is noted by the
switch of the exchange that it is for before its connect begins. What an idle one brought, its end
or bytes that nobody asked for, makes it useless.
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
from providers.switch import Aborted, Switch

IDLE_S: Final = 90.0
"""How long a connection is kept for a next call; load balancers forget theirs in silence."""
MAX_ORIGINS: Final = 64
"""Of how many origins idle connections are kept."""


class Origin(NamedTuple):
    """What connections have in common. ca_bundle: a file or folder of certificates; empty: TCP."""

    host: str
    port: int
    ca_bundle: str


class Pool:
    """Idle connections; what was used last is used next. Safe to share between threads."""

    def __init__(self, size: int) -> None:
        """size: how many of one origin are kept at most."""
        self._size = size
        self._lock = BriefLock()
        self._idle: dict[Origin, deque[tuple[socket.socket, float]]] = {}
        self._contexts: dict[str, tuple[int, ssl.SSLContext]] = {}
        self._closed = False

    def connection(self, origin: Origin, timeout: float, switch: Switch) -> socket.socket:
        """One that is open, TLS and all, noted by the switch. timeout: in seconds, to connect.
        Raises OSError (of which TimeoutError and ssl.SSLError), ValueError, Aborted."""
        while (kept := self._take(origin)) is not None:
            sock, since = kept
            if time.monotonic() - since < IDLE_S and _quiet(sock):
                _noted(sock, switch)
                return sock
            sock.close()
        deadline = time.monotonic() + timeout
        sock = _connected(origin, deadline, switch)
        if origin.ca_bundle:
            sock = secured = self._secured(sock, origin)
            _handshake(secured, deadline, switch)
        _noted(sock, switch)
        return sock

    def give_back(self, origin: Origin, sock: socket.socket) -> None:
        """For another exchange; the one that had it has forgotten it."""
        now = time.monotonic()
        useless = []
        with self._lock:
            if self._closed:
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
        """The socket as a TLS one, which takes the descriptor over; no byte is sent yet."""
        try:
            context = self._context(origin.ca_bundle)
            return context.wrap_socket(
                sock, server_hostname=origin.host, do_handshake_on_connect=False
            )
        finally:
            sock.close()  # which does nothing once its descriptor is another's

    def _context(self, ca_bundle: str) -> ssl.SSLContext:
        """Made once, as reading the public certificates takes 10 ms; anew when the file changes."""
        changed = Path(ca_bundle).stat().st_mtime_ns
        known = self._contexts.get(ca_bundle)
        if known is None or known[0] != changed:
            known = self._contexts[ca_bundle] = changed, _new_context(ca_bundle)
        return known[1]


def _new_context(ca_bundle: str) -> ssl.SSLContext:
    # Not ssl.create_default_context, which asks the environment where to log the session's keys.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which verifies chain and host
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


def _quiet(sock: socket.socket) -> bool:
    """Whether nothing came while it was idle. Never waits."""
    try:
        sock.settimeout(0)
        socket.socket.recv(sock, 1, socket.MSG_PEEK)  # not SSLSocket's own, which can't peek
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _noted(sock: socket.socket, switch: Switch) -> None:
    try:
        switch.note(sock)
    except Aborted:
        sock.close()
        raise


def _connected(origin: Origin, deadline: float, switch: Switch) -> socket.socket:
    error: OSError | None = None
    found = socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
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


def _handshake(sock: ssl.SSLSocket, deadline: float, switch: Switch) -> None:
    try:
        switch.note(sock, connecting=True)
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.do_handshake()
    except BaseException:
        sock.close()
        raise
