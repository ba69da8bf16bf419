"""Keys as the commands show them: as JSON, as cells of a table, and in words.

- No view has a secret or a hash.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from cli.formats import cell
from cli.open_ledger import today
from keys.key import FIELDS, Key, as_text
from ledger.key_usage import KeySpending
from ledger.pricing import dollars
from quota.quota import budget_of

MAX_CELL = 24
CENT = 10_000_000
"""Nano-dollars."""
UNKNOWN = "unknown"
HASHES = ("hash", "previous_hash")


def public(key: Key) -> dict[str, Any]:
    """Return a key's fields in the format of the key file, without the hashes."""
    return {
        field.name: msgspec.to_builtins(getattr(key, field.name))
        for field in FIELDS
        if field.name not in HASHES
    }


def described(
    key: Key, fixed: Container[str], usages: Mapping[str, KeySpending] | None
) -> dict[str, Any]:
    """Return a key's public fields, its effective limits, its status, its source and its usage.

    Args:
        fixed: the ids of the keys that come from SLUICE_KEYS.
        usages: the usage of keys by id; None if it is unknown.
    """
    limits = key.limits._asdict()
    usage = None if usages is None else usages.get(key.id, KeySpending())
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


def used_in_words(key: Key, usages: Mapping[str, KeySpending] | None) -> dict[str, str]:
    """Return what a key has spent, has left, and when it was last used."""
    if usages is None:
        return dict.fromkeys(("spent", "left", "last used"), UNKNOWN)
    usage, budget = usages.get(key.id, KeySpending()), budget_of(key)
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
    key: Key, fixed: Container[str], usages: Mapping[str, KeySpending] | None
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
    role = ["an admin key"] if key.admin else []
    return ", ".join([*role, *(parts or ["no rate limits"]), paid, models, end])


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


def useless_models(models: Iterable[str], aliases: Container[str]) -> list[str]:
    """Return a warning for each name that allows nothing: no alias, and no model's full name."""
    return [
        f"{name!r} is neither an alias nor a model's full name (provider/model), "
        "so it allows nothing"
        for name in models
        if not set("/*?[") & set(name) and name not in aliases
    ]
