"""The processes that share one Redis: whose call is whose, and stop across them.

A process claims the ids of its calls in Redis, so that an id belongs to one call of the whole
cluster, and sends a heartbeat each second. To stop or list another process's call, it asks the
owner. A process without a heartbeat for a while is silent: it may have ended, or be cut off and go
on.

- What can't be known raises Unavailable; it is never guessed.
- Calls go on whatever becomes of Redis. When it is back, it is told everything again.
- No lock is held while anything waits.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
import redis

from cluster.messages import CHANNEL, QUESTIONS, TTL_S, Messages, Question, close, new_token, run
from cluster.redis_client import RedisAway, RedisClient
from cluster.scripts import ASK, BEAT, CLAIM, OWNERS, RELEASE
from completion import StreamKey, Summary
from concurrency.threads import BackgroundThread
from errors import Unavailable

log = logging.getLogger("sluice.fleet")

BEAT_S, LONGEST_PAUSE_S = 1.0, 4.0
"""Between two beats, and between two tries to reach Redis while it is away."""
SILENT_S, DEAD_S = 5.0, 30.0
"""A process that hasn't beaten for so long is silent, or has ended."""
SETTLED_S = 8.0
"""When Redis has had data for so long, each process has told it what it has."""
CLOSE_S = 2.0
CALLS_TTL_S = 2 * 24 * 3600
STOPPED_TTL_S = 60
AT_ONCE = 500
MOST_UNRELEASED = 100_000
PROCESSES, SINCE = "sluice:fleet", "sluice:since"
CALLS, STOPPED = "sluice:calls:", "sluice:stopped:"

ClaimResult: TypeAlias = Literal["yes", "exists", "too many"]
CLAIM_RESULTS: tuple[ClaimResult, ...] = ("yes", "exists", "too many")


class Local(Protocol):
    """The calls of this process."""

    def stop_here(self, stream_key: StreamKey) -> bool: ...
    def end_active(self, stream_key: StreamKey) -> bool: ...
    def summaries_here(self, key_id: str) -> list[Summary]: ...
    def stream_keys(self) -> list[StreamKey]: ...


class Cluster:
    """This process, among those that share its Redis."""

    def __init__(self, redis_client: RedisClient) -> None:
        self._redis = redis_client
        self._me = new_token()
        self._post = Messages(redis_client, self._me, self._reply)
        self._local: Local
        self._at_beats: tuple[Callable[[], None], ...] = ()
        self._thread = BackgroundThread(self._work, "cluster")
        self._closing = False
        self._since = b""
        self._beaten_at = time.monotonic()
        self._stale = True
        """Whether Redis may not know all that this process has."""
        self._unreleased: dict[StreamKey, bool] = {}
        """Calls that ended while Redis was away; whether they were stopped."""

    def attend(self, local: Local, *at_beats: Callable[[], None]) -> None:
        """local: this process's calls. at_beats: called each second, in a thread that may wait."""
        self._local, self._at_beats = local, at_beats

    def start(self) -> None:
        """Raises ConfigError when Redis can't be used."""
        self._redis.check()
        self._thread.start()

    def close(self) -> None:
        """This process has no call left and is about to end."""
        self._closing = True
        with contextlib.suppress(RedisAway):
            self._redis.run(self._post.close)
        self._thread.join(CLOSE_S)  # its last beat may be under way
        with contextlib.suppress(RedisAway):
            self._redis.run(lambda client: client.zrem(PROCESSES, self._me))
        self._redis.close()

    def claim(self, stream_key: StreamKey, share: int | None = None) -> ClaimResult:
        """Claim a call's id. share: how many calls its key may have in the whole cluster."""
        self._thread.start()
        self._unreleased.pop(stream_key, None)
        try:
            return CLAIM_RESULTS[
                self._redis.script(lambda client: self._claim(client, stream_key, share))
            ]
        except RedisAway:
            self._stale = True
            return "yes"

    def release(self, stream_key: StreamKey, *, stopped: bool) -> None:
        """A call has ended."""
        key_id, stream_id = stream_key
        keys = [CALLS + key_id, mark_of(stream_key)]
        arguments = [self._me, stream_id, STOPPED_TTL_S if stopped else 0]
        try:
            self._redis.script(lambda client: RELEASE(client, keys, arguments))
        except RedisAway:
            self._stale = True
            if len(self._unreleased) < MOST_UNRELEASED:
                self._unreleased[stream_key] = stopped

    def stop(self, stream_key: StreamKey) -> bool:
        """Stop a call of another process. False: no process has it. Raises Unavailable."""
        self._thread.start()
        token = new_token()
        with self._post.expecting(token):
            told = run(self._redis, lambda client: self._ask(client, stream_key, token))
            if told == b"asked":
                return bool(self._post.answer(token))
        if told == b"unknown":  # to Redis; one that couldn't tell it may have the call
            others = run(self._redis, lambda client: client.zrange(PROCESSES, 0, -1))
            asked = [other.decode() for other in others if other.decode() != self._me]
            return any(self._post.ask_all(asked, Question(self._me, *stream_key, guess=True)))
        if told == b"stopped":
            return True
        raise Unavailable(
            "Whether this stream is active can't be known now: some of the servers have not been "
            "heard of. Try again."
        )

    def others(self, key_id: str) -> list[Summary]:
        """The key's calls in other processes. Raises Unavailable."""
        self._thread.start()
        keys, arguments = [CALLS + key_id, PROCESSES], [self._me, SILENT_S]
        owners = run(self._redis, lambda client: OWNERS(client, keys, arguments))
        asked = [owner.decode() for owner in owners]
        answers = self._post.ask_all(asked, Question(self._me, key_id))
        return [found for answer in answers for found in msgspec.convert(answer, list[Summary])]

    def _claim(self, client: Any, stream_key: StreamKey, share: int | None) -> int:
        key_id, stream_id = stream_key
        arguments = [self._me, stream_id, -1 if share is None else share, CALLS_TTL_S]
        return CLAIM(client, [CALLS + key_id, PROCESSES, mark_of(stream_key)], arguments)  # type: ignore[no-any-return]

    def _ask(self, client: Any, stream_key: StreamKey, token: str) -> Any:
        key_id, stream_id = stream_key
        keys = [CALLS + key_id, PROCESSES, SINCE, mark_of(stream_key)]
        question = msgspec.json.encode(Question(self._me, *stream_key))
        where, limits = [QUESTIONS, CHANNEL, token, question], [SILENT_S, SETTLED_S, TTL_S]
        return ASK(client, keys, [self._me, stream_id, *where, *limits])

    def _reply(self, question: Question) -> bool | list[Summary]:
        if question.stream_id is not None:
            stream_key = question.key_id, question.stream_id
            local = self._local
            return local.end_active(stream_key) if question.guess else local.stop_here(stream_key)
        return self._local.summaries_here(question.key_id)

    def _work(self) -> None:
        """The thread that beats, listens and answers."""
        listener, failures = None, 0
        while not self._closing:
            try:
                self._beat()
                listener = listener or self._post.listener()
                failures = 0
                self._post.listen(listener, time.monotonic() + BEAT_S)
            except (RedisAway, redis.RedisError, OSError):
                if listener is not None:
                    close(listener)
                listener, self._stale = None, True
                time.sleep(min(BEAT_S * 2**failures, LONGEST_PAUSE_S))
                failures += 1
            except Exception:  # without this thread nobody could stop anything from elsewhere
                log.exception("a beat failed")
                time.sleep(BEAT_S)
            self._do_tasks()

    def _do_tasks(self) -> None:
        for task in self._at_beats:
            try:
                task()
            except Exception:  # one odd task must not keep the others from theirs
                log.exception("a task of the beat failed")

    def _beat(self) -> None:
        """Raises RedisAway."""
        keys = [PROCESSES, SINCE, self._post.questions]
        since, asked = self._redis.probe(lambda client: BEAT(client, keys, [self._me, DEAD_S]))
        now = time.monotonic()
        if self._stale or since != self._since or now - self._beaten_at > SILENT_S:
            self._stale, self._since = False, since
            self._tell_all()
        self._beaten_at = now
        self._post.reply_to(dict(zip(asked[::2], asked[1::2], strict=True)))

    def _tell_all(self) -> None:
        """Tell Redis all that this process has, and what has ended. Raises RedisAway."""
        stream_keys = self._local.stream_keys()
        for n in range(0, len(stream_keys), AT_ONCE):
            self._claim_all(stream_keys[n : n + AT_ONCE])
        active = set(self._local.stream_keys())
        ended, self._unreleased = dict.fromkeys(stream_keys, False) | self._unreleased, {}
        for stream_key, stopped in ended.items():
            if stream_key not in active:
                self.release(stream_key, stopped=stopped)

    def _claim_all(self, stream_keys: list[StreamKey]) -> None:
        def claim(client: Any) -> None:
            with client.pipeline(transaction=False) as pipe:
                for stream_key in stream_keys:
                    self._claim(pipe, stream_key, None)
                pipe.execute()

        self._redis.run(claim)


def mark_of(stream_key: StreamKey) -> str:
    """Where it stands that a call was stopped. No call's id has a slash."""
    return STOPPED + "/".join(stream_key)
