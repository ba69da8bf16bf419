"""The usage endpoints: sums as JSON or CSV, and the latest requests one by one.

- A caller sees the usage of its own key only.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

import msgspec
from flask import Blueprint, Response, request
from sqlalchemy import Connection, RowMapping

from auth import auth, current_key
from endpoints import cursors
from endpoints.responses import (
    json_response,
)
from endpoints.services import (
    services,
)
from errors import InvalidRequest
from keys.key import Key
from ledger import usage
from ledger.budgets import left_of
from ledger.pricing import dollars
from ledger.refusals import refused
from ledger.schema import as_utc
from ledger.usage import Scope, Sums
from quota.quota import budget_of

bp = Blueprint("usage", __name__, url_prefix="/api/v1/user")

GROUPS = ("day", "model", "provider", "endpoint")
FORMATS = {"json": "application/json", "csv": "text/csv"}
MOST_ROWS, SOME_ROWS = 100, 20
ID = re.compile("[0-9a-f]{30}")
TAKES = {
    "start_date": "a date such as 2026-01-31, or a time such as 2026-01-31T12:00:00Z",
    "end_date": "a date such as 2026-01-31, or a time such as 2026-01-31T12:00:00Z",
    "group_by": " or ".join((", ".join(GROUPS[:-1]), GROUPS[-1])),
    "format": "json or csv",
    "limit": f"an integer from 1 to {MOST_ROWS}",
    "cursor": "the next_cursor of a previous response",
}


@bp.get("/usage")
@auth.login_required
def show_usage() -> Response:
    asked = parameters("start_date", "end_date", "group_by", "format")
    key = current_key()
    scope = Scope(key.id, day(asked, "start_date"), day(asked, "end_date"))
    if scope.first_day and scope.last_day and scope.first_day > scope.last_day:
        raise InvalidRequest("start_date is after end_date.", param="start_date")
    by = one_of(asked, "group_by", GROUPS)
    form = one_of(asked, "format", FORMATS) or accepted()
    ledger = services().ledger
    if by is None and form == "json":
        return varied(json_response(ledger.read(lambda found: whole(found, key, scope))))
    by = by or "day"
    rows = ledger.read(lambda found: usage.grouped(found, scope, by))
    return varied(table(by, rows) if form == "csv" else json_response(listed(by, rows)))


@bp.get("/requests")
@auth.login_required
def show_requests() -> Response:
    asked = parameters("limit", "cursor")
    limit, before = row_limit(asked), id_of_cursor(asked)
    key = current_key()
    # One more row than requested shows whether there is a next page.
    rows = services().ledger.read(lambda found: usage.latest(found, key.id, before, limit + 1))
    more = len(rows) > limit
    return json_response(
        {
            "data": [described(row) for row in rows[:limit]],
            "next_cursor": cursors.encode(rows[limit - 1]["id"]) if more else None,
        }
    )


def whole(connection: Connection, key: Key, scope: Scope) -> dict[str, Any]:
    """Return the sums of a scope by every group. Costs are USD.

    remaining_credits is what is left of the key's budget in its current period, and None if the
    key has no budget.
    """
    sums = usage.summary(connection, scope, GROUPS)
    total = usage.as_json(Sums.of(sums["provider"].values()))
    budget = budget_of(key)
    left = None if budget is None else max(0, left_of(connection, key.id, budget))
    return {
        "total_requests": total.pop("requests"),
        "total_cost": total.pop("cost"),
        "remaining_credits": dollars(left),
        "total_tokens": total.pop("tokens"),
        **total,
        "endpoints": {name: usage.as_json(found) for name, found in sums["endpoint"].items()},
        "providers": {name: usage.as_json(found) for name, found in sums["provider"].items()},
        "models": {name: usage.as_json(found) for name, found in sums["model"].items()},
        "daily_usage": [{"date": d} | usage.as_json(found) for d, found in sums["day"].items()],
        "refused": {reason: count for (_, reason), count in refused(connection, scope).items()},
    }


def listed(by: str, rows: dict[str, Sums]) -> dict[str, Any]:
    return {
        "group_by": by,
        "data": [{"name": name} | usage.as_json(sums) for name, sums in rows.items()],
        "total": usage.as_json(Sums.of(rows.values())),
    }


def table(by: str, rows: dict[str, Sums]) -> Response:
    text = usage.as_csv([by], (([name], sums) for name, sums in rows.items()))
    return attached(text, f"usage-by-{by}.csv")


def attached(text: str, name: str) -> Response:
    """Return CSV as a response that browsers save as a file of this name."""
    attachment = f'attachment; filename="{name}"'
    return Response(text, mimetype="text/csv", headers={"Content-Disposition": attachment})


def described(row: RowMapping) -> dict[str, Any]:
    """Return a ledger row as JSON. In an open row, tokens and cost are estimates of the input."""
    counts = usage.tokens(row["input_tokens"], row["output_tokens"])
    parts = {
        name: row[f"{name}_tokens"]
        for name in ("cache_read", "cache_write", "reasoning")
        if row[f"{name}_tokens"]
    }
    return {
        **{name: row[name] for name in ("id", "request_id", "stream_id")},
        "started_at": moment(row["started_us"]),
        "ended_at": moment(row["ended_us"]),
        **{name: row[name] for name in ("endpoint", "provider", "model")},
        "stream": row["streamed"],
        **{name: row[name] for name in ("byok", "status", "end_reason", "error_code")},
        "tokens": counts | parts,
        "usage_source": row["usage_source"],
        "cost": dollars(row["cost_nano"]),
        "attempts": row["attempts"],
        **({"tries": tries(row["tries"])} if row["tries"] else {}),
        "duration_ms": milliseconds(row["duration_us"]),
        "latency_ms": milliseconds(row["latency_us"]),
        "first_event_ms": milliseconds(row["first_event_us"]),
    }


def tries(text: str) -> list[dict[str, Any]]:
    """Return the outcome of each attempt, from the ledger's JSON."""
    return [
        {
            **{name: found[name] for name in ("provider", "model", "code", "status")},
            "tokens": usage.tokens(found["input_tokens"], found["output_tokens"]),
            "cost": dollars(found["cost_nano"]),
            "duration_ms": milliseconds(found["duration_us"]),
        }
        for found in msgspec.json.decode(text)
    ]


def moment(microseconds: int | None) -> str | None:
    return None if microseconds is None else as_utc(microseconds)


def milliseconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else round(microseconds / 1000, 1)


def parameters_in_words(known: Collection[str]) -> str:
    return f"Known parameters: {', '.join(known)}." if known else "There are no parameters."


def parameters(*known: str) -> dict[str, str]:
    """Return the query's parameters; an empty one counts as absent.

    Raises InvalidRequest if one is unknown or repeated.
    """
    for name, values in request.args.lists():
        label = name if len(name) <= 100 else name[:100] + "..."
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            more = f"Did you mean {near[0]}?" if near else parameters_in_words(known)
            raise InvalidRequest(f"Unknown parameter: {label}. {more}", param=label)
        if len(values) > 1:
            raise InvalidRequest(f"{name} appears {len(values)} times; send it once.", param=name)
    return {name: value for name, value in request.args.items() if value}


def refuse(name: str, value: str, takes: str = "") -> NoReturn:
    """Raise InvalidRequest for a parameter. takes: what it expects; by default as in TAKES."""
    got = value if len(value) <= 60 else value[:60] + "..."
    raise InvalidRequest(f"{name}: got {got!r}; expected {takes or TAKES[name]}.", param=name)


def day(asked: Mapping[str, str], name: str) -> str | None:
    """Return the UTC day of a date or time; without a zone it is UTC. Raises InvalidRequest."""
    text = asked.get(name)
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        return (found.astimezone(UTC) if found.tzinfo else found).date().isoformat()
    except (ValueError, OverflowError):
        refuse(name, text)


def one_of(asked: Mapping[str, str], name: str, choices: Any, takes: str = "") -> str | None:
    value = asked.get(name)
    if value is not None and value not in choices:
        refuse(name, value, takes)
    return value


def row_limit(asked: Mapping[str, str], default: int = SOME_ROWS, most: int = MOST_ROWS) -> int:
    text = asked.get("limit", str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        refuse("limit", text, f"an integer from 1 to {most}")
    return int(text)


def id_of_cursor(asked: dict[str, str]) -> str | None:
    """Return the id of the previous page's last row. Raises InvalidRequest."""
    found = cursors.decode(asked)
    if found is not None and not ID.fullmatch(found):
        refuse("cursor", asked["cursor"])
    return found


def accepted() -> str:
    """Return the format that the Accept header prefers; JSON if it has no preference."""
    kind = request.accept_mimetypes.best_match(FORMATS.values(), default=FORMATS["json"])
    return "csv" if kind == FORMATS["csv"] else "json"


def varied(response: Response) -> Response:
    """Mark a response as one that depends on the Accept header."""
    response.vary.add("Accept")
    return response
