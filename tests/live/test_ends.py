"""Tests of reasoning, finished answers and early failures with a real server, in every dialect.

- Each dialect has a provider of its own, with an idle timeout of IDLE_S.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import calls
from tests.support import fake as fp
from tests.support.calls import COMPLETIONS, kinds
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.pieces import PIECES, THOUGHT, Pieces
from tests.support.raw_client import Frame
from tests.support.servers import UNTROUBLED, Server

pytestmark = pytest.mark.thorough

IDLE_S = round(scaled(1), 1)
ROW = """[providers.x{name}]
dialect = "{dialect}"
base_url = "{origin}/x{name}/v1"
completions = {completions}
timeouts = {{ idle = {idle}, first_event = {idle} }}
"""
FACES = {"native": COMPLETIONS, "openai": "/v1/completions"}
each = pytest.mark.parametrize("name", PIECES)
on_faces = pytest.mark.parametrize("face", FACES)


@pytest.fixture(scope="module")
def dialects_server(fake_process: FakeProvider) -> Iterator[Server]:
    rows = "".join(
        ROW.format(
            name=name,
            dialect=pieces.dialect,
            origin=fake_process.origin,
            completions=str(not pieces.chat).lower(),
            idle=IDLE_S,
        )
        for name, pieces in PIECES.items()
    )
    with Server(rows, env=UNTROUBLED | {"SLUICE_RETRIES": "0"}) as server:
        yield server
        assert "Traceback" not in server.output()


@pytest.fixture
def server(dialects_server: Server, fake: FakeProvider) -> Server:
    return dialects_server


def script(pieces: Pieces, *steps: fp.Step | bytes) -> list[fp.Step]:
    head = fp.head(200, {"Content-Type": pieces.media, "Connection": "close"})
    return [head, *(fp.send(step) if isinstance(step, bytes) else step for step in steps)]


def ask(server: Server, face: str, name: str, **fields: Any) -> tuple[int, list[Frame], Any]:
    """Make a call. Return the status, the frames of a stream, and any other body."""
    body = {"model": f"x{name}/m", "prompt": "Hi", "stream": True, **fields}
    with server.client(timeout=HANG_S) as client:
        client.request("POST", FACES[face], body)
        head = client.read_head()
        if head.headers["content-type"].startswith("text/event-stream"):
            return head.status, list(client.frames()), None
        return head.status, [], client.json()


def text_of(frames: list[Frame]) -> str:
    events = [frame.json for frame in frames if frame.data not in (None, "[DONE]")]
    return "".join(c["text"] for event in events for c in event.get("choices", ()))


def assert_whole(frames: list[Frame]) -> None:
    assert text_of(frames) == "Hello, world"
    assert frames[-1].data == "[DONE]"
    assert not any('"error"' in (frame.data or "") for frame in frames)


@each
@on_faces
def test_reasoning_and_pings_restart_the_idle_timeout(
    server: Server, fake: FakeProvider, name: str, face: str
) -> None:
    pieces = PIECES[name]
    pause = fp.sleep(IDLE_S / 2)
    thinking: list[fp.Step | bytes] = [pieces.thought or pieces.ping, pause, pieces.ping, pause] * 3
    rest = pieces.whole.removeprefix(pieces.start)
    fake.script(script(pieces, pieces.start, pause, *thinking, rest))
    status, frames, _ = ask(server, face, name)
    assert status == 200
    assert_whole(frames)


@each
@on_faces
@pytest.mark.parametrize("before", ["start", "thought"])
def test_a_fallback_serves_after_invisible_events(
    server: Server, fake: FakeProvider, name: str, face: str, before: str
) -> None:
    pieces = PIECES[name]
    shown = [pieces.start, pieces.ping, *([pieces.thought] if before == "thought" else [])]
    fake.script(script(pieces, *filter(None, shown), pieces.error, fp.close()))
    status, frames, _ = ask(server, face, name, fallbacks=["local/pydoc"], max_tokens=5)
    assert status == 200
    assert frames[-1].data == "[DONE]"
    first = next(frame.json for frame in frames if frame.data)
    if face == "native":
        assert (first["type"], first["provider"]) == ("usage_start", "local")
    else:
        assert first["model"] == "local/pydoc"
    assert f"x{name}" not in "".join(frame.data or "" for frame in frames)


@each
@on_faces
def test_an_error_after_invisible_events_is_a_plain_http_error(
    server: Server, fake: FakeProvider, name: str, face: str
) -> None:
    pieces = PIECES[name]
    fake.script(script(pieces, pieces.start, pieces.ping, pieces.error, fp.close()))
    status, _, body = ask(server, face, name)
    assert status >= 500
    assert body["error"]


@each
def test_silence_after_invisible_events_moves_the_call_to_the_fallback(
    server: Server, fake: FakeProvider, name: str
) -> None:
    pieces = PIECES[name]
    fake.script(script(pieces, pieces.start, pieces.ping, pieces.partial, fp.hold()))
    status, frames, _ = ask(server, "native", name, fallbacks=["local/pydoc"], max_tokens=5)
    assert (status, frames[0].json["provider"], frames[-1].data) == (200, "local", "[DONE]")


@pytest.mark.parametrize("name", [name for name, pieces in PIECES.items() if pieces.finish])
@on_faces
@pytest.mark.parametrize("with_usage", [True, False])
def test_a_finished_answer_ends_cleanly_on_an_open_connection(
    server: Server, fake: FakeProvider, name: str, face: str, with_usage: bool
) -> None:
    pieces = PIECES[name]
    content = pieces.start + pieces.first + pieces.second + pieces.finish
    content += pieces.usage if with_usage else b""
    on = [] if pieces.dialect == "bedrock" else [fp.repeat(pieces.ping, 0.2)]
    fake.script(script(pieces, content, *on, fp.hold()))
    began = time.monotonic()
    fields = {"stream_options": {"include_usage": True}} if face == "openai" else {}
    status, frames, _ = ask(server, face, name, **fields)
    assert status == 200
    assert time.monotonic() - began < scaled(2) + 3
    assert_whole(frames)
    if with_usage:
        final = frames[-2].json
        used = final["output_tokens"] if face == "native" else final["usage"]["completion_tokens"]
        assert used == 5


@pytest.mark.parametrize("name", [name for name, pieces in PIECES.items() if pieces.with_text])
def test_a_reason_with_text_ends_cleanly_at_the_idle_timeout(
    server: Server, fake: FakeProvider, name: str
) -> None:
    pieces = PIECES[name]
    content = pieces.start + pieces.first + pieces.with_text
    fake.script(script(pieces, content, fp.repeat(pieces.ping, 0.2)))
    status, frames, _ = ask(server, "native", name)
    assert status == 200
    assert_whole(frames)


@pytest.mark.parametrize("name", [name for name, pieces in PIECES.items() if pieces.thought])
def test_reasoning_before_a_stop_is_counted(server: Server, fake: FakeProvider, name: str) -> None:
    pieces = PIECES[name]
    fake.script(script(pieces, pieces.start, *[pieces.thought] * 4, fp.hold()))
    with server.client(timeout=HANG_S) as client:
        stream_id = f"thinking-{name}"
        body = {"model": f"x{name}/m", "prompt": "Hi", "stream": True, "stream_id": stream_id}
        client.request("POST", COMPLETIONS, body)
        fake.wait_requests()
        time.sleep(0.3)
        with server.client() as other:
            other.request("POST", f"{COMPLETIONS}/stop-stream/{stream_id}", {})
            assert other.read_head().status == 200
        client.read_head()
        frames = list(client.frames())
    assert kinds(frames) == ["usage_start", "finish", "usage_final", "DONE"]
    final = frames[-2].json
    assert (final["output_tokens"], final["source"]) == (len(THOUGHT), "estimate")
    assert calls.settled(server, stream_id)["end_reason"] == "stopped"


def test_llamacpp_is_asked_for_one_choice_at_a_time(fake: FakeProvider) -> None:
    fake.default(fp.answer(fp.body("Hello", usage=(3, 5))))
    row = f'[providers.llamacpp]\nbase_url = "{fake.base_url}"\n'
    with Server(row, env=UNTROUBLED) as server, server.client() as client:
        body = {"model": "llamacpp/m", "prompt": ["a", "b"], "n": 2}
        client.request("POST", "/v1/completions", body)
        client.read_head()
        found = client.json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]) == (12, 20)
    sent = [json.loads(request.body) for request in fake.requests]
    assert sorted(each["prompt"] for each in sent) == ["a", "a", "b", "b"]
    assert not any("n" in each for each in sent)
