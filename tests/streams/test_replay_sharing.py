"""Tests of resumable streams that several processes share through a real Redis.

Several stores in one process stand for the processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import ownership
from cluster.ownership import Cluster
from cluster.redis_client import RedisClient
from completion import StreamKey
from errors import SluiceError, Unavailable
from streams.replay import About, Ending, Replay
from streams.replay_log import FRAME
from streams.replay_sharing import SUBJECT, SharedReplays
from streams.replay_store import ReplayStore
from tests.cluster.test_ownership import Calls, wait
from tests.support.pace import HANG_S
from tests.support.redis_server import RedisServer

KEY = ("key_1", "s-1")
MB = 1 << 20


class Process:
    """A process: its store, and what it shares."""

    def __init__(self, url: str, total: int = 64 * MB, keep: float = 300) -> None:
        self.redis = RedisClient(url)
        self.cluster = Cluster(self.redis)
        self.store = ReplayStore(64 * MB, keep, 300)
        self.shared = SharedReplays(self.cluster, self.redis, self.store, keep=keep, total=total)
        subjects = {SUBJECT: self.shared.has}
        self.cluster.attend(Calls(), self.shared.beat, subjects=subjects)
        self.cluster.start()

    def close(self) -> None:
        self.shared.close()
        self.cluster.close()

    def begin(self, stream_key: StreamKey = KEY) -> Call:
        return Call(self.store, stream_key)


class Call:
    """A resumable call without a recorder."""

    def __init__(self, store: ReplayStore, stream_key: StreamKey) -> None:
        self._store = store
        self.state: Any = "queued"
        self.replay = Replay(stream_key, "native", self.about)
        self.replay.encode_error = encoded
        self.kind = self.replay.log.add_template((b'data: "', b'"\n\n')) or 0
        store.add(self.replay)

    def about(self) -> About:
        return About("r-1", 12.5, self.state, "sim", "m")

    def write(self, *texts: str) -> None:
        self.state = "in_progress"
        for text in texts:
            self.replay.log.append(self.kind, text.encode())
        self._store.grown(self.replay)
        self.replay.wake()

    def end(self, result: tuple[bytes, ...] = (b"{}",)) -> None:
        self.state = "completed"
        self.replay.log.append(FRAME, b"data: [DONE]\n\n")
        kinds = frozenset({self.kind})
        self.replay.close(Ending(self.about(), result, kinds, None, time.time()))
        self._store.ended(self.replay)


def encoded(error: SluiceError) -> tuple[bytes, bytes]:
    return b"data: %b\n\n" % error.code.encode(), b'"%b"' % error.code.encode()


class Reading:
    """A follower in a thread."""

    def __init__(self, replay: Replay, after: int = 0) -> None:
        self.data = b""
        follower = replay.follow(after, None, missed=False, keepalive=1e9)
        self._frames = follower.frames(lambda error: encoded(error)[0])
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for data in self._frames:
            self.data += data

    def whole(self) -> bytes:
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        return self.data.removeprefix(b":open\n")


def texts(*found: str, first: int = 1) -> bytes:
    return b"".join(
        b'id: %d\ndata: "%b"\n\n' % (first + n, text.encode()) for n, text in enumerate(found)
    )


def done(number: int) -> bytes:
    return b"id: %d\ndata: [DONE]\n\n" % number


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_S", 0.05)
    monkeypatch.setattr(ownership, "MAX_PAUSE_S", 0.1)
    monkeypatch.setattr(ownership, "SETTLED_S", 0.0)


@pytest.fixture
def new(redis_server: RedisServer) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(**settings: Any) -> Process:
        processes.append(Process(redis_server.url, **settings))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


@pytest.fixture
def owner(new: Callable[..., Process]) -> Process:
    return new()


@pytest.fixture
def other(new: Callable[..., Process]) -> Process:
    return new()


def found(process: Process, stream_key: StreamKey = KEY) -> Replay:
    """Return a process's copy of a stream, once it can have one."""
    copies: list[Replay] = []

    def known() -> bool:
        try:
            copy = process.shared.find(stream_key)
        except Unavailable:
            return False
        if copy is not None:
            copies.append(copy)
        return copy is not None

    wait(known)
    return copies[0]


def test_another_process_follows_a_stream_from_its_start_to_its_end(
    owner: Process, other: Process
) -> None:
    call = owner.begin()
    call.write("a", "b")
    reading = Reading(found(other))
    wait(lambda: texts("a", "b") in reading.data)
    call.write("c")
    wait(lambda: texts("c", first=3) in reading.data)
    call.write("d", "e")
    call.end((b'{"text":"', b'"}'))
    assert reading.whole() == texts("a", "b", "c", "d", "e") + done(6)


def test_a_copy_has_the_state_and_the_whole_answer(owner: Process, other: Process) -> None:
    call = owner.begin()
    copy = found(other)
    assert (copy.face, copy.about()) == ("native", About("r-1", 12.5, "queued", "sim", "m"))
    call.write("a", "b")
    wait(lambda: copy.about().state == "in_progress")
    call.end((b'{"text":"', b'"}'))
    wait(lambda: copy.ending is not None)
    ending = copy.ending
    assert ending is not None
    assert call.replay.ending is not None
    assert copy.about() == call.replay.about()
    assert ending.ended_at == call.replay.ending.ended_at
    assert copy.result(ending) == b'{"text":"ab"}'
