"""breaker_sync.py: what one process learns of a target, the others know a beat later."""

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
from routing.circuit_breaker import FAILURES, FIRST_S, LONGEST_S, PROBE_PAUSE_S, CircuitBreakers
from tests.routing.test_circuit_breaker import BYOK, OTHER_HOST, OTHER_MODEL, SECOND_KEY, TARGET
from tests.support.pace import scaled
from tests.support.redis_server import RedisServer

NAME = TARGET.provider.name
PLACE = (NAME, "m", 1)
NEAR = scaled(1)
"""How much a wait may differ: the clock of Redis goes on while the tests work."""


class Process(CircuitBreakers):
    """The cool-downs of one process, with a clock of its own."""

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
        """Its clock goes on, and so does what it has told: see `passes`."""
        self.began += seconds


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    with contextlib.closing(redis_server.client()) as found:
        yield found


@pytest.fixture
def house(redis_server: RedisServer) -> Iterator[list[Process]]:
    """Three processes, on machines whose clocks have nothing in common."""
    ways = [RedisClient(redis_server.url) for _ in range(3)]
    yield [Process(way, begins) for way, begins in zip(ways, (0.0, 1e6, 5e3), strict=True)]
    redis_server.resume()
    for way in ways:
        way.close()


def beat(*processes: Process) -> None:
    for process in processes:
        process.exchange()


def passes(seconds: float, *processes: Process) -> None:
    """Time passes for all; what they had told, they have read."""
    beat(*processes, *processes)
    for process in processes:
        process.wait(seconds)


def test_a_circuit_that_opens_in_a_process_opens_in_all_processes(house: list[Process]) -> None:
    one, two, three = house
    one.fail()
    two.fail(FAILURES - 1, OTHER_HOST)
    beat(one, two, three)
    for other in (two, three):
        assert other.left(TARGET) == pytest.approx(FIRST_S, abs=NEAR)
        assert other.open_circuits() == {PLACE: pytest.approx(FIRST_S, abs=NEAR)}
        others = (SECOND_KEY, OTHER_MODEL, OTHER_HOST, BYOK)
        assert [other.left(target) for target in others] == [0] * 4
        assert not other.is_limited(TARGET)


def test_the_longer_of_two_waits_holds_in_both_processes(house: list[Process]) -> None:
    one, two, _ = house
    two.fail()
    two.wait(FIRST_S)
    two.fail(1)
    one.fail()
    beat(one, two, one)
    for process in (one, two):
        assert process.left(TARGET) == pytest.approx(2 * FIRST_S, abs=NEAR)


def test_a_process_ignores_its_own_events() -> None:
    fact = breaker_sync.BreakerEvent("cools", PLACE, 90.0, 130.0, 40.0)
    event = {b"event": breaker_sync.encode("me", fact, 100.0).encode()}
    assert breaker_sync.decode("me", event, 100.0) is None
    assert breaker_sync.decode("other", event, 1100.0) == breaker_sync.BreakerEvent(
        "cools", PLACE, 1090.0, 1130.0, 40.0
    )


def test_a_learned_circuit_admits_a_probe_and_doubles_its_wait_on_failure(
    house: list[Process],
) -> None:
    one, two, three = house
    one.fail()
    passes(FIRST_S, *house)
    assert [two.enter(TARGET) for _ in "abc"] == [0, PROBE_PAUSE_S, PROBE_PAUSE_S], "one probe"
    two.fail(1)
    beat(two, one, three)
    for process in house:
        assert process.left(TARGET) == pytest.approx(2 * FIRST_S, abs=NEAR), "for longer"
    passes(2 * FIRST_S, *house)
    three.fail(1)
    beat(three, one)
    assert one.left(TARGET) == pytest.approx(4 * FIRST_S, abs=NEAR)


def test_a_success_in_a_process_closes_the_circuit_in_all_processes(house: list[Process]) -> None:
    one, two, three = house
    one.fail()
    passes(FIRST_S, *house)
    assert two.enter(TARGET) == 0
    two.succeeded(TARGET)
    beat(two, one, three)
    for process in house:
        assert [process.enter(TARGET) for _ in "abc"] == [0, 0, 0]
        assert process.open_circuits() == {}
    passes(5, *house)
    one.fail(FAILURES - 1)
    assert one.left(TARGET) == 0, "the row begins anew"
    one.fail(1)
    beat(one, two)
    assert two.left(TARGET) == pytest.approx(FIRST_S, abs=NEAR), "and so do the times"


def test_failures_after_a_shared_success_open_the_circuit_again(house: list[Process]) -> None:
    one, two, three = house
    one.fail()
    passes(5, *house)
    for process in house:
        process.succeeded(TARGET)
    for process in house:
        process.wait(5)
    three.fail()
    beat(two, one, three, one, two)
    for process in house:
        assert process.left(TARGET) == pytest.approx(FIRST_S, abs=NEAR)


def test_failures_older_than_a_success_do_not_open_the_circuit(house: list[Process]) -> None:
    one, two, three = house
    one.fail()
    beat(one, two)
    three.fail()  # and isn't heard of yet
    for process in house:
        process.wait(2)
    two.succeeded(TARGET)
    beat(two, three, one)
    assert [process.left(TARGET) for process in house] == [0, 0, 0]


def test_a_rate_limit_blocks_the_key_in_all_processes(house: list[Process]) -> None:
    one, two, three = house
    one.limited(TARGET, 30)
    two.limited(TARGET, 3)
    beat(one, two, three)
    for process in house:
        assert process.left(OTHER_MODEL) == pytest.approx(30, abs=NEAR)
        assert process.is_limited(TARGET)
        assert process.open_circuits() == {(NAME, "", 1): pytest.approx(30, abs=NEAR)}
    assert [two.left(target) for target in (SECOND_KEY, OTHER_HOST, BYOK)] == [0] * 3
    passes(30, *house)
    assert [two.enter(TARGET) for _ in "ab"] == [0, 0], "no probe is needed"


def test_a_late_process_learns_each_wait_for_its_remaining_time(
    house: list[Process], client: Any
) -> None:
    one, two, three = house
    one.limited(SECOND_KEY, 60)
    one.fail()
    beat(one)
    late = age(client, FIRST_S - 4)
    beat(two)
    assert two.left(TARGET) == pytest.approx(4, abs=NEAR)
    assert two.left(SECOND_KEY) == pytest.approx(60 - late, abs=NEAR)
    late += age(client, 5)
    beat(three)
    assert three.open_circuits() == {(NAME, "", 2): pytest.approx(60 - late, abs=NEAR)}
    assert [three.enter(TARGET) for _ in "ab"] == [0, 0], "it never knew"


def age(client: Any, seconds: float) -> float:
    """Make what was told so much older."""
    entries = client.xrange(STREAM)
    client.delete(STREAM)
    for number, fields in entries:
        moment, count = map(int, number.split("-"))
        client.xadd(STREAM, fields, id=f"{moment - round(seconds * 1000)}-{count}")
    client.expire(STREAM, 60)
    return seconds


def test_shared_events_expire_and_hold_no_key(house: list[Process], client: Any) -> None:
    house[0].fail()
    house[0].limited(SECOND_KEY, 3600)
    beat(*house)
    assert client.keys() == [STREAM]
    assert 0 < client.pttl(STREAM) <= LONGEST_S * 1000
    for _, fields in client.xrange(STREAM):
        _, kind, provider, model, number, *times = json.loads(fields["event"])
        assert (kind, provider, model, number) in [
            ("cools", NAME, "m", 1),
            ("limited", NAME, "", 2),
        ]
        assert all(isinstance(seconds, float) for seconds in times)


def test_outdated_events_are_trimmed_from_the_redis_stream(
    house: list[Process], client: Any
) -> None:
    long_ago = round((time.time() - LONGEST_S - 60) * 1000)
    for number in range(500):
        client.xadd(STREAM, {"event": "old"}, id=f"{long_ago}-{number}")
    house[0].fail()
    beat(house[0])
    assert client.xlen(STREAM) <= 200, "Redis cuts off what is full"


@pytest.mark.parametrize(
    "model", ["ünï/☃ 'quoted\" \\ \n", "\ud800", "\0", '["a", 1]', "x" * breaker_sync.MOST_NAME]
)
def test_any_model_name_can_be_shared_between_processes(house: list[Process], model: str) -> None:
    one, two, _ = house
    target = msgspec.structs.replace(TARGET, model=model)
    one.fail(FAILURES, target)
    beat(one, two)
    assert two.left(target) == pytest.approx(FIRST_S, abs=NEAR)


def test_made_up_model_names_take_bounded_memory_and_redis_space(
    house: list[Process], client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "MOST_CIRCUITS", 30)
    monkeypatch.setattr(breaker_sync, "MOST", 100)
    one, two, _ = house
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
    assert all(len(place[1]) <= breaker_sync.MOST_NAME for place in two._circuits)


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
    house: list[Process], client: Any, event: str
) -> None:
    client.xadd(STREAM, {"event": event})
    client.xadd(STREAM, {"fact": event})
    house[0].fail()
    beat(*house)
    assert house[1].open_circuits() == {PLACE: pytest.approx(FIRST_S, abs=NEAR)}


def test_a_shared_wait_is_capped_at_the_longest_wait(house: list[Process], client: Any) -> None:
    for kind in ("cools", "limited"):
        client.xadd(STREAM, {"event": json.dumps(["x", kind, NAME, kind, 1, 0, 1e9, 1e9])})
    beat(house[0])
    assert [round(left) for left in house[0].open_circuits().values()] == [LONGEST_S, LONGEST_S]


def test_a_disabled_circuit_breaker_learns_nothing_from_redis(house: list[Process]) -> None:
    never = Process(house[0].shared, enabled=False)
    never.fail()
    house[0].fail()
    beat(never, *house, never)
    assert never.open_circuits() == {}
    assert house[0].shared.available


# While Redis is away


def test_processes_work_alone_without_redis_and_share_waits_afterwards(
    house: list[Process], redis_server: RedisServer
) -> None:
    one, two, _ = house
    redis_server.crash()
    beat(*house)
    one.fail()
    two.limited(SECOND_KEY, 30)
    beat(*house)
    assert [process.left(TARGET) > 0 for process in house] == [True, False, False]
    redis_server.restart()
    for process in house:
        process.shared.probe(lambda client: client.ping())
    beat(*house, *house)
    for process in house:
        assert process.left(TARGET) == pytest.approx(FIRST_S, abs=NEAR)
        assert process.left(SECOND_KEY) == pytest.approx(30, abs=NEAR)


def test_a_redis_flush_closes_no_circuit_and_stops_no_sharing(
    house: list[Process], client: Any
) -> None:
    one, two, three = house
    one.fail()
    beat(one, two)
    client.flushall()
    beat(*house)
    assert [process.left(TARGET) > 0 for process in house] == [True, True, False]
    three.fail(FAILURES, OTHER_HOST)
    beat(three, two)
    assert two.left(OTHER_HOST) > 0, "they go on hearing of each other"


def test_events_are_read_after_the_redis_clock_is_set_back(
    house: list[Process], client: Any
) -> None:
    one, two, _ = house
    one.fail()
    beat(one, two)
    two._sync._last = f"{round((time.time() + 86_400) * 1000)}-0"  # type: ignore[union-attr]
    one.fail(FAILURES, OTHER_HOST)
    beat(one, two)
    assert two.left(OTHER_HOST) > 0


def test_a_call_never_waits_for_redis(house: list[Process], redis_server: RedisServer) -> None:
    one = house[0]
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


def test_beat_keeps_no_events_when_no_redis_is_set() -> None:
    alone = CircuitBreakers()
    alone.exchange()
    for _ in range(FAILURES):
        alone.failed(TARGET)
    alone.exchange()
    assert alone.left(TARGET) > 0
    assert alone._unsent == {}


def test_a_redis_key_of_the_wrong_type_raises_nothing(
    house: list[Process], client: redis.Redis
) -> None:
    client.set(STREAM, "not a stream")
    house[0].fail()
    beat(house[0])
    assert house[0].left(TARGET) > 0
