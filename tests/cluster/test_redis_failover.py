"""Tests of cluster/redis_client.py: failovers, and Redis servers that can't be used."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.lua import LuaScript
from cluster.redis_client import RedisAway, RedisClient
from config import ConfigError
from tests.support.daemons import CantRunError
from tests.support.pace import HANG_S
from tests.support.redis_server import RedisServer
from tests.support.servers import Server

PASSWORD = "s3cret-word-0123"


class Address:
    """The address of a Redis that can be repointed. Connections made before that stay open.

    After `demote`, the old connections get the same reply to everything. `b""` closes them, and
    None means a Redis that never replies.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._reply: bytes | None = None
        self._generation = 0
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def demote(self, reply: bytes | None) -> None:
        self._reply = reply
        self._generation += 1

    def close(self) -> None:
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [client, server]
                for arguments in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=self._pump, args=(*arguments, self._generation), daemon=True
                    ).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, asks: bool, generation: int
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if generation == self._generation or not asks:
                    sink.sendall(data)
                elif self._reply:
                    commands = data.count(b"\r\n*") + data.startswith(b"*")
                    source.sendall(self._reply * commands)
                elif self._reply is not None:
                    source.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def address(redis_server: RedisServer) -> Iterator[Address]:
    with contextlib.closing(Address(redis_server.port)) as found:
        yield found


SET = LuaScript("return redis.call('SET', KEYS[1], '1')")
REPLIES: dict[str, bytes | None] = {
    "readonly": b"-READONLY You can't write against a read only replica.\r\n",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "masterdown": b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to "
    b"'no'.\r\n",
    "busy": b"-BUSY Redis is busy running a script.\r\n",
    "unkillable": b"-UNKILLABLE Sorry the script already executed write commands.\r\n",
    "noreplicas": b"-NOREPLICAS Not enough good replicas to write.\r\n",
    "script": b"-ERR Error running script (call to f_1): -READONLY You can't write.\r\n",
    "closed": b"",
    "silent": None,
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_connections_to_a_demoted_primary_are_replaced(
    address: Address, reply: bytes | None
) -> None:
    with contextlib.closing(RedisClient(address.url)) as shared:
        barrier = threading.Barrier(4)

        def hold(_: Any) -> None:
            barrier.wait(HANG_S)

        def use(client: Any) -> None:
            client.ping()
            hold(client)
            client.ping()

        threads = [threading.Thread(target=shared.run, args=(use,)) for _ in range(4)]
        for thread in threads:  # four connections are idle afterwards
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
        shared.script(SET, ["a"], [])
        address.demote(reply)
        for _ in range(2):  # the first attempt notices the failover, the second succeeds
            with contextlib.suppress(RedisAway):
                shared.probe(lambda client: client.set("b", "1"))
                break
        else:
            pytest.fail("still unavailable after two attempts")
        assert shared.available
        for _ in range(6):
            shared.run(lambda client: client.set("c", "1"))
        shared.script(SET, ["d"], [])


def test_a_script_that_finds_a_replica_drops_the_connections(address: Address) -> None:
    with contextlib.closing(RedisClient(address.url)) as shared:
        shared.script(SET, ["a"], [])
        address.demote(REPLIES["readonly"])
        with pytest.raises(RedisAway, match="it is a replica"):
            shared.script(SET, ["a"], [])
        shared.probe(lambda client: client.set("b", "1"))
        shared.script(SET, ["a"], [])


def test_a_server_shares_its_state_again_after_a_failover(redis_server: RedisServer) -> None:
    with RedisServer() as promoted, contextlib.closing(Address(redis_server.port)) as address:
        with Server(env={"REDIS_URL": address.url}) as server, redis_server.client() as old:
            address.target = promoted.port
            old.replicaof("127.0.0.1", promoted.port)
            server.wait(lambda: "Redis is unavailable" in server.output())
            server.wait(lambda: "Redis is available again" in server.output())
            with promoted.client() as new:
                server.wait(lambda: new.zcard("sluice:fleet") == 1)
            assert server.output().count("Redis is unavailable") == 1
        redis_server.client().replicaof("NO", "ONE")


# Redis servers that can't be used


def check(url: str) -> str:
    """Return the error of a check, which must fail at once and without showing the password."""
    before = time.monotonic()
    with contextlib.closing(RedisClient(url)) as shared, pytest.raises(ConfigError) as raised:
        shared.check()
    assert time.monotonic() - before < HANG_S
    message = str(raised.value)
    assert "REDIS_URL" in message
    assert "\n" not in message
    assert PASSWORD not in message
    return message


def test_a_redis_in_cluster_mode_is_refused() -> None:
    try:
        with RedisServer(cluster_enabled="yes") as server:
            assert "is in cluster mode" in check(server.url)
            with server.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            time.sleep(0.5)
            assert "is in cluster mode" in check(server.url)
    except CantRunError as error:
        pytest.skip(str(error))


@pytest.mark.thorough
def test_a_start_on_a_redis_in_cluster_mode_fails_with_one_line() -> None:
    with RedisServer(cluster_enabled="yes") as redis_server:
        server = Server(env={"REDIS_URL": redis_server.url})
        with pytest.raises(RuntimeError) as raised:
            server.start()
        assert "is in cluster mode" in str(raised.value)
        assert "Traceback" not in str(raised.value)


def test_a_missing_or_wrong_password_is_reported_as_such() -> None:
    with RedisServer(requirepass="another-word") as server:
        assert "requires a password (NOAUTH" in check(server.url)
        for user in ("", "default", "nobody"):
            url = server.url.replace("//", f"//{user}:{PASSWORD}@")
            assert "the user name or the password is wrong (WRONGPASS" in check(url)


def test_a_password_for_a_redis_without_one_is_reported(redis_server: RedisServer) -> None:
    message = check(redis_server.url.replace("//", f"//:{PASSWORD}@"))
    assert "without any password configured" in message


@pytest.mark.parametrize(
    "rules",
    [
        "~* &* +@all -eval -evalsha",
        "~* &* +@all -publish",
        "~* &* +@all -subscribe",
        "~* &* +@all -pubsub",
        "~mine:* &* +@all",
        "~sluice:* &* +@all",
        "~* resetchannels +@all",
        "~* &* +@read +ping",
    ],
)
def test_a_missing_permission_is_reported_at_the_start(
    redis_server: RedisServer, rules: str
) -> None:
    with redis_server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "sluice", "reset", "on", f">{PASSWORD}", *rules.split()
        )
        try:
            message = check(redis_server.url.replace("//", f"//sluice:{PASSWORD}@"))
        finally:
            client.execute_command("ACL", "DELUSER", "sluice")
    assert "the user lacks a permission (NOPERM" in message


def test_a_missing_permission_for_streams_is_reported_at_the_start(
    redis_server: RedisServer,
) -> None:
    with redis_server.client() as client:
        rules = f"reset on >{PASSWORD} ~* &* +@all -xadd".split()
        client.execute_command("ACL", "SETUSER", "sluice", *rules)
        try:
            message = check(redis_server.url.replace("//", f"//sluice:{PASSWORD}@"))
        finally:
            client.execute_command("ACL", "DELUSER", "sluice")
    assert "can't run this command" in message  # Redis 6 doesn't say NOPERM inside a script


def test_a_user_without_info_can_use_redis(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        rules = (
            f"reset resetchannels on >{PASSWORD} ~sluice:* ~LIMITS:* &sluice:* +@all -info".split()
        )
        client.execute_command("ACL", "SETUSER", "sluice", *rules)
        try:
            url = redis_server.url.replace("//", f"//sluice:{PASSWORD}@")
            with contextlib.closing(RedisClient(url)) as shared:
                shared.check()
                assert shared.memory_limit() == 0, "not known"
                assert shared.available
            assert client.keys("*") == []
        finally:
            client.execute_command("ACL", "DELUSER", "sluice")


def test_a_start_on_a_read_only_replica_is_refused(redis_server: RedisServer) -> None:
    with RedisServer() as primary, redis_server.client() as client:
        client.replicaof("127.0.0.1", primary.port)
        try:
            assert "it is a replica, which can't be written" in check(redis_server.url)
        finally:
            client.replicaof("NO", "ONE")
