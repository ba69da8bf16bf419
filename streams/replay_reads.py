"""The reads of many resumable streams in Redis at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def new_entries(
    client: Any, streams: Sequence[bytes], after: Sequence[bytes], most: int
) -> list[Any]:
    """Return the new entries of each stream that has some, as XREAD does.

    A key that isn't a stream has an entry without fields, which no copy can read.

    Args:
        after: the id of the last entry that was read of each stream.
        most: the most entries of each stream.

    Raises:
        RedisError
    """
    try:
        return client.execute_command(  # type: ignore[no-any-return]
            "XREAD", "COUNT", most, "STREAMS", *streams, *after
        )
    except Exception as failure:
        if not is_wrong_type(failure):
            raise
    with client.pipeline(transaction=False) as pipe:
        for stream, last in zip(streams, after, strict=True):
            pipe.execute_command("XREAD", "COUNT", most, "STREAMS", stream, last)
        answers = pipe.execute(raise_on_error=False)
    found: list[Any] = []
    for stream, last, answer in zip(streams, after, answers, strict=True):
        if is_wrong_type(answer):
            found.append((stream, [(last, {})]))
        elif isinstance(answer, Exception):
            raise answer
        else:
            found += answer
    return found


def is_wrong_type(failure: object) -> bool:
    """Return True for Redis' error that a key isn't a stream. Another program wrote it."""
    return str(failure).startswith("WRONGTYPE")


def existing(client: Any, streams: Sequence[bytes]) -> list[int]:
    """Return 1 for each stream that is in Redis, and 0 for each other one. Raises RedisError."""
    with client.pipeline(transaction=False) as pipe:
        for stream in streams:
            pipe.exists(stream)
        return pipe.execute()  # type: ignore[no-any-return]
