"""Looking after the ledger: whether it adds up, what is old goes, and a copy of it.

Rules that hold here: all of it works while the server serves, in bounded memory, a day of requests
or a batch of them at a time.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
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
from ledger.schema import daily, day_of, facts, first_id, requests
from ledger.writing import COUNTED, COUNTS, INTERRUPTED

DAY_US = 86_400_000_000
APART_US = 3_600_000_000
"""How far a row's start may be from the moment in its id, which is another clock reading."""
PART_US = 1_000_000
"""How much longer than the whole a part may be: they are read from the clock one by one."""
MOST_PROBLEMS = 100
PRUNED_BEFORE = "pruned_before"
"""The fact that says where the whole rows begin: a first id."""

row = requests.c
settled = row.ended_us.is_not(None)
CHECKS = {
    "it ended before it began": row.ended_us < row.started_us,
    "it has ended without an HTTP status": and_(
        settled, or_(row.status.is_(None), ~row.status.between(100, 599))
    ),
    "it has ended without a known reason": and_(
        settled,
        or_(row.end_reason.is_(None), row.end_reason.not_in((*get_args(EndReason), INTERRUPTED))),
    ),
    "a count is negative": or_(
        *(row[name] < 0 for name in (*COUNTED, "attempts", "reserved_nano", "cost_nano"))
    ),
    "more tokens are cached than came in": (
        row.cache_read_tokens + row.cache_write_tokens > row.input_tokens
    ),
    "more tokens are reasoning than came out": row.reasoning_tokens > row.output_tokens,
    "its usage has no known source": row.usage_source.not_in(("provider", "estimate")),
    "it has ended and still holds some of a budget": and_(settled, row.reserved_nano != 0),
    "it has ended without its durations": and_(
        settled, or_(row.duration_us.is_(None), row.latency_us.is_(None))
    ),
    "a duration is negative": or_(row.duration_us < 0, row.latency_us < 0, row.first_event_us < 0),
    "a part took longer than the whole": or_(
        row.latency_us > row.duration_us + PART_US, row.first_event_us > row.duration_us + PART_US
    ),
}
"""What is wrong with a row where the condition holds."""


class Verification(NamedTuple):
    """rows: how many were looked at. problems: a line each, MOST_PROBLEMS and one at most."""

    rows: int
    problems: list[str]


def verify(connection: Connection, now_us: int) -> Verification:
    """Whether each row makes sense, none has been open for more than a day, and the daily roll-up
    is the sum of the settled rows on those days of which none has been pruned."""
    days = set(connection.execute(select(daily.c.day).distinct()).scalars())
    rows, problems = 0, stale(connection, now_us)
    for start in starts_of_days(connection):
        days |= {day_of(start), day_of(start - DAY_US)}  # of a row, its id can be the next day's
        rows += count(connection, start)
        problems += unsound(connection, start)
        if len(problems) > MOST_PROBLEMS:
            break
    problems += negative_sums(connection)
    whole_from = pruned_before(connection)
    for day in sorted(days):
        if first_id(start_of(day)) >= whole_from and len(problems) <= MOST_PROBLEMS:
            problems += differences(connection, day)
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = ["There are more."]
    return Verification(rows, problems)


def starts_of_days(connection: Connection) -> Iterator[int]:
    """When each UTC day began in which an id of `requests` was made; microseconds."""
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
    """The rows whose id was made on the day that began then, or that many microseconds around."""
    return and_(
        row.id >= first_id(max(0, start - around)), row.id < first_id(start + DAY_US + around)
    )


def stale(connection: Connection, now_us: int) -> list[str]:
    old = and_(row.ended_us.is_(None), row.started_us < now_us - DAY_US)
    found = select(row.id, row.key_id, row.started_us).where(old).limit(MOST_PROBLEMS + 1)
    return [
        f"Row {id_} of {key_id} has been open since {day_of(started)}."
        for id_, key_id, started in connection.execute(found)
    ]


def unsound(connection: Connection, start: int) -> list[str]:
    """The problems of single rows, of the ids of a day."""
    apart = ~row.started_us.between(start - APART_US, start + DAY_US + APART_US)
    checks = CHECKS | {"its id is of another time than its start": apart}
    flags = (case((wrong, 1), else_=0) for wrong in checks.values())
    found = select(row.id, row.key_id, *flags).where(of_day(start), or_(*checks.values()))
    return [
        f"Row {id_} of {key_id}: {', '.join(compress(checks, wrong))}."
        for id_, key_id, *wrong in connection.execute(found.limit(MOST_PROBLEMS + 1))
    ]


def negative_sums(connection: Connection) -> list[str]:
    wrong = or_(*(daily.c[name] < 0 for name in COUNTS))
    found = select(*daily.primary_key).where(wrong).limit(MOST_PROBLEMS + 1)
    return [f"A daily sum is negative: {', '.join(place)}." for place in connection.execute(found)]


def differences(connection: Connection, day: str) -> list[str]:
    """Where the roll-up of a day isn't the sum of its settled rows. One statement, so that what is
    settled meanwhile is in both or in neither."""
    start = start_of(day)
    place = ("key_id", "provider", "model", "endpoint")
    of_rows = {
        "requests": literal(1),
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cost_nano": func.coalesce(row.cost_nano, 0),
        "unpriced": case((row.cost_nano.is_(None), 1), else_=0),
    }
    kept = select(
        *(daily.c[name] for name in place), *(daily.c[name].label(name) for name in COUNTS)
    ).where(daily.c.day == day)
    summed = (
        select(
            *(row[name] for name in place),
            *(cast(-func.sum(of_rows[name]), BigInteger).label(name) for name in COUNTS),
        )
        .where(of_day(start, APART_US), row.started_us.between(start, start + DAY_US - 1), settled)
        .group_by(*(row[name] for name in place))
    )
    both = union_all(kept, summed).subquery().c
    excess: list[ColumnElement[Any]] = [cast(func.sum(both[name]), BigInteger) for name in COUNTS]
    found = (
        select(*(both[name] for name in place), *excess)
        .group_by(*(both[name] for name in place))
        .having(or_(*(sum_ != 0 for sum_ in excess)))
        .limit(MOST_PROBLEMS + 1)
    )
    return [
        f"{day}, {key_id}, {provider}/{model}, {endpoint}: the daily sums have more than the rows: "
        + ", ".join(f"{name} {more:+d}" for name, more in zip(COUNTS, counts, strict=True) if more)
        for key_id, provider, model, endpoint, *counts in connection.execute(found)
    ]


def older(connection: Connection, before_us: int) -> int:
    """How many rows `prune` would delete."""
    found = select(func.count()).select_from(requests).where(prunable(before_us))
    return int(connection.execute(found).scalar_one())


def prune(connection: Connection, before_us: int, batch: int) -> int:
    """Delete the oldest settled rows that began before then, `batch` of them and those of the same
    microsecond; the daily sums stay, and so do open rows. Returns how many; 0: none are left."""
    last = connection.execute(
        select(row.id).where(prunable(before_us)).order_by(row.id).offset(batch - 1).limit(1)
    ).scalar()
    end = before_us if last is None else moment_of(last) + 1
    # One bound only: SQLite would search by the first that it finds, to the end of the old rows.
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
    """No row with an id that sorts after this was ever pruned. Empty: none at all."""
    found = select(facts.c.value).where(facts.c.name == PRUNED_BEFORE)
    return str(connection.execute(found).scalar() or "")


def moment_of(id_: str) -> int:
    """When an id was made; microseconds since 1970."""
    return int(id_[:14], 16)


def start_of(day: str) -> int:
    """When a UTC day began; microseconds since 1970."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000_000


def backup(source: Path, target: Path) -> None:
    """Copy a SQLite database as it is at one moment into a new file (mode 0600), which has its name
    once it is complete. Raises OSError (FileExistsError: there is one), sqlite3.Error."""
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
