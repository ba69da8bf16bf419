"""Tests of resumable streams with a real server, whose connections are cut at random."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import fake as fp
from tests.support.books import assert_sound, by_request, ledger_of, rows
from tests.support.fake import FakeProvider
from tests.support.ledgers import at_once
from tests.support.pace import HANG_S, scaled
from tests.support.raw_client import RawClient
from tests.support.resuming import PATHS, PIECES, Resumed, read_with_cuts, state_of
from tests.support.servers import UNTROUBLED, Server, fake_rows

SSE = {"Accept": "text/event-stream"}


def script(events: int, interval: float) -> list[fp.Step]:
    frames = fp.chunks(PIECES[:events], finish="length", usage=(7, events))
    return fp.sse(frames, interval=interval)


def read_all(
    server: Server, streams: int, events: int, cuts: int, seed: int
) -> list[Resumed | BaseException]:
    """Read streams at once, with cuts at random frames."""

    def read(number: int) -> Resumed:
        chance = random.Random(seed + number)
        path = PATHS[number % 2]
        body = {"model": "fake/m", "prompt": "Say it", "stream": True, "resumable": True}
        body |= {"stream_id": f"s-{seed}-{number}"}
        points = sorted(chance.sample(range(1, events), cuts))
        return read_with_cuts(server.client, body, path, points, chance)

    return at_once(*[lambda n=n: read(n) for n in range(streams)])


def check(server: Server, found: list[Resumed | BaseException], events: int) -> None:
    """Check the texts, the ids, the results and the ledger's rows."""
    text = "".join(PIECES[:events])
    accepted = by_request(rows(ledger_of(server)))
    for resumed in found:
        assert isinstance(resumed, Resumed), resumed
        assert resumed.faults == []
        assert resumed.text == text
        assert resumed.last == events + (4 if resumed.path == PATHS[0] else 2) - 0
        row = accepted.pop(resumed.request_id)
        usage = (row["input_tokens"], row["output_tokens"])
        assert (row["status"], row["end_reason"], usage) == (200, "completed", (7, events))
    assert accepted == {}
    assert_sound(ledger_of(server))


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
    found = read_all(resumable_server, 10, 60, 6, seed=1)
    assert sum(r.cuts for r in found if isinstance(r, Resumed)) > 30
    assert before == 0
    check(resumable_server, found, 60)
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
        found = read_all(server, 200, 500, 20, seed=7)
        done = [resumed for resumed in found if isinstance(resumed, Resumed)]
        waits = sorted(wait for resumed in done for wait in resumed.waits)
        print(
            f"{len(done)} streams, {sum(r.cuts for r in done)} cuts,"
            f" {sum(r.frames for r in done)} frames, {sum(r.joined for r in done)} joined;"
            f" reconnect to the first missed byte: p50 {waits[len(waits) // 2] * 1000:.1f} ms,"
            f" p99 {waits[len(waits) * 99 // 100] * 1000:.1f} ms"
        )
        check(server, found, 500)
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
