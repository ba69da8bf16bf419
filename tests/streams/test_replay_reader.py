"""Tests of replay_reader.py: a copy, whatever entries Redis has of its stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.ownership import Cluster
from cluster.redis_client import RedisClient
from errors import Unavailable
from streams.replay import About, Replay
from streams.replay_codec import FENCE, Facts, encode, key_entry
from streams.replay_counts import ReplayCounts
from streams.replay_log import FRAME
from streams.replay_reader import Copy, ReplayReader
from streams.replay_scripts import ENTRY, STREAM
from streams.replay_store import ReplayStore
from tests.cluster.test_ownership import wait
from tests.support.redis_server import RedisServer

KEY = ("key_1", "s-1")
NAME, OTHER = f"{STREAM}{'/'.join(KEY)}", f"{STREAM}key_1/s-2"
FACTS = Facts("native", "me", "r-1", 1.0, "in_progress", "sim", "m", b"", b"")


def entries(count: int, *key_entries: int) -> list[tuple[bytes, bytes]]:
    """Return the entries of a stream with a frame in each, with their ids.

    Args:
        key_entries: the numbers of those that are key entries.
    """
    replay = Replay(KEY, "native", lambda: About("r-1", 1.0, "in_progress", "sim", "m"))
    found = []
    for number in range(1, count + 1):
        replay.log.append(FRAME, b"data: %d\n\n" % number)
        piece = replay.log.piece(number - 1, 1)
        is_key = number in key_entries
        entry = key_entry(replay.log, piece, FACTS, None, 0) if is_key else encode(piece)
        found.append((b"%d-7" % number, entry))
    return found


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[RedisClient]:
    client = RedisClient(redis_server.url)
    yield client
    client.close()


@pytest.fixture
def reader(client: RedisClient) -> ReplayReader:
    store = ReplayStore(1 << 20, 300, 300)
    return ReplayReader(client, Cluster(client), store, ReplayCounts(), keep=300, orphan=300)


def write(client: RedisClient, name: bytes, entry: bytes, stream: str = NAME) -> None:
    client.run(lambda redis: redis.execute_command("XADD", stream, name, "e", entry))  # type: ignore[no-untyped-call]


def write_all(client: RedisClient, found: list[tuple[bytes, bytes]]) -> None:
    for name, entry in found:
        write(client, name, entry)


def test_a_copy_begins_at_the_first_key_entry(client: RedisClient, reader: ReplayReader) -> None:
    write_all(client, entries(40, 38))
    replay = reader.find(KEY)
    assert replay is not None
    assert (replay.log.first, replay.log.last) == (38, 40)


def test_a_stream_without_a_key_entry_counts_as_missing(
    client: RedisClient, reader: ReplayReader
) -> None:
    write_all(client, entries(20))
    assert reader.find(KEY) is None


def test_a_long_stream_is_read_in_portions(client: RedisClient, reader: ReplayReader) -> None:
    write_all(client, entries(200, 1))
    replay = reader.find(KEY)
    assert replay is not None
    assert (replay.log.first, replay.log.last) == (1, 200)


def test_an_entry_of_a_later_release_makes_the_stream_unavailable(
    client: RedisClient, reader: ReplayReader
) -> None:
    write(client, b"1-7", encode({"form": 2}))
    with pytest.raises(Unavailable):
        reader.find(KEY)
    assert reader.find(("key_1", "s-2")) is None


ENDS = (5).to_bytes(4, sys.byteorder)
PLANTED: dict[str, tuple[int, Any]] = {
    "another form": (1, [1, 2, 3]),
    "a state of a later release": (
        1,
        [1, b"", 0, b"", b"", [], ["f", "me", "r", 1.0, "paused", "p", "m", b"", b""], None],
    ),
    "ends that aren't numbers": (1, [1, b"\0", 0, b"\1\2\3", b"hello", [], FACTS, None]),
    "kinds without ends": (3, [1, b"\0\0\0", 0, ENDS, b"hello", [], FACTS, None]),
    "an unknown template": (1, [1, b"\7", 0, ENDS, b"hello", [], FACTS, None]),
    "a negative number": (1, [-5, b"\0", 0, ENDS, b"hello", [], FACTS, None]),
    "a huge number": (1, [1 << 62, b"\0", 0, ENDS, b"hello", [], FACTS, None]),
    "a base after the ends": (1, [1, b"\0", 100, ENDS, b"hello", [], FACTS, None]),
    "less data than the ends say": (1, [1, b"\0", 0, ENDS, b"hell", [], FACTS, None]),
    "a fence without an end": (FENCE, [1, b"", 0, b"", b"", [], FACTS, None]),
    "a time that is no number": (FENCE, [1, b"", 0, b"", b"", [], FACTS, [[], [], float("nan")]]),
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_an_entry_that_cant_be_read_makes_only_its_own_stream_unavailable(
    client: RedisClient, reader: ReplayReader, planted: tuple[int, Any]
) -> None:
    number, content = planted
    (first, entry), (second, later) = entries(2, 1)
    write(client, b"%d-7" % number, encode(content))
    write(client, first, entry, OTHER)
    other = reader.find(("key_1", "s-2"))
    assert other is not None
    for _ in range(2):
        with pytest.raises(Unavailable):
            reader.find(KEY)
    write(client, second, later, OTHER)
    wait(lambda: other.log.last == 2)


def test_a_key_of_another_type_makes_only_its_own_stream_unavailable(
    client: RedisClient, reader: ReplayReader
) -> None:
    (first, entry), (second, later) = entries(2, 1)
    client.run(lambda redis: redis.set(NAME, "x"))
    write(client, first, entry, OTHER)
    other = reader.find(("key_1", "s-2"))
    assert other is not None
    for _ in range(2):
        with pytest.raises(Unavailable):
            reader.find(KEY)
    assert client.available
    write(client, second, later, OTHER)
    wait(lambda: other.log.last == 2)


def test_an_entry_without_the_field_makes_the_stream_unavailable(
    client: RedisClient, reader: ReplayReader
) -> None:
    client.run(lambda redis: redis.execute_command("XADD", NAME, "1-7", "z", "1"))  # type: ignore[no-untyped-call]
    with pytest.raises(Unavailable):
        reader.find(KEY)


def test_a_copy_needs_room_in_memory(client: RedisClient) -> None:
    counts, store = ReplayCounts(), ReplayStore(1000, 300, 300)
    small = ReplayReader(client, Cluster(client), store, counts, keep=300, orphan=300)
    with pytest.raises(Unavailable, match="no room"):
        small.find(KEY)


def test_a_stream_that_begins_later_is_found(client: RedisClient, reader: ReplayReader) -> None:
    assert reader.find(KEY) is None
    [(name, entry)] = entries(1, 1)
    write(client, name, entry)
    wait(lambda: reader.find(KEY))


def test_entries_of_another_call_arent_added_to_a_copy() -> None:
    copy = Copy(KEY)
    (name, entry), _ = entries(2, 1)
    copy.take(name, {ENTRY: entry})
    copy.take(b"2-8", {ENTRY: entries(2, 2)[1][1]})
    assert copy.replaced
    assert copy.replay is not None
    assert copy.replay.log.last == 1
