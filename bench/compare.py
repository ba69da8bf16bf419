"""Comparison of Sluice with other systems, under equal load and in front of one upstream.

Each round measures every system once, so that all see the machine in a similar state.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from bench.machine import ASKED, BENCH, CODER, Upstream, cpu, gateway, load, memory
from bench.results import BASELINE, Round
from tests.support.daemons import CantRunError
from tests.support.redis_server import RedisServer
from tests.support.servers import Server, free_port

Load: TypeAlias = tuple[int, float, float, dict[str, Any]]

SHAPES: dict[str, Load] = {
    "unary": (32, 4, 1, {}),
    "burst": (32, 4, 1, {"stream": True, "sim_tokens": 100, "sim_interval_ms": 0}),
    "many": (500, 6, 6, {"stream": True, "sim_tokens": 100, "sim_interval_ms": 50}),
}
"""The number of connections, the measured seconds, the seconds of warm-up before them, and
additional fields of the request body."""
KINDS: dict[str, dict[str, Any]] = {
    "": {},
    "chat-": {"path": "/v1/chat/completions"},
    "fim-": {"suffix": "\n    return total\n"},
    "resumable-": {"resumable": True},
}
"""The kinds of calls: what the name of their scenarios begins with, and more fields of the body."""
SCENARIOS: dict[str, Load] = {
    f"{kind}{shape}": (connections, seconds, warm, body | more)
    for shape, (connections, seconds, warm, body) in SHAPES.items()
    for kind, more in KINDS.items()
    if "stream" in body or "resumable" not in more
}
OURS = "sluice"
"""The start of the names of Sluice's systems. Only these have resumable streams."""


def work_of(scenario: str) -> str:
    """Return the upstream's counter of a scenario's work."""
    return "requests" if scenario.endswith("unary") else "tokens"


class Running(NamedTuple):
    pid: int
    port: int
    model: str = "sim/sim-1"
    key: str = "test"
    models: Mapping[str, str] = MappingProxyType({})
    """Other models, by the name of a kind of calls."""
    headers: tuple[str, ...] = ()
    known_fields: bool = False

    def body_of(self, scenario: str) -> dict[str, Any]:
        """Return the fields of a scenario's requests, and the path as a field."""
        kind = next((k for k in KINDS if k and scenario.startswith(k)), "")
        body = {"model": self.models.get(kind, self.model), **SCENARIOS[scenario][-1]}
        if self.known_fields:
            settings = [name for name in body if name.startswith("sim_")]
            asked = " ".join([ASKED, *(f"{name}:{body.pop(name)}" for name in settings)])
            if "path" in body:
                body["messages"] = [{"role": "user", "content": asked}]
            else:
                body["prompt"] = asked
        return body


class Figures(NamedTuple):
    """The results of one scenario. Times are in milliseconds unless stated otherwise."""

    cpu: float
    """CPU microseconds per request (of the "unary" scenarios) or per event."""
    rate: float
    """Requests (of the "unary" scenarios) or events per second."""
    first_p50: float | None
    """None if no call ended in time, as for the next two."""
    first_p99: float | None
    gap_p99: float | None
    memory: float
    """Megabytes."""
    failed: int


FORGETFUL = {"SLUICE_REPLAY_S": "5"}
"""A setting with which the ended resumable streams of a scenario don't fill the memory."""


@contextmanager
def sluice(_folder: Path, upstream: Upstream, root: Path | None = None) -> Iterator[Running]:
    """Start one worker with all features on: keys, limits, a budget, ledger, metrics, log.

    Args:
        root: the checkout to run, with this checkout's environment; None for this one.
    """
    with gateway(upstream.rows, root=root, **FORGETFUL) as server:
        yield ours(server)


@contextmanager
def two_workers(_folder: Path, upstream: Upstream, root: Path | None = None) -> Iterator[Running]:
    """Start two such workers, which share streams and counters through a Redis.

    The CPU time of Redis itself isn't measured.
    """
    with RedisServer() as redis:
        shared = {"REDIS_URL": redis.url, "WEB_CONCURRENCY": "2"}
        with gateway(upstream.rows, root=root, **shared, **FORGETFUL) as server:
            yield ours(server)


def ours(server: Server) -> Running:
    return Running(server.pid, server.port, key=server.key, models={"fim-": CODER})


@contextmanager
def command(folder: Path, upstream: Upstream, peer: Peer) -> Iterator[Running]:
    """Start a peer. Its names are replaced in its configuration, its command and its headers."""
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
        replaced(peer.command, names),
        env=os.environ | names | peer.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
    )
    try:
        headers = tuple(replaced(peer.headers, names))
        asked = (peer.model, peer.key, peer.models, headers, peer.known_fields)
        yield Running(process.pid, port, *asked)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def replaced(words: Iterable[str], names: dict[str, str]) -> list[str]:
    return [string.Template(word).safe_substitute(names) for word in words]


class Peer(NamedTuple):
    """Another system, and how it is started and asked.

    $PORT, $UPSTREAM_PORT, $BENCH, $FOLDER and $PEERS are replaced in its command, in its headers
    and in its configuration, which is a file in the folder `peers`.
    """

    name: str
    command: tuple[str, ...]
    installed: str = ""
    """A file that exists only if the peer is installed; by default its program."""
    model: str = "sim/sim-1"
    key: str = "test"
    models: Mapping[str, str] = MappingProxyType({})
    headers: tuple[str, ...] = ()
    known_fields: bool = False
    """True if it drops fields that it doesn't know. Then the prompt has the settings for the
    simulated provider."""
    env: Mapping[str, str] = MappingProxyType({})


GUNICORN = (sys.executable, "-m", "gunicorn", "-c", os.devnull, "--log-level", "error")
PORTKEY = "$PEERS/portkey/node_modules/@portkey-ai/gateway"
PEERS = (
    Peer(
        "nginx",
        ("nginx", "-p", "$FOLDER", "-c", "$FOLDER/nginx.conf"),
        model="sim-1",
    ),
    Peer(
        BASELINE,
        (
            *(*GUNICORN, "-b", "127.0.0.1:$PORT", "-w", "2", "-k", "gthread", "--threads", "600"),
            *("--chdir", "$BENCH/peers", "plain_flask:app"),
        ),
    ),
    Peer(
        "sglang-router",
        (
            *("$PEERS/sglang-router/bin/sglang-router", "launch", "--host", "127.0.0.1"),
            *("--port", "$PORT", "--worker-urls", "http://127.0.0.1:$UPSTREAM_PORT"),
            *("--policy", "round_robin", "--log-level", "error", "--disable-health-check"),
        ),
        model="sim-1",
        known_fields=True,
    ),
    Peer(
        "litellm",
        (
            *("$PEERS/litellm/bin/litellm", "--config", "$FOLDER/litellm.yaml"),
            *("--port", "$PORT", "--num_workers", "2", "--host", "127.0.0.1"),
            *("--timeout_worker_healthcheck", "90"),  # on a busy machine, a worker starts slowly
        ),
        key="sk-test",
        models={"chat-": "sim/chat"},
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # fetches nothing
    ),
    Peer(
        "portkey",
        ("node", f"{PORTKEY}/build/start-server.js", "--port=$PORT", "--headless"),
        installed=f"{PORTKEY}/build/start-server.js",
        model="sim-1",
        headers=(
            "x-portkey-provider: openai",
            "x-portkey-custom-host: http://127.0.0.1:$UPSTREAM_PORT/v1",
        ),
        known_fields=True,
    ),
)


def version_of(peer: Peer) -> str:
    """Return the installed version of a peer; empty if it isn't known."""
    folder = Path(os.environ.get("PEERS", "/nowhere")) / peer.name
    if peer.name == "nginx":
        done = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=False)
        return done.stderr.strip().rpartition("/")[2]
    if peer.name == "portkey":
        package = folder / "node_modules/@portkey-ai/gateway/package.json"
        return str(json.loads(package.read_text())["version"])
    path = [str(one) for one in folder.glob("lib/python*/site-packages")]
    found = [one.version for one in distributions(path=path) if one.name == peer.name]
    return found[0] if found else ""


class Systems(NamedTuple):
    start: dict[str, Callable[[Path, Upstream], Any]]
    """The functions that start the installed systems, by name. Sluice comes first."""
    versions: dict[str, str]


def systems(only: Sequence[str] = ()) -> Systems:
    """Return the installed systems, and print those that are skipped.

    Args:
        only: the names of the systems; all if empty.
    """
    found: dict[str, Callable[[Path, Upstream], Any]] = {}
    versions = {}
    before = os.environ.get("BEFORE")
    checkouts = {"sluice": None} | ({"sluice before": Path(before)} if before else {})
    found |= {name: partial(sluice, root=root) for name, root in checkouts.items()}
    try:
        RedisServer()
    except CantRunError as error:
        print(f"skipping two workers: {error}", flush=True)
    else:
        for name, root in checkouts.items():
            found[f"{name}, 2 workers"] = partial(two_workers, root=root)
    folder = os.environ.get("PEERS", "/nowhere")
    for peer in PEERS:
        program = peer.command[0].replace("$PEERS", folder)
        installed = Path(peer.installed.replace("$PEERS", folder))
        if shutil.which(program) is None or (peer.installed and not installed.exists()):
            print(f"skipping {peer.name}: not installed (see bench/README.md)", flush=True)
            continue
        found[peer.name] = partial(command, peer=peer)
        versions[peer.name] = version_of(peer)
    if only:
        if unknown := set(only) - set(found):
            sys.exit(f"Not installed, or unknown: {', '.join(sorted(unknown))}.")
        found = {name: start for name, start in found.items() if name in only}
    return Systems(found, versions)


def compare(
    folder: Path,
    rounds: int,
    chosen: Systems,
    *,
    scenarios: Sequence[str] = (),
    scale: float = 1.0,
) -> Iterator[Round]:
    """Yield the figures of each round.

    Args:
        scenarios: their names; all if empty.
        scale: a factor for the length of each scenario.
    """
    wanted = scenarios or list(SCENARIOS)
    with Upstream(folder) as upstream:
        for number in range(rounds):
            found: Round = {}
            for name, start in chosen.start.items():
                with start(folder, upstream) as running:
                    if not started(folder, running):
                        print(f"{number + 1} {name} didn't start within {START_S} s", flush=True)
                        continue
                    for scenario in wanted:
                        if scenario.startswith("resumable-") and not name.startswith(OURS):
                            continue
                        seen = measure(folder, upstream, running, scenario, scale)
                        print(f"{number + 1} {name:17} {scenario:15} {seen}", flush=True)
                        if seen is not None:
                            known = {n: v for n, v in seen._asdict().items() if v is not None}
                            found.setdefault(name, {})[scenario] = known
            yield found


START_S = 300


def started(folder: Path, running: Running) -> bool:
    """Wait until a system serves calls. Return False if it doesn't within START_S."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            if brief_load(folder, running, 1, 0.2, 0.05)["ok"]:
                brief_load(folder, running, 16, 1, 0.2)
                return True
        except RuntimeError:
            pass
        time.sleep(0.3)
    return False


def brief_load(
    folder: Path, running: Running, connections: int, seconds: float, warm: float
) -> dict[str, Any]:
    return load(
        *(folder, running.port, connections, seconds, warm, running.key),
        headers=running.headers,
        model=running.model,
    )


def quiet(upstream: Upstream, seconds: float = 30) -> None:
    """Wait until a slow system has dropped the streams of the last scenario, which would count."""
    until = time.monotonic() + seconds
    while upstream.stats()["active"] and time.monotonic() < until:
        time.sleep(0.1)


def measure(
    folder: Path, upstream: Upstream, running: Running, scenario: str, scale: float = 1.0
) -> Figures | None:
    """Run a scenario against a system. Return None if the system doesn't serve it.

    CPU time and work are measured over one span, with the work as the upstream counted it. The load
    generator's own rate can't be used: it leaves out the last streams, which still cost CPU time.
    """
    connections, seconds, warm, body = SCENARIOS[scenario]
    quiet(upstream)
    before, used, began = upstream.stats(), cpu(running.pid), time.monotonic()
    seen = load(
        *(folder, running.port, connections, seconds * scale, warm * scale, running.key),
        headers=running.headers,
        **running.body_of(scenario),
    )
    span = time.monotonic() - began
    used = cpu(running.pid) - used
    after = upstream.stats()
    done = after[work_of(scenario)] - before[work_of(scenario)]
    if body.get("stream") and done < body["sim_tokens"] * (after["finished"] - before["finished"]):
        print(f"{scenario}: the provider didn't get the length of the streams", flush=True)
        return None
    failed = seen["non200"] + seen["broken"]
    if not done or (failed and not seen["ok"]):
        return None
    first, gap = (seen[name] if seen["ok"] else {} for name in ("ttfb_ms", "gap_ms"))
    return Figures(
        cpu=used / done * 1e6,
        rate=done / span,
        first_p50=first.get("p50"),
        first_p99=first.get("p99"),
        gap_p99=gap.get("p99"),
        memory=memory(running.pid),
        failed=failed,
    )
