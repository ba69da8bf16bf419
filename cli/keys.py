"""The commands of `flask keys`, which create, list and change API keys.

- Only `create` and `rotate` print a secret.
- Only `show --line` prints a hash.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar, cast

import click
import msgspec
from flask import current_app
from flask.cli import AppGroup

from cli.formats import as_json, cell, parse_duration, parse_instant, table, to_json
from cli.open_ledger import NOTHING, today, usage_of_keys
from keys.key import FIELDS, PERIODS, TIERS, Key, KeyFileError, Terms, as_text
from keys.store import KeyStore
from ledger.key_usage import KeyUsage
from ledger.pricing import dollars
from quota.quota import budget_of

MAX_CELL = 24
CENT = 10_000_000
"""Nano-dollars."""
UNKNOWN = "unknown"
HASHES = ("hash", "previous_hash")
SAVE_NOW = "Save this key now: it can't be shown again."
C = TypeVar("C", bound=Callable[..., Any])


class KeysGroup(AppGroup):
    """A group of commands that report a KeyFileError in one line on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyFileError as error:
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
)


def with_terms(command: C) -> C:
    for option in reversed(TERMS):
        command = option(command)
    return command


@keys.command("create")
@click.option("--name", required=True, help="The key's name, which must be unique.")
@with_terms
@as_json
def create(name: str, as_json: bool, **chosen: str | None) -> None:
    """Create a key and print its secret, which can't be shown again.

    By default, the key has the tier "unlimited", may use every model and never expires.
    """
    key, secret = store().create(name, **parse_terms(chosen))
    if as_json:
        fields = public(key)
        click.echo(
            to_json({"id": fields.pop("id"), "name": fields.pop("name"), "key": secret} | fields)
        )
        return
    click.echo(secret)
    click.echo(f"Key {key.name!r} ({key.id}): {terms_of(key)}.", err=True)
    click.echo(SAVE_NOW, err=True)


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
    key, secret = store().rotate(id_or_name, parse_overlap(overlap))
    if as_json:
        fields = public(key)
        first = {"id": fields.pop("id"), "name": fields.pop("name"), "key": secret}
        click.echo(to_json(first | fields))
        return
    click.echo(secret)
    end = "no longer works"
    if key.previous_until is not None:
        end = f"works until {as_text(key.previous_until)}"
    click.echo(f"Key {key.name!r} ({key.id}) has a new secret; the old one {end}.", err=True)
    click.echo(SAVE_NOW, err=True)


@keys.command("change")
@which
@with_terms
def change(id_or_name: str, **chosen: str | None) -> None:
    """Change the given options of a key, and keep the others."""
    terms = parse_terms(chosen)
    if not terms:
        raise click.ClickException("Nothing to change: see 'flask keys change --help'.")
    report(store().update(id_or_name, **terms), "changed")


@keys.command("list")
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
        click.echo("There are no keys yet; 'flask keys create --name NAME' creates one.", err=True)
        return
    usages = NOTHING if limits else usage_of_keys()
    rows = [in_short(key, fixed, usages) for key in found]
    left_out = MONEY if limits else LIMITS
    columns = [name for name in rows[0] if name not in left_out]
    if not any(key.id in fixed for key in found):
        columns.remove("source")
    click.echo(table([columns, *([row[name] for name in columns] for row in rows)]))


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
    report(store().update(id_or_name, disabled=True), "disabled")


@keys.command("enable")
@which
def enable(id_or_name: str) -> None:
    """Accept a disabled key again."""
    key = store().update(id_or_name, disabled=False)
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
    report(store().delete(key.id), "deleted")


def store() -> KeyStore:
    found: KeyStore = current_app.extensions["sluice"].keys
    return found


def report(key: Key, state: str) -> None:
    click.echo(f"Key {key.name!r} ({key.id}) is {state}.")


def parse_terms(chosen: Mapping[str, str | None]) -> Terms:
    """Return the values of those options of TERMS that were given."""
    found = {name: PARSERS[name](text) for name, text in chosen.items() if text is not None}
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
}


def public(key: Key) -> dict[str, Any]:
    """Return a key's fields in the format of the key file, without the hashes."""
    return {
        field.name: msgspec.to_builtins(getattr(key, field.name))
        for field in FIELDS
        if field.name not in HASHES
    }


def described(
    key: Key, fixed: Container[str], usages: Mapping[str, KeyUsage] | None
) -> dict[str, Any]:
    """Return a key's public fields, its effective limits, its status, its source and its usage.

    Args:
        fixed: the ids of the keys that come from SLUICE_KEYS.
        usages: the usage of keys by id; None if it is unknown.
    """
    limits = key.limits._asdict()
    usage = None if usages is None else usages.get(key.id, KeyUsage())
    used = None
    if usage is not None:
        budget = budget_of(key)
        spent, left = usage.spent(budget, today()), usage.left(budget, today())
        used = {"spent_usd": dollars(spent), "left_usd": dollars(left)}
    return public(key) | {
        "limits": limits,
        "status": key.status,
        "source": "environment" if key.id in fixed else "file",
        "used": used,
        "last_used_at": instant(usage.last_used_us) if usage and usage.last_used_us else None,
    }


def used_in_words(key: Key, usages: Mapping[str, KeyUsage] | None) -> dict[str, str]:
    """Return what a key has spent, has left, and when it was last used."""
    if usages is None:
        return dict.fromkeys(("spent", "left", "last used"), UNKNOWN)
    usage, budget = usages.get(key.id, KeyUsage()), budget_of(key)
    left = usage.left(budget, today())
    return {
        "spent": money(usage.spent(budget, today())),
        "left": "-" if left is None else money(left),
        "last used": instant(usage.last_used_us) if usage.last_used_us else "never",
    }


MONEY = ("budget", "spent", "left", "models", "expires", "last used")
LIMITS = ("tier", "req/min", "tokens/h", "calls")
"""The columns of the list that show the budgets and the usage, and those that show the limits."""


def in_short(
    key: Key, fixed: Container[str], usages: Mapping[str, KeyUsage] | None
) -> dict[str, str]:
    """Return a key's cells in the list of keys. The arguments are those of `described`."""
    used = used_in_words(key, usages)
    return {
        "id": key.id,
        "name": shortened(key.name),
        "tier": key.tier,
        "req/min": cell(key.limits.requests_per_minute),
        "tokens/h": cell(key.limits.tokens_per_hour),
        "calls": cell(key.max_streams),
        "budget": budget(key),
        "spent": used["spent"],
        "left": used["left"],
        "models": shortened(cell(key.models)),
        "expires": cell(key.expires and key.expires.date()),
        "last used": used["last used"].partition("T")[0],
        "status": key.status,
        "source": "environment" if key.id in fixed else "file",
    }


def terms_of(key: Key) -> str:
    """Return the terms of a key in words."""
    limits = key.limits
    parts = [
        f"{count:,} {what}"
        for count, what in (
            (limits.requests_per_minute, "requests per minute"),
            (limits.tokens_per_hour, "tokens per hour"),
            (key.max_streams, "calls at once"),
        )
        if count is not None
    ]
    period = {"day": "per day", "month": "per month", "total": "in all"}[key.budget_period]
    paid = "no budget" if key.budget_nano is None else f"a budget of {usd(key)} {period}"
    models = "all models" if key.models == ("*",) else f"the models {cell(key.models)}"
    end = "never expires" if key.expires is None else f"expires {as_text(key.expires)}"
    return ", ".join([*(parts or ["no rate limits"]), paid, models, end])


def shortened(text: str) -> str:
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."


def budget(key: Key) -> str:
    """Return a key's budget and its period, such as $5 or $0.25/day."""
    if key.budget_nano is None:
        return "-"
    return usd(key) + ("" if key.budget_period == "total" else f"/{key.budget_period}")


def usd(key: Key) -> str:
    """Return a key's budget in dollars, such as $0.25."""
    return f"${Decimal(key.budget_nano or 0).scaleb(-9).normalize():f}"


def money(nano: int) -> str:
    """Return an amount in dollars and cents, which is not rounded up."""
    if 0 < nano < CENT:
        return "<$0.01"
    cents = nano // CENT
    return f"${cents // 100}.{cents % 100:02d}"


def instant(microseconds: int) -> str:
    """Return a time in UTC, such as 2026-01-31T12:00:00Z."""
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_overlap(text: str) -> timedelta:
    if text == "0":
        return timedelta()
    try:
        return parse_duration(text)
    except (ValueError, OverflowError):
        raise click.ClickException(
            "--overlap must be a duration such as 90m, 24h or 7d, or 0 to end the old secret now."
        ) from None
