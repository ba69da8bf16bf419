"""flask usage ... and flask ledger ...: what was used, whether it adds up, and looking after it."""

from __future__ import annotations

import re
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup

from cli.formats import as_json, parse_duration, parse_instant, table, to_json
from cli.keys import store
from errors import SluiceError
from keys.key import KeyFileError
from ledger import upkeep, usage
from ledger.ledger import Ledger
from ledger.schema import now_us
from ledger.usage import Scope, Sums

BATCH = 2_000
"""Rows that are pruned in one transaction: some 20 ms, in which no call can begin or end."""


class LedgerGroup(AppGroup):
    """Commands on the ledger; what it refuses, or the key store, is a line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SluiceError, KeyFileError) as error:
            raise click.ClickException(str(error)) from None


usage_group = LedgerGroup("usage", help="Show what was used, check it, delete what is old.")
ledger_group = LedgerGroup("ledger", help="Look after the ledger's database.")


@usage_group.command("report")
@click.option("--key", metavar="ID_OR_NAME", help="Of this key. Default: of all.")
@click.option("--since", metavar="WHEN", help="From this UTC day on: 7d (ago), or an ISO date.")
@click.option("--until", metavar="WHEN", help="Up to this UTC day, included.")
@click.option(
    "--by", type=click.Choice(list(usage.GROUPS)), default="model", show_default=True, help="Group."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@as_json
def report(
    key: str | None, since: str | None, until: str | None, by: str, as_csv: bool, as_json: bool
) -> None:
    """Sum up requests, tokens and cost."""
    if as_json and as_csv:
        raise click.ClickException("Choose --json or --csv, not both.")
    scope = Scope(key and key_id(key), parse_day("--since", since), parse_day("--until", until))
    if scope.first_day and scope.last_day and scope.first_day > scope.last_day:
        raise click.ClickException("--since is after --until.")
    with recorded() as ledger:
        rows = ledger.read(lambda connection: usage.grouped(connection, scope, by))
    names = {found.id: found.name for found in store().all()} if by == "key" else None
    if as_json:
        click.echo(to_json(structured(by, scope, rows, names)))
    elif as_csv:
        titles = [by] if names is None else [by, "name"]
        cells = ((labels(name, names), sums) for name, sums in rows.items())
        click.echo(usage.as_csv(titles, cells), nl=False)
    elif not rows:
        click.echo("There were no requests in that time.", err=True)
    else:
        click.echo(report_table(by, rows, names))


@usage_group.command("prune")
@click.option("--older-than", required=True, metavar="AGE", help="90d, 12w: in whole UTC days.")
@click.option("--yes", is_flag=True, help="Don't ask.")
def prune(older_than: str, yes: bool) -> None:
    """Delete old requests one by one; the daily sums stay."""
    before = midnight_before(older_than)
    day = f"{before:%Y-%m-%d}"
    before_us = int(before.timestamp()) * 1_000_000
    with recorded() as ledger:
        rows = ledger.read(lambda connection: upkeep.older(connection, before_us))
        if rows and not yes:
            if not sys.stdin.isatty():
                raise click.ClickException("Nobody can be asked here: add --yes to delete them.")
            click.confirm(f"Delete {rows} requests from before {day}?", abort=True, err=True)
        deleted = 0
        while True:
            began = time.monotonic()
            batch = ledger.write(lambda connection: upkeep.prune(connection, before_us, BATCH))
            if not batch:
                break
            deleted += batch
            time.sleep(time.monotonic() - began)  # as long again for those who wait to write
    click.echo(f"{deleted} requests from before {day} are deleted. The daily sums stay.")


@usage_group.command("verify")
def verify() -> None:
    """Check that each request makes sense and the daily sums are theirs."""
    with recorded() as ledger:
        rows, problems = ledger.read(lambda connection: upkeep.verify(connection, now_us()))
    for problem in problems:
        click.echo(printable(problem))
    if problems:
        raise click.ClickException(f"The ledger doesn't add up ({len(problems)} lines above).")
    click.echo(f"{rows} rows add up.")


@ledger_group.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the ledger into a new FILE while the server serves."""
    source = current_app.extensions["sluice"].ledger.path
    if source is None:
        raise click.ClickException('The ledger is on PostgreSQL: use pg_dump "$DATABASE_URL".')
    refuse_missing(source)
    try:
        upkeep.backup(source, file)
    except FileExistsError:
        raise click.ClickException(f"{file} exists already; nothing was written.") from None
    except OSError as error:
        raise click.ClickException(f"{file} can't be written: {error.strerror}.") from None
    except sqlite3.Error as error:
        raise click.ClickException(f"{source} can't be copied to {file}: {error}.") from None
    click.echo(f"{file} is a copy of {source}.")


@contextmanager
def recorded() -> Iterator[Ledger]:
    """The ledger, which isn't made here if it isn't there yet."""
    found: Ledger = current_app.extensions["sluice"].ledger
    if found.path is not None:
        refuse_missing(found.path)
    try:
        yield found
    finally:
        found.close()


def refuse_missing(path: Path) -> None:
    if not path.exists():
        raise click.ClickException(f"Nothing has been recorded yet: there is no {path}.")


def key_id(id_or_name: str) -> str:
    """A key's id; also that of a key which is no longer there. Raises KeyFileError."""
    try:
        return store().get(id_or_name).id
    except KeyFileError:
        if re.fullmatch("key_[A-Za-z0-9_-]{1,64}", id_or_name):
            return id_or_name
        raise


def parse_day(option: str, text: str | None) -> str | None:
    """The UTC day of a moment, or of so long ago."""
    if text is None:
        return None
    try:
        if re.fullmatch("[0-9]+[a-z]", text):
            found = datetime.now(UTC) - parse_duration(text)
        else:
            found = parse_instant(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.ClickException(
            f"{option} takes a time that has passed since, such as 7d or 12w, "
            "or a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z."
        ) from None
    return found.date().isoformat()


def midnight_before(age: str) -> datetime:
    """The beginning of the UTC day of so long ago."""
    try:
        found = datetime.now(UTC) - parse_duration(age)
    except (ValueError, OverflowError):
        raise click.ClickException("--older-than takes an age such as 90d or 12w.") from None
    return found.replace(hour=0, minute=0, second=0, microsecond=0)


def structured(
    by: str, scope: Scope, rows: Mapping[str, Sums], names: Mapping[str, str] | None
) -> dict[str, Any]:
    """The report as --json has it. A key's name is null when the key is gone."""
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
    """What stands before a row's counts: its name, and the key's where it is a key's id."""
    return [name] if names is None else [name, names.get(name, "")]


def report_table(by: str, rows: Mapping[str, Sums], names: Mapping[str, str] | None) -> str:
    total = Sums.of(rows.values())
    titles = ["requests", "input", "output", "total", "cost (USD)"]
    if total.unpriced:
        titles.append("of unknown price")
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


def numbers(sums: Sums) -> list[str]:
    counts = (sums.requests, sums.input_tokens, sums.output_tokens, sums.total_tokens)
    return [*map(str, counts), f"{sums.cost_nano / 1e9:.6f}", str(sums.unpriced)]


def printable(text: str) -> str:
    """Fit for a terminal: callers write models' names."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
