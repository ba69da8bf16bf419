"""circuit_breaker.py: when a circuit breaker opens, how long it stays open, and its probes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import pytest

from providers.base import Replica, Target
from providers.hosts import BUILT_IN
from routing import circuit_breaker
from routing.circuit_breaker import (
    FAILURES,
    FIRST_S,
    HOST_S,
    MAX_COOL_DOWN_S,
    PROBE_PAUSE_S,
    PROBE_S,
    WINDOW_CALLS,
    CircuitBreakers,
)

TARGET = Target(BUILT_IN[1], "m")
SECOND_KEY = msgspec.structs.replace(TARGET, key_number=2)
OTHER_MODEL = msgspec.structs.replace(TARGET, model="n")
THIRD_MODEL = msgspec.structs.replace(TARGET, model="o")
OTHER_HOST = Target(BUILT_IN[2], "m")
BYOK = msgspec.structs.replace(TARGET, byok=True)


class Clocked(CircuitBreakers):
    """Circuit breakers with a clock that the test moves. It starts at 0, as on a fresh machine."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(lambda: self.now)

    def fail(self, times: int = FAILURES, target: Target = TARGET) -> None:
        for _ in range(times):
            self.failed(target)


@pytest.fixture
def breakers() -> Clocked:
    return Clocked()


def test_the_circuit_of_a_target_opens_after_consecutive_failures(breakers: Clocked) -> None:
    breakers.fail(FAILURES - 1)
    assert breakers.left(TARGET) == 0
    breakers.fail(1)
    assert breakers.left(TARGET) == FIRST_S
    assert [breakers.left(t) for t in (SECOND_KEY, OTHER_MODEL, OTHER_HOST, BYOK)] == [0] * 4
    assert not breakers.is_limited(TARGET)


def test_a_success_resets_the_count_of_consecutive_failures(breakers: Clocked) -> None:
    for _ in range(2):
        breakers.fail(FAILURES - 1)
        breakers.succeeded(TARGET)
    breakers.fail(FAILURES - 1)
    assert breakers.left(TARGET) == 0


@pytest.mark.parametrize(("every", "opens"), [(2, True), (3, False)])
@pytest.mark.parametrize(("apart", "recent"), [(1.0, True), (10.0, False)])
def test_the_circuit_opens_when_half_of_the_recent_calls_fail(
    breakers: Clocked, every: int, opens: bool, apart: float, recent: bool
) -> None:
    for number in range(WINDOW_CALLS + 1):
        (breakers.failed if number % every == 0 else breakers.succeeded)(TARGET)
        breakers.now += apart
    breakers.now -= apart
    assert (breakers.left(TARGET) > 0) is (opens and recent)


def test_a_half_open_circuit_admits_a_single_probe(breakers: Clocked) -> None:
    breakers.fail()
    breakers.now += FIRST_S
    assert breakers.left(TARGET) == breakers.left(TARGET) == 0, "left() starts no probe"
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.append(breakers.enter(TARGET))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0.0] + [PROBE_PAUSE_S] * 19
    assert breakers.left(TARGET) == PROBE_PAUSE_S


def test_a_successful_probe_closes_the_circuit(breakers: Clocked) -> None:
    breakers.fail()
    breakers.now += FIRST_S
    assert breakers.enter(TARGET) == 0
    breakers.succeeded(TARGET)
    assert breakers.enter(TARGET) == breakers.enter(TARGET) == 0
    assert breakers.open_circuits() == {}


def test_a_failed_probe_reopens_the_circuit_for_longer_up_to_a_bound(breakers: Clocked) -> None:
    breakers.fail()
    lengths = []
    for _ in range(6):
        breakers.now += breakers.left(TARGET)
        assert breakers.enter(TARGET) == 0
        breakers.fail(1)
        lengths.append(breakers.left(TARGET))
    assert lengths == [20, 40, 80, MAX_COOL_DOWN_S, MAX_COOL_DOWN_S, MAX_COOL_DOWN_S]


def test_a_probe_without_a_result_expires(breakers: Clocked) -> None:
    breakers.fail()
    breakers.now += FIRST_S
    assert breakers.enter(TARGET) == 0
    breakers.now += PROBE_S - 0.1
    assert breakers.enter(TARGET) == PROBE_PAUSE_S
    breakers.now += 0.2
    assert [breakers.enter(TARGET) for _ in "ab"] == [0, PROBE_PAUSE_S]


def test_failures_while_a_circuit_is_open_do_not_extend_it(breakers: Clocked) -> None:
    breakers.fail(100)
    breakers.now += 1
    breakers.fail(100)
    assert breakers.left(TARGET) == FIRST_S - 1


@pytest.mark.parametrize(("asked", "waits"), [(3.0, 3.0), (0.0, 0.0), (3600.0, MAX_COOL_DOWN_S)])
def test_a_rate_limit_blocks_the_key_for_its_model_only(
    breakers: Clocked, asked: float, waits: float
) -> None:
    breakers.limited(TARGET, asked)
    assert breakers.left(TARGET) == breakers.enter(TARGET) == waits
    assert breakers.is_limited(TARGET) is bool(waits)
    others = (OTHER_MODEL, SECOND_KEY, OTHER_HOST, BYOK)
    assert [breakers.left(target) for target in others] == [0] * 4
    assert not breakers.is_limited(OTHER_MODEL)
    breakers.now += waits
    assert [breakers.enter(TARGET) for _ in "ab"] == [0, 0], "no probe is needed"


def test_a_rate_limit_of_a_second_model_blocks_the_key_for_every_model(breakers: Clocked) -> None:
    breakers.limited(TARGET, 60)
    breakers.now += 1
    breakers.limited(OTHER_MODEL, 5)
    assert [breakers.left(t) for t in (TARGET, OTHER_MODEL, THIRD_MODEL)] == [59, 5, 5]
    assert [breakers.left(t) for t in (SECOND_KEY, OTHER_HOST, BYOK)] == [0] * 3
    breakers.now += 5
    assert [breakers.left(t) for t in (TARGET, OTHER_MODEL, THIRD_MODEL)] == [54, 0, 0]


@pytest.mark.parametrize(
    ("target", "later"),
    [(TARGET, 1.0), (OTHER_MODEL, 60.0), (SECOND_KEY, 1.0), (OTHER_HOST, 1.0), (BYOK, 1.0)],
    ids=["same model", "first wait ended", "other key", "other host", "BYOK"],
)
def test_only_a_second_model_that_is_limited_at_the_same_time_blocks_the_key(
    breakers: Clocked, target: Target, later: float
) -> None:
    breakers.limited(TARGET, 60)
    breakers.now += later
    breakers.limited(target, 60)
    assert breakers.left(THIRD_MODEL) == 0


def test_rate_limits_of_many_models_are_forgotten_after_their_waits(breakers: Clocked) -> None:
    for number in range(50):
        breakers.limited(msgspec.structs.replace(TARGET, model=f"made-up-{number}"), 1)
        breakers.now += 1
    assert [len(ends) for ends in breakers._limited.values()] == [1]


def test_a_target_that_fails_and_is_limited_waits_for_the_longer_time(breakers: Clocked) -> None:
    breakers.fail()
    breakers.limited(TARGET, 4)
    assert breakers.left(TARGET) == 4, "the rate limit is looked at first"
    assert breakers.open_circuits() == {(TARGET.provider.name, "m", 1): FIRST_S}


def test_a_shorter_rate_limit_wait_does_not_end_a_longer_wait(breakers: Clocked) -> None:
    breakers.limited(TARGET, 9)
    breakers.limited(TARGET, 2)
    assert breakers.left(TARGET) == 9


@pytest.mark.parametrize(
    "happens",
    [
        lambda found: [found.failed(BYOK) for _ in range(50)],
        lambda found: found.limited(BYOK, 60),
        lambda found: found.succeeded(BYOK),
    ],
)
def test_calls_with_a_byok_key_do_not_change_the_circuit(
    breakers: Clocked, happens: Callable[[Clocked], object]
) -> None:
    breakers.fail(1)
    happens(breakers)
    assert breakers.open_circuits() == {}
    breakers.fail(FAILURES - 1)
    assert breakers.left(TARGET) == FIRST_S, "a BYOK success must not reset the count"


def test_open_circuits_lists_open_circuits_and_rate_limited_keys(breakers: Clocked) -> None:
    breakers.fail()
    breakers.limited(SECOND_KEY, 4)
    breakers.fail(1, OTHER_HOST)
    name = TARGET.provider.name
    assert breakers.open_circuits() == {(name, "m", 1): FIRST_S, (name, "m", 2): 4}
    breakers.limited(msgspec.structs.replace(OTHER_MODEL, key_number=2), 3)
    limited = {(name, "m", 2): 4, (name, "n", 2): 3, (name, "", 2): 3}
    assert breakers.open_circuits() == {(name, "m", 1): FIRST_S} | limited
    breakers.now += FIRST_S
    assert breakers.open_circuits() == {}


def test_made_up_model_names_take_bounded_memory_and_hide_no_failing_target(
    breakers: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "MAX_CIRCUITS", 3)
    for number in range(10):
        breakers.failed(msgspec.structs.replace(TARGET, model=f"made-up-{number}"))
    breakers.fail()
    assert breakers.left(TARGET) == FIRST_S
    assert len(breakers._circuits) == 3


def test_a_disabled_circuit_breaker_never_opens() -> None:
    never = CircuitBreakers(enabled=False)
    for _ in range(FAILURES):
        never.failed(TARGET)
    never.limited(TARGET, 30)
    assert (never.left(TARGET), never.enter(TARGET), never.open_circuits()) == (0, 0, {})


# Replicas

ROW = msgspec.structs.replace(
    BUILT_IN[1],
    replicas=(Replica(url="http://a/v1", name="a"), Replica(url="http://b/v1", name="b")),
)
FIRST, SECOND = Target(ROW, "m").replicas


def test_an_unreachable_replica_is_paused_at_once_for_all_models_and_keys(
    breakers: Clocked,
) -> None:
    breakers.unreached(FIRST)
    for changes in ({"model": "n"}, {"key_number": 2}, {"byok": True}, {}):
        assert breakers.left(msgspec.structs.replace(FIRST, **changes)) == HOST_S
        assert breakers.left(msgspec.structs.replace(SECOND, **changes)) == 0
    assert breakers.open_circuits() == {("openai@a", "", 0): HOST_S}
    breakers.reached(FIRST)
    assert breakers.left(FIRST) == 0
    assert not breakers.is_unreached(FIRST)


def test_the_pause_of_an_unreachable_replica_does_not_grow(breakers: Clocked) -> None:
    for _ in range(9):
        breakers.now += HOST_S
        breakers.unreached(FIRST)
    assert breakers.left(FIRST) == HOST_S


def test_after_its_pause_an_unreachable_replica_gets_a_single_call(breakers: Clocked) -> None:
    breakers.unreached(FIRST)
    breakers.now += HOST_S
    assert breakers.enter(FIRST) == 0
    assert breakers.enter(msgspec.structs.replace(FIRST, model="n")) == PROBE_PAUSE_S
    breakers.succeeded(FIRST)
    assert breakers.enter(FIRST) == 0
    assert breakers.open_circuits() == {}


def test_a_call_that_must_wait_for_its_model_does_not_use_up_the_replica_s_probe(
    breakers: Clocked,
) -> None:
    breakers.unreached(FIRST)
    breakers.now += HOST_S
    breakers.limited(FIRST, 9)
    assert breakers.enter(FIRST) == 9
    assert breakers.enter(msgspec.structs.replace(FIRST, model="n")) == 0


def test_replicas_fail_and_are_limited_separately(breakers: Clocked) -> None:
    breakers.fail(target=FIRST)
    breakers.limited(SECOND, 4)
    assert (breakers.left(FIRST), breakers.left(SECOND)) == (FIRST_S, 4)
    assert breakers.left(TARGET) == 0, "the key of a row without replicas"


def test_without_cool_downs_no_replica_is_paused() -> None:
    breakers = CircuitBreakers(enabled=False)
    breakers.unreached(FIRST)
    assert breakers.left(FIRST) == 0
