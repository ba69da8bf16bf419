"""The exchange of the replicas' calls in flight between processes, through a Redis hash.

Once a second, each process writes its counts and reads those of the others, so a count may be about
a second old. Counts of a process that has stopped writing expire.

- Times are measured by Redis' clock, because the machines' clocks differ.
- All data in Redis expires.
- While Redis is unavailable, a process knows only its own calls.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from functools import partial
from typing import Any, Final

from cluster.redis_client import RedisAway, RedisClient
from routing.replicas import ReplicaKey, ReplicaLoads

HASH: Final = "sluice:replicas"
LASTS_S: Final = 5.0
"""The lifetime of a process's counts."""

# KEYS: the hash. ARGV: the process, its counts, the lifetime of counts in milliseconds.
# Returns the counts of the other processes.
EXCHANGE: Final = """
local hash, me, lasts = KEYS[1], ARGV[1], tonumber(ARGV[3])
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all, found = redis.call('hgetall', hash), {}
for number = 1, #all, 2 do
    local at, counts = string.match(all[number + 1], '^(%d+) (.*)$')
    if not at or math.abs(now - tonumber(at)) > lasts then
        redis.call('hdel', hash, all[number])
    elseif all[number] ~= me then
        found[#found + 1] = counts
    end
end
redis.call('hset', hash, me, string.format('%.0f ', now) .. ARGV[2])
redis.call('pexpire', hash, lasts)
return found
"""


class LoadSync:
    def __init__(self, redis_client: RedisClient, loads: ReplicaLoads) -> None:
        """Register the script."""
        from redis import Redis  # imported here because a single process doesn't need redis-py

        self._redis, self._loads = redis_client, loads
        self._me = uuid.uuid4().hex
        self._script: Any = Redis(connection_pool=redis_client.pool).register_script(EXCHANGE)

    def exchange(self) -> None:
        """Send this process's counts, and note those of the other processes."""
        sent = [self._me, encode(self._loads.own()), round(LASTS_S * 1000)]
        try:
            found = self._redis.run(partial(self._script, [HASH], sent))
        except RedisAway:
            found = []
        calls: Counter[ReplicaKey] = Counter()
        for counts in found:
            calls.update(decode(counts))
        self._loads.others_have(dict(calls))


def encode(calls: dict[ReplicaKey, int]) -> str:
    return json.dumps([[*key, count] for key, count in calls.items()])


def decode(counts: bytes) -> dict[ReplicaKey, int]:
    """Return the counts of another process; none if a later version of Sluice sent them."""
    try:
        return {
            (str(provider), str(replica)): max(0, int(count))
            for provider, replica, count in json.loads(counts)
        }
    except (TypeError, ValueError):
        return {}
