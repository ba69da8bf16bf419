"""billing.py: a call's bill, from what it reserves to what it came to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

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


class Book:
    """A ledger that keeps what it is told."""

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


class Desk:
    """A meter and all that it stands on."""

    def __init__(self) -> None:
        self.book = Book()
        self.prices = Prices(TABLES)
        self.quota = Quota(1024)
        self.meter = Billing(self.prices, self.quota, cast(Ledger, self.book))

    def left(self, key: Any) -> int:
        return int(self.quota.headers(key)["x-ratelimit-remaining-tokens"])


@pytest.fixture
def desk() -> Desk:
    return Desk()


def candidates(*models: str, byok: bool = False, **fields: Any) -> list[Candidate]:
    request = CompletionRequest(**{"prompts": ("Hello there!",), "max_tokens": 10, **fields})
    own = Secret("k") if byok else None
    return [Candidate(Target(SIM, model, own, byok=byok), request) for model in models]


def a_stream(candidate: Candidate) -> Stream:
    """As much of one as is looked at."""
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


def test_opening_a_call_enters_a_ledger_row_and_reserves_tokens_and_budget(desk: Desk) -> None:
    chosen = candidates("m", "dear", stream=True)
    bill = desk.meter.open(KEY, a_stream(chosen[0]), chosen)
    ((entry, claim),) = desk.book.opened
    assert entry is bill.entry
    assert bill.recorded
    assert (entry.request_id, entry.stream_id, entry.key_id) == ("r-1", "s-1", "key_1")
    assert (entry.provider, entry.model, entry.streamed, entry.byok) == ("sim", "m", True, False)
    assert (entry.input_tokens, entry.cost_nano) == (3, 3_000)
    assert desk.left(KEY) == 1000 - 13
    assert claim is not None
    assert claim.least_nano == claim.most_nano > 10 * 20_000, "of the dearest that may be asked"


def test_call_with_a_caller_key_bypasses_limits_and_is_recorded(desk: Desk) -> None:
    key = a_key(tokens_per_hour=0, requests_per_minute=0, budget_usd=0)
    chosen = candidates("m", "unpriced", byok=True)
    assert desk.meter.payable(key, chosen) == chosen
    stream = a_stream(chosen[0])
    bill = desk.meter.open(key, stream, chosen)
    ((entry, claim),) = desk.book.opened
    assert (entry.byok, entry.cost_nano, claim, bill.hold) == (True, 0, None, None)
    assert desk.meter.cost(stream.target, Usage(1000, 1000)) == 0
    desk.meter.settle(bill, stream, an_outcome(cost=0))
    assert [settlement.cost_nano for settlement in desk.book.settled] == [0]


@pytest.mark.parametrize(
    "failure", [InsufficientCredits("No."), Unavailable("No."), RuntimeError(), SystemExit()]
)
def test_call_that_fails_to_open_returns_its_reserved_tokens(
    desk: Desk, failure: BaseException
) -> None:
    desk.book.answer = failure
    chosen = candidates("m")
    with pytest.raises(type(failure)):
        desk.meter.open(KEY, a_stream(chosen[0]), chosen)
    assert desk.left(KEY) == 1000


def test_call_over_its_token_limit_gets_no_ledger_row(desk: Desk) -> None:
    chosen = candidates("m", max_tokens=5000)
    with pytest.raises(RateLimited):
        desk.meter.open(KEY, a_stream(chosen[0]), chosen)
    assert desk.book.opened == []


@pytest.mark.parametrize("recorded", [True, False])
def test_ended_call_settles_its_tokens_and_its_ledger_row_if_recorded(
    desk: Desk, recorded: bool
) -> None:
    desk.book.answer = recorded
    chosen = candidates("m")
    stream = a_stream(chosen[0])
    bill = desk.meter.open(KEY, stream, chosen)
    stream.target = Target(SIM, "dear\0")
    error = Unavailable("No.")
    outcome = an_outcome(reason="stopped", error=error, status=503, usage=Usage(100, 50, 9, 8, 7))
    desk.meter.settle(bill, stream, outcome)
    assert desk.left(KEY) == 1000 - 150
    if not recorded:
        assert desk.book.settled == []
        return
    (found,) = desk.book.settled
    assert found.entry is bill.entry
    assert (found.provider, found.model) == ("sim", "dear\N{REPLACEMENT CHARACTER}")
    assert (found.status, found.end_reason, found.error_code) == (503, "stopped", "unavailable")
    assert (found.usage, found.cost_nano, found.attempts) == (outcome.usage, 13_000, 2)
    times = (found.duration_us, found.latency_us, found.first_event_us)
    assert times == (1_500_000, 1_250_000, 500_000)
    assert found.ended_us >= bill.entry.started_us


@pytest.mark.parametrize(("first", "us"), [(None, None), (0.0, 0), (1e-7, 0)])
def test_first_event_time_may_be_missing_or_zero(desk: Desk, first: float | None, us: Any) -> None:
    chosen = candidates("m")
    stream = a_stream(chosen[0])
    bill = desk.meter.open(a_key(), stream, chosen)
    desk.meter.settle(bill, stream, an_outcome(first_event=first))
    assert desk.book.settled[0].first_event_us == us


def test_key_with_a_budget_cannot_use_a_model_without_a_price(desk: Desk) -> None:
    mixed = candidates("unpriced", "m")
    assert desk.meter.payable(a_key(), mixed) == mixed
    assert desk.meter.payable(KEY, mixed) == mixed[1:]
    with pytest.raises(ModelForbidden, match="sim/unpriced"):
        desk.meter.payable(KEY, mixed[:1])


def test_call_is_still_recorded_when_pricing_fails(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(desk.prices, "of", lambda _: 1 // 0)
    chosen = candidates("m")
    bill = desk.meter.open(a_key(), a_stream(chosen[0]), chosen)
    assert bill.entry.cost_nano is None
    assert "pricing failed" in caplog.text


@pytest.mark.parametrize(
    ("usage", "nano"), [(Usage(), 0), (Usage(3, 5), 13_000), (Usage(10**12, 1), 10**15 + 2000)]
)
def test_call_cost_follows_the_prices_and_is_none_without_a_price(
    desk: Desk, usage: Usage, nano: int
) -> None:
    assert desk.meter.cost(Target(SIM, "m"), usage) == nano
    assert desk.meter.cost(Target(SIM, "unpriced"), usage) is None


def test_nul_character_in_a_stored_name_is_replaced() -> None:
    assert storable("a\0b") == "a\N{REPLACEMENT CHARACTER}b"
    assert storable("größer/m") == "größer/m"
