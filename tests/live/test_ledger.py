"""Tests that each accepted call has one row with the usage that its provider reported.

This holds under load, when workers are killed, and across reloads.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import calls, mixture, proofs
from tests.support import fake as fp
from tests.support.books import ledger_of, open_rows, rows
from tests.support.fake import FakeProvider
from tests.support.load import NATIVE, Kind, Load, Sent, play
from tests.support.pace import scaled
from tests.support.proofs import serve
from tests.support.sampling import sampled
from tests.support.servers import Server

CLIENTS = 64
MIXTURE_S = 60
KILLS, SPANNING = 10, 8
BETWEEN_S = 1.0
AT_NEXT_START_S = scaled(5)
"""A bound for closing rows at a start. It is well below the interval of the later checks."""


@pytest.mark.thorough
def test_every_accepted_call_has_one_row_and_sums_match_the_provider(
    fake: FakeProvider,
) -> None:
    with serve(fake) as (server, keys):
        load = Load(server, keys, mixture.everything(), clients=CLIENTS)
        with load.running():
            time.sleep(MIXTURE_S)
        place = ledger_of(server)
        proofs.wait_settled(server, place)
        assert {sent.kind.name for sent in load.sent} == {k.name for k in mixture.everything()}
        proofs.assert_all_agree(server, load, place, fake.requests)


@pytest.mark.thorough
def test_completed_calls_of_a_killed_worker_are_recorded(fake: FakeProvider) -> None:
    with serve(fake) as (server, keys):
        load = Load(server, keys, mixture.lasting(), clients=CLIENTS)
        with load.running():
            for _ in range(KILLS):
                time.sleep(BETWEEN_S)
                kill_worker(server)
        proofs.wait_settled(server, ledger_of(server))
        proofs.assert_survived(load, ledger_of(server), fake.requests, kills=KILLS)


@pytest.mark.parametrize("stream", sampled([True, False], True))
def test_no_response_is_complete_before_it_is_recorded(fake: FakeProvider, *, stream: bool) -> None:
    # A worker that can't write to the ledger withholds the end of the response. If it is killed
    # then, its client has received no end that isn't in the ledger.
    whole = fp.answer(fp.body("x"))
    parts = mixture.begun(calls.EVENT, fp.gate("end"), *map(fp.event, fp.chunks(["!"])))
    with serve(fake) as (server, keys):
        kind = Kind("held", [*parts, fp.last_chunk()] if stream else [fp.gate("end"), *whole])
        kind = kind._replace(stream=stream)
        fake.named({"held": kind.steps})
        sent = Sent(kind, NATIVE)
        caller = threading.Thread(target=play, args=(server, keys["main"], sent))
        caller.start()
        fake.wait_requests()
        with closing(sqlite3.connect(ledger_of(server), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            fake.open("end")
            caller.join(BETWEEN_S)
            assert not sent.done
            [pid] = server.worker_pids()
            os.kill(pid, signal.SIGKILL)
            caller.join()
        assert not sent.whole
        server.wait(lambda: not open_rows(ledger_of(server)))
        [row] = rows(ledger_of(server))
        assert row["end_reason"] == "interrupted"


def kill_worker(server: Server) -> None:
    """Kill the worker. Wait until the next worker has closed the rows that it left open."""
    [old] = server.worker_pids()
    os.kill(old, signal.SIGKILL)
    server.wait(lambda: server.worker_pids() not in ([], [old]))
    server.wait(server.is_ready)
    server.wait(lambda: len({row["owner"] for row in open_rows(ledger_of(server))}) < 2)


def test_rows_left_open_by_a_killed_server_are_closed_by_the_next_server(
    fake: FakeProvider, tmp_path: Path
) -> None:
    with serve(fake, tmp_path) as (server, keys):
        load = Load(server, keys, mixture.lasting(), clients=CLIENTS)
        with load.running():
            time.sleep(2)
            for pid in (server.pid, *server.worker_pids()):
                os.kill(pid, signal.SIGKILL)
    place = ledger_of(server)
    left = {row["request_id"] for row in open_rows(place)}
    assert left
    with Server(mixture.config(fake.base_url), env=mixture.ENV, directory=tmp_path) as again:
        again.wait(lambda: not open_rows(place), AT_NEXT_START_S)
    found = proofs.assert_survived(load, place, fake.requests, kills=1)
    assert {id_ for id_, row in found.items() if row["end_reason"] == "interrupted"} == left


@pytest.mark.thorough
@pytest.mark.parametrize("reloads", [1, 4])
def test_a_reload_closes_no_live_row(fake: FakeProvider, reloads: int) -> None:
    with serve(fake) as (server, keys):
        load = Load(server, keys, mixture.lasting(), clients=CLIENTS // 2)
        with load.running():
            for number in range(reloads):
                load.sent += reload_around_streams(server, fake, keys["main"], number)
        place = ledger_of(server)
        proofs.wait_settled(server, place)
        found = proofs.assert_rows_are_the_accepted(load, place)
        seen = fake.requests
        sums = proofs.assert_usage_is_the_providers(load, found, seen)
        assert sums == proofs.total(proofs.reported(seen).values())
        assert len({row["owner"] for row in found.values()}) == reloads + 1


def reload_around_streams(server: Server, fake: FakeProvider, key: str, number: int) -> list[Sent]:
    """Reload while some streams are active. They end after the new worker has started."""
    gate, usage = f"end{number}", (31 + number, 37)
    rest = [fp.event(frame) for frame in fp.chunks(["!"], usage=usage)]
    steps = mixture.begun(
        mixture.text_with_usage("word ", (31, 1)), fp.gate(gate), *rest, fp.last_chunk()
    )
    kind = Kind(f"span{number}", steps, stream=True)
    fake.named({kind.name: steps})
    streams = [Sent(kind, NATIVE) for _ in range(SPANNING)]
    threads = [threading.Thread(target=play, args=(server, key, sent)) for sent in streams]
    for thread in threads:
        thread.start()
    server.wait(lambda: all(sent.status for sent in streams))
    [old] = server.worker_pids()
    server.signal(signal.SIGHUP)
    server.wait(lambda: bool(set(server.worker_pids()) - {old}))
    time.sleep(BETWEEN_S)
    assert old in server.worker_pids()
    still = {row["request_id"] for row in open_rows(ledger_of(server))}
    assert {sent.id for sent in streams} <= still
    fake.open(gate)
    for thread in threads:
        thread.join()
    server.wait(lambda: old not in server.worker_pids())
    assert [sent for sent in streams if not sent.whole or sent.usage != usage] == []
    return streams
