"""The counters that several processes share through Redis.

Rules that hold here: the `limits` package's own scripts count, within one of ours for each step: a
step is one round trip, it is done whole or not at all, and it may be sent twice. No counter is
without an expiry, or below nothing. Time is Redis' own. Nobody waits for a Redis that is away: a
settlement waits in memory until it is back.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import redis
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import RedisStorage

from cluster.redis_client import RedisAway, RedisClient
from keys.key import Limits
from quota.memory import HOUR, MINUTE, Admission, Ask, Counts, Hold, RequestCounts, Tokens

MOST_PENDING: Final = 10_000
"""Settlements that wait for Redis, the latest."""
BATCH: Final = 200
MOST_TOKENS: Final = 10**13
"""Of one call: more than any limit, and exact in a script."""
REVOKED_S: Final = 300
"""How long a Redis that was stopped may take to read what was sent to it before."""

HEAD = f"""
local function take_tokens(KEYS, ARGV)
{RedisStorage.SCRIPT_ACQUIRE_SLIDING_WINDOW.decode()}
end
local function hour(KEYS, ARGV)
{RedisStorage.SCRIPT_SLIDING_WINDOW.decode()}
end
local function take_request(KEYS, ARGV)
{RedisStorage.SCRIPT_ACQUIRE_MOVING_WINDOW.decode()}
end
local function minute(KEYS, ARGV)
{RedisStorage.SCRIPT_MOVING_WINDOW.decode()}
end

local time = redis.call('time')
local now = time[1] + time[2] / 1000000

local function count(value)
    return math.max(0, tonumber(value) or 0)
end
"""

# KEYS: the hour before, the current one, the minute. ARGV: the limits of requests and of tokens
# (-1: none), the seconds of a minute and of an hour.
COUNTS = """
local requests_limit, tokens_limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local minute_s, hour_s = tonumber(ARGV[3]), tonumber(ARGV[4])

local function tokens_now()
    local found = hour({KEYS[1], KEYS[2]}, {hour_s})
    return count(found[1]), count(found[2]), count(found[3]), count(found[4])
end

-- In milliseconds, where it is time.
local function counts(outcome, wanted)
    local made, reset = 0, minute_s * 1000
    local before, fade, current, rest = 0, 0, 0, 0
    if requests_limit > 0 then
        local found = minute({KEYS[3]}, {now - minute_s, requests_limit})
        if found then
            made, reset = found[2], math.ceil((found[1] + minute_s - now) * 1000)
        end
    end
    if tokens_limit >= 0 then
        before, fade, current, rest = tokens_now()
        rest = rest > 0 and math.max(0, rest - hour_s * 1000) or hour_s * 1000
    end
    return {outcome, wanted, made, reset, before, fade, current, rest}
end
"""

LOOK = HEAD + COUNTS + "return counts(1, 0)"

# KEYS[4]: the reservation. ARGV: then its input, its output (-1: what is left), the reserve, and
# the number of requests that the call counts as.
ADMIT = (
    HEAD
    + COUNTS
    + """
local made = redis.call('get', KEYS[4])
if made then  -- sent twice
    return counts(1, tonumber(string.match(made, '^%d+')) or 0)
end
local input, output, reserve = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local wanted = 0
if tokens_limit >= 0 then
    if output < 0 then
        local before, fade, current = tokens_now()
        local left = tokens_limit - math.floor(before * fade / hour_s / 1000) - current
        output = math.max(1, math.min(reserve, math.max(0, left) - input))
    end
    wanted = input + output
    if not take_tokens({KEYS[1], KEYS[2]}, {tokens_limit, hour_s, wanted}) then
        return counts(0, wanted)
    end
end
local requests = tonumber(ARGV[8])
if requests_limit >= 0
    and not take_request({KEYS[3]}, {now, requests_limit, minute_s, requests}) then
    if tokens_limit >= 0 then
        redis.call('decrby', KEYS[2], wanted)
    end
    local found = counts(2, wanted)
    local last = redis.call('lindex', KEYS[3], requests_limit - requests)
    if requests_limit >= requests and last then  -- when this one no longer counts, there is room
        found[4] = math.ceil((last + minute_s - now) * 1000)
    end
    return found
end
if tokens_limit >= 0 then
    local left = redis.call('pttl', KEYS[2])
    local ends = string.format('%.0f %.0f', wanted, now * 1000 + left)
    redis.call('set', KEYS[4], ends, 'PX', left)
end
return counts(1, wanted)
"""
)

# KEYS: the hour before, the current one, the reservation. ARGV: the tokens used, the seconds of an
# hour, for how long it must not be made any more. A window is known by when it ends: it moves from
# one key to the other, and keeps its end.
SETTLE = """
local made = redis.call('get', KEYS[3])
if tonumber(ARGV[3]) > 0 then
    redis.call('set', KEYS[3], 'revoked', 'EX', ARGV[3])
else
    redis.call('del', KEYS[3])
end
local reserved, ends = string.match(made or '', '^(%d+) (%d+)$')
if not reserved then
    return 0
end
local time = redis.call('time')
local now = time[1] * 1000 + time[2] / 1000
for _, name in ipairs({KEYS[2], KEYS[1]}) do
    local left = redis.call('pttl', name)
    if left > 0 and math.abs(now + left - ends) < ARGV[2] * 500 then
        local sum = redis.call('incrby', name, ARGV[1] - reserved)
        if sum < 0 then
            redis.call('incrby', name, -sum)
        end
        return 1
    end
end
return 0
"""


class Store(RedisStorage):
    """The package's storage on a pool of ours. It connects at the first use."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        super().__init__("redis://", connection_pool=pool)
        register: Callable[[str], Any] = self.storage.register_script
        self.look, self.take, self.give = register(LOOK), register(ADMIT), register(SETTLE)

    def hours(self, place: str) -> list[str]:
        """The keys of a place's windows: the one before, and the current one."""
        names = (self._previous_window_key(place), self._current_window_key(place))
        return [self.prefixed_key(name) for name in names]

    def keys(self, key_id: str, limits: Limits) -> list[str]:
        minute = RateLimitItemPerMinute(limits.requests_per_minute or 0).key_for(key_id)
        hours = self.hours(place_of(key_id, limits.tokens_per_hour or 0))
        return [*hours, self.prefixed_key(minute)]

    def hold(self, number: str) -> str:
        return self.prefixed_key(f"hold/{number}")


class RedisCounters:
    """The counters of all processes of one Redis. A token window begins with its first token."""

    def __init__(self, redis_client: RedisClient) -> None:
        self._redis = redis_client
        self._store = Store(redis_client.pool)
        self._pending: deque[tuple[Hold, int, int]] = deque(maxlen=MOST_PENDING)

    def admit(self, key_id: str, limits: Limits, ask: Ask) -> Admission | None:
        """Count a request and reserve its tokens. None: Redis is away."""
        place, number = place_of(key_id, limits.tokens_per_hour or 0), uuid.uuid4().hex
        keys = [*self._store.keys(key_id, limits), self._store.hold(number)]
        output = -1 if ask.output is None else min(ask.output, MOST_TOKENS)
        asked = (min(ask.input, MOST_TOKENS), output, ask.reserve, ask.requests)
        sent = self._redis.available
        try:
            found = self._redis.script(partial(self._store.take, keys, [*numbers(limits), *asked]))
        except RedisAway:
            if sent and limits.tokens_per_hour is not None:  # it may be done, now or later
                never = Hold(place, 0, Counts(None, None), id=number)
                self._pending.append((never, 0, REVOKED_S))
            return None
        outcome, wanted = found[:2]
        counts = counts_of(found, limits)
        if outcome != 1:
            return Admission(None, "requests" if outcome else "tokens", wanted, counts)
        if counts.tokens is None:
            return Admission(None, None, 0, counts)
        return Admission(Hold(place, wanted, counts, id=number), None, wanted, counts)

    def settle(self, hold: Hold, tokens: int) -> None:
        """Count what a call did use in the place of what it had reserved; later, if Redis is
        away."""
        try:
            self._redis.script(partial(self._settle, hold, tokens, 0))
        except RedisAway:
            self._pending.append((hold, tokens, 0))

    def counts(self, key_id: str, limits: Limits) -> Counts | None:
        """What counts now. None: Redis is away."""
        keys = self._store.keys(key_id, limits)
        try:
            found = self._redis.script(partial(self._store.look, keys, numbers(limits)))
        except RedisAway:
            return None
        return counts_of(found, limits)

    def beat(self) -> None:
        """Write the settlements that waited for Redis."""
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
        keys = [*self._store.hours(hold.window), self._store.hold(hold.id)]
        self._store.give(keys, [min(tokens, MOST_TOKENS), HOUR, revoked_s], client)


def place_of(key_id: str, limit: int) -> str:
    """Where the package counts a key's tokens."""
    return RateLimitItemPerHour(limit).key_for(key_id)


def numbers(limits: Limits) -> list[int]:
    """The limits and their times, as the scripts have them."""
    return [*(-1 if limit is None else limit for limit in limits), MINUTE, HOUR]


def counts_of(found: list[int], limits: Limits) -> Counts:
    """What a script found."""
    made, reset, before, fade, current, rest = found[2:]
    requests, tokens = None, None
    if limits.requests_per_minute is not None:
        requests = RequestCounts(limits.requests_per_minute - made, reset / 1000)
    if limits.tokens_per_hour is not None:
        tokens = Tokens(before, fade / 1000, current, rest / 1000)
    return Counts(requests, tokens)
