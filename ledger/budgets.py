"""Budgets of keys and of groups of keys: what is left of them, and the refusal of calls.

- A call must fit the budgets of its key and of the key's group. It reserves no more than either has
  left.
- The functions read in the transaction that opens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Table, bindparam, func, select

from errors import InsufficientCredits, of_group
from ledger.database import directly
from ledger.entries import Budget, Claim, Opening
from ledger.pricing import dollars
from ledger.schema import daily, group_daily, requests
from ledger.statements import Statement, prepared

BudgetAccount: TypeAlias = tuple[bool, str, Budget]
"""The budget of a key or of a group: True for a group, the key's id or the group's name (its
holder), and the budget itself. The first two identify the holder."""


def lock_of(account: BudgetAccount) -> str:
    """Return the name of an account's lock. A key's id has no space."""
    of_group, holder, _ = account
    return f"group {holder}" if of_group else holder


def accounts_of(opening: Opening) -> list[BudgetAccount]:
    """Return the budgets that a call must fit: its key's, then its group's."""
    entry, claim = opening.entry, opening.claim
    found: list[BudgetAccount] = []
    if claim is not None:
        if claim.budget is not None:
            found.append((False, entry.key_id, claim.budget))
        if claim.group is not None and entry.group_name is not None:
            found.append((True, entry.group_name, claim.group))
    return found


def left_of(connection: Connection, key_id: str, budget: Budget) -> int:
    """Return what settled calls and reservations have left of a key's budget, in nano-dollars."""
    return left_in(connection, (False, key_id, budget))


def left_of_group(connection: Connection, name: str, budget: Budget) -> int:
    """Return what settled calls and reservations have left of a group's budget."""
    return left_in(connection, (True, name, budget))


def left_in(connection: Connection, account: BudgetAccount) -> int:
    of_group, holder, budget = account
    query, parameters = prepared(GROUP_BALANCE if of_group else BALANCE, connection.dialect)
    spent, held = directly(
        connection, query, parameters((holder, budget.since_day or ""))
    ).fetchone()
    return budget.limit_nano - int(spent or 0) - int(held or 0)


def balance(_dialect: str) -> Any:
    """Return the query for a key's settled cost since a day, and its reservations."""
    return balance_of(daily, daily.c.key_id, requests.c.key_id)


def group_balance(_dialect: str) -> Any:
    """Return the query for a group's settled cost since a day, and its reservations."""
    return balance_of(group_daily, group_daily.c.group_name, requests.c.group_name)


def balance_of(sums: Table, name: ColumnElement[str], mine: ColumnElement[str]) -> Any:
    """Return a query for a settled cost since a day, and for reservations.

    Args:
        sums: the roll-up.
        name: the column of the roll-up with the holder.
        mine: the column of the requests with the holder.
    """
    spent = select(func.sum(sums.c.cost_nano)).where(
        name == bindparam("holder"), sums.c.day >= bindparam("since")
    )
    held = select(func.sum(requests.c.reserved_nano)).where(
        mine == bindparam("holder"), requests.c.ended_us.is_(None)
    )
    # One statement, because a call that another process settled between two would be in neither.
    return select(spent.scalar_subquery(), held.scalar_subquery())


def held_by(connection: Connection, account: BudgetAccount, ids: Sequence[str]) -> int:
    """Return a holder's reservations in rows with these ids, in nano-dollars.

    An earlier attempt to open these rows may have been committed without this process knowing it.
    """
    if not ids:
        return 0
    of_group, holder, _ = account
    column = requests.c.group_name if of_group else requests.c.key_id
    mine = requests.c.id.in_(ids) & (column == holder)
    held = select(func.sum(requests.c.reserved_nano)).where(mine)
    return int(connection.execute(held).scalar() or 0)


def refusal(claim: Claim, account: BudgetAccount, left: int) -> InsufficientCredits | None:
    """Return the error if the budget has no room for a call, else None. A free call always fits."""
    if claim.most_nano == 0 or (left > 0 and left >= claim.least_nano):
        return None
    is_group, holder, budget = account
    limit, rest, need = (
        f"${nano / 1e9:.9f}".rstrip("0").rstrip(".")
        for nano in (budget.limit_nano, max(0, left), claim.least_nano)
    )
    group = holder if is_group else None
    whose = f"This key's budget of {limit}"
    if group is not None:
        whose = f"The budget of {limit} of this key's group {group!r}"
    return InsufficientCredits(
        f"{whose} has {rest} left, but this call may cost {need}.",
        details={
            "limit_type": "budget",
            "limit": dollars(budget.limit_nano),
            "remaining": dollars(max(0, left)),
            "needed": dollars(claim.least_nano),
        }
        | of_group(group),
    )


BALANCE = Statement(balance, ("holder", "since"))
GROUP_BALANCE = Statement(group_balance, ("holder", "since"))
