"""What the ledger knows of its use: sums over the daily roll-up, and a key's latest requests.

Rules that hold here: a query takes a connection and changes nothing; one answer is one statement,
so that its sums agree with each other; both databases are asked with the same words. Open requests
are not in the sums. A day is a UTC day, 2026-01-31.
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
"""What sums can be grouped by. A model's name is provider/model."""


class Scope(NamedTuple):
    """What to sum: one key or all, from a day to a day, both included. None: no bound."""

    key_id: str | None = None
    first_day: str | None = None
    last_day: str | None = None


class Sums(NamedTuple):
    """Requests, their tokens and their cost in nano-dollars; unpriced: how many of them had no
    known price, and count as 0."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    unpriced: int = 0

    @classmethod
    def of(cls, several: Iterable[Sums]) -> Self:
        return cls(*map(sum, zip(*several, strict=True)))

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def grouped(connection: Connection, scope: Scope, by: str) -> dict[str, Sums]:
    """The sums by name, days in order, others with the most expensive first. by: of GROUPS."""
    rows = connection.execute(sums_by(by, scope))
    return ordered(by, {name: Sums(*counts) for _, name, *counts in rows})


def summary(
    connection: Connection, scope: Scope, groups: Sequence[str]
) -> dict[str, dict[str, Sums]]:
    """What `grouped` gives, for several groups at one moment."""
    found: dict[str, dict[str, Sums]] = {by: {} for by in groups}
    for by, name, *counts in connection.execute(union_all(*(sums_by(b, scope) for b in groups))):
        found[by][name] = Sums(*counts)
    return {by: ordered(by, rows) for by, rows in found.items()}


def sums_by(by: str, scope: Scope) -> Select[*tuple[Any, ...]]:
    """A row for each name of a group: the group, the name, the counts."""
    columns = GROUPS[by]
    name = columns[0] if len(columns) == 1 else columns[0] + "/" + columns[1]
    # Postgres sums big integers as numerics, which arrive as Decimal.
    counts = (cast(func.sum(daily.c[count]), BigInteger) for count in COUNTS)
    found: Select[*tuple[Any, ...]] = select(literal(by), name, *counts).group_by(*columns)
    if scope.key_id is not None:
        found = found.where(daily.c.key_id == scope.key_id)
    if scope.first_day is not None:
        found = found.where(daily.c.day >= scope.first_day)
    if scope.last_day is not None:
        found = found.where(daily.c.day <= scope.last_day)
    return found


def ordered(by: str, rows: dict[str, Sums]) -> dict[str, Sums]:
    if by == "day":
        return dict(sorted(rows.items()))
    return dict(sorted(rows.items(), key=lambda row: (-row[1].cost_nano, -row[1].requests, row[0])))


def latest(
    connection: Connection, key_id: str, before: str | None, limit: int
) -> Sequence[RowMapping]:
    """A key's requests, open ones too, newest first: those whose id sorts before `before`."""
    found = select(requests).where(requests.c.key_id == key_id)
    if before is not None:
        found = found.where(requests.c.id < before)
    found = found.order_by(requests.c.id.desc()).limit(limit)
    return connection.execute(found).mappings().all()


def as_json(sums: Sums) -> dict[str, Any]:
    """Sums as answers have them; cost in USD. unpriced_requests is only there if there are some."""
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
    """RFC 4180, with a header. titles: of the cells that come before each row's counts."""
    lines = [",".join((*titles, *CSV_COUNTS))]
    for names, sums in rows:
        counts = (
            *(sums.requests, usd(sums.cost_nano), sums.input_tokens, sums.output_tokens),
            *(sums.total_tokens, sums.unpriced),
        )
        lines.append(",".join((*map(csv_text, names), *map(str, counts))))
    return "".join(line + "\r\n" for line in lines)


def csv_text(text: str) -> str:
    """A quoted cell that no spreadsheet takes for a formula: callers write models' names. The
    quotes also keep together what a `;` would split where that is the separator."""
    if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"'


def usd(nano: int) -> str:
    """Nano-dollars as dollars, exactly: 0.000000001."""
    return f"{nano // NANO}.{nano % NANO:09d}"
