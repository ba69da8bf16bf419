"""Tests of stop-stream across processes.

Any worker of any machine stops a call of any other worker, as fast as its own, and no other call.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import pytest

from tests.support import calls, clusters
from tests.support import fake as fp
from tests.support.calls import BEGUN, EVENT, begin_stream, closed_after
from tests.support.clusters import Cluster, Worker, exchange, listed, stop, untroubled
from tests.support.fake import FakeProvider
from tests.support.load import NATIVE, OPENAI, usage_in
from tests.support.pace import scaled
from tests.support.raw_client import RawClient
from tests.support.sampling import sampled

WITHIN_S = scaled(0.5)
"""A bound for the response to a stop, the close of the provider's connection, and the client's last
frame. bench/cluster_stop.py measures them."""
TRIES = 5
GONE_WITHIN_S, SETTLED_WITHIN_S = scaled(10), scaled(20)
NUMBERS = range(clusters.MACHINES * clusters.WORKERS)
PAIRS = list(product(NUMBERS, NUMBERS))
"""Pairs of numbers of workers: the worker that runs the call, and the worker that gets the stop."""


@pytest.fixture(scope="module")
def started(fake_process: FakeProvider) -> Iterator[Cluster]:
    with untroubled(fake_process.base_url) as cluster:
        yield cluster
        assert "Traceback" not in cluster.output()


@pytest.fixture
def cluster(started: Cluster, fake: FakeProvider) -> Cluster:
    return started


class Phase(NamedTuple):
    steps: Sequence[fp.Step]
    path: str = NATIVE
    stream: bool = True


SILENT, FLOWING = [*BEGUN, fp.hold()], [*BEGUN, fp.repeat(EVENT.data, 0.005)]
PHASES = {
    "silent": Phase(SILENT),
    "flowing_openai": Phase(FLOWING, OPENAI),
    "unary": Phase([fp.hold()], stream=False),
    "unary_openai": Phase([fp.hold()], OPENAI, stream=False),
}


@pytest.mark.parametrize("name", sampled(PHASES, "silent", "unary_openai"))
@pytest.mark.parametrize(("owner", "asked"), PAIRS)
def test_call_of_any_worker_can_be_stopped_through_any_worker(
    cluster: Cluster, fake: FakeProvider, owner: int, asked: int, name: str
) -> None:
    workers = cluster.workers()

    def once() -> float:
        return stop_once(cluster, fake, workers[owner], workers[asked], PHASES[name])

    assert calls.best_of(TRIES, WITHIN_S, once) < WITHIN_S


def stop_once(
    cluster: Cluster, fake: FakeProvider, owner: Worker, asked: Worker, phase: Phase
) -> float:
    """Stop a call of one worker through another worker, and check the results.

    Return the seconds until the last of these: the response to the stop, the close of the
    provider's connection, the end of the client's response.
    """
    fake.reset()
    fake.script(phase.steps)
    with cluster.client_of(owner) as client, cluster.client_of(asked) as asking:
        begin(client, phase, stream_id := uuid.uuid4().hex)
        fake.wait_requests()
        answer = stop(asking, stream_id)
        assert (answer.status, answer.json) == (200, {"success": True})
        ended_at = read_cancelled(client, phase)
        [request] = fake.wait_closed()
    return max(answer.took, ended_at - answer.sent_at, closed_after(request, answer.sent_at))


def begin(client: RawClient, phase: Phase, stream_id: str) -> None:
    fields: dict[str, Any] = {"model": "fake/m", "prompt": "Say it"}
    if phase.stream:
        fields["stream"] = True
        if phase.path == OPENAI:
            fields["stream_options"] = {"include_usage": True}
    client.request("POST", phase.path, fields, {"X-Stream-ID": stream_id})
    if phase.stream:
        head = client.read_head()
        assert (head.status, head.headers["x-stream-id"]) == (200, stream_id)
        while "Hello" not in client.frame().text:
            pass


def read_cancelled(client: RawClient, phase: Phase) -> float:
    """Read the response of a stopped call. Return the monotonic time of its end."""
    if not phase.stream:
        head, answer = client.read_head(), client.json()
        assert head.status == 200
        usage = usage_in(answer)
        reason = answer["choices"][0] if phase.path == OPENAI else answer
    else:
        frames = list(client.frames())
        assert frames[-1].data == "[DONE]"
        *_, finish, final = (frame.json for frame in frames[:-1])
        usage = usage_in(final)
        reason = finish["choices"][0]
    assert usage is not None
    assert usage[0] > 0
    if phase.path == OPENAI:
        assert (reason["finish_reason"], reason["native_finish_reason"]) == ("stop", "cancelled")
    else:
        assert reason["finish_reason"] == "cancelled"
    return frames[-1].at if phase.stream else time.monotonic()


@pytest.fixture
def clients(cluster: Cluster) -> Iterator[list[RawClient]]:
    with cluster.clients_to_each() as found:
        yield list(found.values())


@pytest.fixture
def settled(clients: list[RawClient]) -> None:
    """Wait until each worker answers 404 for an unknown stream.

    Workers answer 503 until Redis has had its data for a while.
    """

    def known() -> bool:
        return {stop(asked, "unknown").status for asked in clients} == {404}

    clusters.wait(known, SETTLED_WITHIN_S, "unknown streams get a 404")


def test_repeated_stop_succeeds_on_every_worker(
    cluster: Cluster, fake: FakeProvider, clients: list[RawClient]
) -> None:
    fake.script(SILENT)
    with cluster.client_of(cluster.workers()[0]) as client:
        stream_id = begin_stream(client)
        answers = [stop(asked, stream_id) for asked in clients]
        list(client.frames())
        fake.wait_closed()
        cluster.wait(lambda: listed(clients[0]).json == [])
        answers += [stop(asked, stream_id) for asked in clients]
    assert {(a.status, a.json["success"]) for a in answers} == {(200, True)}


@pytest.mark.usefixtures("settled")
def test_a_request_id_stops_its_call_through_every_worker(
    cluster: Cluster, fake: FakeProvider, clients: list[RawClient]
) -> None:
    other = cluster.add_key("other-request")
    cluster.wait_known(other)
    for asked in clients:
        fake.reset()
        fake.script(SILENT)
        with cluster.client_of(cluster.workers()[0]) as client:
            fields = {"model": "fake/m", "prompt": "Say it", "stream": True}
            client.request("POST", NATIVE, fields, {"X-Request-ID": "shared-request"})
            assert client.read_head().headers["x-stream-id"] != "shared-request"
            assert stop(asked, "shared-request", other).status == 404
            assert stop(asked, "shared-request").status == 200
            assert "cancelled" in "".join(frame.text for frame in client.frames())
            fake.wait_closed()


@pytest.mark.usefixtures("settled")
def test_stop_of_an_unknown_ended_or_foreign_stream_answers_404_everywhere(
    cluster: Cluster, fake: FakeProvider, clients: list[RawClient]
) -> None:
    other = cluster.add_key("other")
    cluster.wait_known(other)
    fake.default([*BEGUN, fp.gate("more"), EVENT, fp.hold()])
    with cluster.client_of(cluster.workers()[0]) as client, cluster.client() as ended:
        stream_id = begin_stream(client)
        fake.script(fp.sse(fp.chunks(["a"])))
        ended_id = begin_stream(ended)
        list(ended.frames())
        for asked in clients:
            theirs, unknown = stop(asked, stream_id, other), stop(asked, "unknown")
            over = stop(asked, ended_id)
            assert [a.status for a in (theirs, unknown, over)] == [404] * 3
            assert {a.json["code"] for a in (theirs, unknown, over)} == {"stream_not_found"}
            assert set(theirs.headers) == set(unknown.headers)
            assert listed(asked, other).json == []
        fake.open("more")
        assert client.frame().json["data"] == "word "
        assert stop(clients[-1], stream_id).status == 200
        list(client.frames())


@pytest.mark.parametrize("phase", [PHASES["silent"], PHASES["unary"]], ids=["stream", "unary"])
def test_an_id_in_use_is_refused_by_every_worker(
    cluster: Cluster, fake: FakeProvider, clients: list[RawClient], phase: Phase
) -> None:
    fake.default([*BEGUN, fp.gate("more"), EVENT, fp.hold()])
    with cluster.client_of(cluster.workers()[0]) as client:
        begin_stream(client, stream_id="same")
        for asked in clients:
            calls.ask(asked, stream=phase.stream, stream_id="same")
            head, answer = asked.read_head(), asked.json()
            assert (head.status, answer["code"]) == (409, "stream_exists")
        fake.open("more")
        assert client.frame().json["data"] == "word "
        assert len(fake.requests) == 1
        assert stop(clients[-1], "same").status == 200
        list(client.frames())


@pytest.mark.usefixtures("settled")
def test_stopped_stream_id_can_be_reused_by_the_next_call(
    cluster: Cluster, fake: FakeProvider, clients: list[RawClient]
) -> None:
    # A worker remembers the id of a stopped call. It must not confirm a stop of the next call.
    fake.default(SILENT)
    for worker in cluster.workers():
        for asked in clients:
            with cluster.client_of(worker) as client:
                begin_stream(client, stream_id="again")
                assert stop(asked, "again").status == 200
                list(client.frames())
            cluster.wait(lambda asked=asked: listed(asked).json == [])  # type: ignore[misc]
    fake.default(fp.sse(fp.chunks(["a"])))
    with cluster.client() as client:
        begin_stream(client, stream_id="again")
        list(client.frames())
    cluster.wait(lambda: listed(clients[0]).json == [])
    assert {stop(asked, "again").status for asked in clients} == {404}


def test_two_keys_may_use_one_id_in_two_processes(
    cluster: Cluster, fake: FakeProvider, clients: list[RawClient]
) -> None:
    fake.default([*BEGUN, fp.gate("more"), EVENT, fp.hold()])
    other = cluster.add_key("other")
    cluster.wait_known(other)
    workers = cluster.workers()
    with cluster.client_of(workers[0]) as first, cluster.client_of(workers[-1]) as second:
        second.key = other
        begin_stream(first, stream_id="same")
        begin_stream(second, stream_id="same")
        assert stop(clients[0], "same", other).status == 200
        assert "cancelled" in next(second.frames()).text
        fake.open("more")
        assert first.frame().json["data"] == "word "
        assert stop(clients[-1], "same").status == 200


def test_every_worker_lists_the_streams_of_all_workers(
    cluster: Cluster, fake: FakeProvider, clients: list[RawClient]
) -> None:
    fake.default([*BEGUN, EVENT, fp.hold()])
    begun = []
    with cluster.clients_to_each() as owners:
        for client in owners.values():
            begun.append(begin_stream(client))
            client.frame()
        for asked in clients:
            entries = listed(asked).json
            assert [entry["stream_id"] for entry in entries] == begun
            moments = [entry.pop("started_at") for entry in entries]
            assert moments == sorted(moments)
            for entry, stream_id in zip(entries, begun, strict=True):
                assert entry == {
                    "stream_id": stream_id,
                    "provider": "fake",
                    "model": "m",
                    "input_tokens": 0,  # the provider hasn't reported any
                    "output_tokens": 3,
                    "resumable": False,
                }
        assert [stop(clients[0], stream_id).status for stream_id in begun] == [200] * len(begun)
        for client in owners.values():
            list(client.frames())
        for asked in clients:
            cluster.wait(lambda asked=asked: listed(asked).json == [])  # type: ignore[misc]


@pytest.mark.thorough
def test_stream_of_a_killed_worker_leaves_the_list_and_stop_never_answers_200(
    cluster: Cluster, fake: FakeProvider
) -> None:
    fake.default(SILENT)
    [victim, *others] = cluster.workers()
    with cluster.client_of(victim) as client, cluster.client_of(others[-1]) as asking:
        stream_id = begin_stream(client)
        assert [entry["stream_id"] for entry in listed(asking).json] == [stream_id]
        cluster.kill(victim)
        assert client.ended()
        statuses = set()

        def left() -> bool:
            statuses.add(stop(asking, stream_id).status)
            answer = listed(asking)
            return answer.status == 200 and answer.json == []

        clusters.wait(left, GONE_WITHIN_S, "the list is empty")
        statuses.add(stop(asking, stream_id).status)
        assert statuses <= {404, 503}
    cluster.wait(cluster.is_whole)


def test_an_admin_key_lists_and_stops_the_calls_of_all_keys_in_all_processes(
    cluster: Cluster, fake: FakeProvider, clients: list[RawClient]
) -> None:
    admin, other = cluster.add_key("operator", admin=True), cluster.add_key("other-listed")
    cluster.wait_known(admin, other)
    fake.default(SILENT)
    with cluster.client_of(cluster.workers()[0]) as one, cluster.client() as two:
        two.key = other
        names = {begin_stream(one), begin_stream(two)}
        fake.wait_requests(2)
        for asked in clients:
            found = get(asked, "/api/v1/streams", admin)
            assert {call["stream_id"] for call in found["data"]} == names
            assert {call["key_name"] for call in found["data"]} == {"test", "other-listed"}
            assert (found["total"], found["processes"]) == (2, ALL_ANSWER)
            assert exchange(asked, "GET", "/api/v1/streams", other).status == 403
        assert get(clients[0], "/api/v1/streams?key=other-listed", admin)["total"] == 1
        for call, asked in zip(found["data"], (clients[0], clients[-1]), strict=True):
            path = f"/api/v1/streams/{call['key_id']}/{call['stream_id']}/stop"
            answer = exchange(asked, "POST", path, admin)
            assert (answer.status, answer.json) == (200, {"success": True})
        for client in (one, two):
            assert "cancelled" in "".join(frame.text for frame in client.frames())


def test_the_health_of_a_provider_counts_the_calls_of_all_processes(
    cluster: Cluster, fake: FakeProvider, clients: list[RawClient]
) -> None:
    admin = cluster.add_key("operator-of-providers", admin=True)
    cluster.wait_known(admin)
    before = health_of(clients[0], admin)["calls"]
    fake.default(fp.sse(fp.chunks(["a"])))
    for asked in clients:
        begin_stream(asked)
        list(asked.frames())
    for asked in clients:
        cluster.wait(lambda asked=asked: health_of(asked, admin)["calls"] == before + len(clients))  # type: ignore[misc]
        found = health_of(asked, admin)
        assert found["reachable"] is True
        assert found["first_event_ms"]["p50"] > 0


ALL_ANSWER = {"answered": clusters.MACHINES * clusters.WORKERS, "missing": 0}


def get(client: RawClient, path: str, key: str) -> Any:
    answer = exchange(client, "GET", path, key)
    assert answer.status == 200
    return answer.json


def health_of(client: RawClient, key: str) -> Any:
    found = get(client, "/api/v1/providers", key)
    assert found["processes"] == ALL_ANSWER
    return next(row for row in found["data"] if row["name"] == "fake")
