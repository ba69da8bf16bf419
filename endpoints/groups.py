"""The endpoints that show the groups of keys, and the caller's own key: their limits and usage."""

from __future__ import annotations

from typing import Any, Final

from flask import Blueprint, Response
from sqlalchemy import Connection

from auth import admin_required, auth, current_key
from endpoints.responses import json_response
from endpoints.services import services
from endpoints.usage import parameters
from errors import Unavailable
from keys.key import Key, public
from ledger.budgets import left_of, left_of_group
from ledger.key_usage import by_group
from ledger.pricing import dollars
from quota.key_state import group_described, groups_of, today
from quota.quota import budget_of

bp = Blueprint("groups", __name__, url_prefix="/api/v1")

HIDDEN: Final = ("disabled", "previous_until", "group")
"""Fields of a key that a caller doesn't need, or that the response has in another form."""
OF_GROUP: Final = (
    *("name", "requests_per_minute", "tokens_per_hour", "budget_usd", "budget_period", "models"),
)
"""The fields of a group that its callers may see, besides what is left of its budget."""


@bp.get("/groups")
@admin_required
def list_groups() -> Response:
    parameters()
    store = services().keys
    try:
        usages = services().ledger.read(lambda found: by_group(found, today()))
    except Unavailable:
        usages = None
    data = [
        group_described(group, count, usages)
        for group, count in groups_of(store.groups, store.all())
    ]
    return json_response({"data": data})


@bp.get("/user/key")
@auth.login_required
def show_own_key() -> Response:
    """Return the limits of the caller's key and its group, and what is left of the budgets."""
    parameters()
    key = current_key()
    try:
        left, of_group = services().ledger.read(lambda found: lefts(found, key))
    except Unavailable:
        left = of_group = None
    found = {name: value for name, value in public(key).items() if name not in HIDDEN}
    found |= {"limits": key.limits._asdict(), "left_usd": dollars(left), "group": None}
    if key.shared is not None:
        group = group_described(key.shared, 0, None)
        found["group"] = {name: group[name] for name in OF_GROUP} | {"left_usd": dollars(of_group)}
    return json_response(found)


def lefts(connection: Connection, key: Key) -> tuple[int | None, int | None]:
    """Return what is left of the budgets of a key and its group; None where there is none."""
    left: Any = None
    of_group: Any = None
    if (budget := budget_of(key)) is not None:
        left = max(0, left_of(connection, key.id, budget))
    if key.shared is not None and (budget := budget_of(key.shared)) is not None:
        of_group = max(0, left_of_group(connection, key.shared.name, budget))
    return left, of_group
