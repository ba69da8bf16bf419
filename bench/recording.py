"""The commands that a running server sends to Redis for a call, recorded with MONITOR.

- The commands are those of a real server, so they are right whatever the code looks like.
- A call's commands contain the id of its key or a counter. All others are the heartbeat's.
- The ids in a recorded command are replaced by those of a simulated call: ids have a fixed length.
"""

from __future__ import annotations

import ast
import http.client
import json
import re
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Self

from bench.machine import PROMPT
from tests.support.redis_server import RedisServer
from tests.support.servers import Server

LINE = re.compile(rb"^\+([\d.]+) \[\d+ ([^\]]+)\] (.*)$")
WORD = re.compile(rb'"(?:[^"\\]|\\.)*"')
TOKEN = re.compile(rb"(?<![0-9a-f])(?:[0-9a-f]{32}|[0-9a-f]{16})(?![0-9a-f])")
"""An id that Sluice makes up: that of a process, or of a reservation."""
STREAM_ID = b"recorded-call-0000000000"
KEY_ID = re.compile(rb"key_[\w-]{12}")


class Command(NamedTuple):
    at: float
    """Redis' time in seconds."""
    by_script: bool
    words: tuple[bytes, ...]


class Monitor:
    """A connection that records all commands of a Redis while the context is active."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self._lines: list[bytes] = []

    def __enter__(self) -> Self:
        self._sock = socket.create_connection(("127.0.0.1", self._redis.port))
        self._sock.sendall(b"MONITOR\r\n")
        self._file = self._sock.makefile("rb")
        if self._file.readline() != b"+OK\r\n":
            raise RuntimeError("Redis refuses MONITOR")
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._file.close()
        self._sock.close()

    def _read(self) -> None:
        for line in self._file:
            self._lines.append(line.rstrip())

    def take(self) -> list[Command]:
        """Return the commands since the last time, all that Redis has got until now."""
        mark = secrets.token_hex(8)
        with self._redis.client() as client:
            client.echo(mark)
        found: list[Command] = []
        until = time.monotonic() + 30
        while time.monotonic() < until:
            while self._lines:
                one = parsed(self._lines.pop(0))
                if one.words[-1] == mark.encode():
                    return found
                found.append(one)
            time.sleep(0.01)
        raise TimeoutError("Redis didn't report a command within 30 s")


def parsed(line: bytes) -> Command:
    match = LINE.match(line)
    if match is None:
        raise ValueError(f"not a line of MONITOR: {line[:200]!r}")
    at, source, rest = match.groups()
    # MONITOR escapes bytes as a Python literal does.
    words = tuple(ast.literal_eval(f"b{word.decode('latin-1')}") for word in WORD.findall(rest))
    return Command(float(at), source == b"lua", words)


class Recording(NamedTuple):
    """The commands that a server sends to Redis, without those that its scripts run."""

    start: list[tuple[bytes, ...]]
    """The commands of a call before its provider is called."""
    end: list[tuple[bytes, ...]]
    """The commands of a call after its provider's response."""
    beat: list[tuple[bytes, ...]]
    """The commands of each second of a worker, whether it has calls or not."""


WAIT_MS = 700
"""The time after which the simulated provider responds: it parts a call's start from its end."""


def record(server: Server, redis: RedisServer, seconds: int = 5) -> Recording:
    """Record a call of a server with one worker. All its scripts are loaded into Redis then."""
    send_call(server)  # loads the scripts
    with Monitor(redis) as monitor:
        time.sleep(seconds)
        idle = [one.words for one in monitor.take() if not one.by_script and not of_call(one.words)]
        send_call(server, stream_id=STREAM_ID.decode(), sim_ttft_ms=WAIT_MS)
        time.sleep(1)
        sent = [one for one in monitor.take() if not one.by_script and of_call(one.words)]
    if not sent:
        raise RuntimeError("the call sent nothing to Redis")
    middle = sent[0].at + WAIT_MS / 2000
    return Recording(
        [one.words for one in sent if one.at < middle],
        [one.words for one in sent if one.at >= middle],
        each_second(idle, seconds),
    )


def of_call(words: Sequence[bytes]) -> bool:
    """Return True if a command is a call's: it names the key, or a counter of limits."""
    return any(KEY_ID.search(word) or word.startswith(b"LIMITS:") for word in words)


def each_second(commands: Iterable[tuple[bytes, ...]], seconds: int) -> list[tuple[bytes, ...]]:
    """Return the commands that are sent about once a second or more often."""

    def shape(words: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return words[:2]  # a script's commands differ in its hash

    commands = list(commands)
    counts = Counter(map(shape, commands))
    last = {shape(words): words for words in commands}
    found = []
    for one, count in counts.items():
        found += [last[one]] * round(count / seconds)
    return found


def renamed(
    words: Sequence[bytes], new: Callable[[bytes], bytes], stream_id: bytes, key_id: bytes
) -> list[bytes]:
    """Return a recorded command with other ids.

    Args:
        new: returns the new id of a process or a reservation, which has the old one's length.
    """

    def changed(word: bytes) -> bytes:
        word = TOKEN.sub(lambda match: new(match[0]), word)
        return KEY_ID.sub(lambda _: key_id, word.replace(STREAM_ID, stream_id))

    # The second word of EVALSHA is the script's hash, which has another length than ids have.
    return [changed(word) for word in words]


def send_call(server: Server, key: str | None = None, **fields: object) -> None:
    """Send a call, and wait for its whole response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    body = json.dumps(PROMPT | {"model": "sim/sim-1"} | fields)
    headers = {
        "Authorization": f"Bearer {key or server.key}",
        "Content-Type": "application/json",
    }
    connection.request("POST", "/v1/completions", body, headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {text[:500]!r}")


def packed(words: Sequence[bytes]) -> bytes:
    """Encode a command for Redis."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts += [b"$%d\r\n" % len(word), word, b"\r\n"]
    return b"".join(parts)
