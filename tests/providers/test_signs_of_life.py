"""Tests of the events besides text in every dialect: signs of life, reasoning, and finishes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from completion import Batch, CompletionRequest, Delta, Finished, Started, Thought, Usage, Used
from errors import UpstreamError
from providers import registry
from streams.tally import Tally
from tests.support.pieces import PIECES, THOUGHT, Pieces

REQUEST = CompletionRequest(prompts=("Hi",), stream=True)

each = pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
ending = pytest.mark.parametrize(
    "pieces",
    [p for p in PIECES.values() if p.finish],
    ids=[n for n, p in PIECES.items() if p.finish],
)


def batches(pieces: Pieces, *chunks: bytes) -> list[Batch]:
    return list(registry.dialect(pieces.dialect).events(chunks, REQUEST))


def until_failure(pieces: Pieces, *chunks: bytes) -> Iterator[Batch]:
    try:
        yield from registry.dialect(pieces.dialect).events(chunks, REQUEST)
    except UpstreamError:
        return


@each
def test_every_piece_yields_one_batch_when_it_arrives(pieces: Pieces) -> None:
    served = 0
    chunks = [pieces.start, pieces.ping, pieces.thought, pieces.ping, pieces.first]
    chunks = [chunk for chunk in chunks if chunk]

    def arriving() -> Iterator[bytes]:
        for number, chunk in enumerate(chunks):
            assert served == number, "a piece gave no sign of life"
            yield chunk

    with suppress(UpstreamError):
        for _ in registry.dialect(pieces.dialect).events(arriving(), REQUEST):
            served += 1
    assert served == len(chunks)


@each
def test_a_ping_yields_an_empty_batch(pieces: Pieces) -> None:
    found = list(until_failure(pieces, pieces.start, pieces.ping, pieces.ping))
    assert found[1:] == [[], []]


@each
def test_bytes_that_complete_nothing_yield_nothing(pieces: Pieces) -> None:
    single = [bytes([byte]) for byte in pieces.partial]
    found = list(until_failure(pieces, pieces.start, pieces.first, *single))
    assert len(found) == 2


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("ping", [b": ping", b":", b"event: ping\n", b""])
def test_a_comment_or_an_empty_event_is_a_sign_of_life(ping: bytes, newline: bytes) -> None:
    pieces = PIECES["chat"]
    chunk = ping.replace(b"\n", newline) + newline
    found = list(until_failure(pieces, pieces.start, chunk, chunk, pieces.first))
    assert found[1:] == [[], [], [Delta(0, "Hello")]]


def test_a_field_of_an_unfinished_event_is_no_sign_of_life() -> None:
    pieces = PIECES["chat"]
    found = list(until_failure(pieces, pieces.start, b"event: x\n", b"data: {}\n", b"id: 1\n"))
    assert len(found) == 1


@each
def test_reasoning_is_a_thought_of_its_size(pieces: Pieces) -> None:
    if not pieces.thought:
        return
    found = list(until_failure(pieces, pieces.start, pieces.thought, pieces.thought))
    assert found[1:] == [[Thought(len(THOUGHT))]] * 2
    tally = Tally(("Hi",))
    for batch in found:
        tally.add(batch)
    usage = tally.usage(failed=False)
    assert (usage.output_tokens, usage.source) == (6, "estimate")


@each
def test_the_reported_usage_counts_after_reasoning(pieces: Pieces) -> None:
    chunks = [pieces.start, pieces.thought, pieces.first, pieces.finish, pieces.usage, pieces.end]
    tally = Tally(("Hi",))
    for batch in batches(pieces, *filter(None, chunks)):
        tally.add(batch)
    assert tally.usage(failed=False) == Usage(7, 5)


@ending
def test_a_finish_is_reported_when_it_arrives(pieces: Pieces) -> None:
    found = list(until_failure(pieces, pieces.start, pieces.first, pieces.finish))
    assert found[-1] == [Finished(0, "stop")]


@ending
def test_a_stream_may_end_in_any_way_after_its_finish(pieces: Pieces) -> None:
    for rest in ([], [pieces.usage], [pieces.usage, pieces.ping], [pieces.partial]):
        found = batches(pieces, pieces.start, pieces.first, pieces.finish, *rest)
        events = [event for batch in found for event in batch]
        assert [event for event in events if isinstance(event, Finished)] == [Finished(0, "stop")]
        if pieces.usage in rest:
            assert Used(Usage(7, 5)) in events


@ending
def test_text_after_a_finish_is_text(pieces: Pieces) -> None:
    chunks = [pieces.start, pieces.first, pieces.finish, pieces.second, pieces.finish]
    events = [event for batch in batches(pieces, *chunks) for event in batch]
    assert [event.text for event in events if isinstance(event, Delta)] == ["Hello", ", world"]


@each
def test_an_error_after_the_start_follows_only_invisible_events(pieces: Pieces) -> None:
    chunks = [pieces.start, pieces.ping, pieces.thought, pieces.error]
    found = [event for batch in until_failure(pieces, *filter(None, chunks)) for event in batch]
    assert found
    assert all(isinstance(event, Started | Thought | Used) for event in found)
    with pytest.raises(UpstreamError):
        batches(pieces, *filter(None, chunks))
