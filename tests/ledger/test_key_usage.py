"""Tests of ledger/key_usage.py: what keys spent and when they were used, on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, delete

from ledger.entries import Budget
from ledger.key_usage import KeySpending, by_key
from ledger.schema import requests
from tests.support.rows import at, connected, open_row, settled_row

TODAY = "2026-03-15"


@pytest.fixture
def connection(ledger_url: str) -> Iterator[Connection]:
    with connected(ledger_url) as found:
        yield found


@pytest.fixture
def filled(connection: Connection) -> Connection:
    settled_row(connection, "2026-02-28T23:59:59", cost=1)
    settled_row(connection, "2026-03-01T00:00:00", cost=10)
    settled_row(connection, "2026-03-15T00:00:00", cost=100, model="n")
    settled_row(connection, "2026-03-15T08:00:00", cost=None)
    settled_row(connection, "2026-03-14T08:00:00", cost=2**61, key_id="key_b")
    open_row(connection, "2026-03-15T09:00:00", key_id="key_b")
    open_row(connection, "2026-03-15T10:00:00", key_id="key_c")
    return connection


def test_each_key_has_its_sums_and_its_latest_call(filled: Connection) -> None:
    assert by_key(filled, TODAY) == {
        "key_a": KeySpending(111, 110, 100, 0, at("2026-03-15T08:00:00")),
        "key_b": KeySpending(2**61, 2**61, 0, 0, at("2026-03-15T09:00:00")),
        "key_c": KeySpending(0, 0, 0, 0, at("2026-03-15T10:00:00")),
    }
    amounts = {type(amount) for usage in by_key(filled, TODAY).values() for amount in usage}
    assert amounts == {int}


def test_one_key_can_be_read(filled: Connection) -> None:
    assert list(by_key(filled, TODAY, "key_b")) == ["key_b"]
    assert by_key(filled, TODAY, "key_none") == {}


def test_after_pruning_the_last_day_remains(filled: Connection) -> None:
    filled.execute(delete(requests))
    found = by_key(filled, TODAY)
    assert found["key_a"].last_used_us == at("2026-03-15T00:00:00")
    assert found["key_a"].total_nano == 111


@pytest.mark.parametrize(
    ("budget", "spent", "left"),
    [
        (None, 111, None),
        (Budget(200), 111, 84),
        (Budget(200, "2026-03-01"), 110, 85),
        (Budget(200, TODAY), 100, 95),
        (Budget(50, TODAY), 100, 0),
    ],
)
def test_what_is_left_counts_the_budgets_period_and_reservations(
    budget: Budget | None, spent: int, left: int | None
) -> None:
    usage = KeySpending(111, 110, 100, 5, 0)
    assert (usage.spent(budget, TODAY), usage.left(budget, TODAY)) == (spent, left)


def test_on_the_first_day_of_a_month_both_periods_are_the_same_day() -> None:
    usage = KeySpending(9, 3, 3, 0, 0)
    assert usage.spent(Budget(5, "2026-03-01"), "2026-03-01") == 3
