"""The resumable streams of all processes that share a Redis: written, read, and looked for.

- A stream that isn't in Redis may still be in the memory of another process. So the other processes
  are asked before a stream counts as unknown.
- If that isn't certain, the result is Unavailable, never a guess.
"""

from __future__ import annotations

import contextlib
import time
from typing import ClassVar, Final

from cluster.ownership import Cluster
from cluster.redis_client import RedisAway, RedisClient
from completion import StreamKey
from errors import Unavailable
from streams.replay import Replay
from streams.replay_counts import ReplayCounts
from streams.replay_reader import ReplayReader
from streams.replay_room import ReplayRoom
from streams.replay_scripts import STREAM
from streams.replay_store import ReplayStore
from streams.replay_writer import ReplayWriter

BEGIN_S, TRY_S = 2.0, 0.05
"""How long, and at which interval, a stream that another process has is looked for in Redis."""
FLUSH_S: Final = 2.0
TRIAL_KEYS: Final = ("sluice:replay-trial", f"{STREAM}trial")
"""Keys like those that resumable streams need. A user of Redis may be allowed few keys only."""


class SharedReplays:
    subject: ClassVar[str] = "replay"
    """The subject of the question to other processes whether they have a stream."""

    def __init__(
        self,
        cluster: Cluster,
        redis_client: RedisClient,
        store: ReplayStore,
        *,
        keep: float,
        orphan: float,
        total: int,
    ) -> None:
        """Share a process's resumable streams.

        Args:
            store: the streams of this process.
            keep: the seconds for which a stream is kept after its end.
            orphan: the seconds after which a stream without followers is ended.
            total: the most bytes of all processes' streams in Redis. 0 if none may be there.
        """
        self._cluster, self._redis, self._store = cluster, redis_client, store
        self.counts = ReplayCounts()
        self.room = ReplayRoom(redis_client, total, keep, self.counts)
        self._writer: ReplayWriter | None = None
        self._reader: ReplayReader | None = None
        if total:
            redis_client.trial_keys += TRIAL_KEYS
            self._reader = ReplayReader(
                *(redis_client, cluster, store, self.counts), keep=keep, orphan=orphan
            )
            self._writer = ReplayWriter(
                redis_client,
                cluster.name,
                keep=keep,
                orphan=orphan,
                room=self.room,
                counts=self.counts,
            )
            store.on_add, store.on_orphan = self._writer.add, self._writer.check_orphan
        self._since = b""
        self._leaving = False

    def find(self, stream_key: StreamKey) -> Replay | None:
        """Return a copy of another process's stream, or None if no process has it.

        Raises:
            Unavailable: that isn't certain, or only the process that runs it has it.
        """
        if self._leaving:
            raise Unavailable("This process is shutting down. Try again.")
        replay = self._read(stream_key)
        if replay is not None:
            return replay
        answers = self._cluster.ask_others(self.subject, "/".join(stream_key))
        if any(answers.found):
            return self._await(stream_key)
        if answers.missing != 0 or not self._cluster.settled:
            raise Unavailable(
                "Sluice can't tell right now whether this stream exists: some of its processes "
                "haven't reported. Try again."
            )
        return None

    def _read(self, stream_key: StreamKey) -> Replay | None:
        return self._reader.find(stream_key) if self._reader is not None else None

    def _await(self, stream_key: StreamKey) -> Replay:
        """Return a copy of a stream that may have begun so recently that it isn't in Redis yet.

        Raises Unavailable.
        """
        until = time.monotonic() + BEGIN_S
        while self._reader is not None and time.monotonic() < until:
            time.sleep(TRY_S)
            if replay := self._read(stream_key):
                return replay
        raise Unavailable("Only the process that runs this stream has it at the moment. Try again.")

    def obstacle(self, key_id: str) -> str:
        """Return why a new stream of a key can't be followed at other processes; empty if it can.

        That isn't said of all streams of a server whose settings forbid it.
        """
        if self._writer is None:
            return ""
        if not self._redis.available:
            return "Redis is unavailable"
        return "there is no room in Redis" if self.room.is_full(key_id) else ""

    def has(self, text: str) -> int:
        """Return 1 if this process has a stream, else 0.

        Args:
            text: the key's id and the stream's id.
        """
        key_id, _, stream_id = text.partition("/")
        return int(self._store.find((key_id, stream_id)) is not None)

    def beat(self) -> None:
        """Check the streams in Redis if it has lost its data, and what they take."""
        since = self._cluster.since
        if since != self._since and self._writer is not None:
            self._writer.check_all()
            for replay in self._store.kept.copy().values():
                if replay.ending is not None:  # it may have ended too long ago to be checked
                    self._writer.add(replay)
        self._since = since
        with contextlib.suppress(RedisAway):
            self.room.refresh()

    def leave(self) -> None:
        """Cut the followers of other processes' streams, because this process shuts down."""
        self._leaving = True
        if self._reader is not None:
            self._reader.cut()

    def close(self) -> None:
        """Write what Redis lacks, once the process has no calls left."""
        if self._writer is not None:
            self._writer.flush(FLUSH_S)
