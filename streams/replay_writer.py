"""The writer of this process's resumable streams to Redis, so that other processes can follow them.

- One thread writes for all streams: one script in each tick, however many streams have changed.
- Each append is conditional on the stream's last entry in Redis. If Redis lost or never got a part,
  the writer finds out and writes it again from the log. So there is no hole and no double entry.
- Nothing here delays a call or a local follower. If a stream can't be in Redis, it goes on here.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from cluster.redis_client import RedisAway, RedisClient
from concurrency.threads import BackgroundThread
from errors import StreamInterrupted
from streams.replay import Replay
from streams.replay_codec import (
    ENTRY_BYTES,
    FENCE,
    encode,
    entry_id,
    facts_of,
    key_entry,
    parsed_id,
)
from streams.replay_room import ReplayRoom
from streams.replay_scripts import (
    APPEND,
    DROP,
    FOLLOWED,
    LEAST_TTL_S,
    REFUSED,
    SINCE_FOLLOWED,
    STREAM,
    Item,
    packed,
)
from streams.replay_store import STREAM_BYTES

log = logging.getLogger("sluice.streams")

TICK_S: Final = 0.05
AT_ONCE, BYTES_AT_ONCE = 500, 1 << 20
"""The most streams, and about the most bytes, in one script."""
KEY_ENTRY_BYTES: Final = 256 * 1024
"""The bytes of entries after which there is another key entry. Redis drops entries up to one."""
CHECK_S: Final = 5.0
"""The interval at which a stream's last entry in Redis is checked."""
CHECKED_S: Final = 15.0
"""The time after its end for which a stream is checked."""
RENEWALS: Final = 4
"""How often an active stream's time to live is put off within it."""
LOOK_S, LOOK_STREAMS_S = 0.01, 1.0
NONCE_BITS: Final = 48
ENTRY_OVERHEAD, EMPTY_BYTES = 24, 1024
"""About the bytes that an entry takes in Redis beside its content, and those of an empty stream."""
FIRST_STEP, MOST_STEP = 16 << 10, 256 << 10
"""The bytes that are reserved for a new stream, and the most by which that grows at once."""
REPLACE, MISSING = b"*", b""
"""The expected last ids of a stream that isn't in Redis yet, and of one that no longer is."""
UNKNOWN: Final = -1
"""The newest template in Redis if the next entry must be a key entry."""


class Written:
    """A stream of this process, as far as it is in Redis."""

    def __init__(self, replay: Replay, owner: str, ttl: float) -> None:
        """Begin with a stream of which nothing is in Redis.

        Args:
            owner: the name of this process.
            ttl: the seconds after which Redis drops the stream, unless that is put off.
        """
        self.replay = replay
        self.key = f"{STREAM}{'/'.join(replay.key)}".encode()
        self.more = False
        """True if the last item was too small for all that Redis lacks."""
        self.check_at = 0.0
        """The monotonic time at which the stream's last entry in Redis is checked."""
        self.done_at = float("inf")
        """The monotonic time from which the stream isn't checked any more."""
        self.size = EMPTY_BYTES
        """About the bytes that the stream takes in Redis."""
        self.ends = False
        """True if the last item is the fence."""
        self.reserved = self.wanted = 0
        """The bytes that are reserved for it in Redis, and those that the last item needs; 0 if it
        needs no other reservation."""
        self._owner, self._ttl = owner, max(ttl, LEAST_TTL_S)
        self._renew_at = 0.0
        self._errors = replay.encode_error(StreamInterrupted())
        self.nonce = b"%d" % (secrets.randbits(NONCE_BITS) + 1)

        # What Redis has.
        self._top, self._sent = REPLACE, 0
        """The id of the last entry, and its number."""
        self._kind = UNKNOWN
        """The newest template."""
        self._key_entries: deque[list[Any]] = deque()
        """The ids of the key entries, each with the bytes up to the next one."""

        # The entry that was sent last.
        self._id, self._number, self._newest, self._bytes = b"", 0, 0, 0
        self._is_key = False
        self._dropped = 0
        """The number of key entries that go with what it lets Redis drop."""

    @property
    def fenced(self) -> bool:
        return self._sent == FENCE

    def next_item(self, now: float) -> Item:
        """Return what the next script does for the stream."""
        self.check_at, self._id, self.more, self.wanted = now + CHECK_S, b"", False, 0
        if self._sent == FENCE:
            return self.key, self._top, b"", b"", b"", 0
        ttl = 0
        if now >= self._renew_at:
            ttl, self._renew_at = int(self._ttl * 1000), now + self._ttl / RENEWALS
        replay = self.replay
        log, ending = replay.log, replay.ending  # the end comes after the last frames
        piece = log.piece(self._sent, ENTRY_BYTES)
        count = len(piece[1])
        number = piece[0] + count - 1
        self.more = number < log.last
        ends = self.ends = ending is not None and not self.more
        if not (count or ends or self._top in (REPLACE, MISSING)):
            self.wanted = self.reserved if ttl else 0
            return self.key, self._top, b"", b"", b"", ttl
        newest = self._newest = log.newest_kind
        self._is_key = is_key = (
            newest != self._kind
            or self._sent == 0
            or ends
            or self._key_entries[-1][1] > KEY_ENTRY_BYTES
        )
        if is_key:
            facts = facts_of(replay, self._owner, *self._errors)
            entry = key_entry(log, piece, facts, ending if ends else None, STREAM_BYTES - self.size)
        else:
            entry = encode(piece)
        if ends:
            number, ttl = FENCE, int(self._ttl * 1000)
        self._number, self._bytes = number, len(entry) + ENTRY_OVERHEAD
        self._id = entry_id(number, self.nonce)
        size = self.size + self._bytes
        if ends:
            self.wanted = size
        elif ttl or size > self.reserved:
            self.wanted = reservation(size)
        lowest = self._lowest() if size > STREAM_BYTES else b""
        return self.key, self._top, self._id, entry, lowest, ttl

    def done(self, now: float) -> None:
        """Note that the item's work is done."""
        if not self._id:
            return
        self._top, self._sent, self._kind = self._id, self._number, self._newest
        self.size += self._bytes
        if self._is_key:
            self._key_entries.append([self._id, 0])
        self._key_entries[-1][1] += self._bytes
        for _ in range(self._dropped):
            self.size -= self._key_entries.popleft()[1]
        self._dropped = 0
        if self._sent == FENCE:
            self.done_at = now + CHECKED_S

    def differs(self, top: bytes, now: float) -> bool:
        """Go on from the stream's last entry in Redis, which isn't the expected one.

        Args:
            top: its id; empty if Redis doesn't have the stream.

        Returns:
            False if the stream in Redis is no longer this one, was ended by another process, or
            can't be there.
        """
        if top and top == self._id:  # the script's result was lost
            self.done(now)
            return True
        if top == REFUSED:
            return False
        self._dropped, self._kind, self._renew_at = 0, UNKNOWN, 0.0
        if not top:
            self._top, self._sent = MISSING, self.replay.log.first - 1
            self.size, self.reserved = EMPTY_BYTES, 0
            self._key_entries.clear()
            return True
        number, nonce = parsed_id(top)
        if nonce != self.nonce or number == FENCE:
            return False
        self._top, self._sent = top, number
        return True

    def _lowest(self) -> bytes:
        """Return the id of the oldest entry that stays when enough of the oldest are dropped."""
        left, self._dropped = self.size, 0
        entries = list(self._key_entries)
        while left > STREAM_BYTES and self._dropped < len(entries) - 1:
            left -= entries[self._dropped][1]
            self._dropped += 1
        return bytes(entries[self._dropped][0]) if self._dropped else b""


class ReplayWriter:
    """The thread that writes this process's resumable streams to Redis."""

    def __init__(
        self,
        redis_client: RedisClient,
        owner: str,
        *,
        keep: float,
        orphan: float,
        room: ReplayRoom,
    ) -> None:
        """Make a writer. Its thread starts with the first stream.

        Args:
            owner: the name of this process in the cluster.
            keep: the seconds for which a stream is kept after its end.
            orphan: the seconds after which a stream without followers is ended.
            room: the bounds on what is in Redis.
        """
        self._orphan, self._room = orphan, room
        self._orphans: set[Replay] = set()
        """The streams that nobody has followed here for too long."""
        self._redis, self._owner, self._keep = redis_client, owner, keep
        self._changed: set[Replay] = set()
        """The streams that changed since the last tick. Any thread adds to them."""
        self._streams: dict[Replay, Written] = {}
        self._again: set[Written] = set()
        """Those of which Redis lacks a part, although they may not have changed."""
        self._check_all = False
        self._look_at = 0.0
        self._wanted = threading.Event()
        self._closing = False
        self._thread = BackgroundThread(self._work, "replay writer")

    def add(self, replay: Replay) -> None:
        """Write a stream to Redis, from now on until it has ended."""
        replay.marks = self._changed
        self._changed.add(replay)
        self._thread.start()
        self._wanted.set()

    def check_orphan(self, replay: Replay) -> None:
        """End a stream that nobody follows here, unless another process's clients follow it."""
        if replay.marks is None:
            replay.abandon()
        else:
            self._orphans.add(replay)

    def check_all(self) -> None:
        """Check all streams in the next tick, because Redis may have lost its data."""
        self._check_all = True

    def flush(self, seconds: float) -> None:
        """Wait until everything is in Redis. Then stop the thread.

        Args:
            seconds: the longest time to wait.
        """
        until = time.monotonic() + seconds
        while self._is_behind() and self._redis.available and time.monotonic() < until:
            time.sleep(LOOK_S)
        self._closing = True
        self._wanted.set()

    def _is_behind(self) -> bool:
        return self._thread.started and bool(
            self._changed or any(not stream.fenced for stream in self._streams.copy().values())
        )

    def _work(self) -> None:
        while not self._closing:
            if not (self._changed or self._streams):
                self._wanted.wait()
                self._wanted.clear()
                continue
            again = False
            try:
                again = self._tick(time.monotonic())
            except RedisAway:
                self._check_all = True
            except Exception:  # without this thread no stream could be followed elsewhere
                log.exception("writing resumable streams to Redis failed")
                self._check_all = True
            if not again:
                time.sleep(TICK_S)

    def _tick(self, now: float) -> bool:
        """Write what has changed. Return True if there is more to write at once.

        Raises RedisAway.
        """
        if not self._redis.available:
            self._check_all = True
            return False
        changed = self._changed.copy()
        self._changed.difference_update(changed)  # before the logs are read
        streams = self._streams
        for replay in changed:
            stream = streams.get(replay)
            if stream is None:
                if replay.marks is None:
                    continue
                stream = streams[replay] = Written(replay, self._owner, self._keep)
            self._again.add(stream)
        if now >= self._look_at or self._check_all:
            self._look(now)
        if self._orphans:
            self._end_orphans(now)
        due, self._again = list(self._again), set()
        for taken in batches(due):
            try:
                self._send(taken, now)
            except BaseException:
                self._again.update(due)
                raise
        return bool(self._again)

    def _look(self, now: float) -> None:
        """Add the streams that must be checked, and forget those that needn't be any more."""
        self._look_at = now + LOOK_STREAMS_S
        everything, self._check_all = self._check_all, False
        for stream in list(self._streams.values()):
            if now >= stream.done_at:
                self._forget(stream)
            elif everything or now >= stream.check_at:
                self._again.add(stream)

    def _end_orphans(self, now: float) -> None:
        """End the streams that nobody follows, in any process. Raises RedisAway."""
        orphans = list(self._orphans)
        names = ["/".join(replay.key) for replay in orphans]
        ages = self._redis.run(lambda client: SINCE_FOLLOWED(client, [FOLLOWED], names))
        self._orphans.difference_update(orphans)
        for replay, age in zip(orphans, ages, strict=True):
            if age and float(age) <= self._orphan:
                replay.followed_elsewhere(now - float(age))
            else:
                replay.abandon()

    def _forget(self, stream: Written) -> None:
        stream.replay.marks = None
        del self._streams[stream.replay]
        self._again.discard(stream)

    def _send(self, streams: list[Written], now: float) -> None:
        """Do one script for some streams. Raises RedisAway."""
        items, size = [], 0
        taken: list[Written] = []
        for n, stream in enumerate(streams, 1):
            item = stream.next_item(now)
            items.append(item)
            taken.append(stream)
            size += len(item[3])
            if size >= BYTES_AT_ONCE:
                self._again.update(streams[n:])
                break
        wanting = [stream for stream in taken if stream.wanted]
        if wanting:
            homeless = self._reserve(wanting)
            if homeless:
                kept = [pair for pair in zip(taken, items, strict=True) if pair[0] not in homeless]
                taken, items = [pair[0] for pair in kept], [pair[1] for pair in kept]
        text = packed(items)
        failed = self._redis.run(lambda client: APPEND(client, (), (text,)))
        tops = dict(zip(failed[::2], failed[1::2], strict=True))
        for n, stream in enumerate(taken, 1):
            if n not in tops:
                stream.done(now)
                if stream.more:
                    self._again.add(stream)
            elif stream.differs(tops[n], now):
                self._again.add(stream)
            else:
                self._forget(stream)

    def _reserve(self, streams: list[Written]) -> set[Written]:
        """Reserve bytes in Redis. Return the streams that don't get them, which aren't written any
        more.

        Raises RedisAway.
        """
        wanted = [(stream.replay.key, stream.wanted, stream.ends) for stream in streams]
        granted = self._room.reserve(wanted)
        homeless = set()
        for stream, has_room in zip(streams, granted, strict=True):
            stream.reserved = stream.wanted
            if not has_room:
                homeless.add(stream)
                self._forget(stream)
                keys, arguments = [stream.key.decode()], [stream.nonce]
                self._redis.run(lambda client, k=keys, a=arguments: DROP(client, k, a))  # type: ignore[misc]
        return homeless


def reservation(size: int) -> int:
    """Return the bytes to reserve for a stream that takes `size` bytes, with room for more."""
    reserved = FIRST_STEP
    while reserved < size:
        reserved += min(reserved, MOST_STEP)
    return reserved


def batches(streams: list[Written]) -> Iterator[list[Written]]:
    for n in range(0, len(streams), AT_ONCE):
        yield streams[n : n + AT_ONCE]
