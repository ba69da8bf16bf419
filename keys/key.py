"""A key: who it is, what it may use and spend, and how one is made.

Rules that hold here: a key's text is never kept, only its SHA-256. What is said about a row is a
field, never its content. A restriction whose name is misspelt must not be a restriction lifted.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypedDict, get_args

import msgspec
from msgspec import Meta

Tier: TypeAlias = Literal["free", "standard", "enterprise", "unlimited"]
Period: TypeAlias = Literal["total", "day", "month"]
Status: TypeAlias = Literal["active", "disabled", "expired"]
Instant: TypeAlias = Annotated[datetime, Meta(tz=True)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Row: TypeAlias = dict[str, Any]

TIERS: tuple[Tier, ...] = get_args(Tier)
PERIODS: tuple[Period, ...] = get_args(Period)
SECRET_PREFIX = "sk-sluice-"  # noqa: S105
ID_PREFIX = "key_"
LATER_FIELDS = ("budget_period", "max_streams")
"""Earlier versions didn't write these: a row without them has their defaults."""
NEARLY = 0.75
"""How alike a field's name and another must be for the other to count as a misspelling."""
MOST_COUNT = 10**12
MOST_USD = 10**9
"""More than anyone means, and little enough for every counter."""


class Limits(NamedTuple):
    """What a key may use. None: no limit; 0: nothing."""

    requests_per_minute: int | None = None
    tokens_per_hour: int | None = None


LIMITS: Mapping[Tier, Limits] = MappingProxyType(
    {
        "free": Limits(10, 10_000),
        "standard": Limits(60, 100_000),
        "enterprise": Limits(500, 1_000_000),
        "unlimited": Limits(),
    }
)


class Terms(TypedDict, total=False):
    """What can be chosen for a key, as Key has it, but for `expires`: a duration from now too."""

    expires: timedelta | datetime | None
    disabled: bool
    tier: str
    requests_per_minute: int | None
    tokens_per_hour: int | None
    budget_usd: float | None
    budget_period: str
    max_streams: int | None
    models: tuple[str, ...]


class KeyFileError(Exception):
    """What can't be done with the keys: one line for the operator."""


class BrokenLine(Exception):
    """What is wrong with a line, without its content."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A caller. Instants are UTC; a count of None is the tier's, a budget of None is no limit, and
    a budget's days and months are of UTC; max_streams (calls at once) of None is the server's share
    of a key; models are globs."""

    id: Annotated[str, Meta(pattern=r"\Akey_[A-Za-z0-9_-]{1,64}\Z")]
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    hash: Annotated[str, Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
    created: Instant
    expires: Instant | None = None
    disabled: bool = False
    tier: Tier = "unlimited"
    requests_per_minute: Count | None = None
    tokens_per_hour: Count | None = None
    budget_usd: Annotated[float, Meta(ge=0)] | None = None
    budget_period: Period = "total"
    max_streams: Annotated[int, Meta(ge=1)] | None = None
    models: tuple[str, ...] = ("*",)

    def __repr__(self) -> str:
        return f"Key({self.id!r}, {self.name!r})"

    @property
    def status(self) -> Status:
        """As of now."""
        if self.disabled:
            return "disabled"
        return "active" if self.expires is None or datetime.now(UTC) < self.expires else "expired"

    @property
    def limits(self) -> Limits:
        """The tier's, or this key's own where it has some."""
        return limits_of(self.tier, self.requests_per_minute, self.tokens_per_hour)

    @property
    def budget_nano(self) -> int | None:
        """The budget in whole nano-dollars; None: no limit."""
        return None if self.budget_usd is None else nano(self.budget_usd)


FIELDS = msgspec.structs.fields(Key)
NAMES = frozenset(field.name for field in FIELDS)


@lru_cache(maxsize=1024)
def nano(usd: float) -> int:
    # By its decimal text: 0.1 is 100,000,000 and not what the float nearest to it comes to.
    return int(min(Decimal(str(usd)), Decimal(MOST_USD)).scaleb(9))


@lru_cache(maxsize=1024)
def limits_of(tier: Tier, requests: int | None, tokens: int | None) -> Limits:
    general = LIMITS[tier]
    return Limits(
        limit(requests, general.requests_per_minute), limit(tokens, general.tokens_per_hour)
    )


def limit(own: int | None, tier: int | None) -> int | None:
    return tier if own is None else min(own, MOST_COUNT)


def allows(key: Key, model: str) -> bool:
    """Whether the key may use a model, given by its full name (provider/model)."""
    return "*" in key.models or any(fnmatchcase(model, glob) for glob in key.models)


def fingerprint(secret: str) -> str:
    """The form in which a key's text is kept."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_row(name: str, terms: Terms) -> tuple[Row, str]:
    """A new key's row, and its text: the only time that it is known. Raises KeyFileError."""
    if name.startswith((ID_PREFIX, SECRET_PREFIX, "-")) or name != name.strip():
        raise KeyFileError(
            f"A name can't begin with {ID_PREFIX!r}, {SECRET_PREFIX!r} or '-', "
            "nor begin or end with a space."
        )
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).replace(microsecond=0)
    key = Key(
        id=ID_PREFIX + secrets.token_urlsafe(9),
        name=name,
        hash=fingerprint(secret),
        created=created,
    )
    row = {field.name: getattr(key, field.name) for field in FIELDS}
    row |= {"created": as_text(created), "models": list(key.models)}
    return changed(row, terms, created), secret


def changed(row: Row, terms: Terms, now: datetime) -> Row:
    """A key's row with other terms, all else as it is. Raises KeyFileError."""
    check(terms)
    new: Row = {**row, **terms}
    if "expires" in terms:
        new["expires"] = as_text(expiry(now, terms["expires"]))
    if "models" in terms:
        new["models"] = list(terms["models"])
    if "budget_period" in terms and new["budget_usd"] is None:
        raise KeyFileError("A budget's period says nothing without a budget.")
    try:
        read_row(new)
    except BrokenLine as error:
        raise KeyFileError(f"This can't be a key: {error}.") from None
    return new


def check(terms: Terms) -> None:
    """What can't be chosen, though a field may be it. Raises KeyFileError."""
    if terms.get("tier", "free") not in TIERS:
        raise KeyFileError(f"The tier must be one of {', '.join(TIERS)}.")
    if terms.get("budget_period", "total") not in PERIODS:
        raise KeyFileError(f"The budget's period must be one of {', '.join(PERIODS)}.")
    models = terms.get("models", ("*",))
    if not models or "" in models:
        raise KeyFileError("The models must be names or patterns, such as 'openai/*'.")
    for count in (terms.get("requests_per_minute"), terms.get("tokens_per_hour")):
        if count is not None and not 0 <= count <= MOST_COUNT:
            raise KeyFileError(f"A limit must be from 0 to {MOST_COUNT:,}.")
    streams = terms.get("max_streams")
    if streams is not None and not 1 <= streams <= MOST_COUNT:
        raise KeyFileError(f"The streams at once must be from 1 to {MOST_COUNT:,}.")
    budget = terms.get("budget_usd")
    if budget is not None and not 0 <= budget <= MOST_USD:
        raise KeyFileError(f"A budget must be from 0 to {MOST_USD:,} US dollars.")


def expiry(created: datetime, expires: timedelta | datetime | None) -> datetime | None:
    """When a key ends, in whole seconds. Raises KeyFileError when that is not after `created`."""
    if expires is None:
        return None
    try:
        end = created + expires if isinstance(expires, timedelta) else expires.astimezone(UTC)
    except OverflowError:
        raise KeyFileError("A key can't expire as late as that.") from None
    end = end.replace(microsecond=0)
    if end <= created:
        raise KeyFileError("A key must expire in the future.")
    return end


def as_text(instant: datetime | None) -> str | None:
    """An instant of UTC as a line has it: 2026-01-01T00:00:00Z."""
    return None if instant is None else instant.replace(tzinfo=None).isoformat() + "Z"


def read_row(row: Row) -> Key:
    """A row's key. Every field must be there, but for LATER_FIELDS. Raises BrokenLine."""
    values: Row = {}
    for field in FIELDS:
        if field.name in row:
            values[field.name] = value_of(field, row[field.name])
        elif field.name not in LATER_FIELDS:
            raise BrokenLine(f"{field.name!r} is missing")
        elif get_close_matches(field.name, map(str.casefold, row.keys() - NAMES), 1, NEARLY):
            raise BrokenLine(f"{field.name!r} is misspelt")
    return Key(**values)


def value_of(field: msgspec.structs.FieldInfo, value: object) -> object:
    """A field's value. Raises BrokenLine."""
    try:
        found = msgspec.convert(value, field.type)
    except msgspec.ValidationError:
        found = ...
    if found is ... or not is_sound(found):
        raise BrokenLine(f"{field.name!r} is wrong")
    return found


def is_sound(value: object) -> bool:
    """What a type can't say: a text is fit for a terminal, an instant is UTC."""
    match value:
        case str():
            return value.isprintable()
        case tuple():
            return all(map(is_sound, value))
        case datetime():
            return value.utcoffset() == timedelta(0)
    return True
