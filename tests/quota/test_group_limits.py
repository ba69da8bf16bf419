"""Tests of limits that the keys of a group share, in memory and in Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.redis_client import RedisClient
from errors import RateLimited
from keys.group import KeyGroup
from keys.key import Key
from quota.quota import Quota
from tests.gateway.test_gateway import a_key
from tests.quota.test_quota import RESERVE, demand, refused, remaining
from tests.support.ledgers import at_once
from tests.support.redis_server import RedisServer

GROUP = KeyGroup(name="research", requests_per_minute=5, tokens_per_hour=1000)


@pytest.fixture(params=["memory", "redis"])
def quota(request: pytest.FixtureRequest) -> Iterator[Quota]:
    if request.param == "memory":
        yield Quota(RESERVE)
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    shared = RedisClient(server.url)
    yield Quota(RESERVE, shared)
    shared.close()


def member(number: int, group: KeyGroup = GROUP, **fields: Any) -> Key:
    return a_key(id=f"key_{number}", group=group.name, shared=group, **fields)


def test_keys_of_a_group_share_its_requests(quota: Quota) -> None:
    for number in range(5):
        quota.admit(member(number), demand(1))
    error = refused(quota, member(9), demand(1))
    assert error.message.startswith(
        "The limit of 5 requests per minute of this key's group 'research' is reached."
    )
    assert error.details is not None
    assert (error.details["limit_type"], error.details["group"]) == ("requests", "research")
    quota.admit(a_key(id="key_alone"), demand(1))
    other = KeyGroup(name="ops", requests_per_minute=5)
    quota.admit(member(9, other), demand(1))


def test_keys_of_a_group_share_its_tokens_and_release_what_they_did_not_use(quota: Quota) -> None:
    holds = [quota.admit(member(number), demand(300)) for number in range(3)]
    error = refused(quota, member(9), demand(101))
    assert "tokens per hour of this key's group 'research'" in error.message
    for hold in holds:
        quota.settle(hold, 100)
    assert remaining(quota, member(9)) == 700
    never = refused(quota, member(9), demand(1001))
    assert never.message == (
        "This call may use 1001 tokens; the limit of this key's group 'research' is 1000 per hour."
    )
    assert "Retry-After" not in never.headers


def test_a_call_that_its_group_refuses_counts_for_neither(quota: Quota) -> None:
    key = member(1, requests_per_minute=10, tokens_per_hour=10_000)
    quota.admit(member(2), demand(900))
    refused(quota, key, demand(200))
    alone = a_key(id="key_1", requests_per_minute=10, tokens_per_hour=10_000)
    assert (remaining(quota, alone), remaining(quota, alone, "requests")) == (10_000, 10)


def test_a_call_that_its_key_refuses_counts_for_neither(quota: Quota) -> None:
    key = member(1, requests_per_minute=1, tokens_per_hour=100)
    quota.admit(key, demand(50))
    assert "This key's limit of 1 requests" in refused(quota, key, demand(10)).message
    assert "This key's limit of 100 tokens" in refused(quota, key, demand(60)).message
    assert (remaining(quota, member(2)), remaining(quota, member(2), "requests")) == (950, 4)


def test_a_call_without_max_tokens_reserves_what_the_tighter_limit_has_left(quota: Quota) -> None:
    key = member(1, tokens_per_hour=10_000)
    quota.admit(member(2), demand(600))
    hold = quota.admit(key, demand(100, None))
    assert hold is not None
    assert hold.tokens == 400
    assert remaining(quota, member(3)) == 0
    quota.settle(hold, 150)
    assert remaining(quota, member(3)) == 250
    alone = a_key(id="key_1", tokens_per_hour=10_000)
    assert remaining(quota, alone) == 9850


def test_the_headers_show_the_tighter_limit_of_each_kind(quota: Quota) -> None:
    key = member(1, requests_per_minute=3, tokens_per_hour=2000)
    headers = quota.headers(key)
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    for number in range(4):
        quota.admit(member(number + 2), demand(10))
    hold = quota.admit(key, demand(100))
    found = quota.headers(key, hold, 100)
    assert found == quota.headers(key) | {
        name: text for name, text in found.items() if "reset" in name
    }
    assert found["x-ratelimit-limit-requests"] == "5"
    assert found["x-ratelimit-remaining-requests"] == "0"
    assert found["x-ratelimit-remaining-tokens"] == str(1000 - 140)
    assert quota.headers(key, hold, 20)["x-ratelimit-remaining-tokens"] == str(1000 - 60)


def test_a_key_with_limits_in_a_group_without_pays_only_for_its_own(quota: Quota) -> None:
    key = member(1, KeyGroup(name="free"), requests_per_minute=1)
    quota.admit(key, demand(10**6))
    assert "This key's limit" in refused(quota, key, demand(1)).message
    assert quota.admit(member(2, KeyGroup(name="free")), demand(10**9)) is None
    assert quota.headers(member(2, KeyGroup(name="free"))) == {}


def test_a_group_of_which_nothing_is_allowed_says_so(quota: Quota) -> None:
    key = member(1, KeyGroup(name="closed", requests_per_minute=0))
    error = refused(quota, key, demand(1))
    assert error.message == "This key's group 'closed' may make no request."


def test_a_call_that_counts_as_more_requests_than_its_group_has_never_fits(quota: Quota) -> None:
    with pytest.raises(RateLimited) as caught:
        quota.admit(member(1), demand(1), requests=6)
    assert caught.value.message == (
        "This call counts as 6 requests; the limit of this key's group 'research' is 5 a minute."
    )


def test_many_callers_at_once_never_exceed_the_limits_of_their_group(quota: Quota) -> None:
    group = KeyGroup(name="busy", requests_per_minute=30, tokens_per_hour=100_000)
    by_tokens = KeyGroup(name="tokens", tokens_per_hour=1000)
    for shared, tokens, fits in ((group, 1, 30), (by_tokens, 40, 25)):
        calls = [
            lambda number=number, shared=shared, tokens=tokens: quota.admit(
                member(number % 10, shared, tokens_per_hour=100_000), demand(tokens)
            )
            for number in range(50)
        ]
        found = Counter(type(one).__name__ for one in at_once(*calls))
        assert found == {"Hold": fits, "RateLimited": 50 - fits}
