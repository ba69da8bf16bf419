"""Tests of a worker's exit: TERM, Ctrl-C, a reload, max_requests, and a killed worker.

No client is cut off silently, and no client delays the exit.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support import calls
from tests.support import fake as fp
from tests.support.books import ledger_of, rows
from tests.support.calls import (
    BEGUN,
    EVENT,
    ask,
    begin_stream,
    closed_after,
    complete,
    kinds,
    settled,
)
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.raw_client import Frame, RawClient
from tests.support.servers import Server, fake_rows

DRAIN_S = scaled(3)
INTERRUPT_DRAIN_S = 2.0
EXIT_S = scaled(3)  # gunicorn checks once a second whether it should exit, then whether it can
ENDLESS = [*BEGUN, fp.repeat(EVENT.data, 0.02)]
LONG = [*BEGUN, fp.gate("end"), *(fp.event(f) for f in fp.chunks(["!"])), fp.last_chunk()]
CHAT = "/v1/chat/completions"


def serve(fake: FakeProvider, *args: str) -> Server:
    env = {
        "SLUICE_DRAIN_S": str(DRAIN_S),
        "SLUICE_FIRST_EVENT_WAIT_S": str(HANG_S),  # longer than the drain on any machine
    }
    return Server(fake_rows(fake.base_url), args=args, env=env)


def test_term_lets_calls_finish(fake: FakeProvider) -> None:
    fake.default(LONG)
    fake.script([fp.gate("end"), *fp.answer(fp.body("whole", chat=True))], path=CHAT)
    with serve(fake) as server, server.client() as stream, server.client() as unary:
        begin_stream(stream)
        ask(unary, model="fakechat/m")
        fake.wait_requests(2)
        server.signal(signal.SIGTERM)
        server.wait(lambda: not server.is_ready())
        time.sleep(1.2)  # by then the listening socket is closed
        assert not server.is_ready()
        fake.open("end")
        assert kinds(list(stream.frames())) == ["content", "finish", "usage_final", "DONE"]
        assert unary.read_head().status == 200
        assert unary.json()["data"] == "whole"
        assert server.wait_exit(EXIT_S) == 0
    assert "Traceback" not in server.output()


def test_term_ends_calls_that_outlast_the_drain_time(fake: FakeProvider) -> None:
    fake.default(ENDLESS)
    fake.script([fp.hold()], path=CHAT)
    fake.script([fp.hold()], path=CHAT)
    with serve(fake) as server, ExitStack() as stack:
        flowing, silent, unary = (stack.enter_context(server.client()) for _ in range(3))
        stream_id = begin_stream(flowing)
        ask(silent, model="fakechat/m", stream=True)
        ask(unary, model="fakechat/m")
        fake.wait_requests(3)
        before = time.monotonic()
        server.signal(signal.SIGTERM)
        frames = list(flowing.frames())
        assert_shut_down(frames)
        assert DRAIN_S - 0.1 < frames[-1].at - before < DRAIN_S + scaled(1.5)
        for client in (silent, unary):
            head = client.read_head()
            assert (head.status, head.headers["retry-after"]) == (503, "1")
            assert client.json()["code"] == "unavailable"
        delays = [closed_after(request, before) for request in fake.wait_closed(3)]
        assert DRAIN_S - 0.1 < min(delays) <= max(delays) < DRAIN_S + scaled(1.5)
        assert settled(server, stream_id)["end_reason"] == "shutdown"
        assert server.wait_exit(EXIT_S) == 0


def assert_shut_down(frames: list[Frame]) -> None:
    assert kinds(frames)[-3:] == ["content", "usage_final", "error"]
    assert frames[-1].json["code"] == "unavailable"
    assert "shutting down" in frames[-1].json["error"]


@pytest.mark.thorough
def test_idle_connections_do_not_delay_the_exit_of_a_worker(fake: FakeProvider) -> None:
    with serve(fake) as server, server.client() as unused, server.client() as used:
        used.request("GET", "/health")
        assert used.read_head().status == 200
        assert used.json() == {"status": "ok"}
        before = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait_exit(EXIT_S) == 0
        assert time.monotonic() - before < EXIT_S
        assert unused.ended()
        assert used.ended()


def test_ctrl_c_ends_streams_after_the_shorter_drain_time(fake: FakeProvider) -> None:
    fake.default(ENDLESS)
    with serve(fake) as server, server.client() as client:
        begin_stream(client)
        before = time.monotonic()
        server.signal(signal.SIGINT)
        assert_shut_down(list(client.frames()))
        [request] = fake.wait_closed()
        assert (
            INTERRUPT_DRAIN_S - 0.1 < closed_after(request, before) < INTERRUPT_DRAIN_S + scaled(1)
        )
        assert server.wait_exit(EXIT_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_development_server_ends_and_settles_its_calls(
    fake: FakeProvider, number: signal.Signals
) -> None:
    fake.default(ENDLESS)
    fake.script([fp.hold()], path=CHAT)
    env = {"SLUICE_FIRST_EVENT_WAIT_S": str(HANG_S)}
    with Server(fake_rows(fake.base_url), kind="python", env=env) as server, ExitStack() as stack:
        flowing, unary = (stack.enter_context(server.client()) for _ in range(2))
        stream_id = begin_stream(flowing)
        ask(unary, model="fakechat/m", stream_id="unary")
        fake.wait_requests(2)
        server.signal(number)
        assert_shut_down(list(flowing.frames()))
        assert unary.read_head().status == 503
        assert unary.json()["code"] == "unavailable"
        fake.wait_closed(2)
        assert server.wait_exit() == 0
        for call_id in (stream_id, "unary"):
            assert settled(server, call_id)["end_reason"] == "shutdown"
        assert [row["end_reason"] for row in rows(ledger_of(server))] == ["shutdown"] * 2
    assert "Traceback" not in server.output()


@pytest.mark.thorough
def test_ctrl_c_without_calls_ends_at_once(fake: FakeProvider) -> None:
    with serve(fake) as server:
        server.signal(signal.SIGINT)
        assert server.wait_exit(2) == 0


class Load:
    """Unary calls, one after another, each on a new connection or all on a kept connection."""

    def __init__(self, server: Server, *, keep: bool) -> None:
        self.failures: list[str] = []
        self.done = 0
        self.longest = 0.0
        self._server = server
        self._once = self._on_kept if keep else self._on_new
        self._stopping = threading.Event()
        self._client: RawClient | None = None
        self._thread = threading.Thread(target=self._run)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join()
            if self._client:
                self._client.close()

    def _run(self) -> None:
        while not self._stopping.wait(0.02):
            before = time.monotonic()
            try:
                self._once()
            except (OSError, EOFError, AssertionError) as failure:
                self.failures.append(repr(failure))
            self.done += 1
            self.longest = max(self.longest, time.monotonic() - before)

    def _on_new(self) -> None:
        with self._server.client() as client:
            call(client)

    def _on_kept(self) -> None:
        """Make a call on the kept connection. Replace it if the server announces its close."""
        client = self._client = self._client or self._server.client()
        if call(client) == "close":
            client.close()
            self._client = None


def call(client: RawClient) -> str | None:
    """Make a unary call, which must succeed. Return the response's Connection header."""
    ask(client)
    head = client.read_head()
    assert (head.status, client.json()["data"]) == (200, "x")
    return head.headers.get("connection")


def renew_under_load(
    fake: FakeProvider, server: Server, renew: Callable[[], None], within: float
) -> None:
    """Replace the worker while calls and a stream are active. Assert that none of them fails."""
    fake.default(fp.answer(fp.body("x")))
    fake.script(LONG, path=CHAT)
    with server.client() as stream, ExitStack() as stack:
        begin_stream(stream, model="fakechat/m")
        [old] = server.worker_pids()
        loads = [Load(server, keep=keep) for keep in (False, True)]
        for load in loads:
            stack.enter_context(load.running())
        time.sleep(0.3)
        renew()
        time.sleep(1.5)
        fake.open("end")
        frames = list(stream.frames())
        server.wait(lambda: server.worker_pids() not in ([], [old]), within)
        server.wait(lambda: old not in server.worker_pids(), within)
        before = [load.done for load in loads]
        server.wait(lambda: all(load.done > n + 3 for load, n in zip(loads, before, strict=True)))
    assert kinds(frames) == ["content", "finish", "usage_final", "DONE"]
    assert [load.failures for load in loads] == [[], []]
    assert max(load.longest for load in loads) < within
    assert complete(server)["data"] == "x"


@pytest.mark.thorough
def test_a_reload_under_load_fails_no_call(fake: FakeProvider) -> None:
    with serve(fake) as server:
        renew_under_load(fake, server, lambda: server.signal(signal.SIGHUP), within=scaled(5))
    assert "Traceback" not in server.output()


@pytest.mark.thorough
def test_max_requests_under_load_fails_no_call(fake: FakeProvider) -> None:
    with serve(fake, "--max-requests", "5") as server:
        renew_under_load(fake, server, lambda: None, within=DRAIN_S + 5)
    assert "Traceback" not in server.output()


def test_a_worker_that_is_killed_is_replaced(fake: FakeProvider) -> None:
    fake.default(fp.answer(fp.body("x")))
    fake.script(ENDLESS, path=CHAT)
    with serve(fake) as server, server.client() as client:
        begin_stream(client, model="fakechat/m")
        [old] = server.worker_pids()
        os.kill(old, signal.SIGKILL)
        with pytest.raises((EOFError, ConnectionError)):
            list(client.frames())
        server.wait(lambda: server.worker_pids() not in ([], [old]))
        server.wait(server.is_ready)
        assert complete(server)["data"] == "x"
        assert calls.active(server) == []
        fake.wait_closed()
        assert fake.requests[0].closed_by == "peer"
