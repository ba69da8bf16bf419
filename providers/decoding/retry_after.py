"""The delay that a provider requests before a retry, decoded from its response headers.

- The module is pure and reads no clock. A date is compared with the response's `date`
  header, so a wrong clock on either side doesn't matter.

Source: RFC 9110, section 10.2.3 (seconds or a date); `retry-after-ms` is OpenAI's (read 2026-11).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

MOST_S = 1e9


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the delay in seconds, at least 0, or None. Header names must be in lower case."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None:
        return seconds
    return _between(headers.get("date"), value)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return min(max(0.0, number), MOST_S) if math.isfinite(number) else None


def _between(start: str | None, end: str | None) -> float | None:
    try:
        return max(
            0.0,
            (parsedate_to_datetime(end or "") - parsedate_to_datetime(start or "")).total_seconds(),
        )
    except (ValueError, TypeError):  # TypeError: only one of the dates has a time zone
        return None
