"""Tests of the metrics of two workers, requested from either of them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import fake as fp
from tests.support.calls import BEGUN, ask, begin_stream
from tests.support.clusters import serves
from tests.support.fake import FakeProvider
from tests.support.raw_client import RawClient
from tests.support.redis_server import RedisServer
from tests.support.servers import UNTROUBLED, Server, fake_rows

WORKERS = 2
HELD = [*BEGUN, fp.hold()]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    path = tmp_path / "temporary"
    path.mkdir()
    return path


@pytest.fixture
def settings(redis_server: RedisServer, temporary: Path) -> dict[str, str]:
    more = {"WEB_CONCURRENCY": str(WORKERS), "REDIS_URL": redis_server.url}
    return {**UNTROUBLED, **more, "TMPDIR": str(temporary), "SLUICE_DRAIN_S": "1"}


@pytest.fixture
def pair(fake: FakeProvider, settings: dict[str, str]) -> Iterator[Server]:
    with Server(fake_rows(fake.base_url), env=settings) as server:
        server.wait(lambda: len(server.worker_pids()) == WORKERS)
        yield server
        assert "Traceback" not in server.output()


def worker_of(server: Server, client: RawClient) -> int | None:
    """Return the id of the worker that serves a connection, or None. Sends a request on it."""
    return next((pid for pid in server.worker_pids() if serves(pid, client)), None)


@contextlib.contextmanager
def clients_to_each(server: Server) -> Iterator[dict[int, RawClient]]:
    """Yield an open connection to each worker, by its process id. Wait until each has one."""
    found: dict[int, RawClient] = {}

    def look() -> bool:
        client = server.client()
        pid = worker_of(server, client)
        if pid is None or pid in found:
            client.close()
        else:
            found[pid] = stack.enter_context(client)
        return len(found) == WORKERS

    with ExitStack() as stack:
        server.wait(look)
        yield found


def metrics(client: RawClient) -> dict[str, float]:
    """Return the metrics that a worker shows: for each name, the sum over all series."""
    client.request("GET", "/metrics")
    assert client.read_head().status == 200
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(client.body().decode()):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def wait_shown(server: Server, client: RawClient, **expected: float) -> None:
    names = {f"sluice_{name}": value for name, value in expected.items()}
    server.wait(lambda: names.items() <= metrics(client).items())


def call(client: RawClient, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("hi")))
    ask(client)
    assert client.read_head().status == 200
    client.body()


def directories(temporary: Path) -> list[Path]:
    return list(temporary.glob("sluice-metrics-*"))


def test_each_worker_shows_the_sums_over_all_workers(pair: Server, fake: FakeProvider) -> None:
    with clients_to_each(pair) as clients:
        for count, client in enumerate(clients.values(), start=1):
            for _ in range(count):
                call(client, fake)
        for client in clients.values():
            found = metrics(client)
            assert found["sluice_requests_total"] == 3
            assert found["sluice_streams_ended_total"] == 3
            assert found["sluice_tokens_total"] % 3 == 0 < found["sluice_tokens_total"]
            assert found["sluice_streams_active"] == 0
            assert not [name for name in found if not name.startswith("sluice_")]


@pytest.mark.thorough
def test_redis_up_falls_to_0_in_every_worker_when_redis_crashes(
    pair: Server, redis_server: RedisServer
) -> None:
    with clients_to_each(pair) as clients:
        for client in clients.values():
            wait_shown(pair, client, redis_up=1)
        redis_server.crash()
        for client in clients.values():
            wait_shown(pair, client, redis_up=0)


@pytest.mark.thorough
def test_a_killed_worker_loses_its_active_streams_but_not_its_counts(
    pair: Server, fake: FakeProvider
) -> None:
    with clients_to_each(pair) as clients, ExitStack() as stack:
        for client in clients.values():
            call(client, fake)
        for stream in stack.enter_context(clients_to_each(pair)).values():
            fake.script(HELD)
            begin_stream(stream)
        victim, survivor = clients
        for client in clients.values():
            wait_shown(pair, client, streams_active=2, streams_ended_total=2)
        os.kill(victim, signal.SIGKILL)
        wait_shown(pair, clients[survivor], streams_active=1)
        assert metrics(clients[survivor])["sluice_streams_ended_total"] == 2
        pair.wait(lambda: len(set(pair.worker_pids()) - {victim}) == WORKERS)
    with clients_to_each(pair) as clients:
        assert victim not in clients
        for client in clients.values():
            call(client, fake)
        # The stream of the surviving worker has ended, because its client has disconnected.
        for client in clients.values():
            wait_shown(pair, client, streams_active=0, streams_ended_total=5)


@pytest.mark.thorough
def test_counts_outlive_a_reload_and_the_directory_is_removed_on_exit(
    pair: Server, fake: FakeProvider, temporary: Path
) -> None:
    with clients_to_each(pair) as clients:
        for client in clients.values():
            call(client, fake)
        old = set(clients)
    (directory,) = directories(temporary)
    assert directory.stat().st_mode & 0o777 == 0o700
    pair.signal(signal.SIGHUP)
    pair.wait(lambda: len(now := set(pair.worker_pids())) == WORKERS and not now & old)
    pair.wait(lambda: not [p for p in old for _ in directory.glob(f"gauge_live*_{p}.db")])
    with clients_to_each(pair) as clients:
        for client in clients.values():
            call(client, fake)
        for client in clients.values():
            assert metrics(client)["sluice_streams_ended_total"] == 4
    assert directories(temporary) == [directory]
    assert pair.stop() == 0
    assert directories(temporary) == []


@pytest.mark.thorough
def test_a_metrics_directory_of_the_operator_is_kept(
    fake: FakeProvider, settings: dict[str, str], temporary: Path
) -> None:
    own = temporary / "own"
    own.mkdir()
    settings["PROMETHEUS_MULTIPROC_DIR"] = str(own)
    with Server(fake_rows(fake.base_url), env=settings) as server:
        server.wait(lambda: len(list(own.glob("counter_*.db"))) == WORKERS)
        assert directories(temporary) == []
    assert len(list(own.glob("counter_*.db"))) == WORKERS


@pytest.mark.parametrize("own", ["gone", "a-file"])
def test_an_invalid_metrics_directory_stops_the_start_without_a_traceback(
    settings: dict[str, str], temporary: Path, own: str
) -> None:
    (temporary / "a-file").touch(0o755)
    settings["PROMETHEUS_MULTIPROC_DIR"] = str(temporary / own)
    server = Server(env=settings)
    with pytest.raises(RuntimeError, match="which is not a writable directory"), server:
        pass  # the start fails
    assert server.returncode() == 1
    assert [line for line in server.output().splitlines() if line.startswith("sluice: ")] != []
    assert "Traceback" not in server.output()


def test_one_worker_writes_no_metric_files_and_shows_process_metrics(
    fake: FakeProvider, settings: dict[str, str], temporary: Path
) -> None:
    settings["WEB_CONCURRENCY"] = "1"
    with Server(fake_rows(fake.base_url), env=settings) as server, server.client() as client:
        call(client, fake)
        found = metrics(client)
        assert found["sluice_streams_ended_total"] == 1
        assert "process_start_time_seconds" in found
        assert not list(temporary.rglob("*.db"))
