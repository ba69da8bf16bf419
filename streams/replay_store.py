"""The resumable streams of a process: found by their key, bounded in memory, kept for a while.

- A stream belongs to a key. Another key's stream can't be found, and is never dropped to make room.
- Room is made by dropping the oldest ended streams of the same key. If that isn't enough, an active
  stream is trimmed: it drops its own oldest frames. New calls then aren't resumable.
- An active stream whose caller waits for the whole answer isn't trimmed: a plain call keeps its
  whole answer in memory, too.
- A stream that somebody follows isn't dropped: its memory isn't free before its followers leave.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
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
        self._total, self.keep, self._orphan = total, keep, orphan
        self._lock = BriefLock()
        self.kept: dict[StreamKey, Replay] = {}
        self._copies: set[Replay] = set()
        """Those of other processes that are followed here."""
        self.on_add: Callable[[Replay], object] = lambda _: None
        """Is called with each new stream of this process."""
        self.on_copy: Callable[[], object] = lambda: None
        """Is called before each copy is added, whose followers must then be looked at."""
        self.on_orphan: Callable[[Replay], object] = lambda replay: replay.abandon()
        """Is called every second with each stream that nobody has followed here for too long."""
        self._sizes: dict[Replay, int] = {}
        self._of_key: Counter[str] = Counter()
        self._sum = 0
        self._ended: defaultdict[str, dict[StreamKey, float]] = defaultdict(dict)
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
        self.on_add(replay)

    def add_copy(self, replay: Replay) -> None:
        """Add the copy of another process's stream. `find` doesn't find it."""
        self.on_copy()
        with self._lock:
            self._copies.add(replay)

    def drop_copy(self, replay: Replay) -> None:
        with self._lock:
            self._copies.discard(replay)
            self._count(replay, 0)
            self._sizes.pop(replay, None)

    def grown(self, replay: Replay) -> None:
        """Count what a stream takes now, and keep it within the bounds.

        Only the thread that appends to the stream's log may call this.
        """
        with self._lock:
            size = replay.size
            self._count(replay, size)
            key_id = replay.key[0]
            self._make_room(key_id, 0)
            if not replay.awaited and (size > STREAM_BYTES or self._is_full(key_id, 0)):
                replay.log.trim(min(TRIM_BYTES, size // 2))
                self._count(replay, replay.size)

    def ended(self, replay: Replay) -> None:
        with self._lock:
            if self.kept.get(replay.key) is replay:
                self._count(replay, replay.size)
                self._ended[replay.key[0]][replay.key] = time.monotonic()
                self._make_room(replay.key[0], 0)

    def sweep(self) -> None:
        """Drop what has been kept long enough, end orphans, and look at the followers."""
        now = time.monotonic()
        with self._lock:
            for key_id, ended in list(self._ended.items()):
                while (oldest := self._oldest(key_id)) and ended[oldest] + self.keep <= now:
                    self._drop(oldest)
            kept = self.kept.values()
            watched = [replay for replay in kept if replay.followers or replay.ending is None]
            watched += self._copies
        for replay in watched:
            for follower in replay.followers:
                follower.look(now)
            alone = replay.alone_since
            if alone is not None and now - alone > self._orphan and not replay.keeps_alone:
                self.on_orphan(replay)

    def _is_full(self, key_id: str, room: int) -> bool:
        return self._of_key[key_id] + room > KEY_BYTES or self._sum + room > self._total

    def _make_room(self, key_id: str, room: int) -> None:
        while self._is_full(key_id, room) and (oldest := self._oldest(key_id)):
            self._drop(oldest)

    def _oldest(self, key_id: str) -> StreamKey | None:
        """Return the key's oldest ended stream that nobody follows."""
        ended = self._ended.get(key_id, ())
        return next((found for found in ended if not self.kept[found].followers), None)

    def _drop(self, stream_key: StreamKey) -> None:
        ended = self._ended[stream_key[0]]
        del ended[stream_key]
        if not ended:
            del self._ended[stream_key[0]]
        replay = self.kept.pop(stream_key)
        self._count(replay, 0)
        del self._sizes[replay]

    def _count(self, replay: Replay, size: int) -> None:
        change = size - self._sizes.get(replay, 0)
        self._sizes[replay] = size
        self._sum += change
        self._of_key[replay.key[0]] += change
        if not self._of_key[replay.key[0]]:
            del self._of_key[replay.key[0]]
