"""When a call is made again: what is worth it, how long to wait, and how many of them there may be.

Rules that hold here: no I/O. A refused request is never retried. Retries are a share of the calls,
so that a provider in trouble is not hammered.
"""

from __future__ import annotations

import random
from collections import defaultdict

from concurrency.native import BriefLock
from errors import SluiceError, UpstreamError, UpstreamTimeout
from providers.base import Target
from routing.upstream_errors import EXHAUSTED

FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 8.0
LONGEST_ASKED_S = 20.0
"""A provider that asks for a longer wait is not waited for."""
UNTOLD_WAIT_S = 1.0
"""What a 429 that doesn't say how long asks for."""
PASSING = frozenset((408, 429, 500, 502, 503, 504, 529))
SHARE = 0.2
SLACK = 1e-9  # five shares are one retry, whatever their sum rounds to
MOST_SAVED = 10.0
"""Retries that a provider may have at first, or after a long time without any."""


class RetryBudget:
    """How many retries each provider may still have: SHARE of the calls to it, and what was saved
    of that. Calls with callers' own keys count by themselves."""

    def __init__(self) -> None:
        self._lock = BriefLock()
        self._saved: defaultdict[tuple[str, bool], float] = defaultdict(lambda: MOST_SAVED)

    def called(self, target: Target) -> None:
        """There is a call, which isn't a retry."""
        place = (target.provider.name, target.byok)
        with self._lock:
            self._saved[place] = min(MOST_SAVED, self._saved[place] + SHARE)

    def take(self, target: Target) -> bool:
        """Whether there may be one more."""
        place = (target.provider.name, target.byok)
        with self._lock:
            if self._saved[place] < 1 - SLACK:
                return False
            self._saved[place] -= 1
            return True


def worth_it(error: SluiceError) -> bool:
    """Whether the same call to the same host may do better in a moment."""
    if isinstance(error, UpstreamTimeout):
        return error.phase == "connect"
    if not isinstance(error, UpstreamError) or error.upstream_code in EXHAUSTED:
        return False
    return error.upstream_status is None or error.upstream_status in PASSING


def limits(error: SluiceError) -> bool:
    """Whether it is about the credential: its host limits how often it may be used."""
    return isinstance(error, UpstreamError) and error.upstream_status == 429


def asked(error: SluiceError) -> float:
    """Seconds that the provider asked to wait; 0: it didn't."""
    if isinstance(error, UpstreamError) and error.retry_after is not None:
        return error.retry_after
    return UNTOLD_WAIT_S if limits(error) else 0.0


def delay(number: int, error: SluiceError) -> float | None:
    """Seconds before retry `number`, from 1: exponential, with full jitter; at least what the
    provider asked for. None: it asked for more than a caller would wait."""
    least = asked(error)
    if least > LONGEST_ASKED_S:
        return None
    longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (number - 1))
    return least + random.uniform(0, longest)  # noqa: S311
