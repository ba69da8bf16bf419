"""Admission by limits: requests per minute, tokens per hour, and a call's claim on a budget.

- A call reserves the tokens that it may use, and settles them at its end in the window in which it
  reserved them.
- Processes that share a Redis count together. While Redis is unavailable, each process counts for
  itself, or refuses calls with limits if Redis is required.
- A refused request uses nothing.
- A key without limits costs no I/O.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from errors import (
    NO_RETRY,
    RateLimited,
    Unavailable,
    limit_details,
    of_group,
)
from keys.group import KeyGroup
from keys.key import Key
from keys.limits import Limits
from ledger.entries import Budget, Claim
from ledger.pricing import Price, ceiling
from quota.demand import Demand
from quota.memory import HOUR, Admission, Ask, Counts, Hold, Holder, LocalCounters, Tokens

if TYPE_CHECKING:
    from cluster.redis_client import RedisClient
    from quota.redis import Claiming, RedisCounters, Releasing

NO_LIMITS = Limits()
RATE_PARTS = ("limit", "remaining", "reset")
BYTES_PER_TOKEN = 4
"""The approximate number of bytes of a token, in the worst case of another model's tokenizer."""


class Quota:
    """The limits of all keys, counted by one process, or by all processes that share a Redis."""

    def __init__(
        self, reserve_tokens: int, client: RedisClient | None = None, *, required: bool = False
    ) -> None:
        """Count in memory, or in Redis.

        Args:
            reserve_tokens: the output tokens that a call without max_tokens reserves.
            client: the Redis in which all processes count; None to count in memory.
            required: True if calls with limits are refused while Redis is unavailable.
        """
        self._reserve = reserve_tokens
        self._required = required
        self._local = LocalCounters()
        self._cluster = counters_in(client)

    def admit(
        self, key: Key, demand: Demand, requests: int = 1, claim: Claiming | None = None
    ) -> Hold | None:
        """Count a call and reserve its tokens.

        Args:
            requests: the number of requests that the call counts as.
            claim: claims the call in the cluster; called once, before the call is counted. Limits
                in Redis are counted with the claim, in one script.

        Raises:
            RateLimited: the key has no room for the call, which then counts as nothing.
            Unavailable: Redis is required and unavailable.
        """
        limits, group = key.limits, key.shared
        holders: tuple[Holder, ...] = ()
        if group is not None:
            holders = holders_of(key, group)
        elif limits != NO_LIMITS:
            holders = ((key.id, limits, None),)
        for _, (most, _), whose in holders:
            if most is not None and requests > most > 0:
                raise never_fits(f"counts as {requests} requests", most, "a minute", whose)
        if not holders:
            if claim is not None:
                claim(None)
            return None
        admission = self._admission(holders, ask_for(demand, self._reserve, requests), claim)
        if admission is None:
            raise Unavailable(
                "Rate limits can't be counted now, so no call is accepted. Try again.",
                lacks="limits",
            )
        if admission.refused is not None:
            raise refusal(admission, holders[admission.by])
        return admission.hold

    def _admission(
        self, holders: tuple[Holder, ...], ask: Ask, claim: Claiming | None
    ) -> Admission | None:
        """Return the decision on a call, or None if Redis is required and unavailable."""
        if self._cluster is not None:
            found = self._cluster.admit(holders, ask, claim)
            if found is not None or self._required:
                return found
        elif claim is not None:
            claim(None)
        return self._local.admit(holders, ask)

    def settle(self, hold: Hold | None, tokens: int, release: Releasing | None = None) -> None:
        """Replace the reserved tokens by the tokens that the call used.

        Args:
            release: releases the call's claim in the cluster; called once. Limits in Redis are
                settled with the release, in one script.
        """
        if hold is not None and hold.id and self._cluster is not None:
            self._cluster.settle(hold, tokens, release)
            return
        self._local.settle(hold, tokens)
        if release is not None:
            release(None)

    def headers(self, key: Key, hold: Hold | None = None, used: int = 0) -> dict[str, str]:
        """Return the x-ratelimit headers for the key's limits.

        Args:
            hold: the reservation of a call, whose counts are shown; None for the current counts.
            used: the tokens that the call has used, or still reserves.
        """
        limits, group = key.limits, key.shared
        if group is None and limits == NO_LIMITS:
            return {}
        holders = ((key.id, limits, None),) if group is None else holders_of(key, group)
        if not holders:
            return {}
        unused = 0
        if hold is None:
            counts = self._counts(holders)
        else:
            counts = (hold.counts,) if hold.before is None else counts_in(hold)
            unused = hold.tokens - used
        return {} if counts is None else tightest(holders, counts, unused)

    def _counts(self, holders: tuple[Holder, ...]) -> tuple[Counts, ...] | None:
        """Return the current counts, or None if Redis is required and unavailable."""
        if self._cluster is not None:
            found = self._cluster.counts(holders)
            if found is not None or self._required:
                return found
        return self._local.counts(holders)

    def beat(self) -> None:
        """Write the settlements that are waiting for Redis. The cluster calls this each second."""
        if self._cluster is not None:
            self._cluster.beat()

    def claim(
        self,
        key: Key,
        demand: Demand,
        prices: Iterable[Price],
        *,
        times: int = 1,
        continued: bool = False,
    ) -> Claim | None:
        """Return the call's claim on the budgets of the key and its group, at the highest price.

        Return None if neither has a budget.

        Args:
            prices: the prices of the targets that may serve the call.
            times: the number of providers that may charge for the prompt.
            continued: True to allow for a continuation, whose prompt includes the text so far.
        """
        budget = budget_of(key)
        group = None if key.shared is None else budget_of(key.shared)
        if budget is None and group is None:
            return None
        most = self._reserve if demand.output is None else demand.output
        least = demand.output or 0
        if demand.loose:
            most = max(most, self._reserve)
        priced = list(prices)

        def dearest(size: int) -> int:
            again = (demand.most_input + BYTES_PER_TOKEN * size) if continued else 0
            inputs = demand.most_input * times + again
            return max([ceiling(price, inputs, size) for price in priced])

        cost = dearest(most)
        return Claim(budget, cost if least == most else dearest(least), cost, group)


def ask_for(demand: Demand, reserve: int, requests: int = 1) -> Ask:
    """Return the amounts to reserve for a call.

    A loose call reserves its output or, if that is more, the tokens that are left, up to `reserve`.
    Ask expresses this by counting all but one token of the output as input.
    """
    output = demand.output
    if not demand.loose or output is None or output >= reserve:
        return Ask(demand.input, output, reserve, requests)
    return Ask(demand.input + output - 1, None, reserve - output + 1, requests)


def counters_in(client: RedisClient | None) -> RedisCounters | None:
    if client is None:
        return None
    from quota.redis import RedisCounters  # here, because a single process doesn't need redis-py

    return RedisCounters(client)


def holders_of(key: Key, group: KeyGroup) -> tuple[Holder, ...]:
    """Return the holders whose limits a call must fit: the key, then its group."""
    found = ((key.id, key.limits, None), (f"group:{group.name}", group.limits, group.name))
    return tuple(holder for holder in found if holder[1] != NO_LIMITS)


def tightest(holders: Iterable[Holder], counts: Iterable[Counts], unused: int) -> dict[str, str]:
    """Return the x-ratelimit headers, which show the limit of each kind that has the least left.

    Args:
        counts: the counts of each holder.
        unused: the reserved tokens that count as left.
    """
    found: dict[str, str] = {}
    least: dict[str, int] = {}
    for (_, (per_minute, per_hour), _), (requests, tokens) in zip(holders, counts, strict=True):
        if requests is not None and per_minute is not None:
            left = requests.left
            if "requests" not in least or left < least["requests"]:
                least["requests"] = left
                found |= rate_headers("requests", per_minute, left, requests.reset)
        if tokens is not None and per_hour is not None:
            left = tokens.left(per_hour) + unused
            if "tokens" not in least or left < least["tokens"]:
                least["tokens"] = left
                found |= rate_headers("tokens", per_hour, left, tokens.rest)
    return found


def counts_in(hold: Hold) -> tuple[Counts, ...]:
    """Return the counts of each holder of a reservation."""
    return (*(() if hold.before is None else counts_in(hold.before)), hold.counts)


def refusal(admission: Admission, holder: Holder) -> RateLimited:
    """Return the error for a call that a holder has no room for."""
    made, tokens = admission.counts[admission.by]
    _, (per_minute, per_hour), group = holder
    if admission.refused == "requests" and made is not None and per_minute is not None:
        return too_many(per_minute, made.reset, group)
    if tokens is None or per_hour is None:
        raise AssertionError  # pragma: no cover - a limit that doesn't exist refuses nothing
    return spent(tokens, per_hour, admission.wanted, group)


def owner(group: str | None) -> str:
    """Return the holder of a limit in words. `group` is None for the key itself."""
    return "this key" if group is None else f"this key's group {group!r}"


def too_many(limit: int, reset: float, group: str | None = None) -> RateLimited:
    """Return the error for one request too many. `reset` is in seconds."""
    if limit == 0:
        whose = owner(group).replace("this", "This", 1)
        return never("requests", f"{whose} may make no request.", limit, group)
    return limited("requests", f"{limit} requests per minute", limit, reset, group)


def never_fits(what: str, limit: int, per: str, group: str | None) -> RateLimited:
    """Return the error for a call that counts as more requests than a limit has."""
    whose = "this key's limit" if group is None else f"the limit of {owner(group)}"
    return never("requests", f"This call {what}; {whose} is {limit} {per}.", limit, group)


def spent(counted: Tokens, limit: int, wanted: int, group: str | None = None) -> RateLimited:
    """Return the error for too many tokens."""
    if wanted > limit:
        whose = "this key's limit" if group is None else f"the limit of {owner(group)}"
        message = f"This call may use {wanted} tokens; {whose} is {limit} per hour."
        return never("tokens", message, limit, group)
    wait = wait_for(limit - wanted, counted.before, counted.current, counted.rest)
    return limited("tokens", f"{limit} tokens per hour", limit, wait, group)


def wait_for(room: int, before: int, current: int, rest: float) -> float:
    """Return the seconds until at most `room` tokens count.

    Args:
        before: the tokens of the previous window.
        current: the tokens of the current window.
        rest: the seconds until the current window ends.
    """
    if current <= room:  # the previous window fades in proportion to the time
        return max(0.0, rest - HOUR * (room - current) / before) if before else 0.0
    return rest + HOUR * (1 - room / current)


def limited(kind: str, what: str, limit: int, wait: float, group: str | None = None) -> RateLimited:
    """Return the error for a limit that allows the call in `wait` seconds."""
    wait = max(1.0, wait)
    whose = f"This key's limit of {what}"
    if group is not None:
        whose = f"The limit of {what} of {owner(group)}"
    details = limit_details(kind, limit, round(wait, 1), instant(math.ceil(time.time() + wait)))
    return RateLimited(
        f"{whose} is reached. Try again in {math.ceil(wait)} s.",
        retry_after=wait,
        details=details | of_group(group),
    )


def never(kind: str, message: str, limit: int, group: str | None = None) -> RateLimited:
    """Return the error for a call that the limit never allows."""
    error = RateLimited(
        message,
        retry_after=HOUR,
        details=limit_details(kind, limit, None) | of_group(group),
    )
    del error.headers["Retry-After"]
    error.headers |= NO_RETRY
    return error


def budget_of(key: Key | KeyGroup) -> Budget | None:
    """Return the current budget of a key or a group. Its periods are days or months in UTC."""
    limit = key.budget_nano
    if limit is None:
        return None
    if key.budget_period == "total":
        return Budget(limit)
    today = datetime.now(UTC).date()
    since = today if key.budget_period == "day" else today.replace(day=1)
    return Budget(limit, since.isoformat())


def rate_headers(kind: str, limit: int, left: int, reset: float) -> dict[str, str]:
    """Return OpenAI's headers for one limit.

    Args:
        reset: an upper bound of the seconds until the limit allows more.
    """
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(max(0, left)),
        f"x-ratelimit-reset-{kind}": duration(reset),
    }


def duration(seconds: float) -> str:
    """Return a duration as OpenAI's reset headers write it: 6m0s, 59s."""
    minutes, rest = divmod(max(0, math.ceil(seconds)), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def instant(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
