"""replicas.py and attempts.py: the attempts of a call to a row with replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from config import Settings
from errors import Unavailable, UpstreamError, UpstreamTimeout
from gateway import replicas
from gateway.gateway import Gateway
from ledger.ledger import Ledger
from providers.transport.exchange import Transport
from quota.quota import Quota
from routing.circuit_breaker import FAILURES
from routing.retries import MOST_SAVED
from streams.stream import Stream
from tests.gateway.test_attempts import WHOLE, Harness, failing, good
from tests.gateway.test_gateway import HELLO, PRICES, REST, Scripted, Words, eventually

NAMES = [f"127.0.0.{n}:1" for n in range(1, 4)]
ROWS: dict[str, dict[str, Any]] = {
    "sim": {
        "base_url": [f"http://{name}/v1" for name in NAMES],
        "completions": True,
        "api_key_env": "SIM_KEY",
    },
    "other": {"base_url": "http://127.0.0.1:1/v1", "completions": True},
}


class ReplicaHarness(Harness):
    """A gateway with three replicas. `reachable` are those that a check can reach."""

    reachable: set[str]
    checks: list[str]

    def made(self, keys: str = "sk-only-one-key", **settings: Any) -> Gateway:
        found = Settings(providers=ROWS, prices=PRICES, environ={"SIM_KEY": keys}, **settings)
        ledger = cast(Ledger, self.ledger)
        self.gateway = Gateway(found, Quota(found.reserve_tokens), ledger, self.records)
        return self.gateway

    @property
    def places(self) -> list[str]:
        """The replicas that were tried."""
        return [candidate.target.replica for candidate in self.asked]

    @property
    def loads(self) -> dict[tuple[str, str], int]:
        return self.gateway.reader.replicas.loads.own()


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReplicaHarness]:
    found = ReplicaHarness(monkeypatch)
    found.reachable, found.checks = set(), []

    def reaches(transport: Transport, url: str, *_: object) -> bool:
        if transport is not found.gateway.reader.replicas._transport:
            return True  # ends the watch of a gateway of another test
        found.checks.append(url)
        return any(name in url for name in found.reachable)

    monkeypatch.setattr(Transport, "reaches", reaches)
    monkeypatch.setattr(replicas, "CHECK_S", 0.01)
    yield found
    found.reachable.update(NAMES)  # ends the watches
    assert eventually(lambda: not found.gateway.reader.replicas._watched)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []

    def pause(_stream: Stream, seconds: float) -> bool:
        found.append(seconds)
        return True

    monkeypatch.setattr(Stream, "pause", pause)
    return found


def refused() -> Scripted:
    return Scripted(UpstreamError("Not reached.", host="h", reason="refused"))


def timed_out() -> Scripted:
    return Scripted(UpstreamTimeout("connect", 1.0))


def broken() -> Scripted:
    return Scripted(UpstreamError("Closed.", host="h", reason="closed"))


def test_calls_with_one_prefix_go_to_one_replica(harness: ReplicaHarness) -> None:
    harness.play(*(good() for _ in range(6)))
    for number in range(6):
        harness.run(prompts=("Once upon a time. " * 100 + str(number),))
    assert len(set(harness.places)) == 1


def test_calls_with_one_affinity_key_go_to_one_replica(harness: ReplicaHarness) -> None:
    harness.play(*(good() for _ in range(40)))
    for number in range(20):
        call = harness.open(prompts=(f"{number}",), stream=False, affinity="k")
        call.result()
        call = harness.open(prompts=(f"{number}",), stream=False)
        call.result()
    assert len(set(harness.places[::2])) == 1
    assert len(set(harness.places[1::2])) == 3


def test_the_provider_of_a_call_is_the_row_and_not_the_replica(harness: ReplicaHarness) -> None:
    harness.play(failing(), good())
    harness.run()
    assert harness.names == ["sim/m"] * 2
    assert harness.tries is not None
    assert {t["provider"] for t in harness.tries} == {"sim"}
    assert harness.ledger.settlements[-1].provider == "sim"


@pytest.mark.parametrize("fails", [refused, broken])
def test_a_call_leaves_a_lost_replica_at_once(
    harness: ReplicaHarness, pauses: list[float], fails: Callable[[], Scripted]
) -> None:
    harness.play(fails(), good())
    assert harness.run() == WHOLE
    assert len(set(harness.places)) == 2
    assert pauses == []


def test_leaving_a_lost_replica_takes_no_retry_from_the_budget(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    calls = 2 * int(MOST_SAVED) + 10
    harness.made(cooldown=False)
    harness.play(*(script for _ in range(calls) for script in (broken(), good())))
    for _ in range(calls):
        assert harness.run() == WHOLE
    assert pauses == []


def test_a_request_that_breaks_replicas_gets_to_two_at_once_and_then_needs_retries(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.made(retries=1)
    harness.play(*(broken() for _ in range(9)))
    harness.refused()
    assert len(harness.places) == len(set(harness.places)) == 3
    assert len(pauses) == 1


def test_a_retry_waits_and_goes_to_another_replica(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.play(failing(503), failing(503), good())
    assert harness.run() == WHOLE
    assert len(set(harness.places)) == 3
    assert len(pauses) == 2


@pytest.mark.parametrize(
    "fails", [lambda: Scripted(UpstreamTimeout("first_event", 1.0)), lambda: failing(424)]
)
def test_after_a_replica_that_is_too_slow_each_other_one_may_get_a_retry(
    harness: ReplicaHarness, pauses: list[float], fails: Callable[[], Scripted]
) -> None:
    harness.made(retries=5)
    harness.play(fails(), good())
    assert harness.run() == WHOLE
    harness.play(fails(), fails(), fails(), good())
    first = len(harness.places)
    harness.refused(prompts=("other",))
    assert len(harness.places[first:]) == len(set(harness.places[first:])) == 3
    assert len(pauses) == 3, "each of them was a retry"


def test_a_fallback_comes_before_a_second_replica_that_may_be_too_slow(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.play(Scripted(UpstreamTimeout("first_event", 1.0)), good())
    assert harness.run("sim/m", "other/m") == WHOLE
    assert harness.names == ["sim/m", "other/m"]
    assert pauses == []


def test_without_retries_a_replica_that_is_too_slow_ends_the_call(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.made(retries=0)
    harness.play(Scripted(UpstreamTimeout("first_event", 1.0)), good())
    assert harness.refused().status == 504
    assert (len(harness.places), pauses) == (1, [])


def test_an_unreachable_replica_is_not_called_again_until_it_is_back(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.play(refused(), *(good() for _ in range(12)))
    harness.run()
    lost, second = harness.places
    for _ in range(5):
        harness.run()
    assert harness.places[2:] == [second] * 5, "its calls have one other home"
    assert list(harness.gateway.open_circuits()) == [f"sim (replica {NAMES.index(lost) + 1})"]
    assert eventually(lambda: len(harness.checks) > 2)
    assert all(lost in url for url in harness.checks)
    harness.reachable.add(lost)
    assert eventually(lambda: not harness.gateway.open_circuits())
    harness.run()
    assert harness.places[-1] == lost


@pytest.mark.parametrize("is_reachable", [True, False])
def test_a_replica_that_another_process_lost_is_checked_before_it_is_left(
    harness: ReplicaHarness, is_reachable: bool
) -> None:
    breakers = harness.gateway.reader.breakers
    if is_reachable:
        harness.reachable.add(NAMES[1])
    breakers._suspected.add(("sim@" + NAMES[1], "", 0))
    harness.gateway.check_replicas()
    assert eventually(lambda: bool(harness.checks))
    assert set(harness.checks) == {f"http://{NAMES[1]}/v1"}
    if is_reachable:
        assert eventually(lambda: not harness.gateway.reader.replicas._watched)
        assert harness.gateway.open_circuits() == {}
    else:
        assert eventually(lambda: list(harness.gateway.open_circuits()) == ["sim (replica 2)"])
        harness.play(*(good() for _ in range(20)))
        for number in range(20):
            harness.run(prompts=(str(number),))
        assert set(harness.places) == {NAMES[0], NAMES[2]}


def test_an_unreachable_replica_is_lost_for_all_models_keys_and_byok_calls(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.made("sk-first-of-the-keys, sk-other-of-the-keys")
    harness.play(refused(), *(good() for _ in range(40)))
    harness.run()
    lost = harness.places[0]
    for number in range(10):
        harness.run("sim/x", prompts=(str(number),))
        harness.run("sim/y", prompts=(str(number),), byok="sk-a-caller-s-own-key")
    assert lost not in harness.places[1:]


def test_a_byok_call_leaves_a_lost_replica_too(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.play(refused(), good(), good())
    assert harness.run(byok="sk-a-caller-s-own-key") == WHOLE
    harness.run()
    assert harness.places[2] == harness.places[1] != harness.places[0]
    assert pauses == []


def test_without_any_reachable_replica_a_call_fails_at_once_and_names_the_model(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.play(*(refused() for _ in range(3)), good())
    assert harness.refused().status == 502
    assert len(set(harness.places)) == 3
    paused = harness.refused()
    assert isinstance(paused, Unavailable)
    assert "sim/m is failing" in paused.message
    assert harness.run("sim/m", "other/m") == WHOLE
    assert pauses == []


def test_a_replica_that_answers_with_failures_is_paused_alone(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.play(*(script for _ in range(FAILURES) for script in (failing(), good())), good())
    for _ in range(FAILURES):
        harness.run()
    harness.run()
    first, *_ = harness.places
    assert harness.places.count(first) == FAILURES
    number = NAMES.index(first) + 1
    assert list(harness.gateway.open_circuits()) == [f"sim/m (replica {number})"]
    assert harness.checks == [], "it can be reached"


def test_after_a_429_the_other_replicas_are_tried_at_once(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.play(failing(429, 5.0), good())
    assert harness.run() == WHOLE
    assert len(set(harness.places)) == 2
    assert pauses == []


def test_a_connection_timeout_loses_a_replica_unless_the_caller_set_it(
    harness: ReplicaHarness, pauses: list[float]
) -> None:
    harness.play(*(script for _ in range(2) for script in (timed_out(), good())))
    harness.run(within={"connect": 1.0})
    assert harness.gateway.open_circuits() == {}
    harness.run()
    number = NAMES.index(harness.places[2]) + 1
    assert list(harness.gateway.open_circuits()) == [f"sim (replica {number})"]


def test_calls_in_flight_are_counted_until_their_attempt_ends(harness: ReplicaHarness) -> None:
    counted: list[int] = []
    put = Stream.put

    def counting(self: Stream, batch: Any) -> bool:
        counted.append(sum(harness.loads.values()))
        return put(self, batch)

    harness.play(broken(), Scripted(HELLO, REST))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "put", counting)
        harness.run()
    assert set(counted) == {1}
    assert eventually(lambda: harness.loads == {})
    assert harness.gateway.replica_calls() == {("sim", name): 0 for name in NAMES}


def test_a_continuation_goes_to_another_replica(harness: ReplicaHarness) -> None:
    harness.play(Scripted(HELLO, UpstreamError("Broke.")), good())
    call = harness.open(continues=True)
    call.wait()
    assert b"completed" in b"".join(call.frames(Words()))
    assert len(harness.places) == len(set(harness.places)) == 2


def test_no_other_row_gets_the_key_of_a_replica(harness: ReplicaHarness) -> None:
    harness.play(*(refused() for _ in range(3)), good())
    harness.run("sim/m", "other/m")
    sent = [(c.target.provider.base_url, c.target.credential) for c in harness.asked]
    assert all(key is not None for _, key in sent[:3])
    assert sorted(url for url, _ in sent[:3]) == [f"http://{name}/v1" for name in NAMES]
    assert sent[3] == ("http://127.0.0.1:1/v1", None)
