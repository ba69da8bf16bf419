"""Decoding of the Gemini API's errors.

An error is {"error": {"code": HTTP status, "status": a name, "message": text, "details": [...]}}.
If JSON was streamed, the error is inside a list.

- The module is pure.
- An error is classified by its status and code, never by the wording of its message.
- An invalid key is reported with status 400, and only its reason identifies it. It is converted to
  status 401.

Source: google.rpc.Status with ErrorInfo and RetryInfo, as AIP-193 defines them (read 2026-11).
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from errors import UpstreamError
from providers.decoding.error_bodies import decode_error
from providers.decoding.lenient_json import NOT_JSON, sample

KEY_REASONS: Final = "API_KEY_"
"""The prefix of the reasons for rejecting a key: API_KEY_INVALID, API_KEY_SERVICE_BLOCKED, ..."""
UNAUTHORIZED: Final = (401, 403)

DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)s")
BARE: Final = re.compile(rb"(?:\A|(?<=[\r\n]))[\[{]")
"""The start of a line that looks like JSON."""


def reported(value: Any) -> UpstreamError:
    """Return the error in the decoded body of a response with status 200."""
    return failure("The upstream reported an error in its response.", value)


def reported_in(data: bytes) -> UpstreamError:
    """Return the error in the undecoded data of an error event: JSON, or else plain text."""
    try:
        value = msgspec.json.decode(data)
    except NOT_JSON:
        value = sample(data)
    flat = isinstance(value, dict) and not value.get("error")
    return reported({"error": value} if flat else value)


def failure(message: str, value: Any, status: int | None = None) -> UpstreamError:
    """Return an error with the status, code, message and delay from a decoded body.

    Args:
        message: Sluice's message for the error.
        value: the decoded body.
        status: the HTTP status. None takes the status from the body.
    """
    body = _error(value)
    details = [entry for entry in body.get("details") or () if isinstance(entry, dict)]
    reason = next((r for entry in details if isinstance(r := entry.get("reason"), str)), "")
    word = body.get("status")
    status = status or _status(body.get("code"))
    if reason.startswith(KEY_REASONS):
        word = reason
        status = status if status in UNAUTHORIZED else 401
    found = decode_error(value)
    return UpstreamError(
        message,
        upstream_status=status,
        upstream_code=word if isinstance(word, str) and word else found.code,
        upstream_message=found.message,
        retry_after=next((s for e in details if (s := _delay(e)) is not None), None),
    )


def bare(end: bytes) -> Any:
    """Return the decoded error at the end of a stream, or None if there is none.

    Google sends a late error on separate lines, outside any event.
    """
    for match in BARE.finditer(end):
        try:
            value = msgspec.json.decode(end[match.start() :])
        except NOT_JSON:
            continue
        return value if _error(value) else None
    return None


def _error(value: Any) -> dict[str, Any]:
    """Return the object with code, status and details, or {} if there is none."""
    if isinstance(value, list) and value:
        value = value[0]
    inner = value.get("error") if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _status(code: Any) -> int | None:
    return code if isinstance(code, int) and 400 <= code < 600 else None


def _delay(detail: dict[str, Any]) -> float | None:
    """Return the delay of a RetryInfo in seconds, or None for other details."""
    delay = detail.get("retryDelay")
    match = DURATION.fullmatch(delay) if isinstance(delay, str) else None
    return float(match[1]) if match else None
