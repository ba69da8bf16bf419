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
from operator import itemgetter
from typing import Any

import msgspec
from sqlalchemy import Connection, Dialect, bindparam, delete, func, select, update

from completion import Usage
from errors import InsufficientCredits
from ledger.entries import Budget, Claim, Entry, Opening, Settlement, Step, Withdrawal
from ledger.schema import daily, day_of, now_us, requests
from pricing import dollars

INTERRUPTED = "interrupted"
INTERRUPTED_STATUS = 500


def write(connection: Connection, owner: str, steps: Sequence[Step]) -> None:
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
        for key_id in sorted({opening.entry.key_id for opening in openings if opening.claim}):
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(key_id))))


def open_rows(connection: Connection, owner: str, openings: Sequence[Opening]) -> None:
    ours = [opening.entry.id for opening in openings if opening.claim]
    left: dict[tuple[str, Budget], int] = {}
    taken: dict[str, int] = defaultdict(int)  # by key, whose budget may have changed within a group
    rows = []
    for opening in openings:
        reserved = 0
        if opening.claim is not None:
            place = (key_id := opening.entry.key_id, opening.claim.budget)
            if place not in left:
                left[place] = left_of(connection, *place, but=ours)
            room = left[place] - taken[key_id]
            opening.refusal = refusal(opening.claim, room)
            if opening.refusal is not None:
                continue
            reserved = min(opening.claim.most_nano, max(0, room))
            taken[key_id] += reserved
        rows.append(open_row(opening.entry, owner, reserved))
    execute(connection, insertion, rows)


def left_of(connection: Connection, key_id: str, budget: Budget, but: Sequence[str] = ()) -> int:
    """What neither a settled call nor an open one has taken of a budget, in nano-dollars. but:
    rows that don't count; they are there when their commit was lost, and are asked for again."""
    spent = select(func.sum(daily.c.cost_nano)).where(daily.c.key_id == key_id)
    if budget.since_day is not None:
        spent = spent.where(daily.c.day >= budget.since_day)
    held = select(func.sum(requests.c.reserved_nano)).where(
        requests.c.key_id == key_id, requests.c.ended_us.is_(None), requests.c.id.not_in(but)
    )
    # One statement: what another process settles between two would be in neither.
    both = select(spent.scalar_subquery(), held.scalar_subquery())
    return budget.limit_nano - sum(int(part or 0) for part in connection.execute(both).one())


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


def open_row(entry: Entry, owner: str, reserved: int) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(entry),
        **AT_FIRST,
        "owner": owner,
        "reserved_nano": reserved,
    }


def settle(connection: Connection, settlements: Sequence[Settlement]) -> None:
    rows = list(map(settled_row, settlements))
    if len(rows) > 1:  # all at once; in the rare case that one is settled already, one by one
        connection.exec_driver_sql("SAVEPOINT several")
        if execute(connection, closing_statement, rows) == len(rows):
            connection.exec_driver_sql("RELEASE SAVEPOINT several")
            roll_up(connection, settlements)
            return
        connection.exec_driver_sql("ROLLBACK TO SAVEPOINT several")
    closed = [
        settlement
        for settlement, row in zip(settlements, rows, strict=True)
        if execute(connection, closing_statement, [row])
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


def settled_row(settlement: Settlement) -> dict[str, Any]:
    row = {name: getattr(settlement, name) for name in COPIED}
    row |= {name: getattr(settlement.usage, name) for name in COUNTED}
    row |= {"usage_source": settlement.usage.source, "reserved_nano": 0}
    row["row"] = settlement.entry.id
    return row


def closing_statement(_dialect: str) -> Any:
    names = (*COPIED, *COUNTED, "usage_source", "reserved_nano")
    mine = (requests.c.id == bindparam("row")) & requests.c.ended_us.is_(None)
    return update(requests).where(mine).values({n: bindparam(n) for n in names})


def insertion(dialect: str) -> Any:
    insert = inserter(dialect)(requests)
    names = (*Entry.__struct_fields__, *AT_FIRST, "owner", "reserved_nano")
    return insert.values({n: bindparam(n) for n in names}).on_conflict_do_nothing()


COUNTS = ("requests", "input_tokens", "output_tokens", "cost_nano", "unpriced")


def addition(dialect: str) -> Any:
    """Adds to the rows of the roll-up, or makes them."""
    insert = inserter(dialect)(daily)
    more = {name: daily.c[name] + insert.excluded[name] for name in COUNTS}
    return insert.on_conflict_do_update(index_elements=list(daily.primary_key), set_=more)


def inserter(dialect: str) -> Any:
    """The database's own INSERT, which knows ON CONFLICT. Its package is loaded on first use."""
    return import_module(f"sqlalchemy.dialects.{dialect}").insert


def execute(
    connection: Connection, statement: Callable[[str], Any], rows: Iterable[dict[str, Any]]
) -> int:
    """Run a statement for each of some rows. Returns how many rows it has touched."""
    text, parameters = prepared(statement, connection.dialect)
    several = list(map(parameters, rows))
    return connection.exec_driver_sql(text, several).rowcount if several else 0


@cache
def prepared(
    statement: Callable[[str], Any], dialect: Dialect
) -> tuple[str, Callable[[dict[str, Any]], Any]]:
    """A statement's text, and what makes its parameters of a row: prepared once, because it costs
    more than to execute it."""
    compiled = statement(dialect.name).compile(dialect=dialect)
    order = compiled.positiontup
    return str(compiled), itemgetter(*order) if order else dict


def roll_up(connection: Connection, settlements: Iterable[Settlement]) -> None:
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for settlement in settlements:
        entry, usage, cost = settlement.entry, settlement.usage, settlement.cost_nano
        target = (settlement.provider, settlement.model)
        place = (entry.key_id, day_of(entry.started_us), *target, entry.endpoint)
        more = (1, usage.input_tokens, usage.output_tokens, cost or 0, int(cost is None))
        sums[place] = [old + new for old, new in zip(sums[place], more, strict=True)]
    if sums:  # in order, or two processes could wait for each other
        names = [*(column.name for column in daily.primary_key), *COUNTS]
        rows = [
            dict(zip(names, (*place, *counts), strict=True))
            for place, counts in sorted(sums.items())
        ]
        execute(connection, addition, rows)


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
