"""The cost of a resumable stream beside a plain one, in one server and in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.compare import SCENARIOS
from bench.machine import Upstream, cpu, gateway, load
from tests.support.redis_server import RedisServer

KINDS: dict[str, dict[str, Any]] = {"plain": {}, "resumable": {"resumable": True}}


class Cost(NamedTuple):
    """CPU microseconds per event of a scenario: medians over the rounds."""

    plain: float
    resumable: float
    ratio: float
    """The median of the rounds' ratios, resumable to plain."""
    redis_plain: float = 0.0
    """Those of Redis itself, for plain streams."""
    redis_resumable: float = 0.0


def cost(folder: Path, rounds: int, *, shared: bool = False) -> dict[str, dict[str, float]]:
    """Return the cost of each scenario, by the fields of Cost. Redis' own is there if it is shared.

    Args:
        shared: whether the server has a Redis, to which it writes its resumable streams.
    """
    seen: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        env = {"SLUICE_REPLAY_S": "5"}
        redis = stack.enter_context(RedisServer()) if shared else None
        if redis is not None:
            env["REDIS_URL"] = redis.url
        upstream = stack.enter_context(Upstream(folder))
        server = stack.enter_context(gateway(upstream.rows, **env))
        load(folder, server.port, 16, 1, 0.2, server.key, model="sim/sim-1")
        for _ in range(rounds):
            for scenario in ("burst", "many"):
                connections, seconds, warm, body = SCENARIOS[scenario]
                for kind, asked in KINDS.items():
                    numbers = (server.port, connections, seconds, warm, server.key)
                    fields = body | asked | {"model": "sim/sim-1"}
                    run = partial(load, folder, *numbers, **fields)
                    each = per_event(run, upstream, server.pid, redis)
                    seen.setdefault((scenario, kind), []).append(each)
                    print(f"{scenario} {kind:10} {each[0]:6.1f} us per event", end="")
                    print(f", {each[1]:.2f} in Redis" if shared else "", flush=True)
    return {
        scenario: {
            name: value
            for name, value in summed_up(seen, scenario)._asdict().items()
            if shared or not name.startswith("redis_")
        }
        for scenario in ("burst", "many")
    }


def per_event(
    run: Callable[[], object], upstream: Upstream, pid: int, redis: RedisServer | None
) -> tuple[float, float]:
    """Run a load. Return the CPU microseconds per event of the server, and of Redis."""
    pids = [pid, *([] if redis is None else [redis.pid])]
    done, used = upstream.stats()["tokens"], [cpu(pid) for pid in pids]
    run()
    events = max(1, upstream.stats()["tokens"] - done)
    each = [(cpu(pid) - before) / events * 1e6 for pid, before in zip(pids, used, strict=True)]
    return each[0], sum(each[1:])


def summed_up(seen: dict[tuple[str, str], list[tuple[float, float]]], scenario: str) -> Cost:
    plain, resumable = seen[scenario, "plain"], seen[scenario, "resumable"]
    ratios = [kept / left for (kept, _), (left, _) in zip(resumable, plain, strict=True)]
    medians = [
        statistics.median(column)
        for rounds in (plain, resumable)
        for column in zip(*rounds, strict=True)
    ]
    return Cost(medians[0], medians[2], statistics.median(ratios), medians[1], medians[3])
