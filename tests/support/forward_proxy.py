"""A forward proxy for the tests, which serves CONNECT and requests with a whole URL.

All hosts lead to this machine, so that tests may use names that don't exist.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from tests.support.pace import HANG_S

Behave = Callable[[socket.socket], None]
"""The proxy's behaviour on a connection after it has read a request's head."""


class Seen(NamedTuple):
    """A request that the proxy received."""

    method: str
    target: str
    headers: dict[str, str]
    connection: int
    """The number of the connection, from 1."""


class ForwardProxy:
    """A running proxy: `with ForwardProxy() as proxy: ...`

    Args:
        behave: The behaviour to use instead of forwarding requests.
    """

    def __init__(self, behave: Behave | None = None) -> None:
        self._behave = behave
        self.seen: list[Seen] = []
        self.closed = threading.Event()
        """Set when a client has closed a connection."""
        self._sockets: list[socket.socket] = []
        self._count = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.name = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def with_password(self, user: str, password: str) -> str:
        """Return the proxy's URL with a user and a password, which are quoted already."""
        return f"http://{user}:{password}@{self.name}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                self._count += 1
                arguments = (client, self._count)
                threading.Thread(target=self._serve, args=arguments, daemon=True).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            upstream, relayed = None, False
            while (head := read_head(client)) is not None:
                line, *fields = head.decode("latin-1").split("\r\n")
                method, target, version = line.split(" ")
                headers = {n.lower(): v for n, _, v in (f.partition(": ") for f in fields if f)}
                self.seen.append(Seen(method, target, headers, number))
                if self._behave is not None:
                    self._behave(client)
                    self._wait_closed(client)
                    return
                url = urlsplit(target if "://" in target else f"//{target}")
                upstream = upstream or socket.create_connection(("127.0.0.1", url.port or 80))
                self._sockets.append(upstream)
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    thread = threading.Thread(target=pump, args=(upstream, client), daemon=True)
                    thread.start()
                    pump(client, upstream)
                    return
                path = url.path + (f"?{url.query}" if url.query else "")
                kept = [f for f in fields if f and not f.lower().startswith("proxy-")]
                body = receive(client, int(headers.get("content-length", 0)))
                request = "\r\n".join([f"{method} {path} {version}", *kept, "", ""])
                upstream.sendall(request.encode("latin-1") + body)
                if not relayed:
                    relayed = True
                    threading.Thread(target=pump, args=(upstream, client), daemon=True).start()
            if upstream is not None:
                upstream.shutdown(socket.SHUT_RDWR)
        self.closed.set()

    def _wait_closed(self, client: socket.socket) -> None:
        client.settimeout(HANG_S)
        with contextlib.suppress(OSError):
            while client.recv(65536):
                pass
        self.closed.set()


def read_head(client: socket.socket) -> bytes | None:
    """Read up to the empty line. Return None if the client closed."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:
            return None
        data += byte
    return data[:-4]


def receive(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def reply(data: bytes) -> Behave:
    """Return a behaviour that sends these bytes, and leaves the connection open."""
    return lambda client: client.sendall(data)


def refuse(status: int, *headers: str, body: bytes = b"<html>no</html>") -> Behave:
    """Return a behaviour that refuses with a page."""
    fields = "".join(f"{field}\r\n" for field in headers)
    head = f"HTTP/1.1 {status} No\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
    return reply(head.encode() + body)
