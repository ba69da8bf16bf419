"""The counters that several processes share through Redis.

- Each step is one script (see scripts.py): one atomic round trip, which may be sent twice.
- No call waits for a Redis that is unavailable: settlements wait in memory until Redis is back.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import redis

from cluster.redis_client import RedisAway, RedisClient
from keys.limits import Limits
from quota import scripts
from quota.memory import Admission, Ask, Counts, Hold, Holder, RequestCounts, Tokens
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

    def counters(self, holder: Holder) -> list[str]:
        """Return the keys that count a holder's calls: two windows and the list of requests."""
        id_, limits, _ = holder
        requests = f"LIMITS:LIMITER/{id_}/{limits.requests_per_minute or 0}/1/minute"
        return [*self.windows(window_of(id_, limits)), requests]

    def reservation(self, number: str) -> str:
        return f"LIMITS:hold/{number}"


class RedisCounters:
    """The counters of all processes at a Redis. A token window starts with its first token."""

    def __init__(self, redis_client: RedisClient) -> None:
        self._redis = redis_client
        self._store = Store(redis_client.pool)
        self._pending: deque[tuple[Hold, int, int]] = deque(maxlen=MAX_PENDING)

    def admit(self, holders: Sequence[Holder], ask: Ask) -> Admission | None:
        """Count a request and reserve its tokens. Return None if Redis is unavailable."""
        ids = reservations(uuid.uuid4().hex, len(holders))
        keys = [key for holder in holders for key in self._store.counters(holder)]
        keys += [self._store.reservation(id_) for id_ in ids]
        output = -1 if ask.output is None else min(ask.output, MAX_TOKENS)
        wants = (min(ask.input, MAX_TOKENS), output, ask.reserve, ask.requests)
        sent = self._redis.available
        try:
            arguments = [*numbers(holders), *wants]
            reply = self._redis.script(partial(self._store.take, keys, arguments))
        except RedisAway:
            if sent:  # Redis may have run the script, or may run it later
                self._revoke(holders, ids)
            return None
        refused, wanted, by = REFUSALS[reply[0]], reply[1], reply[2]
        counts = counts_of(reply, holders)
        if refused is not None or not any(found.tokens for found in counts):
            return Admission(None, refused, wanted, counts, by)
        hold = None
        for holder, id_, found in zip(holders, ids, counts, strict=True):
            window = window_of(*holder[:2])
            hold = Hold(window, wanted, found, id=id_, before=hold)
        return Admission(hold, None, wanted, counts)

    def _revoke(self, holders: Sequence[Holder], ids: Sequence[str]) -> None:
        """Undo a reservation that may have been made, or may still be made."""
        for holder, id_ in zip(holders, ids, strict=True):
            if holder[1].tokens_per_hour is not None:
                window = window_of(*holder[:2])
                never = Hold(window, 0, Counts(None, None), id=id_)
                self._pending.append((never, 0, REVOKED_S))

    def settle(self, hold: Hold | None, tokens: int) -> None:
        """Replace the reserved tokens by the used tokens, as soon as Redis is available."""
        while hold is not None:
            if hold.counts.tokens is not None:
                try:
                    self._redis.script(partial(self._settle, hold, tokens, 0))
                except RedisAway:
                    self._pending.append((hold, tokens, 0))
            hold = hold.before

    def counts(self, holders: Sequence[Holder]) -> tuple[Counts, ...] | None:
        """Return the current counts of each holder, or None if Redis is unavailable."""
        keys = [key for holder in holders for key in self._store.counters(holder)]
        try:
            reply = self._redis.script(partial(self._store.look, keys, numbers(holders)))
        except RedisAway:
            return None
        return counts_of(reply, holders)

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


def reservations(number: str, count: int) -> list[str]:
    """Return the ids of a call's reservations, one for each of its holders."""
    return [number, *(f"{number}/{place}" for place in range(1, count))]


def window_of(holder_id: str, limits: Limits) -> str:
    """Return the name of the window in which a holder's tokens count."""
    return f"LIMITER/{holder_id}/{limits.tokens_per_hour or 0}/1/hour"


def numbers(holders: Sequence[Holder]) -> list[int]:
    """Return the number of holders and their limits as arguments of the scripts."""
    limits = [limit for _, own, _ in holders for limit in own]
    return [len(holders), *(-1 if limit is None else limit for limit in limits)]


def counts_of(reply: list[int], holders: Sequence[Holder]) -> tuple[Counts, ...]:
    """Return the counts of each holder in a script's reply."""
    found = []
    for number, (_, (per_minute, per_hour), _) in enumerate(holders):
        at = 3 + 6 * number
        made, reset, before, fade, current, rest = reply[at : at + 6]
        requests, tokens = None, None
        if per_minute is not None:
            requests = RequestCounts(per_minute - made, reset / 1000)
        if per_hour is not None:
            tokens = Tokens(before, fade / 1000, current, rest / 1000)
        found.append(Counts(requests, tokens))
    return tuple(found)
