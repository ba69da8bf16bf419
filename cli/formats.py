"""Input and output formats that the commands share.

All commands follow these rules:

- An error is one line on stderr and exit status 1 (click.ClickException).
- With --json, stdout is a single JSON value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import click

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as 90m, 12h, 30d or 2w. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if found is None:
        raise ValueError("not a duration")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def parse_instant(text: str) -> datetime:
    """Parse an ISO date or time, in UTC unless it has a time zone. Raises ValueError."""
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def to_json(value: object) -> str:
    return json.dumps(value)


def cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ",".join(map(str, value)) or "-"
    return str(value)


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows of equal length as aligned columns, two spaces apart."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)
