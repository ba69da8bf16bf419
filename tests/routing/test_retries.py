"""retries.py: which failures are retried, after which wait, and how often."""

from __future__ import annotations

import msgspec
import pytest

from errors import InternalError, RateLimited, SluiceError, UpstreamError, UpstreamTimeout
from providers.base import Target
from providers.hosts import BUILT_IN
from routing.retries import (
    LONGEST_ASKED_S,
    MOST_SAVED,
    UNTOLD_WAIT_S,
    RetryBudget,
    asked,
    classify,
    delay,
)

TARGET = Target(BUILT_IN[1], "m")
BYOK = msgspec.structs.replace(TARGET, byok=True)
OTHER = Target(BUILT_IN[2], "m")


def upstream(status: int | None, wait: float | None = None, code: str | None = None) -> SluiceError:
    return UpstreamError("No.", upstream_status=status, retry_after=wait, upstream_code=code)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((upstream(status), True) for status in (None, 408, 429, 500, 502, 503, 504, 529)),
        *((upstream(status), False) for status in (400, 401, 402, 403, 404, 409, 413, 422, 501)),
        (upstream(429, code="insufficient_quota"), False),
        (UpstreamTimeout("connect", 1), True),
        (UpstreamTimeout("first_event", 1), False),
        (UpstreamTimeout("idle", 1), False),
        (InternalError(), False),
        (RateLimited("Ours.", retry_after=1), False),
    ],
    ids=lambda value: getattr(value, "upstream_status", value),
)
def test_only_temporary_failures_are_retried(error: SluiceError, expected: bool) -> None:
    assert classify(error).retry_same is expected


@pytest.mark.parametrize(
    ("number", "error", "least", "most"),
    [
        (1, upstream(500), 0, 0.25),
        (2, upstream(500), 0, 0.5),
        (9, upstream(500), 0, 8),
        (1, upstream(503, 3), 3, 3.25),
        (2, upstream(429, 0.5), 0.5, 1),
        (1, upstream(429), UNTOLD_WAIT_S, UNTOLD_WAIT_S + 0.25),
        (1, upstream(429, 0), 0, 0.25),
        (1, upstream(429, LONGEST_ASKED_S), LONGEST_ASKED_S, LONGEST_ASKED_S + 0.25),
    ],
)
def test_a_retry_delay_adds_random_backoff_to_the_requested_wait(
    monkeypatch: pytest.MonkeyPatch, number: int, error: SluiceError, least: float, most: float
) -> None:
    for pick, expected in ((min, least), (max, most)):
        monkeypatch.setattr(
            "routing.retries.random.uniform", lambda low, high, pick=pick: pick(low, high)
        )
        assert delay(number, error) == expected


def test_a_requested_wait_above_the_limit_gives_no_retry() -> None:
    assert delay(1, upstream(429, LONGEST_ASKED_S + 0.1)) is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [(upstream(500), 0), (upstream(429), UNTOLD_WAIT_S), (upstream(429, 0), 0),
     (upstream(503, 7), 7), (InternalError(), 0)],
)  # fmt: skip
def test_the_requested_wait_comes_from_retry_after_or_the_429_default(
    error: SluiceError, expected: float
) -> None:
    assert asked(error) == expected


def test_the_retry_budget_allows_a_fifth_of_the_calls_beyond_its_savings() -> None:
    budget = RetryBudget()
    taken = 0
    for _ in range(1000):
        budget.called(TARGET)
        taken += budget.take(TARGET)
    assert 200 <= taken <= 200 + MOST_SAVED
    assert not budget.take(TARGET)
    for _ in range(5):
        budget.called(TARGET)
    assert [budget.take(TARGET) for _ in "ab"] == [True, False]


def test_the_retry_budget_saves_up_to_a_limit() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.called(TARGET)
    assert sum(budget.take(TARGET) for _ in range(100)) == MOST_SAVED


def test_providers_and_byok_keys_have_separate_retry_budgets() -> None:
    budget = RetryBudget()
    while budget.take(BYOK):
        pass
    assert budget.take(TARGET)
    while budget.take(TARGET):
        pass
    assert budget.take(OTHER)
