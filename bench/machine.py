"""Shared parts of the benchmarks: the simulated upstream, the load, CPU time and memory.

CPU time is the kernel's figure for all processes of a system. On a busy machine it stays
comparable; throughput and latency don't.
"""

from __future__ import annotations

import http.client
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.servers import Server, free_port

BENCH = ROOT / "bench"
ASKED = "Write a haiku about programming:"
SAMPLING = {"max_tokens": 100, "temperature": 0.8}
PROMPT = {"prompt": ASKED, **SAMPLING}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": PROMPT,
    "/v1/chat/completions": {"messages": [{"role": "user", "content": ASKED}], **SAMPLING},
}
"""The fields of a request, by its path."""
CODER = "sim/qwen2.5-coder-7b"
"""A model that gets a suffix by its family's template."""


def build(folder: Path) -> None:
    if shutil.which("gcc") is None:
        sys.exit("The benchmarks need gcc (Debian: sudo apt install gcc).")
    for name in ("simllm", "simload"):
        subprocess.run(["gcc", "-O2", "-w", "-o", folder / name, BENCH / f"{name}.c"], check=True)


class Upstream:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.process = subprocess.Popen([folder / "simllm", str(self.port)])
        time.sleep(0.3)
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port)

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def stats(self) -> dict[str, int]:
        self._connection.request("GET", "/stats")
        found: dict[str, int] = json.load(self._connection.getresponse())
        return found

    def wait(self, name: str, least: int, seconds: float = 10) -> float:
        """Wait until a counter reaches `least`. Return the monotonic time at which it did.

        Raises:
            TimeoutError: The counter is still lower after `seconds`.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.stats()[name] >= least:
                return time.monotonic()
            time.sleep(0.0005)
        raise TimeoutError(f"{name} didn't reach {least} within {seconds} s")

    @property
    def rows(self) -> str:
        """The text of a sluice.toml with this upstream and a price, so that calls have a cost."""
        return (
            f'[providers.sim]\nbase_url = "http://127.0.0.1:{self.port}/v1"\ncompletions = true\n'
            'fim = "template"\n'
            '[prices."sim/sim-1"]\ninput_per_mtok = 1.0\noutput_per_mtok = 2.0\n'
            f'[prices."{CODER}"]\ninput_per_mtok = 1.0\noutput_per_mtok = 2.0\n'
        )


def gateway(rows: str, *, root: Path | None = None, **env: str) -> Server:
    """Return a server whose key has all limits and a budget.

    They are so high that no request is refused, but the cost of counting is measured too.
    """
    server = Server(rows, env=env, root=root)
    high = {"requests_per_minute": 10**9, "tokens_per_hour": 10**9, "budget_usd": 1e6}
    server.key = server.add_key("limited", **high)
    return server


def load(
    folder: Path,
    port: int,
    connections: int,
    seconds: float,
    warm: float,
    key: str,
    *,
    path: str = "/v1/completions",
    headers: Iterable[str] = (),
    **body: Any,
) -> dict[str, Any]:
    """Run the load generator and return its measurements.

    Args:
        seconds: The length of the measurement, after the warm-up.
        warm: Seconds of warm-up, which aren't measured.
        headers: More headers of each request, such as "name: value".
    """
    command: list[str | Path] = [
        *(folder / "simload", str(port), path, "-c", str(connections)),
        *("-d", str(seconds), "-w", str(warm), "-b", json.dumps(BODIES[path] | body), "-k", key),
        *chain.from_iterable(("-H", header) for header in headers),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if not done.stdout.startswith("{"):
        raise RuntimeError(done.stdout + done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu(pid: int) -> float:
    """Return the CPU seconds that a process and its running descendants have used."""
    total = 0
    for process in tree(pid):
        try:
            for thread in Path(f"/proc/{process}/task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0])
        except OSError:
            continue
    return total / 1e9


def memory(pid: int) -> float:
    """Return the megabytes of a process and its descendants (PSS: shared pages are divided)."""
    total = 0
    for process in tree(pid):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def described() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    parts = [
        f"{len(names)} x {names[0] if names else platform.machine()}",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in ("flask", "gunicorn", "gevent", "requests")),
    ]
    return ", ".join(parts)


def commit() -> str:
    """Return the short id of the checkout's commit, with a + if files were changed since."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
