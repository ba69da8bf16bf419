"""Keys and groups as JSON for operators: their fields, limits, status and usage.

- The commands (--json) and the HTTP API show keys in this format.
- The format has no secret and no hash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from keys.group import KeyGroup, group_of
from keys.key import Key, public
from ledger.key_usage import KeySpending
from ledger.pricing import dollars
from quota.quota import budget_of


def today() -> str:
    """Return the current UTC day, such as 2026-01-31."""
    return datetime.now(UTC).date().isoformat()


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
    return public(key) | {
        "limits": limits,
        "status": key.status,
        "source": "environment" if key.id in fixed else "file",
        "used": used_of(key, usage),
        "last_used_at": instant(usage.last_used_us) if usage and usage.last_used_us else None,
    }


def group_described(
    group: KeyGroup, keys: int, usages: Mapping[str, KeySpending] | None
) -> dict[str, Any]:
    """Return a group's limits, the number of its keys, and what it has spent and has left.

    Args:
        keys: the number of keys that name the group.
        usages: the usage of groups by name; None if it is unknown.
    """
    usage = None if usages is None else usages.get(group.name, KeySpending())
    return {
        "name": group.name,
        "defined": group.defined,
        "requests_per_minute": group.requests_per_minute,
        "tokens_per_hour": group.tokens_per_hour,
        "budget_usd": group.budget_usd,
        "budget_period": group.budget_period,
        "models": list(group.models),
        "keys": keys,
        "used": used_of(group, usage),
    }


def used_of(holder: Key | KeyGroup, usage: KeySpending | None) -> dict[str, float | None] | None:
    """Return what a key or a group has spent, and has left of its budget; None if unknown."""
    if usage is None:
        return None
    budget = budget_of(holder)
    spent, left = usage.spent(budget, today()), usage.left(budget, today())
    return {"spent_usd": dollars(spent), "left_usd": dollars(left)}


def groups_of(groups: Mapping[str, KeyGroup], keys: Iterable[Key]) -> list[tuple[KeyGroup, int]]:
    """Return each group with the number of its keys: those of sluice.toml, then unknown ones."""
    counts = Counter(key.group for key in keys if key.group is not None)
    names = [*groups, *sorted(name for name in counts if name not in groups)]
    return [(group_of(name, groups), counts[name]) for name in names]


def instant(microseconds: int) -> str:
    """Return a time in UTC, such as 2026-01-31T12:00:00Z."""
    return datetime.fromtimestamp(microseconds // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def useless_models(models: Iterable[str], aliases: Container[str]) -> list[str]:
    """Return a warning for each name that is neither an alias nor a model's full name."""
    return [
        f"{name!r} is neither an alias nor a model's full name (provider/model), "
        "so it allows nothing"
        for name in models
        if not set("/*?[") & set(name) and name not in aliases
    ]
