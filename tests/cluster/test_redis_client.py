"""redis_client.py: failures and recovery, batches of scripts, TLS, and passwords in URLs."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from cluster.lua import LuaScript
from cluster.redis_client import CONNECTIONS, TIMEOUT_S, RedisAway, RedisClient
from config import ConfigError
from tests.support.pace import scaled
from tests.support.redis_server import RedisServer


@pytest.fixture
def shared(redis_server: RedisServer) -> Iterator[RedisClient]:
    found = RedisClient(redis_server.url)
    yield found
    found.close()


def ping(shared: RedisClient) -> bool:
    return bool(shared.run(lambda client: client.ping()))


def test_calls_after_a_redis_failure_fail_at_once_until_a_probe_succeeds(
    redis_server: RedisServer, shared: RedisClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert ping(shared)
    redis_server.pause()
    with pytest.raises(RedisAway):
        ping(shared)
    assert not shared.available
    before = time.monotonic()
    for _ in range(100):
        with pytest.raises(RedisAway):
            ping(shared)
    assert time.monotonic() - before < scaled(0.5)
    redis_server.resume()
    with pytest.raises(RedisAway):  # there was no probe yet
        ping(shared)
    assert shared.probe(lambda client: client.ping())
    assert ping(shared)
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [line.split(":")[0] for line in lines] == [
        "Redis is unavailable",
        "Redis is available again",
    ]


def test_concurrent_calls_to_a_hanging_redis_time_out_together(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    redis_server.pause()
    failures: list[RedisAway] = []

    def ask() -> None:
        try:
            ping(shared)
        except RedisAway as failure:
            failures.append(failure)

    threads = [threading.Thread(target=ask) for _ in range(20 * CONNECTIONS)]
    before = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == len(threads)
    assert time.monotonic() - before < scaled(10 * TIMEOUT_S)


def many(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)


def echoes(shared: RedisClient, count: int) -> dict[int, object]:
    """Run a script in concurrent callers. Return each caller's result, by the caller's number."""
    script = LuaScript("return {KEYS[1], ARGV[1]}")
    found: dict[int, object] = {}

    def ask(number: int) -> None:
        try:
            found[number] = shared.script(script, [f"k{number}"], [number])
        except RedisAway as failure:
            found[number] = failure

    many(ask, count)
    return found


def test_scripts_of_many_callers_share_a_single_connection(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    with contextlib.closing(redis_server.client()) as client:
        client.script_flush()  # so that Redis doesn't know the script at first
        for _ in range(2):
            assert echoes(shared, 300) == {n: [f"k{n}".encode(), b"%d" % n] for n in range(300)}
        assert len([c for c in client.client_list() if c["name"] == "sluice"]) == 1


def test_scripts_that_wait_for_a_hanging_redis_fail_together(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    assert echoes(shared, 1) == {0: [b"k0", b"0"]}
    redis_server.pause()
    before = time.monotonic()
    found = echoes(shared, 500)
    assert len(found) == 500
    assert all(isinstance(failure, RedisAway) for failure in found.values())
    assert len({id(failure) for failure in found.values()}) == 500
    assert time.monotonic() - before < scaled(10 * TIMEOUT_S)
    redis_server.resume()
    shared.probe(lambda client: client.ping())
    assert echoes(shared, 1) == {0: [b"k0", b"0"]}


def test_a_script_succeeds_although_redis_has_closed_its_connection(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    with contextlib.closing(redis_server.client()) as client:
        for _ in range(3):
            assert echoes(shared, 1) == {0: [b"k0", b"0"]}
            assert client.client_kill_filter(_type="normal", skipme=True) == 1
        assert shared.available


def test_scripts_leave_their_connection_after_a_failure_of_another_command(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    assert echoes(shared, 1) == {0: [b"k0", b"0"]}
    with contextlib.closing(redis_server.client()) as client:
        (before,) = [c["id"] for c in client.client_list() if c["name"] == "sluice"]
        with pytest.raises(RedisAway):
            shared.run(lambda client: client.eval("return redis.call('NONSENSE')", 0))
        shared.probe(lambda client: client.ping())
        assert echoes(shared, 1) == {0: [b"k0", b"0"]}
        assert before not in [c["id"] for c in client.client_list()]


def test_an_unread_reply_is_never_the_reply_to_a_later_script(
    redis_server: RedisServer, shared: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert echoes(shared, 1) == {0: [b"k0", b"0"]}

    def read(_connection: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(shared, "_read", read)
        assert isinstance(echoes(shared, 1)[0], RedisAway)
    assert shared.available
    expected = {n: [f"k{n}".encode(), b"%d" % n] for n in range(20)}
    assert echoes(shared, 20) == expected


def test_a_failing_script_raises_its_error_in_its_caller(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    script = LuaScript("return redis.error_reply('ODD ' .. KEYS[1])")
    with pytest.raises(RedisAway, match="ODD mine"):
        shared.script(script, ["mine"], [])
    shared.probe(lambda client: client.ping())
    assert echoes(shared, 1) == {0: [b"k0", b"0"]}


def test_a_connection_closed_by_a_redis_restart_causes_no_failure(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    assert ping(shared)
    redis_server.crash()
    redis_server.restart()
    assert ping(shared)


def test_a_command_that_redis_refuses_raises_redis_away(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    with contextlib.closing(redis_server.client()) as client:
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(RedisAway, match="maxmemory"):
                shared.run(lambda client: client.set("a", "b"))
        finally:
            client.config_set("maxmemory", "0")


def test_concurrent_calls_stay_within_the_connection_limit(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    threads = [threading.Thread(target=ping, args=(shared,)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with contextlib.closing(redis_server.client()) as client:
        ours = [c for c in client.client_list() if c["name"] == "sluice"]
        assert 0 < len(ours) <= CONNECTIONS


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://h/0", "redis://:s3cret@h:port/0", "redis://:s3cret@[::1/0"]
)
def test_an_invalid_redis_url_is_not_quoted_in_the_error(url: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL must be redis://") as raised:
        RedisClient(url)
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_check_of_an_unreachable_redis_reports_the_cause(
    redis_server: RedisServer, shared: RedisClient
) -> None:
    shared.check()
    redis_server.crash()
    with pytest.raises(ConfigError, match=r"REDIS_URL.*refused"):
        shared.check()


def test_a_wrong_password_is_not_quoted(redis_server: RedisServer) -> None:
    url = redis_server.url.replace("redis://", "redis://:s3cret@")
    with contextlib.closing(redis_server.client()) as client:
        client.config_set("requirepass", "another")
        try:
            with pytest.raises(ConfigError, match="REDIS_URL") as raised:
                RedisClient(url).check()
            assert "s3cret" not in str(raised.value)
        finally:
            client.config_set("requirepass", "")


@pytest.fixture
def tls_port(redis_server: RedisServer, ca: trustme.CA, tmp_path: Path) -> Iterator[int]:
    """Yield the port of a TLS proxy for Redis, whose certificate no public CA has signed."""
    pem = tmp_path / "redis.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = (listener, context, redis_server.port)
        threading.Thread(target=accept, args=arguments, daemon=True).start()
        yield listener.getsockname()[1]


def accept(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        with contextlib.suppress(OSError):
            outer = context.wrap_socket(plain, server_side=True)
            inner = socket.create_connection(("127.0.0.1", port))
            for ends in ((outer, inner), (inner, outer)):
                threading.Thread(target=pump, args=ends, daemon=True).start()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.close()


def test_tls_verifies_the_certificate_unless_verify_is_off(tls_port: int) -> None:
    url = f"rediss://127.0.0.1:{tls_port}/0"
    with pytest.raises(ConfigError, match="SLUICE_REDIS_VERIFY=0"):
        RedisClient(url).check()
    unverified = RedisClient(url, verify=False)
    unverified.check()
    unverified.close()


def test_tls_trusts_the_ca_file_named_in_the_url(tls_port: int, ca_bundle: str) -> None:
    trusting = RedisClient(f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={ca_bundle}")
    trusting.check()
    trusting.close()


def test_redis_own_limit_of_memory_is_known() -> None:
    with (
        RedisServer(maxmemory="8mb") as server,
        contextlib.closing(RedisClient(server.url)) as found,
    ):
        assert found.memory_limit() == 8 << 20
