"""The reader of other processes' resumable streams, which makes them followable in this process.

- A copy of a stream is a Replay with a log of its own. Its followers don't know that it is a copy.
- One thread reads for all copies: one read in each tick, however many followers there are.
- A copy is dropped soon after its last follower has left.
- If Redis is unavailable, an open copy waits. It ends only with the fence, or if it is certain that
  nothing can follow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cluster.deaths import dead
from cluster.marks import kept_mark_of
from cluster.ownership import PROCESSES, SILENT_S, Cluster
from cluster.redis_client import RedisAway, RedisClient
from completion import StreamKey
from concurrency.threads import BackgroundThread
from errors import Unavailable
from streams.replay import Replay
from streams.replay_codec import (
    FENCE,
    Facts,
    InvalidEntry,
    add_to,
    ending_of,
    entry_id,
    interrupted,
    parsed_id,
    read_entry,
)
from streams.replay_counts import ReplayCounts
from streams.replay_reads import existing, new_entries
from streams.replay_scripts import ANNOUNCE, ENTRY, FOLLOWED, INTERRUPT, LEAST_TTL_S, STREAM
from streams.replay_store import ReplayStore
from streams.replay_writer import BUSY, MOST_TICK_S, TICK_S

log = logging.getLogger("sluice.streams")

LEAST_TICK_S: Final = 0.01
"""The shortest interval between reads, if there is a new copy."""
GROWTH: Final = 4096
"""The bytes of entries after which a copy's size is counted again."""
FIRST_READ_S: Final = 2.0
KEEP_S: Final = 5.0
"""The time for which a copy is kept without followers."""
STREAMS, ENTRIES = 100, 4
"""The most streams in a read, and the most entries of each."""
STREAMS_BEHIND, ENTRIES_BEHIND = 4, 16
"""As above, for copies of which Redis has more entries than were read."""
LOOK_S: Final = 1.0
"""The interval at which the owners of the open copies are checked."""
ANNOUNCE_S: Final = 5.0
"""The longest interval at which owners are told that their streams are followed here."""
MISSING_S: Final = 10.0
"""The time after which a stream that is no longer in Redis counts as given up there. An owner that
is alive writes it again sooner."""
PAUSE_S: Final = 1.0
"""The pause after an unexpected exception."""
START: Final = b"0-0"


class Copy:
    """A stream of another process, as far as it has been read from Redis."""

    def __init__(self, stream_key: StreamKey) -> None:
        self.stream_key = stream_key
        self.key = f"{STREAM}{'/'.join(stream_key)}".encode()
        self.at = START
        """The id of the last entry that was read."""
        self.nonce = b""
        """The call's own, once its first entry has been read."""
        self.unchecked = 0
        """The bytes of entries since the copy's size was last counted."""
        self.behind = True
        """True if Redis may have more entries already."""
        self.read = threading.Event()
        """Set once everything that was in Redis has been read, or if that failed."""
        self.replay: Replay | None = None
        """None until the first entry has been read."""
        self.facts: Facts | None = None
        self.wanted_at = time.monotonic()
        """The monotonic time at which somebody looked for it."""
        self.failed = False
        """True if it couldn't be read even once."""
        self.replaced = False
        """True if another call's stream has taken the place of this one, or it can't be read."""
        self.missing_since: float | None = None
        """The monotonic time since which Redis hasn't had the stream."""

    def has_expired(self, keep: float) -> bool:
        """Return True if the stream ended so long ago that its id is free again.

        Redis keeps streams for LEAST_TTL_S, even if they needn't be kept for so long. Beyond that,
        Redis drops them, and the processes' clocks may differ.
        """
        ending = self.replay.ending if self.replay is not None else None
        return ending is not None and keep < LEAST_TTL_S and time.time() >= ending.ended_at + keep

    @property
    def open(self) -> bool:
        return self.replay is None or self.replay.ending is None

    def is_stale(self, now: float) -> bool:
        """Return True for the copy of an ended stream that nobody has followed for a while.

        By now another call's stream may have its id.
        """
        replay = self.replay
        return (
            replay is not None
            and replay.ending is not None
            and now - (replay.alone_since or now) >= KEEP_S
        )

    def take_all(self, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> None:
        """Add entries of the stream, up to the first one that can't be read."""
        try:
            for name, fields in entries:
                self.take(name, fields)
        except InvalidEntry:  # the streams of other copies must go on
            self.replaced = True

    def take(self, name: bytes, fields: Mapping[bytes, bytes]) -> None:
        """Add an entry of the stream.

        Args:
            name: its id.

        Raises:
            InvalidEntry: it can't be read.
        """
        self.at = name
        number, nonce = parsed_id(name)
        entry = read_entry(number, fields)
        self.unchecked += len(fields[ENTRY])
        if self.replay is None:
            if entry.facts is None:  # a copy begins at a key entry
                return
            self.nonce = nonce
            self.replay = Replay(self.stream_key, entry.facts.face, entry.facts.about)
            self.replay.released = self.replay.keeps_alone = True
        elif nonce != self.nonce:
            self.replaced = True
            return
        replay = self.replay
        add_to(replay, entry)
        if entry.facts is not None:
            self.facts = entry.facts
            replay.update(entry.facts.about)
        ending = ending_of(entry) if number == FENCE else None
        if ending is None:
            replay.wake()
        else:
            replay.close(ending)


class ReplayReader:
    """The thread that reads other processes' resumable streams from Redis."""

    def __init__(
        self,
        redis_client: RedisClient,
        cluster: Cluster,
        store: ReplayStore,
        counts: ReplayCounts,
        *,
        keep: float,
        orphan: float,
    ) -> None:
        """Make a reader. Its thread starts with the first copy.

        Args:
            store: counts the memory of the copies.
            keep: the seconds for which a stream is kept after its end.
            orphan: the seconds after which a stream without followers is ended.
        """
        self._orphan = orphan
        self._announce_at = 0.0
        self._announced: set[str] = set()
        """The streams whose owners know that they are followed here."""
        self._redis, self._cluster, self._store = redis_client, cluster, store
        self._counts = counts
        self._keep = keep
        self._look_at = 0.0
        self._copies: dict[StreamKey, Copy] = {}
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._thread = BackgroundThread(self._work, "replay reader")

    def find(self, stream_key: StreamKey) -> Replay | None:
        """Return a copy of a stream, with everything that is in Redis now, or None if none is.

        Raises:
            Unavailable: Redis doesn't respond, or there is no memory for a copy.
        """
        with self._lock:
            copy, now = self._copies.get(stream_key), time.monotonic()
            if copy is not None and self._is_over(copy, now):
                if copy.replay is not None:
                    self._store.drop_copy(copy.replay)
                copy = None
            if copy is None or copy.replaced:
                if not self._store.has_room(stream_key[0]):
                    raise Unavailable("There is no room to follow another stream. Try again later.")
                copy = self._copies[stream_key] = Copy(stream_key)
            copy.wanted_at = now
        self._thread.start()
        self._wanted.set()
        if not copy.read.wait(FIRST_READ_S) or copy.failed:
            raise Unavailable("The server can't read this stream at the moment. Try again.")
        return None if copy.has_expired(self._keep) else copy.replay

    def _is_over(self, copy: Copy, now: float) -> bool:
        """Return True if another call may have the id of an ended stream that nobody follows."""
        followed = copy.replay is not None and copy.replay.followers
        return not followed and (copy.is_stale(now) or copy.has_expired(self._keep))

    def cut(self) -> None:
        """Cut the followers of all copies, without the end of their streams."""
        for copy in list(self._copies.values()):
            if copy.replay is not None:
                copy.replay.cut()

    def _work(self) -> None:
        while True:
            began = time.monotonic()
            try:
                again = self._read()
                if began >= self._look_at:
                    self._look_at = began + min(LOOK_S, self._orphan / 4)
                    self._look(began)
            except RedisAway:
                again = False
                self._fail_new()
            except Exception:  # the followers of other streams must go on
                log.exception("reading resumable streams from Redis failed")
                again = False
                self._fail_new()
                time.sleep(PAUSE_S)
            self._drop(time.monotonic())
            self._counts.copies = len(self._copies)
            if again:
                continue
            pause = max(TICK_S, min(MOST_TICK_S, BUSY * (time.monotonic() - began)))
            self._wanted.wait(pause if self._copies else None)
            self._wanted.clear()
            early = LEAST_TICK_S - (time.monotonic() - began)
            if early > 0:
                time.sleep(early)

    def _read(self) -> bool:
        """Read what is new of all copies. Return True if Redis may have more. Raises RedisAway."""
        copies = [copy for copy in list(self._copies.values()) if copy.open]
        behind = [copy for copy in copies if copy.behind]
        level = [copy for copy in copies if not copy.behind]
        for n in range(0, len(level), STREAMS):
            self._read_some(level[n : n + STREAMS], ENTRIES)
        for n in range(0, len(behind), STREAMS_BEHIND):
            self._read_some(behind[n : n + STREAMS_BEHIND], ENTRIES_BEHIND)
        return any(copy.behind for copy in copies)

    def _read_some(self, copies: list[Copy], most: int) -> None:
        """Read up to `most` entries of each copy's stream. Raises RedisAway."""
        names, ids = [copy.key for copy in copies], [copy.at for copy in copies]
        self._counts.reads += 1
        found = dict(self._redis.run(lambda client: new_entries(client, names, ids, most)))
        for copy in copies:
            entries = found.get(copy.key, ())
            new = copy.replay is None
            copy.take_all(entries)
            if new and copy.replay is not None:
                self._store.add_copy(copy.replay)
                copy.unchecked = GROWTH + 1
            copy.behind = len(entries) >= most and copy.open
            if copy.replay is not None and (copy.unchecked > GROWTH or not copy.open):
                copy.unchecked = 0
                self._store.grown(copy.replay)
            if copy.replaced:
                copy.failed = True
                self._forget(copy)
            if not copy.behind:
                copy.read.set()

    def _look(self, now: float) -> None:
        """End the streams of dead processes, and drop those that are no longer in Redis.

        Raises RedisAway.
        """
        copies = [copy for copy in list(self._copies.values()) if copy.open and copy.facts]
        self._announce(copies, now)
        owners = {copy.facts.owner for copy in copies if copy.facts}
        gone = dead(self._redis, self._cluster, owners)
        for copy in copies:
            if copy.facts and copy.facts.owner in gone and not copy.behind:
                self._interrupt(copy, copy.facts)
        if not self._cluster.steady or not copies:
            return
        names = [copy.key for copy in copies]
        present = self._redis.run(lambda client: existing(client, names))
        for copy, exists in zip(copies, present, strict=True):
            if exists:
                copy.missing_since = None
            elif copy.missing_since is None:
                copy.missing_since = now
            elif now - copy.missing_since > MISSING_S:
                self._forget(copy)

    def _announce(self, copies: list[Copy], now: float) -> None:
        """Let owners know which of their streams are followed here. Raises RedisAway."""
        names = {"/".join(c.stream_key) for c in copies if c.replay and c.replay.followers}
        if now < self._announce_at and names <= self._announced:
            return
        self._announce_at = now + min(ANNOUNCE_S, self._orphan / 4)
        self._announced = names
        if names:
            arguments = [self._orphan * 2, *names]
            self._redis.run(lambda client: ANNOUNCE(client, [FOLLOWED], arguments))

    def _interrupt(self, copy: Copy, facts: Facts) -> None:
        """Write the fence of a stream whose owner is dead. Raises RedisAway."""
        nonce = copy.nonce
        entry = interrupted(facts, time.time())
        keep = int(max(self._keep, LEAST_TTL_S) * 1000)
        arguments: list[Any] = [copy.at, entry_id(FENCE, nonce), entry, keep, facts.owner, SILENT_S]
        keys = [copy.key.decode(), PROCESSES, kept_mark_of(copy.stream_key)]
        self._redis.run(lambda client: INTERRUPT(client, keys, arguments))

    def _fail_new(self) -> None:
        """Let those who wait for a new copy know that it can't be read."""
        for copy in list(self._copies.values()):
            if not copy.read.is_set():
                copy.failed = True
                self._forget(copy)
                copy.read.set()

    def _drop(self, now: float) -> None:
        """Drop the copies that nobody needs."""
        for copy in list(self._copies.values()):
            with self._lock:
                alone = copy.wanted_at
                if copy.replay is not None and copy.read.is_set():
                    alone = max(alone, copy.replay.alone_since or now)
                absent = copy.replay is None and copy.read.is_set()
                if absent or now - alone >= KEEP_S:
                    self._copies.pop(copy.stream_key, None)
                    dropped = copy.replay
                else:
                    continue
            if dropped is not None:
                self._store.drop_copy(dropped)

    def _forget(self, copy: Copy) -> None:
        """Drop a copy that can't be continued, and cut its followers."""
        with self._lock:
            if self._copies.get(copy.stream_key) is copy:
                del self._copies[copy.stream_key]
        if copy.replay is not None:
            copy.replay.cut()
            self._store.drop_copy(copy.replay)
