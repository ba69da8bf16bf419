"""The atomic operations on resumable streams in Redis: Lua scripts, loaded by redis-py.

- A script may run twice, because its first result may have been lost with the connection.
- Many streams share one script, and their arguments are one text: redis-py takes about a
  microsecond for each argument.
- Nothing is ever appended after a fence.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, TypeAlias

from cluster.lua import LuaScript

STREAM: Final = "sluice:replay:"
ENTRY: Final = b"e"
"""The only field of an entry."""
LEAST_TTL_S: Final = 30.0
"""The shortest time for which Redis keeps a stream that nobody writes to."""

AppendItem: TypeAlias = tuple[bytes, bytes, bytes, bytes, bytes, int]
LENGTHS: Final = struct.Struct("<6I").pack


def packed(items: Iterable[AppendItem]) -> bytes:
    """Return the argument of APPEND. Redis' own MessagePack reads no bytes before Redis 7."""
    parts: list[bytes] = []
    for stream, expected, name, entry, lowest, ttl in items:
        sizes = (len(stream), len(expected), len(name), len(entry), len(lowest))
        parts += (LENGTHS(*sizes, ttl), stream, expected, name, entry, lowest)
    return b"".join(parts)


REFUSED, DROPPED = b"refused", b"dropped"

APPEND = LuaScript("""
-- ARGV: the items, as `packed` makes them. Each has a stream, its expected last id, an id, an
-- entry, the lowest id to keep, and a TTL in ms or 0. The expected id is '' if the stream must not
-- exist, and '*' if it may be another call's. Without an id, only the expected id is checked.
local text, at, n, failed = ARGV[1], 1, 0, {}
local function taken(size)
  at = at + size
  return string.sub(text, at - size, at - 1)
end
local function trim(stream, lowest)  -- XTRIM has no MINID before Redis 6.2
  repeat
    local old = redis.call('XRANGE', stream, '-', lowest, 'COUNT', 10)
    local ids = {}
    for _, entry in ipairs(old) do
      if entry[1] ~= lowest then ids[#ids + 1] = entry[1] end
    end
    if #ids > 0 then redis.call('XDEL', stream, unpack(ids)) end
  until #ids < 10
end
while at <= #text do
  local a, b, c, d, e, ttl = struct.unpack('<I4I4I4I4I4I4', text, at)
  at, n = at + 24, n + 1
  local stream, expected, id, entry, lowest = taken(a), taken(b), taken(c), taken(d), taken(e)
  local found = redis.pcall('XREVRANGE', stream, '+', '-', 'COUNT', 1)
  local top = not found.err and found[1] and found[1][1] or ''
  if expected == '*' then
    if top ~= '' and string.match(top, '%-.*') ~= string.match(id, '%-.*') then
      redis.call('DEL', stream)
      top = ''
    end
    expected = ''
  end
  if found.err then  -- it isn't a stream, so another program wrote it
    failed[#failed + 1] = n
    failed[#failed + 1] = 'refused'
  elseif top ~= expected then
    failed[#failed + 1] = n
    local dropped = top == '' and redis.call('EXISTS', 'sluice:replay-dropped:' .. stream) == 1
    failed[#failed + 1] = dropped and 'dropped' or top
  else
    local added = id == '' or redis.pcall('XADD', stream, id, 'e', entry)
    if type(added) == 'table' and added.err then
      redis.call('DEL', stream)
      failed[#failed + 1] = n
      failed[#failed + 1] = 'refused'
    else
      if ttl ~= 0 then redis.call('PEXPIRE', stream, ttl) end
      if lowest ~= '' then trim(stream, lowest) end
    end
  end
end
return failed
""")
"""The appends of a process. It returns the failed items' numbers from 1, each followed by the id of
the stream's last entry, which wasn't the expected one; '' if there is no such stream; DROPPED if it
was dropped to make room; REFUSED if Redis took no entry, because it lacks memory, or because the
key isn't a stream."""

INTERRUPT = LuaScript("""
-- KEYS: stream, cluster, the mark of a kept stream.
-- ARGV: the last id that was read, fence's id, entry, TTL in ms, owner, SILENT_S.
local beat = redis.call('ZSCORE', KEYS[2], ARGV[5])
if beat and tonumber(beat) >= now - ARGV[6] then return 0 end
local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if top then
  local number, nonce = string.match(top[1], '(%d+)(%-.*)')
  local read, own = string.match(ARGV[1], '(%d+)(%-.*)')
  if nonce ~= own or tonumber(number) > tonumber(read) then return 0 end
end
local added = redis.pcall('XADD', KEYS[1], ARGV[2], 'e', ARGV[3])
if type(added) == 'table' and added.err then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SET', KEYS[3], '1', 'PX', ARGV[4])
return 1
""")
"""The end of a stream whose owner is dead. It returns 0 if the owner is alive, if Redis has more
of the stream than was read, or if it lacks memory. It may have less, if it lost data."""

FOLLOWED: Final = "sluice:followed"
"""The sorted set of the streams that are followed outside their own process, by Redis' time."""

ANNOUNCE = LuaScript("""
-- KEYS: the streams that are followed. ARGV: the time after which that is forgotten, then streams.
for n = 2, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[n]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[1]))
""")

SINCE_FOLLOWED = LuaScript("""
-- KEYS: the streams that are followed. ARGV: streams.
local found = {}
for n, stream in ipairs(ARGV) do
  local at = redis.call('ZSCORE', KEYS[1], stream)
  found[n] = at and string.format('%.3f', now - at) or ''
end
return found
""")
"""The seconds since streams were followed outside their own process; '' if they weren't."""

SIZES: Final = ("sluice:replay-sizes", "sluice:replay-expiry", "sluice:replay-sums")
"""The reserved bytes of each stream, when each reservation expires, and the sums of each key's. The
sum of all has an empty name."""

RESERVE = LuaScript("""
-- KEYS: sizes, expiry, sums. ARGV: the most bytes in all, the most of a key, TTL in s, then for
-- each stream: its key's id, its id, the bytes to reserve, and 1 if it has ended, else 0.
local sizes, expiry, sums, ttl = KEYS[1], KEYS[2], KEYS[3], tonumber(ARGV[3])
local function get(hash, name) return tonumber(redis.call('HGET', hash, name) or 0) end
local function ended(key) return 'sluice:replay-ended:' .. key end
local function set(key, name, bytes)
  local change = bytes - get(sizes, name)
  if bytes > 0 then
    redis.call('HSET', sizes, name, bytes)
  else
    redis.call('HDEL', sizes, name)
    redis.call('ZREM', expiry, name)
    redis.call('ZREM', ended(key), name)
  end
  for _, sum in ipairs({key, ''}) do
    if redis.call('HINCRBY', sums, sum, change) <= 0 then redis.call('HDEL', sums, sum) end
  end
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 100)) do
  set(string.match(name, '^[^/]*'), name, 0)
end
local found = {}
for n = 4, #ARGV, 4 do
  local key, name, bytes = ARGV[n], ARGV[n] .. '/' .. ARGV[n + 1], tonumber(ARGV[n + 2])
  local more = bytes - get(sizes, name)
  local function full()
    return get(sums, '') + more > tonumber(ARGV[1]) or get(sums, key) + more > tonumber(ARGV[2])
  end
  redis.call('ZREM', ended(key), name)
  while more > 0 and full() do
    local oldest = redis.call('ZRANGE', ended(key), 0, 0)[1]
    if not oldest then break end
    redis.call('DEL', 'sluice:replay:' .. oldest)
    redis.call('SET', 'sluice:replay-dropped:sluice:replay:' .. oldest, '1', 'EX', 60)
    set(key, oldest, 0)
  end
  if more > 0 and full() then
    set(key, name, 0)
    found[#found + 1] = 0
  else
    set(key, name, bytes)
    redis.call('ZADD', expiry, now + ttl, name)
    if ARGV[n + 3] == '1' then
      redis.call('ZADD', ended(key), now, name)
      redis.call('EXPIRE', ended(key), math.ceil(ttl))
    end
    found[#found + 1] = 1
  end
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, math.ceil(ttl * 4)) end
found[#found + 1] = get(sums, '')
return found
""")
"""The reservation of bytes. To make room, the oldest ended streams of the key that needs it are
deleted. It returns 1 for each stream that has its bytes, 0 for each that has none now, and the sum
of all reserved bytes."""

DROP = LuaScript("""
-- KEYS: stream. ARGV: the nonce of its call.
local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if top and string.match(top[1], '%-(.*)') == ARGV[1] then redis.call('DEL', KEYS[1]) end
""")
"""The removal of a stream, unless another call's has taken its place."""
