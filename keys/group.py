"""Groups of keys, which share limits and a budget: the tables [groups.NAME] of sluice.toml.

- A key names its group. A call must be allowed by its key and by its group.
- Groups are in sluice.toml, not in the key file: a gateway of an earlier release would take their
  lines for damage, and keys of SLUICE_KEYS need groups too.
- A key whose group isn't in sluice.toml may use no model: a mistake must not lift a restriction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from config_file import TomlError, did_you_mean
from keys.limits import MAX_COUNT, MAX_USD, PERIODS, Limits, Period, nano

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]


class KeyGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits that the keys of a group share. None means no limit."""

    name: str
    budget_usd: Annotated[float, Meta(ge=0, le=MAX_USD)] | None = None
    budget_period: Period = "total"
    requests_per_minute: Count | None = None
    tokens_per_hour: Count | None = None
    models: tuple[str, ...] = ("*",)
    """Globs of aliases and of full model names (provider/model)."""
    defined: bool = True
    """False if sluice.toml doesn't have the group. Then no model is allowed."""

    @property
    def limits(self) -> Limits:
        return Limits(self.requests_per_minute, self.tokens_per_hour)

    @property
    def budget_nano(self) -> int | None:
        """The budget in nano-dollars; None: no limit."""
        return None if self.budget_usd is None else nano(self.budget_usd)


TAKES: Final = {
    "budget_usd": f"US dollars from 0 to {MAX_USD}",
    "budget_period": " or ".join(PERIODS),
    "requests_per_minute": f"an integer from 0 to {MAX_COUNT}",
    "tokens_per_hour": f"an integer from 0 to {MAX_COUNT}",
    "models": 'a list of full names, aliases or patterns such as ["openai/*"]',
}
"""The values that each field of a table may have, in words."""
KINDS: Final = {field.name: field.type for field in msgspec.structs.fields(KeyGroup)}


def read_groups(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, KeyGroup]:
    """Return the groups of sluice.toml by their names. Raises TomlError."""
    return {name: read_group(name, table) for name, table in tables.items()}


def read_group(name: str, table: Mapping[str, Any]) -> KeyGroup:
    if not NAME.fullmatch(name):
        raise TomlError("a group's name is 1 to 64 of A-Z a-z 0-9 _ -", "groups", name)
    for field, value in table.items():
        if field not in TAKES:
            reason = f"there is no such field{did_you_mean(field, TAKES)}"
            raise TomlError(f"{field}: {reason}", "groups", name, field)
        try:
            found = msgspec.convert(value, KINDS[field])
        except msgspec.ValidationError:
            found = ()
        if found == () or (field == "models" and "" in found):
            raise TomlError(f"{field} must be {TAKES[field]}", "groups", name, field)
    if "budget_period" in table and "budget_usd" not in table:
        raise TomlError("budget_period needs budget_usd", "groups", name, "budget_period")
    return msgspec.convert({"name": name, **table}, KeyGroup)


def group_of(name: str, groups: Mapping[str, KeyGroup]) -> KeyGroup:
    """Return a group, or one that allows no model if sluice.toml doesn't have it."""
    return groups.get(name) or KeyGroup(name=name, models=(), defined=False)
