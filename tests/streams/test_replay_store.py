"""Tests of streams/replay_store.py: which streams are kept, dropped and counted."""

from __future__ import annotations

import pytest

from streams import replay_store
from streams.replay import About, Ending, Replay
from streams.replay_log import FRAME
from streams.replay_store import ReplayStore

ABOUT = About("r-1", 0.0, "completed", "sim", "m")


def ended(store: ReplayStore, name: str, size: int = 10_000) -> Replay:
    """Return a stream that has ended, in the store."""
    replay = Replay(("key_1", name), "native", lambda: ABOUT)
    store.add(replay)
    replay.log.append(FRAME, b"x" * size + b"\n\n")
    store.grown(replay)
    replay.close(Ending(ABOUT, (b"{}",)))
    store.ended(replay)
    return replay


def test_an_expired_stream_is_kept_and_counted_until_its_last_follower_leaves() -> None:
    store = ReplayStore(1 << 20, keep=0, orphan=300)
    followed, later = ended(store, "followed"), ended(store, "later")
    follower = followed.follow(0, None, missed=True, keepalive=1e9)
    store.sweep()
    assert list(store.kept) == [followed.key]
    assert store.find(later.key) is None
    assert store.size == followed.size
    follower.close()
    store.sweep()
    assert (store.kept, store.size) == ({}, 0)


def test_room_is_made_of_streams_that_nobody_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_store, "KEY_BYTES", 64 << 10)
    store = ReplayStore(1 << 20, keep=300, orphan=300)
    followed = ended(store, "followed", 20_000)
    ended(store, "second", 20_000)
    follower = followed.follow(0, None, missed=True, keepalive=1e9)
    third = ended(store, "third", 20_000)
    assert store.has_room("key_1")
    assert set(store.kept) == {followed.key, third.key}, "the oldest one has a follower"
    third.follow(0, None, missed=True, keepalive=1e9)
    follower.close()
    assert store.has_room("key_1")


def test_a_key_whose_streams_are_all_followed_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_store, "KEY_BYTES", 64 << 10)
    store = ReplayStore(1 << 20, keep=300, orphan=300)
    replays = [ended(store, str(number), 25_000) for number in range(2)]
    followers = [replay.follow(0, None, missed=True, keepalive=1e9) for replay in replays]
    assert not store.has_room("key_1")
    assert store.has_room("key_2")
    followers[0].close()
    assert store.has_room("key_1")
    assert list(store.kept) == [replays[1].key]
