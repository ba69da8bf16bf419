"""Simulate many processes that write and follow resumable streams through one Redis.

usage: replay_processes.py [--processes 50] [--streams 5000] [--seconds 5] [--bytes 6]

Each simulated process has a connection. In each tick of 50 ms it sends what a writer sends (one
script for all its streams, each with one new event), and what a reader sends (it reads as many
streams). The commands are made beforehand, by the project's own writer and scripts, so that Redis
is measured and not Python. Every response is checked: each append must be accepted, and the
readers must get every entry.

The ticks of the processes are spread evenly. At a multiple of the load, each tick is shorter, so
Redis gets the commands of that many times the streams. At last, all commands are sent without
pauses. Redis is saturated when it uses a whole core. On a busy machine, compute that from its CPU
time per append, which doesn't depend on the rate. Everything listens on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import machine, report
from cluster.redis_client import RedisClient
from streams import replay_reader
from streams.replay import About, Replay
from streams.replay_counts import ReplayCounts
from streams.replay_room import ReplayRoom
from streams.replay_scripts import APPEND, packed
from streams.replay_writer import TICK_S
from streams.written_stream import FIRST_STEP, WrittenStream
from tests.support.redis_server import RedisServer

LOADS: Final = (1, 2, 4, 8)
TEMPLATE: Final = (
    b'data: {"id":"cmpl-0123456789abcdef","choices":[{"index":0,"text":"',
    b'","logprobs":null,"finish_reason":null}]}\n\n',
)
ERROR: Final = (b'data: {"error":{"code":"interrupted"}}\n\n', b'{"error":{"code":"interrupted"}}')
PONG: Final = b"+PONG\r\n"
ENTRY_MARK: Final = b"\r\n$1\r\ne\r\n"
"""The bytes before the content of each entry in a response to XREAD."""


class Captured:
    """A client that takes the arguments of a script instead of sending them."""

    arguments: tuple[Any, ...] = ()

    def evalsha(self, *arguments: Any) -> list[Any]:
        self.arguments = ("EVALSHA", *arguments)
        return []

    def script_load(self, script: str) -> None:
        # redis-py calls this only if evalsha reports that the script is missing.
        raise NotImplementedError


class Part(NamedTuple):
    """The commands of a simulated process."""

    writes: list[bytes]
    """For each tick, the script that appends to its streams."""
    reads: list[bytes]
    """For each tick, the commands that read what was appended, followed by PING."""


class Figures(NamedTuple):
    seconds: float
    cpu: float
    """The share of a core that Redis used."""
    scripts: int
    read: int
    """The entries that were read."""
    write_ms: Sequence[float]
    read_ms: Sequence[float]
    """The durations of the scripts and of the reads, with the way there and back."""


def command(*words: Any) -> bytes:
    """Encode a command for Redis."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts += [b"$%d\r\n" % len(data), data, b"\r\n"]
    return b"".join(parts)


def part(number: int, streams: int, ticks: int, text: bytes) -> Part:
    """Make the commands of a process.

    Args:
        text: the text of each event.
    """
    written = [stream(number, n) for n in range(streams)]
    captured, writes, reads = Captured(), [], []
    last = {one.key: replay_reader.START for one in written}
    for tick in range(ticks):
        now = tick * TICK_S
        items, seen = [], []
        for one in written:
            one.replay.log.append(1, text)
            seen.append((one.key, last[one.key]))
            items.append(one.next_item(now))
            last[one.key] = items[-1][2]
            one.done(now)
        APPEND(captured, (), (packed(items),))
        writes.append(command(*captured.arguments))
        reads.append(read(seen) + command("PING"))
    return Part(writes, reads)


def stream(process: int, number: int) -> WrittenStream:
    about = About(f"req-{process}-{number}", 1767225600.0, "in_progress", "sim", "sim-1")
    replay = Replay((f"key_{process}", f"stream-{process}-{number}"), "openai", lambda: about)
    replay.encode_error = lambda _: ERROR
    replay.log.add_template(TEMPLATE)
    return WrittenStream(replay, f"process{process:09}", 300.0)


def read(seen: list[tuple[bytes, bytes]]) -> bytes:
    """Return the commands with which a reader reads what is new, as far as it has read."""
    commands = []
    for n in range(0, len(seen), replay_reader.STREAMS):
        keys, ids = zip(*seen[n : n + replay_reader.STREAMS], strict=True)
        commands.append(command("XREAD", "COUNT", replay_reader.ENTRIES, "STREAMS", *keys, *ids))
    return b"".join(commands)


class Connection:
    """A connection that sends commands, and checks the responses."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def write(self, command: bytes) -> float:
        """Send a script. Return the milliseconds until its response, which must be empty."""
        began = time.perf_counter()
        self._sock.sendall(command)
        answer = self._sock.recv(65536)
        if answer != b"*0\r\n":
            raise RuntimeError(f"an append was refused: {answer[:200]!r}")
        return (time.perf_counter() - began) * 1000

    def read(self, commands: bytes) -> tuple[float, int]:
        """Send commands that end with PING. Return the milliseconds, and the entries read."""
        began, parts, tail = time.perf_counter(), [], b""
        self._sock.sendall(commands)
        while not tail.endswith(PONG):
            parts.append(self._sock.recv(1 << 20))
            tail = (tail + parts[-1])[-len(PONG) :]
        took = (time.perf_counter() - began) * 1000
        return took, b"".join(parts).count(ENTRY_MARK)


def play(redis: RedisServer, parts: list[Part], interval: float, *, follow: bool) -> Figures:
    """Send the commands of all processes, in ticks of `interval` seconds each. 0: without pauses.

    The readers begin when the tick has been written, as what they get was counted beforehand.
    """
    write_ms: list[float] = []
    read_ms: list[float] = []
    counts: list[int] = []
    ticks = len(parts[0].writes)
    ready = threading.Barrier(len(parts) + 1)

    def run(number: int) -> None:
        connection, own = Connection(redis.port), parts[number]
        entries = 0
        ready.wait()
        begin = time.perf_counter() + interval * number / len(parts)
        for tick in range(ticks):
            if (left := begin + tick * interval - time.perf_counter()) > 0:
                time.sleep(left)
            write_ms.append(connection.write(own.writes[tick]))
            if follow:
                took, found = connection.read(own.reads[tick])
                read_ms.append(took)
                entries += found
        counts.append(entries)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(parts))]
    for thread in threads:
        thread.start()
    used, began = machine.cpu(redis.pid), time.perf_counter()
    ready.wait()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if len(counts) != len(parts):
        raise RuntimeError("a process failed")
    cpu = (machine.cpu(redis.pid) - used) / seconds
    return Figures(seconds, cpu, ticks * len(parts), sum(counts), write_ms, read_ms)


def measure(redis: RedisServer, options: argparse.Namespace) -> list[tuple[object, ...]]:
    """Return a row of figures for each load."""
    each = options.streams // options.processes
    ticks = max(4, round(options.seconds / TICK_S))
    text = b"x" * options.bytes
    print(f"making the commands of {ticks} ticks", flush=True)
    parts = [part(number, each, ticks, text) for number in range(options.processes)]
    streams = each * options.processes
    rows: list[tuple[object, ...]] = []
    costs: dict[bool, list[float]] = {False: [], True: []}
    for load, follow in product((*LOADS, 0), (False, True)):
        redis.flush()
        warm(redis)
        seen = play(redis, parts, TICK_S / load if load else 0.0, follow=follow)
        expected = streams * ticks * follow
        if seen.read != expected:
            raise RuntimeError(f"the readers got {seen.read} of {expected} entries")
        costs[follow].append(1e6 * seen.cpu * seen.seconds / (streams * ticks))
        rows.append(row(seen, streams, ticks, load, follow=follow))
        print(rows[-1], flush=True)
    alone, followed = (statistics.median(several) for several in costs.values())
    most = [f"{1e6 * TICK_S / each:,.0f}" for each in (alone, followed)]
    print(
        f"\nRedis takes {alone:.1f} us to append an event, and {followed - alone:.1f} us to give "
        f"it to a reader.\nWith an event of each stream every {1000 * TICK_S:.0f} ms it would use "
        f"a whole core at {most[0]} streams\nif none is followed at another process, and at "
        f"{most[1]} if all are.\n"
    )
    return rows


def reservations(redis: RedisServer, options: argparse.Namespace) -> float:
    """Return the microseconds that Redis takes to reserve bytes for a stream."""
    redis.flush()
    each = options.streams // options.processes
    with contextlib.closing(RedisClient(redis.url)) as client:
        room = ReplayRoom(client, 1 << 40, 300.0, ReplayCounts())
        room.reserve([])
        used = machine.cpu(redis.pid)
        for process in range(options.processes):
            wanted = [((f"key_{process}", f"s-{n}"), FIRST_STEP, False) for n in range(each)]
            if not all(room.reserve(wanted)):
                raise RuntimeError("a reservation was refused")
        return (machine.cpu(redis.pid) - used) / (each * options.processes) * 1e6


def warm(redis: RedisServer) -> None:
    """Load the script, as each process does once."""
    with contextlib.closing(redis.client()) as client:
        APPEND(client, (), (packed([]),))


def row(seen: Figures, streams: int, ticks: int, load: int, *, follow: bool) -> tuple[object, ...]:
    appends = streams * ticks / seen.seconds
    what = f"{streams * load:,} streams" if load else "without pauses"
    return (
        what + (", all followed" if follow else ", none followed"),
        f"{100 * seen.cpu:.0f} %",
        f"{seen.scripts / seen.seconds:,.0f}",
        f"{appends:,.0f}",
        f"{seen.read / seen.seconds:,.0f}",
        f"{1e6 * seen.cpu / appends:.2f}",
        *quantiles(seen.write_ms),
        *quantiles(seen.read_ms),
    )


def quantiles(milliseconds: Sequence[float]) -> tuple[str, str]:
    if not milliseconds:
        return "", ""
    ordered = sorted(milliseconds)
    p50, p99 = (ordered[len(ordered) * part // 100] for part in (50, 99))
    return f"{p50:.2f}", f"{p99:.2f}"


HEAD: Final = (
    *("load", "Redis, of a core", "scripts per s", "appends per s", "entries read per s"),
    *("Redis, us per append", "write p50, ms", "p99", "read p50, ms", "p99"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=50)
    parser.add_argument("--streams", type=int, default=5000, help="of all processes together")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the simple load")
    parser.add_argument("--bytes", type=int, default=6, help="of each event's text")
    options = parser.parse_args()
    print(machine.described())
    with RedisServer() as redis:
        print(report.table(HEAD, measure(redis, options)))
        took = reservations(redis, options)
        print(
            f"Redis takes {took:.1f} us to reserve bytes for a stream, when it begins or doubles."
        )


if __name__ == "__main__":
    main()
