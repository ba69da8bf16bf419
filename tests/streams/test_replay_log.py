"""Tests of streams/replay_log.py: the log against a plain list of frames."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import StreamTrimmed
from streams.replay_log import FRAME, LONGEST_JOINED, MOST_TEMPLATES, READ, ReplayLog

TEMPLATES = [(b'data: {"a":"', b'"}\n\n'), (b'data: {"x":"', b'","y":"', b'"}\n\n')]
TEXTS = st.text("ab ", max_size=20).map(str.encode)
ENTRIES = st.one_of(
    st.tuples(st.sampled_from([1, 2]), TEXTS),
    st.tuples(st.just(FRAME), TEXTS.map(lambda text: b"data: " + text + b"\n\n")),
)
STEPS = st.lists(st.one_of(ENTRIES, st.tuples(st.just("trim"), st.integers(0, 200))), max_size=60)


def expected(kind: int, entry: bytes) -> bytes:
    return entry.join(TEMPLATES[kind - 1]) if kind else entry


def made(steps: list[Any]) -> tuple[ReplayLog, list[tuple[int, bytes]]]:
    """Return a log after some steps, and the entries that it has ever got."""
    log, entries = ReplayLog(), []
    assert [log.add_template(parts) for parts in TEMPLATES] == [1, 2]
    for kind, value in steps:
        if kind == "trim":
            before = log.first, log.last
            log.trim(value)
            assert before[0] <= log.first <= max(1, log.last), "the newest entry stays"
            assert log.last == before[1]
        else:
            log.append(kind, value)
            entries.append((kind, value))
    return log, entries


def read_all(log: ReplayLog, after: int, *, joined: bool) -> bytes:
    parts = []
    while after < log.last:
        data, after = log.read(after, joined=joined)
        parts.append(data)
    return b"".join(parts)


@given(STEPS, st.integers(0, 70))
def test_reading_gives_each_frame_with_its_number(steps: list[Any], after: int) -> None:
    log, entries = made(steps)
    assert log.last == len(entries)
    if after + 1 < log.first:
        with pytest.raises(StreamTrimmed) as caught:
            log.read(after)
        assert caught.value.details == {"first": log.first}
        return
    frames = [b"id: %d\n" % (n + 1) + expected(*entry) for n, entry in enumerate(entries)]
    assert read_all(log, after, joined=False) == b"".join(frames[after:])


@given(STEPS, st.integers(0, 70))
def test_joined_frames_have_the_same_text_and_the_highest_number(
    steps: list[Any], after: int
) -> None:
    log, entries = made(steps)
    if after + 1 < log.first:
        return
    data = read_all(log, after, joined=True)
    numbers = [int(n) for n in re.findall(rb"^id: (\d+)$", data, re.MULTILINE)]
    assert numbers == sorted(set(numbers))
    assert not numbers or numbers[-1] == log.last
    position = after
    for number, block in zip(numbers, data.split(b"\n\n"), strict=False):
        covered = entries[position:number]
        kinds = {kind for kind, _ in covered}
        assert len(kinds) == 1, "only texts of one choice are joined"
        assert len(covered) == 1 or kinds != {FRAME}
        text = b"".join(entry for _, entry in covered)
        assert block + b"\n\n" == b"id: %d\n" % number + expected(kinds.pop(), text)
        position = number


@given(STEPS)
def test_runs_have_all_entries_that_are_left(steps: list[Any]) -> None:
    log, entries = made(steps)
    left = entries[log.first - 1 :]
    for kind in (FRAME, 1, 2):
        assert b"".join(entry for found, entry in log.runs() if found == kind) == b"".join(
            entry for found, entry in left if found == kind
        )


@given(STEPS)
def test_a_compacted_log_reads_alike(steps: list[Any]) -> None:
    log, _ = made(steps)
    after, size = log.first - 1, log.size
    before = read_all(log, after, joined=True)
    log.compact()
    assert (read_all(log, after, joined=True), log.size <= size) == (before, True)


def test_reads_and_joined_frames_are_bounded() -> None:
    log = ReplayLog()
    log.add_template(TEMPLATES[0])
    for _ in range(3000):
        log.append(1, b"x" * 100)
    data, last = log.read(0)
    assert READ < len(data) < 2 * READ
    assert 0 < last < 3000
    data, _ = log.read(0, joined=True)
    longest = max(map(len, data.split(b"\n\n")))
    assert LONGEST_JOINED - 200 < longest < LONGEST_JOINED + 200


def test_a_single_entry_may_be_longer_than_a_read() -> None:
    log = ReplayLog()
    log.append(FRAME, b"data: " + b"x" * READ * 2 + b"\n\n")
    log.append(FRAME, b"data: y\n\n")
    assert log.read(0)[1] == 1
    assert log.read(1)[1] == 2


def test_a_log_has_a_bounded_number_of_templates() -> None:
    log = ReplayLog()
    kinds = [log.add_template((b"a", b"b")) for _ in range(MOST_TEMPLATES + 1)]
    assert kinds[-2:] == [MOST_TEMPLATES, None]


def test_an_event_takes_few_bytes_beyond_its_text() -> None:
    log = ReplayLog()
    log.add_template(TEMPLATES[0])
    text = b"word"
    for _ in range(10_000):
        log.append(1, text)
    assert log.size / 10_000 - len(text) < 6.5
    log.compact()
    assert log.size / 10_000 - len(text) < 5.2
