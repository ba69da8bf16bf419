"""Tests of ledger/refusals.py: counts of refused calls, batched, on both databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect, select

from errors import (
    InsufficientCredits,
    InvalidRequest,
    ModelForbidden,
    SluiceError,
    StreamExists,
    Unavailable,
    limit_details,
)
from ledger import refusals as module
from ledger import schema
from ledger.database import Link, database_url
from ledger.ledger import Ledger
from ledger.refusals import REASONS, RefusedCalls, ledger_away, reason_of, refused, write
from ledger.schema import day_of, now_us, refusals
from ledger.usage import Scope
from quota.quota import limited
from streams.registry import too_many, too_many_of_key
from tests.support.ledgers import Outage, a_ledger
from tests.support.pace import HANG_S
from tests.support.rows import connected

REQUESTS, TOKENS = "rate_limited:requests", "rate_limited:tokens"


@pytest.fixture
def connection(ledger_url: str) -> Iterator[Connection]:
    with connected(ledger_url) as found:
        yield found


def soon(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + HANG_S
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def written(url: str) -> dict[tuple[str, str], int]:
    with connected(url) as connection:
        return refused(connection, Scope())


# Reasons


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (limited("requests", "3 requests per minute", 3, 5), REQUESTS),
        (limited("tokens", "3 tokens per hour", 3, 5), TOKENS),
        (too_many_of_key(3), "rate_limited:concurrency"),
        (ModelForbidden("no"), "model_forbidden"),
        (
            InsufficientCredits("no", details={"limit_type": "budget"}),
            "insufficient_credits:budget",
        ),
        (limited("provider", "x", 3, 5), None),
        (StreamExists("a"), "stream_exists"),
        (too_many(), "unavailable:capacity"),
        (ledger_away(), "unavailable:ledger"),
        (Unavailable("no", lacks="limits"), "unavailable:limits"),
        (Unavailable("no call was refused"), None),
        (InvalidRequest("no"), None),
        (InvalidRequest("no", details=limit_details("requests", 1, 1)), None),
    ],
)
def test_a_refusal_has_a_reason_that_names_the_limit(
    error: SluiceError, reason: str | None
) -> None:
    assert reason_of(error) == reason
    assert reason is None or reason in REASONS


# The table


def test_counts_add_up_by_key_day_and_reason(connection: Connection) -> None:
    write(connection, {("key_a", "2026-01-01", REQUESTS): 2, ("key_a", "2026-01-02", REQUESTS): 3})
    write(connection, {("key_a", "2026-01-01", REQUESTS): 5, ("key_a", "2026-01-01", TOKENS): 1})
    write(connection, {("key_b", "2026-01-03", REQUESTS): 1})
    write(connection, {})
    everything = refused(connection, Scope())
    assert list(everything.items()) == [
        (("key_a", REQUESTS), 10), (("key_a", TOKENS), 1), (("key_b", REQUESTS), 1),
    ]  # fmt: skip
    assert {type(count) for count in everything.values()} == {int}
    assert refused(connection, Scope("key_b")) == {("key_b", REQUESTS): 1}
    assert refused(connection, Scope("key_a", "2026-01-02")) == {("key_a", REQUESTS): 3}
    assert refused(connection, Scope(None, None, "2026-01-01")) == {
        ("key_a", REQUESTS): 7, ("key_a", TOKENS): 1,
    }  # fmt: skip
    assert refused(connection, Scope("key_c")) == {}


def test_an_older_ledger_gets_the_table_that_a_new_one_has(connection: Connection) -> None:
    def shape() -> object:
        look = inspect(connection)
        columns = [(c["name"], str(c["type"]), c["nullable"]) for c in look.get_columns("refusals")]
        return columns, look.get_pk_constraint("refusals")["constrained_columns"]

    new = shape()
    refusals.drop(connection)
    schema.add_refusals(connection)
    assert shape() == new
    write(connection, {("key_a", "2026-01-01", REQUESTS): 2})


# The counts of a process


def test_counts_of_many_threads_are_complete(ledger_url: str) -> None:
    with connected(ledger_url):
        pass
    link = Link(ledger_url, writes=True)
    found = RefusedCalls(link)

    def add() -> None:
        for _ in range(2000):
            found.add("key_a", REQUESTS)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        found.flush(at_once=True, paused=False)
    found.flush(at_once=True, paused=False)
    link.close()
    assert written(ledger_url) == {("key_a", REQUESTS): 8000}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.01)
    monkeypatch.setattr("ledger.ledger.LOOK_S", 0.02)
    monkeypatch.setattr("ledger.ledger.RETRY_S", 0.02)


@pytest.mark.usefixtures("quick")
def test_refused_calls_are_written_soon(ledger_url: str) -> None:
    with a_ledger(ledger_url) as ledger:
        for _ in range(3):
            ledger.refused("key_a", REQUESTS)
        assert soon(lambda: written(ledger_url) == {("key_a", REQUESTS): 3})
        with connected(ledger_url) as connection:
            days = connection.execute(select(refusals.c.day)).scalars().all()
        assert list(days) == [day_of(now_us())]


def test_refused_calls_cost_no_write_until_the_flush(tmp_path: Path) -> None:
    url = database_url(None, tmp_path / "sluice.db")
    ledger = Ledger(url)
    ledger.start()
    assert soon(lambda: ledger._refused._due > time.monotonic())
    for _ in range(5000):
        ledger.refused("key_a", REQUESTS)
    assert written(url) == {}
    ledger.close()
    assert written(url) == {("key_a", REQUESTS): 5000}
    ledger.refused("key_a", REQUESTS)  # after the shutdown: not counted, and no error


@pytest.mark.usefixtures("quick")
def test_counts_survive_while_the_database_is_unavailable(tmp_path: Path) -> None:
    url = database_url(None, tmp_path / "sluice.db")
    with a_ledger(url) as ledger:
        ledger.start()
        outage = Outage(ledger._writer)
        ledger.refused("key_a", REQUESTS)
        assert soon(lambda: outage.tries > 0)
        ledger.refused("key_a", REQUESTS)
        outage.on = False
        assert soon(lambda: written(url) == {("key_a", REQUESTS): 2})
