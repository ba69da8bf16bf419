"""Usage reports: sums over the ledger's daily roll-up, and a key's latest requests.

- A query takes a connection and changes nothing.
- A report is read in one statement, so that its sums agree with each other.
- The queries are the same on SQLite and Postgres.
- Sums don't include open requests.
- A day is a UTC day, such as 2026-01-31.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    cast,
    func,
    literal,
    select,
    union_all,
)

from ledger.pricing import NANO, dollars
from ledger.schema import daily, requests
from ledger.writing import COUNTS

GROUPS: dict[str, tuple[ColumnElement[str], ...]] = {
    "day": (daily.c.day,),
    "model": (daily.c.provider, daily.c.model),
    "provider": (daily.c.provider,),
    "endpoint": (daily.c.endpoint,),
    "key": (daily.c.key_id,),
}
"""The columns to group by, for each kind of group. A model's name is provider/model."""


class Scope(NamedTuple):
    """The requests to sum up: those of a key or a group and of a range of days.

    None means no restriction. Only ledger/usage_pages.py knows groups.
    """

    key_id: str | None = None
    first_day: str | None = None
    last_day: str | None = None
    """The last day, which is included."""
    group: str | None = None
    """The name of a group of keys, to which the keys belonged when the calls started."""


class Sums(NamedTuple):
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    unpriced: int = 0
    """The number of requests without a known price, whose cost counts as 0."""

    @classmethod
    def of(cls, several: Iterable[Sums]) -> Self:
        return cls(*map(sum, zip(*several, strict=True)))

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def grouped(connection: Connection, scope: Scope, by: str) -> dict[str, Sums]:
    """Return the sums of each group by its name.

    Args:
        by: a name in GROUPS.

    Returns:
        Days in chronological order; other groups by descending cost.
    """
    rows = connection.execute(sums_by(by, scope))
    return ordered(by, {name: Sums(*counts) for _, name, *counts in rows})


def summary(
    connection: Connection, scope: Scope, groups: Sequence[str]
) -> dict[str, dict[str, Sums]]:
    """Return the results of `grouped` for several names in GROUPS, read in one statement."""
    found: dict[str, dict[str, Sums]] = {by: {} for by in groups}
    for by, name, *counts in connection.execute(union_all(*(sums_by(b, scope) for b in groups))):
        found[by][name] = Sums(*counts)
    return {by: ordered(by, rows) for by, rows in found.items()}


def sums_by(by: str, scope: Scope) -> Select[*tuple[Any, ...]]:
    """Return the query for one name in GROUPS, whose rows are (by, name, *counts)."""
    columns = GROUPS[by]
    # On Postgres, the sum of big integers is a numeric, which the driver returns as a Decimal.
    counts = (cast(func.sum(daily.c[count]), BigInteger) for count in COUNTS)
    found: Select[*tuple[Any, ...]] = select(literal(by), name_of(columns), *counts)
    found = found.group_by(*columns)
    return found.where(*of_key(daily.c.key_id, scope), *of_days(daily.c.day, scope))


def name_of(columns: tuple[ColumnElement[str], ...]) -> ColumnElement[str]:
    """Return the name of a group. columns: those to group by."""
    return columns[0] if len(columns) == 1 else columns[0] + "/" + columns[1]


def of_key(column: ColumnElement[str], scope: Scope) -> list[ColumnElement[bool]]:
    """Return the conditions for a scope's key. column: that of the key's id."""
    return [] if scope.key_id is None else [column == scope.key_id]


def of_days(column: ColumnElement[str], scope: Scope) -> list[ColumnElement[bool]]:
    """Return the conditions for a scope's days. column: that of the day."""
    found = [] if scope.first_day is None else [column >= scope.first_day]
    return found if scope.last_day is None else [*found, column <= scope.last_day]


def ordered(by: str, rows: dict[str, Sums]) -> dict[str, Sums]:
    if by == "day":
        return dict(sorted(rows.items()))
    return dict(sorted(rows.items(), key=lambda row: (-row[1].cost_nano, -row[1].requests, row[0])))


def latest(
    connection: Connection, key_id: str, before: str | None, limit: int
) -> Sequence[RowMapping]:
    """Return a key's latest requests, open ones too, newest first.

    Args:
        before: the id below which to start; None: start at the newest request.
        limit: the most requests to return.
    """
    found = select(requests).where(requests.c.key_id == key_id)
    if before is not None:
        found = found.where(requests.c.id < before)
    found = found.order_by(requests.c.id.desc()).limit(limit)
    return connection.execute(found).mappings().all()


def as_json(sums: Sums) -> dict[str, Any]:
    """Return sums as a response shows them, with the cost in USD.

    `unpriced_requests` is left out if there are none.
    """
    found: dict[str, Any] = {
        "requests": sums.requests,
        "cost": dollars(sums.cost_nano),
        "tokens": tokens(sums.input_tokens, sums.output_tokens),
    }
    return found | ({"unpriced_requests": sums.unpriced} if sums.unpriced else {})


def tokens(input_tokens: int, output_tokens: int) -> dict[str, int]:
    return {"input": input_tokens, "output": output_tokens, "total": input_tokens + output_tokens}


CSV_COUNTS = (
    *("requests", "cost_usd", "input_tokens", "output_tokens", "total_tokens"),
    "unpriced_requests",
)


def as_csv(titles: Sequence[str], rows: Iterable[tuple[Sequence[str], Sums]]) -> str:
    """Return sums as CSV (RFC 4180) with a header.

    Args:
        titles: the titles of the columns before the counts.
        rows: the cells of these columns and the sums, for each row.
    """
    lines = [",".join((*titles, *CSV_COUNTS))]
    for names, sums in rows:
        counts = (
            *(sums.requests, usd(sums.cost_nano), sums.input_tokens, sums.output_tokens),
            *(sums.total_tokens, sums.unpriced),
        )
        lines.append(",".join((*map(csv_text, names), *map(str, counts))))
    return "".join(line + "\r\n" for line in lines)


def csv_text(text: str) -> str:
    """Return a quoted CSV cell that no spreadsheet interprets as a formula.

    Callers choose the names of models, so a name could be a formula. The quotes also protect a `;`,
    which is the separator in some locales.
    """
    if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'


def usd(nano: int) -> str:
    """Return nano-dollars as dollars with nine decimals, without rounding."""
    return f"{nano // NANO}.{nano % NANO:09d}"
