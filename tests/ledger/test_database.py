"""Tests of ledger/database.py: the URL, and a connection that recovers when it breaks."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from config import ConfigError
from ledger import database
from ledger.database import DatabaseAway, Link, database_url, directly, failure_text, make_engine
from tests.support.ledgers import at_once, break_after_commit

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("postgres://u:p@h:5432/d", "postgresql+psycopg://u:p@h:5432/d"),
        ("postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql+psycopg://h/d", "postgresql+psycopg://h/d"),
        (" postgres://h/d?sslmode=require\n", "postgresql+psycopg://h/d?sslmode=require"),
        ("postgresql://u:p%40ss@h/d", "postgresql+psycopg://u:p%40ss@h/d"),
        ("", "sqlite:////data/sluice.db"),
        (None, "sqlite:////data/sluice.db"),
    ],
)
def test_database_url_is_normalized_or_falls_back_to_sqlite(variable: str | None, url: str) -> None:
    assert database_url(variable, Path("/data/sluice.db")) == url


@pytest.mark.parametrize(
    "variable",
    [
        f"mysql://u:{SECRET}@h/d",
        f"postgresql+psycopg2://u:{SECRET}@h/d",
        f"postgres://u:{SECRET}@h:port/d",
        f"u:{SECRET}@h/d",
        "sqlite:///x.db",
    ],
)
def test_invalid_database_url_error_hides_the_password(variable: str) -> None:
    with pytest.raises(ConfigError) as caught:
        database_url(variable, Path("sluice.db"))
    assert str(caught.value).startswith("DATABASE_URL must be postgresql://")
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize("name", ["a b.db", "50%.db", "a#b.db", "ü.db"])
def test_sqlite_file_name_may_hold_special_characters(tmp_path: Path, name: str) -> None:
    link = Link(database_url(None, tmp_path / name), writes=True)
    link.run(lambda connection: connection.execute(text("CREATE TABLE t (x INT)")))
    link.close()
    assert name in {path.name for path in tmp_path.iterdir()}


def test_sqlite_files_are_private_and_commits_are_synchronous(tmp_path: Path) -> None:
    path = tmp_path / "sluice.db"
    link = Link(f"sqlite:///{path}", writes=True)

    def pragmas(connection: Connection) -> list[Any]:
        names = ("journal_mode", "synchronous", "busy_timeout")
        return [connection.execute(text(f"PRAGMA {name}")).scalar() for name in names]

    assert link.run(pragmas) == ["wal", 2, database.BUSY_MS]
    link.run(lambda connection: connection.execute(text("CREATE TABLE t (x INT)")))
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("sluice.db", "sluice.db-wal", "sluice.db-shm"), 0o600)
    link.close()


# Link


@pytest.fixture
def link(ledger_url: str) -> Iterator[Link]:
    found = Link(ledger_url, writes=True)
    found.run(lambda connection: connection.execute(text("CREATE TABLE t (x BIGINT PRIMARY KEY)")))
    yield found
    found.close()


def insert(connection: Connection, number: int = 1) -> int:
    connection.execute(text("INSERT INTO t VALUES (:x)"), {"x": number})
    return number


def count(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM t")).scalar_one())


def test_database_link_runs_work_in_a_transaction(link: Link) -> None:
    assert link.run(insert) == 1

    def half(connection: Connection) -> None:
        insert(connection, 2)
        raise KeyError("half")

    with pytest.raises(KeyError):
        link.run(half)
    assert link.run(count) == 1


@pytest.mark.parametrize(
    "work",
    [
        insert,
        lambda connection: insert(connection, 2**70),
        lambda connection: connection.execute(text("SELECT :x"), {"x": "\ud800"}),
    ],
    ids=["twice", "too large", "no text"],
)
def test_rejected_value_is_not_reported_as_an_outage(link: Link, work: Any) -> None:
    link.run(insert)
    with pytest.raises((DBAPIError, ArithmeticError, ValueError)):
        link.run(work)
    assert link.run(count) == 1


# Statements on the driver's cursor


def test_direct_statements_are_part_of_the_transaction(link: Link) -> None:
    def work(connection: Connection) -> list[Any]:
        insert(connection)
        directly(connection, "UPDATE t SET x = x + 1")
        cursor = directly(connection, "INSERT INTO t SELECT x + 10 FROM t")
        assert cursor.rowcount == 1
        return [row[0] for row in directly(connection, "SELECT x FROM t ORDER BY x").fetchall()]

    assert link.run(work) == [2, 12]
    assert link.run(count) == 2

    def half(connection: Connection) -> None:
        directly(connection, "DELETE FROM t")
        raise KeyError("half")

    with pytest.raises(KeyError):
        link.run(half)
    assert link.run(count) == 2


def test_direct_statement_runs_for_several_parameter_rows(link: Link, ledger_url: str) -> None:
    place = "?" if ledger_url.startswith("sqlite") else "%s"

    def work(connection: Connection) -> int:
        several = [(number,) for number in range(5)]
        directly(connection, f"INSERT INTO t VALUES ({place})", several=several)
        statement = f"DELETE FROM t WHERE x = {place}"
        return int(directly(connection, statement, several=[(1,), (7,), (3,)]).rowcount)

    assert link.run(work) == 2
    assert link.run(count) == 3


def test_direct_statement_failure_raises_integrity_error_or_away(link: Link) -> None:
    link.run(insert)
    with pytest.raises(IntegrityError):
        link.run(lambda connection: directly(connection, "INSERT INTO t VALUES (1)"))
    with pytest.raises(DatabaseAway, match="none"):
        link.run(lambda connection: directly(connection, "SELECT x FROM none"))
    assert link.run(count) == 1


def test_work_is_retried_when_a_direct_statement_finds_a_broken_connection(link: Link) -> None:
    broken: list[Connection] = []

    def work(connection: Connection) -> int:
        if not broken:
            broken.append(connection)
            raw: Any = connection.connection.dbapi_connection
            raw.close()
        directly(connection, "INSERT INTO t VALUES (1)")
        return count(connection)

    assert link.run(work) == 1
    assert broken


def test_outage_error_reports_why_postgres_closed_the_connection(postgres_url: str) -> None:
    link = Link(database_url(postgres_url, Path()))
    end = "SELECT pg_terminate_backend(pg_backend_pid())"
    with pytest.raises(DatabaseAway, match="terminating connection"):
        link.run(lambda connection: directly(connection, end))
    link.close()


def test_database_link_reuses_its_connection(link: Link) -> None:
    seen = [link.run(lambda connection: connection) for _ in range(3)]
    assert seen[0] is seen[1] is seen[2]


def test_database_link_serves_a_single_caller_at_a_time(link: Link) -> None:
    inside, most = [0], [0]
    gate = threading.Lock()

    def work(connection: Connection) -> int:
        with gate:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        found = count(connection)
        with gate:
            inside[0] -= 1
        return found

    assert at_once(*[lambda: link.run(work)] * 16) == [0] * 16
    assert most == [1]


@pytest.mark.parametrize("times", [1, 2])
def test_work_is_retried_once_when_the_connection_breaks(link: Link, times: int) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(connection)
        connection.execute(text("DELETE FROM t"))

    broken = break_after_commit(link, times)
    if times == 1:
        link.run(work)
    else:
        with pytest.raises(DatabaseAway, match="server closed the connection"):
            link.run(work)
    assert [len(tries), len({id(one) for one in tries})] == ([2, 2] if times == 1 else [1, 1])
    assert len(broken) == times, "the second connection breaks while it is prepared"
    assert link.run(count) == 0


def test_outage_message_is_one_line_without_statement_or_password(
    tmp_path: Path,
) -> None:
    for url in (
        f"sqlite:///{tmp_path}/none/x.db",
        f"sqlite:///{tmp_path}",
        f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/d",
    ):
        link = Link(url)
        with pytest.raises(DatabaseAway) as caught:
            link.run(count)
        message = str(caught.value)
        assert message
        assert "\n" not in message
        assert "SELECT" not in message
        assert SECRET not in message
        link.close()


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OSError(), "OSError"),
        (TimeoutError("too\nlate"), "too late"),
        (ConfigError("x" * 900), "x" * 300),
        (DBAPIError("SELECT 1", {}, sqlite3.OperationalError("disk  full")), "disk full"),
    ],
)
def test_every_database_failure_gets_a_short_one_line_message(
    failure: Exception, words: str
) -> None:
    assert failure_text(failure) == words


def test_missing_table_is_reported_as_an_outage(link: Link) -> None:
    link.run(lambda connection: connection.execute(text("DROP TABLE t")))
    with pytest.raises(DatabaseAway):
        link.run(insert)
    link.run(lambda connection: connection.execute(text("CREATE TABLE t (x BIGINT PRIMARY KEY)")))
    assert link.run(insert) == 1


def test_new_connection_is_prepared_and_failed_preparation_is_an_outage(ledger_url: str) -> None:
    prepared: list[Connection] = []
    refused = [True]

    def prepare(connection: Connection) -> None:
        if refused:
            raise ConfigError("not this one")
        prepared.append(connection)

    link = Link(ledger_url, connected=prepare)
    with pytest.raises(DatabaseAway, match="not this one"):
        link.run(lambda _: None)
    refused.clear()
    link.run(lambda _: None)
    link.run(lambda _: None)
    link.close()
    link.run(lambda _: None)
    assert len(prepared) == 2
    link.close()


def test_write_transactions_on_sqlite_do_not_overlap(tmp_path: Path) -> None:
    """Without BEGIN IMMEDIATE, two transactions could both read, and then one could not write."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    first = make_engine(url, writes=True)
    with first.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INT)"))
    links = [Link(url, writes=True) for _ in range(4)]

    def increase(connection: Connection) -> None:
        found = connection.execute(text("SELECT count(*) FROM t")).scalar_one()
        connection.execute(text("INSERT INTO t VALUES (:x)"), {"x": found})

    at_once(*(lambda one=one: [one.run(increase) for _ in range(20)] for one in links))
    with first.begin() as connection:
        found = connection.execute(text("SELECT x FROM t ORDER BY x")).scalars().all()
    assert found == list(range(80))
    for one in links:
        one.close()
    first.dispose()
