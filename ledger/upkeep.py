"""Maintenance of the ledger: verification, pruning and backups.

- Each operation works while the server runs.
- Memory is bounded: verification handles one day of requests at a time, and pruning one batch.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Table,
    and_,
    case,
    cast,
    delete,
    func,
    literal,
    or_,
    select,
    union_all,
    update,
)

from completion import EndReason
from ledger.schema import daily, day_of, facts, first_id, group_daily, requests
from ledger.writing import COUNTED, COUNTS, INTERRUPTED

DAY_US = 86_400_000_000
APART_US = 3_600_000_000
"""The tolerance between a row's start and the time in its id, which are measured separately."""
PART_US = 1_000_000
"""How far a latency or time to first event may exceed the call's duration: they are measured
separately."""
MAX_PROBLEMS = 100
PRUNED_BEFORE = "pruned_before"
"""The name of the fact that stores an id. No id from this one on has been pruned."""

row = requests.c
settled = row.ended_us.is_not(None)
CHECKS = {
    "it ended before it started": row.ended_us < row.started_us,
    "it ended without an HTTP status": and_(
        settled, or_(row.status.is_(None), ~row.status.between(100, 599))
    ),
    "it ended without a known reason": and_(
        settled,
        or_(row.end_reason.is_(None), row.end_reason.not_in((*get_args(EndReason), INTERRUPTED))),
    ),
    "a count is negative": or_(
        *(row[name] < 0 for name in (*COUNTED, "attempts", "reserved_nano", "cost_nano"))
    ),
    "it has more cached tokens than input tokens": (
        row.cache_read_tokens + row.cache_write_tokens > row.input_tokens
    ),
    "it has more reasoning tokens than output tokens": row.reasoning_tokens > row.output_tokens,
    "its usage has no known source": row.usage_source.not_in(("provider", "estimate")),
    "it ended but still reserves part of a budget": and_(settled, row.reserved_nano != 0),
    "it ended without its durations": and_(
        settled, or_(row.duration_us.is_(None), row.latency_us.is_(None))
    ),
    "a duration is negative": or_(row.duration_us < 0, row.latency_us < 0, row.first_event_us < 0),
    "its latency or its time to the first event exceeds its duration": or_(
        row.latency_us > row.duration_us + PART_US, row.first_event_us > row.duration_us + PART_US
    ),
}
"""Problems that a row can have, each with the condition under which the row has it."""


class Verification(NamedTuple):
    rows: int
    """The number of rows that were checked."""
    problems: list[str]
    """A line for each problem. After MAX_PROBLEMS, one line says that there are more."""


def verify(connection: Connection, now_us: int) -> Verification:
    """Check the rows and the daily roll-up.

    Each row must be consistent, and none may have been open for more than a day. The roll-up of a
    day must be the sum of its settled rows, unless rows of that day may have been pruned.
    """
    days = set(connection.execute(select(daily.c.day).distinct()).scalars())
    rows, problems = 0, stale(connection, now_us)
    for start in starts_of_days(connection):
        days |= {day_of(start), day_of(start - DAY_US)}  # an id may be from the day after the start
        rows += count(connection, start)
        problems += inconsistent_rows(connection, start)
        if len(problems) > MAX_PROBLEMS:
            break
    problems += negative_sums(connection)
    whole_from = pruned_before(connection)
    for day in sorted(days):
        if first_id(start_of(day)) >= whole_from and len(problems) <= MAX_PROBLEMS:
            problems += differences(connection, day)
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = ["There are more."]
    return Verification(rows, problems)


def starts_of_days(connection: Connection) -> Iterator[int]:
    """Yield the start of each UTC day on which an id of `requests` was made, in microseconds."""
    after = ""
    while True:
        found = connection.execute(select(func.min(row.id)).where(row.id >= after)).scalar()
        if found is None:
            return
        moment = moment_of(found)
        start = moment - moment % DAY_US
        yield start
        after = first_id(start + DAY_US)


def count(connection: Connection, start: int) -> int:
    found = select(func.count()).select_from(requests).where(of_day(start))
    return int(connection.execute(found).scalar_one())


def of_day(start: int, around: int = 0) -> ColumnElement[bool]:
    """Return the condition for rows whose ids were made on a day.

    Args:
        start: the start of the day in microseconds since 1970.
        around: microseconds by which the range is extended at both ends.
    """
    return and_(
        row.id >= first_id(max(0, start - around)), row.id < first_id(start + DAY_US + around)
    )


def stale(connection: Connection, now_us: int) -> list[str]:
    """Return the problems of rows that have been open for more than a day."""
    old = and_(row.ended_us.is_(None), row.started_us < now_us - DAY_US)
    found = select(row.id, row.key_id, row.started_us).where(old).limit(MAX_PROBLEMS + 1)
    return [
        f"Row {id_} of {key_id} has been open since {day_of(started)}."
        for id_, key_id, started in connection.execute(found)
    ]


def inconsistent_rows(connection: Connection, start: int) -> list[str]:
    """Return the problems of single rows whose ids were made on a day."""
    apart = ~row.started_us.between(start - APART_US, start + DAY_US + APART_US)
    checks = CHECKS | {"its id doesn't match the time of its start": apart}
    flags = (case((wrong, 1), else_=0) for wrong in checks.values())
    found = select(row.id, row.key_id, *flags).where(of_day(start), or_(*checks.values()))
    return [
        f"Row {id_} of {key_id}: {', '.join(compress(checks, wrong))}."
        for id_, key_id, *wrong in connection.execute(found.limit(MAX_PROBLEMS + 1))
    ]


def negative_sums(connection: Connection) -> list[str]:
    wrong = or_(*(daily.c[name] < 0 for name in COUNTS))
    found = select(*daily.primary_key).where(wrong).limit(MAX_PROBLEMS + 1)
    return [f"A daily sum is negative: {', '.join(place)}." for place in connection.execute(found)]


OF_ROWS = {
    "requests": literal(1),
    "input_tokens": row.input_tokens,
    "output_tokens": row.output_tokens,
    "cost_nano": func.coalesce(row.cost_nano, 0),
    "unpriced": case((row.cost_nano.is_(None), 1), else_=0),
}
"""The amount that a row adds to each of COUNTS."""


def differences(connection: Connection, day: str) -> list[str]:
    """Return the differences between the roll-ups of a day and the sums of its settled rows."""
    place = ("key_id", "provider", "model", "endpoint")
    of_keys = [
        f"{day}, {key_id}, {provider}/{model}, {endpoint}: the daily sums {excess}"
        for (key_id, provider, model, endpoint), excess in excesses(connection, daily, place, day)
    ]
    return of_keys + [
        f"{day}, group {name}: the daily sums {excess}"
        for (name,), excess in excesses(connection, group_daily, ("group_name",), day)
    ]


def excesses(
    connection: Connection, sums: Table, place: Sequence[str], day: str
) -> list[tuple[tuple[str, ...], str]]:
    """Return the places at which a roll-up differs from the rows, and the differences in words.

    Both are read in one statement, so that a call that is settled meanwhile is in both or neither.

    Args:
        sums: the roll-up.
        place: its columns that have a column of `requests`, beside the day.
    """
    start = start_of(day)
    kept = select(
        *(sums.c[name] for name in place), *(sums.c[name].label(name) for name in COUNTS)
    ).where(sums.c.day == day)
    summed = (
        select(
            *(row[name] for name in place),
            *(cast(-func.sum(OF_ROWS[name]), BigInteger).label(name) for name in COUNTS),
        )
        .where(of_day(start, APART_US), row.started_us.between(start, start + DAY_US - 1), settled)
        .where(*(row[name].is_not(None) for name in place))
        .group_by(*(row[name] for name in place))
    )
    both = union_all(kept, summed).subquery().c
    excess: list[ColumnElement[Any]] = [cast(func.sum(both[name]), BigInteger) for name in COUNTS]
    found = (
        select(*(both[name] for name in place), *excess)
        .group_by(*(both[name] for name in place))
        .having(or_(*(sum_ != 0 for sum_ in excess)))
        .limit(MAX_PROBLEMS + 1)
    )
    return [
        (tuple(values[: len(place)]), f"differ from the rows by: {by(values[len(place) :])}")
        for values in connection.execute(found)
    ]


def by(counts: Sequence[int]) -> str:
    return ", ".join(f"{name} {more:+d}" for name, more in zip(COUNTS, counts, strict=True) if more)


def count_prunable(connection: Connection, before_us: int) -> int:
    """Return the number of rows that `prune` would delete."""
    found = select(func.count()).select_from(requests).where(prunable(before_us))
    return int(connection.execute(found).scalar_one())


def prune(connection: Connection, before_us: int, batch: int) -> int:
    """Delete the oldest settled rows that started before a time.

    The daily sums stay, and so do open rows.

    Args:
        before_us: the time in microseconds since 1970.
        batch: the number of rows to delete, apart from further rows of the same microsecond.

    Returns:
        The number of deleted rows; 0 when none are left.
    """
    last = connection.execute(
        select(row.id).where(prunable(before_us)).order_by(row.id).offset(batch - 1).limit(1)
    ).scalar()
    end = before_us if last is None else moment_of(last) + 1
    # Only one bound on the id: given two, SQLite may use the looser one, and read all old rows.
    some = and_(settled, row.id < first_id(end), row.started_us < before_us)
    deleted = connection.execute(delete(requests).where(some)).rowcount
    if deleted:
        note_pruned(connection, first_id(end))
    return deleted


def prunable(before_us: int) -> ColumnElement[bool]:
    return and_(settled, row.id < first_id(before_us), row.started_us < before_us)


def note_pruned(connection: Connection, whole_from: str) -> None:
    if pruned_before(connection):
        whole_from = max(whole_from, pruned_before(connection))
        connection.execute(
            update(facts).where(facts.c.name == PRUNED_BEFORE).values(value=whole_from)
        )
    else:
        connection.execute(facts.insert().values(name=PRUNED_BEFORE, value=whole_from))


def pruned_before(connection: Connection) -> str:
    """Return an id; no id from this one on has been pruned. Empty if no row was pruned."""
    found = select(facts.c.value).where(facts.c.name == PRUNED_BEFORE)
    return str(connection.execute(found).scalar() or "")


def moment_of(id_: str) -> int:
    """Return the time at which an id was made, in microseconds since 1970."""
    return int(id_[:14], 16)


def start_of(day: str) -> int:
    """Return the start of a UTC day in microseconds since 1970."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000_000


def backup(source: Path, target: Path) -> None:
    """Copy a snapshot of a SQLite database into a new file of mode 0600.

    The copy is written under a temporary name and renamed once it is complete.

    Raises:
        FileExistsError: the target already exists.
        OSError: the target can't be written.
        sqlite3.Error: the database can't be copied.
    """
    refuse_existing(target)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    copy = Path(name)
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as live,
            closing(sqlite3.connect(copy)) as new,
        ):
            live.backup(new)
        refuse_existing(target)
        copy.rename(target)
    finally:
        copy.unlink(missing_ok=True)


def refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
