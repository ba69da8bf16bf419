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
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import msgspec

from completion import Chat, CompletionRequest, prompt_tokens, utf8_size
from errors import NO_RETRY, InvalidRequest, RateLimited, Unavailable, limit_details
from keys.key import Key, Limits
from ledger.entries import Budget, Claim
from ledger.pricing import Price, ceiling
from quota.memory import HOUR, Ask, Hold, LocalCounters, Tokens

if TYPE_CHECKING:
    from cluster.redis_client import RedisClient
    from quota.redis import RedisCounters

T = TypeVar("T")

NO_LIMITS = Limits()
RATE_PARTS = ("limit", "remaining", "reset")
BYTES_PER_TOKEN = 4
"""The approximate number of bytes of a token, in the worst case of another model's tokenizer."""
TEMPLATE_TOKENS = 64
"""The maximum number of tokens that a host's chat template adds to a prompt."""
FILE_BYTES = 24
"""The bytes that a fill-in-the-middle template puts around each other file."""


class Demand(msgspec.Struct, frozen=True):
    """The tokens that a call may use."""

    input: int
    """An estimate of the prompt's tokens."""
    most_input: int
    """An upper bound of the prompt's tokens, for any tokenizer."""
    output: int | None
    """The maximum tokens of output; None if the caller set no limit."""
    loose: bool = False
    """True if parameters that Sluice doesn't know may request more output. Then the call reserves
    at least what a call without max_tokens does."""


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

    def admit(self, key: Key, demand: Demand, requests: int = 1) -> Hold | None:
        """Count a call and reserve its tokens.

        Args:
            requests: the number of requests that the call counts as.

        Raises:
            RateLimited: the key has no room for the call, which then counts as nothing.
            Unavailable: Redis is required and unavailable.
        """
        limits = key.limits
        if limits == NO_LIMITS:
            return None
        most = limits.requests_per_minute
        if most is not None and requests > most > 0:
            message = (
                f"This call counts as {requests} requests; this key's limit is {most} a minute."
            )
            raise never("requests", message, most)
        ask = ask_for(demand, self._reserve, requests)
        admission = self._counted(lambda counters: counters.admit(key.id, limits, ask))
        if admission is None:
            raise Unavailable(
                "Rate limits can't be counted now, so no call is accepted. Try again."
            )
        made, tokens = admission.counts
        if admission.refused == "requests" and made and most is not None:
            raise too_many(most, made.reset)
        if admission.refused == "tokens" and tokens and limits.tokens_per_hour is not None:
            raise spent(tokens, limits.tokens_per_hour, admission.wanted)
        return admission.hold

    def settle(self, hold: Hold | None, tokens: int) -> None:
        """Replace the reserved tokens by the tokens that the call used."""
        if hold is not None and hold.id and self._cluster is not None:
            self._cluster.settle(hold, tokens)
        else:
            self._local.settle(hold, tokens)

    def headers(self, key: Key, hold: Hold | None = None, used: int = 0) -> dict[str, str]:
        """Return the x-ratelimit headers for the key's limits.

        Args:
            hold: the reservation of a call, whose counts are shown; None for the current counts.
            used: the tokens that the call has used, or still reserves.
        """
        limits = key.limits
        if limits == NO_LIMITS:
            return {}
        unused = 0
        if hold is None:
            counts = self._counted(lambda counters: counters.counts(key.id, limits))
        else:
            counts, unused = hold.counts, hold.tokens - used
        found: dict[str, str] = {}
        if counts is None:
            return found
        requests, tokens = counts
        if requests is not None and (limit := limits.requests_per_minute) is not None:
            found |= rate_headers("requests", limit, requests.left, requests.reset)
        if tokens is not None and (limit := limits.tokens_per_hour) is not None:
            found |= rate_headers("tokens", limit, tokens.left(limit) + unused, tokens.rest)
        return found

    def beat(self) -> None:
        """Write the settlements that are waiting for Redis. The cluster calls this each second."""
        if self._cluster is not None:
            self._cluster.beat()

    def _counted(self, work: Callable[[LocalCounters | RedisCounters], T | None]) -> T | None:
        """Return the result of the work, or None if Redis is required and unavailable."""
        if self._cluster is not None:
            found = work(self._cluster)
            if found is not None or self._required:
                return found
        return work(self._local)

    def claim(
        self,
        key: Key,
        demand: Demand,
        prices: Iterable[Price],
        *,
        times: int = 1,
        continued: bool = False,
    ) -> Claim | None:
        """Return the call's claim on the key's budget at the highest price, or None without one.

        Args:
            prices: the prices of the targets that may serve the call.
            times: the number of providers that may charge for the prompt.
            continued: True to allow for a continuation, whose prompt includes the text so far.
        """
        budget = budget_of(key)
        if budget is None:
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
        return Claim(budget, cost if least == most else dearest(least), cost)


def ask_for(demand: Demand, reserve: int, requests: int = 1) -> Ask:
    """Return the amounts to reserve for a call.

    A loose call reserves its output, or the tokens that are left up to `reserve` if that is more.
    In the words of Ask, its output is all but one token a part of the input.
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


def too_many(limit: int, reset: float) -> RateLimited:
    """Return the error for one request too many. `reset` is in seconds."""
    if limit == 0:
        return never("requests", "This key may make no request.", limit)
    return limited("requests", f"{limit} requests per minute", limit, reset)


def spent(counted: Tokens, limit: int, wanted: int) -> RateLimited:
    """Return the error for too many tokens."""
    if wanted > limit:
        message = f"This call may use {wanted} tokens; this key's limit is {limit} per hour."
        return never("tokens", message, limit)
    wait = wait_for(limit - wanted, counted.before, counted.current, counted.rest)
    return limited("tokens", f"{limit} tokens per hour", limit, wait)


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


def limited(kind: str, what: str, limit: int, wait: float) -> RateLimited:
    """Return the error for a limit that allows the call in `wait` seconds."""
    wait = max(1.0, wait)
    return RateLimited(
        f"This key's limit of {what} is reached. Try again in {math.ceil(wait)} s.",
        retry_after=wait,
        details=limit_details(kind, limit, round(wait, 1), instant(math.ceil(time.time() + wait))),
    )


def never(kind: str, message: str, limit: int) -> RateLimited:
    """Return the error for a call that the limit never allows."""
    error = RateLimited(
        message,
        retry_after=HOUR,
        details=limit_details(kind, limit, None),
    )
    del error.headers["Retry-After"]
    error.headers |= NO_RETRY
    return error


def demand_of(request: CompletionRequest) -> Demand:
    """Return the tokens that a request may use.

    Raises InvalidRequest if its parameters are nested too deeply to be sent.
    """
    if request.chat is not None:
        return chat_demand(request, request.chat)
    count = len(request.prompts)
    suffix = utf8_size(request.suffix or "")
    for file in request.files:
        suffix += utf8_size(file.path) + utf8_size(file.text) + FILE_BYTES
    unknown = [bag for bag in (request.extra, request.openai_extra) if bag]
    prompts = sum(utf8_size(p) if isinstance(p, str) else len(p) for p in request.prompts)
    try:
        beside = suffix + TEMPLATE_TOKENS + len(msgspec.json.encode(unknown))  # with each prompt
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    tries = count * max(request.n or 1, request.best_of or 1)
    return Demand(
        input=sum(map(prompt_tokens, request.prompts)) + count * -(-suffix // 4),
        most_input=prompts + count * beside,
        output=None if request.max_tokens is None else request.max_tokens * tries,
        loose=bool(unknown),
    )


def chat_demand(request: CompletionRequest, chat: Chat) -> Demand:
    tries = max(request.n or 1, request.best_of or 1)
    output = None if request.max_tokens is None else request.max_tokens * tries
    most_input = chat.most_input + TEMPLATE_TOKENS
    return Demand(chat.input_tokens, most_input, output, loose=chat.loose)


def budget_of(key: Key) -> Budget | None:
    """Return a key's current budget. Its periods are days or months in UTC."""
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
