"""The parts of operations in the OpenAPI document."""

from __future__ import annotations

from typing import Any

import errors as e

Part = dict[str, Any]

COMPLETION_ERRORS = (
    *(e.InvalidRequest, e.UnsupportedParameter, e.Unauthorized, e.InsufficientCredits),
    *(e.ModelForbidden, e.ByokRejected, e.ProviderNotFound, e.ModelNotFound, e.RequestTimeout),
    *(e.StreamExists, e.RequestTooLarge, e.UnsupportedMediaType, e.RateLimited),
    *(e.UpstreamError, e.Unavailable, e.UpstreamTimeout),
)


def ok(schema: Part | None, example: Any, *headers: str, media: str = "application/json") -> Part:
    content = ({} if schema is None else {"schema": schema}) | {"example": example}
    return {
        "description": "Success.",
        "headers": {n: {"$ref": f"#/components/headers/{n}"} for n in ("X-Request-ID", *headers)},
        "content": {media: content},
    }


def operation(id_: str, tag: str, summary: str, answers: Part, **more: Any) -> Part:
    return {"operationId": id_, "tags": [tag], "summary": summary, "responses": answers} | more
