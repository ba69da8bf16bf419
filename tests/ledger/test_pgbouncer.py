"""Tests of the ledger through PgBouncer, which mixes the connections of its clients."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ledger.database import Link, database_url, directly
from tests.support import calls
from tests.support.daemons import CantRunError
from tests.support.paths import ROOT
from tests.support.pgbouncer import PgBouncer
from tests.support.sampling import sampled
from tests.support.servers import Server, clean_environment, settings_files

SETTINGS: dict[str, dict[str, object]] = {
    "default": {},
    "a_single_connection": {"default_pool_size": 1},
    "ignored_options": {"ignore_startup_parameters": "options,extra_float_digits"},
    "session": {"pool_mode": "session"},
    "session_ignored_options": {"pool_mode": "session", "ignore_startup_parameters": "options"},
}


@pytest.fixture(params=SETTINGS)
def pooler(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[PgBouncer]:
    try:
        with PgBouncer(postgres_url, **SETTINGS[request.param]) as found:
            yield found
    except CantRunError as error:
        pytest.skip(str(error))


def link_to(pooler: PgBouncer) -> Link:
    return Link(database_url(pooler.url, ROOT), writes=True)


def settings(connection: Connection) -> list[Any]:
    names = ("statement_timeout", "lock_timeout")
    return [connection.execute(text(f"SHOW {name}")).scalar() for name in names]


def test_the_timeouts_hold_in_each_transaction_and_do_not_leak(pooler: PgBouncer) -> None:
    link = link_to(pooler)
    try:
        for _ in range(3):
            assert link.run(settings) == ["30s", "5s"]
    finally:
        link.close()
    with psycopg.connect(pooler.url) as other:
        assert other.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_statements_of_several_links_work_on_mixed_connections(pooler: PgBouncer) -> None:
    first = link_to(pooler)
    first.run(lambda connection: directly(connection, "CREATE TABLE t (x INT)"))
    first.close()  # in session mode it holds a connection of the pool
    failures: list[Exception] = []

    def insert() -> None:
        link = link_to(pooler)

        def work(connection: Connection) -> None:
            directly(connection, "SELECT count(*) FROM t WHERE x = %s", (1,))
            directly(connection, "INSERT INTO t VALUES (%s)", several=[(n,) for n in range(10)])
            connection.execute(text("UPDATE t SET x = :x WHERE x = :x"), {"x": 3})

        try:
            for _ in range(20):
                link.run(work)
        except Exception as failure:  # noqa: BLE001 - the test reports it
            failures.append(failure)
        finally:
            link.close()

    threads = [threading.Thread(target=insert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    last = link_to(pooler)
    assert last.run(lambda found: found.execute(text("SELECT count(*) FROM t")).scalar()) == 800
    last.close()


def test_a_link_recovers_when_the_pooler_restarts(pooler: PgBouncer) -> None:
    link = link_to(pooler)
    assert link.run(settings) == ["30s", "5s"]
    pooler.stop()
    pooler.start()
    assert link.run(settings) == ["30s", "5s"]
    link.close()


def test_a_pooler_that_passes_options_on_is_recognized_by_a_lost_statement(
    postgres_url: str,
) -> None:
    link = Link(database_url(postgres_url, ROOT), writes=True)

    def work(connection: Connection) -> Any:
        driver: Any = connection.connection.driver_connection
        if driver.prepare_threshold is not None:
            directly(connection, "EXECUTE lost")
        return driver.prepare_threshold

    assert link.run(work) is None
    assert link.run(settings) == ["30s", "5s"]
    link.close()


def test_without_a_pooler_statements_are_prepared(postgres_url: str) -> None:
    link = Link(database_url(postgres_url, ROOT), writes=True)

    def work(connection: Connection) -> Any:
        driver: Any = connection.connection.driver_connection
        return driver.prepare_threshold

    assert link.run(work) is not None
    assert link.run(settings) == ["30s", "5s"]
    link.close()


def test_a_refused_connection_is_not_taken_for_a_pooler(postgres_url: str) -> None:
    link = Link(database_url(postgres_url.replace("/test_", "/no_"), ROOT))
    with pytest.raises(Exception, match="does not exist") as raised:
        link.run(settings)
    assert not isinstance(raised.value, DBAPIError)
    link.close()


@pytest.mark.parametrize("pooler", sampled(SETTINGS, "default"), indirect=True)
def test_a_server_records_its_calls_through_pgbouncer(pooler: PgBouncer, tmp_path: Path) -> None:
    with Server(env={"DATABASE_URL": pooler.url}, directory=tmp_path) as server:
        for number in range(12):
            calls.complete(server, model="local/pydoc", max_tokens=3, stream_id=f"s{number}")
        assert calls.get(server, "/api/v1/user/usage").json["total_requests"] == 12
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "wsgi", "usage", "verify"],
        cwd=ROOT,
        env=clean_environment() | settings_files(tmp_path) | {"DATABASE_URL": pooler.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
