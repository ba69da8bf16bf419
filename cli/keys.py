"""The commands of `./sluice keys`, which create, list and change API keys.

- Only `create` and `rotate` print a secret.
- Only `show --line` prints a hash.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from flask import current_app
from flask.cli import AppGroup

from cli.formats import as_json, cell, parse_duration, parse_instant, table, to_json, warn
from cli.key_views import (
    LIMITS,
    LOG_TITLES,
    MONEY,
    change_in_short,
    group_in_short,
    in_short,
    terms_of,
    used_in_words,
)
from cli.open_ledger import (
    NOTHING,
    audited_keys,
    open_ledger,
    usage_of_groups,
    usage_of_keys,
)
from errors import SluiceError
from keys.key import TIERS, Key, Terms, as_text, public
from keys.key_errors import KeyFileError
from keys.limits import PERIODS
from keys.store import KeyStore
from ledger import key_changes
from quota.key_state import described, group_described, groups_of, useless_models

SAVE_NOW = "Save this key now: it can't be shown again."
C = TypeVar("C", bound=Callable[..., Any])


class KeysGroup(AppGroup):
    """A group of commands that report errors of the keys and the ledger in one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyFileError, SluiceError) as error:
            raise click.ClickException(str(error)) from None


keys = KeysGroup("keys", help="Create, list and change the keys that callers use.")
which = click.argument("id_or_name", metavar="ID_OR_NAME")

OWN = "Overrides the tier's limit; 'tier' restores it."
TERMS = (
    click.option(
        "--expires",
        metavar="WHEN",
        help="A duration (90m, 12h, 30d, 2w), an ISO date or time (UTC), or 'none'.",
    ),
    click.option(
        "--models", metavar="LIST", help="Allowed models and aliases, such as 'openai/*,fast'."
    ),
    click.option("--tier", metavar="|".join(TIERS), help="The tier that sets the key's limits."),
    click.option("--requests-per-minute", metavar="N", help=OWN),
    click.option("--tokens-per-hour", metavar="N", help=OWN),
    click.option(
        "--budget", "budget_usd", metavar="USD", help="The most that the key may spend, or 'none'."
    ),
    click.option(
        "--budget-period",
        metavar="|".join(PERIODS),
        help="How often the budget is renewed (UTC); 'total': never.",
    ),
    click.option(
        "--max-streams",
        metavar="N",
        help="The most calls at once, or 'share' for the server's limit per key.",
    ),
    click.option(
        "--resumable",
        metavar="yes|no|server",
        help="Whether calls are resumable by default; 'server': the server's default.",
    ),
    click.option(
        "--admin/--no-admin",
        default=None,
        help="Whether the key may manage this server over HTTP: keys, usage, streams.",
    ),
    click.option(
        "--group",
        metavar="NAME",
        help="The group of sluice.toml whose limits the key shares, or 'none'.",
    ),
)


def with_terms(command: C) -> C:
    for option in reversed(TERMS):
        command = option(command)
    return command


@keys.command("create")
@click.option("--name", required=True, help="The key's name, which must be unique.")
@with_terms
@as_json
def create(name: str, as_json: bool, **chosen: str | bool | None) -> None:
    """Create a key and print its secret, which can't be shown again.

    By default, the key has the tier "unlimited", may use every model and never expires.
    """
    terms = parse_terms(chosen)
    with audited_keys(store()) as audited:
        key, secret = audited.create(name, **terms)
        if as_json:
            click.echo(to_json(with_secret(key, secret)))
        else:
            click.echo(secret)
            click.echo(f"Key {key.name!r} ({key.id}): {terms_of(key)}.", err=True)
            click.echo(SAVE_NOW, err=True)
    warn(useless_models(terms.get("models", ()), aliases()))


@keys.command("rotate")
@which
@click.option(
    "--overlap",
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="How long the old secret stays valid, such as 30m or 7d; 0 ends it at once.",
)
@as_json
def rotate(id_or_name: str, overlap: str, as_json: bool) -> None:
    """Give a key a new secret and print it. The key's id, limits and history stay.

    The old secret stays valid for the overlap. For a key that leaked, use --overlap 0.
    """
    with audited_keys(store()) as audited:
        key, secret = audited.rotate(id_or_name, parse_overlap(overlap))
        if as_json:
            click.echo(to_json(with_secret(key, secret)))
            return
        click.echo(secret)
        click.echo(f"Key {key.name!r} ({key.id}) has a new secret; {fate_of_old(key)}.", err=True)
        if key.status != "active":
            click.echo(f"Warning: the key is {key.status}, so neither secret works.", err=True)
        click.echo(SAVE_NOW, err=True)


def with_secret(key: Key, secret: str) -> dict[str, Any]:
    fields = public(key)
    return {"id": fields.pop("id"), "name": fields.pop("name"), "key": secret} | fields


def fate_of_old(key: Key) -> str:
    """Return what becomes of the secret that a key had before a rotation, as a clause."""
    if key.previous_until is None or key.status == "expired":
        return "the old one no longer works"
    ends = [end for end in (key.previous_until, key.expires) if end is not None]
    return f"the old one works until {as_text(min(ends))}"


@keys.command("change")
@which
@with_terms
def change(id_or_name: str, **chosen: str | bool | None) -> None:
    """Change the given options of a key, and keep the others."""
    terms = parse_terms(chosen)
    if not terms:
        raise click.ClickException("Nothing to change: see './sluice keys change --help'.")
    with audited_keys(store()) as audited:
        report(audited.update(id_or_name, **terms), "changed")
    warn(useless_models(terms.get("models", ()), aliases()))


@keys.command("list", short_help="List all keys with what they spent.")
@click.option(
    "--limits", is_flag=True, help="Show the limits instead of the budgets and the usage."
)
@as_json
def list_keys(as_json: bool, limits: bool) -> None:
    """List all keys with what they spent, and warn about problems in the key file."""
    for problem in store().problems():
        click.echo(f"Warning: {problem}", err=True)
    found = store().all()
    fixed = store().fixed_ids()
    if as_json:
        usages = usage_of_keys()
        click.echo(to_json([described(key, fixed, usages) for key in found]))
        return
    if not found:
        click.echo(
            "There are no keys yet; './sluice keys create --name NAME' creates one.", err=True
        )
        return
    usages = NOTHING if limits else usage_of_keys()
    rows = [in_short(key, fixed, usages) for key in found]
    left_out = MONEY if limits else LIMITS
    columns = [name for name in rows[0] if name not in left_out]
    if not any(key.id in fixed for key in found):
        columns.remove("source")
    if not any(key.group for key in found):
        columns.remove("group")
    click.echo(table([columns, *([row[name] for name in columns] for row in rows)]))


@keys.command("groups")
@as_json
def list_groups(as_json: bool) -> None:
    """List the groups of sluice.toml, whose keys share limits and a budget."""
    found = groups_of(store().groups, store().all())
    usages = usage_of_groups()
    if as_json:
        click.echo(to_json([group_described(group, count, usages) for group, count in found]))
    elif found:
        rows = [group_in_short(group, count, usages) for group, count in found]
        click.echo(table([[*rows[0]], *([*row.values()] for row in rows)]))
    else:
        click.echo("There are no groups; [groups.NAME] in sluice.toml makes one.", err=True)


@keys.command("show")
@which
@as_json
@click.option("--line", is_flag=True, help="Print the key's line for SLUICE_KEYS, with the hash.")
def show(id_or_name: str, as_json: bool, line: bool) -> None:
    """Show a key."""
    if as_json and line:
        raise click.ClickException("Choose --json or --line, not both.")
    if line:
        click.echo(store().line(id_or_name))
        return
    key = store().get(id_or_name)
    usages = usage_of_keys(key.id)
    fields = described(key, store().fixed_ids(), usages)
    if as_json:
        click.echo(to_json(fields))
        return
    del fields["used"], fields["last_used_at"]
    fields |= used_in_words(key, usages)
    for name, value in fields.pop("limits").items():
        of_tier = value is not None and fields[name] is None
        fields[name] = f"{value} (the tier's)" if of_tier else value
    click.echo(table([name, cell(value)] for name, value in fields.items()))


@keys.command("disable")
@which
def disable(id_or_name: str) -> None:
    """Reject a key until it is enabled again."""
    with audited_keys(store()) as audited:
        report(audited.update(id_or_name, disabled=True), "disabled")


@keys.command("enable")
@which
def enable(id_or_name: str) -> None:
    """Accept a disabled key again."""
    with audited_keys(store()) as audited:
        key = audited.update(id_or_name, disabled=False)
        report(key, "enabled, but expired" if key.status == "expired" else "enabled")


@keys.command("delete")
@which
@click.option("--yes", is_flag=True, help="Don't ask for confirmation.")
def delete(id_or_name: str, yes: bool) -> None:
    """Delete a key permanently."""
    key = store().get(id_or_name)
    if not yes:
        if not sys.stdin.isatty():
            raise click.ClickException("Can't ask for confirmation without a terminal; pass --yes.")
        click.confirm(f"Permanently delete key {key.name!r} ({key.id})?", abort=True, err=True)
    with audited_keys(store()) as audited:
        report(audited.delete(key.id), "deleted")


@keys.command("log")
@click.option("--key", metavar="ID_OR_NAME", help="Only this key; by default all keys.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=50,
    show_default=True,
    help="The most lines to print.",
)
@as_json
def show_log(key: str | None, limit: int, as_json: bool) -> None:
    """List the changes of the keys (what, when and by whom), newest first. Times are UTC."""
    only = None if key is None else id_of(key)
    with open_ledger() as ledger:
        found = ledger.read(lambda rows: key_changes.latest(rows, None, limit, only))
    if as_json:
        click.echo(to_json([key_changes.described(change) for change in found]))
    elif found:
        click.echo(table([LOG_TITLES, *map(change_in_short, found)]))
    else:
        click.echo("No change has been recorded yet.", err=True)


def id_of(id_or_name: str) -> str:
    """Return a key's id. The id of a deleted key is accepted too. Raises KeyFileError."""
    try:
        return store().get(id_or_name).id
    except KeyFileError:
        if re.fullmatch("key_[A-Za-z0-9_-]{1,64}", id_or_name):
            return id_or_name
        raise


def store() -> KeyStore:
    """Return the store of the keys. Raises KeyFileError if the key file exists but can't be read.

    Otherwise the commands would report that there are no keys.
    """
    found: KeyStore = current_app.extensions["sluice"].keys
    if trouble := found.trouble:
        path = found.path.absolute()
        raise KeyFileError(f"{trouble} ({path}{belongs_to(path)}).")
    return found


def belongs_to(path: Path) -> str:
    """Return the owner of a file, as a part of a sentence, if it is another user's."""
    with suppress(OSError, KeyError):
        if path.stat().st_uid != os.geteuid():
            return f", which belongs to {path.owner()}"
    return ""


def report(key: Key, state: str) -> None:
    click.echo(f"Key {key.name!r} ({key.id}) is {state}.")


def parse_terms(chosen: Mapping[str, str | bool | None]) -> Terms:
    """Return the values of those options of TERMS that were given. A flag needs no parser."""
    found = {
        name: PARSERS[name](given) if isinstance(given, str) else given
        for name, given in chosen.items()
        if given is not None
    }
    return cast(Terms, found)


def parse_expires(text: str) -> timedelta | datetime | None:
    if text == "none":
        return None
    with suppress(ValueError):
        return parse_duration(text)
    try:
        return parse_instant(text)
    except ValueError:
        raise click.ClickException(
            "--expires must be a duration such as 90m, 12h, 30d or 2w, "
            "a date or time such as 2030-01-31 or 2030-01-31T12:00:00Z, or 'none'."
        ) from None


def aliases() -> Container[str]:
    found: Container[str] = current_app.extensions["sluice"].gateway.router.aliases
    return found


def parse_models(text: str) -> tuple[str, ...]:
    return tuple(glob.strip() for glob in text.split(","))


def parse_count(text: str) -> int | None:
    if text == "tier":
        return None
    if not re.fullmatch("[0-9]{1,99}", text):
        raise click.ClickException(
            "A limit must be a whole number, or 'tier' for the tier's limit."
        )
    return int(text)


def parse_streams(text: str) -> int | None:
    if text == "share":
        return None
    if not re.fullmatch("[0-9]{1,99}", text):
        raise click.ClickException(
            "--max-streams must be a whole number, or 'share' for the server's limit per key."
        )
    return int(text)


def parse_resumable(text: str) -> bool | None:
    choices = {"yes": True, "no": False, "server": None}
    if text not in choices:
        raise click.ClickException("--resumable must be yes, no, or 'server' for its default.")
    return choices[text]


def parse_group(text: str) -> str | None:
    return None if text == "none" else text


def parse_budget(text: str) -> float | None:
    """Parse an amount of US dollars with at most nine decimals."""
    if text == "none":
        return None
    if not re.fullmatch(r"[0-9]{1,99}(\.[0-9]{1,9})?", text):
        raise click.ClickException("--budget must be US dollars such as 5 or 0.25, or 'none'.")
    return float(text)


PARSERS: Mapping[str, Callable[[str], object]] = {
    "expires": parse_expires,
    "models": parse_models,
    "tier": str,
    "requests_per_minute": parse_count,
    "tokens_per_hour": parse_count,
    "budget_usd": parse_budget,
    "budget_period": str,
    "max_streams": parse_streams,
    "resumable": parse_resumable,
    "group": parse_group,
}


def parse_overlap(text: str) -> timedelta:
    if text == "0":
        return timedelta()
    try:
        return parse_duration(text)
    except (ValueError, OverflowError):
        raise click.ClickException(
            "--overlap must be a duration such as 90m, 24h or 7d, or 0 to end the old secret now."
        ) from None
