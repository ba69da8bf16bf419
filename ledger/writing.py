"""The transaction that writes a group of the ledger's steps.

- Each step is idempotent, so that a group can be written again if its commit may have been lost. A
  row is inserted unless it exists, and settled only if it is open. Only rows settled in this
  transaction are added to the roll-up.
- A budget is checked in the transaction that opens the row, against the settled costs and the
  reservations of open rows, so that no other call can be admitted between the check and the row.
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
    """Write steps in the current transaction, and set `refusal` and `tried` of each opening."""
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
    """Lock the budgets of the keys for this transaction.

    Only Postgres needs this: on SQLite, the transaction already excludes all other writers.
    """
    if connection.dialect.name == "postgresql":
        keys = {opening.entry.key_id for opening in openings if opening.claim}
        execute(connection, LOCKING, [(key_id,) for key_id in sorted(keys)])


def locking(_dialect: str) -> Any:
    return select(func.pg_advisory_xact_lock(func.hashtext(bindparam("key", type_=Text))))


def open_rows(connection: Connection, owner: str, openings: Sequence[Opening]) -> None:
    again = [opening.entry.id for opening in openings if opening.claim and opening.tried]
    left: dict[tuple[str, Budget], int] = {}
    # For each key rather than each budget, as a key's budget may change within a group.
    taken: dict[str, int] = defaultdict(int)
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
    """Return what settled calls and reservations have left of a budget, in nano-dollars."""
    query, parameters = prepared(BALANCE, connection.dialect)
    found = connection.exec_driver_sql(query, parameters((key_id, budget.since_day or "")))
    return budget.limit_nano - sum(int(part or 0) for part in found.one())


def balance(_dialect: str) -> Any:
    """Return the query for a key's settled cost since a day, and its reservations."""
    spent = select(func.sum(daily.c.cost_nano)).where(
        daily.c.key_id == bindparam("key"), daily.c.day >= bindparam("since")
    )
    held = select(func.sum(requests.c.reserved_nano)).where(
        requests.c.key_id == bindparam("key"), requests.c.ended_us.is_(None)
    )
    # One statement: with two, a call that another process settled in between would be in neither.
    return select(spent.scalar_subquery(), held.scalar_subquery())


def held_by(connection: Connection, key_id: str, ids: Sequence[str]) -> int:
    """Return a key's reservations in rows with these ids, in nano-dollars.

    An earlier attempt to open these rows may have been committed without this process knowing it.
    """
    if not ids:
        return 0
    mine = requests.c.id.in_(ids) & (requests.c.key_id == key_id)
    held = select(func.sum(requests.c.reserved_nano)).where(mine)
    return int(connection.execute(held).scalar() or 0)


def refusal(claim: Claim, left: int) -> InsufficientCredits | None:
    """Return the error if the budget has no room for a call, else None. A free call always fits."""
    if claim.most_nano == 0 or (left > 0 and left >= claim.least_nano):
        return None
    limit, rest, need = (
        f"${nano / 1e9:.9f}".rstrip("0").rstrip(".")
        for nano in (claim.budget.limit_nano, max(0, left), claim.least_nano)
    )
    return InsufficientCredits(
        f"This key's budget of {limit} has {rest} left, but this call may cost {need}.",
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
    # Try all rows at once. In the rare case that one of them isn't open, settle them one by one to
    # find out which ones to add to the roll-up.
    if len(rows) > 1:
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
"""The columns that a settlement sets from its own fields (COPIED) and from its usage (COUNTED)."""


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
    """Return the statement that adds to rows of the roll-up, or inserts them."""
    insert = inserter(dialect)(daily)
    more = {name: daily.c[name] + insert.excluded[name] for name in COUNTS}
    return insert.on_conflict_do_update(index_elements=list(daily.primary_key), set_=more)


def inserter(dialect: str) -> Any:
    """Return SQLAlchemy's INSERT for the dialect, which supports ON CONFLICT.

    Imported here so that only the dialect in use is loaded.
    """
    return import_module(f"sqlalchemy.dialects.{dialect}").insert


class Statement(NamedTuple):
    make: Callable[[str], Any]
    """A function that returns the statement for a dialect."""
    names: tuple[str, ...]
    """The names of the values in a row of parameters. The statement may use only some of them."""


LOCKING = Statement(locking, ("key",))
BALANCE = Statement(balance, ("key", "since"))
OPENED = (*Entry.__struct_fields__, *AT_FIRST, "owner", "reserved_nano")
INSERTION = Statement(insertion, OPENED)
CLOSING = Statement(closing, (*Settlement.__struct_fields__, *Usage.__struct_fields__, "row"))
ADDITION = Statement(addition, (*(column.name for column in daily.primary_key), *COUNTS))


def execute(connection: Connection, statement: Statement, rows: Iterable[tuple[Any, ...]]) -> int:
    """Execute a statement for each row of parameters and return the number of affected rows."""
    query, parameters = prepared(statement, connection.dialect)
    several = list(map(parameters, rows))
    return directly(connection, query, several=several).rowcount if several else 0


@cache
def prepared(
    statement: Statement, dialect: Dialect
) -> tuple[str, Callable[[tuple[Any, ...]], Any]]:
    """Return a statement's SQL, and a function that turns a row into the parameters.

    Cached, because compiling a statement costs more than executing it.
    """
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
    # Sorted, because two processes that update rows in different orders could deadlock.
    execute(connection, ADDITION, [(*place, *counts) for place, counts in sorted(sums.items())])


def owners_of_open(connection: Connection) -> list[str]:
    still_open = select(requests.c.owner).where(requests.c.ended_us.is_(None))
    return list(connection.execute(still_open.distinct()).scalars())


def interrupt(connection: Connection, owner: str) -> int:
    """Settle the open rows of a dead process as interrupted, and return their number."""
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
