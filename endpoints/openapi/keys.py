"""The endpoints for admin keys in the OpenAPI document: their bodies, schemas and examples."""

from __future__ import annotations

from typing import Any, Final

import msgspec

import errors as e
from endpoints import key_fields
from endpoints.openapi.errors import responses
from endpoints.openapi.headers import LIMITS
from endpoints.openapi.key_texts import (
    ANSWERS,
    BODIES,
    KEY,
    MEANINGS,
    MEANINGS_OF_ANSWERS,
    OVERLAP,
)
from endpoints.openapi.operations import Part, ok, operation
from endpoints.openapi.schemas import (
    COUNT,
    FREE,
    MOMENT,
    NUMBER,
    TEXT,
    YES,
    Schema,
    closed,
    enum,
    items,
    nullable,
    ref,
)
from endpoints.usage import MOST_ROWS, SOME_ROWS
from keys.key import TIERS
from keys.limits import PERIODS

TAG: Final = "Keys"
WHICH: Final = {"id_or_name": ("The key's id or name.", KEY["id"])}


def meanings() -> dict[str, dict[str, str]]:
    of_keys = dict.fromkeys(("Key", "KeyWithSecret", "NewKey", "KeyTerms"), MEANINGS)
    return of_keys | MEANINGS_OF_ANSWERS | {"KeyRotation": {"overlap_s": OVERLAP}}


def body(known: key_fields.Fields, *required: str) -> Schema:
    """Return the schema of a body, from the types of its fields."""
    found = {
        name: msgspec.json.schema(kind) | {"description": f"Expects {takes}."}
        for name, (kind, takes) in known.items()
    }
    return closed({name: found.pop(name) for name in required}, found)


def schemas() -> dict[str, Schema]:
    count, amount, time = nullable(COUNT), nullable(NUMBER), nullable(MOMENT)
    limits = {"requests_per_minute": count, "tokens_per_hour": count}
    used = nullable(closed({"spent_usd": NUMBER, "left_usd": amount}))
    key: Schema = {"id": TEXT, "name": TEXT, "created": MOMENT, "expires": time}
    key |= {"disabled": YES, "tier": enum(*TIERS)} | limits
    key |= {"budget_usd": amount, "budget_period": enum(*PERIODS), "max_streams": count}
    key |= {"resumable": nullable(YES), "models": items(TEXT), "admin": YES}
    key |= {"group": nullable(TEXT)}
    key |= {"previous_until": time}
    key |= {"limits": closed(limits), "status": enum(*key_fields.STATUSES)}
    key |= {"source": enum("file", "environment"), "used": used, "last_used_at": time}
    key |= {"etag": TEXT}
    change: Schema = {"at": MOMENT, "action": TEXT, "key_id": TEXT, "key_name": TEXT}
    change |= {"changes": FREE, "via": enum("cli", "http")}
    change |= {"by": closed({"key_id": nullable(TEXT), "name": TEXT}), "request_id": nullable(TEXT)}
    page = {"next_cursor": nullable(TEXT)}
    warnings = {"warnings": items(TEXT)}
    return {
        "Key": closed(key, warnings),
        "KeyWithSecret": closed({"key": TEXT} | key, warnings),
        "Keys": closed(
            {"data": items(ref("Key")), "total": COUNT} | page | {"problems": items(TEXT)}
        ),
        "KeyLog": closed({"data": items(closed(change))} | page),
        "Deleted": closed({"success": {"const": True}}),
        **schemas_of_groups(),
        "NewKey": body(key_fields.NAME | key_fields.TERMS, "name"),
        "KeyTerms": body(key_fields.TERMS) | {"minProperties": 1},
        "KeyRotation": body(key_fields.OVERLAP),
    }


def schemas_of_groups() -> dict[str, Schema]:
    count, amount, time = nullable(COUNT), nullable(NUMBER), nullable(MOMENT)
    limits = {"requests_per_minute": count, "tokens_per_hour": count}
    terms = limits | {"budget_usd": amount, "budget_period": enum(*PERIODS)}
    terms |= {"models": items(TEXT)}
    used = nullable(closed({"spent_usd": NUMBER, "left_usd": amount}))
    group = {"name": TEXT, "defined": YES} | terms | {"keys": COUNT, "used": used}
    own: Schema = {"id": TEXT, "name": TEXT, "created": MOMENT, "expires": time}
    own |= {"tier": enum(*TIERS)} | terms | {"max_streams": count, "admin": YES}
    own |= {"resumable": nullable(YES)}
    own |= {"limits": closed(limits), "left_usd": amount}
    own |= {"group": nullable(closed({"name": TEXT} | terms | {"left_usd": amount}))}
    return {"Groups": closed({"data": items(closed(group))}), "OwnKey": closed(own)}


def admin(
    id_: str,
    summary: str,
    name: str,
    *kinds: type[e.SluiceError],
    status: str = "200",
    etag: bool = False,
    **more: Any,
) -> Part:
    """Return an operation that needs an admin key. `name` is the schema of its answer."""
    headers = (*LIMITS, "ETag") if etag else LIMITS
    found = {status: ok(ref(name), ANSWERS[name], *headers)}
    return operation(
        *(id_, TAG, summary),
        found | responses("native", e.Unauthorized, e.AdminRequired, *kinds),
        description="Needs an admin key.",
        **more,
    )


BODY_ERRORS: Final = (
    *(e.InvalidRequest, e.RequestTimeout, e.RequestTooLarge, e.UnsupportedMediaType),
    e.KeysReadOnly,
)
ONE_KEY: Final = (e.NotFound, e.KeyNotFound, e.InvalidRequest)


def sends(name: str, *, required: bool = True) -> Part:
    content = {"schema": ref(name), "example": BODIES[name]}
    return {"required": required, "content": {"application/json": content}}


def in_query(name: str, takes: str, schema: Schema | None = None) -> Part:
    return {
        "name": name,
        "in": "query",
        "description": f"Expects {takes}. An empty value counts as absent.",
        "allowEmptyValue": True,
        "schema": schema or TEXT,
    }


PAGE: Final = (
    in_query(
        *("limit", key_fields.QUERY["limit"]),
        {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": SOME_ROWS},
    ),
    in_query("cursor", key_fields.QUERY["cursor"]),
)
IF_MATCH: Final[Part] = {
    "name": "If-Match",
    "in": "header",
    "description": "An ETag: change the key only if nobody has changed it since.",
    "schema": TEXT,
}


def which() -> list[Part]:
    schema = {"type": "string", "minLength": 1}
    return [
        {"name": name, "in": "path", "required": True, "schema": schema}
        | {"description": text, "example": example}
        for name, (text, example) in WHICH.items()
    ]


CHANGING: Final = (*ONE_KEY, e.KeyChanged)


def of_all() -> dict[str, Part]:
    filters = (
        in_query("search", key_fields.QUERY["search"]),
        in_query("status", key_fields.QUERY["status"], enum(*key_fields.STATUSES)),
        in_query("admin", key_fields.QUERY["admin"], enum(*key_fields.FLAGS)),
        in_query("group", key_fields.QUERY["group"]),
    )
    return {
        "get": admin(
            *("keys", "Every key, with what it spent", "Keys", e.InvalidRequest),
            parameters=[*filters, *PAGE],
        ),
        "post": admin(
            *("createKey", "Create a key", "KeyWithSecret", *BODY_ERRORS, e.KeyExists),
            status="201",
            etag=True,
            requestBody=sends("NewKey"),
        ),
    }


def of_one() -> dict[str, Part]:
    return {
        "get": admin("key", "One key", "Key", *ONE_KEY, etag=True, parameters=which()),
        "patch": admin(
            *("changeKey", "Change a key", "Key", *CHANGING, *BODY_ERRORS, e.LastAdminKey),
            etag=True,
            parameters=[*which(), IF_MATCH],
            requestBody=sends("KeyTerms"),
        ),
        "delete": admin(
            *("deleteKey", "Delete a key", "Deleted"),
            *(*CHANGING, e.KeysReadOnly, e.LastAdminKey),
            parameters=[*which(), IF_MATCH],
        ),
    }


def paths() -> dict[str, dict[str, Part]]:
    return {
        "/api/v1/keys": of_all(),
        "/api/v1/keys/log": {
            "get": admin(
                *("keyLog", "Who changed which key, and when", "KeyLog"),
                *(e.InvalidRequest, e.KeyNotFound, e.Unavailable),
                parameters=[in_query("key", "a key's id or name"), *PAGE],
            ),
        },
        "/api/v1/groups": {
            "get": admin("groups", "Every group of keys", "Groups", e.InvalidRequest),
        },
        "/api/v1/user/key": {
            "get": operation(
                *("ownKey", TAG, "What your key may use"),
                {"200": ok(ref("OwnKey"), ANSWERS["OwnKey"], *LIMITS)}
                | responses("native", e.Unauthorized, e.InvalidRequest),
            ),
        },
        "/api/v1/keys/{id_or_name}": of_one(),
        "/api/v1/keys/{id_or_name}/rotate": {
            "post": admin(
                *("rotateKey", "Give a key a new secret", "KeyWithSecret"),
                *(*CHANGING, *BODY_ERRORS),
                etag=True,
                parameters=[*which(), IF_MATCH],
                requestBody=sends("KeyRotation", required=False),
            ),
        },
    }
