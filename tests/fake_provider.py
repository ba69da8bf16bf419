"""A fake upstream provider that tests drive, at the level of raw sockets.

It runs in a process of its own, so that a busy test doesn't distort its times; all of them are
time.monotonic(), which is one clock for all processes on Linux. A test writes scripts, lists of
steps; each request takes the next script that fits. The process ends when its control pipe does,
so it never outlives the tests, however they end.

Rules that hold here: standard library only; loopback only; one thread runs a connection, and one
thread watches all of them, so a peer that hangs up is seen at once whatever the script does. A
script that ends leaves the connection open only after a complete answer that says its own length;
otherwise it closes, which truncates the answer. A request without a script is answered with 400.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias, cast

ROOT = Path(__file__).resolve().parent.parent
LONGER_THAN_ANY_TEST_S = 3600.0
CONTROL_TIMEOUT_S = 10.0

Fault: TypeAlias = Literal["reset", "mute"]
By: TypeAlias = Literal["peer", "us"]
Outcome: TypeAlias = Literal["active", "finished", "aborted"]


# Steps


class Step(NamedTuple):
    """One thing that a script does. seconds: how long, or how long between."""

    kind: str
    data: bytes = b""
    seconds: float = 0.0
    name: str = ""


def send(data: bytes) -> Step:
    return Step("send", data)


def drip(data: bytes, every: float) -> Step:
    """Send byte by byte."""
    return Step("drip", data, every)


def repeat(data: bytes, every: float = 0.0) -> Step:
    """Send the same again and again, until the peer closes."""
    return Step("repeat", data, every)


def sleep(seconds: float) -> Step:
    return Step("sleep", seconds=seconds)


def wait_closed(timeout: float) -> Step:
    """Wait for the peer to close, which ends the script; else go on after the timeout."""
    return Step("sleep", seconds=timeout)


def hold() -> Step:
    """Never go on."""
    return Step("sleep", seconds=LONGER_THAN_ANY_TEST_S)


def gate(name: str) -> Step:
    """Go on when the test calls `fake.open(name)`."""
    return Step("gate", name=name)


def close() -> Step:
    """Close with a FIN."""
    return Step("close")


def reset() -> Step:
    """Close with a RST."""
    return Step("reset")


# Answers, which are lists of steps


def head(status: int = 200, headers: Mapping[str, str] | None = None) -> Step:
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return send("\r\n".join([*lines, "", ""]).encode("latin-1"))


def half_headers() -> list[Step]:
    """An answer that stops within its headers."""
    return [send(b"HTTP/1.1 200 OK\r\nContent-Ty"), hold()]


def answer(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> list[Step]:
    """A whole answer; content: bytes as they are, anything else as JSON."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    base = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    return [head(status, base | dict(headers or {})), send(data)]


def error(
    status: int, content: object = None, headers: Mapping[str, str] | None = None
) -> list[Step]:
    """An error answer, in OpenAI's shape unless content is given."""
    if content is None:
        content = {"error": {"message": f"fake {status}", "type": "fake", "code": "fake"}}
    return answer(content, status, headers)


def event(frame: object, *, chunked: bool = True) -> Step:
    """One SSE frame. bytes: as they are; str: the data line's text; anything else: its JSON."""
    if not isinstance(frame, bytes):
        text = frame if isinstance(frame, str) else json.dumps(frame, separators=(",", ":"))
        frame = f"data: {text}\n\n".encode()
    return send(b"%x\r\n%s\r\n" % (len(frame), frame) if chunked else frame)


def last_chunk() -> Step:
    return send(b"0\r\n\r\n")


def sse(
    frames: Iterable[object],
    *,
    interval: float = 0.0,
    done: bool = True,
    chunked: bool = True,
    complete: bool = True,
    headers: Mapping[str, str] | None = None,
) -> list[Step]:
    """A stream. interval: seconds between frames. done: with [DONE]. chunked: else the end of the
    connection is its end. complete: with the last chunk; without it more steps may follow."""
    base = {"Content-Type": "text/event-stream"}
    base |= {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"}
    steps = [head(200, base | dict(headers or {}))]
    for number, frame in enumerate(frames):
        if interval and number:
            steps.append(sleep(interval))
        steps.append(event(frame, chunked=chunked))
    if done:
        steps.append(event("[DONE]", chunked=chunked))
    return [*steps, last_chunk()] if chunked and complete else steps


def chunks(
    texts: Iterable[str],
    *,
    chat: bool = False,
    finish: str | None = "stop",
    usage: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
    """A stream's frames, legacy text_completion or chat.completion.chunk. finish None: no last
    chunk with a finish_reason. usage: (prompt, completion) tokens, in a chunk of its own."""
    kind = "chat.completion.chunk" if chat else "text_completion"
    parts = [_choice({"delta": {"content": t}} if chat else {"text": t}, None) for t in texts]
    if finish is not None:
        parts.append(_choice({"delta": {}} if chat else {"text": ""}, finish))
    made = [_object(kind, [part], None) for part in parts]
    return [*made, _object(kind, [], usage)] if usage is not None else made


def body(
    text: str,
    *,
    chat: bool = False,
    finish: str = "stop",
    usage: tuple[int, int] | None = (3, 5),
) -> dict[str, Any]:
    """A whole answer's JSON, legacy or chat."""
    part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    return _object(kind, [_choice(part, finish)], usage)


def _choice(part: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, **part, "logprobs": None, "finish_reason": finish}


def _object(kind: str, choices: list[Any], usage: tuple[int, int] | None) -> dict[str, Any]:
    made = {"id": "cmpl-fake", "object": kind, "created": 1760000000, "model": "fake-1"}
    counted: dict[str, Any] = {}
    if usage is not None:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        counted = {"usage": dict(zip(names, (*usage, sum(usage)), strict=True))}
    return {**made, "choices": choices, **counted}


@contextlib.contextmanager
def blackhole() -> Iterator[str]:
    """The origin of a host that never accepts: a connect to it hangs, as its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


# What the fake saw


@dataclass
class Request:
    """closed_at, closed_by: the end of the connection, noted on the last request that it carried.
    outcome: aborted when the peer closed before the script's end."""

    connection: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    received_at: float
    first_byte_at: float | None = None
    finished_at: float | None = None
    closed_at: float | None = None
    closed_by: By | None = None
    outcome: Outcome = "active"
    bytes_sent: int = 0

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Counts(NamedTuple):
    """connections: accepted so far. open: of these, now. The others count requests."""

    connections: int
    open: int
    received: int
    active: int
    finished: int
    aborted: int
    closed: int


# The test's side


class FakeProvider:
    """The fake as tests see it: `with FakeProvider.start() as fake: ...`"""

    def __init__(self, process: subprocess.Popen[bytes], control: Connection, scheme: str) -> None:
        self._process, self._pipe, self._lock = process, control, threading.Lock()
        self.port = int(self._control("port"))
        self.origin = f"{scheme}://127.0.0.1:{self.port}"
        self.base_url = f"{self.origin}/v1"

    @classmethod
    def start(cls, tls: Path | None = None) -> Self:
        """tls: a PEM file with a private key and its certificate chain."""
        ours, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            command = f"from tests.fake_provider import serve; serve({fd}, {str(tls or '')!r})"
            # A process group of its own: Ctrl-C is for the tests, which then stop it.
            process = subprocess.Popen(
                [sys.executable, "-c", command], cwd=ROOT, pass_fds=[fd], process_group=0
            )
        return cls(process, ours, "https" if tls else "http")

    def stop(self) -> None:
        self._pipe.close()
        try:
            self._process.wait(CONTROL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(CONTROL_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def script(self, steps: Sequence[Step], path: str | None = None) -> None:
        """Answer the next request (to that path) so."""
        self._control("script", steps, path)

    def default(self, steps: Sequence[Step]) -> None:
        """Answer requests that no script waits for so."""
        self._control("default", steps)

    def next_connection(self, fault: Fault) -> None:
        """Spoil the next new connection before a byte: reset it at once, or never read from it
        (once a mute one's buffers are full, its peer's FIN waits behind the data, unseen)."""
        self._control("fault", fault)

    def open(self, name: str) -> None:
        """Let scripts pass the gate of that name, now and later."""
        self._control("open", name)

    def reset(self) -> None:
        """Forget scripts, gates and requests, and close all connections."""
        self._control("reset")

    @property
    def requests(self) -> list[Request]:
        """In the order in which they came, as they are now."""
        return cast(list[Request], self._control("requests"))

    @property
    def counts(self) -> Counts:
        return cast(Counts, self._control("counts"))

    def wait_requests(self, n: int = 1, timeout: float = 5.0) -> list[Request]:
        """Wait until n requests have arrived."""
        return self.wait(lambda counts: counts.received >= n, timeout)

    def wait_closed(self, n: int = 1, timeout: float = 5.0) -> list[Request]:
        """Wait until the connections of n requests are closed."""
        return self.wait(lambda counts: counts.closed >= n, timeout)

    def wait(self, condition: Callable[[Counts], bool], timeout: float = 5.0) -> list[Request]:
        """Wait for the counts to be so; the requests by then."""
        deadline = time.monotonic() + timeout
        while not condition(counts := self.counts):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout:g} s: {counts}")
            time.sleep(0.005)
        return self.requests

    def _control(self, *command: object) -> Any:
        with self._lock:
            self._pipe.send(command)
            if not self._pipe.poll(CONTROL_TIMEOUT_S):
                raise TimeoutError("the fake provider's process doesn't answer")
            return self._pipe.recv()


# The fake's side


def serve(control_fd: int, tls: str) -> None:
    """The process: accept and watch in threads, and obey until the control pipe ends."""
    server = _Server(tls)
    for work in (server.accept, server.watch):
        threading.Thread(target=work, daemon=True).start()
    with Connection(control_fd) as control, contextlib.suppress(EOFError, OSError):
        while True:
            command, *arguments = control.recv()
            control.send(getattr(server, f"do_{command}")(*arguments))


class _Server:
    """lock guards all of it, and is notified when a gate opens or a peer goes."""

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
                    # The event may be that of an earlier connection with the same number.
                    if fd in self.connections and _hung_up(fd):
                        self.epoll.unregister(fd)
                        self.connections[fd].end("peer", at)

    def begin(self, connection: _Connection, request: Request) -> Sequence[Step]:
        """Note a request and choose its script."""
        with self.lock:
            self.requests.append(request)
            connection.request = request
            connection.stamp()
            for number, (steps, path) in enumerate(self.scripts):
                if path in (None, request.path):
                    del self.scripts[number]
                    return steps
            return self.fallback or error(400, f"no script for {request.method} {request.path}")

    def do_port(self) -> int:
        return int(self.listener.getsockname()[1])

    def do_script(self, steps: Sequence[Step], path: str | None) -> None:
        with self.lock:
            self.scripts.append((steps, path))

    def do_default(self, steps: Sequence[Step]) -> None:
        self.fallback = steps

    def do_fault(self, fault: Fault) -> None:
        with self.lock:
            self.faults.append(fault)

    def do_open(self, name: str) -> None:
        with self.lock:
            self.opened.add(name)
            self.lock.notify_all()

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
    """One connection, run by a thread of its own, which alone closes its socket."""

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
            pass  # the peer has gone, or its handshake failed
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
            raise ConnectionError("closed while the script went on")

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
        """Note the end, wake the script, and free it from a send that waits."""
        with self.server.lock:
            self.closed = self.closed or (by, at)
            self.stamp()
            self.gone.set()
            self.server.lock.notify_all()
            with contextlib.suppress(OSError):  # not SSLSocket's own, which drops its state
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self, *, rst: bool = False) -> None:
        with self.server.lock:
            if self.server.connections.get(self.fd) is not self:
                return  # closed already
            del self.server.connections[self.fd]
            by: By = "peer" if _hung_up(self.fd) else "us"  # the watcher may be a moment behind
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
    """Whether what was sent is a complete answer after which the connection can serve another."""

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
    """The next request, whose body has a Content-Length or is none; None where it breaks off."""
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
