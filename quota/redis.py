"""The counters that several processes share through Redis.

- Each step is a script, or a part of one (see scripts.py): one atomic round trip, which may be sent
  twice.
- No call waits for a Redis that is unavailable: settlements wait in memory until Redis is back.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import redis

from cluster.lua import LuaScript, ScriptPart
from cluster.redis_client import RedisAway, RedisClient
from keys.limits import Limits
from quota.memory import Admission, Ask, Counts, Hold, Holder, RequestCounts, Tokens
from quota.scripts import ADMIT, ADMIT_CODE, LOOK, MAX_TOKENS, REFUSALS, SETTLE, SETTLE_CODE

Claiming: TypeAlias = Callable[[ScriptPart | None], bytes | None]
"""A function that claims a call, and runs the part with the claim. It returns the part's reply, or
None if Redis is unavailable."""
Releasing: TypeAlias = Callable[[ScriptPart | None], bool]
"""A function that releases a call, and runs the part with the release. It returns False if the part
may not have run."""

MAX_PENDING: Final = 10_000
"""The maximum number of settlements that wait for Redis. The oldest are dropped."""
BATCH: Final = 200
REVOKED_S: Final = 300
"""Seconds within which a Redis that hung may still read older commands."""


class RedisCounters:
    """The counters of all processes at a Redis. A token window starts with its first token."""

    def __init__(self, redis_client: RedisClient) -> None:
        self._redis = redis_client
        self._pending: deque[tuple[Hold, int, int]] = deque(maxlen=MAX_PENDING)

    def admit(
        self, holders: Sequence[Holder], ask: Ask, claim: Claiming | None = None
    ) -> Admission | None:
        """Count a request and reserve its tokens. Return None if Redis is unavailable.

        Args:
            claim: claims the call in the cluster, and runs the admission with the claim.
        """
        ids = reservations(secrets.token_hex(16), len(holders))
        keys = [key for holder in holders for key in counters_of(holder)]
        keys += [reservation(id_) for id_ in ids]
        output = -1 if ask.output is None else min(ask.output, MAX_TOKENS)
        wants = (min(ask.input, MAX_TOKENS), output, ask.reserve, ask.requests)
        part = ScriptPart(ADMIT_CODE, keys, [*numbers(holders), *wants])
        if claim is not None and not self._redis.available:
            claim(None)
            claim = None  # Redis may be available now
        sent = self._redis.available
        reply = self._run(ADMIT, part) if claim is None else claim(part)
        if reply is None:
            if sent:  # Redis may have run the script, or may run it later
                self._revoke(holders, ids)
            return None
        return admission_in(reply, holders, ids)

    def _run(self, script: LuaScript, part: ScriptPart) -> bytes | None:
        try:
            reply: bytes = self._redis.script(script, part.keys, part.arguments)
        except RedisAway:
            return None
        return reply

    def _revoke(self, holders: Sequence[Holder], ids: Sequence[str]) -> None:
        """Undo a reservation that may have been made, or may still be made."""
        for holder, id_ in zip(holders, ids, strict=True):
            if holder[1].tokens_per_hour is not None:
                window = window_of(*holder[:2])
                never = Hold(window, 0, Counts(None, None), id=id_)
                self._pending.append((never, 0, REVOKED_S))

    def settle(self, hold: Hold, tokens: int, release: Releasing | None = None) -> None:
        """Replace the reserved tokens by the used tokens, as soon as Redis is available.

        Args:
            release: releases the call's claim in the cluster, and runs the settlement with it.
        """
        holds = counted_by_tokens(hold)
        part = None if not holds else ScriptPart(SETTLE_CODE, *settlement(holds, tokens))
        release = release or self._settled
        if not release(part):
            self._pending.extend((hold, tokens, 0) for hold in holds)

    def _settled(self, part: ScriptPart | None) -> bool:
        """Run a settlement by itself. Return False if Redis is unavailable."""
        if part is not None:
            try:
                self._redis.script(SETTLE, part.keys, part.arguments)
            except RedisAway:
                return False
        return True

    def counts(self, holders: Sequence[Holder]) -> tuple[Counts, ...] | None:
        """Return the current counts of each holder, or None if Redis is unavailable."""
        keys = [key for holder in holders for key in counters_of(holder)]
        try:
            reply: bytes = self._redis.script(LOOK, keys, numbers(holders))
        except RedisAway:
            return None
        return counts_of(numbers_in(reply), holders)

    def beat(self) -> None:
        """Write the settlements that are waiting for Redis."""
        while self._pending and self._redis.available:
            batch = [self._pending.popleft() for _ in range(min(BATCH, len(self._pending)))]

            def write(client: redis.Redis, batch: list[tuple[Hold, int, int]] = batch) -> None:
                with client.pipeline(transaction=False) as pipeline:
                    for hold, tokens, revoked_s in batch:
                        SETTLE(pipeline, *settlement([hold], tokens, revoked_s))
                    pipeline.execute()

            try:
                self._redis.run(write)
            except RedisAway:
                self._pending.extendleft(reversed(batch))
                return


def windows_of(window: str) -> list[str]:
    """Return the keys of a window's counters: the previous one, then the current one."""
    current = f"LIMITS:{{{window}}}"  # braces keep both in one slot of a Redis cluster
    return [f"{current}/-1", current]


def counters_of(holder: Holder) -> list[str]:
    """Return the keys that count a holder's calls: two windows and the list of requests."""
    id_, limits, _ = holder
    requests = f"LIMITS:LIMITER/{id_}/{limits.requests_per_minute or 0}/1/minute"
    return [*windows_of(window_of(id_, limits)), requests]


def reservation(id_: str) -> str:
    """Return the key of a reservation."""
    return f"LIMITS:hold/{id_}"


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


def counted_by_tokens(hold: Hold | None) -> list[Hold]:
    """Return a call's reservations that count tokens, the last holder's first."""
    found = []
    while hold is not None:
        if hold.counts.tokens is not None:
            found.append(hold)
        hold = hold.before
    return found


def settlement(
    holds: Sequence[Hold], tokens: int, revoked_s: int = 0
) -> tuple[list[str], list[int]]:
    """Return the keys and the arguments of a settlement of a call's reservations."""
    keys = [key for hold in holds for key in (*windows_of(hold.window), reservation(hold.id))]
    return keys, [len(holds), min(tokens, MAX_TOKENS), revoked_s]


def numbers_in(reply: bytes) -> list[int]:
    return list(map(int, reply.split()))


def admission_in(reply: bytes, holders: Sequence[Holder], ids: Sequence[str]) -> Admission:
    """Return the decision in a script's reply.

    Args:
        ids: the ids of the reservations, one for each holder.
    """
    outcome, wanted, by, *_ = found = numbers_in(reply)
    refused, counts = REFUSALS[outcome], counts_of(found, holders)
    if refused is not None or not any(count.tokens for count in counts):
        return Admission(None, refused, wanted, counts, by)
    hold = None
    for holder, id_, count in zip(holders, ids, counts, strict=True):
        hold = Hold(window_of(*holder[:2]), wanted, count, id=id_, before=hold)
    return Admission(hold, None, wanted, counts)


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
