"""The errors of Bedrock.

- It is pure.
- An error is known by the name of its type, wherever that stands: in a header, in __type, in a
  frame.

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
"""The HTTP status that an error's type (in lower case) stands for, whatever status it came with."""


def reported(value: Any, kind: object) -> UpstreamError:
    """Return the error that arrived instead of an answer."""
    return failure("The upstream reported an error instead of an answer.", value, kind)


def failure(message: str, value: Any, kind: object, status: int | None = None) -> UpstreamError:
    """Return an error with our message, and with the type and message of Amazon's.

    Args:
        kind: its type, perhaps with a namespace before a # and a URL after a colon.
        status: the HTTP status, if it has one.
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
    """Raise the error in an object that is not an answer. Other objects are ignored."""
    value = decode_value(body)
    if isinstance(value, dict) and isinstance(value.get("Output"), dict):
        value = value["Output"]  # the shape of the error for an unknown path
    if _first(value, "__type", "message", "Message"):
        raise reported(value, None)


def _first(value: Any, *names: str) -> str | None:
    """Return the first of the fields that is a text and not empty."""
    found = (value.get(name) for name in names) if isinstance(value, dict) else ()
    return next((text for text in found if isinstance(text, str) and text), None)


def decode_value(data: bytes) -> Any:
    """Return the value of some JSON, or None."""
    try:
        return msgspec.json.decode(data)
    except NOT_JSON:
        return None
