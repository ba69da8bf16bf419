"""The registry of active calls, with their queue, stop-stream and the sweeper.

A call, streamed or not, is active from its admission until its settlement. At most `limit` calls
run, the next `queue` calls wait for their turn, and the others are refused. If processes share a
Redis, each call is also claimed in the cluster.

- The module uses plain threading, so that it works with gevent and with native threads.
- No lock is held during a wait.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from completion import StreamKey, Summary
from concurrency.native import BriefLock
from concurrency.threads import BackgroundThread
from errors import RateLimited, StreamExists, StreamNotFound, Unavailable, limit_details
from streams.replay_store import ReplayStore
from streams.stream import (
    Stream,
)

if TYPE_CHECKING:
    from cluster.lua import ScriptPart
    from cluster.ownership import Cluster

log = logging.getLogger("sluice.streams")

REMEMBER_STOPPED_S = 60.0
SWEEP_S = 1.0
SHARE = 0.8
"""The default share of all calls that one key may have, which leaves room for other keys."""


MOST_LISTED = 500
"""The most calls of a process in the list of all keys' calls."""


class ActiveHere(msgspec.Struct, frozen=True):
    """The active calls of one process."""

    calls: int
    """Their number."""
    oldest: list[Summary]
    """The MOST_LISTED oldest ones."""


class ActiveStreams(NamedTuple):
    """The active calls of the cluster."""

    calls: int
    """Their number, in the processes that answered."""
    oldest: list[Summary]
    """The oldest ones of each process, oldest first."""
    processes: int
    """The number of processes that answered, with this one."""
    missing: int | None
    """The number of processes that didn't answer; None if it isn't known."""


class StreamRegistry:
    """The active streams of this process, and the sweeper that checks their deadlines."""

    def __init__(
        self,
        limit: int,
        *,
        queue: int = 0,
        per_key: int | None = None,
        cluster: Cluster | None = None,
        replays: ReplayStore | None = None,
    ) -> None:
        """Make an empty registry.

        Args:
            limit: the maximum number of running calls.
            queue: the maximum number of waiting calls.
            per_key: the maximum number of calls of one key, running or waiting. None means SHARE of
                all calls.
            cluster: the processes that share a Redis; None if this process is the only one.
            replays: the resumable streams of this process. The ids of those that are kept after
                their end aren't free.
        """
        self._cluster = cluster
        self._replays = replays or ReplayStore(0, 0, 0)
        self._kept = self._replays.kept
        self._limit, self._queue_size = limit, queue
        self._per_key = max(1, int(SHARE * (limit + queue))) if per_key is None else per_key
        self._lock = BriefLock()
        self._active: dict[StreamKey, Stream] = {}
        self._of_key: Counter[str] = Counter()
        self._leaving: set[Stream] = set()
        """Streams whose release is being sent. The process must not exit before that."""
        self._running: set[Stream] = set()
        self._waiting: deque[Stream] = deque()
        self._stopped: dict[StreamKey, float] = {}
        self._stopped_requests: dict[tuple[str, str], float] = {}
        """When calls were stopped, by their key's id and a request id that isn't the stream id."""
        self._sweeper = BackgroundThread(self._sweep, "sweeper")

    def watch(self) -> None:
        """Look at the followers of resumable streams from now on, though no call may run here."""
        self._sweeper.start()

    def add(self, stream: Stream, share: int | None = None) -> None:
        """Register a stream in this process.

        Args:
            share: the maximum number of the key's calls in this process. None means `per_key`.

        Raises:
            StreamExists: the key has an active call with this id in this process.
            RateLimited: the key has too many calls.
            Unavailable: this process has too many calls.
        """
        share = self._per_key if share is None else share
        stream_key = (stream.key_id, stream.id)
        self._sweeper.start()
        with self._lock:
            if stream_key in self._active:
                raise StreamExists(stream.id)
            if stream_key in self._kept:
                raise StreamExists(stream.id, ended=True)
            if len(self._active) >= self._limit + self._queue_size:
                raise too_many()
            if self._of_key[stream.key_id] >= share:
                raise too_many_of_key(share)
            self._active[stream_key] = stream
            self._of_key[stream.key_id] += 1
            self._stopped.pop(stream_key, None)

    def claim(
        self, stream: Stream, share: int | None, part: ScriptPart | None = None
    ) -> bytes | None:
        """Claim a registered stream in the cluster, if processes share a Redis.

        Args:
            share: the maximum number of the key's calls in the whole cluster. None means no limit.
            part: code that decides whether the call is admitted.

        Return the part's reply, or None if the part may not have run.

        Raises:
            StreamExists: the key has an active call or a kept resumable stream with this id in
                another process. The stream is no longer registered.
            RateLimited: the key has too many calls. The stream is no longer registered.
        """
        if self._cluster is None:
            return None
        result, reply = self._cluster.claim((stream.key_id, stream.id), share, part)
        if result != "yes":
            self._forget(stream)
            if result == "too many":
                raise too_many_of_key(share or 0)
            raise StreamExists(stream.id, ended=result == "kept")
        return reply  # type: ignore[no-any-return]

    def await_turn(self, stream: Stream, patience: float) -> bool:
        """Wait until the stream may start. Waiting streams start in the order of their arrival.

        Return False if the stream didn't get its turn within `patience` seconds, or has ended.
        """
        with self._lock:
            if not self._may_begin(stream):
                return False
            if len(self._running) < self._limit and not self._waiting:
                self._running.add(stream)
                return True
            self._waiting.append(stream)
        stream.turn.wait(patience)
        with self._lock:
            if stream in self._waiting:
                self._waiting.remove(stream)
            return stream in self._running

    def _may_begin(self, stream: Stream) -> bool:
        """Return True if the stream is still active.

        Otherwise it must not take a slot, because nothing would free it.
        """
        return not stream.ended and self._active.get((stream.key_id, stream.id)) is stream

    def remove(self, stream: Stream, part: ScriptPart | None = None) -> bool:
        """Remove a stream, and release its claim. No-op if it isn't registered.

        Args:
            part: code to run with the release.

        Return False if the part may not have run.
        """
        if self._cluster is None:
            self._forget(stream)
            return False
        self._leaving.add(stream)
        try:
            if not self._forget(stream):
                return False
            stream_key = (stream.key_id, stream.id)
            return self._cluster.release(stream_key, stopped=stream.stopped, part=part)
        finally:
            self._leaving.discard(stream)

    def _forget(self, stream: Stream) -> bool:
        """Remove a stream from this process. Return False if it isn't registered."""
        stream_key = (stream.key_id, stream.id)
        with self._lock:
            registered = self._active.get(stream_key) is stream
            if registered:
                del self._active[stream_key]
                self._of_key[stream.key_id] -= 1
                if not self._of_key[stream.key_id]:
                    del self._of_key[stream.key_id]
            self._running.discard(stream)
            while self._waiting and len(self._running) < self._limit:
                following = self._waiting.popleft()
                if self._may_begin(following):
                    self._running.add(following)
                    following.turn.set()
            if stream.stopped:
                now = time.monotonic()
                self._stopped[stream_key] = now
                if stream.request_id != stream.id:
                    self._stopped_requests[stream.key_id, stream.request_id] = now
        return registered

    def stop(self, key_id: str, call_id: str) -> None:
        """Stop one of the key's calls, in any state and in any process.

        If no call has this stream id, the calls with this request id are stopped. Stopping a call
        again within REMEMBER_STOPPED_S is a no-op.

        Raises:
            StreamNotFound: the key has no active call with this id.
            Unavailable: another process may have the call, but can't be reached.
        """
        call_key = (key_id, call_id)
        if self.end_active(call_key):
            return
        remembered = self._remembers(call_key)
        if self._cluster is None:
            remembered = remembered or self.end_requests(call_key)
        else:
            try:  # another process may have started a new call with this id
                remembered = self._cluster.stop(call_key)
            except Unavailable:
                if not remembered:
                    raise
        if not remembered:
            raise StreamNotFound("No active stream has this id. It may have finished already.")

    def stop_here(self, stream_key: StreamKey) -> bool:
        """Stop a call of this process. Return True also if it was stopped a moment ago."""
        return self.end_active(stream_key) or self._remembers(stream_key)

    def end_active(self, stream_key: StreamKey) -> bool:
        """Stop an active call of this process. Return False if there is none with this id."""
        with self._lock:
            stream = self._active.get(stream_key)
        return stream is not None and (stream.end("stopped") or stream.stopped)

    def end_requests(self, request_key: tuple[str, str]) -> bool:
        """Stop the active calls of this process with a request id, which several may share.

        Return True also if such a call was stopped a moment ago.

        Args:
            request_key: the key's id, and the request id.
        """
        key_id, request_id = request_key
        found = [stream for stream in self.of(key_id) if stream.request_id == request_id]
        ended = [stream.end("stopped") or stream.stopped for stream in found]
        with self._lock:
            at = self._stopped_requests.get(request_key, -math.inf)
        return any(ended) or at > time.monotonic() - REMEMBER_STOPPED_S

    def _remembers(self, stream_key: StreamKey) -> bool:
        with self._lock:
            return self._stopped.get(stream_key, -math.inf) > time.monotonic() - REMEMBER_STOPPED_S

    def summaries(self, key_id: str) -> list[Summary]:
        """Return the key's active calls in the whole cluster, oldest first.

        Raises Unavailable if the other processes can't be asked.
        """
        found = self.summaries_here(key_id)
        if self._cluster is not None:
            found += self._cluster.others(key_id)
        return sorted(found, key=lambda summary: summary.opened_at)

    def summaries_here(self, key_id: str) -> list[Summary]:
        return [stream.summary() for stream in self.of(key_id)]

    def of_all_keys(self, key_id: str = "") -> ActiveStreams:
        """Return the active calls of all keys, or of one key, in the whole cluster.

        What other processes don't answer in time is missing.
        """
        own = self.of_all_keys_here(key_id)
        if self._cluster is None:
            return ActiveStreams(own.calls, own.oldest, 1, 0)
        answers = self._cluster.ask_others("streams", key_id)
        parts = [own, *(msgspec.convert(found, ActiveHere) for found in answers.found)]
        oldest = sorted((s for part in parts for s in part.oldest), key=attrgetter("opened_at"))
        calls = sum(part.calls for part in parts)
        return ActiveStreams(calls, oldest, len(parts), answers.missing)

    def of_all_keys_here(self, key_id: str = "") -> ActiveHere:
        """Return this process's active calls, of all keys or of one."""
        found = self.of(key_id) if key_id else self._snapshot()
        # Calls are registered in the order of their start.
        return ActiveHere(len(found), [stream.summary() for stream in found[:MOST_LISTED]])

    def of(self, key_id: str) -> list[Stream]:
        """Return the key's active calls in this process, oldest first."""
        with self._lock:
            return [stream for (owner, _), stream in self._active.items() if owner == key_id]

    def stream_keys(self) -> list[StreamKey]:
        with self._lock:
            return list(self._active)

    def kept_for(self, stream_key: StreamKey) -> int:
        """Return for how many seconds an ended stream still keeps its id; 0 unless it is kept."""
        replay = self._kept.get(stream_key)
        if replay is None:
            return 0
        passed = time.time() - replay.ending.ended_at if replay.ending is not None else 0.0
        return max(1, math.ceil(self._replays.keep - passed))

    def kept(self) -> dict[StreamKey, int]:
        """Return the ended streams that are kept, and for how many seconds they keep their ids."""
        kept = self._kept.copy()
        return {key: self.kept_for(key) or 1 for key in kept if kept[key].ending is not None}

    def __len__(self) -> int:
        return len(self._active) + len(self._leaving)

    def end_all(self) -> None:
        """End all calls because the server is shutting down. Each client gets an error."""
        for stream in self._snapshot():
            stream.end("shutdown", Unavailable("The server is shutting down. Try again."))

    def _snapshot(self) -> list[Stream]:
        with self._lock:
            return list(self._active.values())

    def _sweep(self) -> None:
        while True:
            time.sleep(SWEEP_S)
            try:
                self._replays.sweep()
            except Exception:  # the sweeper must continue to watch the calls
                log.exception("sweep of resumable streams failed")
            for stream in self._snapshot():
                try:
                    stream.look(time.monotonic())
                except Exception:  # the sweeper must continue to watch the other calls
                    log.exception("sweep failed", extra={"request_id": stream.request_id})
            with self._lock:
                oldest = time.monotonic() - REMEMBER_STOPPED_S
                self._stopped = later(self._stopped, oldest)
                self._stopped_requests = later(self._stopped_requests, oldest)


def later(times: dict[tuple[str, str], float], oldest: float) -> dict[tuple[str, str], float]:
    return {key: at for key, at in times.items() if at > oldest}


def too_many() -> Unavailable:
    return Unavailable(
        "Too many calls are active. Try again in a moment.",
        lacks="capacity",
    )


def too_many_of_key(limit: int) -> RateLimited:
    calls = "call" if limit == 1 else "calls"
    return RateLimited(
        f"This key already has {limit} active {calls}, its maximum. Try again when one has ended.",
        retry_after=1,
        details=limit_details("concurrency", limit, 1),
    )
