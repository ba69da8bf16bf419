"""Tests of the fake provider, with plain sockets and with requests."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import requests
import trustme

from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.raw_client import RawClient

CLOSING_NOTICED_WITHIN_S = scaled(0.02)
PATH = "/v1/completions"


@pytest.fixture
def raw(fake: FakeProvider) -> Iterator[RawClient]:
    with RawClient(fake.port) as client:
        yield client


def ask(client: RawClient, path: str = PATH) -> None:
    client.request("POST", path, {"prompt": "x"})


def test_the_fake_sends_a_scripted_answer_and_records_the_request(fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("hi"), headers={"X-Extra": "1"}))
    before = time.monotonic()
    with requests.post(f"{fake.base_url}/completions", json={"prompt": "é"}, timeout=HANG_S) as got:
        assert got.json()["choices"][0]["text"] == "hi"
        assert got.json()["usage"]["total_tokens"] == 8
        assert got.headers["X-Extra"] == "1"
    [request] = fake.wait(lambda counts: counts.finished == 1)
    assert (request.method, request.path) == ("POST", PATH)
    assert request.headers["content-type"] == "application/json"
    assert request.json == {"prompt": "é"}
    assert request.first_byte_at is not None
    assert request.finished_at is not None
    assert before < request.received_at <= request.first_byte_at <= request.finished_at
    assert request.finished_at < time.monotonic()
    assert request.bytes_sent > len(got.content)
    assert request.outcome == "finished"


def test_bytes_arrive_unchanged_both_ways(fake: FakeProvider) -> None:
    every = bytes(range(256)) * 5000
    fake.script(fp.answer(every))
    with requests.post(fake.origin, data=every, timeout=HANG_S) as got:
        assert got.content == every
    assert fake.requests[0].body == every


def test_scripts_are_used_in_order_and_by_path(fake: FakeProvider) -> None:
    fake.script(fp.answer(1), path="/a")
    fake.script(fp.answer(2))
    fake.script(fp.answer(3), path="/a")
    fake.default(fp.answer(4))
    got = [
        requests.get(fake.origin + path, timeout=HANG_S).json() for path in ("/b", "/a", "/a", "/a")
    ]
    assert got == [2, 1, 3, 4]


def test_a_request_without_a_script_is_answered_with_400(fake: FakeProvider) -> None:
    with requests.get(f"{fake.origin}/c", timeout=HANG_S) as got:
        assert (got.status_code, got.json()) == (400, "no script for GET /c")


def test_a_scripted_error_has_its_status_headers_and_message(fake: FakeProvider) -> None:
    fake.script(fp.error(429, headers={"Retry-After": "7"}))
    with requests.get(fake.origin, timeout=HANG_S) as got:
        assert (got.status_code, got.reason) == (429, "Too Many Requests")
        assert got.headers["Retry-After"] == "7"
        assert got.json()["error"]["message"] == "fake 429"


@pytest.mark.parametrize("chunked", [True, False])
def test_sse_sends_each_frame_in_a_separate_write(
    fake: FakeProvider, raw: RawClient, *, chunked: bool
) -> None:
    frames = fp.chunks(["a", "b"], usage=(1, 2))
    fake.script(fp.sse(frames, interval=0.05, chunked=chunked))
    ask(raw)
    assert raw.read_head().headers["content-type"] == "text/event-stream"
    got = list(raw.frames())
    assert [frame.json for frame in got[:-1]] == frames
    assert got[-1].data == "[DONE]"
    assert 0.04 < got[1].at - got[0].at < 0.5
    assert len({frame.write for frame in got[:3]}) == 3


def test_chunks_and_bodies_have_the_legacy_or_the_chat_shape() -> None:
    legacy, last = fp.chunks(["a"], finish="length")
    assert legacy["object"] == "text_completion"
    assert legacy["choices"][0]["text"] == "a"
    assert last["choices"][0]["finish_reason"] == "length"
    [chat] = fp.chunks(["a"], chat=True, finish=None)
    assert chat["choices"][0]["delta"] == {"content": "a"}
    assert fp.body("a", chat=True)["choices"][0]["message"]["content"] == "a"


def test_drip_sends_bytes_at_intervals(fake: FakeProvider, raw: RawClient) -> None:
    fake.script([fp.head(200, {"Content-Length": "3"}), fp.drip(b"abc", 0.03)])
    ask(raw)
    at = raw.read_head().at
    assert raw.body() == b"abc"
    assert 0.05 < time.monotonic() - at < scaled(0.5)


def test_a_gate_holds_the_answer_until_the_test_opens_it(
    fake: FakeProvider, raw: RawClient
) -> None:
    first, second = fp.chunks(["a", "b"], finish=None)
    rest = [fp.event(second), fp.last_chunk()]
    fake.script([*fp.sse([first], done=False, complete=False), fp.gate("more"), *rest])
    ask(raw)
    raw.read_head()
    assert raw.frame().json == first
    assert fake.counts.active == 1
    opened = time.monotonic()
    fake.open("more")
    frame = raw.frame()
    assert frame.json == second
    assert 0 < frame.at - opened < 0.5


def test_half_headers_leave_the_client_waiting(fake: FakeProvider) -> None:
    fake.script(fp.half_headers())
    with RawClient(fake.port, timeout=0.2) as client:
        ask(client)
        with pytest.raises(TimeoutError):
            client.read_head()


@pytest.mark.parametrize(
    ("step", "failure"), [(fp.close(), EOFError), (fp.reset(), ConnectionResetError)]
)
def test_close_and_reset_steps_end_the_connection(
    fake: FakeProvider, raw: RawClient, step: fp.Step, failure: type[Exception]
) -> None:
    fake.script([fp.head(200, {"Content-Length": "9"}), fp.sleep(0.05), step])
    ask(raw)
    raw.read_head()
    with pytest.raises(failure):
        raw.body()
    [request] = fake.wait_closed()
    assert (request.closed_by, request.outcome) == ("us", "finished")


def test_the_connection_is_closed_after_an_incomplete_answer(
    fake: FakeProvider, raw: RawClient
) -> None:
    fake.script(fp.sse(fp.chunks(["a"]), done=False, complete=False))
    ask(raw)
    raw.read_head()
    with pytest.raises(EOFError):
        list(raw.frames())


GOES_ON = {
    "hold": [fp.hold()],
    "sleep": [fp.head(), fp.sleep(60)],
    "wait_closed": [fp.wait_closed(60)],
    "gate": [fp.gate("never")],
    "drip": [fp.drip(b"HTTP/1.1 200 OK", 60)],
    "repeat": [fp.repeat(b"x", 0.001)],
    "flood": [fp.repeat(b"x" * 65536)],
}


@pytest.mark.parametrize("hang_up", ["close", "reset", "half_close"])
@pytest.mark.parametrize("steps", GOES_ON.values(), ids=GOES_ON.keys())
def test_the_fake_notices_at_once_that_its_client_disconnects(
    fake: FakeProvider, steps: list[fp.Step], hang_up: str
) -> None:
    fake.default(steps)
    delays: list[float] = []
    for number in range(1, 6):  # the fastest of several, because a busy machine may delay any one
        with RawClient(fake.port) as client:
            ask(client)
            fake.wait_requests(number)
            time.sleep(0.03)  # lets the flood fill the buffers, so that the fake blocks in send
            before = time.monotonic()
            getattr(client, hang_up)()
            request = fake.wait_closed(number)[-1]
        assert (request.closed_by, request.outcome) == ("peer", "aborted")
        assert request.closed_at is not None
        delays.append(request.closed_at - before)
        if delays[-1] < CLOSING_NOTICED_WITHIN_S:
            break
    assert 0 <= min(delays) < CLOSING_NOTICED_WITHIN_S


def test_wait_closed_continues_after_its_timeout(fake: FakeProvider, raw: RawClient) -> None:
    fake.script([fp.wait_closed(0.05), *fp.answer("late")])
    ask(raw)
    raw.read_head()
    assert raw.json() == "late"


def test_complete_answers_keep_the_connection_alive(fake: FakeProvider) -> None:
    fake.default(fp.answer("again"))
    fake.script(fp.answer("one"))
    fake.script(fp.sse(["two"]))
    fake.script(fp.sse(["three"], chunked=False))
    with requests.Session() as session:
        for _ in range(4):
            session.get(fake.origin, timeout=HANG_S).close()
    assert [request.connection for request in fake.requests] == [1, 1, 1, 2]
    third, fourth = fake.wait_closed(2)[2:]
    assert third.closed_by == "us"
    assert (fourth.closed_by, fourth.outcome) == ("peer", "finished")
    assert fake.counts == fp.Counts(
        connections=2, open=0, received=4, active=0, finished=4, aborted=0, closed=2
    )


def test_a_connection_close_header_closes_the_connection(
    fake: FakeProvider, raw: RawClient
) -> None:
    fake.script(fp.answer("x"))
    raw.request("GET", "/", headers={"Connection": "close"})
    raw.read_head()
    assert raw.json() == "x"
    assert raw.ended()


def test_a_connection_set_to_reset_fails_before_any_request(fake: FakeProvider) -> None:
    fake.default(fp.answer("x"))
    fake.next_connection("reset")
    with pytest.raises(requests.ConnectionError):
        requests.get(fake.origin, timeout=HANG_S)
    assert fake.requests == []
    assert requests.get(fake.origin, timeout=HANG_S).json() == "x"


def test_a_mute_connection_gets_no_answer(fake: FakeProvider) -> None:
    fake.next_connection("mute")
    with RawClient(fake.port, timeout=0.2) as client:
        ask(client)
        with pytest.raises(TimeoutError):
            client.read_head()
    fake.wait(lambda counts: counts.open == 0)
    assert fake.counts[:3] == (1, 0, 0)


def test_a_mute_connection_stops_accepting_bytes(fake: FakeProvider) -> None:
    fake.next_connection("mute")
    with RawClient(fake.port, timeout=0.3) as client:
        with pytest.raises(TimeoutError):
            client.send(bytes(50_000_000))
        client.reset()
    fake.wait(lambda counts: counts.open == 0)


def test_connects_to_a_blackhole_time_out() -> None:
    with fp.blackhole() as origin:
        address = ("127.0.0.1", urlsplit(origin).port)
        for _ in range(2):
            with socket.socket() as sock:
                sock.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    sock.connect(address)


def test_reset_forgets_scripts_and_closes_connections(fake: FakeProvider, raw: RawClient) -> None:
    fake.script([fp.gate("never")])
    fake.script(fp.answer("forgotten"))
    ask(raw)
    fake.wait_requests()
    fake.reset()
    assert raw.ended()
    assert fake.requests == []
    fake.wait(lambda counts: counts.open == 0)
    assert requests.get(fake.origin, timeout=HANG_S).status_code == 400


def test_the_fake_serves_tls_and_notices_a_client_that_leaves(
    tls_fake: FakeProvider, ca: trustme.CA
) -> None:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    frames = fp.chunks(["a"])
    tls_fake.script(fp.sse(frames))
    tls_fake.script([*fp.sse(frames, complete=False), fp.hold()])
    with RawClient(tls_fake.port, tls=context) as client:
        ask(client)
        client.read_head()
        assert [frame.json for frame in list(client.frames())[:-1]] == frames
        ask(client)
        client.read_head()
        assert client.frame().json == frames[0]
        before = time.monotonic()
    [_, second] = tls_fake.wait_closed()
    assert (second.closed_by, second.outcome, second.connection) == ("peer", "aborted", 1)
    assert second.closed_at is not None
    assert 0 <= second.closed_at - before < scaled(0.5)
    with pytest.raises(ssl.SSLCertVerificationError):
        RawClient(tls_fake.port, tls=ssl.create_default_context())


def test_two_hundred_held_requests_are_recorded_as_aborted(fake: FakeProvider) -> None:
    fake.default([fp.hold()])
    clients = [RawClient(fake.port) for _ in range(200)]
    for client in clients:
        ask(client)
    fake.wait_requests(200)
    before = time.monotonic()
    for client in clients:
        client.close()
    delays = [(r.closed_at or 0) - before for r in fake.wait_closed(200)]
    assert min(delays) >= 0
    assert max(delays) < 1
    assert fake.counts.aborted == 200


def test_stop_ends_the_process_and_its_connections() -> None:
    with FakeProvider.start() as fake:
        fake.default([fp.hold()])
        with RawClient(fake.port) as client:
            ask(client)
            fake.wait_requests()
            fake.stop()
            assert client.ended()
    with pytest.raises(ProcessLookupError):
        os.kill(fake.pid, 0)
    with pytest.raises(ConnectionRefusedError):
        RawClient(fake.port)


def test_named_scripts_answer_prompts_that_begin_with_their_name(fake: FakeProvider) -> None:
    first = fp.answer(fp.body("named", usage=(4, 6)))
    fake.named({"first": first, f"first {PATH}x": fp.error(503)})
    fake.default(fp.answer(fp.body("other", usage=None)))
    for prompt, path, text in (("first r1", PATH, "named"), ("second", PATH, "other")):
        with RawClient(fake.port) as client:
            client.request("POST", path, {"prompt": prompt})
            assert client.read_head().status == 200
            assert client.json()["choices"][0]["text"] == text
    with RawClient(fake.port) as client:
        client.request("POST", f"{PATH}x", {"messages": [{"role": "user", "content": "first"}]})
        assert client.read_head().status == 503
    assert [request.usage for request in fake.requests] == [(4, 6), None, None]
    assert [request.prompt for request in fake.requests] == ["first r1", "second", "first"]


def test_a_request_records_the_usage_that_was_sent_last(fake: FakeProvider) -> None:
    first, second = (
        frame | usage_field(n) for n, frame in enumerate(fp.chunks(["a", "b"], finish=None))
    )
    fake.default([*fp.sse([first], done=False, complete=False), fp.gate("more"), fp.event(second)])
    with RawClient(fake.port) as client:
        ask(client)
        assert client.read_head().status == 200
        assert client.frame().json == first
        until = time.monotonic() + 20  # the usage is recorded after the data was sent
        while fake.requests[0].usage is None and time.monotonic() < until:
            time.sleep(0.01)
        assert fake.requests[0].usage == (0, 1)
        fake.open("more")
        assert client.frame().json == second
        fake.wait_closed()
        assert fake.requests[0].usage == (1, 2)


def usage_field(n: int) -> dict[str, dict[str, int]]:
    return {"usage": {"prompt_tokens": n, "completion_tokens": n + 1, "total_tokens": 2 * n + 1}}
