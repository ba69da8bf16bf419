"""Entries, settlements and rows for the tests of the ledger, and a database that can be away."""

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
from ledger.schema import daily, metadata, new_id, now_us, requests
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
    """A clock that stands still until a test puts it forward. Processes share it by its file."""

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
    """A transaction of a test's own, on a database that has the tables."""
    engine = make_engine(url, writes=True)
    with engine.begin() as connection:
        metadata.create_all(connection)
        yield connection
    engine.dispose()


def rows(url: str) -> list[dict[str, Any]]:
    """All rows of `requests`, as another process finds them; oldest first."""
    with connected(url) as connection:
        found = connection.execute(select(requests).order_by(requests.c.id)).mappings()
        return [dict(row) for row in found]


def days(url: str) -> list[dict[str, Any]]:
    with connected(url) as connection:
        found = connection.execute(select(daily).order_by(*daily.primary_key)).mappings()
        return [dict(row) for row in found]


@contextmanager
def busy(ledger: Ledger) -> Iterator[Callable[[], None]]:
    """While the writer has its hands full, what is asked for gathers. Gives what ends that."""
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
    """What each gives or raises, begun together in a thread each."""
    results: list[T | BaseException] = [RuntimeError("it never ended")] * len(works)
    gate = threading.Barrier(len(works))

    def run(number: int, work: Callable[[], T]) -> None:
        gate.wait(HANG_S)
        try:
            results[number] = work()
        except BaseException as failure:  # noqa: BLE001 - the test looks at it
            results[number] = failure

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    return results


class Outage:
    """A database that is away while `on`, as a Link tells it."""

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
    """The next commits succeed, and then the connection breaks before anybody hears of it.
    Returns a list that has an item for each."""
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
    """A list that grows with each commit."""
    found: list[Connection] = []
    event.listen(link._engine, "commit", found.append)
    return found
