"""What processes tell each other of circuits, through Redis.

A stream of events holds it: each process adds its own and reads what the others added since it read
last. Rules that hold here: a moment is told as an age by Redis' clock, for machines' clocks differ;
what is told holds names and numbers, never a key; it all expires.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_args

from cluster.redis_client import RedisAway, RedisClient
from completion import TargetKey

STREAM: Final = "sluice:cooldown"
MOST: Final = 10_000
"""Events that are kept, the latest."""
MOST_NAME: Final = 500
"""Characters of a model's name; a longer one is not told."""

EventKind: TypeAlias = Literal["cools", "limited", "well"]

# KEYS: the stream. ARGV: the id that was read last ("": none), the milliseconds for which an event
# means something, how many are kept; then new events. The answer: Redis' time, and what is new.
EXCHANGE = """
local stream, last, lasts = KEYS[1], ARGV[1], tonumber(ARGV[2])
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local oldest = string.format('%.0f-0', now - lasts)
for number = 4, #ARGV do
    redis.call('xadd', stream, 'MAXLEN', '~', ARGV[3], '*', 'event', ARGV[number])
end
if #ARGV > 3 then
    redis.pcall('xtrim', stream, 'MINID', '~', oldest)  -- Redis 6.2
    redis.call('pexpire', stream, lasts)
end
local read = tonumber(string.match(last, '^%d+'))
if not read or read > now then  -- the first time, or its clock was set back
    last = oldest
end
local found = redis.call('xread', 'STREAMS', stream, last)
return {string.format('%.0f', now), found and found[1] and found[1][2] or {}}
"""


class BreakerEvent(NamedTuple):
    """at: when it came to be so; until: when a target has cooled down, or a limit is over; both by
    the clock of the process. length: the seconds that it cools down for."""

    kind: EventKind
    key: TargetKey
    at: float
    until: float = 0.0
    length: float = 0.0


class BreakerSync:
    """What one process tells and reads."""

    def __init__(self, redis_client: RedisClient, lasts: float) -> None:
        """lasts: the seconds for which an event means something."""
        from redis import Redis  # one process alone needs none

        self._redis = redis_client
        self._lasts = round(lasts * 1000)
        self._me = uuid.uuid4().hex
        self._last = ""
        self._script: Any = Redis(connection_pool=redis_client.pool).register_script(EXCHANGE)

    def exchange(self, events: Iterable[BreakerEvent], now: float) -> list[BreakerEvent] | None:
        """Tell what is so here; what others told since last time. now: by the clock of the events.
        None: Redis is away."""
        told = [encode(self._me, event, now) for event in events if len(event.key[1]) <= MOST_NAME]
        sent = [self._last, self._lasts, MOST, *told]
        try:
            moment, entries = self._redis.run(partial(self._script, [STREAM], sent))
        except RedisAway:
            return None
        found = []
        for number, fields in entries:
            self._last = number.decode()
            ago = (int(moment) - int(number.split(b"-")[0])) / 1000
            event = decode(self._me, dict(zip(fields[::2], fields[1::2], strict=True)), now - ago)
            if event is not None:
                found.append(event)
        return found


def encode(me: str, event: BreakerEvent, now: float) -> str:
    times = (now - event.at, event.until - now, event.length)
    return json.dumps([me, event.kind, *event.key, *times])


def decode(me: str, fields: dict[bytes, bytes], told: float) -> BreakerEvent | None:
    """The event of another process; None for one of ours, and for what is none. told: when it was
    told, by our clock."""
    try:
        who, kind, provider, model, number, age, left, length = json.loads(fields[b"event"])
        if who == me or kind not in get_args(EventKind):
            return None
        key = (str(provider), str(model), int(number))
        return BreakerEvent(kind, key, told - float(age), told + float(left), float(length))
    except (KeyError, TypeError, ValueError):  # of a later version
        return None
