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

from cluster.scripts import step

STREAM: Final = "sluice:replay:"
ENTRY: Final = b"e"
"""The only field of an entry."""

Item: TypeAlias = tuple[bytes, bytes, bytes, bytes, bytes, int]
LENGTHS: Final = struct.Struct("<6I").pack


def packed(items: Iterable[Item]) -> bytes:
    """Return the argument of APPEND. Redis' own MessagePack reads no bytes before Redis 7."""
    parts: list[bytes] = []
    for stream, expected, name, entry, lowest, ttl in items:
        sizes = (len(stream), len(expected), len(name), len(entry), len(lowest))
        parts += (LENGTHS(*sizes, ttl), stream, expected, name, entry, lowest)
    return b"".join(parts)


APPEND = step("""
-- ARGV: the items, as `packed` makes them. Each has a stream, its expected last id, an id, an
-- entry, the lowest id to keep, and a TTL in ms or 0. The expected id is '' if the stream must not exist,
-- and '*' if it may be another call's. Without an id, only the expected id is checked.
local text, at, n, failed = ARGV[1], 1, 0, {}
local function taken(size)
  at = at + size
  return string.sub(text, at - size, at - 1)
end
while at <= #text do
  local a, b, c, d, e, ttl = struct.unpack('<I4I4I4I4I4I4', text, at)
  at, n = at + 24, n + 1
  local stream, expected, id, entry, lowest = taken(a), taken(b), taken(c), taken(d), taken(e)
  local top = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  top = top and top[1] or ''
  if expected == '*' then
    if top ~= '' and string.match(top, '%-.*') ~= string.match(id, '%-.*') then
      redis.call('DEL', stream)
      top = ''
    end
    expected = ''
  end
  if top ~= expected then
    failed[#failed + 1] = n
    failed[#failed + 1] = top
  else
    if id ~= '' then redis.call('XADD', stream, id, 'e', entry) end
    if ttl ~= 0 then redis.call('PEXPIRE', stream, ttl) end
    if lowest ~= '' then redis.call('XTRIM', stream, 'MINID', lowest) end
  end
end
return failed
""")
"""The appends of a process. It returns the failed items' numbers from 1, each followed by the id of
the stream's last entry, which wasn't the expected one; '' if there is no such stream."""

INTERRUPT = step("""
-- KEYS: stream, cluster. ARGV: expected id, fence's id, entry, TTL in ms, owner, SILENT_S.
local beat = redis.call('ZSCORE', KEYS[2], ARGV[5])
if beat and tonumber(beat) >= now - ARGV[6] then return 0 end
local top = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not top or top[1] ~= ARGV[1] then return 0 end
redis.call('XADD', KEYS[1], ARGV[2], 'e', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
""")
"""The end of a stream whose owner is dead. It returns 0 if the owner is alive, or if the stream has
another end than the expected one."""
