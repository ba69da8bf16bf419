"""The operator's commands: flask keys ..., flask providers, flask quickstart.

Rules that hold here: a key's text is printed by `create` alone; a hash only by `show --line`. What
can't be done is one line on stderr and exit code 1. With --json, stdout is one JSON value.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

import fidelity
from auth import KeyStore
from config import DEFAULT_PORT, Settings
from keys import FIELDS, TIERS, Key, KeyFileError
from providers import missing
from providers.base import Provider, Target
from providers.rows import BUILT_IN

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
EXAMPLE = """\
  curl -N {url}/api/v1/completions \\
    -H 'Authorization: Bearer {secret}' -H 'Content-Type: application/json' \\
    -d '{{"prompt": "The best way to open a file is", "stream": true}}'
"""
COLUMNS: tuple[str, ...] = ("id", "name", "tier", "models", "created", "expires", "status")


class KeysGroup(AppGroup):
    """Commands on keys; what the store refuses is a line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyFileError as error:
            raise click.ClickException(str(error)) from None


keys = KeysGroup("keys", help="Create, list and change the keys that callers use.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
which = click.argument("id_or_name", metavar="ID_OR_NAME")


def register(app: Flask) -> None:
    """Adds the commands to an app whose extensions["sluice"].keys is its KeyStore."""
    app.cli.add_command(keys)
    app.cli.add_command(quickstart)
    app.cli.add_command(list_providers)


@click.command("quickstart")
@with_appcontext
def quickstart() -> None:
    """Make a first key when there is none, and show a call to try."""
    settings: Settings = current_app.extensions["sluice"].settings
    secret = "YOUR_KEY"  # noqa: S105
    try:
        if not store().all():
            _, secret = store().create("first")
            click.echo(f"Your first API key, shown only this once: {secret}\n")
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    url = f"http://127.0.0.1:{settings.port or DEFAULT_PORT}"
    click.echo(f"Sluice listens on {url} (Ctrl-C stops it). Try:\n")
    click.echo(EXAMPLE.format(url=url, secret=secret))


@keys.command("create")
@click.option("--name", required=True, help="What to call it; no two keys share a name.")
@click.option("--expires", help="30m, 12h, 30d, 2w, or an ISO date or time (UTC). Default: never.")
@click.option(
    "--models", default="*", show_default=True, help="What it may use: 'openai/*,local/*'."
)
@click.option(
    "--tier",
    default="unlimited",
    show_default=True,
    metavar="|".join(TIERS),
    help="Kept with the key; not enforced yet.",
)
@as_json
def create(name: str, expires: str | None, models: str, tier: str, as_json: bool) -> None:
    """Make a key and print it, this once."""
    key, secret = store().create(
        name,
        expires=None if expires is None else parse_expires(expires),
        models=tuple(glob.strip() for glob in models.split(",")),
        tier=tier,
    )
    if as_json:
        fields = public(key)
        click.echo(
            to_json({"id": fields.pop("id"), "name": fields.pop("name"), "key": secret} | fields)
        )
        return
    click.echo(secret)
    click.echo("Keep it now: it is shown only once.", err=True)


@keys.command("list")
@as_json
def list_keys(as_json: bool) -> None:
    """Show all keys, and what is wrong with the file."""
    for problem in store().problems():
        click.echo(f"Warning: {problem}", err=True)
    found = [described(key) for key in store().all()]
    if as_json:
        click.echo(to_json(found))
        return
    if not found:
        click.echo("There are no keys yet: 'flask keys create --name NAME' makes one.", err=True)
        return
    columns = COLUMNS
    if any(row["source"] != "file" for row in found):
        columns = (*COLUMNS, "source")
    click.echo(table([columns, *([cell(row[name]) for name in columns] for row in found)]))


@keys.command("show")
@which
@as_json
@click.option("--line", is_flag=True, help="Print its line, with the hash, for SLUICE_KEYS.")
def show(id_or_name: str, as_json: bool, line: bool) -> None:
    """Show one key."""
    if as_json and line:
        raise click.ClickException("Choose --json or --line, not both.")
    if line:
        click.echo(store().line(id_or_name))
        return
    fields = described(store().get(id_or_name))
    if as_json:
        click.echo(to_json(fields))
    else:
        click.echo(table([name, cell(value)] for name, value in fields.items()))


@keys.command("disable")
@which
def disable(id_or_name: str) -> None:
    """Refuse a key until it is enabled again."""
    report(store().update(id_or_name, disabled=True), "disabled")


@keys.command("enable")
@which
def enable(id_or_name: str) -> None:
    """Accept a disabled key again."""
    key = store().update(id_or_name, disabled=False)
    report(key, "enabled, but expired" if key.status == "expired" else "enabled")


@keys.command("delete")
@which
@click.option("--yes", is_flag=True, help="Don't ask.")
def delete(id_or_name: str, yes: bool) -> None:
    """Remove a key for good."""
    key = store().get(id_or_name)
    if not yes:
        if not sys.stdin.isatty():
            raise click.ClickException("Nobody can be asked here: add --yes to delete the key.")
        click.confirm(f"Delete the key {key.name!r} ({key.id}) for good?", abort=True, err=True)
    report(store().delete(key.id), "deleted")


@click.command("providers")
@click.option("--markdown", is_flag=True, help="Print the table of docs/providers.md.")
@with_appcontext
def list_providers(markdown: bool) -> None:
    """Show the hosts that Sluice knows, and which of them are enabled."""
    if markdown:
        click.echo(provider_table(BUILT_IN))
        return
    router = current_app.extensions["sluice"].gateway.router
    rows = [
        (row.name, cell(router.enabled(row)), cell(missing(row, {})), row.base_url)
        for row in router.providers.values()
    ]
    click.echo(table([("name", "enabled", "variables", "base_url"), *rows]))


def provider_table(rows: Iterable[Provider]) -> str:
    """The rows as a Markdown table: what a first model of each can't do by itself."""
    lines = [
        "| provider | variables | a model | legacy completions | emulated | dropped | refused |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        model = row.models[0] if row.models else "any"
        cells = (
            f"`{row.name}`",
            ", ".join(f"`{name}`" for name in missing(row, {})) or "-",
            f"`{model}`",
            legacy(row),
            *(", ".join(names) or "-" for names in fidelity.shortcomings(Target(row, model))),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def legacy(row: Provider) -> str:
    """Which of a row's models are asked through the legacy completions."""
    if row.dialect != "openai":
        return "-"
    if isinstance(row.completions, bool):
        return "all" if row.completions else "none"
    return ", ".join(f"`{pattern}`" for pattern in row.completions)


def store() -> KeyStore:
    found: KeyStore = current_app.extensions["sluice"].keys
    return found


def report(key: Key, state: str) -> None:
    click.echo(f"{key.name} ({key.id}) is {state}.")


def parse_expires(text: str) -> timedelta | datetime:
    """A duration (90m, 12h, 30d, 2w) or an instant (ISO; UTC where it names no zone)."""
    try:
        if duration := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
            return timedelta(**{UNITS[duration[2]]: int(duration[1])})
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise click.ClickException(
            "--expires takes a duration such as 90m, 12h, 30d or 2w, "
            "or a date or time such as 2030-01-31 or 2030-01-31T12:00:00Z."
        ) from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def public(key: Key) -> dict[str, Any]:
    """A key's fields as a line has them, without the hash."""
    return {
        field.name: msgspec.to_builtins(getattr(key, field.name))
        for field in FIELDS
        if field.name != "hash"
    }


def described(key: Key) -> dict[str, Any]:
    """The same, with its status (active, disabled, expired) and source (file, environment)."""
    source = "environment" if store().is_fixed(key) else "file"
    return public(key) | {"status": key.status, "source": source}


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
