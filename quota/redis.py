"""The counters that several processes share through Redis.

- Each step is one script (see scripts.py): one atomic round trip, which may be sent twice.
- No call waits for a Redis that is unavailable: settlements wait in memory until Redis is back.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import redis

from cluster.redis_client import RedisAway, RedisClient
from keys.key import Limits
from quota import scripts
from quota.memory import Admission, Ask, Counts, Hold, RequestCounts, Tokens
from quota.scripts import MAX_TOKENS, REFUSALS

MAX_PENDING: Final = 10_000
"""The maximum number of settlements that wait for Redis. The oldest are dropped."""
BATCH: Final = 200
REVOKED_S: Final = 300
"""Seconds within which a Redis that hung may still read older commands."""


class Store:
    """The scripts, and the names of their keys. Redis is connected on first use."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        register: Callable[[str], Any] = redis.Redis(connection_pool=pool).register_script
        self.look, self.take = register(scripts.LOOK), register(scripts.ADMIT)
        self.give = register(scripts.SETTLE)

    def windows(self, window: str) -> list[str]:
        """Return the keys of a window's counters: the previous one, then the current one."""
        current = f"LIMITS:{{{window}}}"  # braces keep both in one slot of a Redis cluster
        return [f"{current}/-1", current]

    def counters(self, key_id: str, limits: Limits) -> list[str]:
        """Return the keys that count a Sluice key's calls: two windows and the list of requests."""
        requests = f"LIMITS:LIMITER/{key_id}/{limits.requests_per_minute or 0}/1/minute"
        return [*self.windows(window_of(key_id, limits)), requests]

    def reservation(self, number: str) -> str:
        return f"LIMITS:hold/{number}"


class RedisCounters:
    """The counters of all processes at a Redis. A token window starts with its first token."""

    def __init__(self, redis_client: RedisClient) -> None:
        self._redis = redis_client
        self._store = Store(redis_client.pool)
        self._pending: deque[tuple[Hold, int, int]] = deque(maxlen=MAX_PENDING)

    def admit(self, key_id: str, limits: Limits, ask: Ask) -> Admission | None:
        """Count a request and reserve its tokens. Return None if Redis is unavailable."""
        window, number = window_of(key_id, limits), uuid.uuid4().hex
        keys = [*self._store.counters(key_id, limits), self._store.reservation(number)]
        output = -1 if ask.output is None else min(ask.output, MAX_TOKENS)
        wants = (min(ask.input, MAX_TOKENS), output, ask.reserve, ask.requests)
        sent = self._redis.available
        try:
            reply = self._redis.script(partial(self._store.take, keys, [*numbers(limits), *wants]))
        except RedisAway:
            if (
                sent and limits.tokens_per_hour is not None
            ):  # Redis may have run the script, or may run it later
                never = Hold(window, 0, Counts(None, None), id=number)
                self._pending.append((never, 0, REVOKED_S))
            return None
        refused, wanted = REFUSALS[reply[0]], reply[1]
        counts = counts_of(reply, limits)
        if refused is not None:
            return Admission(None, refused, wanted, counts)
        if counts.tokens is None:
            return Admission(None, None, 0, counts)
        return Admission(Hold(window, wanted, counts, id=number), None, wanted, counts)

    def settle(self, hold: Hold, tokens: int) -> None:
        """Replace the reserved tokens by the used tokens, as soon as Redis is available."""
        try:
            self._redis.script(partial(self._settle, hold, tokens, 0))
        except RedisAway:
            self._pending.append((hold, tokens, 0))

    def counts(self, key_id: str, limits: Limits) -> Counts | None:
        """Return the current counts, or None if Redis is unavailable."""
        keys = self._store.counters(key_id, limits)
        try:
            reply = self._redis.script(partial(self._store.look, keys, numbers(limits)))
        except RedisAway:
            return None
        return counts_of(reply, limits)

    def beat(self) -> None:
        """Write the settlements that are waiting for Redis."""
        while self._pending and self._redis.available:
            batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]

            def write(client: redis.Redis, batch: list[tuple[Hold, int, int]] = batch) -> None:
                with client.pipeline(transaction=False) as pipeline:
                    for late in batch:
                        self._settle(*late, pipeline)
                    pipeline.execute()

            try:
                self._redis.run(write)
            except RedisAway:
                self._pending.extendleft(reversed(batch))
                return

    def _settle(self, hold: Hold, tokens: int, revoked_s: int, client: redis.Redis) -> None:
        keys = [*self._store.windows(hold.window), self._store.reservation(hold.id)]
        self._store.give(keys, [min(tokens, MAX_TOKENS), revoked_s], client)


def window_of(key_id: str, limits: Limits) -> str:
    """Return the name of the window in which a key's tokens count."""
    return f"LIMITER/{key_id}/{limits.tokens_per_hour or 0}/1/hour"


def numbers(limits: Limits) -> list[int]:
    """Return the limits as arguments of the scripts."""
    return [-1 if limit is None else limit for limit in limits]


def counts_of(reply: list[int], limits: Limits) -> Counts:
    """Return the counts in a script's reply."""
    made, reset, before, fade, current, rest = reply[2:]
    requests, tokens = None, None
    if limits.requests_per_minute is not None:
        requests = RequestCounts(limits.requests_per_minute - made, reset / 1000)
    if limits.tokens_per_hour is not None:
        tokens = Tokens(before, fade / 1000, current, rest / 1000)
    return Counts(requests, tokens)
