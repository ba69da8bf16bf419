"""The exchange of circuit breaker events between processes, through a Redis stream.

Each process appends its own events to the stream, and reads the events that the others have added
since its last read.

- Times are sent as ages and measured by Redis' clock, because the machines' clocks differ.
- Events contain names and numbers, never a key.
- All data in Redis expires.
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
"""The number of recent events that Redis keeps."""
MOST_NAME: Final = 500
"""The maximum length of a model's name. Events about longer names aren't sent."""

EventKind: TypeAlias = Literal["cools", "limited", "well"]

# KEYS: the stream. ARGV: the id of the last event that was read ("" for none), the lifetime of an
# event in milliseconds, the number of events to keep; then the new events to add.
# Returns Redis' time in milliseconds and the events since the last read.
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
if not read or read > now then  -- this is the first read, or Redis' clock was set back
    last = oldest
end
local found = redis.call('xread', 'STREAMS', stream, last)
return {string.format('%.0f', now), found and found[1] and found[1][2] or {}}
"""


class BreakerEvent(NamedTuple):
    """A change of a target's circuit breaker, or a rate limit of a target or a credential.

    Times are in seconds by the clock of this process. The key of a credential has the model "".
    Processes of earlier versions send rate limits of credentials only. They ignore those of
    targets, because they look up credentials only.
    """

    kind: EventKind
    key: TargetKey
    at: float
    until: float = 0.0
    """The end of the cool-down or of the rate limit."""
    length: float = 0.0
    """The length of the cool-down."""


class BreakerSync:
    def __init__(self, redis_client: RedisClient, lasts: float) -> None:
        """Register the script. `lasts` is the lifetime of an event in seconds."""
        from redis import Redis  # imported here because a single process doesn't need redis-py

        self._redis = redis_client
        self._lasts = round(lasts * 1000)
        self._me = uuid.uuid4().hex
        self._last = ""
        self._script: Any = Redis(connection_pool=redis_client.pool).register_script(EXCHANGE)

    def exchange(self, events: Iterable[BreakerEvent], now: float) -> list[BreakerEvent] | None:
        """Send events, and read those that other processes have sent since the last exchange.

        Args:
            events: the events of this process.
            now: the current time, by the clock of the events.

        Returns:
            The other processes' events, or None if Redis is unavailable.
        """
        new = [encode(self._me, event, now) for event in events if len(event.key[1]) <= MOST_NAME]
        sent = [self._last, self._lasts, MOST, *new]
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


def decode(me: str, fields: dict[bytes, bytes], sent_at: float) -> BreakerEvent | None:
    """Decode an event of another process.

    Args:
        me: the id of this process.
        sent_at: the time at which the event was sent, by this process's clock.

    Returns:
        None if this process sent the event, or if the event is invalid.
    """
    try:
        sender, kind, provider, model, number, age, left, length = json.loads(fields[b"event"])
        if sender == me or kind not in get_args(EventKind):
            return None
        key = (str(provider), str(model), int(number))
        return BreakerEvent(kind, key, sent_at - float(age), sent_at + float(left), float(length))
    except (KeyError, TypeError, ValueError):  # a later version of Sluice sent the event
        return None
