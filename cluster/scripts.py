"""The cluster's atomic operations in Redis: Lua scripts, loaded by redis-py.

- All times are by Redis' clock.
- All scripts are idempotent. A script may run twice, because its first result may have been lost
  with the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from redis.commands.core import Script

ScriptCall: TypeAlias = Callable[[Any, Sequence[str], Sequence[Any]], Any]

NOW = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""


def step(text: str) -> ScriptCall:
    """Return a function that runs a script with a client or a pipeline, keys and arguments."""
    found: list[Script] = []

    def run(client: Any, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        if not found:
            found.append(Script(client, (NOW + text).encode()))
        return found[0](keys=keys, args=arguments, client=client)

    return run


BEAT = step("""
-- KEYS: cluster, since, my questions. ARGV: me, DEAD_S.
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
redis.call('SET', KEYS[2], string.format('%.6f', now), 'NX')
local since = redis.call('GET', KEYS[2])
return {since, redis.call('HGETALL', KEYS[3]), string.format('%.3f', now - since)}
""")
"""The heartbeat. It returns the time since which Redis has had its data, the questions to this
process, and the seconds since that time."""

CLAIM = step("""
-- KEYS: calls of the key, cluster, the mark of a stop. ARGV: me, call, max_calls (-1: any), TTL.
redis.call('ZADD', KEYS[2], 'NX', now, ARGV[1])
local owner = redis.call('HGET', KEYS[1], ARGV[2])
if owner and owner ~= ARGV[1] and redis.call('ZSCORE', KEYS[2], owner) then return 1 end
local max_calls = tonumber(ARGV[3])
if max_calls >= 0 and not owner and redis.call('HLEN', KEYS[1]) >= max_calls then
  local calls = redis.call('HGETALL', KEYS[1])
  for n = 1, #calls, 2 do
    if not redis.call('ZSCORE', KEYS[2], calls[n + 1]) then
      redis.call('HDEL', KEYS[1], calls[n])
    end
  end
  if redis.call('HLEN', KEYS[1]) >= max_calls then return 2 end
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('DEL', KEYS[3])
return 0
""")
"""The claim of a call. It returns 0 on success, 1 if a process that isn't dead has the call, and 2
if the key has too many calls."""

RELEASE = step("""
-- KEYS: calls of the key, the mark of a stop. ARGV: me, call, TTL of the mark (0: no mark).
if redis.call('HGET', KEYS[1], ARGV[2]) == ARGV[1] then redis.call('HDEL', KEYS[1], ARGV[2]) end
if tonumber(ARGV[3]) > 0 then redis.call('SET', KEYS[2], '1', 'EX', ARGV[3]) end
""")

ASK = step("""
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

PROCESSES_NOW = step("""
-- KEYS: cluster. ARGV: SILENT_S.
return {redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[1], '+inf'), redis.call('ZCARD', KEYS[1])}
""")
"""The query for the processes that aren't silent, and for the number of those that aren't dead."""

OWNERS = step("""
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
