"""breaker_sync.py: processes share the state of circuit breakers and rate limits through Redis."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis

from cluster.redis_client import TIMEOUT_S, RedisClient
from routing import breaker_sync, circuit_breaker
from routing.breaker_sync import STREAM
from routing.circuit_breaker import (
    FAILURES,
    FIRST_S,
    HOST_S,
    MAX_COOL_DOWN_S,
    PROBE_PAUSE_S,
    CircuitBreakers,
)
from tests.routing.test_circuit_breaker import (
    BYOK,
    FIRST,
    OTHER_HOST,
    OTHER_MODEL,
    SECOND,
    SECOND_KEY,
    TARGET,
    THIRD_MODEL,
)
from tests.support.pace import scaled
from tests.support.redis_server import RedisServer

NAME = TARGET.provider.name
TARGET_KEY = (NAME, "m", 1)
NEAR = scaled(1)
"""The tolerance for waits, because Redis' clock can't be stopped during a test."""


class Process(CircuitBreakers):
    """The circuit breakers of one process, with a separate clock."""

    def __init__(self, shared: RedisClient, begins: float = 0.0, *, enabled: bool = True) -> None:
        self.shared = shared
        self.began = begins - time.monotonic()
        super().__init__(
            lambda: self.began + time.monotonic(), enabled=enabled, redis_client=shared
        )

    def fail(self, times: int = FAILURES, target: Any = TARGET) -> None:
        for _ in range(times):
            self.failed(target)

    def wait(self, seconds: float) -> None:
        """Advance this process's clock. Unread events in Redis don't age with it: see `passes`."""
        self.began += seconds


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    with contextlib.closing(redis_server.client()) as found:
        yield found


@pytest.fixture
def processes(redis_server: RedisServer) -> Iterator[list[Process]]:
    """Yield three processes on machines with unrelated clocks."""
    clients = [RedisClient(redis_server.url) for _ in range(3)]
    yield [
        Process(redis_client, begins)
        for redis_client, begins in zip(clients, (0.0, 1e6, 5e3), strict=True)
    ]
    redis_server.resume()
    for redis_client in clients:
        redis_client.close()


def beat(*processes: Process) -> None:
    for process in processes:
        process.exchange()


def passes(seconds: float, *processes: Process) -> None:
    """Advance all clocks, after the processes have exchanged their events."""
    beat(*processes, *processes)
    for process in processes:
        process.wait(seconds)


def test_a_circuit_that_opens_in_a_process_opens_in_all_processes(processes: list[Process]) -> None:
    one, two, three = processes
    one.fail()
    two.fail(FAILURES - 1, OTHER_HOST)
    beat(one, two, three)
    for other in (two, three):
        assert other.left(TARGET) == pytest.approx(FIRST_S, abs=NEAR)
        assert other.open_circuits() == {TARGET_KEY: pytest.approx(FIRST_S, abs=NEAR)}
        others = (SECOND_KEY, OTHER_MODEL, OTHER_HOST, BYOK)
        assert [other.left(target) for target in others] == [0] * 4
        assert not other.is_limited(TARGET)


def test_the_longer_of_two_waits_holds_in_both_processes(processes: list[Process]) -> None:
    one, two, _ = processes
    two.fail()
    two.wait(FIRST_S)
    two.fail(1)
    one.fail()
    beat(one, two, one)
    for process in (one, two):
        assert process.left(TARGET) == pytest.approx(2 * FIRST_S, abs=NEAR)


def test_a_process_ignores_its_own_events() -> None:
    sent = breaker_sync.BreakerEvent("cools", TARGET_KEY, 90.0, 130.0, 40.0)
    event = {b"event": breaker_sync.encode("me", sent, 100.0).encode()}
    assert breaker_sync.decode("me", event, 100.0) is None
    assert breaker_sync.decode("other", event, 1100.0) == breaker_sync.BreakerEvent(
        "cools", TARGET_KEY, 1090.0, 1130.0, 40.0
    )


def test_a_learned_circuit_admits_a_probe_and_doubles_its_wait_on_failure(
    processes: list[Process],
) -> None:
    one, two, three = processes
    one.fail()
    passes(FIRST_S, *processes)
    assert [two.enter(TARGET) for _ in "abc"] == [0, PROBE_PAUSE_S, PROBE_PAUSE_S], "one probe"
    two.fail(1)
    beat(two, one, three)
    for process in processes:
        assert process.left(TARGET) == pytest.approx(2 * FIRST_S, abs=NEAR), "twice as long"
    passes(2 * FIRST_S, *processes)
    three.fail(1)
    beat(three, one)
    assert one.left(TARGET) == pytest.approx(4 * FIRST_S, abs=NEAR)


def test_a_success_in_a_process_closes_the_circuit_in_all_processes(
    processes: list[Process],
) -> None:
    one, two, three = processes
    one.fail()
    passes(FIRST_S, *processes)
    assert two.enter(TARGET) == 0
    two.succeeded(TARGET)
    beat(two, one, three)
    for process in processes:
        assert [process.enter(TARGET) for _ in "abc"] == [0, 0, 0]
        assert process.open_circuits() == {}
    passes(5, *processes)
    one.fail(FAILURES - 1)
    assert one.left(TARGET) == 0, "the count of failures starts at 0"
    one.fail(1)
    beat(one, two)
    assert two.left(TARGET) == pytest.approx(FIRST_S, abs=NEAR), "the cool-down is short again"


def test_failures_after_a_shared_success_open_the_circuit_again(processes: list[Process]) -> None:
    one, two, three = processes
    one.fail()
    passes(5, *processes)
    for process in processes:
        process.succeeded(TARGET)
    for process in processes:
        process.wait(5)
    three.fail()
    beat(two, one, three, one, two)
    for process in processes:
        assert process.left(TARGET) == pytest.approx(FIRST_S, abs=NEAR)


def test_failures_older_than_a_success_do_not_open_the_circuit(processes: list[Process]) -> None:
    one, two, three = processes
    one.fail()
    beat(one, two)
    three.fail()  # the other processes don't know of it yet
    for process in processes:
        process.wait(2)
    two.succeeded(TARGET)
    beat(two, three, one)
    assert [process.left(TARGET) for process in processes] == [0, 0, 0]


def test_a_rate_limit_blocks_the_key_for_its_model_in_all_processes(
    processes: list[Process],
) -> None:
    one, two, three = processes
    one.limited(TARGET, 30)
    two.limited(TARGET, 3)
    beat(one, two, three)
    for process in processes:
        assert process.left(TARGET) == pytest.approx(30, abs=NEAR)
        assert process.is_limited(TARGET)
        assert process.left(OTHER_MODEL) == 0
        assert process.open_circuits() == {TARGET_KEY: pytest.approx(30, abs=NEAR)}
    assert [two.left(target) for target in (SECOND_KEY, OTHER_HOST, BYOK)] == [0] * 3
    passes(30, *processes)
    assert [two.enter(TARGET) for _ in "ab"] == [0, 0], "no probe is needed"


@pytest.mark.parametrize("aware", [True, False], ids=["after an exchange", "at the same time"])
def test_rate_limits_of_two_models_in_two_processes_block_the_key_in_all(
    processes: list[Process], aware: bool
) -> None:
    one, two, three = processes
    one.limited(TARGET, 30)
    if aware:
        beat(one, two)
    two.limited(OTHER_MODEL, 30)
    beat(one, two, three, one)
    for process in processes:
        assert process.left(THIRD_MODEL) == pytest.approx(30, abs=NEAR)
        assert process.left(SECOND_KEY) == 0


def test_a_rate_limit_and_an_open_circuit_of_a_target_are_both_sent(
    processes: list[Process],
) -> None:
    one, two, _ = processes
    one.fail()
    one.limited(TARGET, 60)
    beat(one, two)
    one.succeeded(TARGET)
    beat(one, two)
    assert two.left(TARGET) == pytest.approx(60, abs=NEAR)
    assert (NAME, "m", 1) not in two._circuits


def test_rate_limits_of_whole_keys_that_earlier_versions_send_are_understood(
    processes: list[Process], client: Any
) -> None:
    client.xadd(STREAM, {"event": json.dumps(["x", "limited", NAME, "", 1, 0.0, 30.0, 0.0])})
    beat(processes[0])
    assert processes[0].left(OTHER_MODEL) == pytest.approx(30, abs=NEAR)


def test_a_late_process_learns_each_wait_for_its_remaining_time(
    processes: list[Process], client: Any
) -> None:
    one, two, three = processes
    one.limited(SECOND_KEY, 60)
    one.fail()
    beat(one)
    late = age(client, FIRST_S - 4)
    beat(two)
    assert two.left(TARGET) == pytest.approx(4, abs=NEAR)
    assert two.left(SECOND_KEY) == pytest.approx(60 - late, abs=NEAR)
    late += age(client, 5)
    beat(three)
    assert three.open_circuits() == {(NAME, "m", 2): pytest.approx(60 - late, abs=NEAR)}
    assert [three.enter(TARGET) for _ in "ab"] == [0, 0], "it expired before it was read"


def age(client: Any, seconds: float) -> float:
    """Make the events in Redis older by some seconds, and return the seconds."""
    entries = client.xrange(STREAM)
    client.delete(STREAM)
    for number, fields in entries:
        moment, count = map(int, number.split("-"))
        client.xadd(STREAM, fields, id=f"{moment - round(seconds * 1000)}-{count}")
    client.expire(STREAM, 60)
    return seconds


def test_shared_events_expire_and_hold_no_key(processes: list[Process], client: Any) -> None:
    processes[0].fail()
    processes[0].limited(SECOND_KEY, 3600)
    processes[0].limited(msgspec.structs.replace(SECOND_KEY, model="n"), 3600)
    beat(*processes)
    assert client.keys() == [STREAM]
    assert 0 < client.pttl(STREAM) <= MAX_COOL_DOWN_S * 1000
    for _, fields in client.xrange(STREAM):
        _, kind, provider, model, number, *times = json.loads(fields["event"])
        assert (kind, provider, model, number) in [
            ("cools", NAME, "m", 1),
            ("limited", NAME, "m", 2),
            ("limited", NAME, "n", 2),
            ("limited", NAME, "", 2),
        ]
        assert all(isinstance(seconds, float) for seconds in times)


def test_outdated_events_are_trimmed_from_the_redis_stream(
    processes: list[Process], client: Any
) -> None:
    long_ago = round((time.time() - MAX_COOL_DOWN_S - 60) * 1000)
    for number in range(500):
        client.xadd(STREAM, {"event": "old"}, id=f"{long_ago}-{number}")
    processes[0].fail()
    beat(processes[0])
    assert client.xlen(STREAM) <= 200, "Redis trims only full nodes"


@pytest.mark.parametrize(
    "model", ["ünï/☃ 'quoted\" \\ \n", "\ud800", "\0", '["a", 1]', "x" * breaker_sync.MOST_NAME]
)
def test_any_model_name_can_be_shared_between_processes(
    processes: list[Process], model: str
) -> None:
    one, two, _ = processes
    target = msgspec.structs.replace(TARGET, model=model)
    one.fail(FAILURES, target)
    beat(one, two)
    assert two.left(target) == pytest.approx(FIRST_S, abs=NEAR)


def test_made_up_model_names_take_bounded_memory_and_redis_space(
    processes: list[Process], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "MAX_CIRCUITS", 30)
    monkeypatch.setattr(breaker_sync, "MOST", 100)
    one, two, _ = processes
    for turn in range(20):
        for number in range(40):
            one.fail(FAILURES, msgspec.structs.replace(TARGET, model=f"made-up-{turn}-{number}"))
        assert len(one._unsent) == 30
        beat(one, two)
    assert len(two._circuits) == 30
    assert client.xlen(STREAM) <= 100 + 200
    one.fail(FAILURES, msgspec.structs.replace(TARGET, model="x" * (breaker_sync.MOST_NAME + 1)))
    one.fail()
    beat(one, two)
    assert two.left(TARGET) > 0
    assert all(len(key[1]) <= breaker_sync.MOST_NAME for key in two._circuits)


@pytest.mark.parametrize(
    "event",
    [
        "",
        "{}",
        "null",
        '["x"]',
        '["x", "other", "openai", "m", 1, 0, 60, 10]',
        '["x", "cools", "openai", "m", null, 0, 60, 10]',
        '["x", "cools", "openai", "m", 1, "a", 60, 10]',
    ],
)
def test_unknown_or_invalid_events_are_skipped(
    processes: list[Process], client: Any, event: str
) -> None:
    client.xadd(STREAM, {"event": event})
    client.xadd(STREAM, {"fact": event})
    processes[0].fail()
    beat(*processes)
    assert processes[1].open_circuits() == {TARGET_KEY: pytest.approx(FIRST_S, abs=NEAR)}


def test_a_shared_wait_is_capped_at_the_longest_wait(processes: list[Process], client: Any) -> None:
    for kind in ("cools", "limited"):
        client.xadd(STREAM, {"event": json.dumps(["x", kind, NAME, kind, 1, 0, 1e9, 1e9])})
    beat(processes[0])
    assert [round(left) for left in processes[0].open_circuits().values()] == [
        MAX_COOL_DOWN_S,
        MAX_COOL_DOWN_S,
    ]


def test_a_disabled_circuit_breaker_learns_nothing_from_redis(processes: list[Process]) -> None:
    never = Process(processes[0].shared, enabled=False)
    never.fail()
    processes[0].fail()
    beat(never, *processes, never)
    assert never.open_circuits() == {}
    assert processes[0].shared.available


# While Redis is unavailable


def test_processes_work_separately_without_redis_and_share_waits_afterwards(
    processes: list[Process], redis_server: RedisServer
) -> None:
    one, two, _ = processes
    redis_server.crash()
    beat(*processes)
    one.fail()
    two.limited(SECOND_KEY, 30)
    beat(*processes)
    assert [process.left(TARGET) > 0 for process in processes] == [True, False, False]
    redis_server.restart()
    for process in processes:
        process.shared.probe(lambda client: client.ping())
    beat(*processes, *processes)
    for process in processes:
        assert process.left(TARGET) == pytest.approx(FIRST_S, abs=NEAR)
        assert process.left(SECOND_KEY) == pytest.approx(30, abs=NEAR)


def test_a_redis_flush_closes_no_circuit_and_stops_no_sharing(
    processes: list[Process], client: Any
) -> None:
    one, two, three = processes
    one.fail()
    beat(one, two)
    client.flushall()
    beat(*processes)
    assert [process.left(TARGET) > 0 for process in processes] == [True, True, False]
    three.fail(FAILURES, OTHER_HOST)
    beat(three, two)
    assert two.left(OTHER_HOST) > 0, "later events still arrive"


def test_events_are_read_after_the_redis_clock_is_set_back(
    processes: list[Process], client: Any
) -> None:
    one, two, _ = processes
    one.fail()
    beat(one, two)
    two._sync._last = f"{round((time.time() + 86_400) * 1000)}-0"  # type: ignore[union-attr]
    one.fail(FAILURES, OTHER_HOST)
    beat(one, two)
    assert two.left(OTHER_HOST) > 0


def test_a_call_never_waits_for_redis(processes: list[Process], redis_server: RedisServer) -> None:
    one = processes[0]
    one.fail()
    redis_server.pause()
    beats = threading.Thread(target=one.exchange)
    beats.start()
    began = time.monotonic()
    for _ in range(200):
        one.enter(TARGET)
        one.failed(OTHER_HOST)
        one.succeeded(OTHER_HOST)
        one.limited(SECOND_KEY, 1)
        one.open_circuits()
    assert time.monotonic() - began < TIMEOUT_S / 2
    assert beats.is_alive()
    redis_server.resume()
    beats.join()


def test_events_are_not_kept_when_no_redis_is_configured() -> None:
    alone = CircuitBreakers()
    alone.exchange()
    for _ in range(FAILURES):
        alone.failed(TARGET)
    alone.exchange()
    assert alone.left(TARGET) > 0
    assert alone._unsent == {}


def test_a_redis_key_of_the_wrong_type_raises_nothing(
    processes: list[Process], client: redis.Redis
) -> None:
    client.set(STREAM, "not a stream")
    processes[0].fail()
    beat(processes[0])
    assert processes[0].left(TARGET) > 0


# Replicas


def test_other_processes_only_suspect_a_replica_that_one_cannot_reach(
    processes: list[Process],
) -> None:
    one, two, _ = processes
    one.unreached(FIRST)
    beat(one, two)
    assert two.left(FIRST) == two.left(SECOND) == 0
    assert two.suspected([FIRST, SECOND]) == [FIRST]
    assert two.suspected([FIRST, SECOND]) == [], "once"
    assert one.suspected([FIRST, SECOND]) == [], "its own"


def test_a_replica_that_stays_away_is_reported_once(processes: list[Process]) -> None:
    one, two, _ = processes
    for _ in range(3):
        one.unreached(FIRST)
        beat(one, two)
    assert two.suspected([FIRST]) == [FIRST]
    one.unreached(FIRST)
    beat(one, two)
    assert two.suspected([FIRST]) == []


def test_a_replica_that_one_process_reaches_stays_away_for_another(
    processes: list[Process],
) -> None:
    one, two, _ = processes
    one.unreached(FIRST)
    two.unreached(FIRST)
    beat(one, two)
    two.reached(FIRST)
    two.succeeded(FIRST)
    beat(two, one)
    assert two.left(FIRST) == 0
    assert HOST_S - NEAR < one.left(FIRST) <= HOST_S


def test_a_failing_replica_is_an_unknown_provider_to_earlier_versions(
    processes: list[Process],
) -> None:
    one, two, _ = processes
    one.fail(target=FIRST)
    beat(one, two)
    assert two.left(TARGET) == 0, "this is how earlier versions look it up"
    assert set(two.open_circuits()) == {(f"{NAME}@a", "m", 1)}
