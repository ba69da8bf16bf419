"""Tests of ledger/upkeep.py: verification of sound and corrupt ledgers, pruning, backups."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, delete, func, select, update

from ledger import upkeep
from ledger.database import database_url
from ledger.schema import daily, facts, first_id, requests
from tests.support.rows import at, connected, entry, open_row, settle, settled_row

NOON, DAY = at("2026-01-31T12:00:00"), "2026-01-31"


@pytest.fixture
def connection(ledger_url: str) -> Iterator[Connection]:
    """Yield a connection to a ledger with three settled rows on two days and an open row."""
    with connected(ledger_url) as found:
        settled_row(found, "2026-01-30T12:00:00")
        settled_row(found, "2026-01-31T12:00:00", cost=None)
        settled_row(found, "2026-01-31T13:00:00", key_id="key_b")
        open_row(found, "2026-01-31T13:00:00", key_id="key_b")
        yield found


def problems(connection: Connection, now: str = "2026-01-31T14:00:00") -> list[str]:
    return upkeep.verify(connection, at(now)).problems


def test_verify_finds_no_problem_in_a_consistent_ledger(connection: Connection) -> None:
    assert upkeep.verify(connection, NOON) == (4, [])


def test_verify_finds_no_problem_in_an_empty_ledger(ledger_url: str) -> None:
    with connected(ledger_url) as connection:
        assert upkeep.verify(connection, NOON) == (0, [])


def test_verify_reports_a_row_open_for_more_than_a_day(connection: Connection) -> None:
    assert problems(connection, "2026-02-01T13:00:00") == []
    (line,) = problems(connection, "2026-02-01T13:00:01")
    assert "key_b has been open since 2026-01-31" in line


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ended_us": NOON - 1}, "ended before it started"),
        ({"status": None}, "without an HTTP status"),
        ({"status": 0}, "without an HTTP status"),
        ({"end_reason": None}, "without a known reason"),
        ({"end_reason": "bored"}, "without a known reason"),
        ({"output_tokens": -1}, "a count is negative"),
        ({"cost_nano": -1}, "a count is negative"),
        ({"attempts": -1}, "a count is negative"),
        ({"cache_read_tokens": 5, "cache_write_tokens": 4}, "more cached tokens than input tokens"),
        ({"reasoning_tokens": 3}, "more reasoning tokens than output tokens"),
        ({"usage_source": "dream"}, "no known source"),
        ({"reserved_nano": 1}, "still reserves part of a budget"),
        ({"duration_us": None}, "without its durations"),
        ({"latency_us": None}, "without its durations"),
        ({"first_event_us": -1}, "a duration is negative"),
        ({"latency_us": 1_500_001}, "exceeds its duration"),
        ({"first_event_us": 1_500_001}, "exceeds its duration"),
        ({"started_us": at("2026-01-30T22:59:59")}, "its id doesn't match"),
    ],
)
def test_verify_reports_a_row_with_impossible_values(
    connection: Connection, values: dict[str, Any], says: str
) -> None:
    one = (requests.c.started_us == NOON) & (requests.c.key_id == "key_a")
    assert connection.execute(update(requests).where(one).values(values)).rowcount == 1
    assert says in problems(connection)[0]


@pytest.mark.parametrize(
    "values",
    [
        {"first_event_us": None},
        {"latency_us": 1_500_000},
        {"end_reason": "interrupted", "status": 500},
        {"cache_read_tokens": 8, "reasoning_tokens": 2},
    ],
)
def test_verify_accepts_a_row_with_unusual_but_possible_values(
    connection: Connection, values: dict[str, Any]
) -> None:
    connection.execute(update(requests).where(requests.c.started_us == NOON).values(values))
    assert problems(connection) == []


def test_verify_reports_daily_sums_that_differ_from_the_rows(connection: Connection) -> None:
    one = (daily.c.day == DAY) & (daily.c.key_id == "key_b")
    connection.execute(update(daily).where(one).values(cost_nano=1, requests=3))
    (line,) = problems(connection)
    where, _, what = line.partition(": the daily sums differ from the rows by: ")
    assert where == "2026-01-31, key_b, sim/m, /api/v1/completions"
    assert what == "requests +2, cost_nano -999"


def test_verify_reports_rows_without_sums_and_sums_without_rows(connection: Connection) -> None:
    connection.execute(delete(daily).where(daily.c.day == DAY, daily.c.key_id == "key_a"))
    connection.execute(delete(requests).where(requests.c.id < first_id(at("2026-01-31T00:00:00"))))
    without_rows, without_sums = problems(connection)
    assert without_rows.startswith("2026-01-30, key_a, ")
    assert "requests +1" in without_rows
    assert without_sums.startswith("2026-01-31, key_a, ")
    assert "unpriced -1" in without_sums


def test_verify_reports_a_negative_daily_sum_after_pruning(connection: Connection) -> None:
    assert upkeep.prune(connection, at("2026-02-01T00:00:00"), 10) == 3
    connection.execute(update(daily).where(daily.c.key_id == "key_b").values(cost_nano=-1))
    (line,) = problems(connection)
    assert line == "A daily sum is negative: key_b, 2026-01-31, sim, m, /api/v1/completions."


def test_a_request_counts_on_the_day_of_its_start_and_not_of_its_id(ledger_url: str) -> None:
    midnight = at("2026-01-31T00:00:00")
    with connected(ledger_url) as connection:
        for start in (midnight - 1, midnight):
            for moment in (midnight - 2, midnight + 2):
                id_ = first_id(moment) + f"{start:016x}"
                made = entry("2026-01-31T00:00:00", id=id_, started_us=start)
                settled_row(connection, "2026-01-31T00:00:00", id=id_, started_us=start)
                settle(connection, made)
        assert upkeep.verify(connection, midnight) == (4, [])
        days = connection.execute(select(daily.c.day, daily.c.requests).order_by(daily.c.day))
        assert [tuple(row) for row in days] == [("2026-01-30", 2), ("2026-01-31", 2)]
        assert upkeep.prune(connection, midnight, 10) == 1
        assert upkeep.verify(connection, midnight) == (3, [])


def test_verify_lists_only_the_first_of_many_problems(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MAX_PROBLEMS", 2)
    connection.execute(update(requests).values(output_tokens=-1))
    found = problems(connection)
    assert len(found) == 3
    assert found[2] == "There are more."


# Pruning


def ids(connection: Connection) -> list[str]:
    return list(connection.execute(select(requests.c.id).order_by(requests.c.id)).scalars())


def sums(connection: Connection) -> Any:
    return connection.execute(select(func.sum(daily.c.requests), func.count())).one()


def test_prune_deletes_the_oldest_rows_in_batches_and_keeps_the_sums(
    connection: Connection,
) -> None:
    before, kept = at("2026-01-31T12:30:00"), sums(connection)
    rows = ids(connection)
    assert upkeep.count_prunable(connection, before) == 2
    assert upkeep.prune(connection, before, 1) == 1
    assert ids(connection) == rows[1:]
    assert upkeep.pruned_before(connection) == first_id(at("2026-01-30T12:00:00") + 1)
    assert upkeep.prune(connection, before, 1) == 1
    assert upkeep.prune(connection, before, 1) == 0
    assert ids(connection) == rows[2:]
    assert sums(connection) == kept
    assert upkeep.count_prunable(connection, before) == 0
    assert problems(connection) == []


def test_prune_keeps_an_open_row_which_can_still_be_settled(connection: Connection) -> None:
    opened = open_row(connection, "2026-01-01T00:00:00")
    before = at("2026-02-01T00:00:00")
    assert upkeep.prune(connection, before, 10) == 3
    assert upkeep.prune(connection, before, 10) == 0
    assert len(ids(connection)) == 2
    settle(connection, opened)
    assert problems(connection) == []
    assert upkeep.prune(connection, before, 10) == 1


def test_pruned_before_mark_never_moves_back(connection: Connection) -> None:
    opened = open_row(connection, "2026-01-01T00:00:00")
    before = at("2026-01-31T00:00:00")
    assert upkeep.prune(connection, before, 10) == 1
    assert upkeep.pruned_before(connection) == first_id(before)
    settle(connection, opened)
    assert upkeep.prune(connection, at("2026-01-02T00:00:00"), 10) == 1
    assert upkeep.pruned_before(connection) == first_id(before)


def test_prune_that_deletes_nothing_records_nothing(connection: Connection) -> None:
    assert upkeep.prune(connection, at("2026-01-01T00:00:00"), 10) == 0
    assert list(connection.execute(select(facts.c.name)).scalars()) == ["schema"]


# Backups


@pytest.fixture
def live(tmp_path: Path) -> Path:
    path = tmp_path / "it's #1.db"
    with connected(database_url(None, path)) as connection:
        settled_row(connection, "2026-01-30T12:00:00")
    return path


def test_backup_holds_the_committed_rows_and_is_private(live: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    with connected(database_url(None, live)) as connection:
        settled_row(connection, "2026-01-31T12:00:00")  # not committed yet, so not in the copy
        upkeep.backup(live, target)
    assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == ["copy.db"]
    with connected(database_url(None, target)) as connection:
        assert upkeep.verify(connection, NOON) == (1, [])
    with connected(database_url(None, live)) as connection:
        assert upkeep.verify(connection, NOON) == (2, [])


def test_backup_never_overwrites_a_file(live: Path, tmp_path: Path) -> None:
    for target in (tmp_path / "copy.db", tmp_path / "link.db"):
        if target.name == "link.db":
            target.symlink_to("nowhere")
        else:
            target.write_text("mine")
        with pytest.raises(FileExistsError):
            upkeep.backup(live, target)
    assert (tmp_path / "copy.db").read_text() == "mine"


def test_failed_backup_leaves_no_file(tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(sqlite3.Error):
        upkeep.backup(source, tmp_path / "copy.db")
    with pytest.raises(sqlite3.Error):
        upkeep.backup(tmp_path / "nothing", tmp_path / "copy.db")
    with pytest.raises(FileNotFoundError):
        upkeep.backup(source, tmp_path / "nowhere" / "copy.db")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
