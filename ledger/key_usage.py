"""The spending of each key and each group, and the time of each key's last use.

- All keys are read in two statements, however many there are.
- The queries change nothing, and are the same on SQLite and Postgres.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, case, cast, func, select

from ledger.entries import Budget
from ledger.schema import daily, group_daily, requests
from ledger.upkeep import moment_of, start_of


class KeySpending(NamedTuple):
    """The usage of a key or of a group. Amounts of money are in nano-dollars."""

    total_nano: int = 0
    month_nano: int = 0
    """Since the first day of this UTC month."""
    day_nano: int = 0
    """Since the beginning of this UTC day."""
    held_nano: int = 0
    """The sum that open calls have reserved."""
    last_used_us: int | None = None
    """The start of the latest call that has a row, in microseconds since 1970. If its row was
    pruned: the beginning of its day. None: never."""

    def spent(self, budget: Budget | None, today: str) -> int:
        """Return what was spent in the current period of a budget, or in all if there is none."""
        if budget is None or budget.since_day is None:
            return self.total_nano
        return self.day_nano if budget.since_day == today else self.month_nano

    def left(self, budget: Budget | None, today: str) -> int | None:
        """Return what is left of a budget; None if there is none."""
        if budget is None:
            return None
        return max(0, budget.limit_nano - self.spent(budget, today) - self.held_nano)


def by_key(connection: Connection, today: str, key_id: str | None = None) -> dict[str, KeySpending]:
    """Return the usage of each key that has a call, by its id.

    Args:
        today: the UTC day, such as 2026-01-31.
        key_id: the only key to read; None: all keys.
    """
    latest = select(func.max(requests.c.id)).where(requests.c.key_id == daily.c.key_id)
    settled = select(
        daily.c.key_id,
        *since(daily.c.cost_nano, daily.c.day, today),
        func.max(daily.c.day),
        latest.correlate(daily).scalar_subquery(),
    ).group_by(daily.c.key_id)
    opened = (
        select(requests.c.key_id, total(requests.c.reserved_nano), func.max(requests.c.id))
        .where(requests.c.ended_us.is_(None))
        .group_by(requests.c.key_id)
    )
    if key_id is not None:
        settled = settled.where(daily.c.key_id == key_id)
        opened = opened.where(requests.c.key_id == key_id)
    found = {}
    for key, all_nano, month_nano, day_nano, last_day, last_id in connection.execute(settled):
        used = moment_of(last_id) if last_id else start_of(last_day)
        found[key] = KeySpending(all_nano, month_nano, day_nano, 0, used)
    for key, held_nano, last_id in connection.execute(opened):
        one = found.get(key, KeySpending())
        used = max(moment_of(last_id), one.last_used_us or 0)
        found[key] = one._replace(held_nano=held_nano, last_used_us=used)
    return found


def by_group(connection: Connection, today: str) -> dict[str, KeySpending]:
    """Return the usage of each group that has a call, by its name.

    Args:
        today: the UTC day, such as 2026-01-31.
    """
    name, cost, day = group_daily.c.group_name, group_daily.c.cost_nano, group_daily.c.day
    settled = select(name, *since(cost, day, today)).group_by(name)
    opened = (
        select(requests.c.group_name, total(requests.c.reserved_nano))
        .where(requests.c.ended_us.is_(None), requests.c.group_name.is_not(None))
        .group_by(requests.c.group_name)
    )
    found = {group: KeySpending(*sums) for group, *sums in connection.execute(settled)}
    for group, held_nano in connection.execute(opened):
        found[group] = found.get(group, KeySpending())._replace(held_nano=held_nano)
    return found


def since(
    cost: ColumnElement[int], day: ColumnElement[str], today: str
) -> tuple[ColumnElement[int], ...]:
    """Return the cost of all days, of this UTC month, and of this UTC day."""
    return (
        total(cost),
        total(case((day >= f"{today[:7]}-01", cost), else_=0)),
        total(case((day >= today, cost), else_=0)),
    )


def total(amount: ColumnElement[int]) -> ColumnElement[int]:
    # On Postgres, the sum of big integers is a numeric, which the driver returns as a Decimal.
    return cast(func.sum(amount), BigInteger)
