"""Clusters: several servers that share a Redis and a Postgres, behind a load balancer.

- Each server stands for a machine: a gunicorn master with its workers and its files. All have
  identical keys and an identical sluice.toml.
- Clients use a cluster like a single server.
- A test reaches a particular worker over a connection that this worker serves. The operating system
  tells which worker serves a connection; Sluice isn't asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from tests.support import calls
from tests.support.balancer import Balancer
from tests.support.calls import Answer
from tests.support.daemons import CantRunError
from tests.support.postgres import Postgres
from tests.support.raw_client import RawClient
from tests.support.redis_server import RedisServer
from tests.support.servers import POLL_S, UNTROUBLED, Server, fake_rows, make_key

MACHINES, WORKERS = 2, 2
CONNECTIONS = 200
"""The number of connections to try until one goes to the wanted worker."""
ESTABLISHED = "01"


class Worker(NamedTuple):
    machine: int
    pid: int


class Cluster(Server):
    """A running cluster: `with Cluster(config, redis_url=..., database_url=...) as cluster: ...`

    Its port is the load balancer's port.

    Args:
        config: The text of each machine's sluice.toml.
        redis_url: The shared Redis.
        database_url: The shared database of the ledger.
        env: Additional environment variables of each machine.
    """

    def __init__(
        self,
        config: str,
        *,
        redis_url: str,
        database_url: str,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._cleanup = ExitStack()
        temporary = tempfile.TemporaryDirectory(prefix="sluice-cluster-")
        self.directory = Path(self._cleanup.enter_context(temporary))
        self.redis_url, self.database_url = redis_url, database_url
        shared = {"REDIS_URL": redis_url, "DATABASE_URL": database_url}
        settings = {"WEB_CONCURRENCY": str(WORKERS), **shared, **(env or {})}
        self.machines = [self._machine(number, config, settings) for number in range(MACHINES)]
        self.key = self.add_key()

    def _machine(self, number: int, config: str, env: Mapping[str, str]) -> Server:
        directory = self.directory / f"machine{number}"
        directory.mkdir()
        machine = Server(config, env=env, directory=directory)
        (directory / "keys.jsonl").write_text("")  # without the key that Server has added
        return machine

    def start(self) -> Self:
        try:
            for machine in self.machines:
                machine.start()
                self._cleanup.callback(machine.stop)
            addresses = [("127.0.0.1", machine.port) for machine in self.machines]
            self.port = self._cleanup.enter_context(Balancer(addresses)).port
            self.url = f"http://127.0.0.1:{self.port}"
            self.wait(self.is_whole)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout: float = 10.0) -> int:
        self._cleanup.close()
        return 0

    def is_ready(self) -> bool:
        return all(machine.is_ready() for machine in self.machines)

    def is_whole(self) -> bool:
        """Return True if each machine has all its workers, and each worker responds."""
        workers = self.workers()
        if len(workers) != MACHINES * WORKERS:
            return False
        try:
            for worker in workers:
                self.client_of(worker).close()
        except LookupError:
            return False
        return True

    def returncode(self) -> int | None:
        """Return the exit status of a machine that has ended, or None while all machines run."""
        codes = [machine.returncode() for machine in self.machines]
        return next((code for code in codes if code is not None), None)

    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self.workers()]

    def signal(self, number: signal.Signals) -> None:
        for machine in self.machines:
            machine.signal(number)

    def output(self) -> str:
        return "".join(machine.output() for machine in self.machines)

    def add_key(self, name: str = "test", **fields: object) -> str:
        """Add a key to each machine's key file. Return the key.

        Running workers accept the key a moment later; see `wait_known`.
        """
        text, line = make_key(name, **fields)
        for machine in self.machines:
            path = machine.directory / "keys.jsonl"
            path.touch(mode=0o600)
            with path.open("a") as file:
                file.write(line)
        return text

    def workers(self) -> list[Worker]:
        """Return the running workers, ordered by machine and process id."""
        return sorted(
            Worker(number, pid)
            for number, machine in enumerate(self.machines)
            for pid in machine.worker_pids()
        )

    def client_of(self, worker: Worker, **options: Any) -> RawClient:
        """Return a connection that this worker serves.

        Raises:
            LookupError: The worker accepted none of CONNECTIONS connections.
        """
        for _ in range(CONNECTIONS):
            client = RawClient(self.machines[worker.machine].port, key=self.key, **options)
            if serves(worker.pid, client):
                return client
            client.close()
        raise LookupError(f"{worker} accepted none of {CONNECTIONS} connections")

    @contextlib.contextmanager
    def clients_to_each(self) -> Iterator[dict[Worker, RawClient]]:
        with ExitStack() as stack:
            yield {w: stack.enter_context(self.client_of(w)) for w in self.workers()}

    def kill(self, worker: Worker) -> None:
        os.kill(worker.pid, signal.SIGKILL)
        self.wait(lambda: worker not in self.workers())

    def wait_known(self, *keys: str) -> None:
        with self.clients_to_each() as clients:
            for client in clients.values():
                for key in keys:
                    self.wait(lambda key=key: listed(client, key).status == 200)  # type: ignore[misc]  # noqa: B023


def serves(pid: int, client: RawClient) -> bool:
    """Return True if this process serves the connection. Sends a GET /health on it."""
    with contextlib.suppress(OSError, EOFError):  # a worker that shuts down closes it
        client.request("GET", "/health")
        client.read_head()
        client.body()
    with contextlib.suppress(OSError):  # the process is gone
        wanted = (client.sock.getpeername()[1], client.sock.getsockname()[1])
        for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == ESTABLISHED and ports(fields[1], fields[2]) == wanted:
                return f"socket:[{fields[9]}]" in held(pid)
    return False


def ports(local: str, remote: str) -> tuple[int, int]:
    """Return the ports of two addresses in the format of /proc/net/tcp."""
    return int(local.partition(":")[2], 16), int(remote.partition(":")[2], 16)


def held(pid: int) -> Iterator[str]:
    """Yield the targets of a process's file descriptors, such as "socket:[INODE]"."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            yield str(descriptor.readlink())


# Requests to one worker, over a connection that stays open


def exchange(client: RawClient, method: str, path: str, key: str | None = None) -> Answer:
    mine, client.key = client.key, key or client.key
    sent_at = time.monotonic()
    client.request(method, path)
    client.key = mine
    head = client.read_head()
    return Answer(sent_at, head.at - sent_at, head.status, head.headers, client.json())


def stop(client: RawClient, stream_id: str, key: str | None = None) -> Answer:
    return exchange(client, "POST", f"{calls.COMPLETIONS}/stop-stream/{stream_id}", key)


def listed(client: RawClient, key: str | None = None) -> Answer:
    return exchange(client, "GET", f"{calls.COMPLETIONS}/streams", key)


def wait(condition: Callable[[], bool], timeout: float, what: str) -> float:
    """Wait until the condition is true. Return the seconds that this took.

    Raises:
        TimeoutError: The condition didn't become true within `timeout` seconds. The message has
            `what`.
    """
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > timeout:
            raise TimeoutError(f"not true within {timeout:g} s: {what}")
        time.sleep(POLL_S)
    return time.monotonic() - begun


class Backends(NamedTuple):
    redis: RedisServer
    postgres: Postgres
    database_url: str


@contextlib.contextmanager
def backends() -> Iterator[Backends]:
    """Yield a Redis and a Postgres that the caller may stop and crash.

    Skip the test if one of them can't run here.
    """
    with ExitStack() as stack:
        try:
            redis = stack.enter_context(RedisServer())
            postgres = stack.enter_context(Postgres())
        except CantRunError as error:
            pytest.skip(str(error))
        yield Backends(redis, postgres, postgres.new_database()[1])


@contextlib.contextmanager
def untroubled(base_url: str) -> Iterator[Cluster]:
    """Yield a cluster with its own backends, and with a fake provider in its sluice.toml."""
    with (
        backends() as shared,
        Cluster(
            fake_rows(base_url),
            redis_url=shared.redis.url,
            database_url=shared.database_url,
            env=UNTROUBLED,
        ) as cluster,
    ):
        yield cluster
