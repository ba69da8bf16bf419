"""Pairs of servers that share a Redis, a ledger, keys and a configuration.

- Each server has one worker, so a client that chooses the server chooses the process.
- Number 0 is the first server, and number 1 the second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support.balancer import Balancer
from tests.support.books import ledger_of
from tests.support.clusters import wait
from tests.support.daemons import CantRunError
from tests.support.pace import HANG_S
from tests.support.raw_client import RawClient
from tests.support.redis_server import RedisServer
from tests.support.resuming import Connect
from tests.support.servers import Server


class Pair:
    """A running pair: `with Pair(config, redis.url) as pair: ...`

    Args:
        config: The text of sluice.toml.
        redis_url: The shared Redis.
        env: Additional environment variables of both servers.
    """

    def __init__(
        self, config: str, redis_url: str, *, env: Mapping[str, str] | None = None
    ) -> None:
        self._cleanup = ExitStack()
        first = Server(config, env={"REDIS_URL": redis_url, **(env or {})})
        second = Server(
            config, env={"REDIS_URL": redis_url, **(env or {})}, directory=first.directory
        )
        second.key = self.key = first.key
        self.servers = (first, second)
        self.ledger: Path = ledger_of(first)

    def __enter__(self) -> Self:
        with ExitStack() as started:
            for server in self.servers:  # the second one's files are those of the first
                started.enter_context(server)
            self._cleanup = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def client(self, number: int, **options: Any) -> RawClient:
        return self.servers[number].client(**options)

    @property
    def processes(self) -> list[Connect]:
        """The functions that connect to each process."""
        return [server.client for server in self.servers]

    def worker(self, number: int) -> int:
        """Return the id of a server's worker, which must be its only one."""
        [pid] = self.servers[number].worker_pids()
        return pid

    def output(self) -> str:
        return self.servers[0].output()


class Failover:
    """A Redis with a replica, behind an address that leads to the one that is the primary.

    with Failover() as redis:
        connect(redis.url)
        redis.fail_over()
    """

    def __enter__(self) -> Self:
        with ExitStack() as started:
            self.primary = started.enter_context(RedisServer())
            self.replica = started.enter_context(RedisServer())
            self._address = started.enter_context(Balancer([("127.0.0.1", self.primary.port)]))
            self.url = f"redis://127.0.0.1:{self._address.port}/0"
            follow(self.replica, self.primary)
            self._cleanup = started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def lose_tail(self, commands: int) -> None:
        """Promote the replica, which doesn't get the next commands that the primary executes."""
        with contextlib.closing(self.replica.client()) as client:
            client.replicaof("NO", "ONE")
        before = executed(self.primary)
        wait(
            lambda: executed(self.primary) >= before + commands,
            HANG_S,
            "the primary has a new tail",
        )

    def crash(self) -> None:
        """Kill the primary."""
        self.primary.crash()

    def demote(self) -> None:
        """Make the primary a replica of its replica. Connections to it stay open."""
        follow(self.primary, self.replica)

    def lead_to_replica(self) -> None:
        """Cut all connections, and lead new ones to the former replica."""
        self._address.redirect([("127.0.0.1", self.replica.port)])


def follow(replica: RedisServer, primary: RedisServer) -> None:
    """Make a server a replica, and wait until it has the primary's data."""
    with contextlib.closing(replica.client()) as client:
        client.replicaof("127.0.0.1", primary.port)
        wait(
            lambda: client.info("replication")["master_link_status"] == "up",
            HANG_S,
            "the replica has the primary's data",
        )


def executed(server: RedisServer) -> int:
    """Return the number of commands that a Redis has executed."""
    with contextlib.closing(server.client()) as client:
        return int(client.info("stats")["total_commands_processed"])


@contextlib.contextmanager
def a_redis() -> Iterator[RedisServer]:
    """Yield a Redis that the caller may stop and crash. Skip the test if it can't run here."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(RedisServer())
        except CantRunError as error:
            pytest.skip(str(error))
        yield server
