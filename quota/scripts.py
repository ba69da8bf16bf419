"""The Lua scripts that count limits in Redis: each is one step.

- Requests: a list of the times in seconds at which they were admitted, the newest first. Times
  older than a minute are removed when a request is admitted.
- Tokens: the counter of the current window and that of the previous one. A window ends when its
  counter has a TTL of one hour left. Then the counter becomes that of the previous window, whose
  tokens count in proportion to the TTL that is left.
- Reservations: a call's reserved tokens, and the time at which its window's counter expires, in
  milliseconds. That time identifies the window, because it stays when the counter is renamed.
  A call without a limit of tokens has none. If its admission runs twice, its requests count twice.
- Every key has an expiry, and no counter is below zero. The clock is Redis' own.
- A call may have several holders of limits: a key, and its group. It counts for all or for none.
- A refused call changes nothing, except that it moves a window that has ended.
- Keys and values are part of the upgrade path: workers of the previous release count in them during
  a rolling upgrade. A test compares them with tests/fixtures/upgrade/.
"""

from __future__ import annotations

from typing import Final

from cluster.lua import LuaScript
from quota.memory import HOUR, MINUTE, LimitKind

MAX_TOKENS: Final = 10**13
"""The maximum tokens of one call: above any limit, and exact as a number in Lua."""

REFUSALS: Final[tuple[LimitKind | None, ...]] = ("tokens", None, "requests")
"""The limit that refused a call, by a script's outcome; None if the call is admitted."""

HEAD: Final = f"""
local MINUTE_S, HOUR_MS = {MINUTE}, {HOUR * 1000}

-- Return an integer of Redis, or 0: the key is missing.
local function number(value)
    return math.max(0, tonumber(value) or 0)
end
"""

COUNTS: Final = """
-- KEYS: for each holder of limits (a key, then its group), the counter of the previous window, that
-- of the current one, the list of requests.
-- ARGV: the number of holders; for each, the limit of requests and that of tokens; -1: none.
local holder_count = tonumber(ARGV[1])

-- Return the tokens of both windows, and the milliseconds that both counters have left to live. If
-- the current window has ended, make it the previous one, and begin the next.
local function read_windows(holder)
    local left = redis.call('PTTL', holder.current_key)
    if left > 0 and left < HOUR_MS then
        redis.call('RENAME', holder.current_key, holder.previous_key)
        left = left + HOUR_MS
        redis.call('SET', holder.current_key, 0, 'PX', left)
    end
    local tokens = redis.call('MGET', holder.previous_key, holder.current_key)
    return {
        previous = number(tokens[1]),
        previous_left = tokens[1] and number(redis.call('PTTL', holder.previous_key)) or 0,
        current = number(tokens[2]),
        current_left = number(left),
    }
end

-- Return how many requests the last minute had, the moment of the oldest, and whether the list has
-- others. The last admission removed those that were too old, so few are: the search starts at the
-- end of the list, which Redis reads faster than its middle.
local function read_requests(holder)
    local low, high = 0, math.min(holder.requests_limit, redis.call('LLEN', holder.requests_key))
    local length, oldest, step = high, now, 1
    while low < high do
        local place = math.max(low, high - step)
        local moment = tonumber(redis.call('LINDEX', holder.requests_key, place))
        if moment >= now - MINUTE_S then
            low, oldest = place + 1, moment
        else
            high = place
        end
        step = low > 0 and math.ceil((high - low) / 2) or 2 * step
    end
    return {count = low, oldest = oldest, others = low < length}
end

local TOKENS_REFUSED, ADMITTED, REQUESTS_REFUSED = 0, 1, 2

local holders = {}
for place = 1, holder_count do
    local holder = {
        previous_key = KEYS[3 * place - 2],
        current_key = KEYS[3 * place - 1],
        requests_key = KEYS[3 * place],
        requests_limit = tonumber(ARGV[2 * place]),
        tokens_limit = tonumber(ARGV[2 * place + 1]),
        windows = {previous = 0, previous_left = 0, current = 0, current_left = 0},
        requests = {count = 0, oldest = now, others = true},
    }
    if holder.tokens_limit >= 0 then
        holder.windows = read_windows(holder)
    end
    if holder.requests_limit > 0 then
        holder.requests = read_requests(holder)
    end
    holders[place] = holder
end

-- Return the reply: numbers in a text, which costs the client less to read than an array does. Its
-- times are in milliseconds. `place` is the holder that refused.
local function reply(outcome, wanted, place)
    local found = {string.format('%d %.0f %d', outcome, wanted, (place or 1) - 1)}
    for at, holder in ipairs(holders) do
        local windows, requests = holder.windows, holder.requests
        local window_left = HOUR_MS
        if windows.current_left > 0 then
            window_left = math.max(0, windows.current_left - HOUR_MS)
        end
        local reset = math.ceil((requests.oldest + MINUTE_S - now) * 1000)
        found[at + 1] = string.format(
            '%.0f %.0f %.0f %.0f %.0f %.0f', requests.count, reset,
            windows.previous, windows.previous_left, windows.current, window_left
        )
    end
    return table.concat(found, ' ')
end
"""

LOOK: Final = LuaScript(HEAD + COUNTS + "return reply(ADMITTED, 0)")

ADMIT_CODE: Final = f"""
{HEAD}{COUNTS}
-- KEYS: then, for each holder, the reservation.
-- ARGV: then the call's input tokens, its output tokens (-1: what the limits have left, at most the
-- reserve), the reserve, and the number of requests that the call counts as.
local rest = 2 * holder_count + 1
local input, output = tonumber(ARGV[rest + 1]), tonumber(ARGV[rest + 2])
local reserve, asked = tonumber(ARGV[rest + 3]), tonumber(ARGV[rest + 4])

local least
for place, holder in ipairs(holders) do
    holder.reservation_key = KEYS[3 * holder_count + place]
    local reserved = redis.call('GET', holder.reservation_key)
    if reserved then -- the client has sent this script before, or has revoked it
        return true, reply(ADMITTED, number(string.match(reserved, '^%d+')))
    end
    if holder.tokens_limit >= 0 then
        local windows = holder.windows
        local fading = math.floor(windows.previous * windows.previous_left / HOUR_MS)
        holder.left = holder.tokens_limit - fading - windows.current
        least = math.min(least or holder.left, holder.left)
    end
end

local wanted = 0
if least then
    if output < 0 then
        output = math.max(1, math.min(reserve, least - input))
    end
    wanted = input + output
end
for place, holder in ipairs(holders) do
    if holder.left and wanted > holder.left then
        return false, reply(TOKENS_REFUSED, wanted, place)
    end
end
for place, holder in ipairs(holders) do
    local limit, requests = holder.requests_limit, holder.requests
    if limit >= 0 and requests.count + asked > limit then
        -- There is room as soon as this one is a minute old.
        local blocking = redis.call('LINDEX', holder.requests_key, limit - asked)
        if limit >= asked and blocking then
            requests.oldest = tonumber(blocking)
        end
        return false, reply(REQUESTS_REFUSED, wanted, place)
    end
end

for _, holder in ipairs(holders) do
    local windows, requests = holder.windows, holder.requests
    if holder.requests_limit >= 0 then
        for _ = 1, asked do
            redis.call('LPUSH', holder.requests_key, now)
        end
        requests.count = requests.count + asked
        if requests.others then
            redis.call('LTRIM', holder.requests_key, 0, requests.count - 1)
        end
        redis.call('EXPIRE', holder.requests_key, MINUTE_S)
    end
    if holder.tokens_limit >= 0 then
        if windows.current_left > 0 then
            redis.call('INCRBY', holder.current_key, wanted)
        else
            windows.current_left = 2 * HOUR_MS
            redis.call('SET', holder.current_key, wanted, 'PX', windows.current_left)
        end
        windows.current = windows.current + wanted
        local expires = now * 1000 + windows.current_left
        redis.call(
            'SET', holder.reservation_key, string.format('%.0f %.0f', wanted, expires),
            'PX', windows.current_left
        )
    end
end
return true, reply(ADMITTED, wanted)
"""

ADMIT: Final = LuaScript(f"""
local function admit()
{ADMIT_CODE}
end

local _, reply = admit()
return reply
""")
"""The admission of a call by itself. Most calls are admitted along with their claim in the cluster:
ADMIT_CODE is the code of a ScriptPart."""

SETTLE_CODE: Final = f"""
{HEAD}
-- KEYS: for each reservation of the call, the counter of the previous window, that of the current
-- one, the reservation.
-- ARGV: the number of reservations, the tokens that the call used, and for how many seconds the
-- reservations are revoked, so that an ADMIT that Redis reads only then reserves nothing (0: they
-- aren't).
local count, used, revoked_s = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

-- Replace the reserved tokens by the used ones, in the window that counts the reserved ones.
local function settle(windows, reserved, expires)
    for _, key in ipairs(windows) do
        local left = redis.call('PTTL', key)
        if left > 0 and math.abs(now * 1000 + left - expires) < HOUR_MS / 2 then
            local tokens = redis.call('INCRBY', key, used - reserved)
            if tokens < 0 then
                redis.call('INCRBY', key, -tokens)
            end
            return
        end
    end
end

for place = 1, count do
    local previous_key, current_key, reservation_key = unpack(KEYS, 3 * place - 2, 3 * place)
    local reservation = redis.call('GET', reservation_key)
    if revoked_s > 0 then
        redis.call('SET', reservation_key, 'revoked', 'EX', revoked_s)
    else
        redis.call('DEL', reservation_key)
    end
    local reserved, expires = string.match(reservation or '', '^(%d+) (%d+)$')
    if reserved then
        settle({{current_key, previous_key}}, reserved, expires)
    end
end
"""

SETTLE: Final = LuaScript(SETTLE_CODE)
"""The settlement of a call by itself. Most calls are settled along with the release of their claim:
SETTLE_CODE is the code of a ScriptPart."""
