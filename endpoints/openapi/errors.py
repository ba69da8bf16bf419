"""The errors in the OpenAPI document: one sample of each code, as each face encodes it.

Rules that hold here: a sample is an error of the tree, encoded by the faces' own functions; an
operation names the classes that it raises, and nothing else about them.
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
        "The body, a field or a value is not what this takes.",
        errors.InvalidRequest(
            "temperature: got 3; it takes a number from 0 to 2.", param="temperature"
        ),
    ),
    (
        "It would change the result, and the target can't do it.",
        errors.UnsupportedParameter("suffix can't be had from local/pydoc.", param="suffix"),
    ),
    ("No key, or an unknown, disabled or expired one.", errors.Unauthorized(key_sent=True)),
    (
        "The key's budget is spent.",
        errors.InsufficientCredits("The budget of this key is spent."),
    ),
    (
        "The model is not on the key's list.",
        errors.ModelForbidden("This key may not use openai/gpt-4o-mini.", param="model"),
    ),
    (
        "The provider refused the caller's own key.",
        errors.ByokRejected("openai refused the key in byok_api_key.", param="byok_api_key"),
    ),
    ("Nothing is at this path.", errors.NotFound("Nothing is at this path.")),
    (
        "There is no such provider.",
        errors.ProviderNotFound("Provider 'nobody' was not found.", param="provider"),
    ),
    (
        "There is no such model.",
        errors.ModelNotFound("Model 'nothing' was not found.", param="model"),
    ),
    (
        "The caller has no such call under way.",
        errors.StreamNotFound("Stream 'my-stream' was not found."),
    ),
    (
        "The path doesn't take this method.",
        errors.MethodNotAllowed("/v1/completions doesn't take PUT.", headers={"Allow": "POST"}),
    ),
    ("The body came too slowly.", errors.RequestTimeout("The body did not arrive in time.")),
    ("The key has a call of this stream_id under way.", errors.StreamExists("my-stream")),
    (
        "The body is larger than SLUICE_MAX_BODY.",
        errors.RequestTooLarge("The body is larger than 1048576 bytes."),
    ),
    (
        "The body is not JSON by its Content-Type.",
        errors.UnsupportedMediaType(
            "The body is text/plain; this takes JSON: send 'Content-Type: application/json'."
        ),
    ),
    (
        "A limit of the key or of the provider is reached.",
        errors.RateLimited("Try again in 12 seconds.", retry_after=12, details=LIMIT),
    ),
    ("A defect of the server; its log has the request id.", errors.InternalError()),
    ("The provider failed.", errors.UpstreamError("openai failed.")),
    (
        "Overloaded, shutting down, or what is shared is away.",
        errors.Unavailable("Too many calls are under way. Try again in a second."),
    ),
    ("The provider kept silent for too long.", errors.UpstreamTimeout("first_event", 60)),
)
UNSEEN = errors.ClientGone.code
"""It stands in the ledger only: nobody is there to read it."""

CODES = tuple(error.code for _, error in SAMPLES)


def encoded(face: Face, error: SluiceError) -> dict[str, Any]:
    encode = openai.error_body if face == "openai" else native.error_body
    return encode(error, REQUEST_ID)


def examples() -> dict[str, Any]:
    """components.examples: each error in both faces."""
    return {
        f"{face}.{error.code}": {"summary": when, "value": encoded(face, error)}
        for face in ERROR_SCHEMAS
        for when, error in SAMPLES
    }


def responses(face: Face, *kinds: type[SluiceError]) -> dict[str, Any]:
    """The responses of an operation that raises these, beside those that any request may meet."""
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
