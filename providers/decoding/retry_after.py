"""The delay that a provider requests before a retry, decoded from its response headers.

- A date is compared with the response's `date` header, so a wrong clock on either side doesn't
  matter. This machine's clock is read only for a time since 1970 in a response without that header.
- Some hosts send the time of the reset, in seconds or milliseconds since 1970, where a delay
  belongs. A number that is too large for a delay is taken as such a time.

Source: RFC 9110, section 10.2.3 (seconds or a date); `retry-after-ms` is OpenAI's (read 2026-11).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

EPOCH_S = 1e9
"""The smallest number that is a time since 1970. As a delay, it would be over thirty years."""
EPOCH_MS = 1e11
"""The smallest number that is a time since 1970 in milliseconds."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the delay in seconds, at least 0, or None. Header names must be in lower case."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        if (number := _number(headers.get(name))) is not None:
            return number / unit if number < EPOCH_S else _until(number, headers.get("date"))
    return _between(headers.get("date"), headers.get("retry-after"))


def _until(moment: float, date: str | None) -> float:
    """Return the seconds until a time since 1970, which is in seconds or in milliseconds."""
    moment = moment / 1000 if moment >= EPOCH_MS else moment
    try:
        now = parsedate_to_datetime(date or "").timestamp()
    except (ValueError, OverflowError):
        now = time.time()
    return min(max(0.0, moment - now), EPOCH_S)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _between(start: str | None, end: str | None) -> float | None:
    try:
        return max(
            0.0,
            (parsedate_to_datetime(end or "") - parsedate_to_datetime(start or "")).total_seconds(),
        )
    except (ValueError, TypeError):  # TypeError: only one of the dates has a time zone
        return None
