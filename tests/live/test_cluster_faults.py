"""Tests of a cluster under load while a part of it dies, hangs or loses its data, and recovers.

Streams continue, no call is lost unless its client saw an error, stops report the truth, and the
cluster recovers by itself.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from tests.support import calls, clusters, mixture
from tests.support.books import assert_sound, open_rows, rows
from tests.support.cluster_proofs import (
    PER_MINUTE,
    SCRIPTS,
    Probe,
    Run,
    assert_cancelled,
    assert_nothing_is_lost,
    assert_stops_told_the_truth,
    keys_for,
    probing,
    settled,
)
from tests.support.clusters import WORKERS, Backends, Cluster, Worker, backends, stop
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.servers import UNTROUBLED, Server

pytestmark = pytest.mark.thorough

WARM_S, AWAY_S, PAUSED_S = 1.0, 3.0, 5.0
BACK_WITHIN_S = scaled(15)
"""A bound for a recovery, which takes less than ten seconds on an idle machine."""
FAULTS = ("killed", "crashed", "paused", "flushed", "database", "reloaded")


class Scene(NamedTuple):
    shared: Backends
    cluster: Cluster
    keys: dict[str, str]


@pytest.fixture(scope="module")
def started(fake_process: FakeProvider) -> Iterator[Scene]:
    with backends() as shared:
        cluster = Cluster(
            mixture.config(fake_process.base_url),
            redis_url=shared.redis.url,
            database_url=shared.database_url,
            env=mixture.ENV | UNTROUBLED,
        )
        keys = keys_for(cluster, FAULTS)
        with cluster:
            yield Scene(shared, cluster, keys)
            place = shared.database_url
            clusters.wait(lambda: not open_rows(place), HANG_S, "no row is open")
            assert_sound(place)
        assert "Traceback" not in cluster.output()


@pytest.fixture
def scene(started: Scene, fake: FakeProvider) -> Scene:
    fake.named(SCRIPTS)
    clusters.wait(started.cluster.is_whole, HANG_S, "the cluster is whole")
    return started


@contextmanager
def under_load(scene: Scene, fake: FakeProvider) -> Iterator[tuple[Run, Probe]]:
    run = Run(scene.cluster, fake, scene.keys)
    with probing(scene.cluster, scene.keys["probe"]) as probe, run.running():
        time.sleep(WARM_S)
        yield run, probe
        run.wait_answers()


def assert_recovers(scene: Scene, probe: Probe, name: str) -> None:
    """Assert that workers soon stop each other's streams and share streams and limits again."""
    begun = time.monotonic()
    took = probe.wait_stops(BACK_WITHIN_S)
    print(f"{name}: stop works again after {took:.1f} s")
    probe.assert_shared()
    assert probe.accepted(scene.keys[name], 5) == PER_MINUTE
    assert time.monotonic() - begun < BACK_WITHIN_S


def assert_all_is_accounted_for(run: Run) -> None:
    """Assert that no call was cut off or rejected, and that each call has a row."""
    found = settled(run)
    assert_nothing_is_lost(run, found, cut_off=set())
    assert_stops_told_the_truth(run)
    left_early = {sent.id for sent in run.sent if sent.status is None}
    assert {sent.id for sent in run.sent} - set(found) <= left_early
    print(f"{len(run.sent)} calls, {len(found)} rows, {len(run.stops)} stops")


def test_killed_worker_loses_only_its_own_calls_and_the_cluster_recovers(
    scene: Scene, fake: FakeProvider
) -> None:
    cluster = scene.cluster
    with under_load(scene, fake) as (run, probe):
        victim = probe.workers[0]
        mark = probe.streams[victim][0]
        kill_in_the_middle_of_calls(scene, run, victim, mark)
        clusters.wait(cluster.is_whole, HANG_S, "a new worker has replaced the killed one")
        with probing(cluster, scene.keys["probe"]) as others:
            assert_recovers(scene, others, "killed")
    owner = owner_of(scene, mark)
    found = settled(run, but=owner)
    its = {id_ for id_, row in found.items() if row["owner"] == owner}
    left = {id_ for id_ in its if found[id_]["ended_us"] is None}
    cut = {sent.id for sent in run.sent if sent.failure}
    gone = {sent.id for sent in run.sent if sent.kind.act == "leave"}
    assert left
    assert left <= cut | gone  # no client received the end of such a call
    assert {sent.id for sent in run.sent if sent.status == 200 and sent.failure} <= its
    assert_nothing_is_lost(run, found, cut_off=cut | left)
    assert_stops_told_the_truth(run, but=cut)
    take_for_dead(scene.shared.database_url, owner)
    closed = settled(run)
    assert {id_ for id_, row in closed.items() if row["end_reason"] == "interrupted"} == left
    print(f"{len(run.sent)} calls, {len(found)} rows, {len(cut)} cut off, {len(left)} left open")


def owner_of(scene: Scene, request_id: str) -> str:
    [owner] = [r["owner"] for r in rows(scene.shared.database_url) if r["request_id"] == request_id]
    return str(owner)


def kill_in_the_middle_of_calls(scene: Scene, run: Run, victim: Worker, mark: str) -> None:
    """Kill a worker at a moment at which it has open calls of the load.

    Args:
        mark: the request id of any call of the worker.
    """
    place, owner = scene.shared.database_url, owner_of(scene, mark)

    def killed() -> bool:
        os.kill(victim.pid, signal.SIGSTOP)
        its = {row["request_id"] for row in open_rows(place) if row["owner"] == owner}
        busy = not its.isdisjoint({sent.id for sent in run.sent})
        os.kill(victim.pid, signal.SIGKILL if busy else signal.SIGCONT)
        return busy

    clusters.wait(killed, HANG_S, "the worker is killed in the middle of calls")


def take_for_dead(place: str, owner: str) -> None:
    """Mark a process as dead at once, which the ledger does after a minute of silence."""
    import psycopg

    with psycopg.connect(place) as connection:
        connection.execute("DELETE FROM owners WHERE id = %s", [owner])


def redis_goes_away(
    scene: Scene,
    fake: FakeProvider,
    name: str,
    go: Callable[[], None],
    back: Callable[[], None],
    *,
    seconds: float = AWAY_S,
) -> None:
    with under_load(scene, fake) as (run, probe):
        go()
        until = time.monotonic() + seconds
        assert set(probe.statuses()) == {503}
        probe.assert_local_stop_works()
        assert probe.ready() == {200}
        while time.monotonic() < until:
            assert set(probe.statuses()) == {503}
        run.wait_answers()
        back()
        assert_recovers(scene, probe, name)
    assert_all_is_accounted_for(run)


def test_cluster_recovers_when_redis_crashes_and_restarts_empty(
    scene: Scene, fake: FakeProvider
) -> None:
    redis = scene.shared.redis
    redis_goes_away(scene, fake, "crashed", redis.crash, redis.restart)


def test_cluster_recovers_when_redis_hangs_for_a_while(scene: Scene, fake: FakeProvider) -> None:
    redis = scene.shared.redis
    try:
        redis_goes_away(scene, fake, "paused", redis.pause, redis.resume, seconds=PAUSED_S)
    finally:
        redis.resume()


def test_cluster_recovers_when_redis_is_flushed(scene: Scene, fake: FakeProvider) -> None:
    with under_load(scene, fake) as (run, probe):
        scene.shared.redis.flush()
        assert_recovers(scene, probe, "flushed")
    assert_all_is_accounted_for(run)


@pytest.mark.parametrize("flushed", [False, True])
def test_stop_answers_503_for_a_stream_of_a_hanging_worker(
    scene: Scene, fake: FakeProvider, *, flushed: bool
) -> None:
    with probing(scene.cluster, scene.keys["probe"]) as probe:
        hanging, *others = probe.workers
        id_, _ = probe.streams[hanging]
        os.kill(hanging.pid, signal.SIGSTOP)
        try:
            if flushed:
                scene.shared.redis.flush()
            assert stop(probe.asked[others[-1]], id_).status == 503
        finally:
            os.kill(hanging.pid, signal.SIGCONT)
        probe.wait_stops(BACK_WITHIN_S)


def test_cluster_recovers_when_the_database_crashes_and_restarts(
    scene: Scene, fake: FakeProvider
) -> None:
    cluster, postgres = scene.cluster, scene.shared.postgres
    with under_load(scene, fake) as (run, probe):
        postgres.crash()
        clusters.wait(lambda: probe.ready() == {503}, HANG_S, "no worker is ready")
        assert set(probe.statuses()) == {200}  # every worker can still stop active streams
        time.sleep(AWAY_S)
        postgres.restart()
        clusters.wait(lambda: probe.ready() == {200}, BACK_WITHIN_S, "each worker is ready again")
        for worker in probe.workers:
            probe.begin(worker)
        assert_recovers(scene, probe, "database")
    found = settled(run)
    refused = {sent.id for sent in run.sent if sent.status == 503}
    assert refused
    assert refused.isdisjoint(found)
    assert {sent.status for sent in run.sent} <= {200, 503, None}
    assert_nothing_is_lost(run, found, cut_off=set())
    assert_stops_told_the_truth(run)
    assert calls.get(cluster, "/ready").status == 200
    print(f"{len(run.sent)} calls, {len(found)} rows, {len(refused)} refused")


def test_reload_of_both_machines_in_turn_loses_no_call(scene: Scene, fake: FakeProvider) -> None:
    cluster = scene.cluster
    with under_load(scene, fake) as (run, probe):
        for machine in cluster.machines:
            before = set(machine.worker_pids())
            machine.signal(signal.SIGHUP)

            def renewed(machine: Server = machine, before: set[int] = before) -> bool:
                return len(set(machine.worker_pids()) - before) == WORKERS

            clusters.wait(renewed, HANG_S, "the machine has new workers")
            run.wait_answers()
        old = [*probe.streams.values(), *probe.kept.values()]
        for id_, client in old:  # the old workers wait for the ends of these streams
            assert calls.stop(cluster, id_, scene.keys["probe"]).status == 200
            assert_cancelled(client)
        clusters.wait(cluster.is_whole, HANG_S, "the old workers have exited")
        assert set(cluster.workers()).isdisjoint(probe.workers)
        with probing(cluster, scene.keys["probe"]) as others:
            assert_recovers(scene, others, "reloaded")
    assert_all_is_accounted_for(run)
    assert {status for _, status in run.stops} == {200}
