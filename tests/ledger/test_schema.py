"""Tests of ledger/schema.py: ids, days, the tables of a new database, and migrations."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, inspect, select, text

from config import ConfigError
from ledger import schema
from ledger.database import make_engine
from ledger.schema import (
    daily,
    day_of,
    facts,
    first_id,
    metadata,
    migrate,
    new_id,
    now_us,
    requests,
)
from tests.support.ledgers import a_ledger, an_entry, at_once, days, rows
from tests.support.pace import HANG_S
from tests.support.paths import ROOT

OF_VERSION_1 = ROOT / "tests" / "fixtures" / "upgrade" / "v1" / "ledger.sql"
MOMENTS = st.integers(0, 7_000_000_000_000_000)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# Ids and days


@given(MOMENTS, MOMENTS)
def test_ids_sort_by_their_time(one: int, other: int) -> None:
    assert (first_id(one) < first_id(other)) == (one < other)
    made = first_id(one) + "0" * 16
    assert first_id(one) <= made < first_id(one + 1)


def test_new_ids_are_unique_and_hold_the_current_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before = now_us()
    found = [new_id() for _ in range(1000)]
    assert len(set(found)) == 1000
    assert all(first_id(before) <= id_ < first_id(now_us() + 1) for id_ in found)
    assert {len(id_) for id_ in found} == {30}


@given(MOMENTS)
@example(1_767_225_599_999_999)
@example(1_767_225_600_000_000)
def test_day_of_gives_the_utc_day(moment: int) -> None:
    assert day_of(moment) == (EPOCH + timedelta(days=moment // 86_400_000_000)).date().isoformat()


# A new database


def version_of(connection: Connection) -> str:
    return str(connection.execute(select(facts.c.value).where(facts.c.name == "schema")).scalar())


def shape(connection: Connection) -> dict[str, Any]:
    """Return the columns, the primary key and the indexes of each table."""
    look = inspect(connection)
    return {
        name: (
            [(c["name"], str(c["type"]), c["nullable"]) for c in look.get_columns(name)],
            look.get_pk_constraint(name)["constrained_columns"],
            sorted((str(i["name"]), i["column_names"]) for i in look.get_indexes(name)),
        )
        for name in look.get_table_names()
    }


def test_an_empty_database_gets_the_tables_once(ledger_url: str) -> None:
    for _ in range(2):
        with a_ledger(ledger_url) as ledger:
            found = ledger.read(shape)
            assert set(found) == set(metadata.tables)
            assert ledger.read(version_of) == str(schema.VERSION)


START = """
import sys
from ledger.ledger import Ledger
from tests.support.ledgers import a_settlement, an_entry
sys.stdin.readline()
book = Ledger(sys.argv[1])
book.start()
entry = an_entry()
assert book.open(entry)
book.settle(a_settlement(entry))
book.close()
"""


@pytest.mark.parametrize("way", ["threads", "processes"])
def test_many_ledgers_may_start_at_once_on_an_empty_database(ledger_url: str, way: str) -> None:
    def thread() -> bool:
        with a_ledger(ledger_url) as ledger:
            ledger.start()
            return ledger.open(an_entry())

    if way == "threads":
        assert at_once(*[thread] * 8) == [True] * 8
    else:
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", START, ledger_url],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.communicate(timeout=HANG_S)[1] for process in processes] == [""] * 4
    assert len(rows(ledger_url)) == (8 if way == "threads" else 4)


# Versions


@pytest.fixture
def old(tmp_path: Path) -> str:
    """Return the URL of a ledger written by the first release."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OF_VERSION_1.read_text(encoding="utf-8"))
    return f"sqlite:///{path}"


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of both tables, read with sqlite3: only the columns of version 1."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return {
            table.name: connection.execute(
                f"SELECT {', '.join(columns[table.name])} FROM {table.name} ORDER BY 1, 2, 3, 4"
            ).fetchall()
            for table in (requests, daily)
        }


def columns_of_version_1() -> dict[str, list[str]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(OF_VERSION_1.read_text(encoding="utf-8"))
        return {
            name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
            for name in ("requests", "daily")
        }


columns = columns_of_version_1()


def test_a_ledger_of_version_1_is_migrated_without_loss(old: str, tmp_path: Path) -> None:
    before = contents(old)
    assert [len(before[name]) for name in ("requests", "daily")] == [6, 5]
    with a_ledger(old) as ledger, a_ledger(f"sqlite:///{tmp_path / 'new.db'}") as fresh:
        ledger.start()
        assert ledger.read(version_of) == str(schema.VERSION)
        assert ledger.read(shape) == fresh.read(shape)
    after = contents(old)
    is_open = columns["requests"].index("ended_us")
    settled = [row for row in before["requests"] if row[is_open] is not None]
    assert after["requests"][:5] == settled
    interrupted = dict(zip(columns["requests"], after["requests"][5], strict=True))
    assert (interrupted["end_reason"], interrupted["cost_nano"]) == ("interrupted", 1650)
    new = {("key_v1made000001", "2026-01-01", "openai", "gpt-4o-mini", "/v1/completions")}
    assert set(before["daily"]) <= set(after["daily"])
    assert {day[:5] for day in set(after["daily"]) - set(before["daily"])} == new
    assert sum(day["requests"] for day in days(old)) == 6
    assert sum(day["cost_nano"] for day in days(old)) == 26_000 + 6_450 + (2**53 + 1) + 1650


def add_note(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE requests ADD COLUMN note TEXT"))


def fill_note(connection: Connection) -> None:
    connection.execute(text("UPDATE requests SET note = 'from ' || provider"))


def fail(connection: Connection) -> None:
    connection.execute(text("DELETE FROM requests"))
    raise ConfigError("this one can't be")


def later(monkeypatch: pytest.MonkeyPatch, *steps: Any) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, *steps))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + len(steps))


def notes(url: str) -> list[str]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return [row[0] for row in connection.execute("SELECT note FROM requests ORDER BY id")]


def test_migrations_run_once_and_in_order(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def count(connection: Connection) -> None:
        done.append(connection.get_transaction())

    later(monkeypatch, add_note, fill_note, count)
    for _ in range(2):
        with a_ledger(old) as ledger:
            ledger.start()
            assert ledger.read(version_of) == str(schema.VERSION)
    assert len(done) == 1
    providers = ("openai", "openai", "local", "sim", "anthropic", "openai")
    assert notes(old) == [f"from {provider}" for provider in providers]
    later(monkeypatch, count)
    with a_ledger(old) as ledger:
        ledger.start()
    assert len(done) == 2


def test_a_failed_migration_leaves_the_ledger_unchanged(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(old)
    with monkeypatch.context() as broken:
        later(broken, add_note, fail)
        with a_ledger(old) as ledger, pytest.raises(ConfigError, match="this one can't be"):
            ledger.start()
    assert contents(old) == before
    with pytest.raises(sqlite3.OperationalError):
        notes(old)
    with a_ledger(old) as ledger:
        ledger.start()


def test_a_ledger_of_a_newer_version_is_rejected_and_left_unchanged(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer, a_ledger(ledger_url) as ledger:
        newer.setattr(schema, "VERSION", schema.VERSION + 1)
        ledger.open(an_entry())
    with a_ledger(ledger_url) as ledger, pytest.raises(ConfigError) as caught:
        ledger.start()
    found, known = schema.VERSION + 1, schema.VERSION
    versions = f"of version {found}, but this Sluice only knows versions up to {known}"
    assert versions in str(caught.value)
    assert [row["ended_us"] for row in rows(ledger_url)] == [None]


def test_migrate_runs_in_the_transaction_of_its_caller(ledger_url: str) -> None:
    engine = make_engine(ledger_url, writes=True)
    with engine.connect() as connection:
        with connection.begin() as transaction:
            migrate(connection)
            transaction.rollback()
        assert inspect(connection).get_table_names() == []
    engine.dispose()


OLD = (
    "CREATE TABLE requests "
    "(id TEXT PRIMARY KEY, ended_us BIGINT, attempts INTEGER NOT NULL) WITHOUT ROWID"
)


@pytest.mark.parametrize("version", [1, 2])
def test_migration_from_version_1_adds_the_columns_of_tries_and_groups(
    tmp_path: Path, version: int
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    with engine.begin() as connection:
        connection.execute(text(OLD))
        connection.execute(text("INSERT INTO requests VALUES ('a', 5, 1)"))
        connection.execute(text("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)"))
        connection.execute(text("INSERT INTO facts VALUES ('schema', '1')"))
    for _ in range(version):  # a second migration is a no-op
        with engine.begin() as connection:
            schema.migrate(connection)
    with engine.begin() as connection:
        names = [column["name"] for column in inspect(connection).get_columns("requests")]
        assert names == ["id", "ended_us", "attempts", "tries", "group_name"]
        found = connection.execute(text("SELECT * FROM requests")).all()
        assert found == [("a", 5, 1, None, None)]
        found = connection.execute(text("SELECT value FROM facts")).scalar_one()
        assert int(found) == schema.VERSION
    engine.dispose()


OF_VERSION_4 = (
    "DROP TABLE group_daily",
    "DROP TABLE key_changes",
    "DROP INDEX requests_open_of_group",
    "ALTER TABLE requests DROP COLUMN group_name",
    "UPDATE facts SET value = '3' WHERE name = 'schema'",
)
"""The statements that take the tables back to version 3."""
OPENING = """
INSERT INTO requests (id, owner, request_id, stream_id, key_id, endpoint, provider, model, streamed,
    byok, started_us, reserved_nano, input_tokens, output_tokens, cache_read_tokens,
    cache_write_tokens, reasoning_tokens, usage_source, cost_nano, attempts)
VALUES ('0000000000000100000000000000aa', 'old', 'r', 's', 'key_1', '/v1/completions', 'sim', 'm',
    TRUE, FALSE, 1, 50, 7, 0, 0, 0, 0, 'estimate', 70, 0)
"""
"""The statement with which a worker of version 3 opens a row."""
CLOSING = """
UPDATE requests SET ended_us = 2, status = 200, end_reason = 'completed', attempts = 1,
    duration_us = 1, latency_us = 1, cost_nano = 90, reserved_nano = 0
WHERE id = '0000000000000100000000000000aa' AND ended_us IS NULL
"""


def test_migration_to_version_4_keeps_the_rows_and_workers_of_version_3_still_write(
    ledger_url: str, tmp_path: Path
) -> None:
    engine = make_engine(ledger_url, writes=True)
    with engine.begin() as connection:
        migrate(connection)
        fresh = shape(connection)
    with engine.begin() as connection:
        for statement in OF_VERSION_4:
            connection.execute(text(statement))
        connection.execute(text(OPENING))
    with engine.begin() as connection:
        migrate(connection)
        assert shape(connection) == fresh
        assert version_of(connection) == str(schema.VERSION)
    with engine.begin() as connection:
        connection.execute(text(CLOSING))
        connection.execute(text(OPENING.replace("00aa'", "00bb'")))
    engine.dispose()
    first, second = rows(ledger_url)
    assert (first["cost_nano"], first["group_name"]) == (90, None)
    assert (second["ended_us"], second["group_name"]) == (None, None)
