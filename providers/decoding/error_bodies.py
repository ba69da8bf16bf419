"""Decoding of the errors that providers report, in whichever shape.

- The module is pure.
- An error is classified by its status and code, never by the wording of its message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from errors import UpstreamError
from providers.decoding.lenient_json import NOT_JSON, sample
from providers.decoding.retry_after import retry_after


class ErrorBody(msgspec.Struct):
    """The message and code of an error body. A field is None if the body lacks it."""

    message: str | None = None
    code: str | None = None


def decode_error_body(body: bytes) -> ErrorBody:
    """Return the message and code of an error body. Both are None if the body isn't JSON."""
    try:
        data = msgspec.json.decode(body)
    except NOT_JSON:
        return ErrorBody()
    return decode_error(data)


def decode_error(data: Any) -> ErrorBody:
    """Return the message and code of a decoded error body.

    The known shapes are OpenAI's {"error": {...}}, {"error": "text"}, {"detail": ...},
    {"message": ...} and a plain string.
    """
    # Some hosts wrap the error in a list, FastAPI in a list inside an object: {"detail": [...]}.
    for _ in range(3):
        if isinstance(data, list) and data:
            data = data[0]
        elif isinstance(data, dict):
            inner = next((data[k] for k in ("error", "detail", "errors") if data.get(k)), None)
            if inner is None:
                break
            data = inner
    if isinstance(data, str):
        return ErrorBody(message=data)
    if not isinstance(data, dict):
        return ErrorBody()
    message = data.get("message") or data.get("msg")
    code = data.get("code") or data.get("type") or data.get("status")
    return ErrorBody(
        message=message if isinstance(message, str) else None,
        code=str(code) if isinstance(code, str | int) else None,
    )


# Responses with an error status


def refused_call(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """Return the error for a response whose status isn't 2xx.

    Args:
        headers: the response's headers, with their names in lower case.
    """
    found = decode_error_body(body)
    return UpstreamError(
        refusal_message(status),
        upstream_status=status,
        upstream_code=found.code,
        upstream_message=found.message or sample(body) or None,
        retry_after=retry_after(headers),
    )


def refusal_message(status: int) -> str:
    verb = "failed" if status >= 500 else "rejected the request"
    return f"The upstream {verb} with status {status}."


# Errors inside responses with status 200


def reported(value: Any) -> UpstreamError:
    """Return the error in a decoded value of any shape.

    A code between 400 and 599 also becomes the error's HTTP status.
    """
    if isinstance(value, dict) and isinstance(value.get("message"), str) and not value.get("error"):
        value = {"error": value}  # older vLLM sends a flat object with message and code
    found = decode_error(value)
    code = found.code
    status = int(code) if code and code.isdecimal() and len(code) == 3 else 0
    return UpstreamError(
        "The upstream reported an error in its response.",
        upstream_status=status if 400 <= status < 600 else None,
        upstream_code=code,
        upstream_message=found.message,
    )


def failure(data: bytes, statuses: Mapping[str, int]) -> UpstreamError:
    """Return the error in undecoded data of any shape.

    Args:
        data: JSON, or else plain text, which becomes the error's message.
        statuses: the HTTP status of each error code, for data that has a code but no status.
    """
    try:
        found = reported(msgspec.json.decode(data))
    except NOT_JSON:
        found = reported(sample(data))
    found.upstream_status = found.upstream_status or statuses.get(found.upstream_code or "")
    return found


def refuse_error(data: bytes, statuses: Mapping[str, int]) -> None:
    """Raise the error in an object that has an "error" or a message, such as {"detail": "..."}.

    Any other data is ignored. For `statuses` see `failure`.
    """
    try:
        value = msgspec.json.decode(data)
    except NOT_JSON:
        return
    if isinstance(value, dict) and (value.get("error") or decode_error(value).message):
        raise failure(data, statuses)


def broken_off() -> UpstreamError:
    """Return the error for a response that ended before its last event."""
    return UpstreamError("The upstream ended its response before the completion was finished.")
