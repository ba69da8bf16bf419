"""The schemas in the OpenAPI document.

- The schemas of request bodies are derived from endpoints/request_fields.py: ranges from its
  msgspec types, descriptions from its TAKES.
- The schema of a response names all of its fields.
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec

from completion import EndReason, FinishReason
from endpoints import native, openai_fields, request_fields
from endpoints.openapi.errors import CODES, UNSEEN
from endpoints.usage import GROUPS
from ledger.writing import INTERRUPTED

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
YES: Schema = {"type": "boolean"}
MOMENT: Schema = {"type": "string", "format": "date-time"}
OTHER_NAMES = (
    "Hosts' other names for max_tokens, n and best_of (max_completion_tokens, num_predict, "
    "candidateCount, ...) count as those fields. A name that differs from a known one only in "
    "letter case is a 400."
)
FREE: Schema = {"type": "object", "additionalProperties": True}
ADDED: Schema = {
    "additionalProperties": True,
    "description": "Requests with parameters that Sluice doesn't know also get the fields of the "
    "provider's answer that it doesn't know.",
}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def items(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def values(schema: Schema) -> Schema:
    return {"type": "object", "additionalProperties": schema}


def closed(required: Schema, optional: Schema | None = None) -> Schema:
    """Return the schema of an object without additional fields."""
    return {
        "type": "object",
        "properties": required | (optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


def enum(*names: str) -> Schema:
    return {"type": "string", "enum": list(names)}


# Request bodies


def parameter(schema: Schema, name: str) -> Schema:
    """Return the schema of a field of Parameters, with patterns in ECMAScript's syntax."""
    found = {key: value for key, value in schema.items() if key != "default"}
    for part in found["anyOf"]:
        if "pattern" in part:
            part["pattern"] = part["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
    if name == "byok_api_key":
        found["format"] = "password"
    return found | {"description": f"Expects {request_fields.TAKES[name]}. null counts as absent."}


def parameters() -> dict[str, Schema]:
    found = msgspec.json.schema(request_fields.Parameters)["$defs"]["Parameters"]["properties"]
    return {name: parameter(schema, name) for name, schema in found.items()}


def additional(fields: dict[str, Schema]) -> Schema:
    """Return the schema of additional_params. fields: those that Sluice knows."""
    return nullable(
        {
            "type": "object",
            "properties": fields,
            "propertyNames": {"not": {"enum": sorted(request_fields.BEYOND_PARAMS)}},
            "additionalProperties": True,
        }
    ) | {
        "description": "Provider-specific fields, sent unchanged. A field that Sluice knows counts "
        "as if it were in the body; different values in both places are a 400. " + OTHER_NAMES
    }


def native_body() -> Schema:
    known = parameters()
    inside = {name: s for name, s in known.items() if name not in request_fields.BEYOND_PARAMS}
    named = {name: known[name] for name in native.FIELDS if name in known}
    prompt = {
        "type": "string",
        "minLength": 1,
        "description": f"Expects {request_fields.TAKES['prompt']}.",
    }
    return closed({"prompt": prompt}, named | {"additional_params": additional(inside)})


def openai_body() -> Schema:
    known = parameters()
    inside = {name: s for name, s in known.items() if name not in request_fields.BEYOND_PARAMS}
    token = {"type": "integer", "minimum": 0}
    several = {"minItems": 1, "maxItems": openai_fields.MOST_PROMPTS}
    ids = items(token) | {"minItems": 1}
    prompt = {
        "anyOf": [TEXT, items(TEXT) | several, ids, items(ids) | several],
        "description": f"Expects {openai_fields.PROMPT_TAKES}.",
    }
    options: Schema = {
        "type": "object",
        "properties": {name: nullable(YES) for name in openai_fields.USAGE_OPTIONS},
        "additionalProperties": True,
    }
    more = {"stream_options": nullable(options), "additional_params": additional(inside)}
    found = closed({"prompt": prompt}, known | more)
    refused = sorted(request_fields.BEYOND_PARAMS - {*found["properties"]})
    return found | {
        "additionalProperties": True,
        "propertyNames": {"not": {"enum": refused}},
        "description": "Other fields are sent to OpenAI-compatible hosts unchanged. " + OTHER_NAMES,
    }


# Response bodies


def completions() -> dict[str, Schema]:
    reason = enum(*get_args(FinishReason))
    openai_reason = enum(*(name for name in get_args(FinishReason) if name != "cancelled"))
    usage = closed(
        dict.fromkeys(("tokens_prompt", "tokens_completion", "tokens_total"), COUNT)
        | {"cost": nullable(NUMBER), "latency": NUMBER},
        dict.fromkeys(("cache_read_tokens", "cache_write_tokens", "reasoning_tokens"), COUNT)
        | {"source": enum("estimate"), "cost_source": enum("provider")},
    )
    logprobs = nullable(FREE)
    choice = {"text": TEXT, "index": COUNT, "finish_reason": reason, "logprobs": logprobs}
    cancelled = {"native_finish_reason": enum("cancelled")}
    openai_choice = closed(choice | {"finish_reason": openai_reason}, cancelled) | ADDED
    counts = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), COUNT)
    details = {
        "prompt_tokens_details": closed({"cached_tokens": COUNT, "cache_write_tokens": COUNT}),
        "completion_tokens_details": closed({"reasoning_tokens": COUNT}),
        "source": enum("estimate"),
        "cost_source": enum("provider"),
    }
    return {
        "CompletionRequest": native_body(),
        "OpenAICompletionRequest": openai_body(),
        "Usage": usage,
        "Completion": closed(
            {"request_id": TEXT, "created_at": MOMENT, "duration_ms": NUMBER, "provider": TEXT}
            | {"model": TEXT, "success": {"const": True}, "message": TEXT, "data": TEXT}
            | {"finish_reason": reason, "usage": ref("Usage")},
            {"choices": items(closed(choice) | ADDED), "extra": FREE}
            | {"byok_api_key": YES, "warnings": items(TEXT)},
        ),
        "OpenAICompletion": closed(
            {"id": TEXT, "object": {"const": "text_completion"}, "created": COUNT, "model": TEXT}
            | {
                "choices": items(openai_choice),
                "usage": closed(counts | {"cost": nullable(NUMBER)}, details),
            },
            {"byok_api_key": YES},
        )
        | ADDED,
    }


def around() -> dict[str, Schema]:
    return {
        "Stopped": closed({"success": {"const": True}}),
        "ActiveStream": closed(
            dict.fromkeys(("stream_id", "provider", "model"), TEXT)
            | {"started_at": MOMENT, "input_tokens": COUNT, "output_tokens": COUNT}
            | {"resumable": YES}
        ),
        "Token": closed({"access_token": TEXT, "token_type": {"const": "bearer"}}),
    }


def models() -> dict[str, Schema]:
    price = nullable(NUMBER)
    return {
        "Model": closed(
            {"modelName": TEXT, "name": TEXT, "provider": TEXT}
            | {
                "pricing": closed(
                    {"input": price, "output": price, "unit": TEXT},
                    {"source": {"const": "provider"}},
                ),
                "specs": closed({"context_window": nullable(COUNT)}),
                "capabilities": items(TEXT),
                "byok": YES,
                "is_disabled": YES,
            }
        ),
        "Provider": closed(
            {"name": TEXT, "enabled": YES, "text_completions": items(ref("Model"))},
            {"replicas": closed({"total": COUNT, "reachable": COUNT})},
        ),
        "OpenAIModel": closed(
            {"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT},
            {"context_length": COUNT},
        ),
        "OpenAIModels": closed({"object": {"const": "list"}, "data": items(ref("OpenAIModel"))}),
    }


def usage() -> dict[str, Schema]:
    tokens = {"input": COUNT, "output": COUNT, "total": COUNT}
    sums = {"requests": COUNT, "cost": NUMBER, "tokens": closed(tokens)}
    unpriced = {"unpriced_requests": COUNT}
    named = values(ref("Sums"))
    code = nullable(enum(*CODES, UNSEEN))
    parts = dict.fromkeys(("cache_read", "cache_write", "reasoning"), COUNT)
    cost, milliseconds = {"cost": nullable(NUMBER)}, nullable(NUMBER)
    status = nullable({"type": "integer"})
    tried = {"provider": TEXT, "model": TEXT, "code": nullable(TEXT), "status": status}
    reason = enum(*get_args(EndReason), INTERRUPTED)
    request = dict.fromkeys(("id", "request_id", "stream_id"), TEXT)
    request |= {"started_at": MOMENT, "ended_at": nullable(MOMENT)}
    request |= dict.fromkeys(("endpoint", "provider", "model"), TEXT)
    request |= {"stream": YES, "byok": YES, "status": status, "end_reason": nullable(reason)}
    request |= {"error_code": code, "tokens": closed(tokens, parts), "usage_source": TEXT}
    request |= cost | {"attempts": COUNT, "duration_ms": milliseconds}
    request |= {"latency_ms": milliseconds, "first_event_ms": milliseconds}
    attempt = closed(tried | {"tokens": closed(tokens)} | cost | {"duration_ms": milliseconds})
    whole = {"total_requests": COUNT, "total_cost": NUMBER, "remaining_credits": nullable(NUMBER)}
    whole |= {"total_tokens": closed(tokens), "endpoints": named, "providers": named}
    whole |= {"models": named, "daily_usage": items(closed({"date": TEXT} | sums, unpriced))}
    whole |= {"refused": values(COUNT)}
    data = items(closed({"name": TEXT} | sums, unpriced))
    return {
        "Sums": closed(sums, unpriced),
        "UsageReport": closed(whole, unpriced),
        "UsageGroups": closed({"group_by": enum(*GROUPS), "data": data, "total": ref("Sums")}),
        "Request": closed(request, {"tries": items(attempt)}),
        "Requests": closed({"data": items(ref("Request")), "next_cursor": nullable(TEXT)}),
    }


def failures() -> dict[str, Schema]:
    code, details = enum(*CODES), nullable(FREE)
    inner = {"message": TEXT, "type": TEXT, "param": nullable(TEXT), "code": code}
    return {
        "Error": closed(
            {"success": {"const": False}, "request_id": TEXT, "error": code, "code": code}
            | {"message": TEXT, "status_code": {"type": "integer"}, "details": details}
            | {"detail": TEXT, "data": TEXT}
        ),
        "OpenAIError": closed(
            {"error": closed(inner | {"request_id": TEXT}, {"details": details})}
        ),
    }


def operations() -> dict[str, Schema]:
    return {
        "Health": closed({"status": {"const": "ok"}}),
        "Ready": closed({"status": TEXT}, {"cooling": values(NUMBER), "redis": TEXT}),
        "Service": closed({"name": TEXT, "version": TEXT, "docs": TEXT}),
    }


def every() -> dict[str, Schema]:
    return completions() | around() | models() | usage() | failures() | operations()
