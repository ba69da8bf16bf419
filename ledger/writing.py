"""The transaction that writes a group of the ledger's steps.

- Each step is idempotent, so that a group can be written again if its commit may have been lost. A
  row is inserted unless it exists, and settled only if it is open. Only rows settled in this
  transaction are added to the roll-up.
- A budget is checked in the transaction that opens the row, against the settled costs and the
  reservations of open rows, so that no other call can be admitted between the check and the row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import add
from typing import Any

from msgspec.structs import astuple
from sqlalchemy import (
    Connection,
    Table,
    Text,
    bindparam,
    delete,
    func,
    select,
    text,
    update,
)

from completion import Usage
from ledger.budgets import BudgetAccount, accounts_of, held_by, left_in, lock_of, refusal
from ledger.database import directly
from ledger.entries import Entry, LedgerStep, Opening, Settlement, Withdrawal
from ledger.schema import daily, day_of, group_daily, now_us, requests
from ledger.statements import Statement, execute, inserter

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
    """Lock the budgets of the keys and their groups for this transaction.

    Only Postgres needs this: on SQLite, the transaction already excludes all other writers.
    """
    if connection.dialect.name == "postgresql":
        # All in one order, because two processes that lock in different orders could deadlock.
        names = {lock_of(account) for opening in openings for account in accounts_of(opening)}
        execute(connection, LOCKING, [(name,) for name in sorted(names)])


def locking(_dialect: str) -> Any:
    return select(func.pg_advisory_xact_lock(func.hashtext(bindparam("key", type_=Text))))


def open_rows(connection: Connection, owner: str, openings: Sequence[Opening]) -> None:
    again = [opening.entry.id for opening in openings if opening.claim and opening.tried]
    left: dict[BudgetAccount, int] = {}
    # For each holder rather than each budget, as a budget may change within a group of steps.
    taken: dict[tuple[object, ...], int] = defaultdict(int)
    rows = []
    for opening in openings:
        reserved = 0
        opening.tried = True
        if opening.claim is not None:
            reserved = opening.claim.most_nano
            found = accounts_of(opening)
            for account in found:
                if account not in left:
                    left[account] = left_in(connection, account) + held_by(
                        connection, account, again
                    )
                room = left[account] - taken[account[:2]]
                opening.refusal = refusal(opening.claim, account, room)
                if opening.refusal is not None:
                    break
                reserved = min(reserved, max(0, room))
            if opening.refusal is not None:
                continue
            for account in found:
                taken[account[:2]] += reserved
        rows.append((*astuple(opening.entry), *AT_FIRST.values(), owner, reserved))
    execute(connection, INSERTION, rows)


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
    return addition_to(daily, dialect)


def group_addition(dialect: str) -> Any:
    """Return the statement that adds to rows of the groups' roll-up, or inserts them."""
    return addition_to(group_daily, dialect)


def addition_to(sums: Table, dialect: str) -> Any:
    insert = inserter(dialect)(sums)
    more = {name: sums.c[name] + insert.excluded[name] for name in COUNTS}
    return insert.on_conflict_do_update(index_elements=list(sums.primary_key), set_=more)


LOCKING = Statement(locking, ("key",))
OPENED = (*Entry.__struct_fields__, *AT_FIRST, "owner", "reserved_nano")
INSERTION = Statement(insertion, OPENED)
CLOSING = Statement(closing, (*Settlement.__struct_fields__, *Usage.__struct_fields__, "row"))
ADDITION = Statement(addition, (*(column.name for column in daily.primary_key), *COUNTS))
GROUP_ADDITION = Statement(group_addition, ("group_name", "day", *COUNTS))


def roll_up(connection: Connection, settlements: Iterable[Settlement]) -> None:
    sums: dict[tuple[str, ...], tuple[int, ...]] = {}
    of_groups: dict[tuple[str, ...], tuple[int, ...]] = {}
    for settlement in settlements:
        entry, usage, cost = settlement.entry, settlement.usage, settlement.cost_nano
        day, target = day_of(entry.started_us), (settlement.provider, settlement.model)
        place = (entry.key_id, day, *target, entry.endpoint)
        more = (1, usage.input_tokens, usage.output_tokens, cost or 0, int(cost is None))
        sums[place] = tuple(map(add, sums[place], more)) if place in sums else more
        if entry.group_name is not None:
            group = (entry.group_name, day)
            of_groups[group] = tuple(map(add, of_groups.get(group, NOTHING), more))
    # Sorted, because two processes that update rows in different orders could deadlock.
    execute(connection, ADDITION, [(*place, *counts) for place, counts in sorted(sums.items())])
    if of_groups:
        rows = [(*place, *counts) for place, counts in sorted(of_groups.items())]
        execute(connection, GROUP_ADDITION, rows)


NOTHING = (0,) * len(COUNTS)


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
