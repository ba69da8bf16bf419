"""The errors in the OpenAPI document: one sample per code, in the format of each face.

- A sample is an instance of an error class, encoded by the functions that the faces use.
- An operation lists only the error classes that it raises; the rest comes from the samples.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import errors
from endpoints import (
    native,
    openai,
)
from errors import SluiceError

Face: TypeAlias = Literal["native", "openai"]
REQUEST_ID = "550e8400-e29b-41d4-a716-446655440000"
ERROR_SCHEMAS: dict[Face, str] = {"native": "Error", "openai": "OpenAIError"}

LIMIT = errors.limit_details("requests_per_minute", 60, 12.0, "2026-04-07T12:01:00Z")
SAMPLES: tuple[tuple[str, SluiceError], ...] = (
    (
        "The body, a field or a value is invalid.",
        errors.InvalidRequest(
            "temperature: got 3; expected a number from 0 to 2.", param="temperature"
        ),
    ),
    (
        "The target doesn't support a parameter that would change the result.",
        errors.UnsupportedParameter("local/pydoc doesn't support suffix.", param="suffix"),
    ),
    ("The key is missing, unknown, disabled or expired.", errors.Unauthorized(key_sent=True)),
    (
        "The key's budget is spent.",
        errors.InsufficientCredits(
            "This key's budget of $10 has $0 left, but this call may cost $0.0008."
        ),
    ),
    (
        "The model is not on the key's list.",
        errors.ModelForbidden("This key may not use openai/gpt-4o-mini.", param="model"),
    ),
    (
        "The provider rejected the caller's own key.",
        errors.ByokRejected("openai rejected your own key (byok_api_key)."),
    ),
    ("The endpoint needs an admin key.", errors.AdminRequired()),
    ("There is nothing at this path.", errors.NotFound("There is nothing at this path.")),
    (
        "There is no such provider.",
        errors.ProviderNotFound("Provider 'nobody' was not found.", param="provider"),
    ),
    (
        "There is no such model.",
        errors.ModelNotFound("Model 'nothing' was not found.", param="model"),
    ),
    (
        "The caller has no active call with this id.",
        errors.StreamNotFound("No active stream has this id. It may have finished already."),
    ),
    ("No key has this id or name.", errors.KeyNotFound()),
    (
        "The path doesn't allow this method.",
        errors.MethodNotAllowed("/v1/completions doesn't allow PUT.", headers={"Allow": "POST"}),
    ),
    ("The body arrived too slowly.", errors.RequestTimeout("The body did not arrive in time.")),
    ("The key has an active call with this stream_id.", errors.StreamExists("my-stream")),
    ("What comes after the event is no longer kept.", errors.StreamTrimmed(1200)),
    (
        "Another key has this name.",
        errors.KeyExists("A key named 'laptop' already exists.", param="name"),
    ),
    (
        "The key comes from SLUICE_KEYS, or the key file can't be changed.",
        errors.KeysReadOnly(
            "The key 'laptop' comes from SLUICE_KEYS; change that variable instead, and restart "
            "the server."
        ),
    ),
    ("Nobody could manage this server any more.", errors.LastAdminKey()),
    ("The key has changed since it was read.", errors.KeyChanged()),
    (
        "The body is larger than SLUICE_MAX_BODY, or a chat's than SLUICE_MAX_CHAT_BODY.",
        errors.RequestTooLarge("The body is larger than 1048576 bytes."),
    ),
    (
        "The Content-Type of the body is not JSON.",
        errors.UnsupportedMediaType(
            "The body is text/plain; expected JSON: send 'Content-Type: application/json'."
        ),
    ),
    (
        "A limit of the key or of the provider is reached.",
        errors.RateLimited("Try again in 12 s.", retry_after=12, details=LIMIT),
    ),
    ("The server has a bug; search its log for the request id.", errors.InternalError()),
    (
        "The process that ran the call died. Only as the last event of its stream, or its result.",
        errors.StreamInterrupted(),
    ),
    ("The provider failed.", errors.UpstreamError("openai failed.")),
    (
        "The server is overloaded or shutting down, or something that it needs is unavailable.",
        errors.Unavailable("Too many calls are active. Try again in a moment."),
    ),
    ("The provider took too long to respond.", errors.UpstreamTimeout("first_event", 60)),
)
UNSEEN = errors.ClientGone.code
"""A code that only the ledger contains, because its client has disconnected."""

CODES = tuple(error.code for _, error in SAMPLES)


def encoded(face: Face, error: SluiceError) -> dict[str, Any]:
    encode = openai.error_body if face == "openai" else native.error_body
    return encode(error, REQUEST_ID)


def examples() -> dict[str, Any]:
    return {
        f"{face}.{error.code}": {"summary": when, "value": encoded(face, error)}
        for face in ERROR_SCHEMAS
        for when, error in SAMPLES
    }


def responses(face: Face, *kinds: type[SluiceError]) -> dict[str, Any]:
    """Return an operation's error responses: those of `kinds`, and those that any path may have."""
    always: tuple[type[SluiceError], ...] = (errors.MethodNotAllowed, errors.InternalError)
    codes = {kind.code for kind in (*kinds, *always)}
    found: dict[str, Any] = {}
    for when, error in SAMPLES:
        if error.code not in codes:
            continue
        response = found.setdefault(str(error.status), response_of(face, error))
        response["description"] = f"{response['description']} {error.code}: {when}".strip()
        example = {"$ref": f"#/components/examples/{face}.{error.code}"}
        response["content"]["application/json"]["examples"][error.code] = example
    return found


def response_of(face: Face, error: SluiceError) -> dict[str, Any]:
    names = ["X-Request-ID", *sorted(name for name in error.headers if name != "x-should-retry")]
    schema = {"$ref": f"#/components/schemas/{ERROR_SCHEMAS[face]}"}
    return {
        "description": "",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {"application/json": {"schema": schema, "examples": {}}},
    }
