"""What is written of a call, and the transaction that writes many at once.

Rules that hold here: whatever is done twice counts once (a row is opened if it isn't there, settled
if it is open, and only what was settled is added to the roll-up), so that a group whose commit
may have been lost can be written again. A budget is checked in the transaction that opens the row,
against what is settled and what other open rows hold: nothing comes in between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias

import msgspec
from sqlalchemy import (
    Connection,
    Update,
    bindparam,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from completion import Usage
from errors import InsufficientCredits
from pricing import dollars
from schema import daily, day_of, now_us, requests

INTERRUPTED = "interrupted"
INTERRUPTED_STATUS = 500


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it is opened. The tokens and the cost are estimates of its input; they stay when
    its process dies. model: the target's own name for it."""

    id: str
    request_id: str
    stream_id: str
    key_id: str
    endpoint: str
    provider: str
    model: str
    streamed: bool
    byok: bool
    started_us: int
    input_tokens: int
    cost_nano: int | None


class Budget(msgspec.Struct, frozen=True):
    """What a key may spend from a UTC day on (None: ever), in nano-dollars."""

    limit_nano: int
    since_day: str | None = None


class Claim(msgspec.Struct, frozen=True):
    """What a call takes of a budget while it is open: `most`, or what is left of the budget if
    that is at least `least`. Nano-dollars."""

    budget: Budget
    least_nano: int
    most_nano: int


class Opening(msgspec.Struct):
    entry: Entry
    claim: Claim | None = None
    refusal: InsufficientCredits | None = None
    """Set when the budget had no room: there is no row then."""
    failed: bool = False
    """Set when the row could not be written."""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended, and what it came to."""

    entry: Entry
    provider: str
    model: str
    status: int
    end_reason: str
    error_code: str | None
    usage: Usage
    cost_nano: int | None
    attempts: int
    ended_us: int
    duration_us: int
    latency_us: int
    first_event_us: int | None
    tries: str | None = None
    """Of more than one attempt: what each came to, as JSON."""


class Withdrawal(msgspec.Struct, frozen=True):
    """A call that was refused after its row may have been written."""

    id: str


Step: TypeAlias = Opening | Settlement | Withdrawal


def write(connection: Connection, owner: str, steps: Sequence[Step]) -> None:
    """Write some steps, within a transaction of the writer's. Sets `refusal` of an Opening."""
    openings = [step for step in steps if isinstance(step, Opening)]
    withdrawn = [step.id for step in steps if isinstance(step, Withdrawal)]
    lock_budgets(connection, openings)
    settle(connection, [step for step in steps if isinstance(step, Settlement)])
    open_rows(connection, owner, openings)
    if withdrawn:
        still_open = requests.c.id.in_(withdrawn) & requests.c.ended_us.is_(None)
        connection.execute(delete(requests).where(still_open))


def lock_budgets(connection: Connection, openings: Iterable[Opening]) -> None:
    """On Postgres other processes may open calls of the same key; on SQLite nobody writes now."""
    if connection.dialect.name == "postgresql":
        for key_id in sorted({opening.entry.key_id for opening in openings if opening.claim}):
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(key_id))))


def open_rows(connection: Connection, owner: str, openings: Iterable[Opening]) -> None:
    left: dict[tuple[str, Budget], int] = {}
    rows = []
    for opening in openings:
        reserved = 0
        if opening.claim is not None:
            place = (opening.entry.key_id, opening.claim.budget)
            if place not in left:
                left[place] = left_of(connection, *place)
            opening.refusal = refusal(opening.claim, left[place])
            if opening.refusal is not None:
                continue
            reserved = min(opening.claim.most_nano, max(0, left[place]))
            left[place] -= reserved
        rows.append(open_row(opening.entry, owner, reserved))
    if rows:
        connection.execute(insertion(connection.dialect.name), rows)


def left_of(connection: Connection, key_id: str, budget: Budget) -> int:
    """What neither a settled call nor an open one has taken of a budget, in nano-dollars."""
    spent = select(func.sum(daily.c.cost_nano)).where(daily.c.key_id == key_id)
    if budget.since_day is not None:
        spent = spent.where(daily.c.day >= budget.since_day)
    held = select(func.sum(requests.c.reserved_nano)).where(
        requests.c.key_id == key_id, requests.c.ended_us.is_(None)
    )
    taken = (int(connection.execute(query).scalar() or 0) for query in (spent, held))
    return budget.limit_nano - sum(taken)


def refusal(claim: Claim, left: int) -> InsufficientCredits | None:
    """None when the budget has room for the call. What costs nothing always fits."""
    if claim.most_nano == 0 or (left > 0 and left >= claim.least_nano):
        return None
    limit, rest, need = (
        f"${nano / 1e9:.6f}".rstrip("0").rstrip(".")
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


def open_row(entry: Entry, owner: str, reserved: int) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(entry),
        "owner": owner,
        "reserved_nano": reserved,
        "output_tokens": 0,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
        "usage_source": "estimate",
        "attempts": 0,
    }


def settle(connection: Connection, settlements: Sequence[Settlement]) -> None:
    if not settlements:
        return
    rows = [settled_row(settlement) for settlement in settlements]
    closing = closing_statement()
    if len(rows) > 1:
        with connection.begin_nested() as attempt:
            if connection.execute(closing, rows).rowcount == len(rows):
                roll_up(connection, settlements)
                return
            attempt.rollback()
    closed = [
        settlement
        for settlement, row in zip(settlements, rows, strict=True)
        if connection.execute(closing, row).rowcount
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
    row["usage_source"] = settlement.usage.source
    row["row"] = settlement.entry.id
    return row


@cache
def closing_statement() -> Update:
    values: dict[str, Any] = {n: bindparam(n) for n in (*COPIED, *COUNTED, "usage_source")}
    mine = (requests.c.id == bindparam("row")) & requests.c.ended_us.is_(None)
    return update(requests).where(mine).values(reserved_nano=0, **values)


@cache
def insertion(dialect: str) -> Any:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(requests).on_conflict_do_nothing()


COUNTS = ("requests", "input_tokens", "output_tokens", "cost_nano", "unpriced")


@cache
def addition(dialect: str) -> Any:
    """Adds to the rows of the roll-up, or makes them."""
    insert = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(daily)
    more = {name: daily.c[name] + insert.excluded[name] for name in COUNTS}
    return insert.on_conflict_do_update(index_elements=list(daily.primary_key), set_=more)


def roll_up(connection: Connection, settlements: Iterable[Settlement]) -> None:
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    for settlement in settlements:
        entry, usage, cost = settlement.entry, settlement.usage, settlement.cost_nano
        place = (
            *(entry.key_id, day_of(entry.started_us)),
            *(settlement.provider, settlement.model, entry.endpoint),
        )
        more = (1, usage.input_tokens, usage.output_tokens, cost or 0, int(cost is None))
        sums[place] = [old + new for old, new in zip(sums[place], more, strict=True)]
    if sums:  # in order, or two processes could wait for each other
        names = [*(column.name for column in daily.primary_key), *COUNTS]
        rows = [
            dict(zip(names, (*place, *counts), strict=True))
            for place, counts in sorted(sums.items())
        ]
        connection.execute(addition(connection.dialect.name), rows)


def owners_of_open(connection: Connection) -> list[str]:
    return list(
        connection.execute(
            select(requests.c.owner).where(requests.c.ended_us.is_(None)).distinct()
        ).scalars()
    )


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
