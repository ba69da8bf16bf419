"""Test of a machine that loses only its connection to Redis.

Its calls continue, neither side claims to know the other side's streams, and both recover when the
connection is back. The machine runs in a separate network namespace, with one link for Redis and
another for everything else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import calls, clusters
from tests.support.balancer import Balancer
from tests.support.books import assert_sound, open_rows
from tests.support.calls import begin_stream
from tests.support.cluster_proofs import SCRIPTS, assert_cancelled
from tests.support.clusters import backends
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.raw_client import RawClient
from tests.support.servers import UNTROUBLED, Server, fake_rows, make_key

pytestmark = pytest.mark.thorough

CUT_S = 8.0
"""The length of the partition, long enough for the other processes to notice the silence."""
BACK_WITHIN_S = scaled(15)
NETWORK = "10.213.{}.{}"


class Link(NamedTuple):
    """A pair of network interfaces. The second one belongs to the machine."""

    number: int

    @property
    def near(self) -> str:
        return f"sluice{os.getpid() % 100000}{self.number}"

    @property
    def far(self) -> str:
        return f"{self.near}f"

    @property
    def here(self) -> str:
        return NETWORK.format(self.number, 1)

    @property
    def there(self) -> str:
        return NETWORK.format(self.number, 2)

    def up(self) -> None:
        ip("link", "set", self.near, "up")

    def down(self) -> None:
        """Make the link drop all packets silently."""
        ip("link", "set", self.near, "down")


ALL, REDIS = Link(0), Link(1)


def ip(*arguments: str) -> None:
    command = ["ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@pytest.fixture
def namespace() -> Iterator[str]:
    """Yield the name of a network namespace that has the far ends of ALL and REDIS."""
    name = f"sluice-{os.getpid()}"
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the program ip (iproute2)")
    with ExitStack() as stack:
        try:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            for link in (ALL, REDIS):
                pair = ("type", "veth", "peer", "name", link.far)
                ip("link", "add", link.near, *pair)
                stack.callback(forgiving, "link", "delete", link.near)
                ip("link", "set", link.far, "netns", name)
                ip("address", "add", f"{link.here}/30", "dev", link.near)
                link.up()
                ip("-n", name, "address", "add", f"{link.there}/30", "dev", link.far)
                ip("-n", name, "link", "set", link.far, "up")
            ip("-n", name, "link", "set", "lo", "up")
        except OSError as failure:
            pytest.skip(f"can't create a network namespace: {failure}")
        yield name


def forgiving(*arguments: str) -> None:
    with contextlib.suppress(OSError):
        ip(*arguments)


class Machine(Server):
    """A server in a network namespace. Its `port` can be reached from outside the namespace."""

    def __init__(self, namespace: str, config: str, env: dict[str, str], directory: Path) -> None:
        super().__init__(config, env=env, directory=directory)
        inside = f"{ALL.there}:{self.port}"
        self._command = ["ip", "netns", "exec", namespace, *self._command, "-b", inside]
        self._command.remove("wsgi:app")
        self._command.append("wsgi:app")
        self._way = Balancer([(ALL.there, self.port)])

    def start(self) -> Machine:
        self.port = self._cleanup.enter_context(self._way).port
        super().start()
        return self


class Pair(NamedTuple):
    near: Server
    cut_off: Server
    database_url: str


@pytest.fixture
def pair(namespace: str, fake: FakeProvider, tmp_path: Path) -> Iterator[Pair]:
    """Yield two machines of one worker each. One of them can be cut off from Redis."""
    fake.named(SCRIPTS)
    key, line = make_key(id="key_main")
    with backends() as shared, ExitStack() as stack:
        provider = Balancer([("127.0.0.1", fake.port)], host=ALL.here)
        redis = Balancer([("127.0.0.1", shared.redis.port)], host=REDIS.here)
        to_provider, to_redis = map(stack.enter_context, (provider, redis))
        common = {"DATABASE_URL": shared.database_url, **UNTROUBLED}
        for name in ("near", "far"):
            (tmp_path / name).mkdir()
        near = Server(
            fake_rows(fake.base_url),
            env=common | {"REDIS_URL": shared.redis.url},
            directory=tmp_path / "near",
        )
        far = Machine(
            namespace,
            fake_rows(f"http://{ALL.here}:{to_provider.port}/v1"),
            common | {"REDIS_URL": f"redis://{REDIS.here}:{to_redis.port}/0"},
            tmp_path / "far",
        )
        for server in (near, far):
            (server.directory / "keys.jsonl").write_text(line)
            server.key = key
            stack.enter_context(server)
        yield Pair(near, far, shared.database_url)
        for server in (near, far):
            assert "Traceback" not in server.output()


def begin(server: Server, stack: ExitStack, name: str) -> RawClient:
    """Start an endless stream with `name` as its id. Return its client."""
    client = stack.enter_context(server.client())
    begin_stream(client, prompt="probe it", stream_id=name)
    return client


def stopped(server: Server, name: str) -> int:
    return calls.stop(server, name).status


def test_a_machine_cut_off_from_redis_serves_on_and_recovers(pair: Pair) -> None:
    near, far, place = pair
    with ExitStack() as stack:
        client = begin(far, stack, "first")
        assert stopped(near, "first") == 200
        assert_cancelled(client)
        clusters.wait(
            lambda: stopped(near, "unknown") == 404, BACK_WITHIN_S, "all streams are known"
        )
        here, there = begin(near, stack, "here"), begin(far, stack, "there")
        REDIS.down()
        try:
            cut_at = time.monotonic()
            late = begin(far, stack, "late")  # Redis doesn't know this stream
            while time.monotonic() < cut_at + CUT_S:
                assert stopped(near, "late") == 503
                assert stopped(far, "here") == 503
                assert stopped(near, "there") == 503
                assert calls.get(near, "/ready").status == calls.get(far, "/ready").status == 200
            own = begin(far, stack, "own")
            assert stopped(far, "own") == 200
            assert_cancelled(own)
        finally:
            REDIS.up()
        for server, name, client in (
            (near, "there", there),
            (far, "here", here),
            (near, "late", late),
        ):
            statuses: list[int] = []

            def done(
                server: Server = server, name: str = name, statuses: list[int] = statuses
            ) -> bool:
                statuses.append(stopped(server, name))
                return statuses[-1] == 200

            took = clusters.wait(done, BACK_WITHIN_S, f"{name} is stopped")
            print(f"{name}: after {took:.1f} s")
            assert set(statuses) <= {200, 503}
            assert_cancelled(client)
    near.wait(lambda: not open_rows(place))
    assert_sound(place)
