"""Tests of ledger/writing.py: the rows and sums after a group of steps, even if written twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, event, func, select, text
from sqlalchemy.pool import StaticPool

from completion import Usage
from ledger import budgets, schema
from ledger.budgets import left_of, refusal
from ledger.database import database_url, directly, make_engine
from ledger.entries import Budget, Claim, Entry, LedgerStep, Opening, Withdrawal
from ledger.schema import daily, day_of, first_id, requests
from ledger.writing import interrupt, owners_of_open, write
from tests.support.ledgers import a_claim, a_settlement, an_entry, connected

ME = "me"
MIDNIGHT = 1_767_225_600_000_000
COUNTS = ("requests", "input_tokens", "output_tokens", "cost_nano", "unpriced")


def memory() -> Connection:
    """Return a connection to a new, empty database in memory."""
    connection = create_engine("sqlite://", poolclass=StaticPool).connect()
    schema.create(connection)
    return connection


def state(connection: Connection) -> tuple[list[Any], list[Any]]:
    return (
        [tuple(row) for row in connection.execute(select(requests).order_by(requests.c.id))],
        [tuple(row) for row in connection.execute(select(daily).order_by(*daily.primary_key))],
    )


# Groups

ENTRIES = tuple(
    an_entry(
        id=first_id(MIDNIGHT + offset) + f"{number:016x}",
        key_id=f"key_{number % 2}",
        started_us=MIDNIGHT + offset,
        model=f"m{number % 3}",
    )
    for number, offset in enumerate((-2, -1, 0, 1, 2, 3))
)
SETTLEMENTS = st.builds(
    a_settlement,
    st.sampled_from(ENTRIES),
    model=st.sampled_from(["m0", "other"]),
    usage=st.builds(Usage, st.integers(0, 2**40), st.integers(0, 2**40)),
    cost_nano=st.none() | st.integers(0, 2**55),
)
STEPS = st.one_of(
    st.builds(
        Opening,
        st.sampled_from(ENTRIES),
        st.none() | st.builds(a_claim, st.just(1000), st.integers(0, 600), st.integers(600, 2000)),
    ),
    SETTLEMENTS,
    st.builds(Withdrawal, st.sampled_from([entry.id for entry in ENTRIES])),
)


def fresh(steps: Sequence[LedgerStep]) -> list[LedgerStep]:
    """Return copies of the steps that have not been tried yet."""
    return [Opening(s.entry, s.claim) if isinstance(s, Opening) else s for s in steps]


@given(st.lists(st.lists(STEPS, max_size=6), max_size=6))
@settings(max_examples=150, deadline=None)
def test_daily_sums_equal_the_settled_rows_whatever_is_written(
    groups: list[list[LedgerStep]],
) -> None:
    """Settled rows count on the UTC day of their start. Only open rows reserve a budget."""
    with memory() as connection:
        for steps in groups:
            write(connection, ME, fresh(steps))
        sums: dict[tuple[str, ...], Counter[str]] = {}
        for row in connection.execute(select(requests)).mappings():
            if row["ended_us"] is None:
                continue
            assert row["reserved_nano"] == 0
            place = (row["key_id"], day_of(row["started_us"]), row["provider"], row["model"])
            sums.setdefault((*place, row["endpoint"]), Counter()).update(
                requests=1,
                input_tokens=row["input_tokens"],
                output_tokens=row["output_tokens"],
                cost_nano=row["cost_nano"] or 0,
                unpriced=row["cost_nano"] is None,
            )
        kept = {
            tuple(row[:5]): dict(zip(COUNTS, row[5:], strict=True))
            for row in connection.execute(select(daily))
        }
        assert kept == {place: {n: found[n] for n in COUNTS} for place, found in sums.items()}


@given(st.lists(st.sampled_from(ENTRIES), unique=True), st.integers(0, 3), st.data())
@settings(max_examples=100, deadline=None)
def test_a_group_that_is_written_twice_counts_once(
    entries: list[Entry], settled: int, data: st.DataObject
) -> None:
    """A group is written again if its commit may have been lost. Its calls have new ids."""
    claims = st.none() | st.builds(a_claim, st.just(1000), st.integers(1, 600))
    steps: list[LedgerStep] = [Opening(entry, data.draw(claims)) for entry in entries[settled:]]
    steps += [a_settlement(entry) for entry in entries[:settled]]
    with memory() as connection:
        write(connection, ME, [Opening(entry) for entry in entries[:settled]])
        write(connection, ME, steps)
        once = state(connection)
        accepted = [step.refusal is None for step in steps if isinstance(step, Opening)]
        write(connection, ME, steps)
        assert state(connection) == once
        assert [step.refusal is None for step in steps if isinstance(step, Opening)] == accepted
        ids = {row[0] for row in once[0]}
        openings = [step for step in steps if isinstance(step, Opening)]
        assert [step.entry.id in ids for step in openings] == accepted


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=12))
@settings(max_examples=100, deadline=None)
def test_calls_that_keep_to_their_claims_never_spend_more_than_the_budget(
    calls: list[tuple[int, int]],
) -> None:
    with memory() as connection:
        for least, more in calls:
            entry = an_entry()
            opening = Opening(entry, a_claim(1000, least, least + more))
            write(connection, ME, [opening])
            held = connection.execute(
                select(requests.c.reserved_nano).where(requests.c.id == entry.id)
            ).scalar()
            assert (held is None) == (opening.refusal is not None)
            assert left_of(connection, "key_1", Budget(1000)) >= 0
            if held is not None:
                assert least <= held <= least + more
                write(connection, ME, [a_settlement(entry, cost_nano=held)])
                assert left_of(connection, "key_1", Budget(1000)) >= 0


def test_opening_written_again_loses_its_row_if_the_budget_is_spent(ledger_url: str) -> None:
    """Other calls may spend the rest of the budget between two attempts to write a group."""
    entry, other = an_entry(), an_entry()
    opening = Opening(entry, a_claim(1000, 600))
    with connected(ledger_url) as connection:
        write(connection, ME, [Opening(other), opening])
        assert [opening.refusal] == [None]
        write(connection, "other", [a_settlement(other, cost_nano=900)])
        write(connection, ME, [opening])
        assert opening.refusal is not None
        assert connection.execute(select(requests.c.id)).scalars().all() == [other.id]


def test_budget_check_of_a_key_ignores_reservations_of_other_keys(ledger_url: str) -> None:
    """It does so even when the openings of both keys are written again."""
    other = an_entry()
    openings = [
        Opening(an_entry(key_id=key), a_claim(1000, 600, 600)) for key in ("key_1", "key_2")
    ]
    with connected(ledger_url) as connection:
        write(connection, ME, [Opening(other), *openings])
        assert [opening.refusal for opening in openings] == [None, None]
        write(connection, "other", [a_settlement(other, cost_nano=900)])
        write(connection, ME, openings)
        assert [opening.refusal is None for opening in openings] == [False, True]


def test_postgres_write_holds_an_advisory_lock_per_claimed_key(postgres_url: str) -> None:
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    claim = a_claim(1000, 1)
    openings = [Opening(an_entry(key_id=key), claim) for key in ("key_1", "key_2", "key_1")]
    with connected(database_url(postgres_url, Path())) as connection:
        write(connection, ME, [*openings, Opening(an_entry(key_id="key_3"))])
        assert connection.execute(text(locks)).scalar() == 2


def test_remaining_budget_counts_calls_settled_by_another_process_meanwhile(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Postgres each statement sees what was committed before it.

    With two statements, a call settled in between would count neither as spent nor as reserved.
    """
    url = database_url(postgres_url, Path())
    entry = an_entry()
    with connected(url) as connection:
        write(connection, ME, [Opening(entry, a_claim(1000, 700))])
    engine = make_engine(url)
    settled: list[str] = []

    def settle(*_: object) -> None:
        if not settled:
            settled.append(entry.id)
            with connected(url) as other:
                write(other, "other", [a_settlement(entry, cost_nano=600)])

    def then_settle(*arguments: Any, **named: Any) -> Any:
        cursor = directly(*arguments, **named)
        settle()
        return cursor

    monkeypatch.setattr(budgets, "directly", then_settle)  # as SQLAlchemy has no event for it
    with engine.begin() as connection:
        event.listen(engine, "after_cursor_execute", settle)
        assert left_of(connection, "key_1", Budget(1000)) in (300, 400)
        assert left_of(connection, "key_1", Budget(1000)) == 400
    assert settled
    engine.dispose()


# Budgets


@pytest.mark.parametrize(
    ("least", "most", "left", "fits"),
    [
        (0, 0, 0, True),
        (0, 0, -5, True),
        (0, 1, 0, False),
        (0, 1, 1, True),
        (1, 1, 1, True),
        (2, 2, 1, False),
        (1, 900, 1, True),
        (0, 5, -1, False),
    ],
)
def test_claim_that_does_not_fit_the_remaining_budget_is_refused(
    least: int, most: int, left: int, fits: bool
) -> None:
    budget = Budget(1000)
    found = refusal(Claim(budget, least, most), (False, "key_1", budget), left)
    assert (found is None) == fits
    if found is not None:
        assert (found.status, found.code) == (402, "insufficient_credits")
        assert found.details == {
            "limit_type": "budget",
            "limit": 1e-6,
            "remaining": max(0, left) / 1e9,
            "needed": least / 1e9,
        }


def test_budget_refusal_names_the_budget_the_rest_and_the_cost() -> None:
    budget = Budget(10**9)
    claim = Claim(budget, 420_000_000, 420_000_000, budget)
    found = refusal(claim, (False, "key_1", budget), 250_000_000)
    assert found is not None
    assert found.message == (
        "This key's budget of $1 has $0.25 left, but this call may cost $0.42."
    )
    found = refusal(claim, (True, "research", budget), 250_000_000)
    assert found is not None
    assert found.message == (
        "The budget of $1 of this key's group 'research' has $0.25 left, "
        "but this call may cost $0.42."
    )
    assert found.details is not None
    assert found.details["group"] == "research"


def test_free_call_reserves_nothing_of_an_overspent_budget() -> None:
    with memory() as connection:
        spent, free = an_entry(), an_entry()
        write(connection, ME, [Opening(spent, a_claim(1000, 1000))])
        write(connection, ME, [a_settlement(spent, cost_nano=1500)])
        write(connection, ME, [Opening(free, a_claim(1000, 0))])
        assert left_of(connection, "key_1", Budget(1000)) == -500


@pytest.mark.parametrize(
    ("since", "left"), [(None, 700), ("2025-12-31", 700), ("2026-01-01", 800), ("2026-01-02", 850)]
)
def test_budget_counts_calls_since_its_first_day_and_all_open_calls(
    ledger_url: str, since: str | None, left: int
) -> None:
    before, after = an_entry(started_us=MIDNIGHT - 1), an_entry(started_us=MIDNIGHT)
    with connected(ledger_url) as connection:
        write(connection, ME, [Opening(before), Opening(after), Opening(an_entry(key_id="key_2"))])
        held = Opening(an_entry(started_us=MIDNIGHT - 1), a_claim(1000, 150))
        write(connection, ME, [held])
        settled = [a_settlement(before, cost_nano=100), a_settlement(after, cost_nano=50)]
        write(connection, ME, settled)
        write(connection, ME, [a_settlement(an_entry())])  # has no open row, so it is ignored
        assert left_of(connection, "key_1", Budget(1000, since)) == left


# Dead processes


def test_open_rows_of_a_dead_process_are_settled_with_their_estimates(ledger_url: str) -> None:
    entries = [an_entry(cost_nano=cost, input_tokens=5) for cost in (10, None, 0)]
    done, mine = an_entry(), an_entry()
    with connected(ledger_url) as connection:
        dead: list[LedgerStep] = [Opening(entry, a_claim(1000, 100)) for entry in entries]
        write(connection, "dead", [*dead, Opening(done)])
        write(connection, "dead", [a_settlement(done)])
        write(connection, ME, [Opening(mine)])
        assert sorted(owners_of_open(connection)) == ["dead", ME]
        assert interrupt(connection, "dead") == 3
        assert interrupt(connection, "dead") == 0
        assert owners_of_open(connection) == [ME]
        ended = requests.c.end_reason == "interrupted"
        found = connection.execute(
            select(requests.c.id, requests.c.cost_nano, requests.c.reserved_nano).where(ended)
        )
        assert {row.id: (row.cost_nano, row.reserved_nano) for row in found} == {
            entry.id: (entry.cost_nano, 0) for entry in entries
        }
        sums = [func.sum(daily.c[name]) for name in COUNTS]
        assert tuple(map(int, connection.execute(select(*sums)).one())) == (4, 23, 3, 120, 1)
        write(connection, "dead", [a_settlement(entries[0])])  # the process is alive after all
        assert tuple(map(int, connection.execute(select(*sums)).one())) == (4, 23, 3, 120, 1)


def test_a_clock_that_was_set_back_makes_no_negative_duration() -> None:
    with memory() as connection:
        entry = an_entry(started_us=schema.now_us() + 10**9)
        write(connection, "dead", [Opening(entry)])
        interrupt(connection, "dead")
        row = connection.execute(select(requests)).mappings().one()
        assert (row["duration_us"], row["ended_us"]) == (0, entry.started_us)
