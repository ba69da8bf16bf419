"""Tests of budgets that the keys of a group share: claims, reservations, and the roll-up."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select, text

from errors import InsufficientCredits
from ledger import upkeep
from ledger.budgets import left_of, left_of_group
from ledger.database import database_url
from ledger.entries import Budget, Claim, Opening
from ledger.key_usage import by_group
from ledger.ledger import Ledger
from ledger.schema import day_of, group_daily, now_us, requests
from ledger.writing import interrupt, write
from tests.ledger.test_entries import ME, memory
from tests.support.ledgers import a_ledger, a_settlement, an_entry, at_once, connected

GROUP, KEYS, CALLERS = "research", 10, 50


def claim(least: int, most: int, key: int | None = None, group: int | None = 1000) -> Claim:
    return Claim(
        None if key is None else Budget(key), least, most, None if group is None else Budget(group)
    )


def opening(made: Claim, key: str = "key_1", group: str | None = GROUP) -> Opening:
    return Opening(an_entry(key_id=key, group_name=group), made)


def reserved(connection: Connection, one: Opening) -> int | None:
    found = select(requests.c.reserved_nano).where(requests.c.id == one.entry.id)
    return connection.execute(found).scalar()


def refused_by(one: Opening) -> Any:
    return None if one.refusal is None else (one.refusal.details or {}).get("group", "key")


@pytest.mark.parametrize(
    ("key", "group", "least", "most", "held", "refused"),
    [
        (None, 1000, 100, 200, 200, None),
        (500, 1000, 100, 700, 500, None),
        (1000, 500, 100, 700, 500, None),
        (50, 1000, 100, 100, None, "key"),
        (1000, 50, 100, 100, None, GROUP),
        (50, 50, 100, 100, None, "key"),
        (0, 0, 0, 0, 0, None),
        (1000, 0, 0, 1, None, GROUP),
    ],
)
def test_a_call_reserves_the_smaller_room_and_must_fit_both_budgets(
    key: int | None, group: int, least: int, most: int, held: int | None, refused: str | None
) -> None:
    with memory() as connection:
        one = opening(claim(least, most, key, group))
        write(connection, ME, [one])
        assert reserved(connection, one) == held
        assert refused_by(one) == refused


def test_keys_of_a_group_spend_one_budget_and_others_do_not(ledger_url: str) -> None:
    with connected(ledger_url) as connection:
        steps = [opening(claim(300, 300), f"key_{number}") for number in range(4)]
        alone = opening(claim(300, 300, 1000, None), "key_0", None)
        other = opening(claim(300, 300), "key_0", "ops")
        write(connection, ME, [*steps, alone, other])
        assert [refused_by(one) for one in steps] == [None, None, None, GROUP]
        assert (alone.refusal, other.refusal) == (None, None)
        assert left_of_group(connection, GROUP, Budget(1000)) == 100
        write(connection, ME, [a_settlement(one.entry, cost_nano=50) for one in steps[:3]])
        assert left_of_group(connection, GROUP, Budget(1000)) == 850
        assert left_of(connection, "key_0", Budget(1000)) == 1000 - 50 - 600
        late = opening(claim(850, 850), "key_9")
        write(connection, ME, [late])
        assert late.refusal is None
        assert left_of_group(connection, GROUP, Budget(1000)) == 0


def test_a_budget_of_a_period_counts_its_days_only(ledger_url: str) -> None:
    with connected(ledger_url) as connection:
        old = an_entry(group_name=GROUP, started_us=now_us() - 3 * 86_400_000_000)
        write(connection, ME, [Opening(old)])
        write(connection, ME, [a_settlement(old, cost_nano=900)])
        today = day_of(now_us())
        assert left_of_group(connection, GROUP, Budget(1000)) == 100
        assert left_of_group(connection, GROUP, Budget(1000, today)) == 1000


def test_the_roll_up_of_groups_is_the_sum_of_their_rows(ledger_url: str) -> None:
    with connected(ledger_url) as connection:
        entries = [
            an_entry(key_id=f"key_{number}", group_name=name)
            for number, name in enumerate((GROUP, GROUP, "ops", None))
        ]
        write(connection, ME, [Opening(entry) for entry in entries])
        costs = (100, None, 7, 9)
        settled = [
            a_settlement(entry, cost_nano=cost) for entry, cost in zip(entries, costs, strict=True)
        ]
        write(connection, ME, settled)
        write(connection, ME, settled)
        found = connection.execute(select(group_daily).order_by(group_daily.c.group_name)).all()
        today = day_of(entries[0].started_us)
        assert [tuple(row) for row in found] == [
            ("ops", today, 1, 8, 3, 7, 0),
            (GROUP, today, 2, 16, 6, 100, 1),
        ]
        spending = by_group(connection, today)
        assert {name: one.total_nano for name, one in spending.items()} == {"ops": 7, GROUP: 100}
        assert upkeep.verify(connection, now_us()).problems == []
        connection.execute(text("UPDATE group_daily SET cost_nano = 8 WHERE group_name = 'ops'"))
        (problem,) = upkeep.verify(connection, now_us()).problems
        assert problem.endswith("group ops: the daily sums differ from the rows by: cost_nano +1")


def test_the_calls_of_a_dead_process_count_for_their_group(ledger_url: str) -> None:
    with connected(ledger_url) as connection:
        one = opening(claim(600, 600))
        write(connection, "dead", [one])
        assert by_group(connection, day_of(now_us()))[GROUP].held_nano == 600
        assert interrupt(connection, "dead") == 1
        assert left_of_group(connection, GROUP, Budget(1000)) == 1000 - 70
        assert upkeep.verify(connection, now_us()).problems == []


def test_an_opening_written_again_counts_once_in_its_group(ledger_url: str) -> None:
    steps = [opening(claim(400, 400), key) for key in ("key_1", "key_2")]
    with connected(ledger_url) as connection:
        for _ in range(2):
            write(connection, ME, steps)
            assert [one.refusal for one in steps] == [None, None]
        assert left_of_group(connection, GROUP, Budget(1000)) == 200


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 400), st.integers(0, 400)), max_size=12)
)
@settings(max_examples=25, deadline=None)
def test_calls_that_keep_to_their_claims_overspend_neither_budget(
    calls: list[tuple[int, int, int]],
) -> None:
    with memory() as connection:
        for number, least, more in calls:
            one = opening(claim(least, least + more, 500), f"key_{number}")
            write(connection, ME, [one])
            held = reserved(connection, one)
            if held is not None:
                write(connection, ME, [a_settlement(one.entry, cost_nano=held)])
            assert left_of_group(connection, GROUP, Budget(1000)) >= 0
            assert left_of(connection, f"key_{number}", Budget(500)) >= 0


def test_postgres_locks_keys_and_groups_in_one_order(postgres_url: str) -> None:
    url = database_url(postgres_url, Path())
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    with connected(url) as connection:
        several = [opening(claim(1, 1, 1000), key) for key in ("key_1", "key_2")]
        write(connection, ME, [*several, opening(claim(1, 1), "key_3")])
        assert connection.execute(text(locks)).scalar() == 3  # two keys, one group


def test_fifty_callers_on_ten_keys_of_two_processes_never_overrun_their_group(
    ledger_url: str,
) -> None:
    """Each call costs what it reserved. Each key has a budget too, so two locks are taken."""
    most = 40
    with ExitStack() as stack:
        ledgers = [stack.enter_context(a_ledger(ledger_url)) for _ in range(2)]
        for ledger in ledgers:
            ledger.start()
        gate = threading.Barrier(CALLERS)

        def call(number: int) -> bool:
            ledger: Ledger = ledgers[number % 2]
            entry = an_entry(key_id=f"key_{number % KEYS}", group_name=GROUP)
            gate.wait()
            try:
                ledger.open(entry, claim(most, most, 10_000))
            except InsufficientCredits:
                return False
            ledger.settle(a_settlement(entry, cost_nano=most))
            return True

        found = Counter(at_once(*[lambda n=number: call(n) for number in range(CALLERS)]))
        assert found == {True: 1000 // most, False: CALLERS - 1000 // most}
        with connected(ledger_url) as connection:
            assert left_of_group(connection, GROUP, Budget(1000)) == 0
            assert upkeep.verify(connection, now_us()).problems == []
