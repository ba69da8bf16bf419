"""The ownership of calls in a cluster: which process runs a call, and how another one stops it.

A process claims the ids of its calls in Redis, so that an id is unique in the cluster. It also
sends a heartbeat once a second. To stop or list the calls of another process, it asks that process.
A process is silent if its last heartbeat is too old. It may be dead, or it may still run its calls
without a connection to Redis.

- If the state of a call isn't known, the answer is Unavailable, never a guess.
- Calls continue if Redis is unavailable. Once Redis is back, each process claims its calls again.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import msgspec
import redis

from cluster.lua import NO_PART, ScriptPart
from cluster.marks import kept_mark_of, mark_kept, mark_of
from cluster.messages import (
    CHANNEL,
    QUESTIONS,
    TTL_S,
    WHOLE,
    Messages,
    Question,
    close,
    new_token,
    run,
)
from cluster.redis_client import RedisAway, RedisClient
from cluster.scripts import (
    ASK,
    BEAT,
    OWNERS,
    PROCESSES_NOW,
    REFUSALS,
    ClaimResult,
    claiming,
    releasing,
)
from completion import StreamKey, Summary
from concurrency.threads import BackgroundThread
from errors import Unavailable

# The logger's name is kept from earlier releases: see docs/decisions/0013-the-house.md.
log = logging.getLogger("sluice.fleet")

BEAT_S, MAX_PAUSE_S = 1.0, 4.0
"""The interval between heartbeats, and the longest back-off while Redis is unavailable."""
SILENT_S, DEAD_S = 5.0, 30.0
"""The age of the last heartbeat at which a process counts as silent, and as dead."""
SETTLED_S = 8.0
"""The time after which all processes have claimed their calls in a Redis that lost its data."""
CLOSE_S = 2.0
CALLS_TTL_S = 2 * 24 * 3600
STOPPED_TTL_S = 60
AT_ONCE = 500
MAX_UNRELEASED = 100_000
# Processes of earlier releases use these Redis keys too: see docs/decisions/0013-the-house.md.
PROCESSES, SINCE = "sluice:fleet", "sluice:since"
CALLS: Final = "sluice:calls:"


Subjects: TypeAlias = Mapping[str, Callable[[str], Any]]
"""The questions about the whole process: by its subject, the function that answers it. Its argument
is the rest of the question. It must not wait, and its result must be JSON-serializable."""
NO_SUBJECTS: Final[Subjects] = MappingProxyType({})


class Answers(NamedTuple):
    """The answers of the other processes to a question about the whole process."""

    found: list[Any]
    missing: int | None
    """The number of processes that didn't answer; None if it isn't known, because Redis is
    unavailable."""


class Local(Protocol):
    """The part of the stream registry that the cluster needs."""

    def stop_here(self, stream_key: StreamKey) -> bool: ...
    def end_active(self, stream_key: StreamKey) -> bool: ...
    def end_requests(self, request_key: tuple[str, str]) -> bool: ...
    def summaries_here(self, key_id: str) -> list[Summary]: ...
    def stream_keys(self) -> list[StreamKey]: ...
    def kept_for(self, stream_key: StreamKey) -> int: ...
    def kept(self) -> dict[StreamKey, int]: ...


class Cluster:
    """A process's membership in the cluster."""

    def __init__(self, redis_client: RedisClient) -> None:
        self._redis = redis_client
        self.name = self._me = new_token()
        """The unique name of this process."""
        self._post = Messages(redis_client, self._me, self._reply)
        self._local: Local
        self._at_beats: tuple[Callable[[], None], ...] = ()
        self._subjects = NO_SUBJECTS
        self._thread = BackgroundThread(self._work, "cluster")
        self._closing = False
        self._since = b""
        self._age = 0.0
        """The seconds for which Redis had had its data at the last heartbeat."""
        self._beaten_at = self._steady_since = time.monotonic()
        """The monotonic times of the last heartbeat, and of the last one after a gap."""
        self._stale = True
        """True if claims of this process may be missing from Redis."""
        self._unreleased: dict[StreamKey, bool] = {}
        """Calls that ended while Redis was unavailable; True for those that were stopped."""

    @property
    def since(self) -> bytes:
        """The time since which Redis has had its data, as of the last heartbeat."""
        return self._since

    @property
    def settled(self) -> bool:
        """True if Redis has had its data for so long that all processes have reported."""
        now = time.monotonic()
        return now - self._beaten_at < SILENT_S and self._age >= SETTLED_S

    @property
    def steady(self) -> bool:
        """True if this process can tell which other processes are dead.

        Its own heartbeats have reached Redis without a gap for as long as all others need to report
        after an outage, and Redis has kept its data.
        """
        return self.settled and time.monotonic() - self._steady_since >= SETTLED_S

    def attend(
        self, local: Local, *at_beats: Callable[[], None], subjects: Subjects = NO_SUBJECTS
    ) -> None:
        """Attach the process's calls, tasks that run after each heartbeat, and further answers.

        Args:
            local: the registry of this process's calls.
            at_beats: callbacks that run once a second in the heartbeat's thread. They may wait.
            subjects: the questions about the whole process that it answers.
        """
        self._local, self._at_beats, self._subjects = local, at_beats, subjects

    def start(self) -> None:
        """Start the heartbeat. Raises ConfigError if Redis can't be used."""
        self._redis.check()
        self._thread.start()

    def close(self) -> None:
        """Leave the cluster. The process must have no calls left."""
        self._closing = True
        with contextlib.suppress(RedisAway):
            self._redis.run(self._post.close)
        self._thread.join(CLOSE_S)  # a heartbeat may be in progress, which would rejoin the cluster
        with contextlib.suppress(RedisAway):
            self._redis.run(lambda client: client.zrem(PROCESSES, self._me))
        self._redis.close()

    def claim(
        self,
        stream_key: StreamKey,
        max_calls: int | None = None,
        part: ScriptPart | None = None,
    ) -> tuple[ClaimResult, Any]:
        """Claim a call's id.

        Args:
            max_calls: the key's limit on calls in the cluster; None means no limit.
            part: code that decides whether the call is admitted. If it refuses the call, nothing is
                claimed.

        Returns:
            "yes"; "exists" if another process has a call with this id; "kept" if a resumable stream
            with this id has ended, but is kept; "too many" if the key has max_calls. If Redis is
            unavailable, "yes", because calls don't depend on Redis. With it, the part's reply; None
            if the part may not have run.
        """
        self._thread.start()
        self._unreleased.pop(stream_key, None)
        code, keys, arguments = part or NO_PART
        own_keys, own_arguments = self._claim(stream_key, max_calls, new=True)
        try:
            reply = self._redis.script(
                claiming(code), [*keys, *own_keys], [*arguments, *own_arguments]
            )
        except RedisAway:
            self._stale = True
            return "yes", None
        if reply in REFUSALS:
            return REFUSALS[reply], None
        return "yes", reply

    def release(
        self, stream_key: StreamKey, *, stopped: bool, part: ScriptPart | None = None
    ) -> bool:
        """Release the id of a call that has ended. Remember a stop for STOPPED_TTL_S.

        The id of a resumable stream isn't free before the stream is no longer kept.

        Args:
            part: code to run with the release.

        Return False if Redis is unavailable. The id is released later then, but the part may not
        have run.
        """
        key_id, stream_id = stream_key
        code, keys, arguments = part or NO_PART
        own_keys = CALLS + key_id, mark_of(stream_key), kept_mark_of(stream_key)
        stopped_for, kept_for = STOPPED_TTL_S if stopped else 0, self._local.kept_for(stream_key)
        own_arguments = self._me, stream_id, stopped_for, kept_for
        try:
            self._redis.script(releasing(code), [*keys, *own_keys], [*arguments, *own_arguments])
        except RedisAway:
            self._stale = True
            if len(self._unreleased) < MAX_UNRELEASED:
                self._unreleased[stream_key] = stopped
            return False
        return True

    def stop(self, stream_key: StreamKey) -> bool:
        """Stop a call of another process, or of any process if the id is a request id.

        Return False if no process has it. Raises Unavailable if that isn't known.
        """
        self._thread.start()
        token = new_token()
        with self._post.expecting(token):
            result = run(self._redis, lambda client: self._ask(client, stream_key, token))
            if result == b"asked":
                return bool(self._post.answer(token))
        if result == b"unknown":
            return self._stop_unclaimed(stream_key)
        if result == b"stopped":
            return True
        raise Unavailable(
            "Sluice can't tell right now whether this stream is active: some of its processes "
            "haven't reported. Try again."
        )

    def _stop_unclaimed(self, stream_key: StreamKey) -> bool:
        """Stop a call whose id nobody has claimed as a stream id.

        It may be a request id, which is never claimed, or the stream id of a process that couldn't
        claim it without Redis.
        """
        here = self._local.end_requests(stream_key)
        try:
            others = run(self._redis, lambda client: client.zrange(PROCESSES, 0, -1))
            asked = [other.decode() for other in others if other.decode() != self._me]
            question = Question(self._me, *stream_key, guess=True)
            return any(self._post.ask_all(asked, question)) or here
        except Unavailable:
            if not here:
                raise
            return True

    def others(self, key_id: str) -> list[Summary]:
        """Return the key's calls in other processes. Raises Unavailable if one doesn't respond."""
        self._thread.start()
        keys, arguments = [CALLS + key_id, PROCESSES], [self._me, SILENT_S]
        owners = run(self._redis, lambda client: OWNERS(client, keys, arguments))
        asked = [owner.decode() for owner in owners]
        answers = self._post.ask_all(asked, Question(self._me, key_id))
        return [found for answer in answers for found in msgspec.convert(answer, list[Summary])]

    def ask_others(self, subject: str, rest: str = "") -> Answers:
        """Ask all other processes a question about the whole process.

        Args:
            subject: one of the subjects of `attend`.
            rest: the rest of the question, which the function for the subject gets.

        Returns:
            The answers that arrive in time. What a silent process knows is missing.
        """
        self._thread.start()
        try:
            processes, known = run(
                self._redis, lambda client: PROCESSES_NOW(client, [PROCESSES], [SILENT_S])
            )
            others = [name.decode() for name in processes if name.decode() != self._me]
            silent = known - len(processes)
            question = Question(self._me, WHOLE, f"{subject}/{rest}")
            answers = self._post.ask_all(others, question, partly=True)
        except Unavailable:
            return Answers([], None)
        found = [answer for answer in answers if answer is not False]
        return Answers(found, silent + len(others) - len(found))

    def _claim(
        self, stream_key: StreamKey, max_calls: int | None, *, new: bool
    ) -> tuple[list[str], list[str | int]]:
        """Return the keys and the arguments of a claim.

        Args:
            new: False if the call runs already.
        """
        key_id, stream_id = stream_key
        most = -1 if max_calls is None else max_calls
        keys = [CALLS + key_id, PROCESSES, mark_of(stream_key), kept_mark_of(stream_key)]
        return keys, [self._me, stream_id, most, CALLS_TTL_S, int(new)]

    def _ask(self, client: Any, stream_key: StreamKey, token: str) -> Any:
        key_id, stream_id = stream_key
        keys = [CALLS + key_id, PROCESSES, SINCE, mark_of(stream_key)]
        question = msgspec.json.encode(Question(self._me, *stream_key))
        where, limits = [QUESTIONS, CHANNEL, token, question], [SILENT_S, SETTLED_S, TTL_S]
        return ASK(client, keys, [self._me, stream_id, *where, *limits])

    def _reply(self, question: Question) -> Any:
        if question.key_id == WHOLE:
            subject, _, rest = (question.stream_id or "").partition("/")
            answer = self._subjects.get(subject)
            return False if answer is None else answer(rest)
        if question.stream_id is not None:
            stream_key = question.key_id, question.stream_id
            local = self._local
            if question.guess:
                return local.end_active(stream_key) or local.end_requests(stream_key)
            return local.stop_here(stream_key)
        return self._local.summaries_here(question.key_id)

    def _work(self) -> None:
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
                time.sleep(min(BEAT_S * 2**failures, MAX_PAUSE_S))
                failures += 1
            except Exception:  # without this thread, no other process could stop this one's calls
                log.exception("the heartbeat failed")
                time.sleep(BEAT_S)
            self._do_tasks()

    def _do_tasks(self) -> None:
        for task in self._at_beats:
            try:
                task()
            except Exception:  # a broken task must not prevent the other tasks
                log.exception("a task after the heartbeat failed")

    def _beat(self) -> None:
        """Send a heartbeat, and answer the questions that are waiting. Raises RedisAway."""
        keys = [PROCESSES, SINCE, self._post.questions]
        since, asked, age = self._redis.probe(lambda client: BEAT(client, keys, [self._me, DEAD_S]))
        now = time.monotonic()
        if self._stale or since != self._since or now - self._beaten_at > SILENT_S:
            self._stale, self._since, self._steady_since = False, since, now
            self._repeat_claims()
        self._beaten_at, self._age = now, float(age)
        self._post.reply_to(dict(zip(asked[::2], asked[1::2], strict=True)))

    def _repeat_claims(self) -> None:
        """Claim all active calls and kept streams again, and release calls that have ended.

        Raises RedisAway.
        """
        stream_keys = self._local.stream_keys()
        for n in range(0, len(stream_keys), AT_ONCE):
            self._claim_all(stream_keys[n : n + AT_ONCE])
        active = set(self._local.stream_keys())
        ended, self._unreleased = dict.fromkeys(stream_keys, False) | self._unreleased, {}
        for stream_key, stopped in ended.items():
            if stream_key not in active:
                self.release(stream_key, stopped=stopped)
        mark_kept(self._redis, self._local.kept())

    def _claim_all(self, stream_keys: list[StreamKey]) -> None:
        def claim(client: Any) -> None:
            with client.pipeline(transaction=False) as pipe:
                for stream_key in stream_keys:
                    claiming(NO_PART.code)(pipe, *self._claim(stream_key, None, new=False))
                pipe.execute()

        self._redis.run(claim)
