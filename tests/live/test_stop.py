"""Tests of stop-stream on a real server: it ends a call in any phase, and no other call."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests.support import calls
from tests.support import fake as fp
from tests.support.calls import BEGUN, EVENT, active, ask, begin_stream, closed_after, settled, stop
from tests.support.fake import FakeProvider
from tests.support.pace import scaled
from tests.support.raw_client import RawClient
from tests.support.servers import UNTROUBLED, Server, fake_rows

WITHIN_S = scaled(0.1)
"""A bound for the response to a stop, the close of the provider's connection, and the end of the
client's response."""
TRIES = 5


@pytest.fixture(scope="module")
def started(
    fake_process: FakeProvider, tls_fake_process: FakeProvider, ca_bundle: str
) -> Iterator[Server]:
    with fp.blackhole() as dead:
        rows = fake_rows(fake_process.base_url) + calls.toml_row("dead", dead)
        rows += calls.toml_row("tlsdead", dead.replace("http", "https"))
        rows += calls.toml_row("tls", tls_fake_process.base_url, ca_bundle=ca_bundle)
        with Server(
            rows + calls.toml_row("refused", "http://127.0.0.1:1"), env=UNTROUBLED
        ) as server:
            yield server
            assert "Traceback" not in server.output()


@pytest.fixture
def server(started: Server, fake: FakeProvider) -> Server:
    """Return a server with several providers.

    Connections to `dead` and `tlsdead` hang, connections to `refused` fail, and `tls` is
    `tls_fake`.
    """
    return started


class Phase(NamedTuple):
    steps: Sequence[fp.Step] | None = None
    """The provider's script. None if the call doesn't reach the provider."""
    model: str = "fake/m"
    stream: bool = True
    text: bool = False
    """True if the client gets some text before the stop."""
    fallbacks: tuple[str, ...] = ()
    params: Mapping[str, int] = MappingProxyType({})


HEADERS_ONLY = [*fp.sse([], done=False, complete=False), fp.hold()]
HALF_A_BODY = [fp.head(200, {"Content-Length": "1000"}), fp.send(b'{"id":'), fp.hold()]
PHASES = {
    "connecting": Phase(model="dead/m"),
    "before_headers": Phase([fp.hold()]),
    "within_headers": Phase(fp.half_headers()),
    "silent_after_headers": Phase(HEADERS_ONLY),
    "silent_after_text": Phase([*BEGUN, fp.hold()], text=True),
    "flowing": Phase([*BEGUN, fp.repeat(EVENT.data, 0.005)], text=True),
    "chat": Phase([fp.hold()], model="fakechat/m"),
    "local": Phase(model="local/pydoc", params={"best_of": 128}),
    "local_flowing": Phase(model="local/pydoc", text=True, params={"n": 128}),
    "local_slow": Phase(model="local/slow", text=True),
    "local_slow_unary": Phase(model="local/slow", stream=False),
    "tls_before_headers": Phase([fp.hold()], model="tls/m"),
    "tls_silent": Phase([*BEGUN, fp.hold()], model="tls/m", text=True),
    "tls_flowing": Phase([*BEGUN, fp.repeat(EVENT.data, 0.005)], model="tls/m", text=True),
    "tls_connecting": Phase(model="tlsdead/m"),
    "fallback_not_yet_called": Phase([fp.hold()], fallbacks=("fakechat/m", "dead/m")),
    "fallback_in_progress": Phase([fp.hold()], model="refused/m", fallbacks=("fake/m",)),
    "unary_connecting": Phase(model="dead/m", stream=False),
    "unary_before_headers": Phase([fp.hold()], stream=False),
    "unary_within_body": Phase(HALF_A_BODY, stream=False),
    "unary_local": Phase(model="local/pydoc", stream=False, params={"best_of": 128}),
}


@pytest.mark.parametrize("name", PHASES)
def test_a_call_is_stopped_in_any_phase(
    server: Server, fake: FakeProvider, tls_fake: FakeProvider, name: str
) -> None:
    phase = PHASES[name]
    called = tls_fake if phase.model == "tls/m" else fake
    assert calls.best_of(TRIES, WITHIN_S, lambda: stop_once(server, called, phase)) < WITHIN_S
    assert active(server) == []


def stop_once(server: Server, fake: FakeProvider, phase: Phase) -> float:
    """Stop a call in a phase, and check the results.

    Return the seconds until the last of these: the response to the stop, the close of the
    provider's connection, the end of the client's response.
    """
    fake.reset()
    with server.client() as client:
        reach(phase, server, fake, client)
        answer = stop(server, "mine")
        assert (answer.status, answer.json) == (200, {"success": True})
        ended_after = read_cancelled(client, phase) - answer.sent_at
    took = [answer.took, ended_after]
    if phase.steps is not None:
        [request] = fake.wait_closed()
        took.append(closed_after(request, answer.sent_at))
    assert all(seconds >= 0 for seconds in took)
    return max(took)


def reach(phase: Phase, server: Server, fake: FakeProvider, client: RawClient) -> None:
    if phase.steps is not None:
        fake.script(phase.steps)
    options: dict[str, Any] = {"model": phase.model, "stream_id": "mine"}
    options |= {"fallbacks": phase.fallbacks, "additional_params": dict(phase.params)}
    if phase.text:
        begin_stream(client, **options)
    else:
        ask(client, stream=phase.stream, **options)
        calls.wait_active(server, 1)
    if phase.steps is not None:
        fake.wait_requests()
    time.sleep(0.03)  # so that the call is well within the phase


def read_cancelled(client: RawClient, phase: Phase) -> float:
    """Read the response of a stopped call. Return the monotonic time of its end."""
    if not phase.text:
        assert client.read_head().status == 200
    if phase.stream:
        return read_cancelled_stream(client, begun=phase.text)
    answer = client.json()
    at = time.monotonic()
    assert answer["success"] is True
    assert answer["finish_reason"] == "cancelled"
    assert answer["usage"]["tokens_prompt"] > 0
    return at


def read_cancelled_stream(client: RawClient, *, begun: bool) -> float:
    frames = list(client.frames())
    kinds = calls.kinds(frames)
    if not begun:
        assert kinds.pop(0) == "usage_start"
    assert set(kinds[:-2]) <= {"content", "finish"}
    assert kinds[-3:] == ["finish", "usage_final", "DONE"]
    assert frames[-3].json["finish_reason"] == "cancelled"
    assert frames[-2].json["input_tokens"] > 0
    return frames[-1].at


def test_a_stopped_call_never_reaches_its_fallback(server: Server, fake: FakeProvider) -> None:
    fake.default([fp.hold()])
    with server.client() as client:
        ask(client, stream=True, stream_id="mine", fallbacks=["fakechat/m"])
        fake.wait_requests()
        assert stop(server, "mine").status == 200
        client.read_head()
        read_cancelled_stream(client, begun=False)
    fake.wait_closed()
    time.sleep(0.2)
    assert fake.counts.received == 1


def test_stop_ends_a_stream_whose_client_does_not_read(server: Server, fake: FakeProvider) -> None:
    fake.script([*BEGUN, fp.repeat(EVENT.data * 100)])
    with server.client(rcvbuf=4096) as client:
        stream_id = begin_stream(client)
        calls.wait_blocked(fake)
        answer = stop(server, stream_id)
        assert answer.status == 200
        assert answer.took < scaled(1)
        [request] = fake.wait_closed()
        assert closed_after(request, answer.sent_at) < scaled(1)
        read_cancelled_stream(client, begun=True)
    assert calls.settled(server, stream_id)["end_reason"] == "stopped"


def test_a_stopped_stream_is_recorded_with_estimated_tokens(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([*BEGUN, EVENT, EVENT, fp.hold()])
    with server.client() as client:
        stream_id = begin_stream(client)
        client.frame(), client.frame()
        assert stop(server, stream_id).status == 200
        finish, final, done = client.frames()
    assert finish.json["choices"][0]["finish_reason"] == "cancelled"
    assert final.json["output_tokens"] == 4  # 15 bytes
    assert final.json["source"] == "estimate"
    assert done.data == "[DONE]"
    line = calls.settled(server, stream_id)
    assert (line["end_reason"], line["status"], line["output_tokens"]) == ("stopped", 200, 4)


def test_a_stopped_stream_with_usage_in_every_chunk_has_exact_usage(
    server: Server, fake: FakeProvider
) -> None:
    chunks: list[dict[str, Any]] = fp.chunks(["Hello", "word "], finish=None)
    for made, chunk in enumerate(chunks, 11):
        chunk["usage"] = {"prompt_tokens": 7, "completion_tokens": made}
    fake.script([*fp.sse(chunks, done=False, complete=False), fp.hold()])
    with server.client() as client:
        stream_id = begin_stream(client)
        client.frame()
        assert stop(server, stream_id).status == 200
        final = next(frame for frame in client.frames() if "input_tokens" in frame.json)
    assert (final.json["input_tokens"], final.json["output_tokens"]) == (7, 12)
    assert "source" not in final.json
    assert settled(server, stream_id)["usage_source"] == "provider"


def test_a_stop_may_be_repeated(server: Server, fake: FakeProvider) -> None:
    fake.script([*BEGUN, fp.hold()])
    with server.client() as client:
        stream_id = begin_stream(client)
        answers = [stop(server, stream_id) for _ in range(3)]
        list(client.frames())
        calls.wait_active(server, 0)
        answers.append(stop(server, stream_id))
    assert [answer.status for answer in answers] == [200] * 4
    assert [answer.json for answer in answers] == [{"success": True}] * 4


def test_stop_answers_404_for_a_stream_that_has_finished(
    server: Server, fake: FakeProvider
) -> None:
    fake.script(fp.sse(fp.chunks(["a"])))
    with server.client() as client:
        stream_id = begin_stream(client)
        list(client.frames())
        calls.wait_active(server, 0)
        answer = stop(server, stream_id)
    assert (answer.status, answer.json["code"]) == (404, "stream_not_found")


def test_a_stream_of_another_key_answers_404_like_an_unknown_stream(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([*BEGUN, fp.gate("more"), EVENT, fp.hold()])
    other = server.add_key("other")
    with server.client() as client:
        wait_key(server, other)
        stream_id = begin_stream(client)
        theirs, unknown = stop(server, stream_id, other), stop(server, "unknown", other)
        assert (theirs.status, unknown.status) == (404, 404)
        assert without_id(theirs) == without_id(unknown)
        assert active(server, other) == []
        fake.open("more")
        assert client.frame().json["data"] == "word "
        assert stop(server, stream_id).status == 200


def wait_key(server: Server, key: str) -> None:
    server.wait(lambda: calls.get(server, f"{calls.COMPLETIONS}/streams", key).status == 200)


def without_id(answer: calls.Answer) -> tuple[str, set[str]]:
    text = str(answer.json).replace(answer.json["request_id"], "ID")
    return text, set(answer.headers)


def test_two_keys_may_use_one_stream_id_at_once(server: Server, fake: FakeProvider) -> None:
    fake.default([*BEGUN, fp.gate("more"), EVENT, fp.hold()])
    other = server.add_key("other")
    wait_key(server, other)
    with server.client() as first, server.client() as second:
        second.key = other
        begin_stream(first, stream_id="same")
        begin_stream(second, stream_id="same")
        assert stop(server, "same", other).status == 200
        read_cancelled_stream(second, begun=True)
        fake.open("more")
        assert first.frame().json["data"] == "word "
        assert stop(server, "same").status == 200
        read_cancelled_stream(first, begun=True)


@pytest.mark.parametrize("stream", [True, False])
def test_an_active_stream_id_answers_409(
    server: Server, fake: FakeProvider, *, stream: bool
) -> None:
    fake.default([*BEGUN, fp.gate("more"), EVENT, fp.hold()])
    with server.client() as first, server.client() as second:
        begin_stream(first, stream_id="same")
        ask(second, stream=stream, stream_id="same")
        head, answer = second.read_head(), second.json()
        assert (head.status, answer["code"]) == (409, "stream_exists")
        assert head.headers["x-should-retry"] == "false"
        fake.open("more")
        assert first.frame().json["data"] == "word "
        assert len(fake.requests) == 1
        assert stop(server, "same").status == 200
    calls.wait_active(server, 0)


def test_a_stream_id_is_free_again_when_its_call_has_ended(
    server: Server, fake: FakeProvider
) -> None:
    fake.default([*BEGUN, fp.hold()])
    for _ in range(2):
        with server.client() as client:
            begin_stream(client, stream_id="again")
            assert stop(server, "again").status == 200
            read_cancelled_stream(client, begun=True)
        calls.wait_active(server, 0)


IDS = {
    "body": ({"stream_id": "from.body"}, {}, "from.body"),
    "header": ({}, {"X-Stream-ID": "from:header"}, "from:header"),
    "the_body_wins": ({"stream_id": "from.body"}, {"X-Stream-ID": "from:header"}, "from.body"),
}


@pytest.mark.parametrize(("fields", "headers", "chosen"), IDS.values(), ids=IDS.keys())
def test_the_caller_may_choose_the_stream_id(
    server: Server, fake: FakeProvider, fields: dict[str, str], headers: dict[str, str], chosen: str
) -> None:
    fake.script([*BEGUN, fp.hold()])
    content = {"model": "fake/m", "prompt": "x", "stream": True, **fields}
    with server.client() as client:
        client.request("POST", calls.COMPLETIONS, content, headers)
        assert client.read_head().headers["x-stream-id"] == chosen
        assert client.frame().json["stream_id"] == chosen
        assert stop(server, chosen).status == 200
        list(client.frames())


def test_the_list_of_active_streams_holds_only_calls_of_the_key(
    server: Server, fake: FakeProvider
) -> None:
    fake.default([*BEGUN, EVENT, fp.hold()])
    other = server.add_key("other")
    wait_key(server, other)
    with server.client() as first, server.client() as second:
        assert active(server) == []
        stream_id = begin_stream(first)
        first.frame()
        [entry] = active(server)
        assert entry.pop("started_at").startswith(time.strftime("%Y-%m-%dT", time.gmtime()))
        assert entry == {
            "stream_id": stream_id,
            "provider": "fake",
            "model": "m",
            "input_tokens": 0,  # the provider hasn't reported any
            "output_tokens": 3,
            "resumable": False,
        }
        assert active(server, other) == []
        second.key = other
        ask(second, stream_id="unary")
        calls.wait_active(server, 1, other)
        assert [entry["stream_id"] for entry in active(server, other)] == ["unary"]
        assert stop(server, stream_id).status == 200
        list(first.frames())
        calls.wait_active(server, 0)
        assert stop(server, "unary", other).status == 200
        assert second.read_head().status == 200
        calls.wait_active(server, 0, other)


def test_stop_accepts_any_content_type_and_a_trailing_slash(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([*BEGUN, fp.hold()])
    with server.client() as client, server.client() as stopping:
        stream_id = begin_stream(client)
        for content, kind in ((b"", "application/json"), (b"x=1", "text/plain"), (b"{", "a/b")):
            path = f"{calls.COMPLETIONS}/stop-stream/{stream_id}/"
            headers = {"Content-Type": kind, "Content-Length": str(len(content))}
            stopping.request("POST", path, None, headers)
            stopping.send(content)
            assert stopping.read_head().status == 200
            assert stopping.json() == {"success": True}
        read_cancelled_stream(client, begun=True)
