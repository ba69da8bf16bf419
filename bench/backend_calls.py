"""Count what Redis and Postgres get for a call.

usage: backend_calls.py [--calls 100] [--seconds 4]

A server with two workers uses a Redis and a Postgres of its own. The script sends calls one at a
time and counts each command and each statement: MONITOR shows those of Redis, and the log of
Postgres the others. Then it sends calls 32 at a time and reads the counters of both servers. It
does so for a key without limits, for one with limits and a budget, and for one whose group has
limits and a budget too. Everything listens on loopback. Postgres doesn't wait for its disk.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import psycopg

from bench import machine
from bench.recording import Monitor, of_call, send_call
from bench.report import table
from tests.support.postgres import Postgres
from tests.support.redis_server import RedisServer
from tests.support.servers import Server

WORKERS = 2
AT_ONCE = 32
HIGH = {"requests_per_minute": 10**9, "tokens_per_hour": 10**9, "budget_usd": 1e6}
KINDS: dict[str, dict[str, object]] = {
    "no limits": {},
    "limits and a budget": HIGH,
    "and a group's": HIGH | {"group": "team"},
}
GROUP = "\n".join(["[groups.team]", *(f"{name} = {value}" for name, value in HIGH.items()), ""])
STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]*): (\w+)(?: INTO)?(?: (\w+))?")


class Backends(NamedTuple):
    redis: RedisServer
    postgres: Postgres
    database: str
    """The URL of the ledger's database."""


class Totals(NamedTuple):
    """The counters of both servers."""

    commands: int
    """The commands of clients and of scripts."""
    scripts: int
    received: int
    sent: int
    """Bytes."""
    redis_cpu: float
    """Seconds."""
    transactions: int
    rows: int
    """The rows that were inserted, updated or deleted."""
    wal: int
    """Bytes of the write-ahead log."""
    postgres_cpu: float
    upstream: int
    """The calls that the provider got."""


def totals(backends: Backends, upstream: machine.Upstream) -> Totals:
    with backends.redis.client() as client:
        stats, by_command = client.info("stats"), client.info("commandstats")
    time.sleep(1.5)  # Postgres reports its counters once a second
    with psycopg.connect(backends.database, autocommit=True) as connection:
        found: Any = connection.execute(
            "SELECT xact_commit, tup_inserted + tup_updated + tup_deleted, "
            "pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') FROM pg_stat_database "
            "WHERE datname = current_database()"
        ).fetchone()
    return Totals(
        sum(one["calls"] for one in by_command.values()),
        by_command.get("cmdstat_evalsha", {}).get("calls", 0),
        stats["total_net_input_bytes"],
        stats["total_net_output_bytes"],
        machine.cpu(backends.redis.pid),
        *map(int, found),
        machine.cpu(backends.postgres.pid),
        upstream.stats()["requests"],
    )


def counted(backends: Backends, server: Server, key: str, calls: int) -> tuple[float, ...]:
    """Send calls one at a time. Return what a call sends, on average.

    Returns:
        The commands to Redis, those that its scripts run, and the statements to Postgres.
    """
    begun = len(backends.postgres.output())
    with Monitor(backends.redis) as monitor:
        for _ in range(calls):
            send_call(server, key)
        time.sleep(0.2)
        seen = monitor.take()
    clients = sum(not one.by_script and of_call(one.words) for one in seen)
    # The commands of a script follow it.
    scripts, inside = 0, False
    for one in seen:
        if one.by_script:
            scripts += inside
        else:
            inside = of_call(one.words)
    kinds = statements(backends.postgres.output()[begun:])
    print({kind: f"{count / calls:.2f}" for kind, count in kinds.most_common(9)}, flush=True)
    return clients / calls, scripts / calls, sum(kinds.values()) / calls


def statements(log: str) -> Counter[str]:
    """Return the statements in a log of Postgres, by their verb and their table."""
    return Counter(" ".join(found).strip() for found in STATEMENT.findall(log))


def at_once(
    folder: Path, backends: Backends, upstream: machine.Upstream, server: Server, key: str, s: float
) -> list[str]:
    """Send calls 32 at a time. Return a row of the table."""
    before = totals(backends, upstream)
    machine.load(folder, server.port, AT_ONCE, s, 0.2, key, model="sim/sim-1")
    each = Totals(*(a - b for a, b in zip(totals(backends, upstream), before, strict=True)))
    calls = each.upstream
    return [
        f"{each.commands / calls:.1f}",
        f"{each.scripts / calls:.1f}",
        f"{each.received / calls:,.0f}",
        f"{each.sent / calls:,.0f}",
        f"{each.redis_cpu / calls * 1e6:.0f}",
        f"{each.transactions / calls:.2f}",
        f"{each.rows / calls:.2f}",
        f"{each.wal / calls:,.0f}",
        f"{each.postgres_cpu / calls * 1e6:.0f}",
    ]


def idle(backends: Backends, upstream: machine.Upstream, seconds: float) -> str:
    before, began = totals(backends, upstream), time.monotonic()
    time.sleep(seconds)
    after, span = totals(backends, upstream), time.monotonic() - began
    each = [(a - b) / span / WORKERS for a, b in zip(after, before, strict=True)]
    found = Totals(*each)  # type: ignore[arg-type]
    return (
        f"Without calls, a worker sends Redis {found.commands:.1f} commands a second, of which "
        f"{found.scripts:.1f} are scripts (the others run in them), and Postgres "
        f"{found.transactions:.2f} transactions. Redis' CPU: {found.redis_cpu * 1e6:.0f} us."
    )


def logged(backends: Backends, value: str) -> None:
    backends.postgres.execute(f"ALTER SYSTEM SET log_statement = '{value}'")
    backends.postgres.execute("SELECT pg_reload_conf()")
    time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    single, many = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        machine.build(folder)
        redis, postgres = stack.enter_context(RedisServer()), stack.enter_context(Postgres())
        backends = Backends(redis, postgres, postgres.new_database()[1])
        upstream = stack.enter_context(machine.Upstream(folder))
        env = {"REDIS_URL": redis.url, "DATABASE_URL": backends.database}
        server = machine.gateway(upstream.rows + GROUP, WEB_CONCURRENCY=str(WORKERS), **env)
        keys = {kind: server.add_key(kind, **fields) for kind, fields in KINDS.items()}
        stack.enter_context(server)
        for key in keys.values():
            for _ in range(10):
                send_call(server, key)
        quiet = idle(backends, upstream, options.seconds)
        logged(backends, "all")
        for kind, key in keys.items():
            found = counted(backends, server, key, options.calls)
            single.append((kind, *(f"{value:.1f}" for value in found)))
        logged(backends, "none")
        for kind, key in keys.items():
            row = at_once(folder, backends, upstream, server, key, options.seconds)
            many.append((kind, *row))
        with psycopg.connect(backends.database) as connection, redis.client() as client:
            mine = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid()"
            ).fetchone()
            links = client.info("clients")["connected_clients"] - 1
    print(f"\n{machine.described()}. {WORKERS} workers.\n\nOne call at a time:\n")
    head = ("key with", "Redis: commands", "and in scripts", "Postgres: statements")
    print(table(head, single))
    print(f"{AT_ONCE} calls at a time (with the heartbeats):\n")
    head = (
        *("key with", "Redis: commands, all", "scripts", "bytes in", "bytes out", "CPU, us"),
        *("Postgres: transactions", "rows written", "bytes of WAL", "CPU, us"),
    )
    print(table(head, many))
    print(f"{quiet}\nConnections of all workers: {links} to Redis, {mine and mine[0]} to Postgres.")


if __name__ == "__main__":
    main()
