"""Tests of resumable streams with a real server, whose connections are cut at random."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import fake as fp
from tests.support.books import ledger_of, rows
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.raw_client import RawClient
from tests.support.resuming import (
    PATHS,
    PIECES,
    SSE,
    Resumed,
    assert_whole,
    described,
    read_all,
    script,
    state_of,
)
from tests.support.servers import UNTROUBLED, Server, fake_rows


@pytest.fixture(scope="module")
def resumable_server(fake_process: FakeProvider) -> Iterator[Server]:
    settings = UNTROUBLED | {"SLUICE_KEEPALIVE_S": "1", "SLUICE_ORPHAN_S": "2"}
    with Server(fake_rows(fake_process.base_url), env=settings) as server:
        yield server


def test_streams_cut_at_random_lose_and_double_nothing(
    fake: FakeProvider, resumable_server: Server
) -> None:
    before = len(rows(ledger_of(resumable_server)))
    fake.default(script(60, 0.01))
    found = read_all([resumable_server.client], 10, 60, 6, seed=1)
    assert sum(r.cuts for r in found if isinstance(r, Resumed)) > 30
    assert before == 0
    assert_whole(found, ledger_of(resumable_server), 60)
    assert isinstance(found[0], Resumed)
    with resumable_server.client() as client:
        state = state_of(client, found[0])
    assert (state["status"], state["result"]["data"]) == ("completed", "".join(PIECES[:60]))


@pytest.mark.thorough
def test_silence_is_a_comment_without_a_blank_line_and_an_orphan_is_cancelled(
    fake: FakeProvider, resumable_server: Server
) -> None:
    steps = fp.sse(fp.chunks(["Hello"], finish=None), done=False, complete=False)
    fake.default([*steps, fp.hold()])
    body = {"model": "fake/m", "prompt": "x", "stream": True, "resumable": True}
    with resumable_server.client() as client:
        client.request("POST", PATHS[1], body | {"stream_id": "quiet"})
        assert client.read_head().status == 200
        text = b""
        for chunk in client.chunks():
            text += chunk
            if text.count(b":keep-alive\n") == 2:
                break
        assert text.endswith(b"\n\n:keep-alive\n:keep-alive\n")
    fake.wait_closed()
    with resumable_server.client() as client:
        state: dict[str, Any] = {"status": "in_progress"}
        while state["status"] == "in_progress":
            state = state_of(client, Resumed("quiet", PATHS[1]))
    assert state["status"] == "stopped"
    assert state["result"]["choices"][0]["native_finish_reason"] == "cancelled"


def test_a_hang_up_ends_the_follower_and_not_the_call(
    fake: FakeProvider, resumable_server: Server
) -> None:
    steps = fp.sse(fp.chunks(["Hel"], finish=None), done=False, complete=False)
    rest = [fp.event(frame) for frame in fp.chunks(["lo"], usage=(7, 2))]
    fake.default([*steps, fp.gate("more"), *rest, fp.event("[DONE]"), fp.last_chunk()])
    body = {"model": "fake/m", "prompt": "x", "stream": True, "resumable": True}
    with resumable_server.client() as client:
        client.request("POST", PATHS[1], body | {"stream_id": "cut"})
        assert client.read_head().status == 200
        assert "Hel" in client.frame().text
        client.reset()
    with resumable_server.client() as second, resumable_server.client() as third:
        for follower in (second, third):
            follower.request("GET", f"{PATHS[1]}/cut?starting_after=1", headers=SSE)
            assert follower.read_head().status == 200
        fake.open("more")
        for follower in (second, third):
            assert "lo" in follower.frame().text
            assert [f.data for f in follower.frames()][-1] == "[DONE]"


@pytest.mark.thorough
def test_200_streams_of_500_events_survive_20_cuts_each(fake_process: FakeProvider) -> None:
    with Server(fake_rows(fake_process.base_url), env=UNTROUBLED) as server:
        fake_process.reset()
        fake_process.default(script(500, 0.06))
        found = read_all([server.client], 200, 500, 20, seed=7)
        done = assert_whole(found, ledger_of(server), 500)
        print(described(done))
        assert sum(resumed.cuts for resumed in done) > 3500, "a join may pass over some"


@pytest.mark.thorough
def test_1000_followers_of_100_streams_all_get_the_whole_stream(
    fake_process: FakeProvider,
) -> None:
    with Server(fake_rows(fake_process.base_url), env=UNTROUBLED) as server:
        fake_process.reset()
        fake_process.default(script(50, 0.2))
        body = {"model": "fake/m", "prompt": "x", "background": True}
        path = PATHS[1]
        for number in range(100):
            with server.client() as client:
                client.request("POST", path, body | {"stream_id": f"s-{number}"})
                assert client.read_head().status == 202
        clients = [server.client(timeout=HANG_S) for _ in range(1000)]
        for number, client in enumerate(clients):
            client.request("GET", f"{path}/s-{number % 100}", headers=SSE)
        began = time.monotonic()
        texts: list[Any] = []

        def read(client: RawClient) -> None:
            assert client.read_head().status == 200
            pieces = [frame.json["choices"][0]["text"] for frame in list(client.frames())[:-1]]
            texts.append("".join(pieces))

        threads = [threading.Thread(target=read, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(scaled(120))
        print(f"1,000 followers of 100 streams: done after {time.monotonic() - began:.1f} s")
        assert texts == ["".join(PIECES[:50])] * 1000
        for client in clients:
            client.close()
