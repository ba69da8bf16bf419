"""Tests of quota/quota.py and quota/memory.py, with a clock that the tests set."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from datetime import UTC, datetime
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from completion import CompletionRequest, SourceFile
from errors import RateLimited
from keys.key import LIMITS, Key
from ledger.entries import Budget, Claim
from ledger.pricing import FREE, MTOK, Price, Rate
from quota import quota as quota_module
from quota.demand import TEMPLATE_TOKENS, Demand, demand_of
from quota.memory import HOUR, Hold
from quota.quota import Quota, ask_for, budget_of, wait_for
from tests.gateway.test_gateway import a_key
from tests.support.ledgers import at_once

START = 1_800_000_000.0
"""The time at which each test starts, which is also the start of a clock hour."""
RESERVE = 1024


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "time", found)
    return found


@pytest.fixture
def quota(clock: Clock) -> Quota:
    return Quota(RESERVE)


def demand(tokens: int, output: int | None = 0, **more: Any) -> Demand:
    return Demand(tokens, tokens, output, **more)


def refused(quota: Quota, key: Key, wanted: Demand) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        quota.admit(key, wanted)
    return caught.value


def remaining(quota: Quota, key: Key, kind: str = "tokens") -> int:
    return int(quota.headers(key)[f"x-ratelimit-remaining-{kind}"])


def by_tokens(limit: int, **more: Any) -> Key:
    return a_key(tokens_per_hour=limit, **more)


# Requests per minute


@pytest.mark.parametrize("tier", ["free", "standard", "enterprise"])
def test_requests_of_a_tier_are_counted_over_the_last_minute(
    quota: Quota, clock: Clock, tier: Any
) -> None:
    key = a_key(tier=tier)
    limit = LIMITS[key.tier].requests_per_minute
    assert limit is not None
    for _ in range(limit):
        quota.admit(key, demand(1))
        clock.now += 10 / limit
    error = refused(quota, key, demand(1))
    assert error.details is not None
    assert error.details["limit_type"] == "requests"
    assert error.details["limit"] == limit
    assert error.details["retry_after"] == pytest.approx(50, abs=0.1)
    assert error.headers["Retry-After"] in ("50", "51")
    clock.now += 49
    refused(quota, key, demand(1))
    clock.now += 1.01
    quota.admit(key, demand(1))
    refused(quota, key, demand(1))


def test_a_call_may_count_as_several_requests_and_is_refused_as_a_whole(
    quota: Quota, clock: Clock
) -> None:
    key = by_tokens(100, requests_per_minute=10)
    quota.admit(key, demand(1), requests=4)
    assert remaining(quota, key, "requests") == 6
    clock.now += 10
    quota.admit(key, demand(1), requests=4)
    clock.now += 10
    for requests, wait in ((3, 40), (6, 40), (7, 50), (10, 50)):
        with pytest.raises(RateLimited) as caught:
            quota.admit(key, demand(10), requests)
        assert caught.value.details is not None
        assert caught.value.details["limit_type"] == "requests"
        assert caught.value.details["retry_after"] == pytest.approx(wait, abs=0.1)
        assert remaining(quota, key, "requests") == 2
        assert remaining(quota, key) == 98
    hold = quota.admit(key, demand(1), requests=2)
    assert quota.headers(key, hold, 1)["x-ratelimit-remaining-requests"] == "0"
    clock.now += 40.1
    quota.admit(key, demand(1), requests=4)
    refused(quota, key, demand(1))


def test_a_call_that_counts_as_more_requests_than_the_limit_is_never_admitted(quota: Quota) -> None:
    key = by_tokens(100, requests_per_minute=10)
    with pytest.raises(RateLimited) as caught:
        quota.admit(key, demand(1), requests=11)
    assert caught.value.message == (
        "This call counts as 11 requests; this key's limit is 10 a minute."
    )
    assert "Retry-After" not in caught.value.headers
    assert caught.value.headers["x-should-retry"] == "false"
    assert (remaining(quota, key, "requests"), remaining(quota, key)) == (10, 100)
    quota.admit(key, demand(1), requests=10)


def test_an_unlimited_key_is_never_refused_and_has_no_headers(quota: Quota) -> None:
    key = a_key()
    for _ in range(2000):
        assert quota.admit(key, demand(10**9)) is None
    assert quota.headers(key) == {}


def test_keys_do_not_share_their_limits(quota: Quota) -> None:
    one, other = (by_tokens(10, id=name, requests_per_minute=1) for name in ("key_a", "key_b"))
    for key in (one, other):
        quota.admit(key, demand(10))
    assert remaining(quota, one, "requests") == remaining(quota, other, "requests") == 0


def test_a_request_above_the_request_limit_takes_no_tokens(quota: Quota, clock: Clock) -> None:
    key = by_tokens(100, requests_per_minute=1)
    quota.admit(key, demand(30))
    for _ in range(5):
        error = refused(quota, key, demand(30))
        assert error.details is not None
        assert error.details["limit_type"] == "requests"
    assert remaining(quota, key) == 70


def test_a_call_above_the_token_limit_does_not_count_as_a_request(quota: Quota) -> None:
    key = by_tokens(100, requests_per_minute=1)
    refused(quota, key, demand(101))
    assert remaining(quota, key, "requests") == 1
    quota.admit(key, demand(100))


# Tokens per hour

CALLS = st.lists(
    st.tuples(
        st.integers(0, 2 * HOUR),  # seconds since the previous call
        st.integers(1, 60),  # input tokens
        st.integers(0, 60),  # max_tokens
        st.integers(0, 2 * HOUR),  # the call's duration in seconds
        st.integers(0, 150),  # used tokens
    ),
    max_size=25,
)


class Account:
    """A simple model of the token count.

    Each clock hour has a sum. The count of the last 60 minutes is the sum of the current clock hour
    and a share of the previous one. A call counts in the hour in which it started, unless it ends
    when that hour no longer counts.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.hours: dict[int, int] = defaultdict(int)

    def left(self, moment: int) -> set[int]:
        """Return the possible rests, as a float may be slightly below a whole number."""
        hour, passed = divmod(moment, HOUR)
        count = self.hours[hour] + Fraction(self.hours[hour - 1] * (HOUR - passed), HOUR)
        return {max(0, self.limit - floor(float(count) + slip)) for slip in (-1e-6, 1e-6)}


@given(CALLS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_token_counts_agree_with_a_simple_model(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[int, int, int, int, int]]
) -> None:
    clock, key, account = Clock(), by_tokens(200), Account(200)
    monkeypatch.setattr(time, "time", clock)
    quota, moment = Quota(RESERVE), int(START)
    running: list[tuple[int, int, Hold, int]] = []
    for pause, tokens, output, lasts, used in calls:
        moment += pause
        for end, began, hold, use in sorted(running, key=lambda call: call[0]):
            if end <= moment:
                clock.now = end
                quota.settle(hold, use)
                if end // HOUR <= began // HOUR + 1:
                    account.hours[began // HOUR] += use - hold.tokens
        running = [call for call in running if call[0] > moment]
        clock.now = moment
        left = remaining(quota, key)
        assert left in account.left(moment)
        if tokens + output > left:
            refused(quota, key, demand(tokens, output))
            continue
        taken = quota.admit(key, demand(tokens, output))
        assert taken is not None
        assert taken.tokens == tokens + output
        account.hours[moment // HOUR] += tokens + output
        running.append((moment + lasts, moment, taken, used))


LOOSE = [
    # limit, tokens of the prompt, max_tokens, tokens to reserve
    (100, 10, 1, 100),
    (100, 10, 90, 100),
    (100, 10, 91, None),
    (100, 100, 1, None),
    (10_000, 10, 1, 10 + RESERVE),
    (10_000, 10, RESERVE, 10 + RESERVE),
    (10_000, 10, 5000, 5010),
]
"""Calls with parameters that Sluice doesn't know; None: the call is refused."""


@pytest.mark.parametrize(("limit", "tokens", "output", "expected"), LOOSE)
def test_a_loose_call_reserves_at_least_what_a_call_without_max_tokens_does(
    quota: Quota, limit: int, tokens: int, output: int, expected: int | None
) -> None:
    key = by_tokens(limit)
    if expected is None:
        refused(quota, key, demand(tokens, output, loose=True))
        assert remaining(quota, key) == limit
        return
    hold = quota.admit(key, demand(tokens, output, loose=True))
    assert hold is not None
    assert (hold.tokens, remaining(quota, key)) == (expected, limit - expected)


@given(st.integers(0, 3000), st.integers(1, 2000), st.integers(1, 2000))
def test_a_loose_call_reserves_the_more_of_two_amounts(left: int, tokens: int, output: int) -> None:
    open_, bounded, loose = (
        ask_for(demand(tokens, amount, loose=flag), RESERVE).tokens(left)
        for amount, flag in ((None, False), (output, False), (output, True))
    )
    assert loose == max(open_, bounded)


def test_concurrent_loose_calls_cannot_pass_a_limit_of_tokens(quota: Quota) -> None:
    key = by_tokens(100)
    admitted = 0
    for _ in range(16):
        try:
            quota.admit(key, demand(1, 1, loose=True))
        except RateLimited:
            continue
        admitted += 1
    assert admitted == 1


@pytest.mark.parametrize(
    ("used", "left"), [(100, 900), (40, 960), (0, 1000), (130, 870), (5000, 0)]
)
def test_a_settled_call_counts_its_used_tokens_instead_of_its_reserved(
    quota: Quota, used: int, left: int
) -> None:
    key = by_tokens(1000)
    hold = quota.admit(key, demand(60, 40))
    assert remaining(quota, key) == 900
    quota.settle(hold, used)
    assert remaining(quota, key) == left
    quota.settle(None, used)
    assert remaining(quota, key) == left


def test_a_call_is_settled_in_the_window_in_which_it_started(quota: Quota, clock: Clock) -> None:
    key = by_tokens(1000)
    clock.now = START + HOUR - 10
    hold = quota.admit(key, demand(800))
    clock.now = START + HOUR + HOUR / 2
    assert remaining(quota, key) == 600, "half of the previous window counts"
    quota.settle(hold, 200)
    assert remaining(quota, key) == 900
    clock.now = START + 2 * HOUR
    assert remaining(quota, key) == 1000


def test_a_call_that_outlasts_its_windows_changes_no_later_window(
    quota: Quota, clock: Clock
) -> None:
    key = by_tokens(1000)
    hold = quota.admit(key, demand(800))
    clock.now += 2 * HOUR + 1
    quota.admit(key, demand(300))
    quota.settle(hold, 0)
    quota.settle(hold, 5000)
    assert remaining(quota, key) == 700


@pytest.mark.parametrize("step", [-86_400, -HOUR, -1, 1, HOUR, 86_400])
def test_a_changed_system_clock_grants_no_extra_tokens(
    quota: Quota, clock: Clock, step: float
) -> None:
    key = by_tokens(1000, requests_per_minute=100)
    holds = [quota.admit(key, demand(100)) for _ in range(5)]
    clock.now += step
    for hold in holds:
        quota.settle(hold, 0)
    assert remaining(quota, key) <= 1000
    quota.admit(key, demand(1000 - (1000 - remaining(quota, key))))
    refused(quota, key, demand(1))


@pytest.mark.parametrize("step", [-86_400, -HOUR, -30])
def test_requests_count_for_a_minute_more_after_the_clock_is_set_back(
    quota: Quota, clock: Clock, step: float
) -> None:
    key = a_key(requests_per_minute=2)
    for _ in range(2):
        quota.admit(key, demand(1))
    clock.now += step
    refused(quota, key, demand(1))
    clock.now += 60
    quota.admit(key, demand(1))


def test_keys_without_recent_use_are_forgotten(quota: Quota, clock: Clock) -> None:
    for number in range(100):
        quota.admit(by_tokens(1000, id=f"key_{number}", requests_per_minute=5), demand(1))
    clock.now += 2 * HOUR
    quota.admit(by_tokens(1000, id="key_new"), demand(1))
    assert len(quota._local._used) == 1


def test_a_changed_limit_starts_a_new_count_and_old_calls_settle_apart(quota: Quota) -> None:
    old, new = by_tokens(1000), by_tokens(500)
    hold = quota.admit(old, demand(900))
    quota.admit(new, demand(500))
    quota.settle(hold, 0)
    assert (remaining(quota, new), remaining(quota, old)) == (0, 1000)
    refused(quota, new, demand(1))


@pytest.mark.parametrize(
    ("spent", "tokens", "reserved"),
    [
        (0, 10, 10 + RESERVE),
        (4000, 10, 1000),
        (4000, 990, 1000),
        (4000, 999, 1000),
    ],
)
def test_a_call_without_max_tokens_reserves_at_most_what_is_left(
    quota: Quota, spent: int, tokens: int, reserved: int
) -> None:
    key = by_tokens(5000)
    quota.admit(key, demand(spent))
    hold = quota.admit(key, demand(tokens, None))
    assert hold is not None
    assert hold.tokens == reserved


def test_a_call_without_max_tokens_needs_room_for_an_output_token(quota: Quota) -> None:
    key = by_tokens(5000)
    quota.admit(key, demand(4000))
    error = refused(quota, key, demand(1000, None))
    assert "Retry-After" in error.headers


@pytest.mark.parametrize(
    ("key", "wanted", "kind"),
    [
        (by_tokens(0), demand(0, 1), "tokens"),
        (by_tokens(0), demand(0, None), "tokens"),
        (by_tokens(100), demand(60, 41), "tokens"),
        (by_tokens(100), demand(100, None), "tokens"),
        (a_key(requests_per_minute=0), demand(1), "requests"),
    ],
)
def test_a_request_that_can_never_fit_is_refused_without_retry_after(
    quota: Quota, key: Key, wanted: Demand, kind: str
) -> None:
    error = refused(quota, key, wanted)
    assert "Retry-After" not in error.headers
    assert error.headers["x-should-retry"] == "false"
    assert error.details is not None
    assert error.details["limit_type"] == kind
    assert error.details["reset_time"] is error.details["retry_after"] is None


# The time to wait


@given(st.integers(1, 5000), st.data())
def test_the_computed_wait_is_sufficient_and_minimal(limit: int, data: st.DataObject) -> None:
    before, current = (data.draw(st.integers(0, limit)) for _ in range(2))
    room = data.draw(st.integers(0, limit))
    rest = data.draw(st.floats(0, HOUR))

    def counted(after: float) -> float:
        if after < rest:
            return before * (rest - after) / HOUR + current
        return current * max(0.0, 1 - (after - rest) / HOUR)

    wait = wait_for(room, before, current, rest)
    assert 0 <= wait <= 2 * HOUR
    assert counted(wait) <= room + 1e-6 * limit
    shorter = [wait * part for part in (0, 0.25, 0.5, 0.9)] if wait > 1 else []
    assert all(counted(after) > room - 1e-6 * limit for after in shorter)


@given(
    st.lists(st.tuples(st.floats(0, HOUR), st.integers(1, 100)), min_size=1, max_size=12),
    st.integers(1, 100),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_call_repeated_after_its_retry_after_is_admitted(
    monkeypatch: pytest.MonkeyPatch, calls: list[tuple[float, int]], last: int
) -> None:
    clock, key = Clock(), by_tokens(100)
    monkeypatch.setattr(time, "time", clock)
    quota = Quota(RESERVE)
    for pause, tokens in [*calls, (0.0, last)]:
        clock.now += pause
        try:
            quota.admit(key, demand(tokens))
        except RateLimited as error:
            refusal = error
        else:
            continue
        assert refusal.details is not None
        until = datetime.fromisoformat(refusal.details["reset_time"]).timestamp()
        assert -0.06 <= until - (clock.now + refusal.details["retry_after"]) < 1.06
        clock.now += int(refusal.headers["Retry-After"])
        quota.admit(key, demand(tokens))


# Headers


def test_headers_report_the_remaining_quota_and_its_reset_time(quota: Quota, clock: Clock) -> None:
    key = a_key(tier="standard")
    clock.now = START + 600
    full = quota.headers(key)
    assert full["x-ratelimit-remaining-requests"] == full["x-ratelimit-limit-requests"] == "60"
    quota.admit(key, demand(70, 30))
    clock.now += 20
    quota.admit(key, demand(400))
    assert quota.headers(key) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "40s",
        "x-ratelimit-limit-tokens": "100000",
        "x-ratelimit-remaining-tokens": "99500",
        "x-ratelimit-reset-tokens": "49m40s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-3, "0s"), (0.2, "1s"), (59, "59s"), (59.5, "1m0s"), (360, "6m0s")],
)
def test_duration_has_the_format_of_openai_reset_headers(seconds: float, text: str) -> None:
    assert quota_module.duration(seconds) == text


# Concurrency


@pytest.mark.parametrize("output", [10, None])
def test_concurrent_calls_never_reserve_more_than_the_limit(output: int | None) -> None:
    """Each turn has a new key, as a race is most likely at the first count of a window."""
    quota = Quota(10)
    for turn in range(20):
        key = by_tokens(205, id=f"key_{turn}", requests_per_minute=40)

        def call(key: Key = key) -> int:
            hold = quota.admit(key, demand(10, output))
            quota.headers(key)
            assert hold is not None
            return hold.tokens

        found = at_once(*[call] * 50)
        reserved = [tokens for tokens in found if isinstance(tokens, int)]
        assert all(isinstance(one, int | RateLimited) for one in found), found
        assert sum(reserved) <= 205
        assert len(reserved) >= 10, "no call is refused while there is room for it"
        assert remaining(quota, key) == 205 - sum(reserved)


def test_concurrent_settlements_lose_no_tokens() -> None:
    quota, key = Quota(10), by_tokens(10**6)
    holds = [quota.admit(key, demand(100)) for _ in range(200)]
    gate = threading.Barrier(20)

    def settle(number: int) -> None:
        gate.wait()
        for hold in holds[number::20]:
            quota.settle(hold, 33)

    at_once(*(lambda number=number: settle(number) for number in range(20)))
    assert remaining(quota, key) == 10**6 - 200 * 33


# The demand of a request


def asked(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"prompts": ("Hello there!",), **fields})


@pytest.mark.parametrize(
    ("fields", "tokens", "most", "output"),
    [
        ({}, 3, 12, None),
        ({"max_tokens": 0}, 3, 12, 0),
        ({"max_tokens": 7}, 3, 12, 7),
        ({"max_tokens": 7, "n": 3}, 3, 12, 21),
        ({"max_tokens": 7, "n": 2, "best_of": 5}, 3, 12, 35),
        ({"max_tokens": 7, "prompts": ("abcd", "ab")}, 2, 6, 14),
        ({"max_tokens": 7, "n": 2, "prompts": ("abcd", "ab")}, 2, 6, 28),
        ({"prompts": ((1, 2, 3), (4,))}, 4, 4, None),
        ({"prompts": ("ü" * 4,)}, 2, 8, None),
        ({"suffix": "12345"}, 3 + 2, 12 + 5, None),
        ({"suffix": "12345", "prompts": ("abcd", "ab")}, 2 + 4, 6 + 10, None),
        ({"suffix": "", "files": (SourceFile("a.py", "x" * 12),)}, 3 + 10, 12 + 40, None),
        ({"prompts": ("",)}, 0, 0, None),
    ],
)
def test_demand_of_a_request_counts_its_input_and_output_tokens(
    fields: dict[str, Any], tokens: int, most: int, output: int | None
) -> None:
    request = asked(**fields)
    nothing_else = len("[]") + TEMPLATE_TOKENS
    assert demand_of(request) == Demand(
        tokens, most + nothing_else * len(request.prompts), output, loose=False
    )


@pytest.mark.parametrize("bag", ["extra", "openai_extra"])
def test_unknown_parameters_raise_the_input_bound_and_make_the_demand_loose(bag: str) -> None:
    system = {"system": "x" * 5000}
    found = demand_of(asked(prompts=("a", "b"), max_tokens=1, **{bag: system}))
    assert found.loose
    assert found.most_input > 2 * 5000, "the parameters are sent with each prompt"


DEAR, CHEAP = Price(Rate(2 * MTOK), Rate(3 * MTOK)), Price(Rate(MTOK), Rate(5 * MTOK))


@pytest.mark.parametrize(
    ("wanted", "prices", "least", "most"),
    [
        (demand(10, 7), [DEAR], 20 + 21, 20 + 21),
        (demand(10, 7), [DEAR, CHEAP], 10 + 35, 10 + 35),
        (demand(10, 0), [DEAR], 20, 20),
        (demand(10, None), [DEAR], 20, 20 + 3 * RESERVE),
        (demand(10, 7, loose=True), [DEAR], 20 + 21, 20 + 3 * RESERVE),
        (demand(10, 5000, loose=True), [DEAR], 20 + 15000, 20 + 15000),
        (demand(10, None), [FREE], 0, 0),
    ],
)
def test_a_budget_claim_has_the_least_and_the_most_a_call_may_cost(
    quota: Quota, wanted: Demand, prices: list[Price], least: int, most: int
) -> None:
    assert quota.claim(a_key(), wanted, prices) is None
    claim = quota.claim(a_key(budget_usd=1.5), wanted, prices)
    assert claim == Claim(Budget(1_500_000_000), least, max(least, most))


@pytest.mark.parametrize(
    ("period", "since"), [("total", None), ("day", "2026-03-15"), ("month", "2026-03-01")]
)
def test_budget_days_and_months_start_at_midnight_utc(
    monkeypatch: pytest.MonkeyPatch, period: Any, since: str | None
) -> None:
    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Now:
            return cls(2026, 3, 15, 0, 0, 1, tzinfo=UTC).astimezone(tz)

    monkeypatch.setattr(quota_module, "datetime", Now)
    assert budget_of(a_key(budget_usd=0.1, budget_period=period)) == Budget(100_000_000, since)
    assert budget_of(a_key(budget_usd=0)) == Budget(0)
    assert budget_of(a_key()) is None
