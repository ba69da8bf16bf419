"""Tests of HttpCall after an answer has finished, although its response may go on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from completion import Batch, Completion, CompletionRequest, Finished, Usage, flatten, fold
from config import Timeouts
from errors import UpstreamError
from providers import registry
from providers.base import Provider, Target
from providers.transport import exchange
from providers.transport.exchange import Transport
from providers.transport.http_call import HttpCall
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.pieces import COMMENT, PIECES, Pieces, legacy
from tests.support.sampling import sampled

GRACE_S = 0.3
ENDING = {name: pieces for name, pieces in PIECES.items() if pieces.finish}
PATIENT = Timeouts(connect=5, first_event=HANG_S, idle=HANG_S)
CLOSE = {"Connection": "close"}

COUNTS = {"usage": {"prompt_tokens": 7, "completion_tokens": 1}}

each = pytest.mark.parametrize("pieces", ENDING.values(), ids=ENDING)


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "GRACE_S", GRACE_S)


@pytest.fixture
def transport() -> Iterator[Transport]:
    with closing(Transport()) as found:
        yield found


def made(
    fake: FakeProvider,
    transport: Transport,
    pieces: Pieces,
    *,
    stream: bool = True,
    ca_bundle: str | None = None,
    **fields: Any,
) -> HttpCall:
    row = Provider(
        name="x",
        dialect=pieces.dialect,
        base_url=fake.origin,
        completions=not pieces.chat,
        ca_bundle=ca_bundle,
    )
    request = CompletionRequest(prompts=("Hi",), stream=stream, **fields)
    dialect = registry.dialect(pieces.dialect)
    return HttpCall(transport, dialect, request, Target(row, "m"), PATIENT)


def streamed(pieces: Pieces, *steps: fp.Step | bytes, chunked: bool = True) -> list[fp.Step]:
    headers = {"Content-Type": pieces.media}
    headers |= {"Transfer-Encoding": "chunked"} if chunked else CLOSE
    found = [fp.head(200, headers)]
    for step in steps:
        if isinstance(step, bytes) and chunked:
            step = fp.send(b"%x\r\n%b\r\n" % (len(step), step))
        found.append(fp.send(step) if isinstance(step, bytes) else step)
    return found


def run(call: HttpCall) -> tuple[Completion, float]:
    """Run a call. Return its completion and its duration in seconds."""
    began = time.monotonic()
    try:
        batches = list(call.events())
    finally:
        call.close()
    events = list(flatten(batches))
    finished = [event for event in events if isinstance(event, Finished)]
    assert len(finished) == len({event.index for event in finished}), "one finish for each choice"
    assert events[-len(finished) :] == finished
    return fold(events), time.monotonic() - began


def assert_whole(found: Completion, usage: Usage | None = None) -> None:
    [choice] = found.choices
    assert (choice.text, choice.finish_reason) == ("Hello, world", "stop")
    if usage is not None:
        assert found.usage == usage


@each
@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("after", [[], [fp.repeat(COMMENT, 0.05)]], ids=["silence", "comments"])
def test_an_answer_that_has_finished_ends_after_a_grace(
    fake: FakeProvider, transport: Transport, pieces: Pieces, chunked: bool, after: list[fp.Step]
) -> None:
    if after and (chunked or pieces.dialect == "bedrock"):
        after = []
    start = pieces.start + pieces.first
    fake.script(
        streamed(pieces, start, pieces.second, pieces.finish, *after, fp.hold(), chunked=chunked)
    )
    found, took = run(made(fake, transport, pieces))
    assert_whole(found)
    assert GRACE_S <= took < scaled(GRACE_S + 1.5)


@pytest.mark.parametrize("name", sorted(ENDING.keys() - {"bedrock"}))
def test_the_usage_after_a_finish_is_kept(
    fake: FakeProvider, transport: Transport, name: str
) -> None:
    pieces = PIECES[name]
    fake.script(
        streamed(
            *(pieces, pieces.start + pieces.first, pieces.second + pieces.finish),
            *(fp.sleep(GRACE_S / 3), pieces.usage, fp.hold()),
        )
    )
    found, took = run(made(fake, transport, pieces))
    assert_whole(found, Usage(7, 5))
    assert took >= GRACE_S * 4 / 3


def test_a_tls_stream_that_has_finished_ends_after_a_grace(
    tls_fake: FakeProvider, transport: Transport, ca_bundle: str
) -> None:
    pieces = PIECES["chat"]
    tls_fake.script(
        streamed(pieces, pieces.start + pieces.first, pieces.second, pieces.finish, fp.hold())
    )
    found, _ = run(made(tls_fake, transport, pieces, ca_bundle=ca_bundle))
    assert_whole(found)


@each
@pytest.mark.parametrize("how", [fp.close(), fp.reset()], ids=["close", "reset"])
def test_a_connection_may_break_after_a_finish(
    fake: FakeProvider, transport: Transport, pieces: Pieces, how: fp.Step
) -> None:
    fake.script(
        streamed(
            *(pieces, pieces.start + pieces.first, pieces.second + pieces.finish + pieces.usage),
            *(fp.sleep(0.05), how),
        )
    )
    found, _ = run(made(fake, transport, pieces))
    assert_whole(found, Usage(7, 5))


@pytest.mark.parametrize("name", [name for name, pieces in ENDING.items() if pieces.with_text])
def test_text_with_a_finish_waits_for_the_idle_deadline(
    fake: FakeProvider, transport: Transport, name: str
) -> None:
    pieces = PIECES[name]
    fake.script(
        streamed(pieces, pieces.start + pieces.first, pieces.with_text, fp.hold(), chunked=False)
    )
    call, batches = made(fake, transport, pieces), list[Batch]()
    reader = threading.Thread(target=lambda: batches.extend(call.events()), daemon=True)
    reader.start()
    fake.wait_requests()
    reader.join(GRACE_S + 1.2)
    assert reader.is_alive()
    assert call.end_if_finished()
    assert not call.end_if_finished(), "it was ended already"
    reader.join(HANG_S)
    assert_whole(fold(flatten(batches)))


@pytest.mark.parametrize("usage", sampled([{}, COUNTS], COUNTS))
def test_a_pause_does_not_cut_off_a_host_that_finishes_every_chunk(
    fake: FakeProvider, transport: Transport, usage: dict[str, Any]
) -> None:
    pieces = PIECES["completions"]
    chunks: list[fp.Step | bytes] = []
    for word in ("Hello", ",", " world"):
        chunk = json.loads(legacy(word, "stop").removeprefix(b"data: ")) | usage
        chunks += [b"data: " + json.dumps(chunk).encode() + b"\n\n", fp.sleep(GRACE_S + 0.7)]
    fake.script(streamed(pieces, *chunks, pieces.end, chunked=False))
    found, _ = run(made(fake, transport, pieces))
    assert found.choices[0].text == "Hello, world"


@each
def test_an_unfinished_answer_is_not_ended(
    fake: FakeProvider, transport: Transport, pieces: Pieces
) -> None:
    fake.script(streamed(pieces, pieces.start + pieces.first, fp.sleep(0.1), fp.close()))
    call = made(fake, transport, pieces)
    assert not call.end_if_finished()
    events = call.events()
    assert next(events)
    assert not call.end_if_finished()
    with pytest.raises(UpstreamError):
        list(events)
    call.close()


def test_every_choice_must_have_finished(fake: FakeProvider, transport: Transport) -> None:
    pieces = PIECES["completions"]
    first, second = legacy("a", "stop"), legacy("b", "length", index=1)
    fake.script(streamed(pieces, first, fp.sleep(GRACE_S + 0.7), second, pieces.usage, fp.hold()))
    found, _ = run(made(fake, transport, pieces, n=2))
    assert [(c.text, c.finish_reason) for c in found.choices] == [("a", "stop"), ("b", "length")]
    fake.script(streamed(pieces, first, pieces.usage, fp.sleep(GRACE_S + 0.7), fp.close()))
    with pytest.raises(UpstreamError):
        run(made(fake, transport, pieces, n=2))


# Whole answers

BODY = json.dumps({"model": "m", "choices": [{"index": 0, "text": "Hello, world",
                                              "finish_reason": "stop"}]}).encode()  # fmt: skip


@pytest.mark.parametrize("how", [fp.hold(), fp.close(), fp.reset()], ids=["hold", "close", "reset"])
@pytest.mark.parametrize("framing", [CLOSE, {"Content-Length": "900"}], ids=["none", "length"])
def test_complete_json_may_be_followed_by_any_end(
    fake: FakeProvider, transport: Transport, how: fp.Step, framing: dict[str, str]
) -> None:
    half = len(BODY) // 2
    head = fp.head(200, {"Content-Type": "application/json", **framing})
    parts = [fp.send(BODY[:half]), fp.sleep(0.05), fp.send(BODY[half:] + b"\n"), fp.sleep(0.05)]
    fake.script([head, *parts, how])
    found, _ = run(made(fake, transport, PIECES["completions"], stream=False))
    assert_whole(found)


def test_a_pause_inside_json_does_not_end_it(fake: FakeProvider, transport: Transport) -> None:
    at = BODY.index(b"}") + 1
    head = fp.head(200, {"Content-Type": "application/json", **CLOSE})
    pause = fp.sleep(GRACE_S + 0.7)
    fake.script([head, fp.send(BODY[:at]), pause, fp.send(BODY[at:]), fp.close()])
    found, _ = run(made(fake, transport, PIECES["completions"], stream=False))
    assert_whole(found)


@each
def test_a_stream_instead_of_json_ends_after_a_grace(
    fake: FakeProvider, transport: Transport, pieces: Pieces
) -> None:
    parts = pieces.start + pieces.first, pieces.second + pieces.finish
    fake.script(streamed(pieces, *parts, fp.hold()))
    found, took = run(made(fake, transport, pieces, stream=False))
    assert_whole(found)
    assert took >= GRACE_S
