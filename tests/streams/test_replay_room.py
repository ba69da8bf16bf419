"""Tests of replay_room.py: the bounds on what resumable streams take in a real Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.redis_client import RedisClient
from streams import replay_room
from streams.replay_counts import ReplayCounts
from streams.replay_room import ReplayRoom
from streams.replay_scripts import STREAM
from tests.support.redis_server import RedisServer

KB = 1 << 10
KEEP = 300.0


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[RedisClient]:
    client = RedisClient(redis_server.url)
    yield client
    client.close()


@pytest.fixture
def counts() -> ReplayCounts:
    return ReplayCounts()


def reserve(
    room: ReplayRoom, key_id: str, stream_id: str, size: int, *, ended: bool = False
) -> int:
    [granted] = room.reserve([((key_id, stream_id), size, ended)])
    return granted


def test_reservations_of_all_processes_count_for_the_total(
    client: RedisClient, counts: ReplayCounts
) -> None:
    ours, theirs = (
        ReplayRoom(client, 64 * KB, KEEP, counts),
        ReplayRoom(client, 64 * KB, KEEP, counts),
    )
    assert reserve(ours, "key_1", "s-1", 40 * KB) == 1
    assert reserve(theirs, "key_2", "s-2", 24 * KB) == 1
    assert counts.bytes == 64 * KB
    assert reserve(theirs, "key_2", "s-3", 1) == 0
    assert (theirs.is_full("key_2"), theirs.is_full("key_1"), ours.is_full("key_2")) == (
        True,
        False,
        False,
    )
    assert reserve(ours, "key_1", "s-1", 20 * KB) == 1, "a smaller reservation gives bytes back"
    assert reserve(theirs, "key_2", "s-3", 20 * KB) == 1


def test_a_reservation_is_set_and_not_added(client: RedisClient, counts: ReplayCounts) -> None:
    room = ReplayRoom(client, 64 * KB, KEEP, counts)
    for size in (16, 32, 32, 48):
        assert reserve(room, "key_1", "s-1", size * KB) == 1
    assert counts.bytes == 48 * KB


def test_room_is_made_of_the_keys_own_oldest_ended_streams(
    client: RedisClient, counts: ReplayCounts, redis_server: RedisServer
) -> None:
    room, redis = ReplayRoom(client, 64 * KB, KEEP, counts), redis_server.client()
    names = {"key_1": ("old", "new", "open"), "key_2": ("theirs",)}
    for key_id, ids in names.items():
        for stream_id in ids:
            redis.xadd(f"{STREAM}{key_id}/{stream_id}", {"e": "x"})
            ended = stream_id != "open"
            assert reserve(room, key_id, stream_id, 16 * KB, ended=ended) == 1
    assert reserve(room, "key_1", "more", 16 * KB) == 1
    left = {name.rpartition("/")[2] for name in redis.keys(f"{STREAM}*")}
    assert left == {"new", "open", "theirs"}
    assert reserve(room, "key_1", "even-more", 32 * KB) == 0, "only one ended stream is left"
    assert counts.bytes == 48 * KB
    redis.close()


def test_a_key_has_its_own_bound(
    client: RedisClient, counts: ReplayCounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_room, "KEY_BYTES", 32 * KB)
    room = ReplayRoom(client, 128 * KB, KEEP, counts)
    assert reserve(room, "key_1", "s-1", 32 * KB) == 1
    assert reserve(room, "key_1", "s-2", 16 * KB) == 0
    assert reserve(room, "key_2", "s-1", 32 * KB) == 1


def test_a_growing_stream_that_finds_no_room_gives_back_what_it_had(
    client: RedisClient, counts: ReplayCounts
) -> None:
    room = ReplayRoom(client, 64 * KB, KEEP, counts)
    assert reserve(room, "key_1", "s-1", 48 * KB) == 1
    assert reserve(room, "key_1", "s-1", 80 * KB) == 0
    assert counts.bytes == 0


def test_expired_reservations_give_their_bytes_back(
    client: RedisClient,
    counts: ReplayCounts,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    redis = redis_server.client()
    room = ReplayRoom(client, 64 * KB, KEEP, counts)
    assert reserve(room, "key_1", "s-1", 64 * KB, ended=True) == 1
    redis.zadd("sluice:replay-expiry", {"key_1/s-1": 1})
    monkeypatch.setattr(replay_room, "REFRESH_S", 0.0)
    room.refresh()
    assert counts.bytes == 0
    assert redis.keys("sluice:replay*") == []
    redis.close()


def test_streams_take_at_most_a_quarter_of_redis_own_limit(counts: ReplayCounts) -> None:
    with RedisServer(maxmemory="4mb") as server:
        client = RedisClient(server.url)
        room = ReplayRoom(client, 64 << 20, KEEP, counts)
        assert reserve(room, "key_1", "s-1", 1 << 20) == 1
        assert reserve(room, "key_1", "s-2", 1) == 0
        client.close()
