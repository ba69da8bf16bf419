"""Errors of providers: what an error body says, in whichever shape it comes.

- It is pure.
- An error is classified by its status and code, never by the prose of its message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from errors import UpstreamError
from providers.decoding.lenient_json import NOT_JSON, sample
from providers.decoding.retry_after import retry_after


class ErrorBody(msgspec.Struct):
    """The message and code of an error body: OpenAI's {"error": {...}}, {"error": "text"},
    {"detail": ...}, {"message": ...}, or a body that is not JSON."""

    message: str | None = None
    code: str | None = None


def decode_error_body(body: bytes) -> ErrorBody:
    """Return the message and code of an error body; fields that it lacks are None."""
    try:
        data = msgspec.json.decode(body)
    except NOT_JSON:
        return ErrorBody()
    return decode_error(data)


def decode_error(data: Any) -> ErrorBody:
    """Return the message and code of an error body that is decoded already."""
    for _ in range(3):  # some hosts wrap it in a list, and FastAPI's {"detail": [...]} in both
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


# A response with an error status


def refused_call(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """Return the error for a response other than 2xx. Header names are in lower case."""
    found = decode_error_body(body)
    return UpstreamError(
        refusal_message(status),
        upstream_status=status,
        upstream_code=found.code,
        upstream_message=found.message or sample(body) or None,
        retry_after=retry_after(headers),
    )


def refusal_message(status: int) -> str:
    """Return our own message for a response other than 2xx."""
    verb = "failed" if status >= 500 else "refused the call"
    return f"The upstream {verb} with status {status}."


# An error inside a response with status 200


def reported(value: Any) -> UpstreamError:
    """Return the error in a decoded object or text of any shape. Its code may be a status."""
    if isinstance(value, dict) and isinstance(value.get("message"), str) and not value.get("error"):
        value = {"error": value}  # flat, as in older vLLM: the code stands beside the message
    found = decode_error(value)
    code = found.code
    status = int(code) if code and code.isdecimal() and len(code) == 3 else 0
    return UpstreamError(
        "The upstream reported an error instead of an answer.",
        upstream_status=status if 400 <= status < 600 else None,
        upstream_code=code,
        upstream_message=found.message,
    )


def failure(data: bytes, statuses: Mapping[str, int]) -> UpstreamError:
    """Return the error in some data of any shape.

    Args:
        statuses: the HTTP status that a code stands for when it comes with a status of 200.
    """
    try:
        found = reported(msgspec.json.decode(data))
    except NOT_JSON:
        found = reported(sample(data))
    found.upstream_status = found.upstream_status or statuses.get(found.upstream_code or "")
    return found


def refuse_error(data: bytes, statuses: Mapping[str, int]) -> None:
    """Raise the error in an object that has an error, or a message such as {"detail": "..."}.

    Other objects are ignored. statuses: as in `failure`.
    """
    try:
        value = msgspec.json.decode(data)
    except NOT_JSON:
        return
    if isinstance(value, dict) and (value.get("error") or decode_error(value).message):
        raise failure(data, statuses)


def broken_off() -> UpstreamError:
    """Return the error for an answer that ended before its last event."""
    return UpstreamError("The upstream's answer ended before its end.")
