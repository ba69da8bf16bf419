"""The writer of this process's resumable streams to Redis, so that other processes can follow them.

- One thread writes for all streams: one script in each tick, however many streams have changed.
- Each append is conditional on the stream's last entry in Redis. If Redis lost or never got a part,
  the writer finds out and writes it again from the log. So there is no hole and no double entry.
- Nothing here delays a call or a local follower. If a stream can't be in Redis, it goes on here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Final

from cluster.redis_client import RedisAway, RedisClient
from concurrency.threads import BackgroundThread
from streams.replay import Replay
from streams.replay_counts import ReplayCounts
from streams.replay_room import ReplayRoom
from streams.replay_scripts import APPEND, DROP, FOLLOWED, REFUSED, SINCE_FOLLOWED, packed
from streams.written_stream import WrittenStream

log = logging.getLogger("sluice.streams")

TICK_S, MOST_TICK_S = 0.05, 1.0
"""The interval between scripts, and the longest one if Redis is slow."""
BUSY: Final = 3
"""A pause takes at least BUSY times as long as the work before it. So a Redis that is overloaded
gets fewer and larger entries."""
AT_ONCE, BYTES_AT_ONCE = 500, 1 << 20
"""The most streams, and about the most bytes, in one script."""
LOOK_S: Final = 1.0
"""The interval at which the streams are looked through for those that must be checked."""
FLUSH_LOOK_S: Final = 0.01
PAUSE_S: Final = 1.0
"""The pause after an unexpected exception."""
LOG_S: Final = 60.0
"""The shortest interval between two warnings of streams that were given up."""


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
        counts: ReplayCounts,
    ) -> None:
        """Make a writer. Its thread starts with the first stream.

        Args:
            owner: the name of this process in the cluster.
            keep: the seconds for which a stream is kept after its end.
            orphan: the seconds after which a stream without followers is ended.
            room: the bounds on what is in Redis.
        """
        self._orphan, self._room, self._counts = orphan, room, counts
        self._orphans: set[Replay] = set()
        """The streams that nobody has followed here for too long."""
        self._redis, self._owner, self._keep = redis_client, owner, keep
        self._changed: set[Replay] = set()
        """The streams that changed since the last tick. Any thread adds to them."""
        self._streams: dict[Replay, WrittenStream] = {}
        self._again: set[WrittenStream] = set()
        """Those of which Redis lacks a part, although they may not have changed."""
        self._check_all = False
        self._look_at = 0.0
        self._log_at = 0.0
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
            time.sleep(FLUSH_LOOK_S)
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
            began, again = time.monotonic(), False
            try:
                again = self._tick(began)
            except RedisAway:
                self._check_all = True
            except Exception:  # without this thread no stream could be followed elsewhere
                log.exception("writing resumable streams to Redis failed")
                self._check_all = True
                time.sleep(PAUSE_S)
            if not again:
                time.sleep(max(TICK_S, min(MOST_TICK_S, BUSY * (time.monotonic() - began))))

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
                stream = streams[replay] = WrittenStream(replay, self._owner, self._keep)
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
        self._look_at = now + LOOK_S
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

    def _forget(self, stream: WrittenStream) -> None:
        stream.replay.marks = None
        del self._streams[stream.replay]
        self._again.discard(stream)

    def _give_up(self, stream: WrittenStream, reason: str) -> None:
        """Stop writing a stream to Redis. Count and report it if it is active."""
        self._forget(stream)
        if stream.replay.ending is not None:
            return
        self._counts.given_up += 1
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + LOG_S
            log.warning(
                "a resumable stream can't be followed at other processes: %s (%d so far)",
                *(reason, self._counts.given_up),
            )

    def _send(self, streams: list[WrittenStream], now: float) -> None:
        """Do one script for some streams. Raises RedisAway."""
        items, size = [], 0
        taken: list[WrittenStream] = []
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
        began = time.monotonic()
        failed = self._redis.run(lambda client: APPEND(client, (), (text,)))
        self._counts.append_seconds += time.monotonic() - began
        tops = dict(zip(failed[::2], failed[1::2], strict=True))
        self._counts.appends += sum(bool(i[2]) for n, i in enumerate(items, 1) if n not in tops)
        for n, stream in enumerate(taken, 1):
            if n not in tops:
                stream.done(now)
                if stream.more:
                    self._again.add(stream)
            elif stream.differs(tops[n], now):
                self._counts.repeats += 1
                self._again.add(stream)
            else:
                refused = tops[n] == REFUSED
                self._give_up(stream, "Redis refuses it" if refused else "it was replaced there")

    def _reserve(self, streams: list[WrittenStream]) -> set[WrittenStream]:
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
                self._give_up(stream, "SLUICE_REPLAY_REDIS leaves no room")
                keys, arguments = [stream.key.decode()], [stream.nonce]
                self._redis.run(lambda client, k=keys, a=arguments: DROP(client, k, a))  # type: ignore[misc]
        return homeless


def batches(streams: list[WrittenStream]) -> Iterator[list[WrittenStream]]:
    for n in range(0, len(streams), AT_ONCE):
        yield streams[n : n + AT_ONCE]
