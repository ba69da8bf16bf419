"""The fake provider's process: a server on raw sockets that plays scripts.

- It uses only the standard library, and listens only on loopback.
- Each connection has a thread. Another thread watches all connections, so that it notices at once
  when a peer disconnects, whatever the script does.
- At a script's end the connection stays open only if the response is complete and has its length in
  it. Otherwise the connection is closed, which truncates the response.
- A request without a script gets a 400.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BufferedReader
from multiprocessing.connection import Connection

from tests.support.fake.steps import (
    LONGER_THAN_ANY_TEST_S,
    By,
    Counts,
    Fault,
    Outcome,
    Request,
    Step,
    error,
)


def serve(control_fd: int, tls: str) -> None:
    """Run the process: accept and watch in threads, and obey commands until the pipe closes."""
    server = _Server(tls)
    for work in (server.accept, server.watch):
        threading.Thread(target=work, daemon=True).start()
    with Connection(control_fd) as control, contextlib.suppress(EOFError, OSError):
        while True:
            command, *arguments = control.recv()
            control.send(getattr(server, f"do_{command}")(*arguments))


class _Server:
    """The shared state of all connections.

    `lock` guards it, and is notified when a gate opens or a peer disconnects.
    """

    def __init__(self, tls: str) -> None:
        self.lock = threading.Condition()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if self.tls:
            self.tls.load_cert_chain(tls)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.epoll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        self.do_reset()

    def do_reset(self) -> None:
        with self.lock:
            for connection in self.connections.values():
                connection.end("us", time.monotonic())
            self.scripts: list[tuple[Sequence[Step], str | None]] = []
            self.named: dict[str, Sequence[Step]] = {}
            self.placed: dict[str, list[Sequence[Step]]] = {}
            self.fallback: Sequence[Step] = ()
            self.faults: list[Fault] = []
            self.opened: set[str] = set()
            self.requests: list[Request] = []
            self.accepted = 0

    def accept(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.accepted += 1
                fault = self.faults.pop(0) if self.faults else None
                connection = _Connection(self, sock, self.accepted, fault)
                self.connections[connection.fd] = connection
                self.epoll.register(connection.fd, select.EPOLLRDHUP)
            threading.Thread(target=connection.run, daemon=True).start()

    def watch(self) -> None:
        while True:
            for fd, _ in self.epoll.poll():
                at = time.monotonic()
                with self.lock:
                    # The event may belong to an earlier connection with this descriptor.
                    if fd in self.connections and _hung_up(fd):
                        self.epoll.unregister(fd)
                        self.connections[fd].end("peer", at)

    def begin(self, connection: _Connection, request: Request) -> Sequence[Step]:
        """Record a request and choose its script."""
        with self.lock:
            self.requests.append(request)
            connection.request = request
            connection.stamp()
            for number, (steps, path) in enumerate(self.scripts):
                if path in (None, request.path):
                    del self.scripts[number]
                    return steps
            if steps := self.script_at(request.path) or self.script_of(request):
                return steps
            return self.fallback or error(400, f"no script for {request.method} {request.path}")

    def script_at(self, path: str) -> Sequence[Step]:
        waiting = self.placed.get(path.split("/", 2)[1], [])
        return waiting.pop(0) if len(waiting) > 1 else waiting[0] if waiting else ()

    def script_of(self, request: Request) -> Sequence[Step]:
        name = request.prompt.partition(" ")[0]
        return self.named.get(f"{name} {request.path}") or self.named.get(name, ())

    def do_port(self) -> int:
        return int(self.listener.getsockname()[1])

    def do_script(self, steps: Sequence[Step], path: str | None) -> None:
        with self.lock:
            self.scripts.append((steps, path))

    def do_named(self, scripts: Mapping[str, Sequence[Step]]) -> None:
        with self.lock:
            self.named |= scripts

    def do_placed(self, scripts: Mapping[str, Sequence[Sequence[Step]]]) -> None:
        with self.lock:
            self.placed |= {name: list(waiting) for name, waiting in scripts.items()}

    def do_default(self, steps: Sequence[Step]) -> None:
        self.fallback = steps

    def do_fault(self, fault: Fault) -> None:
        with self.lock:
            self.faults.append(fault)

    def do_open(self, name: str) -> None:
        with self.lock:
            self.opened.add(name)
            self.lock.notify_all()

    def do_forget(self) -> None:
        with self.lock:
            self.requests = [request for request in self.requests if request.outcome == "active"]

    def do_requests(self) -> list[Request]:
        with self.lock:
            return [replace(request) for request in self.requests]

    def do_counts(self) -> Counts:
        with self.lock:
            outcomes = [request.outcome for request in self.requests]
            return Counts(
                connections=self.accepted,
                open=sum(not connection.closed for connection in self.connections.values()),
                received=len(outcomes),
                active=outcomes.count("active"),
                finished=outcomes.count("finished"),
                aborted=outcomes.count("aborted"),
                closed=sum(r.outcome != "active" and bool(r.closed_by) for r in self.requests),
            )


def _hung_up(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLRDHUP)
    return bool(poller.poll(0))


class _Connection:
    """A connection. Only the thread that runs it closes its socket."""

    def __init__(
        self, server: _Server, sock: socket.socket, number: int, fault: Fault | None
    ) -> None:
        self.server, self.sock, self.number, self.fault = server, sock, number, fault
        self.fd = sock.fileno()
        self.reader: BufferedReader | None = None
        self.request: Request | None = None
        self.framing = _Framing()
        self.gone = threading.Event()
        self.closed: tuple[By, float] | None = None

    def run(self) -> None:
        try:
            if self.fault == "reset":
                self.close(rst=True)
            elif self.fault == "mute":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                self.gone.wait()
            else:
                self.serve()
        except OSError:
            pass  # the peer has disconnected, or the TLS handshake failed
        finally:
            self.close()

    def serve(self) -> None:
        if self.server.tls:
            self.sock = self.server.tls.wrap_socket(
                self.sock, server_side=True, do_handshake_on_connect=False
            )
            self.sock.do_handshake()
        self.reader = self.sock.makefile("rb")
        while request := _read_request(self.reader, self.number):
            self.framing = _Framing()
            self.play(request, self.server.begin(self, request))
            if self.closed or not self.framing.reusable(request):
                return

    def play(self, request: Request, steps: Sequence[Step]) -> None:
        outcome: Outcome = "aborted"
        try:
            for step in steps:
                getattr(self, f"do_{step.kind}")(step)
            outcome = "finished"
        finally:
            request.finished_at = time.monotonic()
            request.outcome = outcome

    def do_send(self, step: Step) -> None:
        self.send(step.data)
        if step.usage is not None and self.request is not None:
            self.request.usage = step.usage

    def do_drip(self, step: Step) -> None:
        for byte in step.data:
            self.send(bytes([byte]))
            self.sleep(step.seconds)

    def do_repeat(self, step: Step) -> None:
        while True:
            self.send(step.data)
            self.sleep(step.seconds)

    def do_sleep(self, step: Step) -> None:
        self.sleep(step.seconds)

    def do_gate(self, step: Step) -> None:
        lock, opened = self.server.lock, self.server.opened
        with lock:
            lock.wait_for(lambda: step.name in opened or self.closed, LONGER_THAN_ANY_TEST_S)
        self.sleep(0)

    def do_close(self, step: Step) -> None:
        self.close()

    def do_reset(self, step: Step) -> None:
        self.close(rst=True)

    def sleep(self, seconds: float) -> None:
        if self.gone.wait(seconds):
            raise ConnectionError("the connection was closed during the script")

    def send(self, data: bytes) -> None:
        self.sleep(0)
        self.framing.feed(data)
        assert self.request is not None
        view = memoryview(data)
        while view:
            sent = self.sock.send(view)
            self.request.first_byte_at = self.request.first_byte_at or time.monotonic()
            self.request.bytes_sent += sent
            view = view[sent:]

    def end(self, by: By, at: float) -> None:
        """Record the end, wake the script, and interrupt a blocked send."""
        with self.server.lock:
            self.closed = self.closed or (by, at)
            self.stamp()
            self.gone.set()
            self.server.lock.notify_all()
            with contextlib.suppress(OSError):  # not SSLSocket.shutdown, which drops its state
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self, *, rst: bool = False) -> None:
        with self.server.lock:
            if self.server.connections.get(self.fd) is not self:
                return  # closed already
            del self.server.connections[self.fd]
            by: By = "peer" if _hung_up(self.fd) else "us"  # `watch` may not have noticed it yet
            self.closed = self.closed or (by, time.monotonic())
            self.stamp()
            if rst:
                linger = struct.pack("ii", 1, 0)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            if self.reader:
                self.reader.close()
            self.sock.close()

    def stamp(self) -> None:
        if self.request and self.closed:
            self.request.closed_by, self.request.closed_at = self.closed


class _Framing:
    """A check of whether the connection can serve another request after this response."""

    def __init__(self) -> None:
        self.head, self.length, self.tail = b"", 0, b""

    def feed(self, data: bytes) -> None:
        if b"\r\n\r\n" not in self.head:
            head, blank, data = (self.head + data).partition(b"\r\n\r\n")
            self.head = head + blank
        self.length += len(data)
        self.tail = (self.tail + data)[-5:]

    def reusable(self, request: Request) -> bool:
        lines = self.head.decode("latin-1").lower().split("\r\n")
        fields = {name: value.strip() for name, _, value in (row.partition(":") for row in lines)}
        if "close" in (fields.get("connection"), request.headers.get("connection")):
            return False
        if fields.get("transfer-encoding") == "chunked":
            return self.tail == b"0\r\n\r\n"
        return fields.get("content-length") == str(self.length)


def _read_request(reader: BufferedReader, connection: int) -> Request | None:
    """Return the next request, or None if the connection ends before it is complete.

    A body without Content-Length isn't supported.
    """
    line = reader.readline()
    if not line.endswith(b"\r\n"):
        return None
    method, path, _ = line.decode("latin-1").split()
    headers = {k.lower(): v for k, v in http.client.parse_headers(reader).items()}
    length = int(headers.get("content-length", 0))
    content = reader.read(length)
    if len(content) < length:
        return None
    return Request(connection, method, path, headers, content, time.monotonic())
