"""Comparison of Sluice with other systems, under equal load and in front of one upstream.

Each round measures every system once, so that all see the machine in a similar state.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bench.machine import BENCH, Upstream, cpu, gateway, load, memory
from tests.support.daemons import CantRunError
from tests.support.redis_server import RedisServer
from tests.support.servers import free_port

SCENARIOS: dict[str, tuple[int, float, float, dict[str, Any]]] = {
    "unary": (32, 4, 1, {}),
    "burst": (32, 4, 1, {"stream": True, "sim_tokens": 100, "sim_interval_ms": 0}),
    "many": (500, 6, 6, {"stream": True, "sim_tokens": 100, "sim_interval_ms": 50}),
}
"""The number of connections, the measured seconds, the seconds of warm-up before them, and
additional fields of the request body."""
CHAT = "chat-"
SCENARIOS |= {
    f"{CHAT}{name}": (*numbers, body | {"path": "/v1/chat/completions"})
    for name, (*numbers, body) in SCENARIOS.items()
}
BASELINE = "plain-flask"


class Running(NamedTuple):
    pid: int
    port: int
    model: str = "sim/sim-1"
    key: str = "test"


class Figures(NamedTuple):
    """The results of one scenario. Times are in milliseconds unless stated otherwise."""

    cpu: float
    """CPU microseconds per request (of the "unary" scenarios) or per event."""
    rate: float
    """Requests (of the "unary" scenarios) or events per second."""
    first_p50: float
    first_p99: float
    gap_p99: float
    memory: float
    """Megabytes."""
    failed: int


@contextmanager
def sluice(_folder: Path, upstream: Upstream) -> Iterator[Running]:
    """Start one worker with all features on: keys, limits, a budget, ledger, metrics, log."""
    with gateway(upstream.rows) as server:
        yield Running(server.pid, server.port, key=server.key)


@contextmanager
def before(_folder: Path, upstream: Upstream) -> Iterator[Running]:
    """Start one worker from the checkout that $BEFORE names, with this checkout's environment."""
    with gateway(upstream.rows, Path(os.environ["BEFORE"])) as server:
        yield Running(server.pid, server.port, key=server.key)


@contextmanager
def two_workers(_folder: Path, upstream: Upstream) -> Iterator[Running]:
    """Start two such workers, which share streams and counters through a Redis.

    The CPU time of Redis itself isn't measured.
    """
    with RedisServer() as redis:
        shared = {"REDIS_URL": redis.url, "WEB_CONCURRENCY": "2"}
        with gateway(upstream.rows, **shared) as server:
            yield Running(server.pid, server.port, key=server.key)


@contextmanager
def command(
    folder: Path, upstream: Upstream, *words: str, model: str = "sim/sim-1", key: str = "test"
) -> Iterator[Running]:
    """Start a peer.

    $PORT, $UPSTREAM_PORT, $BENCH, $FOLDER and $PEERS are replaced in its configuration and its
    command.
    """
    port = free_port()
    names = {
        "PORT": str(port),
        "UPSTREAM_PORT": str(upstream.port),
        "BENCH": str(BENCH),
        "FOLDER": str(folder),
        "PEERS": os.environ.get("PEERS", ""),
    }
    for source in (BENCH / "peers").iterdir():
        if source.suffix in (".conf", ".yaml"):
            text = source.read_text()
            for name, value in names.items():
                text = text.replace(f"${name}", value)
            (folder / source.name).write_text(text)
    process = subprocess.Popen(
        [string.Template(word).safe_substitute(names) for word in words],
        env=os.environ | names,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
    )
    try:
        yield Running(process.pid, port, model, key)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


GUNICORN = (sys.executable, "-m", "gunicorn", "-c", os.devnull, "--log-level", "error")
PEERS: dict[str, tuple[str, ...]] = {
    "nginx": ("nginx", "-p", "$FOLDER", "-c", "$FOLDER/nginx.conf"),
    BASELINE: (
        *(*GUNICORN, "-b", "127.0.0.1:$PORT", "-w", "2", "-k", "gthread", "--threads", "600"),
        *("--chdir", "$BENCH/peers", "plain_flask:app"),
    ),
    "sglang-router": (
        *("$PEERS/sglang-router/bin/sglang-router", "launch", "--host", "127.0.0.1"),
        *("--port", "$PORT", "--worker-urls", "http://127.0.0.1:$UPSTREAM_PORT"),
        *("--policy", "round_robin", "--log-level", "error", "--disable-health-check"),
    ),
    "litellm": (
        *("$PEERS/litellm/bin/litellm", "--config", "$FOLDER/litellm.yaml"),
        *("--port", "$PORT", "--num_workers", "2", "--host", "127.0.0.1"),
    ),
}
MODELS = {"nginx": "sim-1", "sglang-router": "sim-1"}
KEYS = {"litellm": "sk-test"}


def systems() -> dict[str, Callable[[Path, Upstream], Any]]:
    """Return the functions that start the installed systems, by name. Sluice comes first."""
    found: dict[str, Callable[[Path, Upstream], Any]] = {"sluice": sluice}
    if os.environ.get("BEFORE"):
        found["sluice before"] = before
    try:
        RedisServer()
        found["sluice, 2 workers"] = two_workers
    except CantRunError as error:
        print(f"skipping two workers: {error}", flush=True)
    for name, words in PEERS.items():
        program = words[0].replace("$PEERS", os.environ.get("PEERS", "/nowhere"))
        if shutil.which(program) is None:
            print(f"skipping {name}: not installed", flush=True)
            continue

        def start(
            folder: Path, upstream: Upstream, name: str = name, words: tuple[str, ...] = words
        ) -> Any:
            options = {"model": MODELS.get(name, "sim/sim-1"), "key": KEYS.get(name, "test")}
            return command(folder, upstream, *words, **options)

        found[name] = start
    return found


def compare(folder: Path, rounds: int) -> dict[str, dict[str, Figures]]:
    seen: dict[tuple[str, str], list[Figures]] = {}
    with Upstream(folder) as upstream:
        for number in range(rounds):
            for name, start in systems().items():
                with start(folder, upstream) as running:
                    wait(folder, running)
                    for scenario in SCENARIOS:
                        figures = measure(folder, upstream, running, scenario)
                        seen.setdefault((name, scenario), []).append(figures)
                        print(f"{number + 1} {name:14} {scenario:10} {figures}", flush=True)
    found: dict[str, dict[str, Figures]] = {}
    for (name, scenario), several in seen.items():
        medians = Figures(*(statistics.median(column) for column in zip(*several, strict=True)))
        found.setdefault(name, {})[scenario] = medians
    return found


def wait(folder: Path, running: Running) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            if load(folder, running.port, 1, 0.2, 0.05, running.key, model=running.model)["ok"]:
                break
        except RuntimeError:
            pass
        if time.monotonic() > until:
            raise TimeoutError("a system didn't start within 60 s")
        time.sleep(0.3)
    load(folder, running.port, 16, 1, 0.2, running.key, model=running.model)


def measure(folder: Path, upstream: Upstream, running: Running, scenario: str) -> Figures:
    """Run a scenario against a system.

    CPU time and work are measured over one span, with the work as the upstream counted it. The load
    generator's own rate can't be used: it leaves out the last streams, which still cost CPU time.
    """
    connections, seconds, warm, body = SCENARIOS[scenario]
    work = "requests" if scenario.endswith("unary") else "tokens"
    done, used, began = upstream.stats()[work], cpu(running.pid), time.monotonic()
    seen = load(
        folder, running.port, connections, seconds, warm, running.key, model=running.model, **body
    )
    span = time.monotonic() - began
    used, done = cpu(running.pid) - used, upstream.stats()[work] - done
    return Figures(
        cpu=used / max(1, done) * 1e6,
        rate=done / span,
        first_p50=seen["ttfb_ms"]["p50"],
        first_p99=seen["ttfb_ms"]["p99"],
        gap_p99=seen["gap_ms"]["p99"],
        memory=memory(running.pid),
        failed=seen["non200"] + seen["broken"],
    )
