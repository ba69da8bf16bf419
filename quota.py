"""May they: requests per minute, tokens per hour, and what a call takes of a budget.

Requests count in a moving window, tokens in a sliding-window counter (the last hour is the current
clock hour and a share of the one before: an approximation). A call reserves the tokens that it may
use and settles them at its end, in the window that it reserved them in. Rules that hold here: no
I/O; the `limits` package counts; a refused request takes nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from completion import CompletionRequest
from errors import NO_RETRY, RateLimited, limit_details
from keys import Key
from ledger.entries import Budget, Claim
from pricing import Price, ceiling
from relay import prompt_tokens, size

MINUTE, HOUR = 60, 3600
TIDY_S = 30.0
RATE_PARTS = ("limit", "remaining", "reset")
BYTES_PER_TOKEN = 4  # about; what a model wrote, as another one's tokenizer has it at the worst
TEMPLATE_TOKENS = 64
"""What a host's chat template adds to a prompt, at the very most."""


class Demand(msgspec.Struct, frozen=True):
    """The tokens that a call may use. input: about; most_input: more than any tokenizer makes of
    it. output: None where the caller set no limit. loose: parameters that Sluice has no name for
    may ask for more."""

    input: int
    most_input: int
    output: int | None
    loose: bool = False


class Hold(msgspec.Struct, frozen=True):
    """Tokens that are reserved, and the window that they are counted in."""

    window: str
    tokens: int
    until: float


class Storage(MemoryStorage):
    """MemoryStorage, which while it is in use looks through all its keys a hundred times a second:
    too often for thousands of them."""

    @property
    def timer(self) -> threading.Timer:
        return self._timer

    @timer.setter
    def timer(self, timer: threading.Timer) -> None:
        timer.interval, timer.daemon = TIDY_S, True
        self._timer = timer


class Quota:
    """The counters of one process."""

    def __init__(self, reserve_tokens: int) -> None:
        """reserve_tokens: what a call without max_tokens reserves for its output."""
        self._reserve = reserve_tokens
        self._storage = Storage()
        self._requests = MovingWindowRateLimiter(self._storage)
        self._tokens = SlidingWindowCounterRateLimiter(self._storage)
        # Two threads at once can lose each other's first count of a window in that storage.
        self._lock = threading.RLock()

    def admit(self, key: Key, demand: Demand) -> Hold | None:
        """Count a request and reserve its tokens. Raises RateLimited."""
        limits = key.limits
        hold = None
        with self._lock:
            if limits.tokens_per_hour is not None:  # first, because it can be given back
                hold = self._reserve_tokens(key, limits.tokens_per_hour, demand)
            if limits.requests_per_minute is not None:
                item = RateLimitItemPerMinute(limits.requests_per_minute)
                if not self._requests.hit(item, key.id):
                    self.settle(hold, 0)
                    raise self._too_many(key, limits.requests_per_minute)
        return hold

    def settle(self, hold: Hold | None, tokens: int) -> None:
        """Count what a call did use in the place of what it had reserved."""
        if hold is not None and time.time() < hold.until:
            # Not a hit: that counts in the window of now, and nothing at all above the limit.
            with self._lock:
                self._storage.incr(hold.window, 2 * HOUR, tokens - hold.tokens)

    def headers(self, key: Key) -> dict[str, str]:
        """The x-ratelimit headers as of now, for the limits that the key has."""
        found: dict[str, str] = {}
        limits = key.limits
        if limits.requests_per_minute is not None:
            minute = RateLimitItemPerMinute(limits.requests_per_minute)
            with self._lock:
                stats = self._requests.get_window_stats(minute, key.id)
            found |= rate_headers("requests", minute.amount, *stats[::-1])
        if limits.tokens_per_hour is not None:
            hour = RateLimitItemPerHour(limits.tokens_per_hour)
            with self._lock:
                _, left = self._tokens.get_window_stats(hour, key.id)
            found |= rate_headers("tokens", hour.amount, left, next_hour())
        return found

    def claim(
        self,
        key: Key,
        demand: Demand,
        prices: Iterable[Price],
        *,
        times: int = 1,
        continued: bool = False,
    ) -> Claim | None:
        """What the call may take of the key's budget, at the highest of the prices; None when the
        key has no budget. times: how many providers may charge for the prompt; continued: for one
        more call, whose prompt is what came so far, too."""
        budget = budget_of(key)
        if budget is None:
            return None
        least, most = demand.output or 0, demand.output or self._reserve
        if demand.loose:
            most = max(most, self._reserve)
        costs = [
            [
                ceiling(
                    price,
                    demand.most_input * (times + continued) + BYTES_PER_TOKEN * size * continued,
                    size,
                )
                for size in (least, most)
            ]
            for price in prices
        ]
        return Claim(budget, *map(max, zip(*costs, strict=True)))

    def _reserve_tokens(self, key: Key, limit: int, demand: Demand) -> Hold:
        item = RateLimitItemPerHour(limit)
        if demand.output is None:
            left = self._tokens.get_window_stats(item, key.id).remaining
            wanted = demand.input + max(1, min(self._reserve, left - demand.input))
        else:
            wanted = demand.input + demand.output
        now = time.time()
        place = item.key_for(key.id)
        _, window = self._storage.sliding_window_keys(place, HOUR, now)
        if not self._tokens.hit(item, key.id, cost=wanted):
            raise self._spent(place, limit, wanted)
        return Hold(window, wanted, now + HOUR)

    def _too_many(self, key: Key, limit: int) -> RateLimited:
        if limit == 0:
            return never("requests", "This key may make no request.", limit)
        item = RateLimitItemPerMinute(limit)
        reset = self._requests.get_window_stats(item, key.id).reset_time
        return limited("requests", f"{limit} requests per minute", limit, reset - time.time())

    def _spent(self, place: str, limit: int, wanted: int) -> RateLimited:
        if wanted > limit:
            message = f"This call may use {wanted} tokens; this key's limit is {limit} per hour."
            return never("tokens", message, limit)
        before, _, current, current_ttl = self._storage.get_sliding_window(place, HOUR)
        wait = wait_for(limit - wanted, before, current, current_ttl - HOUR)
        return limited("tokens", f"{limit} tokens per hour", limit, wait)


def wait_for(room: int, before: int, current: int, rest: float) -> float:
    """Seconds until no more than `room` tokens count. before, current: the two windows' tokens;
    rest: seconds until the current one is over."""
    if current <= room:  # the window before fades, in proportion to the time
        return max(0.0, rest - HOUR * (room - current) / before) if before else 0.0
    return rest + HOUR * (1 - room / current)


def limited(kind: str, what: str, limit: int, wait: float) -> RateLimited:
    """The refusal of a limit that has room again in `wait` seconds."""
    wait = max(1.0, wait)
    return RateLimited(
        f"This key's limit of {what} is reached. Try again in {math.ceil(wait)} s.",
        retry_after=wait,
        details=limit_details(kind, limit, round(wait, 1), instant(math.ceil(time.time() + wait))),
    )


def never(kind: str, message: str, limit: int) -> RateLimited:
    """The refusal of what no waiting helps."""
    error = RateLimited(
        message,
        retry_after=HOUR,
        details=limit_details(kind, limit, None),
    )
    del error.headers["Retry-After"]
    error.headers |= NO_RETRY
    return error


def demand_of(request: CompletionRequest) -> Demand:
    """The tokens that a request may use."""
    count = len(request.prompts)
    suffix = size(request.suffix or "")
    unknown = [bag for bag in (request.extra, request.openai_extra) if bag]
    prompts = sum(size(p) if isinstance(p, str) else len(p) for p in request.prompts)
    beside = suffix + TEMPLATE_TOKENS + len(msgspec.json.encode(unknown))  # with each prompt
    tries = count * max(request.n or 1, request.best_of or 1)
    return Demand(
        input=sum(map(prompt_tokens, request.prompts)) + count * -(-suffix // 4),
        most_input=prompts + count * beside,
        output=None if request.max_tokens is None else request.max_tokens * tries,
        loose=bool(unknown),
    )


def budget_of(key: Key) -> Budget | None:
    """A key's budget as of now; its days and months are of UTC."""
    limit = key.budget_nano
    if limit is None:
        return None
    today = datetime.now(UTC).date()
    if key.budget_period == "total":
        return Budget(limit)
    since = today if key.budget_period == "day" else today.replace(day=1)
    return Budget(limit, since.isoformat())


def rate_headers(kind: str, limit: int, left: float, reset: float) -> dict[str, str]:
    """OpenAI's headers of one limit. reset: the moment at which it has room again, or more."""
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(max(0, int(left))),
        f"x-ratelimit-reset-{kind}": duration(reset - time.time()),
    }


def duration(seconds: float) -> str:
    """As OpenAI's reset headers have it: 6m0s, 59s."""
    minutes, rest = divmod(max(0, math.ceil(seconds)), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def next_hour() -> float:
    """When the current clock hour is over."""
    return (time.time() // HOUR + 1) * HOUR


def instant(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
