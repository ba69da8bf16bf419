"""Direct access to a ledger's database, and checks of its rows.

- Nothing here uses Sluice's code, so the checks are independent of it.
- A place is the path of a SQLite file or the URL of a Postgres database.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from tests.support.pace import HANG_S
from tests.support.servers import Server

Place: TypeAlias = Path | str
Row: TypeAlias = dict[str, Any]

SUMS = ("input_tokens", "output_tokens", "cost_nano")
SETTLED = ("status", "end_reason", "duration_us", "latency_us")


def ledger_of(server: Server) -> Path:
    return server.directory / "sluice.db"


def query(place: Place, statement: str) -> list[Row]:
    if isinstance(place, Path):
        with closing(
            sqlite3.connect(f"{place.as_uri()}?mode=ro", uri=True, timeout=HANG_S)
        ) as file:
            file.row_factory = sqlite3.Row
            return [dict(row) for row in file.execute(statement)]
    import psycopg
    from psycopg.rows import dict_row

    with psycopg.connect(place, row_factory=dict_row) as connection:
        return connection.execute(statement.encode()).fetchall()


def rows(place: Place) -> list[Row]:
    """Return all rows in the order of their ids, which is chronological."""
    return query(place, "SELECT * FROM requests ORDER BY id")


def row_of(place: Place, request_id: str) -> Row:
    """Return the row with a request id. There must be exactly one."""
    return by_request(rows(place))[request_id]


def open_rows(place: Place) -> list[Row]:
    return query(place, "SELECT * FROM requests WHERE ended_us IS NULL")


def by_request(found: Iterable[Row]) -> dict[str, Row]:
    """Return rows by request id. Fail if an id occurs twice."""
    found = list(found)
    counted = Counter(row["request_id"] for row in found)
    assert [id_ for id_, count in counted.items() if count > 1] == []
    return {row["request_id"]: row for row in found}


def spent(place: Place, key_id: str) -> int:
    """Return the cost of a key's requests in nano-dollars."""
    return sum(row["cost_nano"] or 0 for row in rows(place) if row["key_id"] == key_id)


def assert_sound(place: Place) -> None:
    """Assert that all rows are settled and complete, and that the daily sums match the rows."""
    if isinstance(place, Path):
        assert query(place, "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    found = rows(place)
    assert [row for row in found if row["ended_us"] is None] == []
    assert [row for row in found if any(row[name] is None for name in SETTLED)] == []
    assert [row for row in found if row["ended_us"] < row["started_us"]] == []
    assert [row for row in found if row["reserved_nano"]] == []
    assert len({row["id"] for row in found}) == len(found)
    assert rolled_up(query(place, "SELECT * FROM daily")) == summed(found)


def rolled_up(found: Iterable[Row]) -> dict[tuple[str, ...], tuple[int, ...]]:
    names = ("requests", *SUMS, "unpriced")
    return {(*common(row), row["day"]): tuple(int(row[name]) for name in names) for row in found}


def summed(found: Iterable[Row]) -> dict[tuple[str, ...], tuple[int, ...]]:
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * (len(SUMS) + 2))
    for row in found:
        day = datetime.fromtimestamp(row["started_us"] / 1e6, UTC).strftime("%Y-%m-%d")
        counts = (1, *(row[name] or 0 for name in SUMS), int(row["cost_nano"] is None))
        place = (*common(row), day)
        sums[place] = [a + b for a, b in zip(sums[place], counts, strict=True)]
    return {place: tuple(counts) for place, counts in sums.items()}


def common(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("key_id", "provider", "model", "endpoint"))
