"""The endpoints for operators in the OpenAPI document: usage, active calls and providers."""

from __future__ import annotations

from typing import Final, get_args

import errors as e
from completion import CallState
from endpoints import all_streams, all_usage
from endpoints.openapi.errors import responses
from endpoints.openapi.headers import LIMITS
from endpoints.openapi.operations import Part, ok, operation
from endpoints.openapi.operator_texts import CSV, EXAMPLES
from endpoints.openapi.schemas import (
    COUNT,
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
from endpoints.provider_health import PERCENTILES, WORST_FIRST
from endpoints.usage import FORMATS
from endpoints.usage import TAKES as DATES
from streams.registry import MOST_LISTED

TAG: Final = "Admin"


def schemas() -> dict[str, Schema]:
    processes = closed({"answered": COUNT, "missing": nullable(COUNT)})
    name = nullable(TEXT)
    refusal: Schema = {"key_id": TEXT, "key_name": name, "code": TEXT, "limit": name}
    refusal |= {"reason": TEXT, "calls": COUNT}
    refusals = items(closed(refusal))
    days: Schema = {"start_date": name, "end_date": name, "key_id": name, "group": name}
    end: Schema = {"groups": COUNT, "next_cursor": name}
    tokens = closed({"input": COUNT, "output": COUNT, "total": COUNT})
    group: Schema = {"name": TEXT, "requests": COUNT, "cost": NUMBER, "tokens": tokens}
    groups = items(closed(group, {"key_name": name, "unpriced_requests": COUNT}))
    by = enum(*(one for one in all_usage.GROUPS if one != all_usage.REFUSAL))
    stream: Schema = {"key_id": TEXT, "key_name": name}
    stream |= dict.fromkeys(("stream_id", "provider", "model", "request_id", "endpoint"), TEXT)
    stream |= {"started_at": MOMENT, "input_tokens": COUNT, "output_tokens": COUNT}
    stream |= {"resumable": YES, "stream": YES, "state": enum(*get_args(CallState))}
    return {
        "AllUsage": closed(
            {"group_by": by} | days | {"data": groups, "total": ref("Sums")} | end
            | {"refused": nullable(closed({"calls": COUNT, "data": refusals}))}
        ),
        "AllRefusals": closed(
            {"group_by": {"const": all_usage.REFUSAL}} | days
            | {"data": refusals, "total": closed({"calls": COUNT})} | end
        ),
        "AllStreams": closed(
            {"data": items(closed(stream)), "total": COUNT, "processes": processes}
        ),
        "ProvidersHealth": closed(
            {"window_s": COUNT, "processes": processes, "data": items(closed(provider()))}
        ),
    }  # fmt: skip


def provider() -> Schema:
    times = closed(dict.fromkeys(PERCENTILES, nullable(NUMBER)))
    paused: Schema = {"model": nullable(TEXT), "key_number": nullable(COUNT)}
    paused |= {"replica": nullable(TEXT), "state": enum(*WORST_FIRST), "seconds": NUMBER}
    breaker: Schema = {"state": enum("closed", *WORST_FIRST)}
    breaker |= {"paused": items(closed(paused)), "paused_total": COUNT}
    error = {"code": TEXT, "calls": COUNT, "last_at": MOMENT, "model": TEXT}
    return {
        "name": TEXT,
        "enabled": YES,
        "needs": items(TEXT),
        "reachable": nullable(YES),
        "reachable_at": nullable(MOMENT),
        "models": nullable(COUNT),
        "breaker": closed(breaker),
        "calls": COUNT,
        "failures": COUNT,
        "error_rate": nullable(NUMBER),
        "latency_ms": times,
        "first_event_ms": times,
        "errors": items(closed(error)),
    }


def usage() -> Part:
    found = admin("allUsage", "The usage of all keys", "AllUsage", e.InvalidRequest, e.Unavailable)
    good = found["responses"]["200"]
    shown = {name: {"value": EXAMPLES[name]} for name in ("AllUsage", "AllRefusals")}
    schema = {"oneOf": [ref(name) for name in shown]}
    good["content"] = {
        "application/json": {"schema": schema, "examples": shown},
        "text/csv": {"example": CSV},
    }
    good["headers"]["Content-Disposition"] = {"$ref": "#/components/headers/Content-Disposition"}
    limit = {"type": "integer", "minimum": 1}
    found["parameters"] = [
        in_query("start_date", DATES["start_date"]),
        in_query("end_date", DATES["end_date"]),
        in_query("key", all_usage.TAKES["key"]),
        in_query("group", all_usage.TAKES["group"]),
        in_query("group_by", all_usage.TAKES["group_by"], enum(*all_usage.GROUPS)),
        in_query("format", DATES["format"], enum(*FORMATS)),
        in_query("limit", all_usage.TAKES["limit"], limit | {"maximum": all_usage.MOST_CSV_ROWS}),
        in_query("cursor", all_usage.TAKES["cursor"]),
    ]
    return found


def streams() -> dict[str, Part]:
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_LISTED}
    listing = admin("allStreams", "The active calls of all keys", "AllStreams", e.InvalidRequest)
    listing["parameters"] = [
        in_query("key", all_streams.TAKES["key"]),
        in_query("limit", all_streams.TAKES["limit"], limit),
    ]
    stop = admin(
        *("stopAny", "Stop a call of any key, in any state", "Stopped"),
        *(e.NotFound, e.StreamNotFound, e.Unavailable),
    )
    stop["parameters"] = [
        in_path("key_id", "key_Yw1TJ8jYyZ0c", "The id of the caller's key."),
        in_path("stream_id", "my-stream", "The call's stream id or its request id."),
    ]
    return {
        "/api/v1/streams": {"get": listing},
        "/api/v1/streams/{key_id}/{stream_id}/stop": {"post": stop},
    }


def paths() -> dict[str, Part]:
    return {
        "/api/v1/usage": {"get": usage()},
        "/api/v1/providers": {
            "get": admin("providersHealth", "The health of the providers", "ProvidersHealth")
        },
    } | streams()


def admin(id_: str, summary: str, name: str, *kinds: type[e.SluiceError]) -> Part:
    """Return an operation that needs an admin key. `name` is the schema of its answer."""
    example = EXAMPLES.get(name, {"success": True})
    return operation(
        *(id_, TAG, summary),
        {"200": ok(ref(name), example, *LIMITS)}
        | responses("native", e.Unauthorized, e.AdminRequired, *kinds),
        description="Needs an admin key.",
    )


def in_query(name: str, takes: str, schema: Schema | None = None) -> Part:
    """Return a query parameter. It has no example, because the page would send that."""
    return {
        "name": name,
        "in": "query",
        "description": f"Expects {takes}. An empty value counts as absent.",
        "allowEmptyValue": True,
        "schema": schema or {"type": "string"},
    }


def in_path(name: str, example: str, meaning: str) -> Part:
    schema = {"type": "string", "minLength": 1}
    found = {"name": name, "in": "path", "required": True, "schema": schema, "example": example}
    return found | {"description": meaning}
