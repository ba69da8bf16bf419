"""The transaction that writes many steps at once.

Rules that hold here: whatever is done twice counts once (a row is opened if it isn't there, settled
if it is open, and only what was settled is added to the roll-up), so that a group whose commit
may have been lost can be written again. A budget is checked in the transaction that opens the row,
against what is settled and what other open rows hold: nothing comes in between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import import_module
from operator import add, itemgetter
from typing import Any, NamedTuple

from msgspec.structs import astuple
from sqlalchemy import Connection, Dialect, Text, bindparam, delete, func, select, text, update

from completion import Usage
from errors import InsufficientCredits
from ledger.database import directly
from ledger.entries import Budget, Claim, Entry, LedgerStep, Opening, Settlement, Withdrawal
from ledger.pricing import dollars
from ledger.schema import daily, day_of, now_us, requests

INTERRUPTED = "interrupted"
INTERRUPTED_STATUS = 500


def write(connection: Connection, owner: str, steps: Sequence[LedgerStep]) -> None:
    """Write some steps, within a transaction of the writer's. Sets `refusal` of an Opening."""
    openings = [step for step in steps if isinstance(step, Opening)]
    withdrawn = [step.id for step in steps if isinstance(step, Withdrawal)]
    lock_budgets(connection, openings)
    settle(connection, [step for step in steps if isinstance(step, Settlement)])
    open_rows(connection, owner, openings)
    withdrawn += [opening.entry.id for opening in openings if opening.refusal]
    if withdrawn:
        still_open = requests.c.id.in_(withdrawn) & requests.c.ended_us.is_(None)
        connection.execute(delete(requests).where(still_open))


def lock_budgets(connection: Connection, openings: Iterable[Opening]) -> None:
    """On Postgres other processes may open calls of the same key; on SQLite nobody writes now."""
    if connection.dialect.name == "postgresql":
        keys = {opening.entry.key_id for opening in openings if opening.claim}
        execute(connection, LOCKING, [(key_id,) for key_id in sorted(keys)])


def locking(_dialect: str) -> Any:
    return select(func.pg_advisory_xact_lock(func.hashtext(bindparam("key", type_=Text))))


def open_rows(connection: Connection, owner: str, openings: Sequence[Opening]) -> None:
    again = [opening.entry.id for opening in openings if opening.claim and opening.tried]
    left: dict[tuple[str, Budget], int] = {}
    taken: dict[str, int] = defaultdict(int)  # by key, whose budget may have changed within a group
    rows = []
    for opening in openings:
        reserved = 0
        opening.tried = True
        if opening.claim is not None:
            place = (key_id := opening.entry.key_id, opening.claim.budget)
            if place not in left:
                left[place] = left_of(connection, *place) + held_by(connection, key_id, again)
            room = left[place] - taken[key_id]
            opening.refusal = refusal(opening.claim, room)
            if opening.refusal is not None:
                continue
            reserved = min(opening.claim.most_nano, max(0, room))
            taken[key_id] += reserved
        rows.append((*astuple(opening.entry), *AT_FIRST.values(), owner, reserved))
    execute(connection, INSERTION, rows)


def left_of(connection: Connection, key_id: str, budget: Budget) -> int:
    """What neither a settled call nor an open one has taken of a budget, in nano-dollars."""
    query, parameters = prepared(BALANCE, connection.dialect)
    found = connection.exec_driver_sql(query, parameters((key_id, budget.since_day or "")))
    return budget.limit_nano - sum(int(part or 0) for part in found.one())


def balance(_dialect: str) -> Any:
    """What is settled since a day, and what is held."""
    spent = select(func.sum(daily.c.cost_nano)).where(
        daily.c.key_id == bindparam("key"), daily.c.day >= bindparam("since")
    )
    held = select(func.sum(requests.c.reserved_nano)).where(
        requests.c.key_id == bindparam("key"), requests.c.ended_us.is_(None)
    )
    # One statement: what another process settles between two would be in neither.
    return select(spent.scalar_subquery(), held.scalar_subquery())


def held_by(connection: Connection, key_id: str, ids: Sequence[str]) -> int:
    """What rows of ours hold that are to be opened again: nobody heard of their commit."""
    if not ids:
        return 0
    mine = requests.c.id.in_(ids) & (requests.c.key_id == key_id)
    held = select(func.sum(requests.c.reserved_nano)).where(mine)
    return int(connection.execute(held).scalar() or 0)


def refusal(claim: Claim, left: int) -> InsufficientCredits | None:
    """None when the budget has room for the call. What costs nothing always fits."""
    if claim.most_nano == 0 or (left > 0 and left >= claim.least_nano):
        return None
    limit, rest, need = (
        f"${nano / 1e9:.9f}".rstrip("0").rstrip(".")
        for nano in (claim.budget.limit_nano, max(0, left), claim.least_nano)
    )
    return InsufficientCredits(
        f"This key's budget of {limit} has {rest} left, and this call may cost {need}.",
        details={
            "limit_type": "budget",
            "limit": dollars(claim.budget.limit_nano),
            "remaining": dollars(max(0, left)),
            "needed": dollars(claim.least_nano),
        },
    )


AT_FIRST = {
    **dict.fromkeys(("output_tokens", "cache_read_tokens", "cache_write_tokens"), 0),
    "reasoning_tokens": 0,
    "usage_source": "estimate",
    "attempts": 0,
}


def settle(connection: Connection, settlements: Sequence[Settlement]) -> None:
    rows = [(*astuple(one), *astuple(one.usage), one.entry.id) for one in settlements]
    if len(rows) > 1:  # all at once; in the rare case that one is settled already, one by one
        directly(connection, "SAVEPOINT several")
        if execute(connection, CLOSING, rows) == len(rows):
            directly(connection, "RELEASE SAVEPOINT several")
            roll_up(connection, settlements)
            return
        directly(connection, "ROLLBACK TO SAVEPOINT several")
    closed = [
        settlement
        for settlement, row in zip(settlements, rows, strict=True)
        if execute(connection, CLOSING, [row])
    ]
    roll_up(connection, closed)


COPIED = (
    *("provider", "model", "status", "end_reason", "error_code", "cost_nano", "attempts", "tries"),
    *("ended_us", "duration_us", "latency_us", "first_event_us"),
)
COUNTED = (
    *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
    "reasoning_tokens",
)
"""Columns that a settlement sets: its own fields, and those of its usage."""


def closing(_dialect: str) -> Any:
    mine = (requests.c.id == bindparam("row")) & requests.c.ended_us.is_(None)
    values: dict[str, Any] = {name: bindparam(name) for name in (*COPIED, *COUNTED)}
    values["usage_source"] = bindparam("source")
    return update(requests).where(mine).values(values | {"reserved_nano": text("0")})


def insertion(dialect: str) -> Any:
    insert = inserter(dialect)(requests)
    return insert.values({n: bindparam(n) for n in OPENED}).on_conflict_do_nothing()


COUNTS = ("requests", "input_tokens", "output_tokens", "cost_nano", "unpriced")


def addition(dialect: str) -> Any:
    """Adds to the rows of the roll-up, or makes them."""
    insert = inserter(dialect)(daily)
    more = {name: daily.c[name] + insert.excluded[name] for name in COUNTS}
    return insert.on_conflict_do_update(index_elements=list(daily.primary_key), set_=more)


def inserter(dialect: str) -> Any:
    """The database's own INSERT, which knows ON CONFLICT. Its package is loaded on first use."""
    return import_module(f"sqlalchemy.dialects.{dialect}").insert


class Statement(NamedTuple):
    """make: gives it, for a dialect. names: what it calls each value of a row of parameters, of
    which it may leave some out."""

    make: Callable[[str], Any]
    names: tuple[str, ...]


LOCKING = Statement(locking, ("key",))
BALANCE = Statement(balance, ("key", "since"))
OPENED = (*Entry.__struct_fields__, *AT_FIRST, "owner", "reserved_nano")
INSERTION = Statement(insertion, OPENED)
CLOSING = Statement(closing, (*Settlement.__struct_fields__, *Usage.__struct_fields__, "row"))
ADDITION = Statement(addition, (*(column.name for column in daily.primary_key), *COUNTS))


def execute(connection: Connection, statement: Statement, rows: Iterable[tuple[Any, ...]]) -> int:
    """Run a statement for each of some rows. Returns how many rows it has touched."""
    query, parameters = prepared(statement, connection.dialect)
    several = list(map(parameters, rows))
    return directly(connection, query, several=several).rowcount if several else 0


@cache
def prepared(
    statement: Statement, dialect: Dialect
) -> tuple[str, Callable[[tuple[Any, ...]], Any]]:
    """A statement's text, and what makes its parameters of a row: prepared once, because it costs
    more than to execute it."""
    compiled = statement.make(dialect.name).compile(dialect=dialect)
    place = statement.names.index
    if compiled.positiontup:
        return str(compiled), itemgetter(*map(place, compiled.positiontup))
    wanted = [(name, place(name)) for name in compiled.params]
    return str(compiled), lambda row: {name: row[number] for name, number in wanted}


def roll_up(connection: Connection, settlements: Iterable[Settlement]) -> None:
    sums: dict[tuple[str, ...], tuple[int, ...]] = {}
    for settlement in settlements:
        entry, usage, cost = settlement.entry, settlement.usage, settlement.cost_nano
        target = (settlement.provider, settlement.model)
        place = (entry.key_id, day_of(entry.started_us), *target, entry.endpoint)
        more = (1, usage.input_tokens, usage.output_tokens, cost or 0, int(cost is None))
        sums[place] = tuple(map(add, sums[place], more)) if place in sums else more
    # In order, or two processes could wait for each other.
    execute(connection, ADDITION, [(*place, *counts) for place, counts in sorted(sums.items())])


def owners_of_open(connection: Connection) -> list[str]:
    still_open = select(requests.c.owner).where(requests.c.ended_us.is_(None))
    return list(connection.execute(still_open.distinct()).scalars())


def interrupt(connection: Connection, owner: str) -> int:
    """Close the open rows of a process that has ended. Returns how many."""
    columns = [requests.c[name] for name in (*Entry.__struct_fields__, "reserved_nano")]
    of_owner = (requests.c.owner == owner) & requests.c.ended_us.is_(None)
    found = connection.execute(select(*columns).where(of_owner)).mappings().all()
    settle(
        connection,
        [interruption(Entry(**{n: row[n] for n in Entry.__struct_fields__})) for row in found],
    )
    return len(found)


def interruption(entry: Entry) -> Settlement:
    now = now_us()
    return Settlement(
        entry=entry,
        provider=entry.provider,
        model=entry.model,
        status=INTERRUPTED_STATUS,
        end_reason=INTERRUPTED,
        error_code=None,
        usage=Usage(input_tokens=entry.input_tokens, source="estimate"),
        cost_nano=entry.cost_nano,
        attempts=0,
        ended_us=max(now, entry.started_us),
        duration_us=max(0, now - entry.started_us),
        latency_us=0,
        first_event_us=None,
    )
