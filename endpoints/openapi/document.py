"""The OpenAPI document: every route, with its parameters, bodies, responses and errors.

- The document lists exactly the routes of the application, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import errors as e
from config import VERSION
from endpoints.openapi import (
    chats,
    editors,
    errors,
    every_schema,
    examples,
    following,
    keys,
    operators,
    schemas,
    service,
    tokenizers,
)
from endpoints.openapi.errors import Face, responses
from endpoints.openapi.headers import HEADERS, LIMITS, PATTERNS, SENT
from endpoints.openapi.operations import COMPLETION_ERRORS, Part, ok, operation
from endpoints.openapi.schemas import ref
from endpoints.usage import FORMATS, GROUPS, MOST_ROWS, SOME_ROWS, TAKES

TAGS = ("Completions", "Tokenizers", "Models", "Usage", "Keys", "Admin", "Operation")


EXAMPLES = examples.ANSWERS | editors.ANSWERS | tokenizers.ANSWERS | chats.ANSWERS


def named(name: str, *headers: str) -> Part:
    return ok(ref(name), EXAMPLES[name], *headers)


def in_path(name: str, example: str) -> Part:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def in_query(name: str, schema: Part) -> Part:
    """Return a query parameter. It has no example, because the page would send that."""
    return {
        "name": name,
        "in": "query",
        "description": f"Expects {TAKES[name]}. An empty value counts as absent.",
        "allowEmptyValue": True,
        "schema": schema,
    }


def completion(face: Face) -> Part:
    prefix = "OpenAI" if face == "openai" else ""
    return calling(
        face,
        f"{face}Completion",
        "Complete a text" + (", in OpenAI's format" if prefix else ""),
        (f"{prefix}CompletionRequest", f"{prefix}Completion"),
        examples.BODIES[face],
        examples.STREAMS[face],
    )


def chat(face: Face) -> Part:
    prefix = "OpenAI" if face == "openai" else ""
    return calling(
        face,
        f"{face}Chat",
        "Chat" + (", in OpenAI's format" if prefix else ""),
        (f"{prefix}ChatRequest", f"{prefix}Chat"),
        chats.BODIES[face],
        chats.STREAMS[face],
    )


def calling(
    face: Face, id_: str, summary: str, names: tuple[str, str], bodies: Part, stream: str
) -> Part:
    """Return an operation that starts a call.

    Args:
        names: the schemas of the request and of the answer.
        bodies: examples of requests, by their names.
        stream: an example of a streamed answer.
    """
    request, answer = names
    found = named(answer, "X-Stream-ID", "X-Sluice-Attempts", "X-Sluice-Resumable", *LIMITS)
    for name in ("X-Sluice-Dropped", "X-RateLimit-Bypass"):
        found["headers"][name] = {"$ref": f"#/components/headers/{name}"}
    found["description"] = (
        "The completion, or if stream is true its events as they arrive. A failed stream ends "
        "with an error instead of [DONE]; the error has one of the codes below."
    )
    # No schema, because JSON Schema can't describe a stream of events.
    found["content"]["text/event-stream"] = {"example": stream}
    content = {"schema": ref(request), "examples": {n: {"value": v} for n, v in bodies.items()}}
    return operation(
        id_,
        "Completions",
        summary,
        {"200": found, "202": following.accepted()} | responses(face, *COMPLETION_ERRORS),
        parameters=[
            {"name": n, "in": "header", "description": text}
            | {"schema": {"type": "string"} | PATTERNS.get(n, {})}
            for n, text in SENT.items()
        ],
        requestBody={"required": True, "content": {"application/json": content}},
    )


def for_editors() -> dict[str, Part]:
    return {
        path: calling(
            "openai",
            one.id + str(number or ""),
            one.summary,
            (one.request, one.answer),
            {"short": one.body},
            one.stream,
        )
        for one in editors.ENDPOINTS
        for number, path in enumerate(one.paths)
    }


def stop(face: Face, of: str = "") -> Part:
    return operation(
        f"{face}{of}Stop",
        "Completions",
        "Stop a call in any state",
        {"200": named("Stopped", *LIMITS)}
        | responses(face, e.Unauthorized, e.NotFound, e.StreamNotFound),
        parameters=[
            in_path("stream_id", "my-stream")
            | {"description": "The call's stream id, else its request id."}
        ],
    )


def reading(id_: str, tag: str, summary: str, name: str, *kinds: Any, **more: Any) -> Part:
    """Return a GET operation that needs a key.

    An id_ that starts with openai selects the OpenAI face's errors. A name in brackets means that
    the response is a list of that schema.
    """
    face: Face = "openai" if id_.startswith("openai") else "native"
    several = name.startswith("[")
    name = name.strip("[]")
    instance = ("X-Sluice-Instance",) if id_.startswith("openaiModel") else ()
    found = named(name, *LIMITS, *instance)
    if several:
        found["content"]["application/json"] = {
            "schema": schemas.items(ref(name)),
            "example": [examples.ANSWERS[name]],
        }
    answers = {"200": found} | responses(face, e.Unauthorized, *kinds)
    return operation(id_, tag, summary, answers, **more)


def usage() -> Part:
    day = {"type": "string"}
    found = reading(
        *("usage", "Usage", "The key's usage", "UsageReport"),
        *(e.InvalidRequest, e.Unavailable),
        parameters=[
            in_query("start_date", day),
            in_query("end_date", day),
            in_query("group_by", schemas.enum(*GROUPS)),
            in_query("format", schemas.enum(*FORMATS)),
        ],
    )
    good = found["responses"]["200"]
    good["description"] = "All sums. With group_by or as CSV, the sums of one group only."
    shown = {n: {"value": examples.ANSWERS[n]} for n in ("UsageReport", "UsageGroups")}
    schema = {"oneOf": [ref(name) for name in shown]}
    good["content"]["application/json"] = {"schema": schema, "examples": shown}
    good["content"]["text/csv"] = {"example": examples.CSV}
    good["headers"]["Content-Disposition"] = {"$ref": "#/components/headers/Content-Disposition"}
    return found


def requests() -> Part:
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": SOME_ROWS}
    return reading(
        *("requests", "Usage", "The key's latest requests, newest first", "Requests"),
        *(e.InvalidRequest, e.Unavailable),
        parameters=[
            in_query("limit", limit),
            in_query("cursor", {"type": "string"}),
        ],
    )


def gets() -> dict[str, Part]:
    provider, model = in_path("provider", "local"), in_path("model", "pydoc")
    no_model = (e.NotFound, e.ProviderNotFound, e.ModelNotFound)
    tag = "Models"
    one = "One model"
    return {
        "/api/v1/completions/streams": reading(
            "streams", "Completions", "The key's active calls", "[ActiveStream]"
        ),
        "/api/v1/models": reading("providers", tag, "Every provider and its models", "[Provider]"),
        "/api/v1/models/{provider}": reading(
            *("provider", tag, "One provider", "Provider", e.NotFound, e.ProviderNotFound),
            parameters=[provider],
        ),
        "/api/v1/models/{provider}/text_completions": reading(
            *("models", tag, "The models of one provider", "[Model]"),
            *(e.NotFound, e.ProviderNotFound),
            parameters=[provider],
        ),
        "/api/v1/models/{provider}/{model}": reading(
            *("model", tag, one, "Model", *no_model), parameters=[provider, model]
        ),
        "/v1/models": reading("openaiModels", tag, "Every model", "OpenAIModels"),
        "/v1/models/{model}": reading(
            *("openaiModel", tag, one, "OpenAIModel", e.NotFound, e.ModelNotFound),
            parameters=[in_path("model", "local/pydoc")],
        ),
        "/api/v1/user/usage": usage(),
        "/api/v1/user/requests": requests(),
        "/tokenizer_info": tokenizers.info(),
    } | (following.gets() | service.paths())


def posts() -> dict[str, Part]:
    token, refused = named("Token"), responses("native", e.Unauthorized)
    exchange = operation(
        *("exchangeKey", "Keys", "Exchange a key for a token, which is the key itself"),
        {"200": token} | refused,
        security=[{"apiKey": []}],
    )
    refuse = operation(
        *("refuseToken", "Keys", "Always refused; the body is not read", refused), security=[]
    )
    return {
        "/api/v1/completions": completion("native"),
        "/api/v1/completions/stop-stream/{stream_id}": stop("native"),
        "/v1/completions": completion("openai"),
        "/v1/completions/stop-stream/{stream_id}": stop("openai"),
        "/api/v1/chat/completions": chat("native"),
        "/api/v1/chat/completions/stop-stream/{stream_id}": stop("native", "Chat"),
        "/v1/chat/completions": chat("openai"),
        "/v1/chat/completions/stop-stream/{stream_id}": stop("openai", "Chat"),
        "/api/v1/auth/api-key": exchange,
        "/api/v1/auth/token": refuse,
    } | (for_editors() | tokenizers.posts())


def about(providers: Collection[str], engines: Collection[str]) -> str:
    local = f" Of these, local engines answer if they run: {', '.join(engines)}."
    return (
        "One URL and one key for every LLM provider. Name a model as provider/model. The providers "
        f"of this server: {', '.join(providers)}." + (local if engines else "")
    )


def build(
    providers: list[str], *, engines: Collection[str] = (), metrics_token: bool = True
) -> Part:
    """Return the document.

    Args:
        providers: the names of the providers that are enabled.
        engines: those of them that are enabled only because a local engine needs no key.
        metrics_token: True if /metrics needs a token.
    """
    paths = {path: {"get": found} for path, found in gets().items()}
    paths |= {path: {"post": found} for path, found in posts().items()}
    paths |= keys.paths() | operators.paths()
    bearer = {"type": "http", "scheme": "bearer"}
    token = {"metricsToken": bearer | {"description": "SLUICE_METRICS_TOKEN."}}
    if not metrics_token:
        token, paths["/metrics"]["get"]["security"] = {}, []
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sluice",
            "version": VERSION,
            "description": about(providers, engines),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "x-sluice-providers": providers,
        "x-sluice-engines": list(engines),
        "tags": [{"name": name} for name in TAGS],
        "paths": paths,
        "components": {
            "schemas": every_schema.every(),
            "examples": errors.examples(),
            "headers": {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in HEADERS.items()
            },
            "securitySchemes": {
                "bearer": bearer | {"description": "An API key of Sluice."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            | token,
        },
    }
