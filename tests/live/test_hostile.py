"""Tests of slow and hostile clients.

No client holds more than a bounded part of the server or for longer than a bounded time, and none
gets more responses than it sent requests.
"""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import requests

from tests.support import calls
from tests.support import fake as fp
from tests.support.calls import BEGUN, COMPLETIONS, EVENT, ask, begin_stream, complete, settled
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.path_variants import variants_of
from tests.support.raw_client import RawClient
from tests.support.sampling import sampled
from tests.support.servers import Server, fake_rows
from tests.support.watch import held

PATIENCE_S = 1.0
BODY_S = 4 * PATIENCE_S
HEADERS_S = 2
MAX_BODY = 8192
LATE_S = scaled(3)
"""The seconds by which an event may be late on a busy machine."""
AT_ONCE_S = scaled(0.05)
IDLE = 2000
HEAD = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def started(fake_process: FakeProvider) -> Iterator[Server]:
    env = {"SLUICE_CLIENT_TIMEOUT_S": str(PATIENCE_S), "SLUICE_MAX_BODY": str(MAX_BODY)}
    args = ("--keep-alive", str(HEADERS_S))
    with Server(fake_rows(fake_process.base_url), env=env, args=args) as server:
        yield server
        assert "Traceback" not in server.output()


@pytest.fixture
def server(started: Server, fake: FakeProvider) -> Server:
    """Return a server with short timeouts.

    It waits a second for a part of a body, four seconds for the whole body, and two for headers.
    """
    return started


def dribble(client: RawClient, data: bytes, every: float) -> threading.Thread:
    """Start a thread that sends byte by byte until the server closes the connection."""

    def run() -> None:
        with suppress(OSError):
            for byte in data:
                client.send(bytes([byte]))
                time.sleep(every)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def head(server: Server, *fields: str) -> bytes:
    return (HEAD + "".join(f"{f}\r\n" for f in (f"X-API-Key: {server.key}", *fields))).encode()


# Headers and bodies that don't end

LARGE, CHUNKED = "Content-Length: 100000", "Transfer-Encoding: chunked"


@pytest.mark.parametrize("every", sampled([None, 0.2], 0.2))
def test_a_client_that_never_ends_its_headers_is_disconnected(
    server: Server, every: float | None
) -> None:
    with server.client() as client:
        before = time.monotonic()
        if every:
            dribble(client, head(server) + b"X-More: " + b"a" * 1000, every)
        assert client.ended(HEADERS_S + LATE_S)
        assert time.monotonic() - before > HEADERS_S - 0.5


FRAMES = {
    "announced": ("Content-Length: 1000", b'{"prompt": "' + b"a" * 900),
    "chunked": ("Transfer-Encoding: chunked", b"3e8\r\n" + b'{"prompt": "' + b"a" * 900),
    "tiny-chunks": ("Transfer-Encoding: chunked", b"1\r\n{\r\n" + b"1\r\n \r\n" * 200),
    "chunk-size": ("Transfer-Encoding: chunked", b"0" * 900),
    "trailers": ("Transfer-Encoding: chunked", b"0\r\nX-Trailer: " + b"a" * 900),
}


@pytest.mark.parametrize("name", sampled(FRAMES, "chunked"))
def test_a_body_that_dribbles_for_too_long_answers_408(server: Server, name: str) -> None:
    # No single wait for a byte is too long, but the whole body takes too long.
    field, data = FRAMES[name]
    with server.client() as client:
        client.send(head(server, field) + b"\r\n")
        before = time.monotonic()
        dribble(client, data, 0.2)
        answer = client.read_head()
        took = answer.at - before
        assert (answer.status, client.json()["code"]) == (408, "request_timeout")
        assert BODY_S - 0.5 < took < BODY_S + PATIENCE_S + LATE_S
        assert client.ended()


def test_a_slow_body_that_arrives_in_time_is_accepted(server: Server, fake: FakeProvider) -> None:
    fake.default(fp.answer(fp.body("x")))
    data = b'{"model": "fake/m", "prompt": "Say it"}'
    with server.client() as client:
        client.send(head(server, f"Content-Length: {len(data)}") + b"\r\n")
        dribble(client, data, 0.05).join()
        assert client.read_head().status == 200
        assert client.json()["data"] == "x"
        assert complete(server)["data"] == "x"


def test_a_chunked_body_beyond_the_limit_answers_413(server: Server) -> None:
    chunk = b"1000\r\n" + b"a" * 4096 + b"\r\n"
    with server.client() as client:
        client.send(head(server, "Transfer-Encoding: chunked") + b"\r\n")
        for _ in range(5):
            client.send(chunk)
        client.send(b"0\r\n\r\n")
        assert client.read_head().status == 413
        assert client.json()["code"] == "request_too_large"


@pytest.mark.parametrize("field", sampled([LARGE, CHUNKED], CHUNKED))
def test_the_server_does_not_wait_for_the_rest_of_a_too_large_body(
    server: Server, field: str
) -> None:
    with server.client() as client:
        before = time.monotonic()
        large = b"3000\r\n" + b"a" * 0x3000 + b"\r\n3000\r\n"
        client.send(head(server, field) + b"\r\n" + (large if "chunked" in field else b""))
        dribble(client, b"a" * 1000, 0.2)
        assert client.read_head().status == 413
        client.json()
        assert client.ended()
        assert time.monotonic() - before < 10 + PATIENCE_S + LATE_S


@pytest.mark.parametrize("field", sampled(["Content-Length: 1000", CHUNKED], CHUNKED))
def test_the_slow_body_of_an_unauthorized_call_is_cut_off(server: Server, field: str) -> None:
    with server.client() as client:
        start = b"3e8\r\n" if "chunked" in field else b""
        client.send(head(server, field, "Authorization: Bearer wrong") + b"\r\n" + start)
        before = time.monotonic()
        dribble(client, b"a" * 900, 0.2)
        assert client.read_head().status == 401
        client.json()
        assert client.ended()
        assert time.monotonic() - before < 6 + PATIENCE_S + LATE_S


# Responses that aren't read


def test_a_client_that_reads_too_slowly_is_dropped_with_bounded_memory(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([*BEGUN, fp.repeat(EVENT.data * 100)])
    [worker] = server.worker_pids()
    with server.client(rcvbuf=1) as client:
        stream_id = begin_stream(client)
        resident = calls.resident(worker)
        stopping = threading.Event()
        reading = threading.Thread(target=read_slowly, args=(client, stopping))
        reading.start()
        [request] = fake.wait_closed()
        stopping.set()
        reading.join()
        assert request.closed_by == "peer"
        assert calls.resident(worker) - resident < 30_000_000
    assert settled(server, stream_id)["end_reason"] == "client_gone"


def read_slowly(client: RawClient, stopping: threading.Event) -> None:
    with suppress(OSError):
        while not stopping.wait(0.2):
            client.sock.recv(1)


def test_a_stopped_stream_that_nobody_reads_is_closed(server: Server, fake: FakeProvider) -> None:
    # The call has ended while the thread that writes its response is blocked in a send.
    [worker] = server.worker_pids()
    fake.script([*BEGUN, fp.repeat(EVENT.data * 100)])
    with server.client(rcvbuf=1) as client:
        stream_id = begin_stream(client)
        calls.wait_blocked(fake)
        assert calls.stop(server, stream_id).status == 200
        server.wait(lambda: not held(worker, server.port).clients, PATIENCE_S + LATE_S)
        calls.wait_active(server, 0)


@pytest.mark.parametrize("rest", [fp.hold(), fp.repeat(b"X: y\r\n", 0.02)])
def test_a_provider_that_does_not_end_its_body_is_closed_after_the_stream(
    server: Server, fake: FakeProvider, rest: fp.Step
) -> None:
    """Its idle timeout of a minute doesn't hold: the completion is complete."""
    end = [*map(fp.event, fp.chunks(["a"])), fp.event("[DONE]"), fp.send(b"0\r\n")]
    fake.script([*BEGUN, *end, rest])
    with server.client() as client:
        begin_stream(client)
        assert calls.kinds(list(client.frames()))[-1] == "DONE"
        ended = time.monotonic()
        [request] = fake.wait_closed()
        assert time.monotonic() - ended < LATE_S
    assert request.closed_by == "peer"


def test_thousands_of_idle_connections_do_not_delay_calls(
    server: Server, fake: FakeProvider
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fake.default(fp.answer(fp.body("x")))
    with ExitStack() as stack:
        for number in range(IDLE):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            if number % 2:
                sock.sendall(HEAD.encode()[: number % 60])
        before = time.monotonic()
        assert server.is_ready()
        assert complete(server)["data"] == "x"
        with server.client() as client:
            begin_silent(fake, client)
        assert time.monotonic() - before < LATE_S


def begin_silent(fake: FakeProvider, client: RawClient) -> None:
    fake.script([*BEGUN, fp.hold()])
    begin_stream(client)


# Requests that a proxy may parse differently

OTHER = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
"""The smuggled request, which must not get a response."""
SMUGGLED = {
    "both-lengths": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two-lengths": "Content-Length: 5\r\nContent-Length: 0\r\n\r\nhello",
    "a-list-of-lengths": "Content-Length: 0, 5\r\n\r\nhello",
    "a-signed-length": "Content-Length: +0\r\n\r\n",
    "a-negative-length": "Content-Length: -1\r\n\r\n",
    "a-hexadecimal-length": "Content-Length: 0x0\r\n\r\n",
    "an-underscored-length": "Content-Length: 1_0\r\n\r\n",
    "a-length-of-another-script": "Content-Length: \u0660\r\n\r\n",
    "folded": "X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    "a-folded-length": "Content-Length: 0\r\n 5\r\n\r\nhello",
    "a-folded-coding": "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a-space-before-the-colon": "Transfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n",
    "a-space-within-a-name": "Content Length: 0\r\n\r\n",
    "an-unknown-coding": "Transfer-Encoding: cow\r\n\r\n0\r\n\r\n",
    "an-odd-coding": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked-twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-and-more": "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "a-bare-line-feed": "X-A: b\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    "a-bare-return": "X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
    "a-nul": "X-A: b\0c\r\nContent-Length: 0\r\n\r\n",
    "no-colon": "Content-Length 0\r\n\r\n",
    "a-chunk-of-negative-size": "Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n0\r\n\r\n",
    "a-chunk-of-prefixed-size": "Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "a-chunk-of-padded-size": "Transfer-Encoding: chunked\r\n\r\n 2\r\n{}\r\n0\r\n\r\n",
    "a-chunk-with-more-than-its-size": "Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "a-chunk-size-ended-by-a-line-feed": "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    "a-return-in-an-extension": "Transfer-Encoding: chunked\r\n\r\n2;a\rb\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_smuggled_request_is_refused_and_never_answered(
    server: Server, fake: FakeProvider, name: str
) -> None:
    with server.client() as client:
        client.send(head(server) + SMUGGLED[name].encode() + OTHER.encode() * 2)
        answers = everything(client)
    assert answers.count(b"HTTP/1.1 ") <= 1, answers
    assert b'"status"' not in answers.replace(b'"status_code"', b"")
    assert not answers or answers.split()[1] in (b"400", b"501"), answers
    assert fake.requests == []


def test_two_pipelined_requests_get_two_responses(server: Server) -> None:
    # This shows that the test above can fail.
    with server.client() as client:
        client.send(head(server) + b"Content-Length: 2\r\n\r\n{}" + OTHER.encode())
        answers = everything(client)
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b'"status":"ok"' in answers.replace(b" ", b"")


def test_no_spelling_of_the_path_shows_the_metrics_to_other_origins(server: Server) -> None:
    shared = []
    for target in [*variants_of("/metrics"), "/x/metrics"]:
        with server.client() as client:
            more = "Origin: https://app.example\r\nSCRIPT_NAME: /x\r\nConnection: close"
            client.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n{more}\r\n\r\n".encode())
            answer = everything(client)
        shown = b"sluice_streams_active" in answer or b" 30" in answer[:12]
        if shown and b"access-control" in answer.partition(b"\r\n\r\n")[0].lower():
            shared.append(target)
    assert shared == []


def everything(client: RawClient) -> bytes:
    """Read until the server closes the connection, which it does when the connection is idle."""
    found = b""
    with suppress(ConnectionError):
        while data := client.sock.recv(65536):
            found += data
    return found


# Header injection

BREAKS = ("\r\n", "\n", "\r", "\0", "\x85", "\u2028", "\r\n\r\n")
NAMES = ("stream_id", "model", "provider", "fallbacks", "additional_params")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", NAMES)
def test_line_breaks_in_body_fields_inject_no_header(
    server: Server, fake: FakeProvider, field: str, *, stream: bool
) -> None:
    fake.default(fp.sse(fp.chunks(["x"])) if stream else fp.answer(fp.body("x")))
    for text in BREAKS:
        evil = f"fake/m{text}X-Evil: 1"
        value: object = {"fallbacks": [evil], "additional_params": {evil: 1}}.get(field, evil)
        with server.client() as client:
            ask(client, stream=stream, **{field: value})
            assert_unharmed(client)


@pytest.mark.parametrize("name", ["X-Request-ID", "X-Stream-ID"])
def test_line_breaks_in_id_headers_inject_no_header(
    server: Server, fake: FakeProvider, name: str
) -> None:
    fake.default(fp.sse(fp.chunks(["x"])))
    body = b'{"model": "fake/m", "prompt": "x", "stream": true}'
    for text in (*BREAKS[:4], "\x85", "%0d%0a", "\t", "\u010d\u010a"):
        fields = f"{name}: a{text}X-Evil: 1\r\nContent-Length: {len(body)}\r\n\r\n"
        with server.client() as client:
            client.send(head(server) + fields.encode("utf-8") + body)
            assert_unharmed(client)


def assert_unharmed(client: RawClient) -> None:
    answer = client.read_head()
    assert answer.status < 500
    assert "x-evil" not in answer.headers
    assert not any("\r" in v or "\n" in v or "Evil" in v for v in answer.headers.values())
    assert b"HTTP/1.1" not in client.body()


# Long answers

LONG = {
    "an echo": {"prompt": "word " * 160_000, "n": 5, "echo": True},
    "an echo of escapes": {"prompt": "\x01" * 150_000, "n": 26, "echo": True},
    "an echo of a list": {"prompt": ["word " * 100] * 400, "n": 5, "echo": True},
    "many choices": {"prompt": ["x"] * 16, "n": 128},
}


@pytest.fixture(scope="module")
def spacious() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.mark.parametrize("stream", sampled([False, True], True))
@pytest.mark.parametrize("name", sampled(LONG, "an echo", "many choices"))
def test_a_long_answer_does_not_hold_up_other_requests(
    spacious: Server, name: str, stream: bool
) -> None:
    """A busy machine also delays requests, so the best of several tries counts."""
    body = {"model": "local/pydoc", "max_tokens": 1, "stream": stream, **LONG[name]}
    headers = {"X-API-Key": spacious.key}
    longest = []
    for _ in range(30):
        times: list[float] = []
        done = threading.Event()

        def watch(times: list[float] = times, done: threading.Event = done) -> None:
            with requests.Session() as session:
                while not done.is_set():
                    began = time.perf_counter()
                    assert session.get(f"{spacious.url}/health", timeout=HANG_S).ok
                    times.append(time.perf_counter() - began)

        watcher = threading.Thread(target=watch)
        watcher.start()
        url = f"{spacious.url}/v1/completions"
        answer = requests.post(url, json=body, headers=headers, timeout=HANG_S)
        done.set()
        watcher.join()
        assert answer.status_code == 200
        longest.append(max(times))
        if longest[-1] < AT_ONCE_S:
            return
    pytest.fail(f"/health took {min(longest):.3f} s")
