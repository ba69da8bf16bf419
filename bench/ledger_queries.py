"""Measure how long queries of a large ledger take.

usage: ledger_queries.py [ROWS] [MODELS]     (default: 1,000,000 and 3)
The script fills a SQLite ledger in a temporary directory with a year of requests by 50 keys. Each
key uses MODELS models and one face, but one heavy key has a third of all requests, 12 models and
both faces. The script prints milliseconds (median and worst of 9 runs; verify and backup run once)
and SQLite's query plan of each query.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ledger import schema, upkeep, usage
from ledger.budgets import left_of
from ledger.database import database_url, make_engine
from ledger.entries import Budget
from ledger.usage import Scope
from ledger.writing import COUNTS

ROUNDS = 9
DAYS = 365
DAY_US = upkeep.DAY_US
END = schema.now_us() // DAY_US * DAY_US
START = END - DAYS * DAY_US
KEYS = [f"key_{number:012}" for number in range(50)]
HEAVY = KEYS[25]
MODELS = [(f"provider{number % 4}", f"model-{number}") for number in range(12)]
ENDPOINTS = ("/api/v1/completions", "/v1/completions")
COMMON = {
    "owner": "0" * 32,
    "request_id": "550e8400-e29b-41d4-a716-446655440000",
    "stream_id": "550e8400-e29b-41d4-a716-446655440001",
    "streamed": True,
    "byok": False,
    "reserved_nano": 0,
    "status": 200,
    "end_reason": "completed",
    "error_code": None,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "reasoning_tokens": 0,
    "usage_source": "provider",
    "attempts": 1,
    "duration_us": 900_000,
    "latency_us": 890_000,
    "first_event_us": 200_000,
}


def rows(count: int, models: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(1)
    used = {key: chance.sample(MODELS, models) for key in KEYS} | {HEAVY: MODELS}
    faces = {key: [chance.choice(ENDPOINTS)] for key in KEYS} | {HEAVY: list(ENDPOINTS)}
    for number in range(count):
        started = START + (END - START) * number // count
        key = HEAVY if number % 3 == 0 else chance.choice(KEYS)
        provider, model = chance.choice(used[key])
        tokens = chance.randrange(1, 2000), chance.randrange(1, 2000)
        yield COMMON | {
            "id": schema.first_id(started) + f"{number:016x}",
            "key_id": key,
            "endpoint": chance.choice(faces[key]),
            "provider": provider,
            "model": model,
            "started_us": started,
            "ended_us": started + 900_000,
            "input_tokens": tokens[0],
            "output_tokens": tokens[1],
            "cost_nano": sum(tokens) * 150,
        }


def fill(connection: Connection, count: int, models: int) -> int:
    """Insert the rows and their daily sums. Return the number of daily sums."""
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    batch = []
    for row in rows(count, models):
        place = (row["key_id"], schema.day_of(row["started_us"]), row["provider"], row["model"])
        total = sums[(*place, row["endpoint"])]
        more = (1, row["input_tokens"], row["output_tokens"], row["cost_nano"], 0)
        total[:] = map(sum, zip(total, more, strict=True))
        batch.append(row)
        if len(batch) == 10_000:
            connection.execute(schema.requests.insert(), batch)
            batch.clear()
    if batch:
        connection.execute(schema.requests.insert(), batch)
    names = [*(column.name for column in schema.daily.primary_key), *COUNTS]
    connection.execute(
        schema.daily.insert(),
        [dict(zip(names, (*place, *counts), strict=True)) for place, counts in sums.items()],
    )
    return len(sums)


def questions() -> dict[str, Callable[[Connection], Any]]:
    month = schema.day_of(END - 30 * DAY_US)
    groups = [name for name in usage.GROUPS if name != "key"]
    middle = schema.first_id((START + END) // 2)
    found: dict[str, Callable[[Connection], Any]] = {
        "GET usage, one key, all time": lambda c: usage.summary(c, Scope(HEAVY), groups),
        "GET usage, one key, 30 days": lambda c: usage.summary(c, Scope(HEAVY, month), groups),
    }
    for by in usage.GROUPS:
        found[f"by {by}, one key, all time"] = lambda c, by=by: usage.grouped(c, Scope(HEAVY), by)
        found[f"by {by}, all keys, 30 days"] = lambda c, by=by: usage.grouped(
            c, Scope(None, month), by
        )
        found[f"by {by}, all keys, all time"] = lambda c, by=by: usage.grouped(c, Scope(), by)
    return found | {
        "GET requests, newest 101": lambda c: usage.latest(c, HEAVY, None, 101),
        "GET requests, 101 from the middle": lambda c: usage.latest(c, HEAVY, middle, 101),
        "remaining budget, total": lambda c: left_of(c, HEAVY, Budget(10**12)),
        "remaining budget, month": lambda c: left_of(c, HEAVY, Budget(10**12, month)),
    }


def measure(connection: Connection, name: str, ask: Callable[[Connection], Any]) -> None:
    statements: list[tuple[str, Any]] = []

    def record(*arguments: Any) -> None:
        statements.append((arguments[2], arguments[3]))

    event.listen(connection, "before_cursor_execute", record)
    ask(connection)
    event.remove(connection, "before_cursor_execute", record)
    took = [timed(lambda: ask(connection)) for _ in range(ROUNDS)]
    show(name, took)
    for text, arguments in statements:
        plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + text, arguments)
        for line in dict.fromkeys(step[3] for step in plan):
            if line.startswith(("SCAN", "SEARCH")):
                print(f"{'':36} {line}")


def timed(work: Callable[[], object]) -> float:
    """Run `work` and return the milliseconds that it took."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    models = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sluice.db"
        engine = make_engine(database_url(None, path), writes=True)
        with engine.begin() as connection:
            schema.migrate(connection)
            sums = fill(connection, count, models)
        print(f"{count} rows, {sums} daily sums, {path.stat().st_size / 1e6:.0f} MB\n")
        with engine.begin() as connection:
            for name, ask in questions().items():
                measure(connection, name, ask)
            check = timed(lambda: print(upkeep.verify(connection, END)))
        show("verify", [check])
        show("backup", [timed(lambda: upkeep.backup(path, path.with_name("copy.db")))])
        show("prune, 2,000 rows and the commit", [timed(lambda: prune(engine)) for _ in range(50)])


def show(name: str, took: list[float]) -> None:
    print(f"{name:36} median {statistics.median(took):8.1f}   worst {max(took):8.1f} ms")


def prune(engine: Engine) -> None:
    with engine.begin() as connection:
        upkeep.prune(connection, END - 90 * DAY_US, 2000)


if __name__ == "__main__":
    main()
