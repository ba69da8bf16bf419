"""The commands of `./sluice usage` and `./sluice ledger`: reports, checks, pruning and backups."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from cli.callers_folder import callers_folder
from cli.formats import as_json, parse_duration, parse_instant, table, to_json
from cli.keys import id_of, store
from cli.open_ledger import open_ledger, refuse_missing
from errors import SluiceError
from keys.key_errors import KeyFileError
from ledger import refusals, upkeep, usage
from ledger.schema import now_us
from ledger.usage import Scope, Sums

BATCH = 2_000
"""Rows that are pruned in one transaction, during which no call can start or end. See
docs/decisions/0007-the-ledger.md."""


class LedgerGroup(AppGroup):
    """A group of commands that report errors of the ledger and the keys in one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SluiceError, KeyFileError) as error:
            raise click.ClickException(str(error)) from None


@click.group(
    "usage",
    cls=LedgerGroup,
    invoke_without_command=True,
    help="Report usage (the default), verify the ledger, prune old requests.",
    short_help="Report usage, verify the ledger, prune old requests.",
)
@click.pass_context
def usage_group(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        ctx.invoke(report)


ledger_group = LedgerGroup("ledger", help="Maintain the ledger's database.")


@usage_group.command("report")
@click.option("--key", metavar="ID_OR_NAME", help="Only this key; by default all keys.")
@click.option("--since", metavar="WHEN", help="The first UTC day: an age such as 7d, or a date.")
@click.option("--until", metavar="WHEN", help="The last UTC day, which is included.")
@click.option(
    "--by",
    type=click.Choice(list(usage.GROUPS)),
    default="model",
    show_default=True,
    help="The field to group by.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@as_json
def report(
    key: str | None, since: str | None, until: str | None, by: str, as_csv: bool, as_json: bool
) -> None:
    """Sum up requests, tokens and cost, and the calls that were refused."""
    if as_json and as_csv:
        raise click.ClickException("Choose --json or --csv, not both.")
    scope = Scope(key and id_of(key), parse_day("--since", since), parse_day("--until", until))
    if scope.first_day and scope.last_day and scope.first_day > scope.last_day:
        raise click.ClickException("--since is after --until.")
    with open_ledger() as ledger:
        rows = ledger.read(lambda connection: usage.grouped(connection, scope, by))
        refused = ledger.read(lambda connection: refusals.refused(connection, scope))
    every_name = {found.id: found.name for found in store().all()}
    names = every_name if by == "key" else None
    if as_json:
        found = report_as_json(by, scope, rows, names)
        click.echo(to_json(found | {"refused": refused_as_json(refused, every_name)}))
    elif as_csv:
        titles = [by] if names is None else [by, "name"]
        cells = ((labels(name, names), sums) for name, sums in rows.items())
        click.echo(usage.as_csv(titles, cells), nl=False)
    else:
        if rows:
            click.echo(report_table(by, rows, names))
        else:
            click.echo("There are no requests in this period.", err=True)
        if refused:
            click.echo(("\n" if rows else "") + refused_table(refused, every_name))


@usage_group.command("prune")
@click.option(
    "--older-than",
    required=True,
    metavar="AGE",
    help="An age such as 90d or 12w, rounded to whole UTC days.",
)
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
def prune(older_than: str, yes: bool) -> None:
    """Delete the rows of old requests, and keep the daily sums."""
    before = midnight_before(older_than)
    day = f"{before:%Y-%m-%d}"
    before_us = int(before.timestamp()) * 1_000_000
    with open_ledger() as ledger:
        rows = ledger.read(lambda connection: upkeep.count_prunable(connection, before_us))
        if rows and not yes:
            if not sys.stdin.isatty():
                raise click.ClickException(
                    "Can't ask for confirmation without a terminal; pass --yes."
                )
            click.confirm(f"Delete {rows} requests from before {day}?", abort=True, err=True)
        deleted = 0
        while True:
            began = time.monotonic()
            batch = ledger.write(lambda connection: upkeep.prune(connection, before_us, BATCH))
            if not batch:
                break
            deleted += batch
            time.sleep(time.monotonic() - began)  # leave half of the time to the server's writes
    click.echo(f"Deleted {deleted} requests from before {day}. The daily sums are kept.")


@usage_group.command("verify")
def verify() -> None:
    """Check that the rows are consistent and the daily sums match them."""
    with open_ledger() as ledger:
        rows, problems = ledger.read(lambda connection: upkeep.verify(connection, now_us()))
    for problem in problems:
        click.echo(printable(problem))
    if problems:
        raise click.ClickException(
            f"The ledger is inconsistent ({len(problems)} lines, listed above)."
        )
    click.echo(f"The ledger is consistent (rows checked: {rows}).")


@ledger_group.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the ledger to FILE, which must not exist. Safe while the server runs."""
    source = current_app.extensions["sluice"].ledger.path
    if source is None:
        raise click.ClickException('The ledger is on PostgreSQL; use pg_dump "$DATABASE_URL".')
    refuse_missing(source)
    file = callers_folder() / file
    try:
        upkeep.backup(source, file)
    except FileExistsError:
        raise click.ClickException(f"{file} already exists; nothing was written.") from None
    except OSError as error:
        raise click.ClickException(f"{file} can't be written: {error.strerror}.") from None
    except sqlite3.Error as error:
        raise click.ClickException(f"{source} can't be copied to {file}: {error}.") from None
    click.echo(f"Copied {source} to {file}.")


def parse_day(option: str, text: str | None) -> str | None:
    """Parse a date, a time or an age, and return its UTC day."""
    if text is None:
        return None
    try:
        if re.fullmatch("[0-9]+[a-z]", text):
            found = datetime.now(UTC) - parse_duration(text)
        else:
            found = parse_instant(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.ClickException(
            f"{option} must be an age such as 7d or 12w, "
            "or a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z."
        ) from None
    return found.date().isoformat()


def midnight_before(age: str) -> datetime:
    """Parse an age, and return the start of the UTC day that long ago."""
    try:
        found = datetime.now(UTC) - parse_duration(age)
    except (ValueError, OverflowError):
        raise click.ClickException("--older-than must be an age such as 90d or 12w.") from None
    return found.replace(hour=0, minute=0, second=0, microsecond=0)


def report_as_json(
    by: str, scope: Scope, rows: Mapping[str, Sums], names: Mapping[str, str] | None
) -> dict[str, Any]:
    """Return the report for --json. The name of a deleted key is None."""
    data = [
        {"name": name}
        | ({} if names is None else {"key_name": names.get(name)})
        | usage.as_json(sums)
        for name, sums in rows.items()
    ]
    return {
        "group_by": by,
        "since": scope.first_day,
        "until": scope.last_day,
        "data": data,
        "total": usage.as_json(Sums.of(rows.values())),
    }


def labels(name: str, names: Mapping[str, str] | None) -> list[str]:
    """Return the cells before a row's counts: its name, and for a key's id also the key's name."""
    return [name] if names is None else [name, names.get(name, "")]


def report_table(by: str, rows: Mapping[str, Sums], names: Mapping[str, str] | None) -> str:
    total = Sums.of(rows.values())
    titles = ["requests", "input", "output", "total", "cost (USD)"]
    if total.unpriced:
        titles.append("unpriced")
    rest = len(titles)
    figures = [titles, *(numbers(sums)[:rest] for sums in (*rows.values(), total))]
    widths = [max(map(len, column)) for column in zip(*figures, strict=True)]
    heads = [
        [by] if names is None else [by, "name"],
        *([printable(text) for text in labels(name, names)] for name in rows),
        ["total"] if names is None else ["total", ""],
    ]
    return table(
        [*head, *map(str.rjust, line, widths)] for head, line in zip(heads, figures, strict=True)
    )


def refused_as_json(
    refused: Mapping[tuple[str, str], int], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the refused calls for --json. The name of a deleted key is None."""
    return [
        {"key": key, "key_name": names.get(key), "reason": reason, "calls": calls}
        for (key, reason), calls in refused.items()
    ]


def refused_table(refused: Mapping[tuple[str, str], int], names: Mapping[str, str]) -> str:
    rows = [
        (reason, key, names.get(key, ""), str(calls)) for (key, reason), calls in refused.items()
    ]
    width = max(len("calls"), *(len(row[-1]) for row in rows))
    titles = ("refused", "key", "name", "calls")
    return table([*row[:-1], row[-1].rjust(width)] for row in (titles, *rows))


def numbers(sums: Sums) -> list[str]:
    counts = (sums.requests, sums.input_tokens, sums.output_tokens, sums.total_tokens)
    return [*map(str, counts), f"{sums.cost_nano / 1e9:.6f}", str(sums.unpriced)]


def printable(text: str) -> str:
    """Make a text safe to print: callers choose the names of models."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
