"""Examples and the meanings of fields of the endpoints for admin keys, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

KEY: Final[dict[str, Any]] = {
    "id": "key_3kTPq1yXwQ0e",
    "name": "laptop",
    "created": "2026-01-01T00:00:00Z",
    "expires": None,
    "disabled": False,
    "tier": "standard",
    "requests_per_minute": None,
    "tokens_per_hour": None,
    "budget_usd": 5.0,
    "budget_period": "month",
    "max_streams": None,
    "resumable": None,
    "models": ["*"],
    "admin": False,
    "group": "research",
    "previous_until": None,
    "limits": {"requests_per_minute": 60, "tokens_per_hour": 100_000},
    "status": "active",
    "source": "file",
    "used": {"spent_usd": 1.25, "left_usd": 3.75},
    "last_used_at": "2026-04-07T12:00:00Z",
    "etag": '"0123456789abcdef0123456789abcdef"',
}
MADE: Final = {"id": KEY["id"], "name": KEY["name"], "key": "sk-sluice-..."} | KEY
CHANGE: Final[dict[str, Any]] = {
    "at": "2026-04-07T12:00:00.000Z",
    "action": "change",
    "key_id": KEY["id"],
    "key_name": KEY["name"],
    "changes": {"budget_usd": {"from": 5.0, "to": 10.0}},
    "via": "http",
    "by": {"key_id": "key_Zb1m2yQ7c9Xa", "name": "operator"},
    "request_id": "550e8400-e29b-41d4-a716-446655440000",
}
GROUP: Final[dict[str, Any]] = {
    "name": "research",
    "defined": True,
    "requests_per_minute": 60,
    "tokens_per_hour": None,
    "budget_usd": 50.0,
    "budget_period": "month",
    "models": ["*"],
    "keys": 3,
    "used": {"spent_usd": 12.5, "left_usd": 37.5},
}
OWN_KEY: Final[dict[str, Any]] = {
    **{name: KEY[name] for name in KEY if name not in ("disabled", "previous_until", "group")},
    "left_usd": 3.75,
    "group": {name: GROUP[name] for name in GROUP if name not in ("defined", "keys", "used")}
    | {"left_usd": 37.5},
}
for name in ("status", "source", "used", "last_used_at", "etag"):
    del OWN_KEY[name]
ANSWERS: Final[dict[str, Any]] = {
    "Key": KEY,
    "KeyWithSecret": MADE,
    "Keys": {"data": [KEY], "total": 1, "next_cursor": None, "problems": []},
    "KeyLog": {"data": [CHANGE], "next_cursor": None},
    "Deleted": {"success": True},
    "Groups": {"data": [GROUP]},
    "OwnKey": OWN_KEY,
}
BODIES: Final[dict[str, Any]] = {
    "NewKey": {"name": "laptop", "budget_usd": 5, "budget_period": "month"},
    "KeyTerms": {"budget_usd": 10},
    "KeyRotation": {"overlap_s": 3600},
}
MEANINGS: Final = {
    "id": "The key's id, which never changes.",
    "name": "The key's name, which is unique.",
    "key": "The key's secret. It is shown only in this response.",
    "created": "When the key was created.",
    "expires": "When the key expires; null: never.",
    "disabled": "true if the key is refused.",
    "tier": "The tier, whose limits apply where the key has no limit of its own.",
    "requests_per_minute": "The key's own limit; null: its tier's.",
    "tokens_per_hour": "The key's own limit; null: its tier's.",
    "budget_usd": "What the key may spend; null: any amount.",
    "budget_period": "How often the budget is renewed (UTC); total: never.",
    "max_streams": "The most calls at a time; null: the server's limit per key.",
    "resumable": "true if calls are resumable by default; null: the server's default.",
    "models": "The models and aliases that the key may use, or patterns of them.",
    "admin": "true if the key may manage this server.",
    "group": "The group whose limits and budget the key shares; null: none.",
    "previous_until": "When the secret before the last rotation expires; null: it has expired.",
    "limits": "The limits that apply.",
    "limits.requests_per_minute": "Requests per minute; null: any number.",
    "limits.tokens_per_hour": "Tokens per hour; null: any number.",
    "status": "active if the key is accepted now; otherwise the reason why not.",
    "source": "file, or environment (SLUICE_KEYS), where the API can't change the key.",
    "used": "What the key has used. null while the ledger can't be read.",
    "used.spent_usd": "What the key has spent in the budget's period, or in all without a budget.",
    "used.left_usd": "What is left of the budget, less what active calls have reserved.",
    "last_used_at": "When the key was last used.",
    "etag": "The key's ETag. Send it as If-Match to change the key only if nobody else has.",
    "warnings": "Reasons why a part of the change has no effect.",
}
LEFT: Final = "What is left of the budget. null: there is none, or the ledger can't be read."
OF_GROUP: Final = {
    "name": "The group's name.",
    "requests_per_minute": "The requests per minute of its keys together; null: any number.",
    "tokens_per_hour": "The tokens per hour of its keys together; null: any number.",
    "budget_usd": "What its keys may spend together; null: any amount.",
    "budget_period": "How often that budget is renewed (UTC); total: never.",
    "models": "The models and aliases that its keys may use, if each key allows them too.",
}
MEANINGS_OF_ANSWERS: Final = {
    "Keys": {
        "data": "A page of the keys, the oldest first.",
        "total": "The number of keys that match the parameters.",
        "next_cursor": "The cursor of the next page; null: this is the last one.",
        "problems": "The problems of the key file, without its content.",
    },
    "KeyLog": {
        "data": "A page of the changes, the newest first.",
        "data.at": "When the key was changed.",
        "data.action": "The kind of change.",
        "data.key_id": "The id of the key that was changed.",
        "data.key_name": "The name of that key.",
        "data.changes": "The fields that changed, with their old and new values.",
        "data.via": "cli for a command, http for this API.",
        "data.by": "The admin key or the user that made the change.",
        "data.by.key_id": "The id of the admin key; null for a command.",
        "data.by.name": "The name of the admin key, or of the user who ran the command.",
        "data.request_id": "The id of the HTTP request.",
        "next_cursor": "The cursor of the next page; null: this is the last one.",
    },
    "Deleted": {"success": "true."},
    "Groups": {
        "data": "The groups of sluice.toml, and undefined groups that keys name.",
        **{f"data.{name}": text for name, text in OF_GROUP.items()},
        "data.defined": "false if sluice.toml lacks the group, so that its keys may use no model.",
        "data.keys": "The number of keys in the group.",
        "data.used": "What its keys have used together. null while the ledger can't be read.",
        "data.used.spent_usd": "What they have spent in the budget's period, or in all.",
        "data.used.left_usd": "What is left of the group's budget, less what calls have reserved.",
    },
    "OwnKey": {
        **{name: MEANINGS[name] for name in OWN_KEY if name in MEANINGS},
        "limits.requests_per_minute": MEANINGS["limits.requests_per_minute"],
        "limits.tokens_per_hour": MEANINGS["limits.tokens_per_hour"],
        "left_usd": LEFT,
        **{f"group.{name}": text for name, text in OF_GROUP.items()},
        "group.left_usd": LEFT,
    },
}

OVERLAP: Final = "How long the old secret stays valid."
