"""Tests of written_stream.py: what a stream writes next, whatever Redis has of it."""

from __future__ import annotations

import pytest

from streams.replay import About, Ending, Replay
from streams.replay_codec import ENTRY_BYTES, FENCE, ReplayEntry, decode, parsed_id
from streams.replay_log import FRAME
from streams.replay_scripts import DROPPED, REFUSED, AppendItem
from streams.replay_store import STREAM_BYTES
from streams.written_stream import MISSING, REPLACE, WrittenStream, reservation

NOW, TTL = 1000.0, 300.0
ABOUT = About("r-1", 0.0, "in_progress", "sim", "m")


class Writing:
    """A stream, and a fake Redis that keeps its entries."""

    def __init__(self) -> None:
        self.replay = Replay(("key_1", "s-1"), "native", lambda: ABOUT)
        self.stream = WrittenStream(self.replay, "me", TTL)
        self.entries: list[tuple[bytes, bytes]] = []
        self.now = NOW

    @property
    def top(self) -> bytes:
        return self.entries[-1][0] if self.entries else b""

    def append(self, *texts: bytes) -> None:
        for text in texts:
            self.replay.log.append(FRAME, text)

    def close(self) -> None:
        self.replay.close(Ending(ABOUT, (b"{}",)))

    def item(self) -> AppendItem:
        return self.stream.next_item(self.now)

    def run(self, item: AppendItem) -> bool:
        """Do what the script does. Return False if the last entry isn't the expected one."""
        _, expected, name, entry, lowest, _ = item
        if self.top != (b"" if expected == REPLACE else expected):
            return False
        if name:
            self.entries.append((name, entry))
        if lowest:
            ids = [one for one, _ in self.entries]
            del self.entries[: ids.index(lowest)]
        return True

    def tick(self) -> AppendItem:
        item = self.item()
        if self.run(item):
            self.stream.done(self.now)
        else:
            assert self.stream.differs(self.top, self.now)
        return item

    def decoded(self) -> list[ReplayEntry]:
        return [decode(entry) for _, entry in self.entries]

    def data(self) -> bytes:
        return b"".join(entry.data for entry in self.decoded())

    def numbers(self) -> list[int]:
        return [parsed_id(name)[0] for name, _ in self.entries]


@pytest.fixture
def writing() -> Writing:
    return Writing()


def test_entries_follow_each_other_up_to_the_fence(writing: Writing) -> None:
    writing.tick()
    writing.append(b"a", b"b")
    writing.tick()
    writing.append(b"c")
    writing.tick()
    writing.append(b"d")
    writing.close()
    writing.tick()
    assert writing.numbers() == [0, 2, 3, FENCE]
    assert [entry.facts is not None for entry in writing.decoded()] == [True, True, False, True]
    assert (writing.data(), writing.stream.fenced) == (b"abcd", True)
    assert writing.item()[2] == b"", "nothing follows a fence"


def test_a_stream_without_news_only_checks(writing: Writing) -> None:
    writing.tick()
    assert writing.tick()[2:] == (b"", b"", b"", 0)
    assert len(writing.entries) == 1


def test_the_time_to_live_is_put_off_four_times_within_it(writing: Writing) -> None:
    assert writing.tick()[5] == TTL * 1000
    writing.now += TTL / 4 - 1
    assert writing.tick()[5] == 0
    writing.now += 2
    assert writing.tick()[5] == TTL * 1000


def test_an_append_whose_result_was_lost_counts_as_done(writing: Writing) -> None:
    writing.tick()
    writing.append(b"a")
    writing.run(writing.item())  # its result never comes
    writing.append(b"b")
    writing.tick()  # the last entry isn't the expected one
    writing.tick()
    assert (writing.numbers(), writing.data()) == ([0, 1, 2], b"ab")


def test_the_same_item_twice_is_written_once(writing: Writing) -> None:
    writing.append(b"a")
    item = writing.item()
    assert writing.run(item)
    assert not writing.run(item)
    assert writing.stream.differs(writing.top, NOW)
    writing.append(b"b")
    writing.tick()
    assert (writing.numbers(), writing.data()) == ([1, 2], b"ab")


def test_a_lost_tail_is_written_again_with_a_key_entry(writing: Writing) -> None:
    for text in (b"a", b"b", b"c"):
        writing.append(text)
        writing.tick()
    del writing.entries[1:]
    writing.tick()
    writing.tick()
    assert (writing.numbers(), writing.data()) == ([1, 3], b"abc")
    assert writing.decoded()[-1].facts is not None


def test_a_lost_fence_is_written_again(writing: Writing) -> None:
    writing.append(b"a")
    writing.tick()
    writing.close()
    writing.tick()
    del writing.entries[1:]
    writing.tick()
    assert not writing.stream.fenced
    writing.tick()
    assert (writing.numbers(), writing.data()) == ([1, FENCE], b"a")


def test_a_lost_stream_is_written_again_from_what_the_log_has(writing: Writing) -> None:
    writing.append(*[b"%03d" % n for n in range(100)])
    writing.tick()
    writing.replay.log.trim(150)
    writing.entries.clear()
    writing.tick()
    item = writing.tick()
    assert item[1] == MISSING
    assert writing.decoded()[0].first == writing.replay.log.first == 51
    assert writing.data() == b"".join(b"%03d" % n for n in range(50, 100))


@pytest.mark.parametrize("top", [b"5-1", b"%d-1" % FENCE, REFUSED, DROPPED])
def test_a_stream_that_was_replaced_or_has_no_room_is_given_up(
    writing: Writing, top: bytes
) -> None:
    writing.append(b"a")
    writing.item()
    assert not writing.stream.differs(top, NOW)


def test_a_stream_that_another_process_ended_is_given_up(writing: Writing) -> None:
    writing.append(b"a")
    writing.tick()
    fence = b"%d-%b" % (FENCE, writing.stream.nonce)
    writing.append(b"b")
    writing.item()
    assert not writing.stream.differs(fence, NOW)


def test_a_long_backlog_is_written_in_portions_before_the_fence(writing: Writing) -> None:
    piece = b"x" * 1000
    writing.append(*[piece] * 200)
    writing.close()
    while not writing.stream.fenced:
        writing.tick()
        assert writing.stream.more == (not writing.stream.fenced)
    assert max(len(entry.data) for entry in writing.decoded()) <= ENTRY_BYTES
    assert writing.data() == piece * 200


def test_a_frame_larger_than_an_entry_is_written_whole(writing: Writing) -> None:
    writing.append(b"x" * ENTRY_BYTES * 2, b"y")
    writing.tick()
    writing.tick()
    assert [len(entry.data) for entry in writing.decoded()] == [ENTRY_BYTES * 2, 1]


def test_old_entries_are_dropped_up_to_a_key_entry(writing: Writing) -> None:
    for n in range(200):
        writing.append(b"%d " % n + b"x" * 50_000)
        writing.tick()
        assert sum(len(entry) for _, entry in writing.entries) <= STREAM_BYTES + ENTRY_BYTES
    kept = writing.decoded()
    assert kept[0].facts is not None
    assert 0 < kept[0].first < 200
    assert writing.numbers() == list(range(kept[0].first, 201))
    held = sum(len(entry) for _, entry in writing.entries)
    assert held <= writing.stream.size <= held + 10_000


def test_bytes_are_reserved_before_they_are_written(writing: Writing) -> None:
    wanted = []
    for _ in range(100):
        writing.append(b"x" * 10_000)
        writing.item()
        if writing.stream.wanted:
            wanted.append(writing.stream.wanted)
            writing.stream.reserved = writing.stream.wanted
        writing.run(writing.item())
        writing.stream.done(NOW)
        assert writing.stream.size <= writing.stream.reserved
    kb = [size // 1024 for size in wanted]
    assert kb == [16, 32, 64, 128, 256, 512, 768, 1024]
    writing.close()
    writing.item()
    assert writing.stream.wanted < 1024 * 1024, "what isn't needed is given back"


@pytest.mark.parametrize(
    ("size", "reserved"), [(1, 16), (16, 16), (17, 32), (300, 512), (513, 768)]
)
def test_reservations_grow_in_steps(size: int, reserved: int) -> None:
    assert reservation(size * 1024) == reserved * 1024


def test_what_is_written_again_has_its_templates_even_if_a_copy_has_the_first_entries(
    writing: Writing,
) -> None:
    writing.append(b"a" * ENTRY_BYTES, b"b")
    writing.tick()
    writing.tick()
    kind = writing.replay.log.add_template((b"<", b">"))
    assert kind is not None
    writing.replay.log.append(kind, b"c" * ENTRY_BYTES)
    writing.entries.clear()  # a copy has two frames, and Redis is flushed
    while writing.numbers()[-1:] != [3]:
        writing.tick()
    later = [entry for entry in writing.decoded() if entry.last > 2]
    assert [entry.templates for entry in later] == [((b"<", b">"),)] * len(later)


def test_after_a_lost_result_the_next_entry_has_the_templates(writing: Writing) -> None:
    writing.append(b"a")
    writing.run(writing.item())  # its result never comes
    kind = writing.replay.log.add_template((b"<", b">"))
    assert kind is not None
    writing.tick()
    writing.replay.log.append(kind, b"b")
    writing.tick()
    assert [entry.templates for entry in writing.decoded()] == [(), ((b"<", b">"),)]
