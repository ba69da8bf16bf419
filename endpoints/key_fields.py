"""The fields and parameters of the endpoints for keys: their types, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated, Any, Final, NamedTuple, NoReturn, TypeAlias

import msgspec
from msgspec import Meta

from endpoints import cursors, request_fields, request_secrets
from endpoints.flask_app import current
from endpoints.services import services
from endpoints.usage import MOST_ROWS
from errors import InvalidRequest
from keys.key import MAX_OVERLAP, TIERS, Key, Tier
from keys.key_file import Line
from keys.limits import MAX_COUNT, MAX_USD, PERIODS, Period

LIMIT: Final = Annotated[int, Meta(ge=0, le=MAX_COUNT)] | None
LIMIT_TAKES: Final = f"an integer from 0 to {MAX_COUNT}, or null for the tier's limit"
YES: Final = (bool, "true or false")


def choice(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


Fields: TypeAlias = dict[str, tuple[Any, str]]
"""The fields that a body may have: for each, its type, and what it takes in words."""
EXPIRES_TAKES: Final = (
    "a date or time in the future such as 2030-01-31T12:00:00Z (UTC unless it names a zone), "
    "or null for never"
)
TERMS: Final[Fields] = {
    "expires": (str | None, EXPIRES_TAKES),
    "disabled": YES,
    "tier": (Tier, choice(TIERS)),
    "requests_per_minute": (LIMIT, LIMIT_TAKES),
    "tokens_per_hour": (LIMIT, LIMIT_TAKES),
    "budget_usd": (
        Annotated[float, Meta(ge=0, le=MAX_USD)] | None,
        f"US dollars from 0 to {MAX_USD}, or null for no budget",
    ),
    "budget_period": (Period, choice(PERIODS)),
    "max_streams": (
        Annotated[int, Meta(ge=1, le=MAX_COUNT)] | None,
        f"an integer from 1 to {MAX_COUNT}, or null for the server's limit per key",
    ),
    "resumable": (bool | None, "true, false, or null for the server's default"),
    "models": (
        Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1)],
        "a list of full names, aliases or patterns such as openai/*",
    ),
    "admin": YES,
    "group": (str | None, "the name of a group in sluice.toml, or null for none"),
}
NAME: Final[Fields] = {
    "name": (Annotated[str, Meta(min_length=1, max_length=100)], "a text of 1 to 100 characters")
}
OVERLAP: Final[Fields] = {
    "overlap_s": (
        Annotated[int, Meta(ge=0, le=int(MAX_OVERLAP.total_seconds()))],
        f"seconds from 0 to {int(MAX_OVERLAP.total_seconds())}",
    )
}
STATUSES: Final = ("active", "disabled", "expired")
FLAGS: Final = {"true": True, "false": False}
QUERY: Final = {
    "search": "a part of the name or of the id",
    "status": choice(STATUSES),
    "admin": "true or false",
    "group": "the name of a group",
    "limit": f"an integer from 1 to {MOST_ROWS}",
    "cursor": "the next_cursor of a previous response",
}
"""The values that the list's parameters take, in words."""
SHOWN: Final = ("id", "created", "limits", "status", "source", "used", "last_used_at", "etag")
"""Fields of a response that can't be changed."""


def read_body(*, optional: bool = False) -> dict[str, Any]:
    """Return the fields of the body, which may be missing if it is optional. Raises SluiceError."""
    found = current()
    if optional and not found.announced and "HTTP_TRANSFER_ENCODING" not in found.environ:
        return {}
    return request_fields.read_object(services().settings.max_body)


def read_fields(data: dict[str, Any], known: Fields) -> dict[str, Any]:
    """Return the fields of a body, converted to their types. Raises InvalidRequest."""
    for name in data:
        if name not in known:
            refuse_field(name, known)
    request_secrets.refuse_secrets(
        {
            name: msgspec.json.encode(data[name]).decode()
            for name in ("name", "models")
            if name in data
        }
    )
    fields = {name: convert(name, value, *known[name]) for name, value in data.items()}
    if fields.get("expires") is not None:
        fields["expires"] = instant(fields["expires"])
    return fields


def refuse_field(name: str, known: Mapping[str, Any]) -> NoReturn:
    """Raise InvalidRequest for a field that a body can't have."""
    label = name if len(name) <= 100 else name[:100] + "..."
    if name in SHOWN or name in NAME:
        raise InvalidRequest(f"{label} can't be changed.", param=label)
    near = get_close_matches(name[:100], known, n=1)
    more = f"Did you mean {near[0]}?" if near else f"Known fields: {', '.join(known)}."
    raise InvalidRequest(f"Unknown field: {label}. {more}", param=label)


def convert(name: str, value: Any, kind: Any, takes: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        got = request_fields.shown(name, value)
        raise InvalidRequest(f"{name}: got {got}; expected {takes}.", param=name) from None


def instant(text: str) -> datetime:
    """Return a time, in UTC unless it has a zone. Raises InvalidRequest."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        got = request_fields.shown("expires", text)
        message = f"expires: got {got}; expected {EXPIRES_TAKES}."
        raise InvalidRequest(message, param="expires") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def fits(key: Key, asked: dict[str, str]) -> bool:
    """Return True if a key matches the list's parameters."""
    part, status, admin = (asked.get(name) for name in ("search", "status", "admin"))
    group = asked.get("group")
    return (
        (part is None or part.casefold() in key.name.casefold() or part in key.id)
        and (status is None or key.status == status)
        and (admin is None or key.admin == FLAGS[admin])
        and (group is None or key.group == group)
    )


def refuse_parameter(name: str, value: str) -> NoReturn:
    got = request_fields.shown(name, value)
    raise InvalidRequest(f"{name}: got {got}; expected {QUERY[name]}.", param=name)


class ListPlace(NamedTuple):
    """The place of a key in the list: the oldest key is the first."""

    created: str
    id: str


def place(line: Line) -> ListPlace:
    return ListPlace(line.key.created.isoformat(), line.key.id)


def cursor_at(line: Line) -> str:
    return cursors.encode("|".join(place(line)))


def place_of_cursor(asked: dict[str, str]) -> ListPlace | None:
    """Return the place of the previous page's last key. Raises InvalidRequest."""
    found = cursors.decode(asked)
    if found is None:
        return None
    created, bar, id_ = found.partition("|")
    if not bar:
        refuse_parameter("cursor", asked["cursor"])
    return ListPlace(created, id_)
