"""Measure how replicas share a row's calls: whether prefixes stay, a replica killed, and back.

usage: replicas.py [SECONDS]     (default: 8, for each phase)
Four simulated engines answer after 300 to 500 ms. 64 clients call all the time, each with a random
one of 64 prefixes. Everything listens on loopback. The script prints the figures of one process,
and those of two processes that share a Redis.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.engine import Engine, field, head_of, length_of
from tests.support.redis_server import RedisServer
from tests.support.servers import Server

REPLICAS, PREFIXES, CLIENTS = 4, 64, 64
LEAST_S, MOST_S = 0.3, 0.5
BOUND = 1.25 * CLIENTS / REPLICAS + 2
BUCKET_S = 0.5


class Served(NamedTuple):
    """A call that has ended."""

    at: float
    """The monotonic time of its end."""
    prefix: int
    status: int
    attempts: int
    port: int
    """The engine that served it; 0 if the call failed."""
    in_flight: int
    """The calls that the engine had when this one arrived, with it."""


# The clients


async def client(server: Server, until: asyncio.Event, served: list[Served]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    while not until.is_set():
        prefix = random.randrange(PREFIXES)
        prompt = f"Prefix {prefix}. " * 200 + f"The question of {time.monotonic()}"
        body = json.dumps({"model": "engines/m", "prompt": prompt, "max_tokens": 8})
        writer.write(
            f"POST /v1/completions HTTP/1.1\r\nHost: sluice\r\nAuthorization: Bearer {server.key}"
            f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            f"{body}".encode()
        )
        head = await head_of(reader)
        answer = json.loads(await reader.readexactly(length_of(head)))
        status = int(head.split()[1])
        reply = json.loads(answer["choices"][0]["text"]) if status == 200 else {}
        attempts = int(field(head, "x-sluice-attempts") or 1)
        found = (reply.get("port", 0), reply.get("in_flight", 0))
        served.append(Served(time.monotonic(), prefix, status, attempts, *found))
    writer.close()


class Moments(NamedTuple):
    """The monotonic times at which the phases start."""

    warm: float
    killed: float
    back: float
    end: float


async def run(
    server: Server, engines: Sequence[Engine], seconds: float
) -> tuple[list[Served], Moments]:
    served: list[Served] = []
    until = asyncio.Event()
    clients = [asyncio.create_task(client(server, until, served)) for _ in range(CLIENTS)]
    await asyncio.sleep(2)
    warm = time.monotonic()
    await asyncio.sleep(seconds)
    killed = time.monotonic()
    engines[0].kill()
    await asyncio.sleep(seconds)
    await asyncio.to_thread(engines[0].start)
    back = time.monotonic()
    await asyncio.sleep(max(seconds, 12))
    end = time.monotonic()
    until.set()
    await asyncio.gather(*clients)
    return served, Moments(warm, killed, back, end)


# The figures


def between(served: Iterable[Served], start: float, end: float) -> list[Served]:
    return [call for call in served if start <= call.at < end]


def homes(served: Iterable[Served]) -> dict[int, int]:
    """Return the engine that served most of a prefix's calls, for each prefix."""
    found: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for call in served:
        found[call.prefix][call.port] += 1
    return {prefix: ports.most_common(1)[0][0] for prefix, ports in found.items()}


def share(served: Sequence[Served], port: int) -> float:
    return sum(call.port == port for call in served) / max(1, len(served))


def returned(served: list[Served], port: int, moments: Moments, before: float) -> float:
    """Return the seconds from `back` to the end of the first bucket with 80% of the old share."""
    at = moments.back
    while at < moments.end:
        if share(between(served, at, at + BUCKET_S), port) >= 0.8 * before:
            return at + BUCKET_S - moments.back
        at += BUCKET_S
    return float("inf")


def figures(served: list[Served], moments: Moments, victim: int) -> dict[str, Any]:
    steady = between(served, moments.warm, moments.killed)
    home = homes(steady)
    own = Counter(home.values())
    before = share(steady, victim)
    seconds = moments.killed - moments.warm
    second = between(served, moments.killed, moments.killed + 1)
    rest = between(served, moments.killed + 1, moments.back)
    retried = [call for call in between(served, moments.killed, moments.back) if call.attempts > 1]
    return {
        "calls": len(served),
        "failed calls": sum(call.status != 200 for call in served),
        "prefixes by replica": sorted(own.values(), reverse=True),
        "calls that stay with their prefix's replica, %": round(
            100 * sum(call.port == home[call.prefix] for call in steady) / len(steady), 1
        ),
        f"most in flight at a replica (bound {BOUND:g})": max(c.in_flight for c in steady),
        "share of the killed replica before, %": round(100 * before, 1),
        "calls that were retried after the kill": len(retried),
        "most attempts of a call": max(call.attempts for call in served),
        "last retry after the kill, s": round(
            max((call.at for call in retried), default=moments.killed) - moments.killed, 2
        ),
        "calls per second before": round(len(steady) / seconds, 1),
        "calls in the first second after the kill": len(second),
        "calls per second later, with three replicas": round(
            len(rest) / max(0.1, moments.back - moments.killed - 1), 1
        ),
        "share back after, s": round(returned(served, victim, moments, before), 2),
    }


def measure(title: str, seconds: float, **env: str) -> None:
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine(LEAST_S, MOST_S)) for _ in range(REPLICAS)]
        urls = json.dumps([engine.url for engine in engines])
        rows = f"[providers.engines]\ncompletions = true\nbase_url = {urls}\n"
        server = stack.enter_context(Server(rows, env=env))
        served, moments = asyncio.run(run(server, engines, seconds))
    print(f"\n{title}")
    for name, value in figures(served, moments, engines[0].port).items():
        print(f"  {name}: {value}")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    measure("one process", seconds)
    with RedisServer() as redis:
        measure("two processes with Redis", seconds, REDIS_URL=redis.url, WEB_CONCURRENCY="2")


if __name__ == "__main__":
    main()
