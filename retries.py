"""When a call is made again: what is worth it, how long to wait, and how many of them there may be.

Rules that hold here: no I/O. A refused request is never retried. Retries are a share of the calls,
so that a provider in trouble is not hammered.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict

from errors import SluiceError, UpstreamError, UpstreamTimeout
from failures import RETRYABLE

FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 8.0
LONGEST_ASKED_S = 20.0
"""A provider that asks for a longer wait is not waited for."""
SHARE = 0.2
MOST_SAVED = 10.0
"""Retries that a provider may have at first, or after a long time without any."""


class RetryBudget:
    """How many retries each provider may still have: SHARE of the calls to it, and what was saved
    of that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._saved: defaultdict[str, float] = defaultdict(lambda: MOST_SAVED)

    def called(self, provider: str) -> None:
        with self._lock:
            self._saved[provider] = min(MOST_SAVED, self._saved[provider] + SHARE)

    def take(self, provider: str) -> bool:
        """Whether there may be one more."""
        with self._lock:
            if self._saved[provider] < 1:
                return False
            self._saved[provider] -= 1
            return True


def worth_it(error: SluiceError) -> bool:
    """Whether the same call to the same host may do better in a moment."""
    if isinstance(error, UpstreamTimeout):
        return error.phase == "connect"
    status = error.upstream_status if isinstance(error, UpstreamError) else 0
    return status is None or status in RETRYABLE


def delay(number: int, error: SluiceError) -> float | None:
    """Seconds before retry `number`, from 1: exponential, with full jitter; at least what the
    provider asked for. None: it asked for more than a caller would wait."""
    asked = (error.retry_after if isinstance(error, UpstreamError) else None) or 0.0
    if asked > LONGEST_ASKED_S:
        return None
    longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (number - 1))
    return asked + random.uniform(0, longest)  # noqa: S311
