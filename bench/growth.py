"""Measurements of one worker: many quiet streams, stops meanwhile, start-up, and added latency."""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import PROMPT, Upstream, cpu, gateway, memory
from tests.support.servers import Server

COUNTS = (10, 100, 1000, 5000)
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "resumable": {"resumable": True}}
TOGETHER = 500
"""The number of streams that are opened at once: more would measure how they begin."""
STOPS = 200
WINDOW_S = 10.0
"""The seconds over which the CPU time of the events is measured."""
QUIET = {"stream": True, "sim_tokens": 100000, "sim_interval_ms": 1000}


class Size(NamedTuple):
    streams: int
    kilobytes: float
    """Memory per stream."""
    cpu: float
    """CPU microseconds per event."""
    stop_p50: float
    """Milliseconds from a stop until the connection to the upstream is closed."""
    stop_p99: float


def growth(folder: Path, counts: Sequence[int] = COUNTS) -> Iterator[tuple[str, Size]]:
    """Yield the measurements of each kind and number of streams, each in a server of its own.

    A server that has had many streams keeps their memory, and would hide a part of the next ones'.
    """
    room = str(max(counts) + 200)
    environment = {"SLUICE_MAX_STREAMS": room, "SLUICE_MAX_STREAMS_PER_KEY": room}
    for count in counts:
        for kind, fields in KINDS.items():
            with Upstream(folder) as upstream, gateway(upstream.rows, **environment) as server:
                try:
                    found = size(folder, upstream, server, count, fields)
                except TimeoutError as error:  # the machine is too busy
                    print(f"skipping {count} {kind} streams: {error}", flush=True)
                    continue
            yield kind, found


def size(
    folder: Path, upstream: Upstream, server: Server, count: int, fields: dict[str, Any]
) -> Size:
    warm(server)
    time.sleep(1)
    before = memory(server.pid)
    with ExitStack() as stack:
        for number in range(0, count, TOGETHER):
            more = min(TOGETHER, count - number)
            stack.enter_context(clients(folder, server, more, fields))
            wait_open(upstream, number + more)
        time.sleep(3)
        each = (memory(server.pid) - before) * 1024 / count
        used, tokens = cpu(server.pid), upstream.stats()["tokens"]
        time.sleep(WINDOW_S)
        spent = cpu(server.pid) - used
        events = max(1, upstream.stats()["tokens"] - tokens)
        stops = sorted(stop(upstream, server, n, fields) for n in range(STOPS))
    p50, p99 = statistics.median(stops), stops[int(0.99 * (len(stops) - 1))]
    return Size(count, each, spent / events * 1e6, p50 * 1000, p99 * 1000)


@contextmanager
def clients(folder: Path, server: Server, count: int, fields: dict[str, Any]) -> Iterator[None]:
    """Keep `count` quiet streams open while the context is active."""
    body = json.dumps(PROMPT | {"model": "sim/sim-1"} | QUIET | fields)
    process = subprocess.Popen(
        [
            *(folder / "simload", str(server.port), "/v1/completions", "-c", str(count)),
            *("-d", "600", "-w", "0", "-b", body, "-k", server.key),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def wait_open(upstream: Upstream, count: int) -> None:
    until = time.monotonic() + 180
    while (active := upstream.stats()["active"]) < count:
        if time.monotonic() > until:
            raise TimeoutError(f"only {active} of {count} streams are open after 180 s")
        time.sleep(0.2)


def warm(server: Server) -> None:
    for _ in range(20):
        ask(http.client.HTTPConnection("127.0.0.1", server.port), server.key)


def stop(upstream: Upstream, server: Server, number: int, fields: dict[str, Any]) -> float:
    """Return the seconds from a stop until the connection to the upstream is closed."""
    before = upstream.stats()
    name = f"bench-{time.monotonic_ns()}-{number}"
    client = begin(server.port, server.key, stream_id=name, **QUIET, **fields)
    client.recv(1)
    control = http.client.HTTPConnection("127.0.0.1", server.port)
    stopped = time.monotonic()
    control.request(
        "POST",
        f"/v1/completions/stop-stream/{name}",
        headers={"Authorization": f"Bearer {server.key}"},
    )
    closed = upstream.wait("aborted", before["aborted"] + 1)
    assert control.getresponse().status == 200
    control.close()
    client.close()
    return closed - stopped


def begin(port: int, key: str, **fields: Any) -> socket.socket:
    body = json.dumps(PROMPT | {"model": "sim/sim-1"} | fields).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    client = socket.create_connection(("127.0.0.1", port))
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(head.encode() + body)
    return client


def ask(connection: http.client.HTTPConnection, key: str, **fields: Any) -> float:
    """Return the seconds until the first byte of the response's body."""
    body = json.dumps(PROMPT | {"model": "sim/sim-1"} | fields)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    began = time.monotonic()
    connection.request("POST", "/v1/completions", body, headers)
    answer = connection.getresponse()
    answer.read(1)
    first = time.monotonic() - began
    answer.read()
    assert answer.status == 200
    return first


def added(folder: Path, times: int = 400) -> dict[str, tuple[float, float, float, float]]:
    """Measure the time to the first byte, directly from the upstream and through the gateway.

    Requests are sent one at a time and alternate between the two, so that both see the machine in a
    similar state.

    Returns:
        Milliseconds: direct p50, direct p99, gateway p50, gateway p99.
    """
    found = {}
    with Upstream(folder) as upstream, gateway(upstream.rows) as server:
        for what, fields in (("unary", {}), ("first event", {"stream": True, "sim_tokens": 3})):
            ways = [(upstream.port, "x", []), (server.port, server.key, [])]
            connections = [http.client.HTTPConnection("127.0.0.1", port) for port, *_ in ways]
            for connection in connections:
                connection.connect()
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for n in range(times + 50):
                for connection, (_, key, seen) in zip(connections, ways, strict=True):
                    seconds = ask(connection, key, **fields)
                    if n >= 50:
                        seen.append(seconds * 1000)
            direct, through = (sorted(seen) for *_, seen in ways)
            last = int(0.99 * (times - 1))
            found[what] = (
                *(statistics.median(direct), direct[last]),
                *(statistics.median(through), through[last]),
            )
    return found


def start_up(times: int = 5) -> tuple[float, float]:
    """Return the median seconds from the command to /ready, and the median megabytes when idle."""
    seconds, megabytes = [], []
    for _ in range(times):
        began = time.monotonic()
        with Server("") as server:
            seconds.append(time.monotonic() - began)
            time.sleep(0.5)
            megabytes.append(memory(server.pid))
    return statistics.median(seconds), statistics.median(megabytes)
