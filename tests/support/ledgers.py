"""Helpers for tests of the ledger: entries, settlements, rows, and an unavailable database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, event, select

from completion import Usage
from ledger.database import DatabaseAway, Link, make_engine
from ledger.entries import Budget, Claim, Entry, Settlement
from ledger.ledger import Ledger
from ledger.schema import create, daily, new_id, now_us, requests
from tests.support.pace import HANG_S

T = TypeVar("T")


def an_entry(**fields: Any) -> Entry:
    defaults: dict[str, Any] = {
        "id": new_id(),
        "request_id": "r-1",
        "stream_id": "s-1",
        "key_id": "key_1",
        "endpoint": "/v1/completions",
        "provider": "sim",
        "model": "m",
        "streamed": True,
        "byok": False,
        "started_us": now_us(),
        "input_tokens": 7,
        "cost_nano": 70,
    }
    return Entry(**defaults | fields)


def a_settlement(entry: Entry, **fields: Any) -> Settlement:
    defaults: dict[str, Any] = {
        "entry": entry,
        "provider": entry.provider,
        "model": entry.model,
        "status": 200,
        "end_reason": "completed",
        "error_code": None,
        "usage": Usage(8, 3),
        "cost_nano": 110,
        "attempts": 1,
        "ended_us": entry.started_us + 5_000,
        "duration_us": 5_000,
        "latency_us": 4_000,
        "first_event_us": 2_000,
    }
    return Settlement(**defaults | fields)


def a_claim(limit: int, least: int, most: int | None = None, since: str | None = None) -> Claim:
    return Claim(Budget(limit, since), least, least if most is None else most)


class FileClock:
    """A clock that a test advances. Processes share it through its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            self.now = 1000.0

    @property
    def now(self) -> float:
        return float(self.path.read_text())

    @now.setter
    def now(self, seconds: float) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self.path)

    def monotonic(self) -> float:
        return self.now


@contextmanager
def a_ledger(url: str, **options: Any) -> Iterator[Ledger]:
    ledger = Ledger(url, **options)
    try:
        yield ledger
    finally:
        ledger.close()


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Yield a connection in a transaction, on a database that has the tables."""
    engine = make_engine(url, writes=True)
    with engine.begin() as connection:
        create(connection)
        yield connection
    engine.dispose()


def rows(url: str) -> list[dict[str, Any]]:
    """Return all rows of `requests`, oldest first, over a separate connection."""
    with connected(url) as connection:
        found = connection.execute(select(requests).order_by(requests.c.id)).mappings()
        return [dict(row) for row in found]


def days(url: str) -> list[dict[str, Any]]:
    with connected(url) as connection:
        found = connection.execute(select(daily).order_by(*daily.primary_key)).mappings()
        return [dict(row) for row in found]


@contextmanager
def busy(ledger: Ledger) -> Iterator[Callable[[], None]]:
    """Keep the writer busy, so that requests to it queue up. Yield a function that ends this."""
    begun, over = threading.Event(), threading.Event()

    def work(_: Connection) -> None:
        begun.set()
        over.wait(HANG_S)

    thread = threading.Thread(target=ledger.write, args=(work,))
    thread.start()
    assert begun.wait(HANG_S)
    try:
        yield over.set
    finally:
        over.set()
        thread.join(HANG_S)


def at_once(*works: Callable[[], T]) -> list[T | BaseException]:
    """Run functions at once, each in a thread. Return what each returned or raised."""
    results: list[T | BaseException] = [RuntimeError("the work never ended")] * len(works)
    gate = threading.Barrier(len(works))

    def run(number: int, work: Callable[[], T]) -> None:
        gate.wait(HANG_S)
        try:
            results[number] = work()
        except BaseException as failure:  # noqa: BLE001 - the test examines it
            results[number] = failure

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    return results


class Outage:
    """An outage of a link's database: while `on` is True, all work raises DatabaseAway.

    Attributes:
        tries: How often work was attempted.
    """

    def __init__(self, link: Link, *, on: bool = True) -> None:
        self.on = on
        self.tries = 0
        self._run = link.run
        link.run = self  # type: ignore[method-assign]

    def __call__(self, work: Callable[[Connection], T]) -> T:
        self.tries += 1
        if self.on:
            raise DatabaseAway("connection refused")
        return self._run(work)


def break_after_commit(link: Link, times: int = 1) -> list[str]:
    """Break the connection after each of the next commits, before the commit is confirmed.

    Return a list that gets an item for each such commit.
    """
    dialect = link._engine.dialect
    commit, broken = dialect.do_commit, list[str]()

    def breaking(connection: Any) -> None:
        commit(connection)
        if len(broken) < times:
            broken.append("commit")
            raise dialect.loaded_dbapi.OperationalError("server closed the connection")

    dialect.do_commit = breaking  # type: ignore[method-assign,assignment]
    return broken


def commits(link: Link) -> list[Connection]:
    """Return a list that gets an item for each commit from now on."""
    found: list[Connection] = []
    event.listen(link._engine, "commit", found.append)
    return found
