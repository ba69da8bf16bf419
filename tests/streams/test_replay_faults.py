"""Random faults of Redis between the writer and the reader of a resumable stream.

A log grows, the writer and the reader do their turns, and meanwhile responses are lost, scripts run
twice, Redis is away, is flushed, or falls back to an older state. The reader's copy must never
differ from the log, and in the end it must be whole.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from cluster.redis_client import RedisAway, RedisClient
from errors import StreamTrimmed
from streams import written_stream
from streams.replay import About, Ending, Replay
from streams.replay_counts import ReplayCounts
from streams.replay_log import FRAME
from streams.replay_reader import Copy, ReplayReader
from streams.replay_room import ReplayRoom
from streams.replay_scripts import STREAM
from streams.replay_store import ReplayStore
from streams.replay_writer import ReplayWriter
from tests.support.redis_server import RedisServer

TURNS, SEEDS = 150, 60
KEY = ("key_1", "stream-1")
NAME = STREAM + "/".join(KEY)


class FaultyRedis:
    """A Redis client whose next work fails in some way."""

    def __init__(self, redis_client: RedisClient) -> None:
        self._redis = redis_client
        self.available = True
        self.fault = ""

    def memory_limit(self) -> int:
        return 0

    def run(self, work: Callable[[Any], Any]) -> Any:
        fault, self.fault = self.fault, ""
        if not self.available or fault == "unsent":
            raise RedisAway("it is away")
        if fault == "repeated":  # the first response was lost with the connection
            self._redis.run(work)
        result = self._redis.run(work)
        if fault == "unanswered":
            raise RedisAway("the response is lost")
        return result


class Scene:
    """A stream, its writer, its reader, and a follower of the copy."""

    def __init__(self, url: str, chance: random.Random, *, trims: bool) -> None:
        self.chance, self.trims = chance, trims
        self.redis_client = RedisClient(url)
        self.writes = FaultyRedis(self.redis_client)
        self.reads = FaultyRedis(self.redis_client)
        self.store = ReplayStore(1 << 30, 300, 300)
        counts = ReplayCounts()
        writes: Any = self.writes
        reads: Any = self.reads
        cluster: Any = None
        room = ReplayRoom(writes, 1 << 30, 300, counts)
        self.writer = ReplayWriter(writes, "owner", keep=300, orphan=300, room=room, counts=counts)
        self.reader = ReplayReader(reads, cluster, self.store, counts, keep=300, orphan=300)
        for part in (self.writer, self.reader):
            part._thread.start = lambda: None  # type: ignore[method-assign]
        self.now = time.monotonic()
        about = About("req-1", 1.0, "in_progress", "sim", "m")
        self.replay = Replay(KEY, "openai", lambda: about)
        self.replay.encode_error = lambda _: (b"data: gone\n\n", b'"gone"')
        self.kinds = [FRAME]
        self.truth: list[bytes] = []
        self.saved: bytes | None = None
        self.position = 0
        self.got: list[bytes] = []
        self.trimmed = False
        self.writer.add(self.replay)
        self.turns: dict[str, tuple[Callable[[], None], int]] = {
            "append": (self.append, 8),
            "write": (self.write, 8),
            "read": (self.read, 8),
            "wait": (self.wait, 1),
            "flush": (self.flush, 1),
            "save": (self.save, 2),
            "fall back": (self.fall_back, 1),
            "leave": (self.leave, 1),
            "go": (self.go, 1),
            "come": (self.come, 4),
            "fault": (self.fault, 4),
            "trim": (self.trim, 1),
        }

    def close(self) -> None:
        self.redis_client.close()

    # What the call does.

    def append(self) -> None:
        if self.replay.ending is not None:
            return
        log = self.replay.log
        for _ in range(self.chance.randrange(1, 6)):
            if self.chance.random() < 0.1:
                parts = (b"data: %d <" % len(self.kinds), b">\n\n")
                kind = log.add_template(parts)
                assert kind is not None
                self.kinds.append(kind)
            kind, number = self.chance.choice(self.kinds), len(self.truth) + 1
            text = b"t%d" % number * self.chance.randrange(1, 9)
            entry = text if kind else b"data: %b\n\n" % text
            log.append(kind, entry)
            self.truth.append(log.read(number - 1)[0])
        self.replay.wake()

    def trim(self) -> None:
        """Drop the oldest frames, as a log does that has outgrown its bounds."""
        if self.trims and self.replay.log.last > 1:
            self.replay.log.trim(self.chance.randrange(1, 200))
            self.trimmed = True

    def end(self) -> None:
        ending = Ending(
            About("req-1", 1.0, "completed", "sim", "m"), (b'"whole"',), frozenset(), None, 2.0
        )
        self.replay.close(ending)

    # What the processes do.

    def write(self) -> None:
        self.now += 0.05
        with contextlib.suppress(RedisAway):
            try:
                self.writer._tick(self.now)
            except RedisAway:
                self.writer.check_all()
                raise

    def read(self) -> None:
        with contextlib.suppress(RedisAway):
            self.reader._read()
        self.check()

    def check(self) -> None:
        """Compare what the follower gets from the copy with the log."""
        copy = self.copy
        if copy is None or copy.log.last <= self.position:
            return
        try:
            data, position = copy.log.read(self.position)
        except StreamTrimmed:
            assert self.trimmed, "the copy has a hole"
            self.position = copy.log.first - 1
            return
        assert data == b"".join(self.truth[self.position : position])
        self.position = position

    @property
    def copy(self) -> Replay | None:
        found = self.reader._copies.get(KEY)
        return None if found is None else found.replay

    def come(self) -> None:
        """Follow the stream, at first or again."""
        if KEY not in self.reader._copies:
            self.reader._copies[KEY] = Copy(KEY)

    def leave(self) -> None:
        """Drop the copy. The follower comes back later, with the position that it has."""
        self.reader._copies.pop(KEY, None)

    def wait(self) -> None:
        self.now += 6.0

    # What happens to Redis.

    def flush(self) -> None:
        self.redis_client.run(lambda client: client.flushall())
        self.writer.check_all()  # as the heartbeat does, which finds the loss

    def save(self) -> None:
        def dump(client: Any) -> Any:
            return client.dump(NAME)

        self.saved = self.redis_client.run(dump)

    def fall_back(self) -> None:
        """Bring back an older state, as a failover does that loses the last writes."""

        def restore(client: Any) -> None:
            client.delete(NAME)
            if self.saved is not None:
                client.restore(NAME, 300_000, self.saved)

        self.redis_client.run(restore)

    def go(self) -> None:
        """Make Redis unavailable, or available again."""
        for client in (self.writes, self.reads):
            client.available = not client.available

    def fault(self) -> None:
        client = self.chance.choice([self.writes, self.reads])
        client.fault = self.chance.choice(["unsent", "unanswered", "repeated"])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_copy_never_differs_from_the_log_and_is_whole_in_the_end(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    if seed % 2:  # many small entries
        monkeypatch.setattr(written_stream, "ENTRY_BYTES", 40)
        monkeypatch.setattr(written_stream, "KEY_ENTRY_BYTES", 400)
    with contextlib.closing(Scene(redis_server.url, chance, trims=seed % 3 == 0)) as scene:
        turns, weights = zip(*scene.turns.values(), strict=True)
        for _ in range(TURNS):
            chance.choices(turns, weights)[0]()
        scene.append()
        scene.end()
        for client in (scene.writes, scene.reads):
            client.available, client.fault = True, ""
        scene.writer.check_all()
        scene.come()
        for _ in range(200):
            scene.write()
            scene.read()
            if scene.position == len(scene.truth) and scene.copy and scene.copy.ending:
                break
        assert scene.position == len(scene.truth)
        assert scene.copy is not None
        assert scene.copy.ending is not None
        assert scene.copy.result(scene.copy.ending) == b'"whole"'
