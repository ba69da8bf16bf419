"""What follows a failed attempt: whether the call is made again, where, when, and how often.

- `classify` decides, by status and code alone, in one table.
- No I/O. A refused request is never retried.
- Retries are a share of the calls, so that a failing provider is not flooded.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Final, Literal, NamedTuple

from concurrency.native import BriefLock
from errors import RateLimited, SluiceError, Unavailable, UpstreamError, UpstreamTimeout
from providers.base import Target
from routing.upstream_errors import EXHAUSTED

FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 8.0
LONGEST_ASKED_S = 20.0
"""A provider that asks for a longer wait gets no retry."""
UNTOLD_WAIT_S = 1.0
"""The wait after a 429 that doesn't say how long."""
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


class Verdict(NamedTuple):
    """What follows a failed attempt.

    retry_same: the same call to the same host may succeed in a moment.
    try_next: another target may succeed.
    cools: what must not be called for a while.
    """

    retry_same: bool
    try_next: bool
    cools: Literal["nothing", "target", "credential"]


REFUSED: Final = Verdict(retry_same=False, try_next=False, cools="nothing")
ELSEWHERE: Final = Verdict(retry_same=False, try_next=True, cools="nothing")
FAILED: Final = Verdict(retry_same=True, try_next=True, cools="target")
FAILED_FOR_NOW: Final = Verdict(retry_same=False, try_next=True, cools="target")
LIMITED: Final = Verdict(retry_same=True, try_next=True, cools="credential")

VERDICTS: Final[dict[int | None, Verdict]] = {
    **dict.fromkeys((None, 408, 500, 502, 503, 504, 529), FAILED),
    **dict.fromkeys((409, 424, 425), FAILED_FOR_NOW),
    429: LIMITED,
}
"""By the status that a provider answered with; None: it never answered, or broke off. Any other
status is REFUSED."""


def classify(error: SluiceError) -> Verdict:
    """Return what follows an attempt that failed with this error."""
    if isinstance(error, UpstreamTimeout):
        return FAILED if error.phase == "connect" else FAILED_FOR_NOW
    if isinstance(error, UpstreamError):
        verdict = VERDICTS.get(error.upstream_status, REFUSED)
        exhausted = error.upstream_code in EXHAUSTED  # no waiting gives an account credit
        return verdict._replace(retry_same=False) if exhausted else verdict
    # An open circuit, or a credential that a 429 holds for: nothing was sent.
    return ELSEWHERE if isinstance(error, RateLimited | Unavailable) else REFUSED


def asked(error: SluiceError) -> float:
    """Return the seconds that the provider asked to wait; 0: it didn't ask."""
    if isinstance(error, UpstreamError) and error.retry_after is not None:
        return error.retry_after
    return UNTOLD_WAIT_S if classify(error).cools == "credential" else 0.0


def delay(number: int, error: SluiceError) -> float | None:
    """Return the seconds before retry `number`, which counts from 1: exponential, with full jitter,
    and at least what the provider asked for. None: it asked for more than a caller would wait."""
    least = asked(error)
    if least > LONGEST_ASKED_S:
        return None
    longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (number - 1))
    return least + random.uniform(0, longest)  # noqa: S311
