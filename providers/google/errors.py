"""What the Gemini API says when it refuses or fails.

An error is {"error": {"code": HTTP status, "status": a word, "message": prose, "details": [...]}},
in a list where JSON was streamed. Rules that hold here: pure; by status and code, never by prose. A
refused key is a 400 here, known by its reason alone; it counts as a 401.

Source: google.rpc.Status with its ErrorInfo and RetryInfo, as AIP-193 has them (read 2026-11).
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from errors import UpstreamError
from providers.decoding.error_bodies import decode_error
from providers.decoding.lenient_json import NOT_JSON

KEY_REASONS: Final = "API_KEY_"
"""What the reasons of a key's refusal begin with: API_KEY_INVALID, API_KEY_SERVICE_BLOCKED, ..."""
UNAUTHORIZED: Final = (401, 403)

DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)s")
BARE: Final = re.compile(rb"(?:\A|(?<=[\r\n]))[\[{]")
"""Where a line begins as JSON does."""


def reported(value: Any) -> UpstreamError:
    """The error in a decoded body that should have been an answer."""
    return failure("The upstream reported an error instead of an answer.", value)


def failure(message: str, value: Any, status: int | None = None) -> UpstreamError:
    """An error in our words with Google's. status: HTTP's; None: what the body says counts."""
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
    """The error that stands at a stream's end as lines of its own, outside any event: one that
    came late is written so. None if there is none."""
    for match in BARE.finditer(end):
        try:
            value = msgspec.json.decode(end[match.start() :])
        except NOT_JSON:
            continue
        return value if _error(value) else None
    return None


def _error(value: Any) -> dict[str, Any]:
    """The object with code, status and details, of whatever is wrapped around it."""
    if isinstance(value, list) and value:
        value = value[0]
    inner = value.get("error") if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def _status(code: Any) -> int | None:
    return code if isinstance(code, int) and 400 <= code < 600 else None


def _delay(detail: dict[str, Any]) -> float | None:
    """RetryInfo's delay in seconds."""
    delay = detail.get("retryDelay")
    match = DURATION.fullmatch(delay) if isinstance(delay, str) else None
    return float(match[1]) if match else None
