"""billing.py: a call's reservation and its settlement."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from completion import (
    CompletionRequest,
    Usage,
)
from errors import InsufficientCredits, ModelForbidden, RateLimited, Unavailable
from gateway.billing import Billing, storable
from gateway.call import Outcome
from gateway.capabilities import Candidate
from keys.redaction import Secret
from ledger.entries import Claim, Entry, Settlement
from ledger.ledger import Ledger
from ledger.pricing import Prices
from providers.base import Provider, Target
from quota.quota import Quota
from streams.stream import Stream
from tests.gateway.test_gateway import a_key

SIM = Provider(name="sim", base_url="http://127.0.0.1:1/v1")
TABLES = {
    "sim/m": {"input_per_mtok": 1, "output_per_mtok": 2},
    "sim/dear": {"input_per_mtok": 10, "output_per_mtok": 20},
}


class FakeLedger:
    """A ledger that records its calls. `answer` is what `open` returns or raises."""

    def __init__(self) -> None:
        self.opened: list[tuple[Entry, Claim | None]] = []
        self.settled: list[Settlement] = []
        self.answer: bool | BaseException = True

    def open(self, entry: Entry, claim: Claim | None = None) -> bool:
        if isinstance(self.answer, BaseException):
            raise self.answer
        self.opened.append((entry, claim))
        return self.answer

    def settle(self, settlement: Settlement) -> None:
        self.settled.append(settlement)


class Harness:
    """A Billing with its quota, its prices and a fake ledger."""

    def __init__(self) -> None:
        self.ledger = FakeLedger()
        self.prices = Prices(TABLES)
        self.quota = Quota(1024)
        self.billing = Billing(self.prices, self.quota, cast(Ledger, self.ledger))

    def left(self, key: Any) -> int:
        return int(self.quota.headers(key)["x-ratelimit-remaining-tokens"])


@pytest.fixture
def harness() -> Harness:
    return Harness()


def candidates(*models: str, byok: bool = False, **fields: Any) -> list[Candidate]:
    request = CompletionRequest(**{"prompts": ("Hello there!",), "max_tokens": 10, **fields})
    own = Secret("k") if byok else None
    return [Candidate(Target(SIM, model, own, byok=byok), request) for model in models]


def a_stream(candidate: Candidate) -> Stream:
    """Return a stand-in with only the attributes that Billing reads."""
    return cast(
        Stream,
        SimpleNamespace(
            id="s-1",
            request_id="r-1",
            key_id="key_1",
            endpoint="/v1/completions",
            request=candidate.request,
            target=candidate.target,
            attempts=[None, None],
            text=None,
        ),
    )


def an_outcome(**fields: Any) -> Outcome:
    defaults: dict[str, Any] = {
        "reason": "completed",
        "error": None,
        "usage": Usage(3, 5),
        "cost": 13_000,
        "duration": 1.5,
        "latency": 1.25,
        "first_event": 0.5,
        "status": 200,
    }
    return Outcome(**defaults | fields)


KEY = a_key(tokens_per_hour=1000, budget_usd=1)


def test_opening_a_call_enters_a_ledger_row_and_reserves_tokens_and_budget(
    harness: Harness,
) -> None:
    chosen = candidates("m", "dear", stream=True)
    reservation = harness.billing.open(KEY, a_stream(chosen[0]), chosen)
    ((entry, claim),) = harness.ledger.opened
    assert entry is reservation.entry
    assert reservation.recorded
    assert (entry.request_id, entry.stream_id, entry.key_id) == ("r-1", "s-1", "key_1")
    assert (entry.provider, entry.model, entry.streamed, entry.byok) == ("sim", "m", True, False)
    assert (entry.input_tokens, entry.cost_nano) == (3, 3_000)
    assert harness.left(KEY) == 1000 - 13
    assert claim is not None
    assert claim.least_nano == claim.most_nano > 10 * 20_000, "the dearest candidate counts"


def test_call_with_a_caller_key_bypasses_limits_and_is_recorded(harness: Harness) -> None:
    key = a_key(tokens_per_hour=0, requests_per_minute=0, budget_usd=0)
    chosen = candidates("m", "unpriced", byok=True)
    assert harness.billing.payable(key, chosen) == chosen
    stream = a_stream(chosen[0])
    reservation = harness.billing.open(key, stream, chosen)
    ((entry, claim),) = harness.ledger.opened
    assert (entry.byok, entry.cost_nano, claim, reservation.hold) == (True, 0, None, None)
    assert harness.billing.cost(stream.target, Usage(1000, 1000)) == 0
    harness.billing.settle(reservation, stream, an_outcome(cost=0))
    assert [settlement.cost_nano for settlement in harness.ledger.settled] == [0]


@pytest.mark.parametrize(
    "failure", [InsufficientCredits("No."), Unavailable("No."), RuntimeError(), SystemExit()]
)
def test_call_that_fails_to_open_returns_its_reserved_tokens(
    harness: Harness, failure: BaseException
) -> None:
    harness.ledger.answer = failure
    chosen = candidates("m")
    with pytest.raises(type(failure)):
        harness.billing.open(KEY, a_stream(chosen[0]), chosen)
    assert harness.left(KEY) == 1000


def test_call_over_its_token_limit_gets_no_ledger_row(harness: Harness) -> None:
    chosen = candidates("m", max_tokens=5000)
    with pytest.raises(RateLimited):
        harness.billing.open(KEY, a_stream(chosen[0]), chosen)
    assert harness.ledger.opened == []


@pytest.mark.parametrize("recorded", [True, False])
def test_ended_call_settles_its_tokens_and_its_ledger_row_if_recorded(
    harness: Harness, recorded: bool
) -> None:
    harness.ledger.answer = recorded
    chosen = candidates("m")
    stream = a_stream(chosen[0])
    reservation = harness.billing.open(KEY, stream, chosen)
    stream.target = Target(SIM, "dear\0")
    error = Unavailable("No.")
    outcome = an_outcome(reason="stopped", error=error, status=503, usage=Usage(100, 50, 9, 8, 7))
    harness.billing.settle(reservation, stream, outcome)
    harness.billing.settle_quota(reservation, outcome.usage.total_tokens)
    assert harness.left(KEY) == 1000 - 150
    if not recorded:
        assert harness.ledger.settled == []
        return
    (found,) = harness.ledger.settled
    assert found.entry is reservation.entry
    assert (found.provider, found.model) == ("sim", "dear\N{REPLACEMENT CHARACTER}")
    assert (found.status, found.end_reason, found.error_code) == (503, "stopped", "unavailable")
    assert (found.usage, found.cost_nano, found.attempts) == (outcome.usage, 13_000, 2)
    times = (found.duration_us, found.latency_us, found.first_event_us)
    assert times == (1_500_000, 1_250_000, 500_000)
    assert found.ended_us >= reservation.entry.started_us


@pytest.mark.parametrize(("first", "us"), [(None, None), (0.0, 0), (1e-7, 0)])
def test_first_event_time_may_be_missing_or_zero(
    harness: Harness, first: float | None, us: Any
) -> None:
    chosen = candidates("m")
    stream = a_stream(chosen[0])
    reservation = harness.billing.open(a_key(), stream, chosen)
    harness.billing.settle(reservation, stream, an_outcome(first_event=first))
    assert harness.ledger.settled[0].first_event_us == us


def test_key_with_a_budget_cannot_use_a_model_without_a_price(harness: Harness) -> None:
    mixed = candidates("unpriced", "m")
    assert harness.billing.payable(a_key(), mixed) == mixed
    assert harness.billing.payable(KEY, mixed) == mixed[1:]
    with pytest.raises(ModelForbidden, match="sim/unpriced"):
        harness.billing.payable(KEY, mixed[:1])


def test_call_is_still_recorded_when_pricing_fails(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(harness.prices, "of", lambda _: 1 // 0)
    chosen = candidates("m")
    reservation = harness.billing.open(a_key(), a_stream(chosen[0]), chosen)
    assert reservation.entry.cost_nano is None
    assert "pricing failed" in caplog.text


@pytest.mark.parametrize(
    ("usage", "nano"), [(Usage(), 0), (Usage(3, 5), 13_000), (Usage(10**12, 1), 10**15 + 2000)]
)
def test_call_cost_follows_the_prices_and_is_none_without_a_price(
    harness: Harness, usage: Usage, nano: int
) -> None:
    assert harness.billing.cost(Target(SIM, "m"), usage) == nano
    assert harness.billing.cost(Target(SIM, "unpriced"), usage) is None


TRUSTED = msgspec.structs.replace(SIM, trust_cost=True)


@pytest.mark.parametrize(
    ("target", "reported", "found"),
    [
        (Target(SIM, "m"), 5, (13_000, "prices")),
        (Target(SIM, "m"), None, (13_000, "prices")),
        (Target(SIM, "unpriced"), 5, (5, "provider")),
        (Target(SIM, "unpriced"), 0, (0, "provider")),
        (Target(SIM, "unpriced"), None, (None, "prices")),
        (Target(TRUSTED, "m"), 5, (5, "provider")),
        (Target(TRUSTED, "m"), None, (13_000, "prices")),
        (Target(TRUSTED, "m", Secret("k"), byok=True), 5, (0, "prices")),
    ],
)
def test_reported_cost_is_used_without_a_price_or_if_the_row_says_so(
    harness: Harness, target: Target, reported: int | None, found: tuple[int | None, str]
) -> None:
    usage = Usage(3, 5, cost_nano=reported)
    assert harness.billing.cost_and_source(target, usage) == found


@pytest.mark.parametrize(
    ("extra", "dearer"),
    [
        ({}, False),
        ({"service_tier": "flex"}, False),
        ({"service_tier": "priority"}, True),
        ({"service_tier": "auto"}, True),
    ],
)
def test_budget_is_reserved_at_the_highest_price_that_may_apply(
    harness: Harness, extra: dict[str, Any], dearer: bool
) -> None:
    row = msgspec.structs.replace(SIM, price_id="openai")
    key, claims = a_key(tokens_per_hour=100_000, budget_usd=1), []
    for fields in ({"unknown": 1}, {"unknown": 1} | extra):
        request = CompletionRequest(prompts=("Hello there!",), max_tokens=10, extra=fields)
        chosen = [Candidate(Target(row, "gpt-5.4-mini"), request)]
        harness.billing.open(key, a_stream(chosen[0]), chosen)
        claim = harness.ledger.opened[-1][1]
        assert claim is not None
        claims.append(claim.most_nano)
    assert (claims[1] > 1.5 * claims[0]) is dearer


def test_nul_character_in_a_stored_name_is_replaced() -> None:
    assert storable("a\0b") == "a\N{REPLACEMENT CHARACTER}b"
    assert storable("größer/m") == "größer/m"
