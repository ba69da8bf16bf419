"""Replicas of a row: calls stay with a replica, one is killed under load, and it comes back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from cluster.redis_client import RedisClient
from providers import registry
from providers.base import Target
from routing.circuit_breaker import CircuitBreakers
from tests.support import calls
from tests.support.engine import Engine
from tests.support.pace import HANG_S
from tests.support.redis_server import RedisServer
from tests.support.servers import Server

ENGINES, EACH = 3, 3
"""The number of engines, and of prefixes whose home each engine is."""


class Served(NamedTuple):
    prefix: int
    status: int
    attempts: int
    port: int


class Load:
    """Clients that call all the time, each with a prompt prefix of its own."""

    def __init__(self, server: Server, prefixes: Iterable[int]) -> None:
        self.served: list[Served] = []
        self._server, self._stop = server, threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(n,), daemon=True) for n in prefixes
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(HANG_S)

    def latest(self) -> dict[int, int]:
        """Return the engine that served the last call of each prefix, by its port."""
        return {call.prefix: call.port for call in list(self.served)}

    def _call(self, prefix: int) -> None:
        with self._server.client() as client:
            while not self._stop.is_set():
                calls.ask(client, model="engines/m", prompt=prompt(prefix))
                head, answer = client.read_head(), client.json()
                attempts = int(head.headers["x-sluice-attempts"])
                port = json.loads(answer["data"])["port"] if head.status == 200 else 0
                self.served.append(Served(prefix, head.status, attempts, port))


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Engine]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Engine()) for _ in range(ENGINES)]


@pytest.fixture(scope="module")
def server(engines: list[Engine]) -> Iterator[Server]:
    urls = json.dumps([engine.url for engine in engines])
    rows = f"[providers.engines]\ncompletions = true\nbase_url = {urls}\n"
    with Server(rows) as found:
        yield found


@pytest.mark.thorough
def test_no_call_fails_when_a_replica_is_killed_and_its_prefixes_return_when_it_is_back(
    server: Server, engines: list[Engine]
) -> None:
    home = homes(server)
    with Load(server, home) as load:

        def all_served_since(start: int, check: Callable[[set[int]], bool]) -> bool:
            found = load.served[start:]
            prefixes = {call.prefix for call in found}
            return len(prefixes) == len(home) and check({call.port for call in found})

        server.wait(lambda: all_served_since(0, bool))
        assert load.latest() == home
        victim = engines[0]
        victim.kill()
        start = len(load.served)
        server.wait(lambda: all_served_since(start, bool))
        later = len(load.served)
        server.wait(lambda: all_served_since(later, lambda ports: victim.port not in ports))
        moved = load.latest()
        assert all(moved[n] == port for n, port in home.items() if port != victim.port)
        assert "engines (replica 1)" in cooling(server)
        assert replicas(server) == {"total": 3, "reachable": 2}
        victim.start()
        server.wait(lambda: load.latest() == home)
        assert cooling(server) == {}
        assert replicas(server) == {"total": 3, "reachable": 3}
    assert {call.status for call in load.served} == {200}
    assert max(call.attempts for call in load.served) == 2


@pytest.mark.thorough
def test_metrics_and_logs_name_the_replica_and_the_ledger_names_the_row(
    server: Server, engines: list[Engine]
) -> None:
    answer = calls.complete(server, model="engines/m", prompt="Say it")
    port = json.loads(answer["data"])["port"]
    assert (answer["provider"], answer["model"]) == ("engines", "m")
    replica = f'provider="engines",replica="127.0.0.1:{port}"'
    text = get(server, "/metrics")
    assert f"sluice_replica_calls{{{replica}}} 0.0" in text
    assert f'sluice_replica_attempts_total{{code="",{replica}}}' in text
    assert f'"replica": "127.0.0.1:{port}"' in server.output()


@pytest.mark.thorough
def test_a_server_checks_the_replicas_that_another_process_cannot_reach(
    engines: list[Engine],
) -> None:
    """The other process reports a replica that is killed, and one that is well."""
    urls = [engine.url for engine in engines]
    rows = f"[providers.engines]\ncompletions = true\nbase_url = {json.dumps(urls)}\n"
    row = registry.rows({"engines": {"base_url": urls}})["engines"]
    first, second, _ = Target(row, "m").replicas
    with RedisServer() as redis, Server(rows, env={"REDIS_URL": redis.url}) as server:
        other = CircuitBreakers(redis_client=RedisClient(redis.url))
        engines[0].kill()
        try:
            for target in (first, second):
                other.unreached(target)
            other.exchange()
            server.wait(lambda: bool(cooling(server)))
            assert list(cooling(server)) == ["engines (replica 1)"], "before any call"
        finally:
            engines[0].start()
        server.wait(lambda: cooling(server) == {})


def prompt(prefix: int) -> str:
    return f"Prefix {prefix}. " * 200


def homes(server: Server) -> dict[int, int]:
    """Return prefixes with the port of the engine that serves them, as many for each engine.

    The calls that find out are one after the other, so each is served at its prefix's home. With as
    many prefixes for each engine, no engine reaches its bound under load.
    """
    found: dict[int, list[int]] = {}
    prefix = 0
    while sum(len(prefixes) for prefixes in found.values()) < ENGINES * EACH:
        prefix += 1
        answer = calls.complete(server, model="engines/m", prompt=prompt(prefix))
        known = found.setdefault(json.loads(answer["data"])["port"], [])
        if len(known) < EACH:
            known.append(prefix)
    return {prefix: port for port, prefixes in found.items() for prefix in prefixes}


def get(server: Server, path: str) -> str:
    with server.client() as client:
        client.request("GET", path)
        client.read_head()
        return client.body().decode()


def replicas(server: Server) -> Any:
    listed = calls.get(server, "/api/v1/models/engines").json
    assert "127.0.0.1" not in json.dumps(listed)
    return listed["replicas"]


def cooling(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get(server, "/ready")).get("cooling", {})
    return found
