"""Tests of the ledger on PostgreSQL, including a database that crashes under load.

test_ledger.py and test_budget.py have these tests on SQLite.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.live.test_budget import config, hammer_a_budget
from tests.support import calls, mixture, proofs
from tests.support.books import assert_sound, by_request, open_rows, query, rows
from tests.support.daemons import CantRunError
from tests.support.fake import FakeProvider
from tests.support.load import Load
from tests.support.pace import scaled
from tests.support.postgres import Postgres
from tests.support.proofs import serve
from tests.support.servers import Server

pytestmark = pytest.mark.thorough

CLIENTS = 64
MIXTURE_S = 15
KILLS, BETWEEN_S = 3, 1.0
DEAD_WITHIN_S = scaled(60 + 2 * 15 + 15)
"""A bound for closing a dead worker's rows. A worker counts as dead after a minute of silence, and
the others check every fifteen seconds."""
AWAY_S = 4.0


def test_every_accepted_call_has_one_row_and_sums_match_the_provider(
    fake: FakeProvider, postgres_url: str
) -> None:
    with serve(fake, DATABASE_URL=postgres_url) as (server, keys):
        load = Load(server, keys, mixture.everything(), clients=CLIENTS)
        with load.running():
            time.sleep(MIXTURE_S)
        proofs.wait_settled(server, postgres_url)
        proofs.assert_all_agree(server, load, postgres_url, fake.requests)


def test_rows_left_open_by_a_killed_worker_are_closed_after_its_silence(
    fake: FakeProvider, postgres_url: str
) -> None:
    with serve(fake, DATABASE_URL=postgres_url) as (server, keys):
        load = Load(server, keys, mixture.lasting(), clients=CLIENTS)
        with load.running():
            for _ in range(KILLS):
                time.sleep(BETWEEN_S)
                [old] = server.worker_pids()
                os.kill(old, signal.SIGKILL)
                server.wait(lambda old=old: server.worker_pids() not in ([], [old]))  # type: ignore[misc]
                server.wait(server.is_ready)
            time.sleep(BETWEEN_S)
        left = {row["request_id"] for row in open_rows(postgres_url)}
        assert len({row["owner"] for row in open_rows(postgres_url)}) == KILLS
        proofs.wait_settled(server, postgres_url, DEAD_WITHIN_S)
        found = proofs.assert_survived(load, postgres_url, fake.requests, kills=KILLS)
        assert {id_ for id_, row in found.items() if row["end_reason"] == "interrupted"} == left
        assert len(query(postgres_url, "SELECT * FROM owners")) == 1


def test_calls_with_max_tokens_never_overspend_a_budget(
    fake: FakeProvider, postgres_url: str
) -> None:
    server = Server(config(fake), env={"DATABASE_URL": postgres_url})
    key = server.add_key(id="key_dollar", tier="unlimited", budget_usd=1)
    with server:
        hammer_a_budget(fake, server, postgres_url, key)


@pytest.fixture
def mortal() -> Iterator[Postgres]:
    """Yield a separate PostgreSQL server, which the test may crash."""
    try:
        with Postgres() as server:
            yield server
    except CantRunError as error:
        pytest.skip(str(error))


def test_a_database_that_crashed_under_load_is_used_again_after_its_restart(
    fake: FakeProvider, mortal: Postgres
) -> None:
    _, url = mortal.new_database()
    with serve(fake, DATABASE_URL=url) as (server, keys):
        load = Load(server, keys, mixture.lasting(), clients=CLIENTS)
        with load.running():
            time.sleep(BETWEEN_S)
            mortal.crash()
            server.wait(lambda: calls.get(server, "/ready").status == 503)
            time.sleep(AWAY_S)
            mortal.restart()
            server.wait(server.is_ready)
            answered = len(load.sent)
            server.wait(lambda: len(load.sent) > answered + 2 * CLIENTS)
        proofs.wait_settled(server, url)
        assert_sound(url)
        found = by_request(rows(url))
        seen = fake.requests
        assert [sent for sent in load.sent if sent.failure] == []
        assert {sent.status for sent in load.sent} == {200, 503}
        assert {sent.id for sent in load.sent if sent.status == 200} == set(found)
        assert [s for s in load.sent[-CLIENTS:] if s.status != 200] == []
        assert {row["end_reason"] for row in found.values()} == {"completed"}
        proofs.assert_whole_answers_are_recorded(load, found)
        proofs.assert_usage_is_the_providers(load, found, seen)
        proofs.assert_the_provider_was_called_for_rows_only(seen, found)
