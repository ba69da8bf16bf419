"""attempts.py: retries, several keys, circuit breakers and continuations, with a fake provider."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import pytest

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    Finished,
    Started,
    Thought,
    Usage,
    Used,
)
from config import Settings, Timeouts
from errors import (
    ModelNotFound,
    RateLimited,
    SluiceError,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)
from gateway import attempts
from gateway.call import Call
from gateway.capabilities import single_choices
from gateway.continuation import continuable, ends_in_a_stop
from gateway.gateway import Gateway
from keys.redaction import Secret
from ledger.entries import Claim, Entry, Settlement
from ledger.ledger import Ledger
from quota.quota import Quota
from routing.circuit_breaker import FAILURES
from routing.retries import MOST_SAVED
from routing.router import Route
from streams.stream import Stream
from tests.gateway.test_gateway import (
    HELLO,
    PRICES,
    REST,
    Records,
    Scripted,
    Words,
    a_key,
    eventually,
    play,
    wait,
)
from tests.support.pace import HANG_S

ROWS: dict[str, dict[str, Any]] = {
    "sim": {"base_url": "http://127.0.0.1:1/v1", "completions": True, "api_key_env": "SIM_KEY"},
    "other": {"base_url": "http://127.0.0.1:1/v1", "completions": True},
    "chat": {"base_url": "http://127.0.0.1:1/v1"},
}
KEYS = "sk-first-of-the-keys, sk-other-of-the-keys"


class FakeLedger:
    """A ledger that records its calls."""

    def __init__(self) -> None:
        self.claims: list[Claim | None] = []
        self.settlements: list[Settlement] = []

    def open(self, entry: Entry, claim: Claim | None) -> bool:
        self.claims.append(claim)
        return True

    def settle(self, settlement: Settlement) -> None:
        self.settlements.append(settlement)


class Harness:
    """A gateway with scripted providers. `asked` lists the candidates that were tried."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.records, self.ledger = Records(), FakeLedger()
        self.asked: list[Any] = []
        self.gateway = self.made()

    def made(self, keys: str = "sk-only-one-key", **settings: Any) -> Gateway:
        found = Settings(providers=ROWS, prices=PRICES, environ={"SIM_KEY": keys}, **settings)
        ledger = cast(Ledger, self.ledger)
        self.gateway = Gateway(found, Quota(found.reserve_tokens), ledger, self.records)
        return self.gateway

    def play(self, *attempts: Scripted) -> None:
        self.asked = play(self._monkeypatch, *attempts)

    def open(self, *models: str, byok: str | None = None, **more: Any) -> Call:
        own_options = ("within", "continues", "key", "affinity")
        options: dict[str, Any] = {n: more.pop(n) for n in own_options if n in more}
        request = CompletionRequest(**{"prompts": ("Hi there",), "stream": True, **more})
        first, *fallbacks = models or ("sim/m",)
        own = Secret(byok) if byok else None
        fields: dict[str, Any] = {
            "key": a_key(),
            "endpoint": "/v1/completions",
            "request_id": "r-1",
            "stream_id": "s-1",
            **options,
        }
        route = Route(model=first, fallbacks=tuple(fallbacks), byok_api_key=own)
        return self.gateway.open(request, route, **fields)

    def run(self, *models: str, **more: Any) -> str:
        """Make a call, and return the stream that its client gets. Raises SluiceError."""
        call = self.open(*models, **more)
        call.wait()
        return b"".join(call.frames(Words())).decode()

    def refused(self, *models: str, **more: Any) -> SluiceError:
        with pytest.raises(SluiceError) as caught:
            self.run(*models, **more)
        return caught.value

    @property
    def keys(self) -> list[int]:
        return [candidate.target.key_number for candidate in self.asked]

    @property
    def names(self) -> list[str]:
        return [candidate.target.name for candidate in self.asked]

    @property
    def tries(self) -> list[dict[str, Any]] | None:
        text = self.ledger.settlements[-1].tries
        return None if text is None else msgspec.json.decode(text)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Yield a list that collects the waits before retries. The waits themselves are skipped."""
    found: list[float] = []

    def pause(_stream: Stream, seconds: float) -> bool:
        found.append(seconds)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "pause", pause)
        yield found


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    return Harness(monkeypatch)


def failing(status: int | None = 500, wait: float | None = None, **more: Any) -> Scripted:
    return Scripted(UpstreamError("No.", upstream_status=status, retry_after=wait, **more))


def good() -> Scripted:
    return Scripted(HELLO, REST)


WHOLE = "Hello  there completed"

# Retries


@pytest.mark.parametrize("status", [None, 408, 500, 502, 503, 504, 529])
def test_temporary_failure_is_retried(harness: Harness, pauses: list[float], status: int) -> None:
    harness.play(failing(status), failing(status), good())
    assert harness.run() == WHOLE
    assert len(pauses) == 2
    assert harness.names == ["sim/m"] * 3
    assert len(harness.records.streams[0].attempts) == harness.ledger.settlements[0].attempts == 3


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_retries_setting_bounds_the_attempts(
    harness: Harness, pauses: list[float], retries: int
) -> None:
    harness.made(retries=retries)
    harness.play(*(failing() for _ in range(9)))
    assert harness.refused().status == 502
    assert len(harness.asked) == 1 + retries


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
def test_a_refused_request_is_never_retried(
    harness: Harness, pauses: list[float], status: int
) -> None:
    harness.play(failing(status))
    harness.refused()
    assert (len(harness.asked), pauses) == (1, [])


@pytest.mark.parametrize("first", [HELLO, [Finished(0, "stop")], [Thought(3), Delta(0, "a")]])
def test_call_is_not_retried_after_its_first_visible_event(
    harness: Harness, pauses: list[float], first: Batch
) -> None:
    harness.play(Scripted(first, UpstreamError("Broke.")))
    assert harness.run("sim/m", "other/m").endswith("provider_error")
    assert (len(harness.asked), pauses) == (1, [])


INVISIBLE: list[Batch] = [[Started("m", 8)], [], [Used(Usage(8, 0))], [Thought(40)]]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("before", [INVISIBLE[:1], INVISIBLE[1:2], INVISIBLE[2:3], INVISIBLE])
def test_call_is_retried_and_falls_back_after_invisible_events(
    harness: Harness, pauses: list[float], before: list[Batch], stream: bool
) -> None:
    broken = [Scripted(*before, UpstreamError("Broke.")) for _ in range(3)]
    harness.play(*broken, good())
    call = harness.open("sim/m", "other/m", stream=stream)
    if stream:
        call.wait()
        assert b"".join(call.frames(Words())).decode() == WHOLE
    else:
        assert call.result()[0].choices[0].text == "Hello there"
    assert harness.names == ["sim/m"] * 3 + ["other/m"]
    assert call.stream.target.name == "other/m"
    assert call.stream.first_visible is not None
    assert all(attempt.first_event is not None for attempt in call.stream.attempts)


def test_silence_after_invisible_events_moves_the_call_to_the_next_model(
    harness: Harness, pauses: list[float]
) -> None:
    harness.play(Scripted(*INVISIBLE, wait), good())
    call = harness.open("sim/m", "other/m")
    assert eventually(lambda: bool(call.stream.attempts) and call.stream.tally.input_tokens == 8)
    assert cast(Scripted, call.stream._upstream).reached.wait(HANG_S)
    call.stream.look(time.monotonic() + 121)
    call.wait()
    assert b"".join(call.frames(Words())).decode() == WHOLE
    tries = harness.tries
    assert tries is not None
    assert [t["code"] for t in tries] == ["provider_timeout", None]
    assert tries[0]["output_tokens"] == 10, "the reasoning of the first attempt is estimated"


def test_a_partly_failed_whole_answer_is_retried(harness: Harness, pauses: list[float]) -> None:
    harness.play(Scripted([Delta(0, "lost")], UpstreamError("Broke.")), good())
    call = harness.open("sim/m", "other/m", stream=False)
    assert [choice.text for choice in call.result()[0].choices] == ["Hello there"]
    assert len(harness.asked) == 2


def test_choices_are_split_into_calls_for_a_target_that_counts_only_one(
    harness: Harness,
) -> None:
    row = {"base_url": "http://127.0.0.1:1/v1", "completions": True, "cannot": ["choice_list"]}
    harness.gateway = Gateway(
        Settings(providers={"one": row}), Quota(0), cast(Ledger, harness.ledger), harness.records
    )
    request = CompletionRequest(prompts=("a", "b"), n=2, seed=7)
    [found] = harness.gateway._choose(request, Route(model="one/m"), a_key(), strict=False)
    assert (found.split, found.singly) == (True, True)
    singles = single_choices(found.request)
    assert [(r.prompts, r.n, r.seed) for r in singles] == [
        (("a",), None, 7), (("a",), None, 8), (("b",), None, 7), (("b",), None, 8),
    ]  # fmt: skip
    assert not harness.gateway._choose(
        CompletionRequest(prompts=("a",)), Route(model="one/m"), a_key(), strict=False
    )[0].split


def test_a_refusal_after_invisible_events_is_not_retried(
    harness: Harness, pauses: list[float]
) -> None:
    harness.play(Scripted(*INVISIBLE, UpstreamError("No.", upstream_status=400)))
    assert harness.refused("sim/m", "other/m").status == 400
    assert len(harness.asked) == 1


def test_ledger_row_records_each_attempt_without_a_secret(
    harness: Harness, pauses: list[float]
) -> None:
    harness.made(KEYS)
    words = f"sk-first-of-the-keys and {KEYS} are wrong"
    harness.play(failing(500, upstream_message=words), failing(None), good())
    harness.run()
    tries = harness.tries
    assert tries is not None
    assert [(t["code"], t["status"], t["cost_nano"]) for t in tries] == [
        ("provider_error", 500, 0), ("provider_error", None, 0), (None, None, 14_000),
    ]  # fmt: skip
    assert "sk-" not in str(tries)
    harness.play(good())
    harness.run()
    assert harness.tries is None


@pytest.mark.parametrize("how", ["stopped", "client_gone"])
@pytest.mark.parametrize("policy", ["cancel", "drain"])
def test_retry_wait_ends_at_once_when_its_call_ends(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, how: Any, policy: str
) -> None:
    harness.made(disconnect=policy)
    monkeypatch.setattr(attempts, "delay", lambda *_: 15.0)
    harness.play(failing())
    call = harness.open("sim/m", "other/m")
    assert eventually(
        lambda: bool(call.stream.attempts) and call.stream.attempts[0].ended is not None
    )
    left = threading.Event()
    call.stream.reader_left = left.set  # type: ignore[method-assign]
    call.stream.end(how)
    assert left.wait(HANG_S)
    assert list(call.frames(Words()))[-1] == how.encode()
    outcome = harness.records.only
    assert (outcome.reason, outcome.usage) == (how, Usage())
    assert len(harness.asked) == 1


def test_call_that_waits_for_a_retry_does_not_time_out(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "delay", lambda *_: 15.0)
    harness.play(failing())
    call = harness.open()
    assert eventually(
        lambda: bool(call.stream.attempts) and call.stream.attempts[0].ended is not None
    )
    call.stream.look(call.stream.opened + 700)
    assert (call.stream.expired, call.stream.mailbox.ended_by) == (None, None)
    call.close()


@pytest.mark.parametrize(
    ("wait_s", "within", "tried"),
    [(5, {}, True), (5, {"total": 4.0}, False), (21, {}, False), (None, {"total": 0.9}, False)],
)
def test_retry_wait_never_exceeds_the_cap_or_the_time_left_of_the_call(
    harness: Harness, pauses: list[float], wait_s: float, within: dict[str, float], tried: bool
) -> None:
    harness.play(failing(429, wait_s), good())
    harness.gateway.reader.breakers._clock = lambda: 0.0 if not pauses else 100.0
    if tried:
        assert harness.run(within=within) == WHOLE
        assert 5 <= pauses[0] <= 5.25
    else:
        error = harness.refused(within=within)
        assert (error.status, pauses) == (429, [])
        assert int(error.headers["Retry-After"]) >= 5


def test_fallback_model_is_tried_without_a_wait(harness: Harness, pauses: list[float]) -> None:
    harness.play(failing(503, 5), good())
    assert harness.run("sim/m", "other/m") == WHOLE
    assert (harness.names, pauses) == (["sim/m", "other/m"], [])


@pytest.mark.parametrize("stream", [True, False])
def test_error_names_all_targets_and_keeps_the_words_of_the_last_one(
    harness: Harness, pauses: list[float], stream: bool
) -> None:
    harness.made(retries=0)
    harness.play(failing(503), failing(429, 60))
    error = harness.refused("sim/m", "other/m", stream=stream)
    assert isinstance(error, RateLimited)
    assert error.message.startswith("other has limited the request rate. Try again in 60 s. ")
    assert error.message.endswith("Tried: sim/m (status 503); other/m (status 429).")
    assert harness.records.only.failures == "sim/m: status 503; other/m: status 429"


def test_error_names_a_target_that_is_paused(harness: Harness, pauses: list[float]) -> None:
    harness.made(retries=0, keys="sk-only-one-key")
    harness.play(*(failing() for _ in range(FAILURES + 1)))
    for _ in range(FAILURES):
        harness.refused("sim/m")
    error = harness.refused("sim/m", "other/m")
    assert "Tried: sim/m (paused, because it keeps failing); other/m (" in error.message


def test_the_record_of_a_call_that_a_fallback_served_names_the_failure(
    harness: Harness, pauses: list[float]
) -> None:
    harness.made(retries=0)
    harness.play(failing(503), good())
    assert harness.run("sim/m", "other/m") == WHOLE
    assert harness.records.only.failures == "sim/m: status 503"


def test_retry_budget_limits_a_failing_provider_to_a_fifth_more_attempts(
    harness: Harness, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.gateway.reader.breakers.failed = lambda *_: None  # type: ignore[method-assign]
    harness.play(*(failing() for _ in range(500)))
    for _ in range(100):
        harness.refused()
    assert 120 <= len(harness.asked) <= 120 + MOST_SAVED


# Several keys


def test_other_provider_key_is_tried_at_once_after_a_429(
    harness: Harness, pauses: list[float]
) -> None:
    harness.made(KEYS, retries=0)
    for _ in range(3):
        harness.gateway.reader._budget.take(harness.gateway.router.targets(Route(model="sim/m"))[0])
    before = dict(harness.gateway.reader._budget._saved)
    harness.play(failing(429, 60), good(), good())
    assert harness.run() == WHOLE
    assert sorted(harness.keys) == [1, 2]
    assert pauses == []
    after = harness.gateway.reader._budget._saved
    assert after == {budget: saved + 0.2 for budget, saved in before.items()}
    limited = harness.keys[0]
    assert harness.run() == WHOLE
    assert harness.keys[2] != limited


def test_fallback_to_another_model_of_the_host_is_tried_after_a_429(
    harness: Harness, pauses: list[float]
) -> None:
    harness.play(failing(429, 60), good(), good())
    assert harness.run("sim/m", "sim/n") == WHOLE
    assert harness.run("sim/n") == WHOLE
    assert (harness.names, pauses) == (["sim/m", "sim/n", "sim/n"], [])


def test_all_keys_are_tried_for_each_model_before_the_host_is_left_alone(
    harness: Harness, pauses: list[float]
) -> None:
    harness.made(KEYS, retries=0)
    harness.play(*(failing(429, 60) for _ in range(9)))
    error = harness.refused("sim/m", "sim/n", "sim/o")
    assert isinstance(error, RateLimited)
    assert harness.names == ["sim/m", "sim/m", "sim/n", "sim/n"], "two models are limited"
    assert sorted(harness.keys) == [1, 1, 2, 2]


@pytest.mark.parametrize("wait_s", [0.0, 60.0])
def test_each_rate_limited_provider_key_is_tried_once(
    harness: Harness, pauses: list[float], wait_s: float
) -> None:
    harness.made(KEYS, retries=0)
    harness.play(*(failing(429, wait_s) for _ in range(5)))
    assert isinstance(harness.refused(), RateLimited)
    assert sorted(harness.keys) == [1, 2]


def test_call_gets_retry_after_without_an_attempt_when_all_keys_are_limited(
    harness: Harness, pauses: list[float]
) -> None:
    harness.made(KEYS, retries=0)
    harness.play(failing(429, 60), failing(429, 30))
    harness.refused()
    error = harness.refused()
    assert isinstance(error, RateLimited)
    assert int(error.headers["Retry-After"]) in (29, 30)
    assert len(harness.asked) == 2
    assert len(harness.records.streams[-1].attempts) == 0
    assert set(harness.gateway.open_circuits()) == {"sim/m", "sim/m (key 2)"}


# Cool-downs


def open_circuit(harness: Harness, model: str = "sim/m") -> None:
    (target,) = harness.gateway.router.targets(Route(model=model))
    for _ in range(FAILURES):
        harness.gateway.reader.breakers.failed(target)


def test_target_with_an_open_circuit_breaker_is_skipped(harness: Harness) -> None:
    open_circuit(harness)
    harness.play(good(), good())
    error = harness.refused()
    assert isinstance(error, Unavailable)
    assert 1 <= int(error.headers["Retry-After"]) <= 10
    assert harness.asked == []
    assert harness.run("sim/m", "other/m") == WHOLE
    assert harness.names == ["other/m"]
    assert harness.run(byok="sk-own-key-of-mine") == WHOLE
    assert set(harness.gateway.open_circuits()) == {"sim/m"}


def test_single_call_probes_a_target_when_its_circuit_breaker_may_close(harness: Harness) -> None:
    open_circuit(harness)
    breakers = harness.gateway.reader.breakers
    breakers._clock = lambda: time.monotonic() + 11
    go_on = threading.Event()
    probe = Scripted(lambda: go_on.wait(HANG_S), HELLO, REST)
    harness.play(probe, good())
    call = harness.open(key=a_key(id="key_2"))
    assert eventually(lambda: len(call.stream.attempts) == 1)
    assert isinstance(harness.refused(), Unavailable)
    go_on.set()
    call.wait()
    assert harness.gateway.open_circuits() == {}
    assert harness.run() == WHOLE
    call.close()


def test_call_is_not_retried_when_its_failure_opens_the_circuit_breaker(
    harness: Harness, pauses: list[float]
) -> None:
    (target,) = harness.gateway.router.targets(Route(model="sim/m"))
    for _ in range(FAILURES - 1):
        harness.gateway.reader.breakers.failed(target)
    harness.play(failing(), good())
    assert harness.refused().status == 502
    assert (len(harness.asked), pauses) == (1, [])


@pytest.mark.parametrize(
    ("timeouts", "within", "cools"),
    [
        (Timeouts(connect=1), {"connect": 0.01}, False),
        (Timeouts(connect=1), {"connect": 5.0}, True),
        (Timeouts(connect=1), {"total": 5.0}, True),
    ],
)
def test_shorter_caller_timeout_does_not_open_the_circuit_breaker(
    harness: Harness, timeouts: Timeouts, within: dict[str, float], cools: bool
) -> None:
    harness.made(retries=0, timeouts=timeouts)
    harness.play(*(Scripted(UpstreamTimeout("connect", 1)) for _ in range(FAILURES)))
    for _ in range(FAILURES):
        assert harness.refused(within=within).status == 504
    assert bool(harness.gateway.open_circuits()) is cools


def test_upstream_404_answers_do_not_open_the_circuit_breaker(harness: Harness) -> None:
    harness.play(*(failing(404) for _ in range(FAILURES + 1)))
    for _ in range(FAILURES + 1):
        assert isinstance(harness.refused(), ModelNotFound)


# The usage of several attempts


def late(harness: Harness, attempt: Scripted, call: Call) -> None:
    assert attempt.reached.wait(HANG_S)
    call.stream.look(call.stream.attempt_began + 601)


def test_usage_includes_the_prompt_of_a_timed_out_attempt(harness: Harness) -> None:
    first = Scripted(wait)
    harness.play(first, good())
    call = harness.open("sim/m", "other/m")
    late(harness, first, call)
    call.wait()
    assert b"".join(call.frames(Words())) == WHOLE.encode()
    outcome = harness.records.only
    assert outcome.usage == Usage(2 + 8, 3, source="estimate")
    assert outcome.cost is None, "other/m has no price"
    assert [t.code for t in outcome.attempts] == ["provider_timeout", None]


@pytest.mark.parametrize(
    ("models", "cost"), [(("other/m", "sim/m"), 14_000), (("sim/m", "other/m"), None)]
)
def test_cost_is_known_only_if_the_model_that_answered_has_a_price(
    harness: Harness, pauses: list[float], models: tuple[str, ...], cost: int | None
) -> None:
    harness.made(retries=0)
    harness.play(failing(), good())
    harness.run(*models)
    assert harness.records.only.cost == cost


# Continuation

CUT = UpstreamError("Broke.")


def test_broken_stream_is_continued_with_its_text_in_the_prompt(harness: Harness) -> None:
    harness.play(Scripted(HELLO, [Delta(0, " wor")], CUT), Scripted([Started("m", 5)], REST))
    call = harness.open(continues=True, max_tokens=10)
    call.wait()
    text = b"".join(call.frames(Words())).decode()
    assert text.index("Hello") < text.index(": the stream was interrupted") < text.index(" there")
    assert text.endswith("completed")
    second = harness.asked[1].request
    assert second.prompts == ("Hi thereHello wor",)
    assert second.max_tokens == 10 - 3
    outcome = harness.records.only
    assert outcome.usage == Usage(8 + 8, 3 + 3, source="estimate")
    assert outcome.cost == 16 * 1000 + 6 * 2000
    assert (call.stream.continued, len(call.stream.attempts)) == (True, 2)
    assert harness.tries is not None


@pytest.mark.parametrize(
    ("settings", "header", "continued"),
    [({}, False, False), ({}, True, True), ({"continue_streams": True}, False, True)],
)
def test_continuation_is_enabled_by_the_caller_or_the_server(
    harness: Harness, settings: dict[str, Any], header: bool, continued: bool
) -> None:
    harness.made(**settings)
    harness.play(Scripted(HELLO, CUT), Scripted(REST))
    found = harness.run(continues=header)
    assert ("completed" in found, len(harness.asked)) == (continued, 1 + continued)


@pytest.mark.parametrize(
    ("model", "steps", "fields"),
    [
        ("chat/m", [HELLO, CUT], {}),
        ("sim/m", [HELLO, [Finished(0, "stop")], CUT], {}),
        ("sim/m", [HELLO, CUT], {"max_tokens": 2}),
        ("sim/m", [[Delta(0, "Hello\n")], CUT], {"stop": ("\n\n",)}),
        ("sim/m", [HELLO, UpstreamError("No.", upstream_status=400)], {}),
    ],
    ids=["chat", "finished", "no tokens left", "in a stop", "refused"],
)
def test_stream_is_not_continued_where_the_answer_could_differ(
    harness: Harness, model: str, steps: list[Any], fields: dict[str, Any]
) -> None:
    harness.play(Scripted(*steps), good())
    assert harness.run(model, continues=True, **fields).endswith("provider_error")
    assert len(harness.asked) == 1
    assert not harness.records.streams[0].continued


def test_broken_continuation_ends_the_call_with_the_first_failure(harness: Harness) -> None:
    mine = "sk-only-one-key"
    words = f"the key {mine} is tired"
    first = UpstreamError("First.", upstream_status=500, upstream_message=words)
    harness.play(Scripted(HELLO, first), Scripted([Delta(0, "x")], CUT), good())
    harness.gateway.reader.breakers.left = lambda *_: 0.0  # type: ignore[method-assign]
    found = harness.run("sim/m", continues=True)
    assert found.endswith("provider_error")
    assert len(harness.asked) == 2
    error = harness.records.only.error
    assert error is not None
    assert error.details is not None
    assert error.details["provider"] == "sim"
    assert mine not in str(error.details)


def test_failure_message_hides_the_key_of_the_target_that_failed(harness: Harness) -> None:
    """The target that was tried last is another one, with another key."""
    odd = "a-credential-that-looks-like-no-key"
    harness.made(odd)
    first = UpstreamError("First.", upstream_status=500, upstream_message=f"it was {odd}")
    harness.play(Scripted(HELLO, first), Scripted(CUT))
    opens_later: Callable[..., float] = lambda target: target.provider.name == "sim"  # noqa: E731
    harness.gateway.reader.breakers.enter = (  # type: ignore[method-assign]
        lambda target: float(bool(harness.asked) and opens_later(target))
    )
    harness.run("sim/m", "other/m", continues=True)
    assert harness.names == ["sim/m", "other/m"]
    error = harness.records.only.error
    assert error is not None
    assert odd not in str(error.details)
    assert (error.details or {})["provider"] == "sim"


def test_budget_claim_covers_a_call_and_its_continuation(harness: Harness) -> None:
    key = a_key(budget_usd=1.0)
    harness.play(*(Scripted(HELLO, REST) for _ in range(3)))
    harness.run(key=key, max_tokens=10)
    harness.run(key=key, max_tokens=10, continues=True)
    single, both = harness.ledger.claims
    assert single is not None
    assert both is not None
    prompt, text = (single.most_nano - 10 * 2000), 4 * 10 * 1000
    assert both.most_nano == both.least_nano == 2 * prompt + text + 10 * 2000


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, True),
        ({"stream": False}, False),
        ({"n": 2}, False),
        ({"prompts": ("a", "b")}, False),
        ({"prompts": ((1, 2),)}, False),
        ({"logprobs": 0}, False),
        ({"echo": True}, False),
        ({"suffix": "x"}, False),
        ({"extra": {"guided_regex": "a+"}}, False),
        ({"openai_extra": {"min_tokens": 5}}, False),
        ({"stop": ("x",), "max_tokens": 5, "temperature": 0.5}, True),
    ],
)
def test_only_a_plain_text_stream_of_one_choice_is_continuable(
    fields: dict[str, Any], expected: bool
) -> None:
    request = CompletionRequest(**{"prompts": ("Hi",), "stream": True, **fields})
    assert continuable(request) is expected


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [("ab", ("bc",), True), ("ab", ("x", "abc"), True), ("ab", ("b",), False), ("ab", (), False),
     ("ab", ("ca",), False)],
)  # fmt: skip
def test_text_that_ends_in_part_of_a_stop_sequence_is_detected(
    text: str, stops: tuple[str, ...], expected: bool
) -> None:
    assert ends_in_a_stop(text, CompletionRequest(prompts=("Hi",), stop=stops)) is expected


def test_usage_of_a_continued_stream_is_the_sum_of_both_calls(harness: Harness) -> None:
    first: Batch = [Delta(0, "Hello"), Used(Usage(8, 1))]
    harness.play(Scripted(first, CUT), Scripted(REST))
    harness.run(continues=True)
    assert harness.records.only.usage == Usage(16, 4)


# Parameters that a host lacks


def lacking(usage: Usage | None = None) -> Scripted:
    error = UpstreamError("The upstream sent 1 of the 2 requested choices.", unsupported="n")
    error.usage = usage
    return Scripted(error)


def test_a_host_that_ignores_a_parameter_is_not_retried_and_the_next_model_is_tried(
    harness: Harness, pauses: list[float]
) -> None:
    harness.play(lacking(), good())
    assert harness.run("sim/m", "other/m") == WHOLE
    assert (harness.names, pauses) == (["sim/m", "other/m"], [])


def test_a_host_that_ignores_a_parameter_does_not_open_its_circuit_breaker(
    harness: Harness, pauses: list[float]
) -> None:
    for _ in range(FAILURES + 1):
        harness.play(lacking())
        error = harness.refused()
        assert (error.status, error.code, error.param) == (400, "unsupported_parameter", "n")
        assert 'cannot = ["n"]' in error.message
        assert len(harness.asked) == 1
    harness.play(good())
    assert harness.run() == WHOLE


def test_the_usage_that_came_before_a_failure_is_billed(
    harness: Harness, pauses: list[float]
) -> None:
    harness.play(lacking(Usage(8, 3)))
    harness.refused(stream=False)
    settled = harness.ledger.settlements[-1]
    assert (settled.usage, settled.cost_nano) == (Usage(8, 3), 14_000)
