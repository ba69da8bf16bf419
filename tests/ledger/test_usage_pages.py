"""Tests of ledger/usage_pages.py: usage of all keys in pages, on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, update

from completion import Usage
from ledger import refusals, usage
from ledger.schema import group_daily, requests
from ledger.usage import Scope, Sums
from ledger.usage_pages import GROUPS, Refusals, page, refused
from ledger.writing import COUNTS
from tests.support.rows import connected, open_row, settle, settled_row

WHOLE = Sums(4, 114, 226, 5_000, 1)


@pytest.fixture
def connection(ledger_url: str) -> Iterator[Connection]:
    with connected(ledger_url) as found:
        yield found


@pytest.fixture
def filled(connection: Connection) -> Connection:
    settled_row(connection, "2026-01-30T23:59:59", (1, 2), 1_000)
    settled_row(connection, "2026-01-31T00:00:00", (10, 20), 2_000, model="n")
    settled_row(connection, "2026-02-01T12:00:00", (100, 200), None, key_id="key_b")
    stopped = open_row(connection, "2026-01-31T12:00:00", key_id="key_c")
    settle(connection, stopped, end_reason="stopped", usage=Usage(3, 4), cost_nano=2_000)
    open_row(connection, "2026-01-31T12:00:00")
    connection.execute(update(requests).values(group_name="team"))
    counts = dict(zip(COUNTS, WHOLE, strict=True))
    row = {"group_name": "team", "day": "2026-01-31"} | counts
    connection.execute(group_daily.insert().values(row))
    return connection


@pytest.mark.parametrize("by", GROUPS)
def test_a_page_has_the_sums_of_all_groups(filled: Connection, by: str) -> None:
    found = page(filled, Scope(), by, 100)
    assert found.total == WHOLE
    assert found.groups == len(found.rows)
    assert Sums.of(sums for _, sums in found.rows) == WHOLE
    assert {type(value) for _, sums in found.rows for value in sums} == {int}
    first = page(filled, Scope(), by, 1)
    assert (first.rows, first.total, first.groups) == (found.rows[:1], WHOLE, found.groups)
    rest = page(filled, Scope(), by, 100, 1)
    assert rest.rows == found.rows[1:]
    assert (rest.total, rest.groups) == (WHOLE, found.groups)
    assert page(filled, Scope("key_nobody"), by, 100).groups == 0
    assert page(filled, Scope(group="team"), by, 100).total == WHOLE
    assert page(filled, Scope(group="nobody"), by, 100).groups == 0


@pytest.mark.thorough
@pytest.mark.parametrize("by", usage.GROUPS)
def test_a_page_lists_what_an_unlimited_report_lists(filled: Connection, by: str) -> None:
    for scope in (
        Scope(),
        Scope("key_a"),
        Scope(None, "2026-01-31"),
        Scope(None, None, "2026-01-30"),
    ):
        assert dict(page(filled, scope, by, 100).rows) == usage.grouped(filled, scope, by)
        assert [name for name, _ in page(filled, scope, by, 100).rows] == [
            *usage.grouped(filled, scope, by)
        ]


def test_end_reasons_are_those_of_the_days_on_which_calls_started(filled: Connection) -> None:
    assert page(filled, Scope(), "end_reason", 9).rows == [
        ("completed", Sums(3, 111, 222, 3_000, 1)),
        ("stopped", Sums(1, 3, 4, 2_000, 0)),
    ]
    for day in ("2026-01-30", "2026-01-31", "2026-02-01"):
        scope = Scope(None, day, day)
        assert page(filled, scope, "end_reason", 9).total == page(filled, scope, "day", 9).total
    scope = Scope("key_c", "2026-01-31", "9999-12-31")
    assert page(filled, scope, "end_reason", 9).rows == [("stopped", Sums(1, 3, 4, 2_000, 0))]


def test_refused_calls_in_pages(connection: Connection) -> None:
    assert refused(connection, Scope(), 10) == Refusals([], 0, 0)
    counts = {("key_a", "2026-01-01", "x"): 2, ("key_a", "2026-01-02", "x"): 3}
    refusals.write(connection, counts | {("key_b", "2026-01-01", "y"): 4})
    rows = [("key_a", "x", 5), ("key_b", "y", 4)]
    assert refused(connection, Scope(), 10) == Refusals(rows, 9, 2)
    assert refused(connection, Scope(), 1) == Refusals(rows[:1], 9, 2)
    assert refused(connection, Scope(), 1, 1) == Refusals(rows[1:], 9, 2)
    assert refused(connection, Scope(), 1, 5) == Refusals([], 9, 2)
    assert refused(connection, Scope("key_b"), 10) == Refusals(rows[1:], 4, 1)
