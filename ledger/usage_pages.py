"""Pages of the usage of all keys: the sums of each group, sorted, and of all groups together.

- A page is read in one statement, so that its sums agree with each other.
- The database sums, sorts and limits the rows, so memory is bounded however many groups there are.
- The queries change nothing, and SQLite and Postgres execute identical ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Subquery,
    and_,
    case,
    cast,
    func,
    select,
)

from ledger import usage
from ledger.refusals import refusals_of
from ledger.schema import DAY_US, daily, first_id, group_daily, requests
from ledger.upkeep import APART_US, start_of
from ledger.usage import Scope, Sums
from ledger.writing import COUNTS

Columns: TypeAlias = Mapping[str, tuple[ColumnElement[Any], ...]]

OF_GROUPS: Final[Columns] = {"day": (group_daily.c.day,), "group": (group_daily.c.group_name,)}
"""The columns by which the roll-up of groups of keys can be grouped."""
OF_ROWS: Final[Columns] = {
    "model": (requests.c.provider, requests.c.model),
    "provider": (requests.c.provider,),
    "endpoint": (requests.c.endpoint,),
    "key": (requests.c.key_id,),
    "group": (requests.c.group_name,),
    "end_reason": (requests.c.end_reason,),
}
"""The columns by which rows can be grouped."""
GROUPS: Final = (*usage.GROUPS, "group", "end_reason")


class Page(NamedTuple):
    rows: list[tuple[str, Sums]]
    """The name and the sums of each group. Days are in chronological order; other groups are sorted
    by descending cost."""
    total: Sums
    """The sums of all groups, also those on other pages."""
    groups: int
    """The number of all groups."""


class Refusals(NamedTuple):
    rows: list[tuple[str, str, int]]
    """The key's id, the reason and the number of refused calls, most of them first."""
    total: int
    """The number of all refused calls."""
    groups: int
    """The number of all pairs of a key and a reason."""


def is_from_rows(by: str, scope: Scope) -> bool:
    """Return True if a report is summed from the rows, because no roll-up has what it needs.

    Such a report lacks rows that were pruned. A scope has a key or a group, but not both.
    """
    if by == "end_reason" or (by == "group" and scope.key_id is not None):
        return True
    return scope.group is not None and by not in OF_GROUPS


def page(connection: Connection, scope: Scope, by: str, limit: int, offset: int = 0) -> Page:
    """Return some groups of a scope, in order. by: one of GROUPS."""
    each = sums_by(by, scope).subquery()
    order = [each.c.name] if by == "day" else [-each.c.cost_nano, -each.c.requests, each.c.name]
    rows = connection.execute(paged(each, COUNTS).order_by(*order).limit(limit).offset(offset))
    found = rows.all()
    if not found and offset:  # the groups of this page are gone
        return page(connection, scope, by, 1)._replace(rows=[])
    if not found:
        return Page([], Sums(), 0)
    size = len(COUNTS)
    named = [(row[0], Sums(*row[1 : 1 + size])) for row in found]
    return Page(named, Sums(*found[0][1 + size : -1]), found[0][-1])


def refused(connection: Connection, scope: Scope, limit: int, offset: int = 0) -> Refusals:
    """Return some of the refused calls of a scope, by key and reason."""
    each = refusals_of(scope).subquery()
    order = (-each.c.calls, each.c.key_id, each.c.reason)
    names = (each.c.key_id, each.c.reason)
    query = paged(each, ("calls",), names).order_by(*order).limit(limit).offset(offset)
    found = connection.execute(query).all()
    if not found and offset:
        return refused(connection, scope, 1)._replace(rows=[])
    if not found:
        return Refusals([], 0, 0)
    return Refusals([(key, reason, n) for key, reason, n, *_ in found], *found[0][-2:])


def paged(
    each: Subquery, counts: tuple[str, ...], names: tuple[ColumnElement[Any], ...] | None = None
) -> Select[*tuple[Any, ...]]:
    """Return a query for names, their counts, the sums of all counts, and the number of rows."""
    own = [each.c[count] for count in counts]
    sums = [cast(func.sum(column).over(), BigInteger) for column in own]
    return select(*(names or (each.c.name,)), *own, *sums, func.count().over())


def sums_by(by: str, scope: Scope) -> Select[*tuple[Any, ...]]:
    """Return the query for the name and the sums of each group.

    Calls of keys without a group of keys are in none.
    """
    if is_from_rows(by, scope):
        return from_rows(by, scope)
    if by == "group" or scope.group is not None:
        return from_groups(by, scope)
    return from_roll_up(by, scope)


def from_groups(by: str, scope: Scope) -> Select[*tuple[Any, ...]]:
    columns = OF_GROUPS[by]
    name = usage.name_of(columns).label("name")
    found = select(name, *summed(group_daily.c)).group_by(*columns)
    own = [] if scope.group is None else [group_daily.c.group_name == scope.group]
    return found.where(*own, *usage.of_days(group_daily.c.day, scope))


def from_roll_up(by: str, scope: Scope) -> Select[*tuple[Any, ...]]:
    columns = usage.GROUPS[by]
    name = usage.name_of(columns).label("name")
    found = select(name, *summed(daily.c)).group_by(*columns)
    return found.where(*usage.of_days(daily.c.day, scope), *usage.of_key(daily.c.key_id, scope))


def from_rows(by: str, scope: Scope) -> Select[*tuple[Any, ...]]:
    columns = OF_ROWS[by]
    row = requests.c
    one = {
        "requests": func.count(),
        "input_tokens": func.sum(row.input_tokens),
        "output_tokens": func.sum(row.output_tokens),
        "cost_nano": func.coalesce(func.sum(row.cost_nano), 0),
        "unpriced": func.sum(case((row.cost_nano.is_(None), 1), else_=0)),
    }
    counts = [cast(one[name], BigInteger).label(name) for name in COUNTS]
    found = select(usage.name_of(columns).label("name"), *counts).group_by(*columns)
    own = [] if scope.group is None else [row.group_name == scope.group]
    if by == "group":
        own.append(row.group_name.is_not(None))
    of_key = usage.of_key(row.key_id, scope)
    return found.where(row.ended_us.is_not(None), within(scope), *of_key, *own)


def within(scope: Scope) -> ColumnElement[bool]:
    """Return the condition for rows that started in a scope's days.

    The ids, by which the table is sorted, contain a time too, but it is measured separately.
    """
    row, found = requests.c, []
    if scope.first_day is not None:
        start = start_of(scope.first_day)
        found += [row.id >= first_id(max(0, start - APART_US)), row.started_us >= start]
    if scope.last_day is not None:
        end = start_of(scope.last_day) + DAY_US
        found += [row.id < first_id(end + APART_US), row.started_us < end]
    return and_(True, *found)


def summed(columns: Any) -> list[ColumnElement[int]]:
    return [cast(func.sum(columns[name]), BigInteger).label(name) for name in COUNTS]
