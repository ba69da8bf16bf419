"""The resumable streams of a process: found by their key, bounded in memory, kept for a while.

- A stream belongs to a key. Another key's stream can't be found, and is never dropped to make room.
- Room is made by dropping the oldest ended streams of the same key. If that isn't enough, an active
  stream drops its own oldest frames, and new calls aren't resumable.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from typing import Final

from completion import StreamKey
from concurrency.native import BriefLock
from streams.replay import Replay

STREAM_BYTES: Final = 4 << 20
KEY_BYTES: Final = 32 << 20
START_BYTES: Final = 16 << 10
"""The room that a new stream needs."""
TRIM_BYTES: Final = 1 << 20


class ReplayStore:
    def __init__(self, total: int, keep: float, orphan: float) -> None:
        """Make an empty store.

        Args:
            total: the most bytes of memory of all streams; 0 if no call is resumable.
            keep: the seconds for which a stream is kept after its end.
            orphan: the seconds after which a stream without followers is ended.
        """
        self._total, self._keep, self._orphan = total, keep, orphan
        self._lock = BriefLock()
        self.kept: dict[StreamKey, Replay] = {}
        self._sizes: dict[StreamKey, int] = {}
        self._of_key: Counter[str] = Counter()
        self._sum = 0
        self._ended: defaultdict[str, deque[tuple[float, Replay]]] = defaultdict(deque)
        """The ended streams of each key, oldest first, with the monotonic times of their ends."""

    @property
    def size(self) -> int:
        """The bytes of memory that all streams take."""
        return self._sum

    def find(self, stream_key: StreamKey) -> Replay | None:
        return self.kept.get(stream_key)

    def has_room(self, key_id: str) -> bool:
        """Return True if another stream of the key may start. Drop its ended streams if need be."""
        with self._lock:
            self._make_room(key_id, START_BYTES)
            return not self._is_full(key_id, START_BYTES)

    def add(self, replay: Replay) -> None:
        with self._lock:
            self.kept[replay.key] = replay
            self._count(replay, replay.size)

    def grown(self, replay: Replay) -> None:
        """Count what a stream takes now, and keep it within the bounds.

        Only the thread that appends to the stream's log may call this.
        """
        with self._lock:
            size = replay.size
            self._count(replay, size)
            key_id = replay.key[0]
            self._make_room(key_id, 0)
            if size > STREAM_BYTES or self._is_full(key_id, 0):
                replay.log.trim(min(TRIM_BYTES, size // 2))
                self._count(replay, replay.size)

    def ended(self, replay: Replay) -> None:
        with self._lock:
            if self.kept.get(replay.key) is replay:
                self._count(replay, replay.size)
                self._ended[replay.key[0]].append((time.monotonic(), replay))
                self._make_room(replay.key[0], 0)

    def sweep(self) -> None:
        """Drop what has been kept long enough, end orphans, and look at the followers."""
        now = time.monotonic()
        with self._lock:
            for key_id in list(self._ended):
                ended = self._ended[key_id]
                while ended and ended[0][0] + self._keep <= now:
                    self._drop_oldest(key_id)
            streams = list(self.kept.values())
        for replay in streams:
            for follower in replay.followers:
                follower.look(now)
            alone = replay.alone_since
            if alone is not None and now - alone > self._orphan and not replay.keeps_alone:
                replay.abandon()

    def _is_full(self, key_id: str, room: int) -> bool:
        return self._of_key[key_id] + room > KEY_BYTES or self._sum + room > self._total

    def _make_room(self, key_id: str, room: int) -> None:
        while self._is_full(key_id, room) and self._ended.get(key_id):
            self._drop_oldest(key_id)

    def _drop_oldest(self, key_id: str) -> None:
        ended = self._ended[key_id]
        _, replay = ended.popleft()
        if not ended:
            del self._ended[key_id]
        del self.kept[replay.key]
        self._count(replay, 0)
        del self._sizes[replay.key]

    def _count(self, replay: Replay, size: int) -> None:
        change = size - self._sizes.get(replay.key, 0)
        self._sizes[replay.key] = size
        self._sum += change
        self._of_key[replay.key[0]] += change
        if not self._of_key[replay.key[0]]:
            del self._of_key[replay.key[0]]
