"""Measure the time from a stop or a disconnect until the connection to the provider is closed.

usage: stop_latency.py [ROUNDS]     (default: 200 per phase, and a tenth of that for disconnects)
The script starts simllm and the gateway (gunicorn with gevent) and prints milliseconds. It polls
the upstream's counters every half millisecond.
"""

from __future__ import annotations

import http.client
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.machine import Upstream, build
from tests.support.fake import blackhole
from tests.support.servers import Server

PHASES = {
    "connecting": {"model": "dead/m"},
    "before headers": {"model": "sim/m", "sim_ttft_ms": 60000, "stream": False},
    "silent": {"model": "sim/m", "sim_tokens": 1000, "sim_interval_ms": 30000},
    "flowing": {"model": "sim/m", "sim_tokens": 100000, "sim_interval_ms": 2},
}


def begin(server: Server, fields: dict[str, object], stream_id: str) -> socket.socket:
    body = {"prompt": "x", "stream": True, "stream_id": stream_id, **fields}
    params = {name: body.pop(name) for name in list(body) if name.startswith("sim_")}
    data = json.dumps(body | {"additional_params": params}).encode()
    head = (
        f"POST /api/v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(head.encode() + data)
    return client


def measure_stop(server: Server, upstream: Upstream, phase: str, rounds: int) -> None:
    control = http.client.HTTPConnection("127.0.0.1", server.port)
    closed, ended = [], []
    for number in range(rounds):
        before = upstream.stats()
        client = begin(server, PHASES[phase], f"s{number}")
        if phase == "connecting":
            time.sleep(0.05)
        else:
            upstream.wait("requests", before["requests"] + 1)
            time.sleep(0.02)
        finish = []
        reader = threading.Thread(target=lambda c=client, f=finish: f.append(read_end(c)))
        reader.start()
        stopped = time.monotonic()
        control.request(
            "POST",
            f"/api/v1/completions/stop-stream/s{number}",
            headers={"Authorization": f"Bearer {server.key}"},
        )
        if phase != "connecting":
            closed.append(upstream.wait("aborted", before["aborted"] + 1) - stopped)
        answer = control.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        reader.join(5)
        ended.append(finish[0] - stopped)
        client.close()
    show(f"stop, {phase}: upstream closed", closed)
    show(f"stop, {phase}: client response complete", ended)


def measure_gone(server: Server, upstream: Upstream, phase: str, rounds: int) -> None:
    closed = []
    for number in range(rounds):
        before = upstream.stats()
        client = begin(server, PHASES[phase], f"g{number}")
        upstream.wait("requests", before["requests"] + 1)
        # The gateway looks for disconnected clients once a second. Spread the disconnects over it.
        time.sleep(0.02 + 0.9 * (number / rounds))
        gone = time.monotonic()
        client.close()
        closed.append(upstream.wait("aborted", before["aborted"] + 1) - gone)
    show(f"client gone, {phase}: upstream closed", closed)


def read_end(client: socket.socket) -> float:
    """Read the response to its end. Return the monotonic time at which it was complete."""
    data = b""
    while not (data.endswith((b"0\r\n\r\n", b"}"))):
        data = (data + client.recv(65536))[-4096:]
    return time.monotonic()


def show(what: str, seconds: list[float]) -> None:
    if seconds:
        ms = sorted(1000 * value for value in seconds)
        p50, p99 = statistics.median(ms), ms[min(len(ms) - 1, int(0.99 * len(ms)))]
        print(f"{what:45} n {len(ms):4}  p50 {p50:7.1f}  p99 {p99:7.1f}  max {ms[-1]:7.1f} ms")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder, blackhole() as dead:
        build(Path(folder))
        upstream = Upstream(Path(folder))
        rows = "".join(
            f'[providers.{name}]\nbase_url = "{url}"\ncompletions = true\n'
            for name, url in (("sim", f"http://127.0.0.1:{upstream.port}/v1"), ("dead", dead))
        )
        try:
            with Server(rows) as server:
                for phase in PHASES:
                    measure_stop(server, upstream, phase, rounds)
                for phase in ("before headers", "silent", "flowing"):
                    measure_gone(server, upstream, phase, max(1, rounds // 10))
        finally:
            upstream.process.terminate()
            upstream.process.wait()


if __name__ == "__main__":
    main()
