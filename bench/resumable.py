"""The cost of a resumable stream beside a plain one, in one server and in turn."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench.compare import SCENARIOS
from bench.machine import Upstream, cpu, gateway, load

KINDS: dict[str, dict[str, Any]] = {"plain": {}, "resumable": {"resumable": True}}


def cost(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return the CPU microseconds per event, by scenario and kind of stream, and their ratio."""
    seen: dict[tuple[str, str], list[float]] = {}
    with Upstream(folder) as upstream, gateway(upstream.rows, SLUICE_REPLAY_S="5") as server:
        load(folder, server.port, 16, 1, 0.2, server.key, model="sim/sim-1")
        for _ in range(rounds):
            for scenario in ("burst", "many"):
                connections, seconds, warm, body = SCENARIOS[scenario]
                for kind, asked in KINDS.items():
                    done, used = upstream.stats()["tokens"], cpu(server.pid)
                    load(
                        *(folder, server.port, connections, seconds, warm, server.key),
                        **body | asked | {"model": "sim/sim-1"},
                    )
                    events = upstream.stats()["tokens"] - done
                    each = (cpu(server.pid) - used) / max(1, events) * 1e6
                    seen.setdefault((scenario, kind), []).append(each)
                    print(f"{scenario} {kind:10} {each:6.1f} us per event", flush=True)
    found: dict[str, dict[str, float]] = {}
    for (scenario, kind), several in seen.items():
        found.setdefault(scenario, {})[kind] = statistics.median(several)
    for scenario, by in found.items():
        pairs = zip(seen[scenario, "plain"], seen[scenario, "resumable"], strict=True)
        by["ratio"] = statistics.median(resumable / plain for plain, resumable in pairs)
    return found
