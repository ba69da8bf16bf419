"""Keys as the commands print them: as cells of a table, and in words.

- No view has a secret or a hash.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from decimal import Decimal

from cli.formats import cell
from keys.group import KeyGroup
from keys.key import Key, as_text
from ledger.key_changes import KeyChange
from ledger.key_usage import KeySpending
from quota.key_state import instant, today
from quota.quota import budget_of

MAX_CELL = 24
CENT = 10_000_000
"""Nano-dollars."""
UNKNOWN = "unknown"


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
        "group": cell(key.group),
        "models": shortened(cell(key.models)),
        "expires": cell(key.expires and key.expires.date()),
        "last used": used["last used"].partition("T")[0],
        "status": key.status,
        "source": "environment" if key.id in fixed else "file",
    }


def group_in_short(
    group: KeyGroup, keys: int, usages: Mapping[str, KeySpending] | None
) -> dict[str, str]:
    """Return a group's cells in the list of groups. The arguments are those of group_described."""
    spent = left = UNKNOWN
    if usages is not None:
        usage, limit = usages.get(group.name, KeySpending()), budget_of(group)
        rest = usage.left(limit, today())
        spent = money(usage.spent(limit, today()))
        left = "-" if rest is None else money(rest)
    return {
        "group": group.name if group.defined else f"{group.name} (not in sluice.toml)",
        "keys": str(keys),
        "req/min": cell(group.requests_per_minute),
        "tokens/h": cell(group.tokens_per_hour),
        "budget": budget(group),
        "spent": spent,
        "left": left,
        "models": shortened(cell(group.models)),
    }


LOG_TITLES = ("time", "action", "key", "id", "by", "changes")


def change_in_short(change: KeyChange) -> tuple[str, ...]:
    """Return a change's cells in the log of the keys."""
    by = change.actor_name if change.via == "cli" else f"{change.actor_name} (HTTP)"
    values = json.loads(change.changes).items()
    return (
        instant(change.at_us),
        change.action,
        shortened(change.key_name),
        change.key_id,
        shortened(by),
        ", ".join(f"{name}: {new_value(value)}" for name, value in values) or "-",
    )


def new_value(value: object) -> str:
    """Return a changed value in words, such as 5.0 -> 10.0."""
    if isinstance(value, dict) and value.keys() == {"from", "to"}:
        return f"{cell(value['from'])} -> {cell(value['to'])}"
    return cell(value)


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
    role += [f"the group {key.group}"] if key.group else []
    return ", ".join([*role, *(parts or ["no rate limits"]), paid, models, end])


def shortened(text: str) -> str:
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."


def budget(key: Key | KeyGroup) -> str:
    """Return the budget and its period of a key or a group, such as $5 or $0.25/day."""
    if key.budget_nano is None:
        return "-"
    return usd(key) + ("" if key.budget_period == "total" else f"/{key.budget_period}")


def usd(key: Key | KeyGroup) -> str:
    """Return the budget of a key or a group in dollars, such as $0.25."""
    return f"${Decimal(key.budget_nano or 0).scaleb(-9).normalize():f}"


def money(nano: int) -> str:
    """Return an amount in dollars and cents, which is not rounded up."""
    if 0 < nano < CENT:
        return "<$0.01"
    cents = nano // CENT
    return f"${cents // 100}.{cents % 100:02d}"
