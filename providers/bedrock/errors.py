"""Decoding of Bedrock's errors.

- The module is pure.
- An error is classified by the name of its type, which is in an HTTP header, in the field __type or
  in a frame's header.

Source: Amazon Bedrock API reference, "Common errors" and the errors of Converse (read 2026-11).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from errors import UpstreamError
from providers.decoding.lenient_json import NOT_JSON

STATUSES: Final = {
    **dict.fromkeys(("validationexception", "serializationexception"), 400),
    **dict.fromkeys(
        (
            *("accessdeniedexception", "unrecognizedclientexception", "invalidsignatureexception"),
            *("expiredtokenexception", "invalidclienttokenid", "missingauthenticationtoken"),
            *("missingauthenticationtokenexception", "incompletesignatureexception"),
            *("incompletesignature", "notauthorized", "optinrequired", "requestexpired"),
        ),
        403,
    ),
    **dict.fromkeys(("resourcenotfoundexception", "unknownoperationexception"), 404),
    "modeltimeoutexception": 408,
    **dict.fromkeys(("modelerrorexception", "modelstreamerrorexception"), 424),
    **dict.fromkeys(
        ("throttlingexception", "servicequotaexceededexception", "modelnotreadyexception"), 429
    ),
    **dict.fromkeys(("internalserverexception", "internalfailure"), 500),
    **dict.fromkeys(("serviceunavailableexception", "serviceunavailable"), 503),
}
"""The HTTP status of each error type, in lower case. It overrides the status of the response."""


def reported(value: Any, kind: object) -> UpstreamError:
    """Return the error in a response with status 200."""
    return failure("The upstream reported an error in its response.", value, kind)


def failure(message: str, value: Any, kind: object, status: int | None = None) -> UpstreamError:
    """Return an error with the type and message from a decoded body.

    Args:
        message: Sluice's message for the error.
        value: the decoded body.
        kind: the error's type, perhaps with a namespace before a # and a URL after a colon. If it
            is empty or not a string, the type is taken from the body.
        status: the HTTP status of the response. None for an error in a response with status 200.
    """
    body = value if isinstance(value, dict) else {}
    name = kind if isinstance(kind, str) and kind else _first(body, "__type", "code")
    name = name and name.partition(":")[0].rpartition("#")[2]
    original = body.get("originalStatusCode")
    if isinstance(original, int) and 400 <= original < 600:
        status = original
    else:
        status = STATUSES.get((name or "").lower(), status)
    return UpstreamError(
        message,
        upstream_status=status,
        upstream_code=name or None,
        upstream_message=_first(body, "message", "Message", "originalMessage"),
    )


def refuse_error(body: bytes) -> None:
    """Raise the error in a body that isn't a completion. Bodies without an error are ignored."""
    value = decode_value(body)
    if isinstance(value, dict) and isinstance(value.get("Output"), dict):
        value = value["Output"]  # an error for an unknown path has this shape
    if _first(value, "__type", "message", "Message"):
        raise reported(value, None)


def _first(value: Any, *names: str) -> str | None:
    """Return the first of the named fields that is a non-empty string."""
    found = (value.get(name) for name in names) if isinstance(value, dict) else ()
    return next((text for text in found if isinstance(text, str) and text), None)


def decode_value(data: bytes) -> Any:
    """Decode JSON. Return None if the data isn't JSON."""
    try:
        return msgspec.json.decode(data)
    except NOT_JSON:
        return None
