"""The cluster's atomic operations in Redis.

- All times are by Redis' clock.
- All scripts are idempotent (see lua.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from cluster.lua import LuaScript

ClaimResult: TypeAlias = Literal["yes", "exists", "too many", "kept"]

EXISTS: Final = 1
"""The reply to a claim if a process that isn't dead has the call."""
TOO_MANY: Final = 2
"""The reply to a claim if the key has too many calls."""
KEPT: Final = 3
"""The reply to a claim if a resumable stream with this id has ended, but is still kept."""
REFUSALS: Final[Mapping[Any, ClaimResult]] = MappingProxyType(
    {EXISTS: "exists", TOO_MANY: "too many", KEPT: "kept"}
)
"""The results of refused claims by the replies."""

BEAT = LuaScript("""
-- KEYS: cluster, since, my questions. ARGV: me, DEAD_S.
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('SET', KEYS[2], string.format('%.6f', now), 'NX')
local since = redis.call('GET', KEYS[2])
return {since, redis.call('HGETALL', KEYS[3]), string.format('%.3f', now - since)}
""")
"""The heartbeat. It returns the time since which Redis has had its data, the questions to this
process, and the seconds since that time."""


@cache
def claiming(code: str) -> LuaScript:
    """Return the script that claims a call if the code admits it.

    The script returns EXISTS, TOO_MANY, KEPT or the code's reply, which must be something else. If
    the code refuses the call, nothing is claimed.

    Args:
        code: the code of a ScriptPart. It returns whether it admits the call, and a reply.
    """
    return LuaScript(f"""
-- KEYS: the part's; then calls of the key, cluster, the mark of a stop, the mark of a kept stream.
-- ARGV: the part's; then me, call, max_calls (-1: any), TTL, 1 if the call is new (0: it runs).
local function part()
{code}
end

local calls, cluster, mark, kept = unpack(KEYS, #KEYS - 3)
local me, call, max_calls, ttl, new = unpack(ARGV, #ARGV - 4)
redis.call('ZADD', cluster, 'NX', now, me)
local owner = redis.call('HGET', calls, call)
if owner and owner ~= me and redis.call('ZSCORE', cluster, owner) then return {EXISTS} end
if new == '1' and owner ~= me and redis.call('EXISTS', kept) == 1 then return {KEPT} end
max_calls = tonumber(max_calls)
if max_calls >= 0 and not owner and redis.call('HLEN', calls) >= max_calls then
  local found = redis.call('HGETALL', calls)
  for n = 1, #found, 2 do
    if not redis.call('ZSCORE', cluster, found[n + 1]) then
      redis.call('HDEL', calls, found[n])
    end
  end
  if redis.call('HLEN', calls) >= max_calls then return {TOO_MANY} end
end
local admitted, reply = part()
if admitted then
  redis.call('HSET', calls, call, me)
  redis.call('EXPIRE', calls, ttl)
  redis.call('DEL', mark)
end
return reply
""")


@cache
def releasing(code: str) -> LuaScript:
    """Return the script that releases a call's claim and runs the code.

    Args:
        code: the code of a ScriptPart.
    """
    return LuaScript(f"""
-- KEYS: the part's; then calls of the key, the mark of a stop, the mark of a kept stream.
-- ARGV: the part's; then me, call, TTLs in s of both marks (0: no mark).
local calls, mark, kept = unpack(KEYS, #KEYS - 2)
local me, call, ttl, kept_ttl = unpack(ARGV, #ARGV - 3)
if redis.call('HGET', calls, call) == me then redis.call('HDEL', calls, call) end
if tonumber(ttl) > 0 then redis.call('SET', mark, '1', 'EX', ttl) end
if tonumber(kept_ttl) > 0 then redis.call('SET', kept, '1', 'EX', kept_ttl) end
do
{code}
end
""")


ASK = LuaScript("""
-- KEYS: calls of the key, cluster, since, the mark of a stop.
-- ARGV: me, call, questions of, channel of, token, question, SILENT_S, SETTLED_S, TTL.
local silent = now - ARGV[7]
local owner = redis.call('HGET', KEYS[1], ARGV[2])
if owner and owner ~= ARGV[1] then
  local beat = redis.call('ZSCORE', KEYS[2], owner)
  if beat and tonumber(beat) < silent then return 'silent' end
  if beat then
    local questions = ARGV[3] .. owner
    redis.call('HSET', questions, ARGV[5], ARGV[6])
    redis.call('EXPIRE', questions, ARGV[9])
    redis.call('PUBLISH', ARGV[4] .. owner, '')
    return 'asked'
  end
  redis.call('HDEL', KEYS[1], ARGV[2])
end
if redis.call('EXISTS', KEYS[4]) == 1 then return 'stopped' end
local since = redis.call('GET', KEYS[3])
if not since or now - since < tonumber(ARGV[8]) then return 'unsettled' end
if redis.call('ZCOUNT', KEYS[2], '-inf', silent) > 0 then return 'silent' end
return 'unknown'
""")
"""The request to the owner of a call to stop it. It returns "asked", or why it asked nobody: the
call was stopped, no process has claimed it, or its state isn't known ("silent", "unsettled")."""

PROCESSES_NOW = LuaScript("""
-- KEYS: cluster. ARGV: SILENT_S.
return {redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[1], '+inf'), redis.call('ZCARD', KEYS[1])}
""")
"""The query for the processes that aren't silent, and for the number of those that aren't dead."""

OWNERS = LuaScript("""
-- KEYS: calls of the key, cluster. ARGV: me, SILENT_S.
local found, seen = {}, {}
for _, owner in ipairs(redis.call('HVALS', KEYS[1])) do
  if owner ~= ARGV[1] and not seen[owner] then
    seen[owner] = true
    local beat = redis.call('ZSCORE', KEYS[2], owner)
    if beat and tonumber(beat) >= now - ARGV[2] then found[#found + 1] = owner end
  end
end
return found
""")
"""The query for the other processes that have calls of the key and aren't silent."""
