"""The OpenAPI document: every route, with its parameters, bodies, answers and errors.

Rules that hold here: a route stands in the document exactly if the application has it, which
tests hold; schemas come from schemas.py, errors from errors.py, examples of
bodies from examples.py.
"""

from __future__ import annotations

from typing import Any

import errors as e
from config import TIMEOUT_FIELDS, VERSION
from endpoints.openapi import errors, examples, schemas
from endpoints.openapi.errors import Face, responses
from endpoints.openapi.schemas import ref
from endpoints.usage import FORMATS, GROUPS, MOST_ROWS, SOME_ROWS, TAKES
from quota.quota import RATE_PARTS

Part = dict[str, Any]

HEADERS = {
    "X-Request-ID": "The id of the request: the client's, or one that was made. The log has it.",
    "X-Stream-ID": "By which the call can be stopped.",
    "X-Sluice-Attempts": "How many calls of providers it took.",
    "X-Sluice-Dropped": "The parameters that the target ignores.",
    "X-RateLimit-Bypass": "The caller's own provider key was used.",
    "Retry-After": "Whole seconds, at least 1.",
    "WWW-Authenticate": "How to authenticate.",
    "Allow": "The methods that the path takes.",
    "Content-Disposition": "The name for a file.",
} | {
    f"x-ratelimit-{part}-{kind}": f"The key's limit of {kind}: {part}. Only with such a limit."
    for kind in ("requests", "tokens")
    for part in RATE_PARTS
}
LIMITS = tuple(name for name in HEADERS if name.startswith("x-ratelimit-"))
COMPLETION_ERRORS = (
    *(e.InvalidRequest, e.UnsupportedParameter, e.Unauthorized, e.InsufficientCredits),
    *(e.ModelForbidden, e.ByokRejected, e.ProviderNotFound, e.ModelNotFound, e.RequestTimeout),
    *(e.StreamExists, e.RequestTooLarge, e.UnsupportedMediaType, e.RateLimited),
    *(e.UpstreamError, e.Unavailable, e.UpstreamTimeout),
)
SECONDS = rf" *(({'|'.join(TIMEOUT_FIELDS)}) *= *)?[0-9]{{1,9}}([.][0-9]{{0,9}})? *"
SENT = {
    "X-Request-ID": "A name for the request; one that isn't like a stream_id is replaced.",
    "X-Stream-ID": "stream_id, where the body has none.",
    "X-Provider-API-Key": "byok_api_key, where the body has none.",
    "X-Sluice-Strict": "1: refuse what the target would ignore.",
    "X-Sluice-Continue": "1: a stream that breaks off goes on from another target.",
    "X-Sluice-Timeout": "Seconds for all of the call (30), or for some of its "
    "parts (first_event=5, idle=2.5).",
}
"""Headers of a completion: what they are for. Only the last has a pattern: where
the body has the field, such a header is not looked at."""
PATTERNS = {"X-Sluice-Timeout": {"pattern": f"^( *|{SECONDS}(,{SECONDS})*)$"}}


def ok(schema: Part | None, example: Any, *headers: str, media: str = "application/json") -> Part:
    """A 200 of one media type."""
    content = ({} if schema is None else {"schema": schema}) | {"example": example}
    return {
        "description": "Done.",
        "headers": {n: {"$ref": f"#/components/headers/{n}"} for n in ("X-Request-ID", *headers)},
        "content": {media: content},
    }


def named(name: str, *headers: str) -> Part:
    return ok(ref(name), examples.ANSWERS[name], *headers)


def operation(id_: str, tag: str, summary: str, answers: Part, **more: Any) -> Part:
    return {"operationId": id_, "tags": [tag], "summary": summary, "responses": answers} | more


def in_path(name: str, example: str) -> Part:
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def in_query(name: str, schema: Part) -> Part:
    """Without an example, which the page would send."""
    return {
        "name": name,
        "in": "query",
        "description": f"It takes {TAKES[name]}. An empty one counts as absent.",
        "allowEmptyValue": True,
        "schema": schema,
    }


def completion(face: Face) -> Part:
    prefix = "OpenAI" if face == "openai" else ""
    found = named(f"{prefix}Completion", "X-Stream-ID", "X-Sluice-Attempts", *LIMITS)
    for name in ("X-Sluice-Dropped", "X-RateLimit-Bypass"):
        found["headers"][name] = {"$ref": f"#/components/headers/{name}"}
    found["description"] = (
        "The completion; with stream true its events, each when it comes. A stream that fails "
        "ends with an error of the same codes, and without [DONE]."
    )
    # No schema: JSON Schema has no words for a stream of events.
    found["content"]["text/event-stream"] = {"example": examples.STREAMS[face]}
    content = {
        "schema": ref(f"{prefix}CompletionRequest"),
        "examples": {n: {"value": v} for n, v in examples.BODIES[face].items()},
    }
    return operation(
        f"{face}Completion",
        "Completions",
        "Complete a text" + (", as the OpenAI SDKs do" if prefix else ""),
        {"200": found} | responses(face, *COMPLETION_ERRORS),
        parameters=[
            {"name": n, "in": "header", "description": text}
            | {"schema": {"type": "string"} | PATTERNS.get(n, {})}
            for n, text in SENT.items()
        ],
        requestBody={"required": True, "content": {"application/json": content}},
    )


def stop(face: Face) -> Part:
    return operation(
        f"{face}Stop",
        "Completions",
        "Stop a call, whatever it is doing",
        {"200": named("Stopped", *LIMITS)}
        | responses(face, e.Unauthorized, e.NotFound, e.StreamNotFound),
        parameters=[in_path("stream_id", "my-stream")],
    )


def reading(id_: str, tag: str, summary: str, name: str, *kinds: Any, **more: Any) -> Part:
    """A GET with a key; an openai one by its id."""
    face: Face = "openai" if id_.startswith("openai") else "native"
    several = name.startswith("[")
    name = name.strip("[]")
    found = named(name, *LIMITS)
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
        *("usage", "Usage", "What the key has used", "UsageReport"),
        *(e.InvalidRequest, e.Unavailable),
        parameters=[
            in_query("start_date", day),
            in_query("end_date", day),
            in_query("group_by", schemas.enum(*GROUPS)),
            in_query("format", schemas.enum(*FORMATS)),
        ],
    )
    good = found["responses"]["200"]
    good["description"] = "Everything at once; with group_by, or as CSV, the sums of one group."
    shown = {n: {"value": examples.ANSWERS[n]} for n in ("UsageReport", "UsageGroups")}
    schema = {"oneOf": [ref(name) for name in shown]}
    good["content"]["application/json"] = {"schema": schema, "examples": shown}
    good["content"]["text/csv"] = {"example": examples.CSV}
    good["headers"]["Content-Disposition"] = {"$ref": "#/components/headers/Content-Disposition"}
    return found


def requests() -> Part:
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_ROWS, "default": SOME_ROWS}
    return reading(
        *("requests", "Usage", "The key's latest requests, the last first", "Requests"),
        *(e.InvalidRequest, e.Unavailable),
        parameters=[
            in_query("limit", limit),
            in_query("cursor", {"type": "string"}),
        ],
    )


def open_get(id_: str, summary: str, found: Part, *kinds: Any, **more: Any) -> Part:
    """A GET that needs no key."""
    answers = {"200": found} | responses("native", *kinds)
    return operation(id_, "Operation", summary, answers, **{"security": []} | more)


def for_operators() -> dict[str, Part]:
    ready = open_get("ready", "Does it take work", named("Ready"))
    away = named("Ready", "Retry-After")
    away["content"]["application/json"]["example"] = {"status": "draining"}
    ready["responses"]["503"] = away | {"description": "It is shutting down, or can't record."}
    text = ok({"type": "string"}, examples.METRICS, media="text/plain")
    text["content"]["application/openmetrics-text"] = {"example": examples.METRICS}
    asset = ok(None, "", media="text/css")
    asset["content"] |= {kind: {"example": ""} for kind in ("text/javascript", "image/svg+xml")}
    service = named("Service")
    service["content"]["text/html"] = {"example": "<!doctype html>..."}
    page = ok({"type": "string"}, "<!doctype html>...", media="text/html")
    return {
        "/health": open_get("health", "Is it alive", named("Health")),
        "/ready": ready,
        "/metrics": open_get(
            *("metrics", "For a Prometheus server", text, e.Unauthorized),
            security=[{}, {"metricsToken": []}],
        ),
        "/": open_get("index", "What is here; the playground, for a browser", service),
        "/usage": open_get("usagePage", "What a key has used, to be read in a browser", page),
        "/openapi.json": open_get(
            *("openapi", "This document"),
            ok({"type": "object"}, {"openapi": "3.1.0"}),
        ),
        "/docs": open_get("docs", "This document, to be read in a browser", page),
        "/static/{name}": open_get(
            *("static", "A file of the pages", asset, e.NotFound),
            parameters=[in_path("name", "style.css")],
        ),
    }


def gets() -> dict[str, Part]:
    provider, model = in_path("provider", "local"), in_path("model", "pydoc")
    no_model = (e.NotFound, e.ProviderNotFound, e.ModelNotFound)
    tag = "Models"
    one = "One model"
    return {
        "/api/v1/completions/streams": reading(
            "streams", "Completions", "The key's calls under way", "[ActiveStream]"
        ),
        "/api/v1/models": reading("providers", tag, "Every provider and its models", "[Provider]"),
        "/api/v1/models/{provider}": reading(
            *("provider", tag, "One provider", "Provider", e.NotFound, e.ProviderNotFound),
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
    } | for_operators()


def posts() -> dict[str, Part]:
    token, refused = named("Token"), responses("native", e.Unauthorized)
    exchange = operation(
        *("exchangeKey", "Keys", "Trade a key for a token, which is the key"),
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
        "/api/v1/auth/api-key": exchange,
        "/api/v1/auth/token": refuse,
    }


def build(providers: list[str]) -> Part:
    """The document. providers: the names of those that this server has."""
    paths = {path: {"get": found} for path, found in gets().items()}
    paths |= {path: {"post": found} for path, found in posts().items()}
    bearer = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sluice",
            "version": VERSION,
            "description": "One URL and one key in front of every LLM provider. A model is "
            f"provider/model. The providers of this server: {', '.join(providers)}.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "tags": [{"name": n} for n in ("Completions", "Models", "Usage", "Keys", "Operation")],
        "paths": paths,
        "components": {
            "schemas": schemas.every(),
            "examples": errors.examples(),
            "headers": {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in HEADERS.items()
            },
            "securitySchemes": {
                "bearer": bearer | {"description": "A key of Sluice."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "metricsToken": bearer | {"description": "SLUICE_METRICS_TOKEN, where it is set."},
            },
        },
    }
