"""Lua scripts for Redis, and the parts that a script of the cluster runs for its caller.

A script may run twice, because its first reply may have been lost with the connection. So all
scripts are idempotent, except that an admission may then count its requests twice (see
quota/scripts.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

Words: TypeAlias = Sequence[str | int]

NOW: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
"""
"""The code with which each script starts. All times are by Redis' clock, in seconds."""


class LuaScript:
    """A Lua script, which starts with NOW.

    Redis' name for it is the hash of its text, so processes of another release can't run it by
    mistake.
    """

    __slots__ = ("_script", "_start", "text")

    def __init__(self, code: str) -> None:
        self.text = (NOW + code).encode()
        sha = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()
        self._start = f"$7\r\nEVALSHA\r\n$40\r\n{sha}\r\n"
        self._script: Any = None

    def __call__(self, client: Any, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run the script with redis-py's client, or add it to a pipeline."""
        if self._script is None:
            from redis.commands.core import Script  # a single process doesn't need redis-py

            self._script = Script(client, self.text)
        return self._script(keys=keys, args=arguments, client=client)

    def packed(self, keys: Sequence[str], arguments: Words) -> bytes:
        """Return the command that runs the script, as it is sent to Redis."""
        words = [str(word) for word in (len(keys), *keys, *arguments)]
        text = "".join([f"${len(word)}\r\n{word}\r\n" for word in words])
        if not text.isascii():  # Redis counts bytes
            text = "".join([f"${len(word.encode())}\r\n{word}\r\n" for word in words])
        return f"*{len(words) + 2}\r\n{self._start}{text}".encode()

    def packed_load(self) -> bytes:
        """Return the command that makes the script known to Redis."""
        head = f"*3\r\n$6\r\nSCRIPT\r\n$4\r\nLOAD\r\n${len(self.text)}\r\n"
        return head.encode() + self.text + b"\r\n"


class ScriptPart(NamedTuple):
    """Code that runs with a claim or a release of a call, in one script.

    KEYS and ARGV start with the keys and arguments of the part.
    """

    code: str
    """Lua code. There are few different ones, because each becomes a script in Redis."""
    keys: Sequence[str]
    arguments: Words


NO_PART: Final = ScriptPart("return true, 0", (), ())
"""The part that admits each call and does nothing."""
