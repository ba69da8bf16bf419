"""Tests of relaying calls in a real server.

Clients disconnect or don't read, providers fail or fall silent, deadlines pass, and bodies and
headers are invalid.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support import calls
from tests.support import fake as fp
from tests.support.calls import (
    BEGUN,
    EVENT,
    ask,
    begin_stream,
    closed_after,
    complete,
    kinds,
    settled,
)
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.raw_client import Frame, RawClient
from tests.support.servers import UNTROUBLED, Server, fake_rows, make_key

GONE_WITHIN_S = scaled(1.5)
KEEPALIVE_S = scaled(1)
LIMITS_S = {"connect": scaled(0.7), "first_event": scaled(1), "idle": scaled(1), "total": scaled(3)}
MAX_BODY = 8192
MAX_STREAMS = 9
HELD = [*BEGUN, fp.hold()]
CHAT, LEGACY = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def quick_server(
    fake_process: FakeProvider, tls_fake_process: FakeProvider, ca_bundle: str
) -> Iterator[Server]:
    rows = fake_rows(fake_process.base_url)
    rows += calls.toml_row("tls", tls_fake_process.base_url, ca_bundle=ca_bundle)
    rows += calls.toml_row("refused", "http://127.0.0.1:1/v1")
    env = {
        "SLUICE_KEEPALIVE_S": str(KEEPALIVE_S),
        "SLUICE_FIRST_EVENT_WAIT_S": "1",
        "SLUICE_CLIENT_TIMEOUT_S": "2",
        "SLUICE_MAX_BODY": str(MAX_BODY),
        "SLUICE_MAX_STREAMS": str(MAX_STREAMS),
        "SLUICE_MAX_STREAMS_PER_KEY": str(MAX_STREAMS),
        "SLUICE_QUEUE": "0",
    }
    with Server(rows, env=UNTROUBLED | env) as server:
        yield server
        assert "Traceback" not in server.output()


@pytest.fixture
def server(quick_server: Server, fake: FakeProvider) -> Server:
    """Return a server with short intervals.

    It holds back a status line for a second, sends a comment after a second of silence, and waits
    two seconds for a client that doesn't read. Connections to its provider `refused` fail.
    """
    return quick_server


@pytest.fixture(scope="module")
def impatient_server(fake_process: FakeProvider) -> Iterator[Server]:
    env = {
        **{f"SLUICE_{phase.upper()}_TIMEOUT_S": str(limit) for phase, limit in LIMITS_S.items()},
        "SLUICE_CLIENT_TIMEOUT_S": "1",
        "SLUICE_FIRST_EVENT_WAIT_S": str(HANG_S),  # longer than all limits on any machine
    }
    with fp.blackhole() as dead:
        rows = fake_rows(fake_process.base_url) + calls.toml_row("dead", dead)
        with Server(rows, env=UNTROUBLED | env) as server:
            yield server
            assert "Traceback" not in server.output()


@pytest.fixture
def impatient(impatient_server: Server, fake: FakeProvider) -> Server:
    """Return a server with the timeouts of LIMITS_S. Connections to its provider `dead` hang."""
    return impatient_server


# Clients that disconnect


def pipeline_and_close(client: RawClient) -> None:
    """Send another request and a FIN. The server reads neither while the call is active."""
    client.request("GET", "/health")
    client.half_close()


HANG_UPS: dict[str, Callable[[RawClient], None]] = {
    "close": RawClient.close,
    "reset": RawClient.reset,
    "half_close": RawClient.half_close,
    "pipeline_and_close": pipeline_and_close,
}
UNDER_WAY: dict[str, tuple[bool, Sequence[fp.Step]]] = {
    "flowing": (True, [*BEGUN, fp.repeat(EVENT.data, 0.05)]),
    "silent": (True, HELD),
    "before-headers": (True, [fp.hold()]),
    "before-text": (True, [*fp.sse([], done=False, complete=False), fp.hold()]),
    "unary": (False, [fp.hold()]),
    "unary-body": (False, [fp.head(200, {"Content-Length": "9"}), fp.send(b"{"), fp.hold()]),
}


@pytest.mark.parametrize("how", HANG_UPS)
def test_a_client_hang_up_closes_the_upstream_in_any_phase(
    server: Server, fake: FakeProvider, how: str
) -> None:
    with ExitStack() as stack:
        clients = []
        for number, (name, (stream, steps)) in enumerate(UNDER_WAY.items(), 1):
            clients.append(stack.enter_context(server.client()))
            fake.script(steps)
            ask(clients[-1], stream=stream, stream_id=f"{how}-{name}")
            fake.wait_requests(number)
        time.sleep(0.2)
        before = time.monotonic()
        for client in clients:
            HANG_UPS[how](client)
        requests = fake.wait_closed(len(clients))
        delays = [closed_after(request, before) for request in requests]
        assert min(delays) >= 0
        assert max(delays) < GONE_WITHIN_S
        if how.startswith("half"):
            assert all(client.ended() for client in clients)
    for name in UNDER_WAY:
        line = settled(server, f"{how}-{name}")
        assert (line["end_reason"], line["status"]) == ("client_gone", 499)
    calls.wait_active(server, 0)


def test_a_client_that_hangs_up_ends_local_work(server: Server) -> None:
    with server.client() as client:
        stream_id = begin_stream(client, model="local/pydoc", additional_params={"n": 128})
    before = time.monotonic()
    calls.wait_active(server, 0)
    assert time.monotonic() - before < GONE_WITHIN_S
    assert settled(server, stream_id)["end_reason"] == "client_gone"


def test_a_client_that_does_not_read_is_dropped_with_bounded_memory(
    server: Server, fake: FakeProvider
) -> None:
    [worker] = server.worker_pids()
    fake.script([*BEGUN, fp.repeat(EVENT.data * 100)])
    with server.client(rcvbuf=4096) as client:
        stream_id = begin_stream(client)
        before = calls.resident(worker)
        blocked_at = calls.wait_blocked(fake)
        assert calls.resident(worker) - before < 30_000_000
        [request] = fake.wait_closed()
        assert request.bytes_sent - blocked_at < 4_000_000  # the kernel buffers a little more
        assert request.closed_by == "peer"
        assert settled(server, stream_id)["end_reason"] == "client_gone"


def test_a_hang_up_of_a_client_that_does_not_read_closes_the_upstream(
    server: Server, fake: FakeProvider
) -> None:
    fake.default([*BEGUN, fp.repeat(EVENT.data * 100)])
    with ExitStack() as stack:
        clients = {how: stack.enter_context(server.client(rcvbuf=4096)) for how in HANG_UPS}
        for how, client in clients.items():
            begin_stream(client, stream_id=f"{how}-unread")
        calls.wait_blocked(fake)
        before = time.monotonic()
        for how, client in clients.items():
            HANG_UPS[how](client)
        requests = fake.wait_closed(len(clients))
        assert max(closed_after(request, before) for request in requests) < GONE_WITHIN_S
        for how in clients:
            assert settled(server, f"{how}-unread")["end_reason"] == "client_gone"


def test_a_client_that_reads_slowly_gets_the_whole_stream(
    server: Server, fake: FakeProvider
) -> None:
    # The whole stream takes longer than a client may block, but no single read does.
    texts = ["x" * 20_000] * 200
    fake.script(fp.sse(fp.chunks(texts)))
    with server.client(rcvbuf=4096) as client:
        ask(client, stream=True)
        client.read_head()
        size, until = 0, time.monotonic() + 2.5
        for chunk in client.chunks():
            size += len(chunk)
            if time.monotonic() < until:
                time.sleep(0.05)
    assert size > 4_000_000
    assert chunk.endswith(b"data: [DONE]\n\n")


# Silence, and the status line


def test_keep_alive_comments_are_sent_only_in_silence(server: Server, fake: FakeProvider) -> None:
    rest = [*map(fp.event, fp.chunks(["!"])), fp.last_chunk()]
    flow = [step for _ in range(6) for step in (EVENT, fp.sleep(0.25))]
    with server.client() as late, server.client() as pausing, server.client() as flowing:
        fake.script([fp.gate("on"), *fp.sse(fp.chunks(["late"]))])
        before = time.monotonic()
        ask(late, stream=True)
        fake.wait_requests(1)
        fake.script([*BEGUN, fp.gate("on"), *rest])
        begin_stream(pausing)
        fake.script([*BEGUN, *flow, *rest])
        begin_stream(flowing)
        head = late.read_head()
        assert head.status == 200
        assert 0.9 < head.at - before < scaled(3)
        frames = [late.frame() for _ in range(3)]
        assert kinds(frames) == ["usage_start", "comment", "comment"]
        assert frames[2].text == ": keep-alive"
        assert 0.5 < frames[2].at - frames[1].at < scaled(2.5)
        assert kinds([pausing.frame() for _ in range(2)]) == ["comment", "comment"]
        fake.open("on")
        for client in (late, pausing):
            ending = ["content", "finish", "usage_final", "DONE"]
            assert without_comments(list(client.frames())) == ending
        assert kinds(list(flowing.frames())) == ["content"] * 7 + ending[1:]


def without_comments(frames: Sequence[Frame]) -> list[str]:
    return [kind for kind in kinds(frames) if kind != "comment"]


def test_a_refusal_within_the_first_event_wait_keeps_its_status(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([fp.sleep(0.5), *fp.error(429, headers={"Retry-After": "7"})])
    with server.client() as client:
        ask(client, stream=True)
        head, answer = client.read_head(), client.json()
    assert (head.status, head.headers["retry-after"]) == (429, "7")
    assert (answer["code"], answer["success"]) == ("rate_limited", False)
    assert head.headers["content-type"] == "application/json"


FAILURES = {
    "refused": [fp.gate("on"), *fp.error(500)],
    "dies_before_headers": [fp.gate("on"), fp.close()],
    "dies_after_headers": [*fp.sse([], done=False, complete=False), fp.gate("on"), fp.close()],
    "dies_after_text": [*BEGUN, fp.gate("on"), fp.close()],
    "is_reset": [*BEGUN, fp.gate("on"), fp.reset()],
    "ends_too_early": [*BEGUN, fp.gate("on"), fp.last_chunk()],
    "sends_an_error": [*BEGUN, fp.gate("on"), fp.event({"error": {"message": "oh", "code": 500}})],
}


def test_a_failure_after_the_status_line_is_an_error_frame(
    server: Server, fake: FakeProvider
) -> None:
    with ExitStack() as stack:
        clients = {}
        for number, (name, steps) in enumerate(FAILURES.items(), 1):
            clients[name] = stack.enter_context(server.client())
            fake.script(steps)
            ask(clients[name], stream=True)
            fake.wait_requests(number)
        for client in clients.values():
            assert client.read_head().status == 200
        fake.open("on")
        for name, client in clients.items():
            frames = list(client.frames())
            assert_failed(frames, name)
            assert frames[-1].json["code"] == "provider_error", name


def assert_failed(frames: Sequence[Frame], name: str = "") -> None:
    found = without_comments(frames)
    assert found[0] == "usage_start" or found[0] == "content", name
    assert found[-2:] == ["usage_final", "error"], name
    assert not {"finish", "DONE", "error"} & set(found[:-1]), name
    error = frames[-1]
    assert error.event == "error"
    assert error.json["request_id"] in error.json["error"]


# Frames


def test_frames_are_written_whole_and_several_at_a_time(server: Server, fake: FakeProvider) -> None:
    texts = [f"{number} " for number in range(500)]
    data = b"".join(step.data for step in [*map(fp.event, fp.chunks(texts)), fp.event("[DONE]")])
    fake.script([*fp.sse([], done=False, complete=False), fp.send(data), fp.last_chunk()])
    with server.client() as client:
        ask(client, stream=True)
        client.read_head()
        chunks = list(client.chunks())
    assert all(chunk.endswith(b"\n\n") for chunk in chunks)
    frames = [
        json.loads(part[6:]) for part in b"".join(chunks).split(b"\n\n") if b'"content"' in part
    ]
    assert [frame["data"] for frame in frames] == texts
    assert len(chunks) < 250


def test_frames_that_arrive_in_one_chunk_leave_in_few_writes(
    server: Server, fake: FakeProvider
) -> None:
    raw = b"".join(f"data: {json.dumps(frame)}\n\n".encode() for frame in fp.chunks(["a"] * 200))
    fake.script([*fp.sse([], done=False, complete=False), fp.event(raw), fp.last_chunk()])
    with server.client() as client:
        ask(client, stream=True)
        client.read_head()
        frames = list(client.frames())
    assert kinds(frames).count("content") == 200
    assert len({frame.write for frame in frames}) <= 4


def test_line_separators_are_escaped(server: Server, fake: FakeProvider) -> None:
    text = "a\u2028b\u2029c\u0085d\r\ne\u000bf"
    fake.script(fp.sse(fp.chunks([text])))
    with server.client() as client:
        ask(client, stream=True)
        client.read_head()
        body = client.body().decode()
    [line] = [line for line in body.splitlines() if '"content"' in line]
    assert json.loads(line.removeprefix("data: "))["data"] == text


# Fallbacks


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", ["500", "429", "broken", "cut_off", "refused"])
def test_a_fallback_serves_when_the_first_provider_fails(
    server: Server, fake: FakeProvider, first: str, *, stream: bool
) -> None:
    fake.script(
        {
            "500": fp.error(500),
            "429": fp.error(429),
            "broken": [fp.close()],
            "cut_off": [fp.head(200, {"Content-Length": "9"}), fp.close()],
            "refused": [],
        }[first],
        path=LEGACY,
    )
    model = "refused/m" if first == "refused" else "fake/m"
    assert served_by(server, fake, model, stream=stream) == "fakechat"


def served_by(server: Server, fake: FakeProvider, model: str, *, stream: bool) -> str:
    """Make a call with the fallback `fakechat`. Return the provider that served it."""
    good = fp.sse(fp.chunks(["hi"], chat=True)) if stream else fp.answer(fp.body("hi", chat=True))
    fake.script(good, path=CHAT)
    if not stream:
        answer = complete(server, model=model, fallbacks=["fakechat/other"])
        assert (answer["data"], answer["model"]) == ("hi", "other")
        return str(answer["provider"])
    with server.client() as client:
        ask(client, stream=True, model=model, fallbacks=["fakechat/other"])
        assert client.read_head().status == 200
        start, content, *_ = client.frames()
    assert (content.json["data"], start.json["model"]) == ("hi", "other")
    assert start.json["provider"] == content.json["provider"]
    return str(content.json["provider"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_fallback_serves_when_the_first_provider_is_silent(
    impatient: Server, fake: FakeProvider, *, stream: bool
) -> None:
    fake.script([fp.hold()], path=LEGACY)
    assert served_by(impatient, fake, "fake/m", stream=stream) == "fakechat"
    assert fake.wait_closed()[0].closed_by == "peer"


def test_a_fallback_serves_after_the_status_went_out(server: Server, fake: FakeProvider) -> None:
    fake.script([fp.gate("on"), *fp.error(500)], path=LEGACY)
    fake.script(fp.sse(fp.chunks(["hi"], chat=True)), path=CHAT)
    with server.client() as client:
        ask(client, stream=True, fallbacks=["fakechat/other"])
        assert client.read_head().status == 200
        fake.open("on")
        frames = list(client.frames())
    assert without_comments(frames) == ["usage_start", "content", "finish", "usage_final", "DONE"]
    [content] = [frame for frame in frames if '"content"' in (frame.data or "")]
    assert content.json["provider"] == "fakechat"


def test_a_400_of_the_provider_calls_no_fallback(server: Server, fake: FakeProvider) -> None:
    fake.default(fp.error(400))
    with server.client() as client:
        ask(client, fallbacks=["fakechat/m"])
        assert client.read_head().status == 400
        client.body()
    assert fake.counts.received == 1


def test_no_fallback_is_used_once_text_has_arrived(server: Server, fake: FakeProvider) -> None:
    fake.script([*BEGUN, fp.close()])
    with server.client() as client:
        ask(client, stream=True, fallbacks=["fakechat/m"])
        client.read_head()
        assert_failed(list(client.frames()))
    assert fake.counts.received == 1


# Deadlines


LATE: dict[tuple[str, bool], Sequence[fp.Step]] = {
    ("first_event", True): [fp.hold()],
    ("first_event", False): [fp.hold()],
    ("idle", True): HELD,
    ("total", True): [*BEGUN, fp.repeat(EVENT.data, 0.05)],
}


def test_each_timeout_phase_answers_504_within_its_limit(
    impatient: Server, fake: FakeProvider
) -> None:
    with ExitStack() as stack:
        clients = {("connect", False): stack.enter_context(impatient.client())}
        asked_at = {("connect", False): time.monotonic()}
        ask(clients["connect", False], model="dead/m", stream_id="connect-False")
        for number, ((phase, stream), steps) in enumerate(LATE.items(), 1):
            client = clients[phase, stream] = stack.enter_context(impatient.client())
            fake.script(steps)
            asked_at[phase, stream] = time.monotonic()
            ask(client, stream=stream, stream_id=f"{phase}-{stream}")
            fake.wait_requests(number)
        trying = stack.enter_context(impatient.client())
        fake.default([fp.hold()])
        tried_at = time.monotonic()
        ask(trying, stream=True, fallbacks=[f"fake/{number}" for number in range(8)])
        for (phase, stream), client in clients.items():
            error = read_failure(client)
            assert (error["code"], error["status_code"]) == ("provider_timeout", 504)
            assert error["details"]["phase"] == phase
            limit = LIMITS_S[phase]
            assert limit < time.monotonic() - asked_at[phase, stream] < limit + scaled(2)
            assert settled(impatient, f"{phase}-{stream}")["end_reason"] == "deadline"
        head = trying.read_head()
        assert (head.status, head.headers["x-should-retry"]) == (504, "false")
        assert trying.json()["details"]["phase"] == "total", "the limit covers all attempts"
        total = LIMITS_S["total"]
        assert total < head.at - tried_at < total + scaled(2)
    fake.wait(lambda counts: counts.open == 0)
    requests = fake.requests
    assert len(LATE) + 2 <= len(requests) <= len(LATE) + 4
    assert {request.closed_by for request in requests} == {"peer"}


def read_failure(client: RawClient) -> Any:
    """Return the error of a call that fails, from its response or from its last frame."""
    head = client.read_head()
    if head.status != 200:
        error = client.json()
        assert (error["success"], error["status_code"]) == (False, head.status)
        return error
    frames = list(client.frames())
    assert_failed(frames)
    return frames[-1].json


# Limits


def test_a_call_beyond_max_streams_answers_503(server: Server, fake: FakeProvider) -> None:
    fake.default(HELD)
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(MAX_STREAMS)]
        for client in clients:
            begin_stream(client)
        with server.client() as one_more:
            ask(one_more, stream=True)
            head, answer = one_more.read_head(), one_more.json()
            assert (head.status, answer["code"]) == (503, "unavailable")
            assert int(head.headers["retry-after"]) >= 1
            assert calls.get(server, "/ready").status == 200
            clients[0].close()
            calls.wait_active(server, MAX_STREAMS - 1)
            begin_stream(one_more)


def test_a_running_server_reads_a_changed_key_file(server: Server, fake: FakeProvider) -> None:
    fake.default(fp.answer(fp.body("x")))
    path = server.directory / "keys.jsonl"
    original = path.read_text()
    text, line = make_key("coming and going")
    listing = f"{calls.COMPLETIONS}/streams"
    assert calls.get(server, listing, text).status == 401
    path.write_text(original + line)
    server.wait(lambda: calls.get(server, listing, text).status == 200, scaled(1))
    disabled = json.dumps(json.loads(line) | {"disabled": True}) + "\n"
    path.write_text(original + disabled)
    server.wait(lambda: calls.get(server, listing, text).status == 401, scaled(1))
    path.write_text(original)


@pytest.mark.parametrize("size", [MAX_BODY + 1, 1_000_000, 20_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_answers_413(server: Server, size: int, *, chunked: bool) -> None:
    with server.client() as client:
        send_body(client, b" " * size, size, chunked=chunked)
        head, answer = client.read_head(), client.json()
        assert (head.status, answer["code"]) == (413, "request_too_large")
        client.request("GET", "/health")
        assert client.read_head().status == 200


def send_body(client: RawClient, data: bytes, length: int, *, chunked: bool) -> None:
    """Send a completion request with `data` as (a part of) its body.

    Args:
        length: The length of the whole body. If data is shorter, the body stays incomplete.
    """
    if chunked:
        headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
        data = b"%x\r\n%s\r\n" % (len(data), data) + (b"0\r\n\r\n" if len(data) == length else b"")
    else:
        headers = {"Content-Length": str(length), "Content-Type": "application/json"}
    client.request("POST", calls.COMPLETIONS, None, headers)
    client.send(data)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_at_the_size_limit_is_accepted(
    server: Server, fake: FakeProvider, *, chunked: bool
) -> None:
    fake.script(fp.answer(fp.body("x")))
    data = json.dumps({"model": "fake/m", "prompt": "x"}).encode().ljust(MAX_BODY)
    with server.client() as client:
        send_body(client, data, MAX_BODY, chunked=chunked)
        assert client.read_head().status == 200
        client.body()


def test_a_body_that_does_not_arrive_answers_408(impatient: Server) -> None:
    with impatient.client() as announced, impatient.client() as chunked:
        before = time.monotonic()
        send_body(announced, b'{"prompt":', 1000, chunked=False)
        send_body(chunked, b'{"prompt":', 1000, chunked=True)
        for client in (announced, chunked):
            head, answer = client.read_head(), client.json()
            assert 0.9 < head.at - before < scaled(3)
            assert (head.status, answer["code"]) == (408, "request_timeout")
            assert client.ended()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_incomplete_body_answers_400(server: Server, *, chunked: bool) -> None:
    with server.client() as client:
        send_body(client, b'{"prompt":', 1000, chunked=chunked)
        client.half_close()
        assert client.read_head().status == 400
        client.body()
        assert client.ended()


# Headers


@pytest.mark.parametrize(
    "value", ["a b", "a\rX-Evil: 1", "a\n X-Evil: 1", "a\tb", "\xe9", "a" * 129, "<script>", ""]
)
def test_an_invalid_request_id_is_replaced_or_refused(server: Server, value: str) -> None:
    with server.client() as client:
        client.request("GET", "/health", headers={"X-Request-ID": value})
        head = client.read_head()
    assert "x-evil" not in head.headers
    if head.status == 200:
        assert head.headers["x-request-id"] != value
        assert re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", head.headers["x-request-id"])
    else:
        assert head.status == 400


def test_a_valid_request_id_is_kept(server: Server) -> None:
    with server.client() as client:
        client.request("GET", "/health", headers={"X-Request-ID": "my.id_1:2-3"})
        assert client.read_head().headers["x-request-id"] == "my.id_1:2-3"


ODD_IDS = ["a b", "a\r\nX-Evil: 1", "a\n", "\u2028", "a" * 129, "", "a/b", "é"]


@pytest.mark.parametrize("value", ODD_IDS)
def test_an_invalid_stream_id_answers_400(server: Server, fake: FakeProvider, value: str) -> None:
    with server.client() as client:
        ask(client, stream=True, stream_id=value)
        head, answer = client.read_head(), client.json()
        assert (head.status, answer["code"]) == (400, "invalid_request")
        assert {"x-evil", "x-stream-id"}.isdisjoint(head.headers)
        if value.isascii() and value.isprintable() and value:
            content = {"model": "fake/m", "prompt": "x", "stream": True}
            client.request("POST", calls.COMPLETIONS, content, {"X-Stream-ID": value})
            assert client.read_head().status == 400
    assert fake.requests == []


# TLS upstream, under gevent


def test_calls_to_a_tls_upstream_succeed(server: Server, tls_fake: FakeProvider) -> None:
    tls_fake.script(fp.answer(fp.body("secure")))
    tls_fake.script(fp.sse(fp.chunks(["se", "cure"])))
    assert complete(server, model="tls/m")["data"] == "secure"
    with server.client() as client:
        ask(client, stream=True, model="tls/m")
        client.read_head()
        assert without_comments(list(client.frames())).count("content") == 2
    assert [request.connection for request in tls_fake.requests] == [1, 1]


def test_a_client_hang_up_closes_a_tls_upstream(server: Server, tls_fake: FakeProvider) -> None:
    tls_fake.script(HELD)
    with server.client() as client:
        begin_stream(client, model="tls/m")
        before = time.monotonic()
    [request] = tls_fake.wait_closed()
    assert closed_after(request, before) < GONE_WITHIN_S


# Other requests meanwhile


@pytest.mark.thorough
def test_local_streams_do_not_delay_health_checks(server: Server) -> None:
    done = threading.Event()
    readers = [threading.Thread(target=stream_until, args=(server, done)) for _ in range(8)]
    for reader in readers:
        reader.start()
    try:
        calls.wait_active(server, 8)
        delays = sorted(health_delay(server) for _ in range(200))
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert delays[197] < scaled(0.25), delays[-10:]


def stream_until(server: Server, done: threading.Event) -> None:
    """Read long local streams, one after another, until `done` is set."""
    while not done.is_set():
        with server.client() as client:
            begin_stream(client, model="local/pydoc", additional_params={"n": 128})
            for _ in client.frames():
                if done.is_set():
                    return


def health_delay(server: Server) -> float:
    with server.client() as client:
        before = time.monotonic()
        client.request("GET", "/health")
        assert client.read_head().status == 200
        return time.monotonic() - before
