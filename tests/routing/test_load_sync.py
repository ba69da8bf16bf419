"""load_sync.py: processes share the replicas' calls in flight through Redis."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.redis_client import RedisClient
from providers import registry
from providers.base import Target
from routing import load_sync
from routing.load_sync import HASH, LoadSync, decode
from routing.replicas import ReplicaLoads
from tests.support.pace import HANG_S
from tests.support.redis_server import RedisServer

ROWS = registry.rows({"engines": {"base_url": ["http://a:1/v1", "http://b:1/v1"]}})
ONE, TWO = Target(ROWS["engines"], "m").replicas


class Process:
    """The loads of one process."""

    def __init__(self, redis_client: RedisClient) -> None:
        self.loads = ReplicaLoads()
        self.sync = LoadSync(redis_client, self.loads)

    @property
    def others(self) -> dict[tuple[str, str], int]:
        return dict(self.loads._others)


@pytest.fixture
def processes(redis_server: RedisServer) -> Iterator[list[Process]]:
    clients = [RedisClient(redis_server.url) for _ in range(3)]
    yield [Process(client) for client in clients]
    redis_server.resume()
    for client in clients:
        client.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Any]:
    with contextlib.closing(redis_server.client()) as found:
        yield found


def beat(processes: list[Process]) -> None:
    for process in processes * 2:
        process.sync.exchange()


def test_each_process_knows_the_sum_of_the_others_calls(processes: list[Process]) -> None:
    first, second, third = processes
    first.loads.started(ONE)
    second.loads.started(ONE)
    second.loads.started(TWO)
    beat(processes)
    a, b = ("engines", "a:1"), ("engines", "b:1")
    assert [process.others for process in processes] == [
        {a: 1, b: 1}, {a: 1}, {a: 2, b: 1},
    ]  # fmt: skip
    second.loads.ended(ONE)
    second.loads.ended(TWO)
    beat(processes)
    assert (first.others, third.others) == ({}, {a: 1})


def test_the_counts_of_a_dead_process_expire(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    monkeypatch.setattr(load_sync, "LASTS_S", 0.05)
    first, second, _ = processes
    first.loads.started(ONE)
    first.sync.exchange()
    deadline = time.monotonic() + HANG_S
    while client.hlen(HASH) and time.monotonic() < deadline:
        time.sleep(0.01)
    second.sync.exchange()
    assert second.others == {}
    assert client.pttl(HASH) <= 50


def test_a_process_knows_only_its_own_calls_while_redis_is_away(
    processes: list[Process], redis_server: RedisServer
) -> None:
    first, second, _ = processes
    first.loads.started(ONE)
    beat(processes)
    assert second.others != {}
    redis_server.crash()
    try:
        second.sync.exchange()
        assert second.others == {}
    finally:
        redis_server.restart()


@pytest.mark.parametrize("counts", [b"", b"{}", b"[1]", b'[["a", "b", "x"]]', b'{"v": 2}'])
def test_counts_of_a_later_version_are_ignored(counts: bytes) -> None:
    assert decode(counts) == {}
    assert decode(json.dumps([["p", "r", 2]]).encode()) == {("p", "r"): 2}
