"""The resumable streams of all processes that share a Redis: written, read, and looked for.

- A stream that isn't in Redis may still be in the memory of another process. So the other processes
  are asked before a stream counts as unknown.
- If that isn't certain, the result is Unavailable, never a guess.
"""

from __future__ import annotations

from typing import Final

from cluster.ownership import Cluster
from cluster.redis_client import RedisClient
from completion import StreamKey
from errors import Unavailable
from streams.replay import Replay
from streams.replay_reader import ReplayReader
from streams.replay_store import ReplayStore
from streams.replay_writer import ReplayWriter

SUBJECT: Final = "replay"
"""The subject of the question to other processes whether they have a stream."""
FLUSH_S: Final = 2.0


class SharedReplays:
    def __init__(
        self,
        cluster: Cluster,
        redis_client: RedisClient,
        store: ReplayStore,
        *,
        keep: float,
        total: int,
    ) -> None:
        """Share a process's resumable streams.

        Args:
            store: the streams of this process.
            keep: the seconds for which a stream is kept after its end.
            total: the most bytes of all processes' streams in Redis. 0 if none may be there.
        """
        self._cluster, self._redis, self._store = cluster, redis_client, store
        self._writer: ReplayWriter | None = None
        self._reader: ReplayReader | None = None
        if total:
            self._reader = ReplayReader(redis_client, store)
            self._writer = ReplayWriter(redis_client, cluster.name, keep)
            store.on_add = self._writer.add
        self._since = b""

    def find(self, stream_key: StreamKey) -> Replay | None:
        """Return a copy of another process's stream, or None if no process has it.

        Raises:
            Unavailable: that isn't certain, or only the process that runs it has it.
        """
        replay = self._reader.find(stream_key) if self._reader is not None else None
        if replay is not None:
            return replay
        answers = self._cluster.ask_others(SUBJECT, "/".join(stream_key))
        if any(answers.found):
            raise Unavailable(
                "Only the process that runs this stream has it at the moment. Try again."
            )
        if answers.missing != 0 or not self._cluster.settled:
            raise Unavailable(
                "Sluice can't tell right now whether this stream exists: some of its processes "
                "haven't reported. Try again."
            )
        return None

    def has(self, text: str) -> int:
        """Return 1 if this process has a stream, else 0.

        Args:
            text: the key's id and the stream's id.
        """
        key_id, _, stream_id = text.partition("/")
        return int(self._store.find((key_id, stream_id)) is not None)

    def beat(self) -> None:
        """Check the streams in Redis if it has lost its data."""
        since = self._cluster.since
        if since != self._since and self._writer is not None:
            self._writer.check_all()
        self._since = since

    def close(self) -> None:
        """Write what Redis lacks, once the process has no calls left."""
        if self._writer is not None:
            self._writer.flush(FLUSH_S)
