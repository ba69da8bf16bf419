"""Tests of ledger/usage.py: sums over the roll-up and the latest rows, on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from ledger import usage
from ledger.usage import GROUPS, Scope, Sums
from tests.support.rows import connected, open_row, settled_row

CHAT = "/v1/completions"


@pytest.fixture
def connection(ledger_url: str) -> Iterator[Connection]:
    """Yield a connection to an empty ledger."""
    with connected(ledger_url) as found:
        yield found


@pytest.fixture
def filled(connection: Connection) -> Connection:
    settled_row(connection, "2026-01-30T12:00:00", (1, 1), 10)
    settled_row(connection, "2026-01-31T00:00:00", (2, 2), 20, endpoint=CHAT)
    settled_row(connection, "2026-01-31T23:59:59.999999", (3, 3), None, model="n/o")
    settled_row(connection, "2026-02-01T00:00:00", (4, 4), 2**61, provider="other")
    settled_row(connection, "2026-02-01T00:00:00", (5, 5), 2**61, key_id="key_b")
    open_row(connection, "2026-02-01T00:00:00")
    return connection


A = "key_a"
CASES = [
    ("day", Scope(A), {
        "2026-01-30": Sums(1, 1, 1, 10),
        "2026-01-31": Sums(2, 5, 5, 20, 1),
        "2026-02-01": Sums(1, 4, 4, 2**61),
    }),
    ("model", Scope(A), {
        "other/m": Sums(1, 4, 4, 2**61), "sim/m": Sums(2, 3, 3, 30), "sim/n/o": Sums(1, 3, 3, 0, 1),
    }),
    ("provider", Scope(A), {"other": Sums(1, 4, 4, 2**61), "sim": Sums(3, 6, 6, 30, 1)}),
    ("endpoint", Scope(A), {
        "/api/v1/completions": Sums(3, 8, 8, 2**61 + 10, 1), CHAT: Sums(1, 2, 2, 20),
    }),
    ("key", Scope(), {"key_a": Sums(4, 10, 10, 2**61 + 30, 1), "key_b": Sums(1, 5, 5, 2**61)}),
    ("provider", Scope(), {"sim": Sums(4, 11, 11, 2**61 + 30, 1), "other": Sums(1, 4, 4, 2**61)}),
    ("day", Scope(A, "2026-01-31"), {
        "2026-01-31": Sums(2, 5, 5, 20, 1), "2026-02-01": Sums(1, 4, 4, 2**61),
    }),
    ("day", Scope(A, None, "2026-01-31"), {
        "2026-01-30": Sums(1, 1, 1, 10), "2026-01-31": Sums(2, 5, 5, 20, 1),
    }),
    ("day", Scope(A, "2026-01-31", "2026-01-31"), {"2026-01-31": Sums(2, 5, 5, 20, 1)}),
    ("day", Scope(A, "2026-02-02"), {}),
    ("day", Scope("key_none"), {}),
]  # fmt: skip


@pytest.mark.parametrize(("by", "scope", "expected"), CASES)
def test_grouped_sums_the_rows_of_a_scope_by_group(
    filled: Connection, by: str, scope: Scope, expected: dict[str, Sums]
) -> None:
    found = usage.grouped(filled, scope, by)
    assert list(found.items()) == list(expected.items())
    assert {type(count) for sums in found.values() for count in sums} <= {int}


def test_summary_equals_the_groups_computed_separately(filled: Connection) -> None:
    for scope in (Scope(), Scope(A), Scope(A, "2026-01-31", "2026-01-31"), Scope("key_none")):
        found = usage.summary(filled, scope, list(GROUPS))
        assert found == {by: usage.grouped(filled, scope, by) for by in GROUPS}
        assert len({Sums.of(rows.values()) for rows in found.values()}) == 1


def test_the_sum_of_no_rows_is_zero() -> None:
    assert Sums.of([]) == Sums()


def test_the_latest_rows_of_a_key_come_newest_first_page_by_page(filled: Connection) -> None:
    settled_row(filled, "2026-02-01T00:00:00", key_id="key_b")
    whole = usage.latest(filled, A, None, 100)
    assert len(whole) == 5
    assert [row["id"] for row in whole] == sorted((row["id"] for row in whole), reverse=True)
    assert [row["ended_us"] is None for row in whole].count(True) == 1
    assert {row["key_id"] for row in whole} == {A}
    pages, before = [], None
    while page := usage.latest(filled, A, before, 2):
        pages.append(len(page))
        before = page[-1]["id"]
    assert pages == [2, 2, 1]


def test_as_json_has_requests_cost_tokens_and_unpriced_requests() -> None:
    assert usage.as_json(Sums(1, 2, 3, 1_500_000_000)) == {
        "requests": 1,
        "cost": 1.5,
        "tokens": {"input": 2, "output": 3, "total": 5},
    }
    assert usage.as_json(Sums(1, unpriced=1))["unpriced_requests"] == 1


def test_as_csv_quotes_text_and_writes_costs_in_dollars() -> None:
    rows = [(["a,b", 'c"d'], Sums(1, 2, 3, 1, 0)), (["é", ""], Sums(0, 0, 0, 12_000_000_001, 7))]
    assert usage.as_csv(["model", "name"], rows) == (
        "model,name,requests,cost_usd,input_tokens,output_tokens,total_tokens,unpriced_requests\r\n"
        '"a,b","c""d",1,0.000000001,2,3,5,0\r\n'
        '"é","",0,12.000000001,0,0,0,7\r\n'
    )


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_csv_cell_is_never_a_formula(first: str) -> None:
    assert usage.csv_text(f'{first}1";x') == f'"\'{first}1"";x"'
    assert usage.csv_text(f"a{first}") == f'"a{first}"'
