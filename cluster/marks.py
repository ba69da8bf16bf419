"""The marks in Redis of calls that have ended: they were stopped, or their streams are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cluster.redis_client import RedisClient
from completion import StreamKey

# Processes of earlier releases use STOPPED too: see docs/decisions/0013-the-house.md.
STOPPED, KEPT_STREAM = "sluice:stopped:", "sluice:kept:"
AT_ONCE: Final = 500


def mark_of(stream_key: StreamKey) -> str:
    """Return the Redis key that marks a call as stopped. It is unique, as ids have no slash."""
    return STOPPED + "/".join(stream_key)


def kept_mark_of(stream_key: StreamKey) -> str:
    """Return the Redis key that marks an ended resumable stream whose id isn't free."""
    return KEPT_STREAM + "/".join(stream_key)


def mark_kept(redis_client: RedisClient, kept: Mapping[StreamKey, int]) -> None:
    """Mark resumable streams for as many seconds as given. Raises RedisAway."""
    marks = [(kept_mark_of(stream_key), seconds) for stream_key, seconds in kept.items()]
    for n in range(0, len(marks), AT_ONCE):

        def mark(client: Any, some: list[tuple[str, int]] = marks[n : n + AT_ONCE]) -> None:
            with client.pipeline(transaction=False) as pipe:
                for name, seconds in some:
                    pipe.set(name, "1", ex=seconds)
                pipe.execute()

        redis_client.run(mark)
