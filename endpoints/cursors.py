"""The cursors of lists that come in pages: a text of the list's own, in URL-safe base64."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping


def encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def decode(asked: Mapping[str, str]) -> str | None:
    """Return the text in the parameter `cursor`; None without that parameter, "" if it is invalid.

    Args:
        asked: the parameters of the request's query.
    """
    text = asked.get("cursor")
    if text is None:
        return None
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):  # ValueError: not ASCII, or not UTF-8 once decoded
        return ""
