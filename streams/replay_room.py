"""The bounds on what resumable streams take in Redis, over all processes: in all, and of a key.

- Bytes are reserved in growing steps, so that most appends don't need a reservation.
- Room is made by dropping the oldest ended streams of the key that needs it, never another key's.
- A reservation expires when Redis drops its stream, so the bytes of a dead process come back.
"""

from __future__ import annotations

import time
from typing import Final

from cluster.redis_client import RedisClient
from completion import StreamKey
from streams.replay_counts import ReplayCounts
from streams.replay_scripts import LEAST_TTL_S, RESERVE, SIZES
from streams.replay_store import KEY_BYTES

SHARE: Final = 4
"""Streams take at most a SHARE-th of Redis' own limit of memory, which other data needs too."""
FULL_S: Final = 5.0
"""The time for which new streams aren't expected to find room after one didn't."""
REFRESH_S: Final = 5.0
LIMIT_S: Final = 60.0
MOST_FULL: Final = 1000


class ReplayRoom:
    def __init__(
        self, redis_client: RedisClient, total: int, keep: float, counts: ReplayCounts
    ) -> None:
        """Make the bounds.

        Args:
            total: the most bytes in all.
            keep: the seconds for which a stream is kept after its end.
            counts: gets the bytes that all processes have reserved.
        """
        self._redis, self._total, self._counts = redis_client, total, counts
        self._ttl = max(keep, LEAST_TTL_S)
        self._limit, self._limit_at = total, 0.0
        self._full: dict[str, float] = {}
        """The monotonic times at which keys' streams found no room, by the key's id."""
        self._refreshed_at = 0.0

    def is_full(self, key_id: str) -> bool:
        """Return True if a stream of the key found no room a moment ago."""
        return time.monotonic() - self._full.get(key_id, -FULL_S) < FULL_S

    def reserve(self, wanted: list[tuple[StreamKey, int, bool]]) -> list[int]:
        """Reserve bytes for streams. Return 1 for each that has them, and 0 for each other one.

        Args:
            wanted: for each stream its key, its bytes in all, and whether it has ended.

        Raises:
            RedisAway
        """
        now = time.monotonic()
        if now >= self._limit_at:
            self._limit_at = now + LIMIT_S
            limit = self._redis.memory_limit()
            self._limit = min(self._total, limit // SHARE) if limit else self._total
        arguments: list[str | int | float] = [self._limit, KEY_BYTES, self._ttl]
        for (key_id, stream_id), size, ended in wanted:
            arguments += (key_id, stream_id, size, int(ended))
        granted: list[int]
        *granted, self._counts.bytes = self._redis.run(
            lambda client: RESERVE(client, SIZES, arguments)
        )
        self._refreshed_at = now
        for ((key_id, _), _, _), has_room in zip(wanted, granted, strict=True):
            if not has_room:
                if len(self._full) >= MOST_FULL:
                    self._full.clear()
                self._full[key_id] = now
        return granted

    def refresh(self) -> None:
        """Give back what has expired, now and then. Raises RedisAway."""
        if self._counts.bytes and time.monotonic() - self._refreshed_at >= REFRESH_S:
            self.reserve([])
