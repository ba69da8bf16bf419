"""What the commands share: the options and the forms of what is read and printed.

Rules that hold here and in every command: what can't be done is one line on stderr and exit code 1
(click.ClickException). With --json, stdout is one JSON value.
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
    """A duration such as 90m, 12h, 30d or 2w. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if found is None:
        raise ValueError("not a duration")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def parse_instant(text: str) -> datetime:
    """An ISO date or time, UTC where it names no zone. Raises ValueError."""
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def to_json(value: object) -> str:
    return json.dumps(value)


def cell(value: object) -> str:
    """A value as a table shows it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ",".join(map(str, value)) or "-"
    return str(value)


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of equal length as aligned columns, two spaces apart."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
