"""lua.py: scripts as they are sent to Redis."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import pytest
import redis

from cluster.lua import NOW, LuaScript, Words
from tests.support.redis_server import RedisServer

ECHO = LuaScript("return {KEYS[1] or '', unpack(ARGV)}")


@pytest.mark.parametrize(
    ("keys", "arguments"),
    [
        ([], []),
        (["a", "b"], ["", "two words\r\n", 0, -1, 10**13]),
        (["größe"], ["\N{GRINNING FACE}", "x" * 70_000]),
    ],
)
def test_a_script_is_packed_as_redis_py_packs_it(keys: list[str], arguments: Words) -> None:
    sha = hashlib.sha1(ECHO.text, usedforsecurity=False).hexdigest()
    connection: Any = redis.Connection  # untyped
    connection = connection()
    expected = connection.pack_command("EVALSHA", sha, len(keys), *keys, *arguments)
    assert ECHO.packed(keys, arguments) == b"".join(expected)
    load = connection.pack_command("SCRIPT", "LOAD", ECHO.text)
    assert ECHO.packed_load() == b"".join(load)


def test_a_script_starts_with_the_time_of_redis(redis_server: RedisServer) -> None:
    with contextlib.closing(redis_server.client()) as client:
        before, _ = client.time()
        found = LuaScript("return string.format('%.6f', now)")(client, [], [])
        after, _ = client.time()
    assert before <= float(found) <= after + 1
    assert ECHO.text.startswith(NOW.encode())
