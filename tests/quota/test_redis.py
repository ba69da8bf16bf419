"""Tests of quota/redis.py: processes count together, or separately while Redis is unavailable.

`advance` simulates the passing of time by making all data in Redis older.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from math import floor
from typing import Any, TypeVar

import pytest
import redis

from cluster.lua import LuaScript
from cluster.redis_client import TIMEOUT_S, RedisClient
from errors import RateLimited, Unavailable
from keys.key import Key
from quota.demand import Demand
from quota.memory import HOUR, Ask, Hold
from quota.quota import Quota
from quota.redis import settlement
from quota.scripts import SETTLE
from tests.gateway.test_gateway import a_key
from tests.quota.test_quota import LOOSE, RESERVE, by_tokens, demand, refused, remaining
from tests.support.ledgers import at_once
from tests.support.pace import HANG_S, scaled
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer
from tests.support.servers import free_port

T = TypeVar("T")

WINDOW = "LIMITS:{LIMITER/key_1/1000/1/hour}"
"""The name of the counter in Redis for the tokens of by_tokens(1000)."""


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    with contextlib.closing(redis_server.client()) as found:
        yield found


@pytest.fixture
def shared(redis_server: RedisServer) -> Iterator[RedisClient]:
    found = RedisClient(redis_server.url)
    yield found
    found.close()


@pytest.fixture
def quota(redis_server: RedisServer, shared: RedisClient, client: Any) -> Iterator[Quota]:
    """Yield a quota, then check that all data in Redis expires and no count is negative."""
    yield Quota(RESERVE, shared)
    redis_server.resume()
    with contextlib.suppress(redis.ConnectionError):  # the test may have stopped Redis
        for name in names(client):
            assert client.pttl(name) > 0, name
            if name.startswith("LIMITS:{"):
                assert int(client.get(name) or 0) >= 0, name


def names(client: Any) -> list[str]:
    return list(client.keys())


def advance(client: Any, seconds: float) -> None:
    for name in names(client):
        left = client.pttl(name) - round(seconds * 1000)
        if client.type(name) == "list":
            for place, moment in enumerate(client.lrange(name, 0, -1)):
                client.lset(name, place, f"{float(moment) - seconds:.6f}")
        elif "hold/" in name:
            wanted, ends = str(client.get(name)).split()
            client.set(name, f"{wanted} {float(ends) - seconds * 1000:.0f}", keepttl=True)
        if left > 0:
            client.pexpire(name, left)
        else:
            client.delete(name)


def back(shared: RedisClient, *quotas: Quota) -> None:
    """Do what the cluster does each second, after an outage."""
    shared.probe(lambda client: client.ping())
    for quota in quotas:
        quota.beat()


def taken(quota: Quota, key: Key, tokens: int, output: int | None = 0) -> Hold:
    hold = quota.admit(key, demand(tokens, output))
    assert hold is not None
    return hold


class Twice(RedisClient):
    """A client that repeats each command, as if the connection broke before the first reply."""

    def run(self, work: Callable[[redis.Redis], T]) -> T:
        super().run(work)
        return super().run(work)


# ScriptBatcher


def test_a_call_may_count_as_several_requests_and_is_refused_as_a_whole(
    quota: Quota, shared: RedisClient, client: Any
) -> None:
    key, other = by_tokens(1000, requests_per_minute=10), Quota(RESERVE, shared)
    quota.admit(key, demand(1), requests=4)
    assert remaining(other, key, "requests") == 6
    advance(client, 10)
    other.admit(key, demand(1), requests=4)
    advance(client, 10)
    for requests, wait in ((3, 40), (6, 40), (7, 50), (10, 50)):
        with pytest.raises(RateLimited) as caught:
            quota.admit(key, demand(10), requests)
        assert caught.value.details is not None
        assert caught.value.details["retry_after"] == pytest.approx(wait, abs=2)
        assert remaining(quota, key, "requests") == 2
        assert remaining(quota, key) == 998
    with pytest.raises(RateLimited):
        quota.admit(key, demand(1), requests=11)
    hold = other.admit(key, demand(1), requests=2)
    assert other.headers(key, hold, 1)["x-ratelimit-remaining-requests"] == "0"


def test_requests_and_tokens_of_one_process_count_in_other_processes(
    quota: Quota, shared: RedisClient
) -> None:
    key, other = by_tokens(1000, requests_per_minute=2), Quota(RESERVE, shared)
    hold = taken(quota, key, 600)
    assert quota.headers(key) == other.headers(key)
    assert (remaining(other, key), remaining(other, key, "requests")) == (400, 1)
    refused(other, key, demand(401))
    assert taken(other, key, 100, None).tokens == 400, "the rest of the limit"
    error = refused(quota, key, demand(0, 0))
    assert error.details is not None
    assert (error.details["limit_type"], error.details["limit"]) == ("requests", 2)
    other.settle(hold, 50)
    assert remaining(quota, key) == 550


@pytest.mark.parametrize("output", [10, None])
def test_concurrent_processes_admit_exactly_what_the_limits_allow(
    redis_server: RedisServer, output: int | None
) -> None:
    for turn in range(5):
        ways = [RedisClient(redis_server.url) for _ in range(4)]
        quotas = [Quota(10, way) for way in ways]
        by_count = a_key(id=f"key_n{turn}", requests_per_minute=53)
        by_size = by_tokens(205, id=f"key_t{turn}")

        def call(
            number: int, quotas: list[Quota] = quotas, both: object = (by_count, by_size)
        ) -> int:
            keys, tokens = both, 0
            assert isinstance(keys, tuple)
            for _ in range(3):
                with contextlib.suppress(RateLimited):
                    quotas[number % 4].admit(keys[0], demand(1))
                    tokens += 1000
                with contextlib.suppress(RateLimited):
                    hold = quotas[number % 4].admit(keys[1], demand(10, output))
                    assert hold is not None
                    tokens += hold.tokens
            return tokens

        found = at_once(*(lambda number=number: call(number) for number in range(32)))
        total = sum(tokens for tokens in found if isinstance(tokens, int))
        assert len(found) == 32
        assert total // 1000 == 53, found
        assert 200 <= total % 1000 <= 205
        assert remaining(quotas[0], by_size) == 205 - total % 1000
        for way in ways:
            way.close()


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


def test_a_request_above_the_request_limit_takes_no_tokens(quota: Quota) -> None:
    key = by_tokens(100, requests_per_minute=1)
    taken(quota, key, 30)
    for _ in range(5):
        error = refused(quota, key, demand(30))
        assert error.details is not None
        assert error.details["limit_type"] == "requests"
    assert remaining(quota, key) == 70


def test_a_call_above_the_token_limit_does_not_count_as_a_request(quota: Quota) -> None:
    key = by_tokens(100, requests_per_minute=1)
    refused(quota, key, demand(101))
    assert remaining(quota, key, "requests") == 1


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        (by_tokens(0), demand(0, 1)),
        (by_tokens(100), demand(100, None)),
        (by_tokens(100), demand(1, 10**30)),
        (a_key(requests_per_minute=0), demand(1)),
    ],
)
def test_a_request_that_can_never_fit_is_refused_without_retry_after(
    quota: Quota, key: Key, wanted: Demand
) -> None:
    error = refused(quota, key, wanted)
    assert error.headers["x-should-retry"] == "false"
    assert error.details is not None
    assert error.details["retry_after"] is None


def test_a_command_sent_twice_to_redis_counts_once(quota: Quota, redis_server: RedisServer) -> None:
    key, way = by_tokens(1000, requests_per_minute=10), Twice(redis_server.url)
    twice = Quota(RESERVE, way)
    hold = taken(twice, key, 300)
    assert (remaining(quota, key), remaining(quota, key, "requests")) == (700, 9)
    twice.settle(hold, 100)
    assert remaining(quota, key) == 900
    twice.settle(hold, 0)
    assert remaining(quota, key) == 900
    way.close()


# Rolling upgrades: workers of the previous release count in the same keys


PREVIOUS = json.loads((ROOT / "tests/fixtures/upgrade/v1/redis.json").read_text())
"""The contents of Redis after `steps_of_the_fixture` in version 0.1.0, which counted with the
scripts of limits 5.8.0. now: Redis' clock in seconds since 1970."""
EARLY, LATE = PREVIOUS["early"], PREVIOUS["late"]


def steps_of_the_fixture(quota: Quota, client: Any) -> dict[str, str]:
    """Make the calls of the fixture. Return the fixture's id of each reservation."""
    key = by_tokens(1000, requests_per_minute=10)
    early = taken(quota, key, 200, 100)
    advance(client, 4200)
    late = taken(quota, key, 100, 50)
    quota.settle(taken(quota, key, 40, None), 25)
    never = Hold(early.window, 0, early.counts, id="never")
    SETTLE(client, *settlement([never], 0, revoked_s=300))
    return {early.id: EARLY, late.id: LATE, "never": "never"}


def clock(client: Any) -> float:
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6)


def contents(client: Any) -> dict[str, dict[str, Any]]:
    """Return the contents of Redis in the fixture's format."""
    return {
        name: {
            "type": (kind := client.type(name)),
            "value": client.lrange(name, 0, -1) if kind == "list" else client.get(name),
            "ttl_ms": client.pttl(name),
        }
        for name in names(client)
    }


def restore_previous(client: Any) -> None:
    """Fill Redis with the fixture, as if it had been taken now."""
    later = clock(client) - PREVIOUS["now"]
    for name, entry in PREVIOUS["keys"].items():
        if entry["type"] == "list":
            client.rpush(name, *(repr(float(moment) + later) for moment in entry["value"]))
        elif len(words := entry["value"].split()) == 2:
            client.set(name, f"{words[0]} {float(words[1]) + later * 1000:.0f}")
        else:
            client.set(name, entry["value"])
        client.pexpire(name, entry["ttl_ms"])


def test_redis_keys_and_values_are_those_of_the_previous_release(quota: Quota, client: Any) -> None:
    ids = steps_of_the_fixture(quota, client)
    later = clock(client) - PREVIOUS["now"]
    found = {}
    for name, entry in contents(client).items():
        prefix, hold, number = name.partition("hold/")
        found[f"{prefix}{hold}{ids[number]}" if hold else name] = entry
    assert found.keys() == PREVIOUS["keys"].keys()
    for name, entry in PREVIOUS["keys"].items():
        ours = found[name]
        assert ours["type"] == entry["type"], name
        assert ours["ttl_ms"] == pytest.approx(entry["ttl_ms"], abs=scaled(5000)), name
        if entry["type"] == "list":
            assert len(ours["value"]) == len(entry["value"])
            for moment, theirs in zip(ours["value"], entry["value"], strict=True):
                assert re.fullmatch(r"[0-9]{10}(\.[0-9]+)?", moment), moment
                assert float(moment) == pytest.approx(float(theirs) + later, abs=scaled(5))
        elif len(words := entry["value"].split()) == 2:
            tokens, expires = ours["value"].split()
            assert tokens == words[0]
            assert re.fullmatch("[0-9]{13}", expires)
            assert int(expires) == pytest.approx(int(words[1]) + later * 1000, abs=scaled(5000))
        else:
            assert ours["value"] == entry["value"], name


def test_counts_of_the_previous_release_continue(quota: Quota, client: Any) -> None:
    restore_previous(client)
    key = by_tokens(1000, requests_per_minute=10)
    fading = floor(300 * 2_999_996 / (HOUR * 1000))
    assert remaining(quota, key) == pytest.approx(1000 - 175 - fading, abs=2)
    assert remaining(quota, key, "requests") == 8
    taken(quota, key, 100)
    assert client.get(WINDOW) == "275"
    assert remaining(quota, key, "requests") == 7
    for _ in range(8):
        with contextlib.suppress(RateLimited):
            taken(quota, key, 1)
    assert remaining(quota, key, "requests") == 0


def test_reservations_of_the_previous_release_are_settled_once_in_their_window(
    quota: Quota, client: Any
) -> None:
    restore_previous(client)
    key = by_tokens(1000, requests_per_minute=10)
    hold = taken(quota, key, 1)  # for its window and counts, which aren't stored in Redis
    for _ in range(2):
        quota.settle(Hold(hold.window, 300, hold.counts, id=EARLY), 60)
        quota.settle(Hold(hold.window, 150, hold.counts, id=LATE), 160)
    assert client.get(f"{WINDOW}/-1") == "60"
    assert client.get(WINDOW) == "186"
    assert [name for name in names(client) if EARLY in name or LATE in name] == []


def test_a_refused_call_starts_no_window(quota: Quota, client: Any) -> None:
    refused(quota, by_tokens(1000, requests_per_minute=0), demand(5))
    refused(quota, by_tokens(1000), demand(1001))
    assert names(client) == []


def test_requests_that_no_longer_count_leave_the_list(quota: Quota, client: Any) -> None:
    key = a_key(requests_per_minute=10**6)
    for passed in (0, 1, 50, 20):
        advance(client, passed)
        quota.admit(key, demand(1))
    (requests,) = names(client)
    assert client.llen(requests) == 2, "the requests of 20 s ago and of now"


# Settling


@pytest.mark.parametrize(
    ("used", "left"), [(100, 900), (40, 960), (0, 1000), (130, 870), (5000, 0), (10**40, 0)]
)
def test_settling_counts_the_used_tokens_and_not_the_reserved_tokens(
    quota: Quota, client: Any, used: int, left: int
) -> None:
    key = by_tokens(1000)
    hold = taken(quota, key, 60, 40)
    quota.settle(hold, used)
    assert remaining(quota, key) == left
    assert names(client) == [WINDOW], "only the count of the settled call is left"


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize(
    ("passed", "left"), [(0, 800), (HOUR - 60, 800), (HOUR * 1.5, 900), (2 * HOUR + 1, 1000)]
)
def test_a_call_is_settled_in_the_window_in_which_it_started(
    quota: Quota, client: Any, passed: float, left: int, look: bool
) -> None:
    key = by_tokens(1000)
    hold = taken(quota, key, 800)
    advance(client, passed)
    if look:  # this moves the window if it has ended
        quota.headers(key)
    quota.settle(hold, 200)
    assert abs(remaining(quota, key) - left) <= 1


@pytest.mark.parametrize("passed", [HOUR + 60, 2 * HOUR + 1])
def test_a_call_that_outlasts_its_window_changes_no_other_window(
    quota: Quota, client: Any, passed: float
) -> None:
    key = by_tokens(1000)
    hold = taken(quota, key, 100)
    advance(client, passed)
    taken(quota, key, 700)
    quota.settle(hold, 0)
    assert int(client.get(WINDOW) or 0) == 700


class Account:
    """A simple model of the token count in Redis.

    A window starts with its first token. The next window starts when that one ends, as soon as the
    count is read.
    """

    def __init__(self) -> None:
        self.now, self.ends = 0.0, -1.0
        self.windows = {0: 0, 1: 0}
        self.number = 0

    def move(self) -> None:
        if self.ends < 0:
            return
        if self.now >= self.ends + HOUR:
            self.number, self.ends = self.number + 10, -1.0
        elif self.now >= self.ends:
            self.number, self.ends = self.number + 1, self.ends + HOUR

    def left(self) -> float:
        self.move()
        fade = max(0.0, self.ends - self.now) / HOUR
        before = self.windows.get(self.number - 1, 0) * fade if self.ends >= 0 else 0
        return 1000 - floor(before) - self.windows.get(self.number, 0)

    def add(self, number: int, tokens: int) -> None:
        if self.ends < 0 and number == self.number:
            self.ends = self.now + HOUR
        self.windows[number] = max(0, self.windows.get(number, 0) + tokens)


@pytest.mark.parametrize("seed", range(12))
def test_token_counts_match_a_simple_reference_account(
    quota: Quota, client: Any, seed: int
) -> None:
    draw, key, account = random.Random(seed), by_tokens(1000), Account()
    running: list[tuple[Hold, int]] = []
    for _ in range(40):
        passed = draw.choice([0, 60, 1500, 3000, 5000, 7500])
        advance(client, passed)
        account.now += passed
        if running and draw.random() < 0.6:
            hold, number = running.pop(draw.randrange(len(running)))
            used = draw.randrange(300)
            quota.settle(hold, used)
            if account.ends >= 0 and account.now < account.ends + HOUR:
                account.add(number, used - hold.tokens)
        assert abs(remaining(quota, key) - max(0, account.left())) <= 2
        with contextlib.suppress(RateLimited):
            hold = taken(quota, key, draw.randrange(1, 200))
            account.add(account.number, hold.tokens)
            running.append((hold, account.number))
    assert len(names(client)) < 50


def test_calls_from_before_a_redis_flush_change_no_count(quota: Quota, client: redis.Redis) -> None:
    key = by_tokens(1000)
    holds = [taken(quota, key, 100) for _ in range(3)]
    client.flushall()
    quota.settle(holds[0], 0)
    assert remaining(quota, key) == 1000
    taken(quota, key, 250)
    quota.settle(holds[1], 0)
    quota.settle(holds[2], 500)
    assert remaining(quota, key) == 750


def test_a_lowered_token_count_never_falls_below_zero(quota: Quota, client: Any) -> None:
    key = by_tokens(1000)
    hold = taken(quota, key, 500)
    client.set(WINDOW, 100, keepttl=True)
    quota.settle(hold, 0)
    assert client.get(WINDOW) == "0"
    taken(quota, key, 1000)


# The time to wait


def test_rate_limit_headers_report_the_reset_times(quota: Quota, client: Any) -> None:
    key = by_tokens(1000, requests_per_minute=10)
    full = quota.headers(key)
    assert full["x-ratelimit-reset-tokens"] == "60m0s"
    assert full["x-ratelimit-reset-requests"] == "1m0s"
    assert names(client) == [], "reading the headers counts nothing"
    taken(quota, key, 100)
    advance(client, 20.5)
    taken(quota, key, 100)
    found = quota.headers(key)
    assert found["x-ratelimit-reset-requests"] in ("40s", "39s", "38s")
    assert found["x-ratelimit-reset-tokens"] in ("59m40s", "59m39s", "59m38s")
    advance(client, HOUR)
    found = quota.headers(key)
    assert found["x-ratelimit-reset-tokens"] in ("59m40s", "59m39s", "59m38s")
    assert int(found["x-ratelimit-remaining-tokens"]) == pytest.approx(801, abs=3)


def wait_of(quota: Quota, key: Key, tokens: int) -> float:
    details = refused(quota, key, demand(tokens)).details
    assert details is not None
    return float(details["retry_after"])


def test_the_reported_wait_is_as_long_as_the_windows_require(quota: Quota, client: Any) -> None:
    key = by_tokens(1000, requests_per_minute=4)
    taken(quota, key, 600)
    assert wait_of(quota, key, 700) == pytest.approx(HOUR * 1.5, abs=5), (
        "until half of the old count is gone"
    )
    advance(client, HOUR + 600)
    taken(quota, key, 300)
    assert wait_of(quota, key, 300) == pytest.approx(600, abs=5), (
        "until a third of the old count is gone"
    )
    for _ in range(3):
        taken(quota, key, 0)
        advance(client, 10)
    assert wait_of(quota, key, 0) == pytest.approx(30, abs=5), "until the oldest request expires"


@pytest.mark.parametrize("seed", range(10))
def test_a_call_is_admitted_after_waiting_for_retry_after(
    quota: Quota, client: Any, seed: int
) -> None:
    draw, key = random.Random(seed), by_tokens(100)
    refusals = 0
    while refusals < 5:
        advance(client, draw.choice([0, 1, 100, 1000]))
        tokens = draw.randrange(1, 60)
        try:
            quota.admit(key, demand(tokens))
        except RateLimited as error:
            refusals += 1
            advance(client, int(error.headers["Retry-After"]))
            quota.admit(key, demand(tokens))


# Outages of Redis


def test_a_key_without_limits_needs_no_redis() -> None:
    shared = RedisClient(f"redis://127.0.0.1:{free_port()}")
    quota, key = Quota(RESERVE, shared, required=True), a_key()
    assert quota.admit(key, demand(10**9)) is None
    assert quota.headers(key) == {}
    quota.settle(None, 5)
    quota.beat()
    assert shared.available, "nothing was sent to Redis"


def test_each_process_counts_separately_while_redis_is_unavailable(
    quota: Quota, shared: RedisClient, redis_server: RedisServer
) -> None:
    key, other = by_tokens(1000, requests_per_minute=2), Quota(RESERVE, shared)
    before = taken(quota, key, 900)
    redis_server.crash()
    for each in (quota, other):
        assert taken(each, key, 300).tokens == 300
        hold = taken(each, key, 300)
        each.settle(hold, 100)
        assert (remaining(each, key), remaining(each, key, "requests")) == (600, 0)
        refused(each, key, demand(1))
    quota.settle(before, 10)
    assert remaining(quota, key) == 600, "that call was counted in Redis"
    quota.beat()
    redis_server.restart()
    back(shared, quota, other)
    assert remaining(quota, key) == 1000
    quota.settle(hold, 0)
    taken(other, key, 400)
    assert remaining(quota, key) == 600


def test_calls_with_limits_are_refused_while_a_required_redis_is_unavailable(
    shared: RedisClient, redis_server: RedisServer
) -> None:
    quota, key = Quota(RESERVE, shared, required=True), by_tokens(1000)
    hold = taken(quota, key, 100)
    redis_server.crash()
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            quota.admit(key, demand(1))
        assert "Retry-After" in caught.value.headers
        assert quota.headers(key) == {}
    quota.settle(hold, 3)
    assert quota.admit(a_key(), demand(1)) is None
    redis_server.restart()
    back(shared, quota)
    taken(quota, key, 100)
    assert remaining(quota, key) == 900


def test_calls_do_not_wait_for_a_redis_known_to_hang(
    quota: Quota, redis_server: RedisServer
) -> None:
    key = by_tokens(10**6)
    redis_server.pause()
    taken(quota, key, 1)
    started = time.monotonic()
    for _ in range(100):
        quota.settle(taken(quota, key, 10), 5)
        quota.headers(key)
    assert time.monotonic() - started < scaled(TIMEOUT_S)
    assert remaining(quota, key) == 10**6 - 501


def test_a_call_waiting_for_redis_does_not_block_local_counting(
    quota: Quota, redis_server: RedisServer
) -> None:
    key = by_tokens(1000)
    redis_server.pause()
    waiting = threading.Thread(target=quota.admit, args=(key, demand(1)))
    waiting.start()
    quota._local.admit([(key.id, key.limits, None)], Ask(1, 0, 1))
    assert waiting.is_alive()
    redis_server.resume()
    waiting.join()


def test_a_settlement_during_an_outage_is_written_once_afterward(
    quota: Quota, shared: RedisClient, redis_server: RedisServer
) -> None:
    key = by_tokens(1000)
    holds = [taken(quota, key, 100) for _ in range(5)]
    redis_server.pause()
    for hold in holds[:4]:  # the first one is sent, and Redis may still read it
        quota.settle(hold, 30)
    quota.beat()
    redis_server.resume()
    back(shared, quota)
    quota.beat()
    assert remaining(quota, key) == 1000 - 4 * 30 - 100


def test_a_settlement_that_fails_again_stays_pending(
    quota: Quota, shared: RedisClient, redis_server: RedisServer
) -> None:
    key = by_tokens(1000)
    holds = [taken(quota, key, 100) for _ in range(3)]
    redis_server.pause()
    for hold in holds:
        quota.settle(hold, 20)
    shared._trouble = ""  # as if Redis had been available again for a moment
    quota.beat()
    assert not shared.available
    redis_server.resume()
    back(shared, quota)
    assert remaining(quota, key) == 1000 - 3 * 20


def test_a_count_whose_reply_timed_out_is_revoked(
    quota: Quota, shared: RedisClient, redis_server: RedisServer, client: Any
) -> None:
    key = by_tokens(1000)
    redis_server.pause()
    taken(quota, key, 400)  # sent to Redis, but finally counted only in this process
    redis_server.resume()
    back(shared, quota)
    assert remaining(quota, key) == 1000
    assert [client.get(name) for name in client.keys("*hold*")] == ["revoked"]


def test_a_command_that_reaches_redis_too_late_is_not_counted(
    quota: Quota,
    shared: RedisClient,
    redis_server: RedisServer,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Redis that hung may read a command after the process has given it up."""
    key = by_tokens(1000)
    sent: list[tuple[LuaScript, Sequence[str], Sequence[Any]]] = []
    send = shared.script

    def note(script: LuaScript, keys: Sequence[str], arguments: Sequence[Any]) -> object:
        sent.append((script, keys, arguments))
        return send(script, keys, arguments)

    monkeypatch.setattr(shared, "script", note)
    redis_server.crash()
    taken(quota, key, 400)
    redis_server.restart()
    back(shared, quota)
    for script, keys, arguments in sent:
        script(client, keys, arguments)
    assert sent
    assert remaining(quota, key) == 1000


def test_pending_settlements_are_bounded(
    shared: RedisClient, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quota.redis.MAX_PENDING", 500)
    quota, key = Quota(RESERVE, shared), by_tokens(1000)
    holds = [taken(quota, key, 1) for _ in range(700)]
    redis_server.pause()
    for hold in holds:
        quota.settle(hold, 0)
    assert quota._cluster is not None
    assert len(quota._cluster._pending) == 500
    redis_server.resume()
    back(shared, quota)
    assert len(quota._cluster._pending) == 0
    assert 1000 - 200 <= remaining(quota, key) <= 1000 - 199, (
        "the latest ones, and the one that was sent"
    )


def test_a_shared_quota_does_not_connect_before_its_first_use(redis_server: RedisServer) -> None:
    shared = RedisClient(f"redis://127.0.0.1:{free_port()}")
    Quota(RESERVE, shared)
    assert shared.available


# Under gevent

GREENLETS = """
from gevent import monkey, pool
monkey.patch_all()
import sys
from errors import RateLimited
from quota.demand import Demand
from quota.quota import Quota
from cluster.redis_client import RedisClient
from tests.gateway.test_gateway import a_key

quotas = [Quota(10, RedisClient(sys.argv[1])) for _ in range(2)]
key = a_key(requests_per_minute=70, tokens_per_hour=10**6)

def call(number):
    try:
        hold = quotas[number % 2].admit(key, Demand(1, 1, 9))
    except RateLimited:
        return 0
    quotas[number % 2].settle(hold, 4)
    return 1

print(sum(pool.Pool(100).map(call, range(200))), quotas[0].headers(key))
"""


def test_concurrent_greenlets_are_counted_exactly(redis_server: RedisServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GREENLETS, redis_server.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.stdout.startswith("70 "), done.stderr
    assert f"'x-ratelimit-remaining-tokens': '{10**6 - 280}'" in done.stdout
