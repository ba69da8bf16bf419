"""The endpoints that follow resumable streams, in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final, get_args

import errors as e
from endpoints.openapi import schemas
from endpoints.openapi.errors import Face, responses
from endpoints.openapi.headers import LIMITS
from endpoints.openapi.operations import Part, ok, operation
from endpoints.openapi.schemas import COUNT, MOMENT, TEXT, Schema, closed, nullable, ref
from streams.replay import State

PATHS: Final[tuple[tuple[str, Face], ...]] = (
    ("/api/v1/completions", "native"),
    ("/v1/completions", "openai"),
    ("/api/v1/chat/completions", "native"),
    ("/v1/chat/completions", "openai"),
    ("/v1/fim/completions", "openai"),
    ("/fim/completions", "openai"),
    ("/beta/completions", "openai"),
    ("/infill", "openai"),
    ("/v1/infill", "openai"),
    ("/completion", "openai"),
    ("/completions", "openai"),
)
STATE: Final[dict[str, Any]] = {
    "stream_id": "my-stream",
    "request_id": "550e8400-e29b-41d4-a716-446655440000",
    "status": "in_progress",
    "provider": "openai",
    "model": "gpt-4o-mini",
    "created_at": "2026-04-07T12:00:00Z",
    "last_event_id": 17,
    "expires_at": None,
}
STREAM: Final = (
    'id: 18\ndata: {"type":"content","data":"Semi","provider":"openai","choices":[{"text":"Semi",'
    '"delta":{"content":"Semi"},"index":0,"finish_reason":null}]}\n\n'
    "id: 21\ndata: [DONE]\n\n"
)
MEANINGS: Final = {
    "stream_id": "The stream's id.",
    "request_id": "The request's id.",
    "status": "The state of the call. interrupted: the server shut down or died.",
    "provider": "The provider that serves the call.",
    "model": "The provider's name for the model.",
    "created_at": "When the call started.",
    "last_event_id": "The id of the newest event; 0 if there is none.",
    "expires_at": "When the stream is dropped. null while it is active.",
    "result": "The whole answer in the face's format, or its error. Only once the call has ended.",
}


def headers(*names: str) -> Part:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def accepted() -> Part:
    """Return the response to a background call."""
    found = ok(ref("StreamState"), STATE, "Location", "X-Stream-ID", "X-Sluice-Resumable", *LIMITS)
    return found | {"description": "The call runs in the background."}


def follow(path: str, face: Face) -> Part:
    """Return the operation that follows a stream whose call was made at a path."""
    found = ok(ref("StreamState"), STATE, "X-Stream-ID", "X-Sluice-Resumable", *LIMITS)
    found["description"] = "The state; or with stream=true, the events that were missed, then live."
    found["content"]["text/event-stream"] = {"example": STREAM}
    seen: Part = {
        "description": "All events were seen.",
        "headers": headers("X-Request-ID", "X-Stream-ID", "X-Sluice-Resumable", *LIMITS),
        "content": {},
    }
    kinds = (
        *(e.InvalidRequest, e.Unauthorized, e.StreamNotFound, e.StreamTrimmed, e.RateLimited),
        *(e.Unavailable, e.StreamInterrupted),
    )
    words = "".join(part.title() for part in path.strip("/").split("/"))
    number: Schema = {"type": "integer", "minimum": 0}
    return operation(
        f"follow{words}",
        "Completions",
        "Follow a resumable stream, or get its state and its result",
        {"200": found, "204": seen} | responses(face, *kinds),
        parameters=[
            {"name": "stream_id", "in": "path", "required": True}
            | {"schema": {"type": "string", "minLength": 1}, "example": "my-stream"},
            {"name": "stream", "in": "query", "schema": schemas.enum("true", "false")}
            | {"description": "true: send events. Without it, the header Accept decides."},
            {"name": "starting_after", "in": "query", "schema": number}
            | {"description": "The id of the last event that you have. It wins over the header."},
            {"name": "Last-Event-ID", "in": "header", "schema": number}
            | {"description": "The id of the last event that you have."},
        ],
    )


def gets() -> dict[str, Part]:
    return {path + "/{stream_id}": follow(path, face) for path, face in PATHS}


def state_schema() -> dict[str, Schema]:
    known: Schema = {
        "stream_id": TEXT,
        "request_id": TEXT,
        "status": schemas.enum(*get_args(State)),
        "provider": TEXT,
        "model": TEXT,
        "created_at": MOMENT,
        "last_event_id": COUNT,
        "expires_at": nullable(MOMENT),
    }
    return {"StreamState": closed(known, {"result": {}})}
