"""API keys: their fields, how a key is made, and how its row in the file is read.

- A key's secret is never stored, only its SHA-256.
- An error about a row names the field, but never quotes its value.
- A misspelt field name must not lift a restriction, so a row that lacks a field is invalid.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, get_args

import msgspec
from msgspec import Meta

from keys.group import NAME as GROUP_NAME
from keys.group import KeyGroup
from keys.key_errors import BrokenLine, KeyFileError
from keys.limits import MAX_COUNT, MAX_USD, PERIODS, Limits, Period, nano

Tier: TypeAlias = Literal["free", "standard", "enterprise", "unlimited"]
Status: TypeAlias = Literal["active", "disabled", "expired"]
Instant: TypeAlias = Annotated[datetime, Meta(tz=True)]
Hash: TypeAlias = Annotated[str, Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Row: TypeAlias = dict[str, Any]

TIERS: tuple[Tier, ...] = get_args(Tier)
SECRET_PREFIX = "sk-sluice-"  # noqa: S105
ID_PREFIX = "key_"
PREVIOUS = ("previous_hash", "previous_until")
"""Fields that only the row of a rotated key has."""
LATER_FIELDS = ("budget_period", "max_streams", "resumable", "admin", "group", *PREVIOUS)
"""Fields that earlier versions didn't write. A row without them has their defaults."""
NEARLY = 0.75
"""The similarity to a field's name from which an unknown name counts as a misspelling of it."""
MAX_OVERLAP = timedelta(days=90)
"""The longest time for which the secret before a rotation may stay valid."""


LIMITS: Mapping[Tier, Limits] = MappingProxyType(
    {
        "free": Limits(10, 10_000),
        "standard": Limits(60, 100_000),
        "enterprise": Limits(500, 1_000_000),
        "unlimited": Limits(),
    }
)


class Terms(TypedDict, total=False):
    """The fields of a key that an operator can choose."""

    expires: timedelta | datetime | None
    """A time, or a duration from now; None: never."""
    disabled: bool
    tier: str
    requests_per_minute: int | None
    tokens_per_hour: int | None
    budget_usd: float | None
    budget_period: str
    max_streams: int | None
    resumable: bool | None
    models: tuple[str, ...]
    admin: bool
    group: str | None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key and its restrictions. All times are in UTC."""

    id: Annotated[str, Meta(pattern=r"\Akey_[A-Za-z0-9_-]{1,64}\Z")]
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    hash: Hash
    created: Instant
    expires: Instant | None = None
    disabled: bool = False
    tier: Tier = "unlimited"
    requests_per_minute: Count | None = None
    """None: the tier's limit."""
    tokens_per_hour: Count | None = None
    """None: the tier's limit."""
    budget_usd: Annotated[float, Meta(ge=0)] | None = None
    """None: no limit."""
    budget_period: Period = "total"
    """The period of the budget: a UTC day or month, or all time."""
    max_streams: Annotated[int, Meta(ge=1)] | None = None
    """The most calls at once; None: the server's limit per key."""
    resumable: bool | None = None
    """True if the key's calls are resumable by default; None: the server's default."""
    models: tuple[str, ...] = ("*",)
    """Globs of aliases and of full model names (provider/model)."""
    admin: bool = False
    """True if the key may manage this server: its keys, and the usage and streams of all keys."""
    group: Annotated[str, Meta(pattern=rf"\A{GROUP_NAME.pattern}\Z")] | None = None
    """The name of the group whose limits the key shares; None: the key has no group."""
    previous_hash: Hash | None = None
    """The hash of the secret before the last rotation; None: that secret isn't valid any more."""
    previous_until: Instant | None = None
    """The end of the previous secret."""
    shared: KeyGroup | None = None
    """The group itself, which the store looks up by its name. The key's row doesn't have it."""

    def __repr__(self) -> str:
        return f"Key({self.id!r}, {self.name!r})"

    @property
    def status(self) -> Status:
        if self.disabled:
            return "disabled"
        return "active" if self.expires is None or datetime.now(UTC) < self.expires else "expired"

    def takes(self, hash_: str) -> bool:
        """Return True if the key is active, and the hash is that of a secret that is valid now."""
        if self.status != "active":
            return False
        if hash_ == self.hash:
            return True
        until = self.previous_until
        return hash_ == self.previous_hash and until is not None and datetime.now(UTC) < until

    @property
    def limits(self) -> Limits:
        """The key's limits, and the tier's where the key has none."""
        return limits_of(self.tier, self.requests_per_minute, self.tokens_per_hour)

    @property
    def budget_nano(self) -> int | None:
        """The budget in nano-dollars; None: no limit."""
        return None if self.budget_usd is None else nano(self.budget_usd)


FIELDS = tuple(field for field in msgspec.structs.fields(Key) if field.name != "shared")
"""The fields of a key's row."""
HASHES = ("hash", "previous_hash")
NAMES = frozenset(field.name for field in FIELDS)


@lru_cache(maxsize=1024)
def limits_of(tier: Tier, requests: int | None, tokens: int | None) -> Limits:
    general = LIMITS[tier]
    return Limits(
        limit(requests, general.requests_per_minute), limit(tokens, general.tokens_per_hour)
    )


def limit(own: int | None, tier: int | None) -> int | None:
    return tier if own is None else min(own, MAX_COUNT)


def allows(key: Key, model: str) -> bool:
    """Return True if the key and its group may use an alias or a full name (provider/model)."""
    group = key.shared
    if not (group is None or "*" in group.models or matches(group.models, model)):
        return False
    return "*" in key.models or matches(key.models, model)


def matches(globs: tuple[str, ...], model: str) -> bool:
    return any(fnmatchcase(model, glob) for glob in globs)


def public(key: Key) -> Row:
    """Return a key's fields in the format of the key file, without the hashes."""
    return {
        field.name: msgspec.to_builtins(getattr(key, field.name))
        for field in FIELDS
        if field.name not in HASHES
    }


def fingerprint(secret: str) -> str:
    """Return the hash under which a secret is stored."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_row(name: str, terms: Terms) -> tuple[Row, str]:
    """Return the row of a new key, and the secret, which is not stored anywhere.

    Raises KeyFileError if the name or the terms are invalid.
    """
    if name.startswith((ID_PREFIX, SECRET_PREFIX, "-")) or name != name.strip():
        raise KeyFileError(
            f"A name can't start with {ID_PREFIX!r}, {SECRET_PREFIX!r} or '-', "
            "and can't start or end with a space.",
            field="name",
        )
    secret = new_secret()
    created = datetime.now(UTC).replace(microsecond=0)
    key = Key(
        id=ID_PREFIX + secrets.token_urlsafe(9),
        name=name,
        hash=fingerprint(secret),
        created=created,
    )
    names = (field.name for field in FIELDS if field.name not in PREVIOUS)
    row = {name: getattr(key, name) for name in names}
    row |= {"created": as_text(created), "models": list(key.models)}
    return changed(row, terms, created), secret


def new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(32)


def rotated(row: Row, overlap: timedelta, now: datetime) -> tuple[Row, str]:
    """Return a copy of a row with a new secret, and that secret, which is not stored anywhere.

    The secret before it is valid for `overlap`; a secret that was valid beside it no longer is.
    Raises KeyFileError if the overlap is invalid.
    """
    if not timedelta() <= overlap <= MAX_OVERLAP:
        raise KeyFileError(
            f"The overlap must be from 0 to {MAX_OVERLAP.days} days.", field="overlap_s"
        )
    secret = new_secret()
    new: Row = {name: value for name, value in row.items() if name not in PREVIOUS}
    if overlap:
        until = as_text((now + overlap).replace(microsecond=0))
        new |= {"previous_hash": row["hash"], "previous_until": until}
    return new | {"hash": fingerprint(secret)}, secret


def changed(row: Row, terms: Terms, now: datetime) -> Row:
    """Return a copy of a row with new terms. Raises KeyFileError if they are invalid."""
    check(terms)
    new: Row = {**row, **terms}
    if "expires" in terms:
        new["expires"] = as_text(expiry(now, terms["expires"]))
    if "models" in terms:
        new["models"] = list(terms["models"])
    if "budget_period" in terms and new["budget_usd"] is None:
        raise KeyFileError("A budget period needs a budget.", field="budget_period")
    try:
        read_row(new)
    except BrokenLine as error:
        raise KeyFileError(f"The key would be invalid: {error}.", field=error.field) from None
    return new


def check(terms: Terms) -> None:
    """Check terms, more strictly than a row of the file. Raises KeyFileError."""
    if terms.get("tier", "free") not in TIERS:
        raise KeyFileError(f"The tier must be one of {', '.join(TIERS)}.", field="tier")
    if terms.get("budget_period", "total") not in PERIODS:
        raise KeyFileError(
            f"The budget period must be one of {', '.join(PERIODS)}.", field="budget_period"
        )
    models = terms.get("models", ("*",))
    if not models or "" in models:
        raise KeyFileError(
            "The models must be full names, aliases or patterns such as 'openai/*'.", field="models"
        )
    for name, count in (
        ("requests_per_minute", terms.get("requests_per_minute")),
        ("tokens_per_hour", terms.get("tokens_per_hour")),
    ):
        if count is not None and not 0 <= count <= MAX_COUNT:
            raise KeyFileError(f"A limit must be from 0 to {MAX_COUNT:,}.", field=name)
    streams = terms.get("max_streams")
    if streams is not None and not 1 <= streams <= MAX_COUNT:
        raise KeyFileError(
            f"The number of streams must be from 1 to {MAX_COUNT:,}.", field="max_streams"
        )
    budget = terms.get("budget_usd")
    if budget is not None and not 0 <= budget <= MAX_USD:
        raise KeyFileError(
            f"A budget must be from 0 to {MAX_USD:,} US dollars.", field="budget_usd"
        )


def expiry(created: datetime, expires: timedelta | datetime | None) -> datetime | None:
    """Return the time at which a key expires, in whole seconds.

    Raises KeyFileError if that is not after `created`.
    """
    if expires is None:
        return None
    try:
        end = created + expires if isinstance(expires, timedelta) else expires.astimezone(UTC)
    except OverflowError:
        raise KeyFileError("The expiry date is too far in the future.", field="expires") from None
    end = end.replace(microsecond=0)
    if end <= created:
        raise KeyFileError("The expiry date must be in the future.", field="expires")
    return end


def as_text(instant: datetime | None) -> str | None:
    """Return a UTC time in the format of the key file, such as 2026-01-01T00:00:00Z."""
    return None if instant is None else instant.replace(tzinfo=None).isoformat() + "Z"


def read_row(row: Row) -> Key:
    """Return the key in a row, which must have every field but LATER_FIELDS. Raises BrokenLine."""
    values: Row = {}
    for field in FIELDS:
        if field.name in row:
            values[field.name] = value_of(field, row[field.name])
        elif field.name not in LATER_FIELDS:
            raise BrokenLine(f"{field.name!r} is missing", field=field.name)
        elif get_close_matches(field.name, map(str.casefold, row.keys() - NAMES), 1, NEARLY):
            raise BrokenLine(f"{field.name!r} is misspelt", field=field.name)
    for name, other in (PREVIOUS, PREVIOUS[::-1]):
        if values.get(name) is None and values.get(other) is not None:
            raise BrokenLine(f"{name!r} is missing", field=name)
    return Key(**values)


def value_of(field: msgspec.structs.FieldInfo, value: object) -> object:
    """Return a field's value, converted to its type. Raises BrokenLine."""
    try:
        found = msgspec.convert(value, field.type)
    except msgspec.ValidationError:
        found = ...
    if found is ... or not is_sound(found):
        raise BrokenLine(f"{field.name!r} is invalid", field=field.name)
    return found


def is_sound(value: object) -> bool:
    """Return True if each text is safe to print on a terminal, and each time is in UTC."""
    match value:
        case str():
            return value.isprintable()
        case tuple():
            return all(map(is_sound, value))
        case datetime():
            return value.utcoffset() == timedelta(0)
    return True
