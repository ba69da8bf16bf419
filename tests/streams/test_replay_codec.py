"""Tests of replay_codec.py: a log and its copy, whatever of the entries arrives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import StreamTrimmed
from streams.replay import About, Ending, Replay
from streams.replay_codec import (
    FENCE,
    Facts,
    add_to,
    decode,
    encode,
    ending_of,
    entry_id,
    facts_of,
    interrupted,
    key_entry,
    parsed_id,
)
from streams.replay_log import FRAME, ReplayLog

ABOUT = About("r-1", 12.5, "in_progress", "sim", "m")
FACTS = Facts("native", "me", "r-1", 12.5, "in_progress", "sim", "m", b"data: dead\n\n", b'"dead"')
FRAMES = st.lists(st.tuples(st.booleans(), st.binary(max_size=12)), max_size=40)


def new() -> Replay:
    return Replay(("key_1", "s-1"), "native", lambda: ABOUT)


def filled(frames: list[tuple[bool, bytes]]) -> Replay:
    """Return a stream with texts of one template, and with whole frames."""
    replay = new()
    kind = replay.log.add_template((b"<", b">"))
    assert kind is not None
    for is_text, data in frames:
        replay.log.append(kind if is_text else FRAME, data)
    return replay


def entries(log: ReplayLog, sizes: list[int], after: int = 0) -> list[bytes]:
    """Return a log's entries of about the given numbers of bytes. The first is a key entry."""
    found: list[bytes] = []
    while after < log.last or not found:
        piece = log.piece(after, sizes[len(found) % len(sizes)])
        found.append(encode(piece) if found else key_entry(log, piece, FACTS, None, 0))
        after = piece[0] + len(piece[1]) - 1
    return found


def read_all(log: ReplayLog, after: int = 0) -> bytes:
    found = b""
    while log.last > after:
        data, after = log.read(after)
        found += data
    return found


@given(FRAMES, st.lists(st.integers(1, 40), min_size=1, max_size=5), st.randoms())
def test_a_copy_equals_its_log_however_often_entries_come(
    frames: list[tuple[bool, bytes]], sizes: list[int], chance: Any
) -> None:
    replay, copy = filled(frames), new()
    sent = entries(replay.log, sizes)
    for n, entry in enumerate(sent):
        add_to(copy, decode(entry))
        add_to(copy, decode(sent[chance.randrange(n + 1)]))  # one that the copy has already
    assert read_all(copy.log) == read_all(replay.log)
    assert copy.log.last == len(frames)
    assert read_all(copy.log) == read_all(replay.log)


@given(FRAMES, st.integers(1, 30), st.integers(0, 40), st.integers(1, 30))
def test_entries_with_other_bounds_continue_a_copy_without_a_hole(
    frames: list[tuple[bool, bytes]], size: int, kept: int, other: int
) -> None:
    """After a failover, the owner writes its log again from any frame, in other portions."""
    replay, copy = filled(frames), new()
    first = entries(replay.log, [size])
    for entry in first[: 1 + kept]:
        add_to(copy, decode(entry))
    again = min(kept, copy.log.last)
    for entry in entries(replay.log, [other], after=again):
        add_to(copy, decode(entry))
    assert read_all(copy.log) == read_all(replay.log)


@given(FRAMES.filter(lambda frames: len(frames) > 3), st.integers(1, 3))
def test_a_copy_starts_again_after_a_hole(frames: list[tuple[bool, bytes]], read: int) -> None:
    replay, copy = filled(frames), new()
    add_to(copy, decode(key_entry(replay.log, replay.log.piece(0, 1), FACTS, None, 0)))
    had = copy.log.last
    replay.log.trim(sum(len(data) for _, data in frames[: had + read]) or 1)
    first = replay.log.first
    for entry in entries(replay.log, [10], after=first - 1):
        add_to(copy, decode(entry))
    if first > had + 1:
        with pytest.raises(StreamTrimmed) as caught:
            copy.log.read(had)
        assert caught.value.details == {"first": first}
    assert read_all(copy.log, first - 1) == read_all(replay.log, first - 1)


def test_the_fence_carries_the_end() -> None:
    replay, copy = filled([(True, b"a"), (True, b"b")]), new()
    ending = Ending(ABOUT, (b"{", b"}"), frozenset({1}), None, 99.5)
    replay.close(ending)
    facts = facts_of(replay, "me", b"", b"")
    assert (facts.about(), facts.owner, facts.face) == (ABOUT, "me", "native")
    fence = decode(key_entry(replay.log, replay.log.piece(0, 100), facts, ending, 100))
    add_to(copy, fence)
    assert ending_of(fence) == ending
    assert copy.result(ending) == b"{ab}"


def test_a_whole_answer_that_is_too_large_is_left_out() -> None:
    replay = filled([])
    ending = Ending(ABOUT, (b"x" * 11,), frozenset(), None, 99.5)
    fence = decode(key_entry(replay.log, replay.log.piece(0, 100), FACTS, ending, 10))
    found = ending_of(fence)
    assert found is not None
    assert found.result == ()


@pytest.mark.parametrize("has", [0, 2, 5])
def test_the_fence_of_a_dead_owner_adds_no_frame_whatever_a_copy_has(has: int) -> None:
    copy = filled([(True, b"x")] * has)
    fence = decode(interrupted(FACTS, 7.0))
    add_to(copy, fence)
    assert copy.log.last == has
    found = ending_of(fence)
    assert found is not None
    assert (found.about.state, found.result, found.ended_at) == ("interrupted", (b'"dead"',), 7.0)
    assert found.lost_frame == b"data: dead\n\n"


def test_an_entry_that_isnt_a_fence_has_no_end() -> None:
    assert ending_of(decode(encode(filled([(True, b"a")]).log.piece(0, 10)))) is None


def test_ids_sort_as_the_frames_they_end_with() -> None:
    for number in (0, 7, FENCE):
        assert parsed_id(entry_id(number, b"42")) == (number, b"42")
    assert FENCE == 2**64 - 1, "Redis' highest number"
