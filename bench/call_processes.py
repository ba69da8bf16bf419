"""Simulate many processes that admit and settle plain calls through one Redis.

usage: call_processes.py [--processes 50] [--rates 500,1000,2000,4000] [--seconds 5] [--keys 100]

A real server with one worker runs first, and the commands that it sends to Redis are recorded: for
a call of a key with limits, and for a heartbeat. Then each simulated process has a connection, and
sends these commands for its own calls, with its own ids, and once a second those of the heartbeat.
Like a process's batcher, it sends what has become due since the last response, at most 200 commands
together. The commands are made beforehand, so that Python isn't what is measured.

The script prints what Redis uses at each rate, what heartbeats alone take by the number of
processes, and how many calls Redis can take: then all commands are sent without pauses. After each
load, all calls must have been admitted, and none may be left in Redis. "late" says by how much the
last response was later than planned: if it is more than a fraction of a second, Redis or the
machine is saturated. Everything listens on loopback.
"""

from __future__ import annotations

import argparse
import random
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import machine
from bench.recording import STREAM_ID, Recording, packed, record, renamed
from bench.report import table
from tests.support.redis_server import RedisServer

AT_ONCE: Final = 200
LASTS_S: Final = 1.0
"""The duration of a simulated call."""
PACE: Final = 32
"""The calls that each process has at a time if there are no pauses."""
MINUTE_S: Final = 60
IDLE_COUNTS: Final = (10, 50, 200, 500, 800)
PING, PONG = packed([b"PING"]), b"+PONG\r\n"


class Step(NamedTuple):
    """Commands that are sent together."""

    due: float
    """Seconds since the start."""
    data: bytes
    commands: int
    calls: int
    """The number of calls that start with this step."""


class Figures(NamedTuple):
    """The measurements of a span in which calls start and end at equal rates."""

    calls: int
    commands: int
    seconds: float
    cpu: float
    """The share of a core that Redis used."""
    late: float
    """The seconds by which the last response came later than it was planned."""
    waits: list[float]
    """The milliseconds from sending commands until their responses, sorted."""


class Ids:
    """The ids of a simulated process and its calls, which replace the recorded ones."""

    def __init__(self, recording: Recording, keys: Sequence[bytes]) -> None:
        self._recording, self._keys = recording, keys
        self._own: dict[bytes, bytes] = {}
        for words in recording.beat:
            renamed(words, self._of_process, STREAM_ID, keys[0])

    def _of_process(self, old: bytes) -> bytes:
        return self._own.setdefault(old, secrets.token_hex(len(old) // 2).encode())

    def beat(self, due: float) -> Step:
        beat = self._recording.beat
        sent = [packed(renamed(words, self._of_process, STREAM_ID, b"")) for words in beat]
        return Step(due, b"".join(sent), len(sent), 0)

    def call(self, due: float, lasts: float) -> tuple[Step, Step]:
        """Return the two steps of a call."""
        stream_id = secrets.token_hex(len(STREAM_ID) // 2).encode()
        key, own = random.choice(self._keys), dict(self._own)

        def of_call(old: bytes) -> bytes:
            return own.setdefault(old, secrets.token_hex(len(old) // 2).encode())

        def step(due: float, commands: Sequence[tuple[bytes, ...]], calls: int) -> Step:
            sent = [packed(renamed(words, of_call, stream_id, key)) for words in commands]
            return Step(due, b"".join(sent), len(sent), calls)

        start = step(due, self._recording.start, 1)
        return start, step(due + lasts, self._recording.end, 0)


def plan(recording: Recording, keys: Sequence[bytes], rate: float, seconds: float) -> list[Step]:
    """Return the steps of a process: its heartbeats, and `rate` calls a second at random times."""
    ids, steps, at = Ids(recording, keys), [], random.random()
    while at < seconds:
        steps.append(ids.beat(at))
        at += 1
    at = random.expovariate(rate) if rate else seconds
    while at < seconds:
        steps += ids.call(at, LASTS_S)
        at += random.expovariate(rate)
    return sorted(steps)


def crowd(recording: Recording, keys: Sequence[bytes], calls: int) -> list[Step]:
    """Return the steps of a process without pauses: starts and ends of PACE calls in turn."""
    ids, steps = Ids(recording, keys), []
    for _ in range(calls // PACE):
        pairs = [ids.call(0, 0) for _ in range(PACE)]
        steps += [start for start, _ in pairs] + [end for _, end in pairs]
    return steps


def run(port: int, steps: Sequence[Step], begin: float, waits: list[float]) -> None:
    """Send the steps of a process. Raises RuntimeError if Redis refuses a command."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = 0
        while number < len(steps):
            now = time.perf_counter() - begin
            if steps[number].due > now:
                time.sleep(steps[number].due - now)
                continue
            first, commands = number, 0
            while number < len(steps) and steps[number].due <= now and commands < AT_ONCE:
                commands += steps[number].commands
                number += 1
            waits.append(send(sock, b"".join(step.data for step in steps[first:number])))


def send(sock: socket.socket, commands: bytes) -> float:
    """Send commands, and return the milliseconds until all their responses are there."""
    sent, response = time.perf_counter(), b""
    sock.sendall(commands + PING)
    while not response.endswith(PONG):
        response += sock.recv(1 << 18)
    if response.startswith(b"-") or b"\r\n-" in response:
        raise RuntimeError(f"Redis refused a command: {response[:300]!r}")
    return (time.perf_counter() - sent) * 1000


def play(redis: RedisServer, plans: Sequence[Sequence[Step]], seconds: float = 0) -> Figures:
    """Send the steps of all processes, each with its own connection.

    Args:
        seconds: the duration of the plan. The figures leave out its first LASTS_S. 0 measures all.
    """
    redis.flush()
    waits: list[float] = []
    failures: list[Exception] = []
    begin = time.perf_counter() + 0.5

    def guarded(steps: Sequence[Step]) -> None:
        try:
            run(redis.port, steps, begin, waits)
        except (OSError, RuntimeError) as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(steps,)) for steps in plans]
    for thread in threads:
        thread.start()
    first = LASTS_S if seconds else 0.0
    sleep_until(begin + first)
    used, since = machine.cpu(redis.pid), time.perf_counter()
    if seconds:
        sleep_until(begin + seconds)
        used, span = machine.cpu(redis.pid) - used, time.perf_counter() - since
    for thread in threads:
        thread.join()
    end = time.perf_counter()
    if not seconds:
        used, span = machine.cpu(redis.pid) - used, end - since
    if failures:
        raise failures[0]
    every = [step for steps in plans for step in steps]
    check(redis, sum(step.calls for step in every) if end - begin < MINUTE_S else None)
    late = end - begin - max(step.due for step in every)
    if seconds:
        every = [step for step in every if first <= step.due < seconds]
    calls, commands = sum(step.calls for step in every), sum(step.commands for step in every)
    return Figures(calls, commands, span, used / span, late if seconds else 0.0, sorted(waits))


def check(redis: RedisServer, calls: int | None) -> None:
    """Raise RuntimeError unless all calls have ended, and were admitted.

    Args:
        calls: their number; None if the first of them have left the limits' last minute.
    """
    with redis.client() as client:
        if left := list(client.scan_iter("sluice:calls:*")):
            raise RuntimeError(f"calls are left in Redis: {left[:3]}")
        admitted = sum(client.llen(name) for name in client.scan_iter("LIMITS:*/minute"))
    if calls is not None and admitted != calls:
        raise RuntimeError(f"{admitted} of {calls} calls were admitted")


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def percentile(values: Sequence[float], share: float) -> float:
    return values[int(share * (len(values) - 1))]


def recorded(folder: Path) -> tuple[RedisServer, Recording]:
    """Return a running Redis with all scripts, and what a server sent to it."""
    redis = RedisServer().__enter__()
    try:
        with machine.Upstream(folder) as upstream:
            port = upstream.port
            # Replicas make the processes exchange their calls in flight with each heartbeat.
            replicas = f'["http://127.0.0.1:{port}/v1", "http://localhost:{port}/v1"]'
            rows = (
                upstream.rows + f"[providers.engines]\ncompletions = true\nbase_url = {replicas}\n"
            )
            with machine.gateway(rows, REDIS_URL=redis.url) as server:
                return redis, record(server, redis)
    except BaseException:
        redis.__exit__()
        raise


def show(recording: Recording) -> None:
    for name in ("start", "end", "beat"):
        commands = getattr(recording, name)
        print(f"{name}: {len(commands)} commands, {sum(len(packed(c)) for c in commands)} bytes")
        for words, several in groupby(commands, lambda words: words[:4]):
            text = b" ".join(words[:1] + words[2:4])[:70].decode(errors="replace")
            print(f"  {len(list(several))} x {text}")


def row(name: str, found: Figures, idle: float) -> tuple[str, ...]:
    """Return a line of the table.

    Args:
        idle: the share of a core that Redis uses for the heartbeats.
    """
    each = (found.cpu - idle) * found.seconds / found.calls * 1e6 if found.calls else 0
    return (
        name,
        f"{found.calls / found.seconds:,.0f}",
        f"{found.commands / found.seconds:,.0f}",
        f"{100 * found.cpu:.1f}%",
        f"{each:.0f}" if found.calls else "",
        f"{percentile(found.waits, 0.5):.1f}",
        f"{percentile(found.waits, 0.99):.1f}",
        f"{found.late:.1f}",
    )


HEAD = (
    *("load", "calls per second", "commands per second", "Redis, share of a core"),
    *("Redis CPU, us per call", "response p50, ms", "p99, ms", "late, s"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--rates", default="500,1000,2000,4000", help="calls per second, in all")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--keys", type=int, default=100)
    options = parser.parse_args()
    seconds = options.seconds
    keys = [f"key_{number:012}".encode() for number in range(options.keys)]

    def plans(count: int, make: Callable[[], list[Step]]) -> list[list[Step]]:
        return [make() for _ in range(count)]

    with tempfile.TemporaryDirectory() as name:
        machine.build(Path(name))
        redis, recording = recorded(Path(name))
    try:
        show(recording)
        rows, idle = [], {}
        for count in sorted({*IDLE_COUNTS, options.processes}):
            found = play(redis, plans(count, lambda: plan(recording, keys, 0, seconds)), seconds)
            idle[count] = found.cpu
            rows.append(row(f"heartbeats of {count} processes", found, found.cpu))
        own = idle[options.processes]
        for rate in map(float, options.rates.split(",")):
            each = rate / options.processes
            several = plans(
                options.processes,
                lambda each=each: plan(recording, keys, each, seconds),  # type: ignore[misc]
            )
            rows.append(row(f"{rate:,.0f} calls a second", play(redis, several, seconds), own))
        calls = int(seconds * 2000 / options.processes)
        several = plans(options.processes, lambda: crowd(recording, keys, calls))
        rows.append(row("without pauses", play(redis, several), 0))
    finally:
        redis.__exit__()
    print(f"\n{options.processes} processes, {options.keys} keys. {machine.described()}.\n")
    print(table(HEAD, rows))


if __name__ == "__main__":
    main()
