"""Calls of processes that share a Redis: one script admits a call, and one ends it.

Several gateways in one process stand for the processes. They send no heartbeats.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from cluster.lua import LuaScript, Words
from cluster.ownership import CALLS_TTL_S, Cluster
from cluster.redis_client import RedisClient
from config import Settings
from errors import InsufficientCredits, RateLimited, StreamExists, Unavailable
from gateway.call import Call
from gateway.gateway import Gateway
from keys.group import KeyGroup
from keys.key import Key
from ledger.ledger import Ledger
from quota.quota import Quota
from tests.gateway.test_gateway import (
    HELLO,
    PRICES,
    REST,
    ROWS,
    NullLedger,
    Records,
    Scripted,
    a_key,
    eventually,
    open_call,
    play,
)
from tests.gateway.test_gateway import wait as until_stopped
from tests.support.pace import HANG_S
from tests.support.redis_server import RedisServer

CALLS = "sluice:calls:key_1"
GROUP = KeyGroup(name="team", requests_per_minute=5, tokens_per_hour=900)
USED = 11
"""The tokens of HELLO and REST."""


class CountingClient(RedisClient):
    """A client that counts its scripts. With `twice`, it sends each batch twice, as if the
    connection had broken before the first reply."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.scripts = 0
        self.twice = False

    def script(self, script: LuaScript, keys: Sequence[str], arguments: Words) -> Any:
        self.scripts += 1
        return super().script(script, keys, arguments)

    def _exchange(self, commands: list[bytes]) -> list[Any]:
        if self.twice:
            super()._exchange(commands)
        return super()._exchange(commands)


class Process:
    def __init__(self, url: str, *, required: bool = False) -> None:
        self.shared = CountingClient(url)
        self.cluster = Cluster(self.shared)
        self.cluster._closing = True  # no heartbeats
        self.ledger = NullLedger()
        settings = Settings(providers=ROWS, prices=PRICES, retries=0)
        self.quota = Quota(settings.reserve_tokens, self.shared, required=required)
        ledger = cast(Ledger, self.ledger)
        self.gateway = Gateway(settings, self.quota, ledger, Records(), cluster=self.cluster)
        self.cluster.attend(self.gateway.streams)

    def open(self, key: Key, **fields: Any) -> Call:
        return open_call(self.gateway, key=key, **{"max_tokens": 50, "stream": False} | fields)

    def left(self, key: Key, kind: str = "tokens") -> int:
        return int(self.quota.headers(key)[f"x-ratelimit-remaining-{kind}"])

    def recover(self) -> None:
        """Do what a heartbeat does once Redis is available again."""
        self.shared.probe(lambda client: client.ping())
        self.cluster._repeat_claims()
        self.quota.beat()


@pytest.fixture
def new(redis_server: RedisServer) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(**options: Any) -> Process:
        processes.append(Process(redis_server.url, **options))
        return processes[-1]

    yield start
    redis_server.resume()
    for process in processes:
        process.cluster.close()


@pytest.fixture
def ours(new: Callable[..., Process]) -> Process:
    return new()


@pytest.fixture
def other(new: Callable[..., Process]) -> Process:
    return new()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    with contextlib.closing(redis_server.client()) as found:
        yield found


def limited(**fields: Any) -> Key:
    return a_key(**{"tokens_per_hour": 1000, "requests_per_minute": 9} | fields)


def answer() -> Scripted:
    return Scripted(HELLO, REST)


@pytest.mark.parametrize(
    ("key", "byok"),
    [
        (a_key(), None),
        (limited(), None),
        (limited(), "sk-own"),
        (a_key(requests_per_minute=9, max_streams=3), None),
        (limited(group="team", shared=GROUP), None),
    ],
    ids=["no limits", "limits", "byok", "requests", "group"],
)
def test_a_call_sends_one_script_at_its_start_and_one_at_its_end(
    ours: Process, client: Any, monkeypatch: pytest.MonkeyPatch, key: Key, byok: str | None
) -> None:
    play(monkeypatch, answer())
    call = ours.open(key, byok=byok)
    assert ours.shared.scripts == 1
    assert client.hkeys(CALLS) == ["s-1"]
    call.result()
    assert ours.shared.scripts == 2
    assert client.keys(CALLS) == []


def test_a_call_counts_for_its_key_and_group_until_its_end_and_then_what_it_used(
    ours: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = limited(group="team", shared=GROUP)
    colleague = a_key(id="key_2", group="team", shared=GROUP)
    play(monkeypatch, answer())
    call = ours.open(key)
    assert call.hold is not None
    assert other.left(colleague) == 900 - call.hold.tokens
    call.result()
    assert (other.left(colleague), other.left(colleague, "requests")) == (900 - USED, 4)
    assert other.left(limited()) == 1000 - USED


@pytest.mark.parametrize(
    "key",
    [
        limited(tokens_per_hour=10),
        limited(requests_per_minute=0),
        limited(group="team", shared=KeyGroup(name="team", tokens_per_hour=10)),
    ],
    ids=["tokens", "requests", "group"],
)
def test_a_refused_call_is_neither_claimed_nor_counted(
    ours: Process, client: Any, key: Key
) -> None:
    with pytest.raises(RateLimited):
        ours.open(key)
    assert client.keys("sluice:calls:*") == client.keys("LIMITS:*") == []
    assert len(ours.gateway.streams) == 0


def test_a_call_whose_id_another_process_has_is_not_counted(
    ours: Process, other: Process, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = limited()
    play(monkeypatch, Scripted(until_stopped))
    call = ours.open(key)
    with pytest.raises(StreamExists):
        other.open(key)
    assert other.left(key, "requests") == 8
    assert len(other.gateway.streams) == 0
    assert client.hgetall(CALLS) == {"s-1": ours.cluster._me}
    call.close()


def test_a_call_above_the_keys_calls_in_all_processes_is_not_counted(
    ours: Process, other: Process, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = limited(max_streams=1)
    client.zadd("sluice:fleet", {ours.cluster._me: client.time()[0]})
    client.hset(CALLS, "another call", ours.cluster._me)
    with pytest.raises(RateLimited, match="already has 1 active call"):
        other.open(key)
    assert other.left(key, "requests") == 9
    assert client.hkeys(CALLS) == ["another call"]


def test_a_call_that_the_ledger_refuses_is_neither_claimed_nor_reserved(
    ours: Process, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise InsufficientCredits("No.")

    monkeypatch.setattr(ours.ledger, "open", refuse)
    with pytest.raises(InsufficientCredits):
        ours.open(limited())
    assert client.keys(CALLS) == client.keys("LIMITS:hold/*") == []
    assert ours.left(limited()) == 1000


# Replies that are lost, and outages


def test_scripts_that_run_twice_count_and_settle_a_call_once(
    ours: Process, other: Process, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = limited(max_streams=1)
    ours.shared.twice = True
    play(monkeypatch, answer())
    call = ours.open(key)
    assert call.hold is not None
    assert (other.left(key), other.left(key, "requests")) == (1000 - call.hold.tokens, 8)
    call.result()
    assert (other.left(key), other.left(key, "requests")) == (1000 - USED, 8)
    assert client.keys(CALLS) == client.keys("LIMITS:hold/*") == []


def test_a_call_that_is_refused_when_its_script_runs_again_is_not_claimed(
    ours: Process, client: Any
) -> None:
    """Requests have no reservation, so the second run counts the call again."""
    ours.shared.twice = True
    with pytest.raises(RateLimited):
        ours.open(a_key(requests_per_minute=1))
    assert client.keys(CALLS) == []


def test_a_call_runs_and_counts_in_its_process_if_redis_does_not_answer(
    ours: Process,
    other: Process,
    redis_server: RedisServer,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = limited()
    play(monkeypatch, Scripted(until_stopped))
    redis_server.pause()
    call = ours.open(key)
    assert call.hold is not None
    assert not call.hold.id, "counted in this process"
    redis_server.resume()
    ours.recover()
    assert client.hgetall(CALLS) == {"s-1": ours.cluster._me}
    assert other.left(key) == 1000, "Redis may have run the script after all"
    with pytest.raises(StreamExists):
        other.open(key)
    call.close()
    assert client.keys(CALLS) == []


def test_a_call_is_refused_and_removed_if_a_required_redis_does_not_answer(
    new: Callable[..., Process], redis_server: RedisServer, client: Any
) -> None:
    process = new(required=True)
    redis_server.pause()
    for _ in range(2):  # the second call finds Redis unavailable
        with pytest.raises(Unavailable, match="can't be counted"):
            process.open(limited())
    assert len(process.gateway.streams) == 0
    redis_server.resume()
    process.recover()
    assert client.keys(CALLS) == []
    assert process.left(limited()) == 1000


def test_a_call_that_ends_during_an_outage_is_settled_and_released_afterward(
    ours: Process,
    other: Process,
    redis_server: RedisServer,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = limited(group="team", shared=GROUP)
    play(monkeypatch, answer())
    call = ours.open(key)
    redis_server.pause()
    call.result()
    assert len(ours.gateway.streams) == 0
    redis_server.resume()
    ours.recover()
    assert client.keys(CALLS) == []
    for holder in (limited(), a_key(id="key_2", group="team", shared=GROUP)):
        assert other.left(holder) == (1000 if holder.shared is None else 900) - USED


def test_a_process_has_calls_until_their_last_scripts_were_sent(
    ours: Process, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that drains exits when it has no calls left. A settlement must not be lost."""
    play(monkeypatch, answer())
    call = ours.open(limited())
    redis_server.pause()
    ending = threading.Thread(target=call.result)
    ending.start()
    assert eventually(lambda: ours.shared.scripts == 2)
    assert ours.gateway.streams.stream_keys() == []
    assert len(ours.gateway.streams) == 1
    redis_server.resume()
    ending.join(HANG_S)
    assert len(ours.gateway.streams) == 0
    assert ours.left(limited()) == 1000 - USED


# Rolling upgrades


def test_a_claim_is_stored_as_the_previous_release_stores_it(
    ours: Process, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set("sluice:stopped:key_1/s-1", "1", ex=60)
    play(monkeypatch, Scripted(until_stopped))
    call = ours.open(limited())
    assert client.hgetall(CALLS) == {"s-1": ours.cluster._me}
    assert CALLS_TTL_S - 60 < client.ttl(CALLS) <= CALLS_TTL_S
    assert client.zrange("sluice:fleet", 0, -1) == [ours.cluster._me]
    assert client.keys("sluice:stopped:*") == [], "the id names a new call"
    ours.gateway.streams.stop("key_1", "s-1")
    call.close()
    assert client.keys("sluice:calls:*") == []
    assert client.get("sluice:stopped:key_1/s-1") == "1"
    assert 0 < client.ttl("sluice:stopped:key_1/s-1") <= 60


def test_a_claim_of_the_previous_release_is_respected(ours: Process, client: Any) -> None:
    client.zadd("sluice:fleet", {"previous": client.time()[0]})
    client.hset(CALLS, "s-1", "previous")
    with pytest.raises(StreamExists):
        ours.open(limited())
    assert client.hgetall(CALLS) == {"s-1": "previous"}
