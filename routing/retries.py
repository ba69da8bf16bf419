"""The retry policy: whether, where and when a call is tried again after a failed attempt.

- `classify` decides from one table, only by status and error code, never by the message.
- A refused request is never retried.
- The number of retries is a share of the number of calls, so that retries don't flood a failing
  provider.
- The module does no I/O.
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
"""The longest Retry-After that is honoured. If a provider asks for more, there is no retry."""
UNTOLD_WAIT_S = 1.0
"""The wait after a 429 without a Retry-After."""
SHARE = 0.2
"""The number of retries that each call earns for its provider."""
SLACK = 1e-9  # despite rounding, five shares must add up to a retry
MOST_SAVED = 10.0
"""The initial and the maximum number of saved retries of a provider."""


class RetryBudget:
    """The number of retries that each provider may still get.

    Each call to a provider earns SHARE of a retry. Unused retries are saved, up to MOST_SAVED.
    Calls with BYOK keys have a separate budget.
    """

    def __init__(self) -> None:
        self._lock = BriefLock()
        self._saved: defaultdict[tuple[str, bool], float] = defaultdict(lambda: MOST_SAVED)

    def called(self, target: Target) -> None:
        """Count a call that isn't a retry."""
        budget = (target.provider.name, target.byok)
        with self._lock:
            self._saved[budget] = min(MOST_SAVED, self._saved[budget] + SHARE)

    def take(self, target: Target) -> bool:
        """Take a retry from the budget. Return False if none is left."""
        budget = (target.provider.name, target.byok)
        with self._lock:
            if self._saved[budget] < 1 - SLACK:
                return False
            self._saved[budget] -= 1
            return True


class Verdict(NamedTuple):
    """The consequences of a failed attempt.

    Attributes:
        retry_same: whether a retry at the same target may succeed in a moment.
        try_next: whether another target may succeed.
        cools: what must cool down: nothing, the target, or (after a 429) the credential for the
            target's model, and for all models if another one is limited too.
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
    501: ELSEWHERE,
}
"""The verdicts by the provider's status. None means that there was no response, or that the
provider closed the connection too early. 501 means that the host lacks a feature that the request
needs. Any other status is REFUSED."""


def classify(error: SluiceError) -> Verdict:
    if isinstance(error, UpstreamTimeout):
        return FAILED if error.phase == "connect" else FAILED_FOR_NOW
    if isinstance(error, UpstreamError):
        if error.unsupported is not None:
            return ELSEWHERE
        verdict = VERDICTS.get(error.upstream_status, REFUSED)
        exhausted = error.upstream_code in EXHAUSTED  # a wait doesn't add credit to an account
        return verdict._replace(retry_same=False) if exhausted else verdict
    # The circuit breaker is open or the credential is waiting after a 429: nothing was sent.
    return ELSEWHERE if isinstance(error, RateLimited | Unavailable) else REFUSED


HOST_REASONS: Final = frozenset(
    (
        *("refused", "reset", "timed_out", "name_not_found", "unreachable"),
        *("tls", "certificate", "invalid_url"),
    )
)
"""The reasons in providers/transport/reasons.py for which a host can't be reached at all. The rest,
such as too many open files, may be this process's own fault."""


def unreachable(error: SluiceError) -> bool:
    """Return True if no connection to the target's own host could be made."""
    if isinstance(error, UpstreamTimeout):
        return error.phase == "connect"
    return isinstance(error, UpstreamError) and error.reason in HOST_REASONS


def lost(error: SluiceError) -> bool:
    """Return True if a connection broke, or the response made no sense."""
    no_answer = isinstance(error, UpstreamError) and error.upstream_status is None
    return no_answer and classify(error) == FAILED and not unreachable(error)


def asked(error: SluiceError) -> float:
    """Return the seconds that the provider asked to wait, or 0 if it didn't ask.

    A 429 without a Retry-After counts as UNTOLD_WAIT_S.
    """
    if isinstance(error, UpstreamError) and error.retry_after is not None:
        return error.retry_after
    return UNTOLD_WAIT_S if classify(error).cools == "credential" else 0.0


def delay(number: int, error: SluiceError) -> float | None:
    """Return the seconds to wait before a retry: what the provider asked for, plus the back-off.

    The back-off is exponential with full jitter.

    Args:
        number: the number of the retry, from 1.
        error: the error of the last attempt.

    Returns:
        None if the provider asked for more than LONGEST_ASKED_S.
    """
    least = asked(error)
    if least > LONGEST_ASKED_S:
        return None
    longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (number - 1))
    return least + random.uniform(0, longest)  # noqa: S311
