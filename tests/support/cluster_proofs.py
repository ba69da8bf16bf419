"""Checks that must pass on a cluster while parts of it fail.

A load runs meanwhile, probes send requests to each worker, and at the end the ledger is checked.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from tests.support import calls, clusters, mixture, proofs
from tests.support import fake as fp
from tests.support.books import Row, by_request, open_rows, rows
from tests.support.calls import BEGUN
from tests.support.clusters import Cluster, Worker, stop
from tests.support.fake import FakeProvider
from tests.support.load import NATIVE, OPENAI, Load, Sent, body, failed, has_text, usage_in
from tests.support.load import scripts as scripts_of
from tests.support.pace import HANG_S
from tests.support.raw_client import RawClient

CLIENTS, STOPPING = 8, 4
AGAIN_S = 0.1
PER_MINUTE = 9
[STOP] = [kind for kind in mixture.ended() if kind.name == "stop"]
KINDS = [*mixture.lasting(), *(kind for kind in mixture.ended() if kind.act == "leave")]
SCRIPTS: Mapping[str, Sequence[fp.Step]] = {
    **scripts_of([*KINDS, STOP]),
    "probe": [*BEGUN, fp.hold()],
    "quick": fp.answer(fp.body("x")),
}


class Run:
    """A load on a cluster, with additional streams that are stopped through any worker.

    Attributes:
        sent: The calls of the load, including the stopped streams.
        stops: A stopped stream and the response's status, for each attempt to stop it.
    """

    def __init__(self, cluster: Cluster, fake: FakeProvider, keys: Mapping[str, str]) -> None:
        self.cluster, self.fake, self.keys = cluster, fake, keys
        self.load = Load(cluster, keys, KINDS, clients=CLIENTS)
        self.stops: list[tuple[Sent, int]] = []
        self._ending = threading.Event()

    @property
    def sent(self) -> list[Sent]:
        return self.load.sent

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._stop_some) for _ in range(STOPPING)]
        with self.load.running():
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._ending.set()
                for thread in threads:
                    thread.join()

    def wait_answers(self, count: int = CLIENTS + STOPPING) -> None:
        """Wait until `count` more calls have a complete response with status 200."""

        def answered() -> int:
            return sum(sent.whole and sent.status == 200 for sent in self.sent)

        before = answered()
        clusters.wait(lambda: answered() >= before + count, HANG_S, "more calls are answered")

    def _stop_some(self) -> None:
        while not self._ending.wait(random.uniform(0, 0.1)):
            sent = Sent(STOP, random.choice((NATIVE, OPENAI)))
            self.sent.append(sent)
            with contextlib.suppress(OSError, EOFError):
                self._play(sent)
                continue
            sent.failure = sent.failure or "cut"

    def _play(self, sent: Sent) -> None:
        with RawClient(self.cluster.port, key=self.keys["main"], timeout=HANG_S) as client:
            headers = {"X-Request-ID": sent.id, "X-Stream-ID": sent.id}
            client.request("POST", sent.path, body(sent), headers)
            sent.status = client.read_head().status
            if sent.status != 200:
                sent.answer = client.json()
            else:
                for frame in client.frames():
                    if frame.data == "[DONE]":
                        sent.done = True
                    elif frame.data is not None:
                        sent.usage, sent.error = (
                            usage_in(frame.json) or sent.usage,
                            failed(frame.json),
                        )
                        if has_text(frame):
                            self._stop(sent, client)
            sent.whole = True

    def _stop(self, sent: Sent, client: RawClient) -> None:
        """Request the stop repeatedly, until a response confirms it or the stream is cut off."""
        until = time.monotonic() + HANG_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError, EOFError):  # this worker may be killed, too
                status = calls.stop(self.cluster, sent.id, self.keys["main"]).status
                self.stops.append((sent, status))
                if status == 200:
                    return
            if hung_up(client):
                return
            time.sleep(AGAIN_S)


def hung_up(client: RawClient) -> bool:
    """Return True if the server has closed the connection and all its data was read."""
    return client.readable(0) and client.sock.recv(1, socket.MSG_PEEK) == b""


class Probe:
    """Two endless streams on each worker, and a connection to each worker for requests.

    Attributes:
        asked: The connection to each worker.
        streams: For each worker, the stream to stop next: its id and its client.
        kept: For each worker, the stream that is never stopped.
    """

    def __init__(self, cluster: Cluster, key: str, stack: ExitStack) -> None:
        self.cluster, self.key, self._stack = cluster, key, stack
        self.workers = cluster.workers()
        self.asked = {w: stack.enter_context(cluster.client_of(w)) for w in self.workers}
        self.streams: dict[Worker, tuple[str, RawClient]] = {}
        for client in self.asked.values():
            client.key = key
        for worker in self.workers:
            self.begin(worker)
        self.kept = dict(self.streams)
        for worker in self.workers:
            self.begin(worker)

    def begin(self, worker: Worker) -> str:
        """Start a stream on a worker. Return its id, which is also the request id."""
        client = self._stack.enter_context(self.cluster.client_of(worker))
        client.key = self.key
        id_ = f"probe.{next(NUMBERS)}"
        content = {"model": "fake/m", "prompt": "probe it", "stream": True}
        client.request("POST", NATIVE, content, {"X-Request-ID": id_, "X-Stream-ID": id_})
        assert client.read_head().status == 200
        while "Hello" not in client.frame().text:
            pass
        self.streams[worker] = id_, client
        return id_

    def pairs(self) -> Iterator[tuple[Worker, Worker]]:
        """Yield each worker with the next worker. Some pairs share a machine, others don't."""
        count = len(self.workers)
        for number, owner in enumerate(self.workers):
            yield owner, self.workers[(number + 1) % count]

    def statuses(self) -> list[int]:
        """Stop each worker's stream through another worker. Return the responses' statuses."""
        return [
            stop(self.asked[other], self.streams[owner][0]).status for owner, other in self.pairs()
        ]

    def assert_local_stop_works(self) -> None:
        for worker in self.workers:
            id_, client = self.streams[worker]
            assert stop(self.asked[worker], id_).status == 200
            assert_cancelled(client)
            self.begin(worker)

    def wait_stops(self, timeout: float, *, maybe: int = 503) -> float:
        """Wait until each worker's stream has been stopped through another worker.

        Args:
            timeout: The most seconds to wait.
            maybe: The only other status that a stop may get meanwhile.

        Returns:
            The seconds that this took.
        """

        def stopped() -> bool:
            found = self.statuses()
            assert set(found) <= {200, maybe}, found
            return set(found) == {200}

        took = clusters.wait(stopped, timeout, "each worker stops another worker's stream")
        for _, client in self.streams.values():
            assert_cancelled(client)
        for worker in self.workers:
            self.begin(worker)
        return took

    def assert_shared(self) -> None:
        """Assert that workers share their streams.

        Each worker lists the kept streams of all workers, and rejects the id of another worker's
        stream.
        """
        ids = {id_ for id_, _ in self.kept.values()}
        for owner, other in self.pairs():
            client = self.asked[other]
            assert ids <= {entry["stream_id"] for entry in listed(client)}
            calls.ask(client, prompt="quick one", stream_id=self.kept[owner][0])
            assert client.read_head().status == 409
            client.body()

    def ready(self) -> set[int]:
        return {clusters.exchange(client, "GET", "/ready").status for client in self.asked.values()}

    def accepted(self, key: str, each: int) -> int:
        """Send `each` calls to each worker. Return how many the key's rate limit accepts."""
        found = []
        for client in [*self.asked.values()] * each:
            client.key, mine = key, client.key
            calls.ask(client, prompt="quick one")
            client.key = mine
            found.append(client.read_head().status)
            client.body()
        assert set(found) <= {200, 429}, found
        return found.count(200)


def listed(client: RawClient) -> list[dict[str, Any]]:
    """Return the active streams, as soon as they can be listed.

    Shortly after a worker was killed, the other workers don't know that it is dead and get no reply
    from it.
    """
    found: list[list[dict[str, Any]]] = []

    def known() -> bool:
        answer = clusters.listed(client)
        assert answer.status in (200, 503), answer
        if answer.status == 200:
            found.append(answer.json)
        return answer.status == 200

    clusters.wait(known, HANG_S, "active streams can be listed")
    return found[0]


NUMBERS = itertools.count()


@contextlib.contextmanager
def probing(cluster: Cluster, key: str) -> Iterator[Probe]:
    with ExitStack() as stack:
        yield Probe(cluster, key, stack)


def assert_cancelled(client: RawClient) -> None:
    """Assert that the stream ended because it was stopped."""
    *_, finish, final, done = client.frames()
    assert finish.json["choices"][0]["finish_reason"] == "cancelled"
    assert (final.json["type"], done.data) == ("usage_final", "[DONE]")


# Checks of the ledger


def settled(run: Run, *, but: str | None = None) -> dict[str, Row]:
    """Wait until all rows of a run are settled. Return them by request id.

    Args:
        but: The owner whose rows may be open, because its process was killed.
    """
    place, ids = run.cluster.database_url, {sent.id for sent in run.sent}

    def closed() -> bool:
        pending = {row["request_id"] for row in open_rows(place) if row["owner"] != but}
        return ids.isdisjoint(pending)

    clusters.wait(closed, HANG_S, "all rows are settled")
    return by_request(row for row in rows(place) if row["request_id"] in ids)


def assert_nothing_is_lost(run: Run, found: Mapping[str, Row], *, cut_off: set[str]) -> None:
    """Assert that each accepted call has a row that agrees with the client's response.

    Args:
        cut_off: The request ids of calls that were cut off, which their clients noticed.
    """
    sent = {one.id: one for one in run.sent}
    closed = {id_: row for id_, row in found.items() if row["ended_us"] is not None}
    accepted = {id_ for id_, one in sent.items() if one.status == 200}
    assert accepted - set(found) == set()
    assert {id_ for id_, one in sent.items() if one.failure} <= cut_off
    assert {id_ for id_, one in sent.items() if one.error} == set()
    assert false_ends(run.sent) == []
    proofs.assert_whole_answers_are_recorded(run.load, found)
    wrong = [
        (id_, row["end_reason"])
        for id_, row in closed.items()
        if row["end_reason"] != sent[id_].kind.reason and id_ not in cut_off
    ]
    assert wrong == []
    requests = [r for r in run.fake.requests if r.prompt.split()[0] not in ("probe", "quick")]
    asked = {id_: row for id_, row in closed.items() if row["attempts"]}  # reached a provider
    proofs.assert_usage_is_the_providers(run.load, asked, requests)
    proofs.assert_the_provider_was_called_for_rows_only(requests, found)


def false_ends(all_sent: Sequence[Sent]) -> list[Sent]:
    """Return the streams that ended like complete ones but without [DONE]."""
    return [
        sent
        for sent in all_sent
        if sent.whole and sent.status == 200 and sent.kind.stream and not sent.done
    ]


def assert_stops_told_the_truth(run: Run, *, but: Collection[str] = ()) -> None:
    """Assert that each stop of an active stream got 200, or 503 if its owner was unreachable.

    Args:
        but: The ids of streams that were cut off, whose stops may also get 404.
    """
    assert run.stops
    allowed = (200, 503)
    lies = [(sent, status) for sent, status in run.stops if status not in allowed]
    assert [(sent, status) for sent, status in lies if sent.id not in but or status != 404] == []


def keys_for(cluster: Cluster, names: Sequence[str]) -> dict[str, str]:
    """Add keys to the cluster and return them by name.

    They are the keys of the load and, for each of `names`, a key with PER_MINUTE requests.
    """
    found: dict[str, Any] = {
        name: cluster.add_key(name, id=f"key_{name}") for name in ("main", "other", "probe")
    }
    for name in names:
        found[name] = cluster.add_key(name, id=f"key_{name}", requests_per_minute=PER_MINUTE)
    return found
