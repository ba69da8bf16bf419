"""Tests of a worker's exit under load: TERM, Ctrl-C, a reload, max_requests.

Calls of every kind are active, and more calls arrive. Each accepted call gets its response and a
row that agrees with it.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import calls, mixture
from tests.support import fake as fp
from tests.support.books import assert_sound, by_request, ledger_of, rows
from tests.support.fake import FakeProvider
from tests.support.load import NATIVE, OPENAI, Kind, Load, Sent, play, scripts
from tests.support.pace import HANG_S, scaled
from tests.support.paths import ROOT
from tests.support.raw_client import RawClient
from tests.support.servers import Server, fake_rows

pytestmark = pytest.mark.thorough

DRAIN_S, INTERRUPT_DRAIN_S = scaled(5), 2.0
EXIT_S = scaled(5)
"""A bound for the exit after the last call. gunicorn checks once a second whether it should exit,
and then whether it can; and the machine is busy."""
EACH, IDLE, CLIENTS = 15, 20, 8
REST = [fp.gate("end"), *map(fp.event, fp.chunks(["!"], usage=(3, 4))), fp.last_chunk()]
ENDLESS = Kind(
    *("endless", mixture.begun(calls.EVENT, fp.repeat(calls.EVENT.data, 0.05)), "shutdown"),
    stream=True,
)
SILENT = Kind("silent", mixture.begun(calls.EVENT, fp.hold()), "shutdown", stream=True)
ENDING = Kind("ending", mixture.begun(calls.EVENT, *REST), stream=True)
PENDING = Kind("pending", [fp.gate("end"), *fp.answer(fp.body("x", usage=(3, 4)))])
NEVER = Kind("never", [fp.hold()], "shutdown", 503)
QUICK = Kind("quick", fp.answer(fp.body("x", usage=(3, 4))))
UNDER_WAY = (ENDLESS, SILENT, ENDING, PENDING, NEVER)
ALL = [kind for kind in UNDER_WAY for _ in range(EACH)]


class Scene:
    """Active calls of each kind, a load of quick calls, and idle connections."""

    def __init__(self, fake: FakeProvider, server: Server, keys: dict[str, str]) -> None:
        self.fake, self.server = fake, server
        self.sent = [Sent(kind, (NATIVE, OPENAI)[n % 2]) for n, kind in enumerate(ALL)]
        self.ends: dict[str, float] = {}
        self.load = Load(server, keys, [QUICK], clients=CLIENTS, pause=0.05)
        key = keys["main"]
        self._threads = [threading.Thread(target=self._play, args=(key, s)) for s in self.sent]
        self._stack = ExitStack()

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()
        self.fake.wait_requests(len(self.sent))
        for _ in range(IDLE):
            self._stack.enter_context(self.server.client())
        self._stack.enter_context(self.load.running())
        self.server.wait(lambda: sum(s.whole for s in self.load.sent) > CLIENTS)
        # Wait for the status line of each stream. Without one, its end would be a plain 503.
        streams = [s for s in self.sent if s.kind.stream]
        self.server.wait(lambda: all(s.status for s in streams))

    def join(self) -> None:
        """Wait for the ends of all calls, and end the load."""
        for thread in self._threads:
            thread.join(HANG_S)
        self._stack.close()

    def _play(self, key: str, sent: Sent) -> None:
        play(self.server, key, sent)
        self.ends[sent.id] = time.monotonic()


def serve(fake: FakeProvider, *args: str) -> tuple[Server, dict[str, str]]:
    fake.named(scripts([*UNDER_WAY, QUICK]))
    env = {"SLUICE_DRAIN_S": str(DRAIN_S), "SLUICE_LOG_LEVEL": "error"}
    server = Server(mixture.config(fake.base_url), env=env, args=args)
    keys = mixture.add_keys(server)
    server.key = keys["main"]
    return server, keys


def renew(
    fake: FakeProvider, server: Server, keys: dict[str, str], act: Callable[[], None], drain: float
) -> Scene:
    """Make the worker exit under load, and check the calls that were active.

    Args:
        act: A function that makes the worker exit.
        drain: The seconds that the worker waits for its calls.
    """
    scene = Scene(fake, server, keys)
    scene.begin()
    [old] = server.worker_pids()
    before = time.monotonic()
    act()
    time.sleep(1)
    fake.open("end")
    scene.server.wait(lambda: server.returncode() is not None or old not in server.worker_pids())
    left = time.monotonic()
    scene.join()
    for sent in scene.sent:
        after = scene.ends[sent.id] - before
        if sent.kind.reason == "shutdown":
            assert drain - 0.2 < after < drain + scaled(2) + EXIT_S, sent
        assert sent.error == ("unavailable" if sent.kind in (ENDLESS, SILENT) else None), sent
    assert left - max(scene.ends.values()) < EXIT_S
    return scene


def account(scene: Scene, *, cut_off: bool) -> None:
    """Assert that each accepted call has its response and its row.

    Args:
        cut_off: True if later calls may have found no server.
    """
    place = ledger_of(scene.server)
    assert_sound(place)
    found = by_request(rows(place))
    every = [*scene.sent, *scene.load.sent]
    assert [s for s in every if s.whole != (s.id in found)] == []
    assert [s for s in every if s.whole and s.status != s.kind.status] == []
    assert [s for s in scene.sent if not s.whole] == []
    wanted = Counter(s.kind.reason for s in every if s.whole)
    assert Counter(row["end_reason"] for row in found.values()) == wanted
    assert [s for s in every if s.whole and found[s.id]["end_reason"] != s.kind.reason] == []
    assert cut_off or [s for s in scene.load.sent if s.failure] == []


@pytest.mark.parametrize(
    ("number", "drain"), [(signal.SIGTERM, DRAIN_S), (signal.SIGINT, INTERRUPT_DRAIN_S)]
)
def test_term_and_ctrl_c_answer_and_record_every_accepted_call(
    fake: FakeProvider, number: signal.Signals, drain: float
) -> None:
    server, keys = serve(fake)
    with server:
        scene = renew(fake, server, keys, lambda: server.signal(number), drain)
        assert server.wait_exit(EXIT_S) == 0
        account(scene, cut_off=True)
    assert "Traceback" not in server.output()


def test_a_reload_answers_and_records_every_call(fake: FakeProvider) -> None:
    server, keys = serve(fake)
    with server:
        scene = renew(fake, server, keys, lambda: server.signal(signal.SIGHUP), DRAIN_S)
        account(scene, cut_off=False)
        assert calls.complete(server, prompt="quick", model="fake/m")["data"] == "x"
    assert "Traceback" not in server.output()


def test_a_restart_by_max_requests_answers_and_records_every_call(fake: FakeProvider) -> None:
    # The next worker starts after this one has exited. New connections wait until then.
    server, keys = serve(fake, "--max-requests", str(len(ALL) + 100))
    with server:
        [old] = server.worker_pids()

        def reach() -> None:
            server.wait(lambda: "Autorestarting worker" in server.output())

        scene = renew(fake, server, keys, reach, DRAIN_S)
        server.wait(lambda: server.worker_pids() not in ([], [old]))
        account(scene, cut_off=False)
        assert calls.complete(server, prompt="quick", model="fake/m")["data"] == "x"
    assert "Traceback" not in server.output()


def test_an_idle_worker_exits_at_once(fake: FakeProvider) -> None:
    server, _ = serve(fake)
    with server, ExitStack() as stack:
        clients: list[RawClient] = [stack.enter_context(server.client()) for _ in range(200)]
        for client in clients[::2]:
            client.request("GET", "/health")
            assert client.read_head().status == 200
            client.body()
        before = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait_exit(EXIT_S) == 0
        assert time.monotonic() - before < DRAIN_S


def test_reload_serves_new_code_while_an_old_stream_goes_on(
    fake: FakeProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = shutil.ignore_patterns(".*", "tests", "docs", "__pycache__", "*.db*")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=skipped)
    monkeypatch.setattr("tests.support.servers.ROOT", tmp_path / "tree")
    rest = [*map(fp.event, fp.chunks(["b"])), fp.event("[DONE]"), fp.last_chunk()]
    fake.script([*calls.BEGUN, calls.EVENT, fp.gate("rest"), *rest])
    with Server(fake_rows(fake.base_url)) as server, server.client() as client:
        calls.begin_stream(client)
        old = server.worker_pids()
        append(tmp_path / "tree/config.py", "\nNOVELTY = 'new'\n")
        append(tmp_path / "tree/app.py", "\nfrom config import NOVELTY\nlog.warning(NOVELTY)\n")
        server.signal(signal.SIGHUP)
        server.wait(lambda: '"new"' in server.output())
        fake.open("rest")
        assert calls.kinds(list(client.frames()))[-1] == "DONE"
        server.wait(lambda: not set(old) & set(server.worker_pids()))
        assert server.is_ready()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
