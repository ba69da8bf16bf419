"""Tests of ledger/ledger.py: a row for each call, on disk in time, in spite of failures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text
from sqlalchemy.engine import make_url

from completion import Usage
from config import ConfigError
from errors import InsufficientCredits, Unavailable
from ledger import ledger as ledger_module
from ledger import owners
from ledger.database import database_url
from ledger.ledger import Ledger
from ledger.schema import day_of, requests
from ledger.schema import owners as owners_table
from tests.support.ledgers import (
    FileClock,
    Outage,
    a_claim,
    a_ledger,
    a_settlement,
    an_entry,
    at_once,
    break_after_commit,
    busy,
    commits,
    connected,
    days,
    rows,
)
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.postgres import Postgres

ODD = {"model": "\ud800"}
"""A field that no database can store."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "RETRY_S", 0.02)


class Count:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    with a_ledger(ledger_url) as found:
        yield found


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'sluice.db'}"


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + HANG_S
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


# A row


def test_a_ledger_row_exists_once_opened_and_is_complete_once_settled(
    ledger: Ledger, ledger_url: str
) -> None:
    entry = an_entry()
    assert ledger.open(entry) is True
    (row,) = rows(ledger_url)
    assert {name: row[name] for name in entry.__struct_fields__} == {
        name: getattr(entry, name) for name in entry.__struct_fields__
    }
    assert (row["ended_us"], row["status"], row["end_reason"], row["output_tokens"]) == (
        *(None, None, None),
        0,
    )
    assert days(ledger_url) == []

    usage = Usage(9, 4, 2, 1, 3, source="estimate")
    settlement = a_settlement(entry, provider="other", model="n", usage=usage, error_code="x")
    ledger.settle(settlement)
    (row,) = rows(ledger_url)
    named = ("provider", "model", "status", "end_reason", "error_code", "cost_nano", "attempts",
             "ended_us", "duration_us", "latency_us", "first_event_us")  # fmt: skip
    assert {name: row[name] for name in named} == {n: getattr(settlement, n) for n in named}
    tokens = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens",
              "reasoning_tokens")  # fmt: skip
    assert {name: row[name] for name in tokens} == {n: getattr(usage, n) for n in tokens}
    assert (row["usage_source"], row["reserved_nano"]) == ("estimate", 0)
    assert days(ledger_url) == [
        {
            "key_id": "key_1",
            "day": day_of(entry.started_us),
            "provider": "other",
            "model": "n",
            "endpoint": "/v1/completions",
            "requests": 1,
            "input_tokens": 9,
            "output_tokens": 4,
            "cost_nano": 110,
            "unpriced": 0,
        }
    ]


def test_a_call_settled_several_times_counts_once(ledger: Ledger, ledger_url: str) -> None:
    entry = an_entry()
    ledger.open(entry)
    ledger.settle(a_settlement(entry))
    with busy(ledger) as go_on:  # twice within a group, too
        threads = [
            threading.Thread(target=ledger.settle, args=(a_settlement(entry, cost_nano=5),))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert eventually(lambda: ledger.queue == 2)
        go_on()
        for thread in threads:
            thread.join(HANG_S)
    assert [row["cost_nano"] for row in rows(ledger_url)] == [110]
    assert [day["requests"] for day in days(ledger_url)] == [1]


def test_settling_an_unopened_call_writes_no_row(ledger: Ledger, ledger_url: str) -> None:
    ledger.settle(a_settlement(an_entry()))
    assert (rows(ledger_url), days(ledger_url)) == ([], [])


# Groups


def gathered(ledger: Ledger, *works: Callable[[], object]) -> list[object]:
    """Return the results of several calls whose steps form one group."""
    results: list[object] = []
    with busy(ledger) as go_on:
        thread = threading.Thread(target=lambda: results.extend(at_once(*works)))
        thread.start()
        assert eventually(lambda: ledger.queue == len(works))
        go_on()
        thread.join(HANG_S)
    return results


def test_many_waiting_calls_share_a_transaction(ledger: Ledger, ledger_url: str) -> None:
    entries = [an_entry(key_id=f"key_{number % 3}") for number in range(40)]
    ledger.start()
    done = commits(ledger._writer)
    assert gathered(ledger, *(partial(ledger.open, entry) for entry in entries)) == [True] * 40
    assert len(done) == 2, "the one that kept the writer busy, and the group"
    gathered(ledger, *(partial(ledger.settle, a_settlement(entry)) for entry in entries))
    assert len(done) == 4
    assert sum(day["requests"] for day in days(ledger_url)) == 40
    assert [row["ended_us"] is None for row in rows(ledger_url)] == [False] * 40


def test_open_and_settle_return_only_after_the_row_is_on_disk(
    ledger: Ledger, ledger_url: str
) -> None:
    """Each call reads its row on another connection as soon as `open` or `settle` returns."""
    ledger.start()

    def call() -> bool:
        entry = an_entry()
        ledger.open(entry)
        opened = entry.id in {row["id"] for row in rows(ledger_url) if row["ended_us"] is None}
        ledger.settle(a_settlement(entry))
        return opened and entry.id in {row["id"] for row in rows(ledger_url) if row["ended_us"]}

    assert at_once(*[call] * 8) == [True] * 8


def test_an_unstorable_row_does_not_fail_its_group(
    ledger_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    failed = Count()
    with a_ledger(ledger_url, failed=failed) as ledger:
        ledger.start()
        good = [an_entry() for _ in range(5)]
        found = gathered(
            ledger, partial(ledger.open, an_entry(**ODD)), *(partial(ledger.open, e) for e in good)
        )
        assert isinstance(found[0], Unavailable)
        assert found[1:] == [True] * 5
        odd = a_settlement(good[0], usage=Usage(2**70))
        gathered(
            ledger,
            partial(ledger.settle, odd),
            *(partial(ledger.settle, a_settlement(entry)) for entry in good[1:]),
        )
        assert ledger.available
    settled = {row["id"]: row["ended_us"] is not None for row in rows(ledger_url)}
    assert settled == {entry.id: entry is not good[0] for entry in good}
    assert [day["requests"] for day in days(ledger_url)] == [4]
    assert failed.calls == 2
    assert caplog.text.count("is lost") == 2


# Outages of the database


def test_no_call_is_accepted_while_the_database_is_unavailable(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    failed = Count()
    with a_ledger(sqlite_url, failed=failed) as ledger:
        ledger.start()
        outage = Outage(ledger._writer)
        for _ in range(3):
            with pytest.raises(Unavailable):
                ledger.open(an_entry())
        assert not ledger.available
        assert failed.calls >= 1
        for ask in (ledger.write, ledger.read):
            outage_of_reader = Outage(ledger._reader)
            with pytest.raises(Unavailable):
                ask(lambda _: None)
            outage_of_reader.on = False
        outage.on = False
        assert eventually(lambda: ledger.available)
        assert ledger.open(an_entry())
    assert len(rows(sqlite_url)) == 1
    lines = [record.getMessage() for record in caplog.records if record.name == "sluice.ledger"]
    assert lines.count("the ledger's database is unavailable: connection refused") == 1
    assert lines.count("the ledger's database is available again") == 1


def test_an_optional_ledger_refuses_only_budgeted_calls_in_an_outage(sqlite_url: str) -> None:
    unrecorded = Count()
    with a_ledger(sqlite_url, required=False, unrecorded=unrecorded) as ledger:
        ledger.start()
        Outage(ledger._writer)
        assert [ledger.open(an_entry()) for _ in range(2)] == [False, False]
        assert ledger.available
        assert unrecorded.calls == 2
        with pytest.raises(Unavailable):
            ledger.open(an_entry(), a_claim(1000, 1))
        assert unrecorded.calls == 2


def test_settlements_during_an_outage_are_kept_and_written_once(
    ledger: Ledger, ledger_url: str
) -> None:
    entries = [an_entry() for _ in range(5)]
    for entry in entries:
        ledger.open(entry)
    outage = Outage(ledger._writer)
    for entry in entries:
        began = time.monotonic()
        ledger.settle(a_settlement(entry))
        assert time.monotonic() - began < 2, "a client waits for the settlement"
    assert eventually(lambda: ledger.queue == 5 and outage.tries > 5)
    outage.on = False
    assert eventually(lambda: ledger.queue == 0 and ledger.available)
    assert [row["cost_nano"] for row in rows(ledger_url)] == [110] * 5
    assert [day["requests"] for day in days(ledger_url)] == [5]


def test_calls_refused_during_an_outage_do_not_fill_the_queue(sqlite_url: str) -> None:
    with a_ledger(sqlite_url) as ledger:
        ledger.start()
        outage = Outage(ledger._writer)
        for _ in range(200):
            with pytest.raises(Unavailable):
                ledger.open(an_entry())
        assert ledger.queue <= 1
        outage.on = False
    assert rows(sqlite_url) == []


def test_a_ledger_whose_writer_hangs_is_unavailable(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each call would wait until its timeout and add its steps to the queue."""
    monkeypatch.setattr(ledger_module, "WAIT_S", 0.05)
    with a_ledger(sqlite_url) as ledger:
        ledger.start()
        with busy(ledger):
            for _ in range(50):
                with pytest.raises(Unavailable):
                    ledger.open(an_entry())
            assert not ledger.available
            assert ledger.queue <= 2
        assert eventually(lambda: ledger.available)
        assert ledger.open(an_entry())
    assert len(rows(sqlite_url)) == 1


def test_a_hanging_writer_times_out_waiting_calls_but_not_changes(
    ledger: Ledger, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One timeout ends the wait of a whole group, but not the wait for a change."""
    entry, changed = an_entry(), list[object]()
    ledger.open(entry)
    monkeypatch.setattr(ledger_module, "WAIT_S", 0.2)
    change = threading.Thread(target=lambda: changed.append(ledger.write(lambda _: "changed")))
    with busy(ledger):
        change.start()
        assert eventually(lambda: len(ledger._next.tasks) == 1)
        began = time.monotonic()
        found = at_once(
            *(partial(ledger.open, an_entry()) for _ in range(8)),
            partial(ledger.settle, a_settlement(entry)),
        )
        assert time.monotonic() - began < HANG_S / 2
        assert [type(one) for one in found[:8]] == [Unavailable] * 8
        assert found[8] is None
        assert changed == []
    change.join(HANG_S)
    assert changed == ["changed"]
    assert eventually(lambda: ledger.available and ledger.queue == 0)
    ledger.write(lambda _: None)
    assert [row["cost_nano"] for row in rows(ledger_url)] == [110], "the other calls are withdrawn"


def test_a_ledger_open_that_timed_out_leaves_no_row(
    ledger: Ledger, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.start()
    monkeypatch.setattr(ledger_module, "WAIT_S", 0.05)
    with busy(ledger), pytest.raises(Unavailable):
        ledger.open(an_entry())
    ledger.write(lambda _: None)
    assert rows(ledger_url) == []


def test_a_locked_database_makes_the_ledger_unavailable_until_unlocked(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.database.BUSY_MS", 20)
    with a_ledger(sqlite_url) as ledger:
        entry = an_entry()
        ledger.open(entry)
        with connected(sqlite_url):
            with pytest.raises(Unavailable):
                ledger.open(an_entry())
            ledger.settle(a_settlement(entry))
        assert eventually(lambda: ledger.available and ledger.queue == 0)
    assert [row["ended_us"] is None for row in rows(sqlite_url)] == [False]


@pytest.mark.parametrize("content", [b"this is no database\n" * 500, b"SQLite format 3\0" * 500])
def test_a_file_that_is_no_database_fails_at_start_and_stays_unchanged(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "sluice.db"
    path.write_bytes(content)
    ledger = Ledger(f"sqlite:///{path}")
    (refusal,) = at_once(ledger.start)
    assert isinstance(refusal, ConfigError)
    assert "can't be opened" in str(refusal)
    (failure,) = at_once(lambda: ledger.open(an_entry()))
    assert isinstance(failure, Unavailable)
    assert path.read_bytes() == content
    ledger.close()


@pytest.mark.parametrize("failure", [RuntimeError("the inside"), MemoryError(), KeyError(1)])
def test_a_failing_presence_beat_does_not_stop_the_ledger(
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
) -> None:
    with a_ledger(sqlite_url) as ledger:
        ledger.start()
        entry = an_entry()
        ledger.open(entry)
        beat = ledger._presence.beat
        failing = [True]

        def odd(connection: Connection) -> None:
            if failing:
                raise failure
            beat(connection)

        monkeypatch.setattr(ledger._presence, "beat", odd)
        for _ in range(2):
            ledger._tend_at = 0.0
            ledger.settle(a_settlement(entry))
            assert ledger.open(an_entry())
        failing.clear()
        assert ledger.available
    assert "can't close the rows of dead processes" in caplog.text
    assert len(rows(sqlite_url)) == 3
    assert [day["requests"] for day in days(sqlite_url)] == [1]


def test_a_read_only_database_loses_no_row(
    postgres: Postgres, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A database becomes read-only after a fail-over to a replica, for example."""
    url = database_url(postgres_url, Path())
    change = f"ALTER DATABASE {make_url(url).database} SET default_transaction_read_only"
    with a_ledger(url) as ledger:
        entry = an_entry()
        ledger.open(entry)
        postgres.execute(f"{change} = on")
        ledger._writer.close()  # the setting only applies to new connections
        ledger.settle(a_settlement(entry))
        assert not ledger.available
        with pytest.raises(Unavailable):
            ledger.open(an_entry())
        postgres.execute(f"{change} = off")
        assert eventually(lambda: ledger.available and ledger.queue == 0)
    assert "is lost" not in caplog.text
    assert [row["cost_nano"] for row in rows(url)] == [110]


# Commits whose confirmation is lost


@pytest.mark.parametrize("claim", [None, a_claim(1000, 800), a_claim(1000, 1, 5000)], ids=repr)
@pytest.mark.parametrize("times", [1, 2])
def test_a_commit_whose_confirmation_was_lost_counts_once(
    ledger: Ledger, ledger_url: str, claim: Any, times: int
) -> None:
    """After one failure the commit is retried at once.

    After two, the database counts as unavailable, and the commit is retried when it is back.
    """
    ledger.start()
    entry = an_entry()
    broken = break_after_commit(ledger._writer, times)
    if times == 1:
        assert ledger.open(entry, claim)
        (row,) = rows(ledger_url)
        assert row["reserved_nano"] == (min(claim.most_nano, 1000) if claim else 0)
    else:
        with pytest.raises(Unavailable):
            ledger.open(entry, claim)
        assert eventually(lambda: ledger.available and ledger.queue == 0)
        assert rows(ledger_url) == [], "a refused call has no row"
        ledger.open(entry, claim)
    assert len(broken) == times
    broken.clear()
    ledger.settle(a_settlement(entry))
    assert eventually(lambda: ledger.available and ledger.queue == 0)
    assert len(broken) == times
    assert [row["cost_nano"] for row in rows(ledger_url)] == [110]
    assert [(day["requests"], day["cost_nano"]) for day in days(ledger_url)] == [(1, 110)]


# Closing


def test_closing_the_ledger_writes_its_queue(ledger_url: str) -> None:
    entry = an_entry()
    with a_ledger(ledger_url) as ledger:
        ledger.open(entry)
        with busy(ledger) as go_on:
            settling = threading.Thread(target=ledger.settle, args=(a_settlement(entry),))
            settling.start()
            assert eventually(lambda: ledger.queue == 1)
            closing = threading.Thread(target=ledger.close)
            closing.start()
            go_on()
            closing.join(HANG_S)
            assert [row["ended_us"] is None for row in rows(ledger_url)] == [False]
            settling.join(HANG_S)
        ledger.close()  # a second close is a no-op


def test_a_closed_ledger_is_unavailable_at_once(sqlite_url: str) -> None:
    ledger = Ledger(sqlite_url)
    ledger.start()
    ledger.close()
    began = time.monotonic()
    found = at_once(
        lambda: ledger.open(an_entry()),
        lambda: ledger.write(lambda _: None),
    )
    assert [type(failure) for failure in found] == [Unavailable] * 2
    assert time.monotonic() - began < 2


def test_closing_an_unused_ledger_creates_no_file(tmp_path: Path) -> None:
    Ledger(f"sqlite:///{tmp_path / 'sluice.db'}").close()
    assert list(tmp_path.iterdir()) == []


def test_a_closed_ledger_leaves_only_its_database_and_owners(
    sqlite_url: str, tmp_path: Path
) -> None:
    with a_ledger(sqlite_url) as ledger:
        ledger.open(an_entry())
        assert ledger.read(lambda c: c.execute(select(func.count()).select_from(requests)).scalar())
    left = {path.name for path in tmp_path.rglob("*")}
    assert left == {"sluice.db", "sluice.db.owners"}


# Queries and changes


def test_the_first_query_creates_the_tables(ledger: Ledger) -> None:
    count = select(func.count()).select_from(requests)
    assert at_once(*[lambda: ledger.read(lambda c: c.execute(count).scalar())] * 20) == [0] * 20
    done = commits(ledger._writer)
    assert ledger.read(lambda c: c.execute(count).scalar()) == 0
    assert done == [], "further queries don't use the writer"


def test_a_failed_query_does_not_affect_later_queries(ledger: Ledger) -> None:
    with pytest.raises(Unavailable):
        ledger.read(lambda c: c.execute(text("SELECT no_such_column FROM requests")))
    with pytest.raises(ZeroDivisionError):
        ledger.read(lambda _: 1 // 0)
    assert ledger.read(lambda c: c.execute(text("SELECT 1")).scalar()) == 1
    assert ledger.available


def test_a_change_is_atomic(ledger: Ledger, ledger_url: str) -> None:
    ledger.open(an_entry())

    def half(connection: Connection) -> None:
        connection.execute(requests.delete())
        raise KeyError("half")

    with pytest.raises(KeyError):
        ledger.write(half)
    assert len(rows(ledger_url)) == 1
    assert ledger.write(lambda c: c.execute(requests.delete()).rowcount) == 1
    assert rows(ledger_url) == []
    assert ledger.available


# Budgets


def outcomes(found: list[Any]) -> tuple[int, int]:
    """Return the numbers of accepted and of refused calls."""
    refused = [one for one in found if isinstance(one, InsufficientCredits)]
    accepted = [one for one in found if one is True]
    assert len(refused) + len(accepted) == len(found), found
    return len(accepted), len(refused)


def reserved(url: str) -> list[int]:
    return sorted(row["reserved_nano"] for row in rows(url) if row["ended_us"] is None)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(
    ("claim", "accepted", "held"),
    [
        (a_claim(1000, 300), 3, [300] * 3),
        (a_claim(1000, 0, 300), 4, [100, 300, 300, 300]),
        (a_claim(1000, 1001), 0, []),
        (a_claim(0, 0, 1), 0, []),
        (a_claim(0, 0), 20, [0] * 20),
    ],
)
def test_a_budget_is_not_exceeded_by_concurrent_calls(
    ledger: Ledger, ledger_url: str, claim: Any, accepted: int, held: list[int], grouped: bool
) -> None:
    ledger.start()
    works = [partial(ledger.open, an_entry(), claim) for _ in range(20)]
    found = gathered(ledger, *works) if grouped else at_once(*works)
    assert outcomes(found) == (accepted, 20 - accepted)
    assert reserved(ledger_url) == held
    assert ledger.open(an_entry(key_id="key_2"), a_claim(1000, 1000)), "another key's budget"


def test_a_budget_is_not_exceeded_by_two_ledgers_at_once(ledger: Ledger, ledger_url: str) -> None:
    """Settled costs and reservations together never exceed the budget while calls come and go."""
    limit, most = 20_000, 1_000
    ledger.start()

    def caller(mine: Ledger, number: int) -> int:
        accepted = 0
        for turn in range(6):
            entry = an_entry()
            try:
                mine.open(entry, a_claim(limit, most))
            except InsufficientCredits:
                continue
            accepted += 1
            if (number + turn) % 3:
                mine.settle(a_settlement(entry, cost_nano=(number * 37 + turn) % most))
        return accepted

    with a_ledger(ledger_url) as other:
        other.start()
        found = at_once(
            *(partial(caller, [ledger, other][number % 2], number) for number in range(12))
        )
    assert all(isinstance(count, int) for count in found), found
    assert sum(count for count in found if isinstance(count, int)) == len(rows(ledger_url))
    spent = sum(day["cost_nano"] for day in days(ledger_url))
    open_now = sum(reserved(ledger_url))
    left = limit - spent - open_now
    assert 0 <= left < limit
    while left >= most:  # the rest of the budget can still be used
        assert ledger.open(an_entry(), a_claim(limit, most))
        left -= most
    with pytest.raises(InsufficientCredits):
        ledger.open(an_entry(), a_claim(limit, most))


def test_a_changed_budget_counts_calls_admitted_under_the_old_budget(
    ledger: Ledger, ledger_url: str
) -> None:
    ledger.start()
    old, new = a_claim(1000, 600), a_claim(1100, 600)
    found = gathered(
        ledger, *(partial(ledger.open, an_entry(), claim) for claim in (old, new, old, new))
    )
    assert outcomes(found) == (1, 3)
    assert reserved(ledger_url) == [600]


def test_a_daily_budget_is_restored_the_next_day(ledger: Ledger) -> None:
    yesterday = an_entry(started_us=1_767_225_599_999_999)
    for since, start in (("2025-12-31", yesterday), ("2026-01-01", an_entry())):
        assert ledger.open(start, a_claim(1000, 900, since=since))
        with pytest.raises(InsufficientCredits):
            ledger.open(an_entry(), a_claim(1000, 900, since=since))
        ledger.settle(a_settlement(start, cost_nano=900))
        with pytest.raises(InsufficientCredits):
            ledger.open(an_entry(), a_claim(1000, 900, since=since))
    with pytest.raises(InsufficientCredits):
        ledger.open(an_entry(), a_claim(1801, 2))


# Dead processes

PROCESS = """
import sys, time
from pathlib import Path
from ledger import ledger
from ledger import owners
from tests.support.ledgers import FileClock, an_entry
ledger.TEND_S, owners.time = 0.1, FileClock(Path(sys.argv[3]))
book = ledger.Ledger(sys.argv[1])
for number in range(3):
    assert book.open(an_entry(request_id=sys.argv[2], cost_nano=50))
print("opened", flush=True)
time.sleep(600)
"""


def a_process(url: str, name: str, clock: FileClock) -> subprocess.Popen[str]:
    """Start a process that opens three rows and reads the time from `clock`."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, url, name, str(clock.path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "opened\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(HANG_S)
    assert process.stdout is not None
    process.stdout.close()


def let_time_pass(url: str, clock: FileClock, living: int) -> None:
    """Advance the clock by two thirds of DEAD_AFTER_S once `living` ledgers know each other.

    By then each of them has sent a heartbeat and then checked the other ledgers, so that no living
    process looks dead because the machine stalls.
    """

    def beats() -> dict[str, int]:
        with connected(url) as connection:
            return {row.id: row.beats for row in connection.execute(select(owners_table))}

    def all_have_looked(before: dict[str, int]) -> bool:
        now = beats()
        return sum(now.get(owner, 0) >= beat + 2 for owner, beat in before.items()) >= living

    for _ in range(2):
        assert eventually(partial(all_have_looked, beats()))
    clock.now += owners.DEAD_AFTER_S * 2 / 3


def test_only_rows_of_dead_processes_are_closed_as_interrupted(
    ledger_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FileClock(tmp_path / "clock")
    monkeypatch.setattr(ledger_module, "TEND_S", 0.1)
    monkeypatch.setattr(owners, "time", clock)
    by_heartbeat = not ledger_url.startswith("sqlite")
    dead, living = (a_process(ledger_url, name, clock) for name in ("dead", "living"))
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait(HANG_S)
        with a_ledger(ledger_url) as ledger, a_ledger(ledger_url) as another:
            mine = an_entry(request_id="mine")
            ledger.start()
            another.start()
            ledger.open(mine)

            def closed() -> list[str]:
                return [row["request_id"] for row in rows(ledger_url) if row["ended_us"]]

            if by_heartbeat:
                for _ in range(2):
                    assert closed() == []
                    let_time_pass(ledger_url, clock, living=3)
            assert eventually(lambda: len(closed()) == 3)
            if by_heartbeat:
                for _ in range(2):
                    let_time_pass(ledger_url, clock, living=3)
            assert closed() == ["dead"] * 3
            ended = [row for row in rows(ledger_url) if row["ended_us"]]
            assert {
                (row["end_reason"], row["status"], row["cost_nano"], row["usage_source"])
                for row in ended
            } == {("interrupted", 500, 50, "estimate")}
            assert [(day["requests"], day["cost_nano"]) for day in days(ledger_url)] == [(3, 150)]
            ledger.settle(a_settlement(mine))
            end(living)
            if by_heartbeat:
                for _ in range(2):
                    let_time_pass(ledger_url, clock, living=2)
            assert eventually(lambda: len(closed()) == 7)
    finally:
        for process in (dead, living):
            end(process)
    assert [(day["requests"], day["cost_nano"]) for day in days(ledger_url)] == [(7, 410)]
    assert "calls of a dead process as interrupted" in caplog.text


# Under gevent

GREENLETS = """
from gevent import monkey
monkey.patch_all()
import json, sys, threading, time
import gevent
from errors import InsufficientCredits
from ledger import ledger
from ledger.ledger import Ledger
from tests.support.ledgers import Outage, a_claim, a_settlement, an_entry

ledger.RETRY_S = 0.02
book = Ledger(sys.argv[1])
book.start()
longest, over = 0.0, False

def tick():
    global longest
    while not over:
        began = time.perf_counter()
        time.sleep(0.001)
        longest = max(longest, time.perf_counter() - began)

def call(number):
    entry = an_entry(key_id=f"key_{number % 2}")
    try:
        book.open(entry, a_claim(100_000, 1_000) if number % 2 else None)
    except InsufficientCredits:
        return "refused"
    if number % 10 == 0:
        book.read(lambda connection: None)
    book.settle(a_settlement(entry, cost_nano=1_000))
    return "settled"

def slow(connection):
    monkey.get_original("time", "sleep")(0.3)

ticker = threading.Thread(target=tick); ticker.start()
book.write(slow)
stall = longest
jobs = [gevent.spawn(call, number) for number in range(400)]
gevent.joinall(jobs, timeout=120)
results = [job.value for job in jobs]
entry = an_entry(key_id="key_away")
book.open(entry)
outage = Outage(book._writer)
book.settle(a_settlement(entry))
outage.on = False
until = time.monotonic() + 10
while not book.available and time.monotonic() < until:
    time.sleep(0.01)
over = True
print(json.dumps({
    "settled": results.count("settled"), "refused": results.count("refused"),
    "stall": stall, "available": book.available, "queue": book.queue,
}), flush=True)
book.close()
"""


def test_greenlets_share_the_ledger_and_a_slow_commit_blocks_none(ledger_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GREENLETS, ledger_url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    log = (
        "the ledger's database is unavailable: connection refused\n"
        "the ledger's database is available again\n"
    )
    assert (done.returncode, done.stderr) == (0, log)
    found = json.loads(done.stdout)
    stall = found.pop("stall")
    assert found == {"settled": 300, "refused": 100, "available": True, "queue": 0}
    assert stall < 0.15, "a transaction of 0.3 s must not block the greenlets"
    assert sum(day["cost_nano"] for day in days(ledger_url) if day["key_id"] == "key_1") == 100_000
    assert sum(day["requests"] for day in days(ledger_url)) == len(rows(ledger_url)) == 301
    assert all(row["ended_us"] for row in rows(ledger_url))
