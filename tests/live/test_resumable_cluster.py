"""Tests of resumable streams in two processes that share a Redis.

Clients lose their connections at random and come back at any of the two. Meanwhile Redis fails
over, is flushed, hangs or crashes, or a process is killed, stalls, drains or is reloaded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.support import fake as fp
from tests.support.books import by_request, open_rows, rows
from tests.support.clusters import stop, wait
from tests.support.daemons import CantRunError
from tests.support.fake import FakeProvider
from tests.support.ledgers import at_once
from tests.support.load import failed
from tests.support.pace import HANG_S, scaled
from tests.support.pairs import Failover, Pair, a_redis
from tests.support.raw_client import Frame, RawClient
from tests.support.redis_server import RedisServer
from tests.support.resuming import (
    PATHS,
    PIECES,
    SSE,
    Resumed,
    assert_unbroken,
    assert_whole,
    described,
    number_of,
    read_all,
    script,
    state_of,
    take,
    texts_of,
)
from tests.support.servers import UNTROUBLED, fake_rows

INTERRUPTED_WITHIN_S = scaled(10)
SILENT_REDIS_S, LONG_SILENCE_S, STALLED_S = 5.0, 14.0, 7.0
SLOW_S = 0.3
"""The time for which a slow Redis stops again and again. Processes wait longer for a response."""
STREAMS, EVENTS, CUTS, INTERVAL_S = 40, 300, 8, 0.06
"""The load on a pair while a part of it fails."""
TAIL = 40
"""The commands that a replica hasn't got when it is promoted."""

thorough = pytest.mark.thorough


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with a_redis() as server:
        yield server


@pytest.fixture(scope="module")
def pair(fake_process: FakeProvider, redis: RedisServer) -> Iterator[Pair]:
    settings = UNTROUBLED | {"SLUICE_KEEPALIVE_S": "1", "SLUICE_ORPHAN_S": "3"}
    with Pair(fake_rows(fake_process.base_url), redis.url, env=settings) as found:
        yield found
    assert "Traceback" not in found.output()


@contextmanager
def a_pair(fake: FakeProvider, redis_url: str, **env: str) -> Iterator[Pair]:
    """Yield a pair for one test. Fail if it logs a traceback."""
    with Pair(fake_rows(fake.base_url), redis_url, env=UNTROUBLED | env) as found:
        yield found
    assert "Traceback" not in found.output()


def begin(
    pair: Pair, number: int, stream_id: str, path: str = PATHS[1], **fields: Any
) -> RawClient:
    """Begin a resumable stream at a process. Return its connection, whose status is 200."""
    client = pair.client(number)
    body = {"model": "fake/m", "prompt": "x", "stream": True, "resumable": True}
    client.request("POST", path, body | {"stream_id": stream_id} | fields)
    head = client.read_head()
    assert head.status == 200, client.body()
    assert head.headers["x-sluice-resumable"] == "1"
    return client


def follow(pair: Pair, number: int, path: str, after: int = 0) -> RawClient:
    """Follow a stream at a process, as soon as it is there. Return the connection.

    Args:
        path: the stream's path.
        after: the id of the last frame that the client has.
    """
    until = time.monotonic() + HANG_S
    while True:
        client = pair.client(number)
        client.request("GET", f"{path}?starting_after={after}", headers=SSE)
        head = client.read_head()
        if head.status == 200:
            return client
        body = client.body()
        client.close()
        assert head.status == 503, body
        assert time.monotonic() < until, body


def status_of(pair: Pair, number: int, path: str, headers: dict[str, str] = SSE) -> int:
    """Return the status of the response to a GET at a process."""
    with pair.client(number) as client:
        client.request("GET", path, headers=headers)
        return client.read_head().status


def joined(frames: Sequence[Frame]) -> str:
    return "".join(texts_of(frame) for frame in frames if frame.data)


def gated(begun: Sequence[str], rest: Sequence[str], gate: str = "more") -> list[fp.Step]:
    """Return a provider's stream that pauses between two parts until the test opens a gate."""
    steps = fp.sse(fp.chunks(begun, finish=None), done=False, complete=False)
    last = [fp.event(frame) for frame in fp.chunks(rest, usage=(7, len(begun) + len(rest)))]
    return [*steps, fp.gate(gate), *last, fp.event("[DONE]"), fp.last_chunk()]


# Cuts at random


def test_streams_cut_at_random_and_resumed_at_any_process_lose_and_double_nothing(
    fake: FakeProvider, pair: Pair, redis: RedisServer
) -> None:
    before = len(rows(pair.ledger))
    fake.default(script(60, 0.01))
    found = assert_unbroken(read_all(pair.processes, 10, 60, 6, seed=1, patient=True))
    assert sum(resumed.cuts for resumed in found) > 30
    assert sum(resumed.elsewhere for resumed in found) > 10
    assert before == 0
    assert_whole(found, pair.ledger, 60)
    assert {resumed.owner for resumed in found} == {0, 1}
    for resumed in found:
        states = []
        for number in (0, 1):
            with pair.client(number) as client:
                states.append(state_of(client, resumed))
        assert states[0] == states[1]
        assert states[0]["status"] == "completed"
        assert states[0]["last_event_id"] == resumed.last
        result = states[0]["result"]
        text = result["data"] if resumed.path == PATHS[0] else result["choices"][0]["text"]
        assert text == "".join(PIECES[:60])
    with contextlib.closing(redis.client()) as client:
        names = list(client.scan_iter("sluice:replay*"))
        assert names
        assert [name for name in names if client.ttl(name) < 0] == []


@thorough
def test_200_streams_of_500_events_survive_20_cuts_each_at_two_processes(
    fake: FakeProvider, redis: RedisServer
) -> None:
    redis.refresh()
    with a_pair(fake, redis.url) as pair:
        fake.default(script(500, 0.1))
        found = read_all(pair.processes, 200, 500, 20, seed=7, patient=True)
        done = assert_whole(found, pair.ledger, 500)
        print(described(done))
        # On a busy machine a read from Redis may take too long: a 503, after which clients retry.
        assert sum(resumed.broken for resumed in done) == 0
        assert sum(resumed.cuts for resumed in done) > 3500, "a join may pass over some"
        assert sum(resumed.elsewhere for resumed in done) > 1500


def test_a_stream_is_followed_at_another_process_while_it_runs(
    fake: FakeProvider, pair: Pair
) -> None:
    fake.default(gated(["Hel"], ["lo"]))
    with begin(pair, 0, "two") as first:
        assert "Hel" in first.frame().text
        with follow(pair, 1, f"{PATHS[1]}/two") as other, pair.client(1) as asking:
            assert "Hel" in other.frame().text
            state = state_of(asking, Resumed("two", PATHS[1]))
            assert (state["status"], state["last_event_id"]) == ("in_progress", 1)
            fake.open("more")
            ends = [list(client.frames()) for client in (first, other)]
    assert [frame.text for frame in ends[0]] == [frame.text for frame in ends[1]]
    assert ends[0][-1].data == "[DONE]"
    last = number_of(ends[0][-1])
    for number in (0, 1):
        path = f"{PATHS[1]}/two?starting_after="
        assert status_of(pair, number, f"{path}{last}") == 204
        assert status_of(pair, number, f"{path}{last + 1}") == 400
        assert status_of(pair, number, f"{PATHS[0]}/two") == 404


def test_the_id_of_an_ended_stream_is_taken_at_every_process(
    fake: FakeProvider, pair: Pair
) -> None:
    path = f"{PATHS[1]}/taken"
    fake.default(script(3, 0.0))
    with begin(pair, 0, "taken") as first:
        assert [frame.data for frame in first.frames()][-1] == "[DONE]"
    with follow(pair, 1, path) as other:
        assert joined(list(other.frames())) == "".join(PIECES[:3])
    body = {"model": "fake/m", "prompt": "x", "stream": True, "resumable": True}
    for number in (0, 1):
        with pair.client(number) as client:
            client.request("POST", PATHS[1], body | {"stream_id": "taken"})
            assert client.read_head().status == 409


def test_a_call_in_the_background_is_asked_for_at_another_process(
    fake: FakeProvider, pair: Pair
) -> None:
    fake.default(gated(["Hel"], ["lo"], "background"))
    with pair.client(0) as client:
        body = {"model": "fake/m", "prompt": "x", "background": True, "stream_id": "background"}
        client.request("POST", PATHS[1], body)
        assert client.read_head().status == 202
    resumed = Resumed("background", PATHS[1])
    with pair.client(1) as client:
        assert state_of(client, resumed)["status"] in ("queued", "in_progress")
        fake.open("background")
        state: dict[str, Any] = {"status": "in_progress"}
        while state["status"] in ("queued", "in_progress"):
            state = state_of(client, resumed)
    assert state["status"] == "completed"
    assert state["result"]["choices"][0]["text"] == "Hello"
    with pair.client(0) as client:
        assert state_of(client, resumed) == state


def test_a_stream_is_stopped_at_another_process_and_its_followers_there_see_that(
    fake: FakeProvider, pair: Pair
) -> None:
    fake.default(gated(["Hel"], ["lo"], "never"))
    with begin(pair, 0, "stopped") as first:
        assert "Hel" in first.frame().text
        with follow(pair, 1, f"{PATHS[1]}/stopped") as other, pair.client(1) as asking:
            assert "Hel" in other.frame().text
            assert stop(asking, "stopped").status == 200
            ends = [[frame.text for frame in client.frames()] for client in (first, other)]
    assert ends[0] == ends[1]
    assert '"cancelled"' in "".join(ends[1])
    fake.wait_closed()


@thorough
def test_a_stream_that_outgrows_its_bounds_is_still_followed_at_another_process(
    fake: FakeProvider, redis: RedisServer
) -> None:
    redis.refresh()
    texts = [f"{n:08}" * 1000 for n in range(1200)]  # 9.6 MB; a stream may keep 4 MiB
    fake.default(fp.sse(fp.chunks(texts, finish="length", usage=(7, 1200)), interval=0.005))
    with a_pair(fake, redis.url) as pair, begin(pair, 0, "large") as first:
        path = f"{PATHS[1]}/large"
        with follow(pair, 1, path) as other:
            reads = [lambda c=client: joined(list(c.frames())) for client in (first, other)]
            whole = at_once(*reads)
            assert [text == "".join(texts) for text in whole] == [True, True]
        for number in (0, 1):
            assert status_of(pair, number, path) == 410
            with pair.client(number) as client:
                last = state_of(client, Resumed("large", PATHS[1]))["last_event_id"]
            with follow(pair, number, path, after=last - 100) as client:
                assert joined(list(client.frames())) == "".join(texts[-98:])
        with contextlib.closing(redis.client()) as asking:
            [name] = asking.scan_iter("sluice:replay:*")
            assert asking.memory_usage(name, samples=0) < 5 << 20


@thorough
def test_a_stream_that_is_followed_at_another_process_is_no_orphan(
    fake: FakeProvider, redis: RedisServer
) -> None:
    redis.refresh()
    with a_pair(fake, redis.url, SLUICE_KEEPALIVE_S="1", SLUICE_ORPHAN_S="3") as pair:
        assert_no_orphan(fake, pair)


def assert_no_orphan(fake: FakeProvider, pair: Pair) -> None:
    fake.default(gated(["Hel"], ["lo"], "orphan"))
    with begin(pair, 0, "orphan") as first:
        assert "Hel" in first.frame().text
        with follow(pair, 1, f"{PATHS[1]}/orphan", after=1) as other:
            first.close()
            text = b""
            for chunk in other.chunks():
                text += chunk
                if text.count(b":keep-alive\n") == 12:  # one a second; an orphan has 3 seconds
                    break
            assert fake.counts.active == 1
            fake.open("orphan")
            assert "lo" in other.frame().text
    fake.reset()
    fake.default(gated(["Hel"], ["lo"], "never"))
    with begin(pair, 0, "orphan-2") as first:
        assert "Hel" in first.frame().text
        with follow(pair, 1, f"{PATHS[1]}/orphan-2") as other:
            assert "Hel" in other.frame().text
    fake.wait_closed()  # nobody follows it anywhere


# Redis fails


class Load:
    """Streams that run while a part fails: with cuts and reconnects, and undisturbed local ones."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair, self._seed = pair, seed
        self.records: dict[int, Resumed] = {}
        self.local: list[dict[int, Resumed]] = [{}, {}]
        """The records of streams that are read at their own process, without cuts."""
        self.found: list[Resumed | BaseException] = []
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the streams. Begin when a quarter has been read, and wait for their ends."""

        def add(found: list[Resumed | BaseException]) -> None:
            with self._lock:
                self.found += found

        def cut() -> None:
            options: dict[str, Any] = {"patient": True, "records": self.records}
            add(read_all(self.pair.processes, STREAMS, EVENTS, CUTS, self._seed, **options))

        def stay(number: int) -> None:
            processes = [self.pair.servers[number].client]
            seed = 1000 * (number + 1) + self._seed
            add(read_all(processes, 2, EVENTS, 0, seed, records=self.local[number]))

        works = [cut, lambda: stay(0), lambda: stay(1)]
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        try:
            wait(lambda: self.read() > STREAMS * EVENTS // 4, HANG_S, "a quarter is read")
            yield
        finally:
            for thread in threads:
                thread.join()

    def read(self) -> int:
        """Return the number of frames that clients with cuts have."""
        return sum(resumed.last for resumed in list(self.records.values()))

    def wait_local(self, frames: int) -> None:
        """Wait until each undisturbed stream has more frames."""
        local = [record for records in self.local for record in records.values()]
        assert len(local) == 4
        wanted = [(record, record.last + frames) for record in local]
        wait(
            lambda: all(record.last >= last or record.done for record, last in wanted),
            HANG_S,
            "local followers get their frames",
        )

    def assert_whole(self) -> list[Resumed]:
        done = assert_whole(self.found, self.pair.ledger, EVENTS)
        print(described(done))
        assert sum(resumed.elsewhere for resumed in done) > STREAMS
        return done


@thorough
@pytest.mark.parametrize("how", ["crashed", "demoted"])
def test_streams_survive_a_failover_of_redis_that_loses_the_tail(
    fake: FakeProvider, how: str
) -> None:
    with ExitStack() as stack:
        try:
            redis = stack.enter_context(Failover())
        except CantRunError as error:
            pytest.skip(str(error))
        pair = stack.enter_context(a_pair(fake, redis.url))
        fake.default(script(EVENTS, INTERVAL_S))
        load = Load(pair, seed=11)
        with load.running():
            redis.lose_tail(TAIL)
            if how == "demoted":
                redis.demote()
            else:
                redis.crash()
            load.wait_local(10)
            redis.lead_to_replica()
        load.assert_whole()


@contextmanager
def under_load(fake: FakeProvider, redis: RedisServer, seed: int) -> Iterator[Load]:
    """Run the streams of a pair. Check at the end that no client lost anything."""
    redis.refresh()
    with a_pair(fake, redis.url) as pair:
        fake.default(script(EVENTS, INTERVAL_S))
        load = Load(pair, seed)
        with load.running():
            yield load
        load.assert_whole()


@thorough
def test_streams_survive_flushes_of_redis(fake: FakeProvider, redis: RedisServer) -> None:
    with under_load(fake, redis, seed=12) as load:
        for _ in range(3):
            redis.flush()
            load.wait_local(30)


@thorough
@pytest.mark.parametrize("seconds", [SILENT_REDIS_S, LONG_SILENCE_S])
def test_streams_survive_a_redis_that_hangs(
    fake: FakeProvider, redis: RedisServer, seconds: float
) -> None:
    """After the longer silence, all processes are silent and nobody is subscribed any more."""
    with under_load(fake, redis, seed=13) as load:
        until = time.monotonic() + seconds
        redis.pause()
        try:
            load.wait_local(30)
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            redis.resume()


@thorough
def test_streams_survive_a_redis_that_is_slow(fake: FakeProvider, redis: RedisServer) -> None:
    with under_load(fake, redis, seed=17) as load:
        for _ in range(20):
            redis.pause()
            try:
                time.sleep(SLOW_S)
            finally:
                redis.resume()
            time.sleep(SLOW_S / 10)
        load.wait_local(10)


@thorough
def test_streams_survive_a_redis_that_crashes_and_restarts_empty(
    fake: FakeProvider, redis: RedisServer
) -> None:
    with under_load(fake, redis, seed=14) as load:
        redis.crash()
        try:
            load.wait_local(30)
        finally:
            redis.restart()


@thorough
def test_ends_that_redis_lost_are_written_again(fake: FakeProvider, redis: RedisServer) -> None:
    redis.refresh()
    with a_pair(fake, redis.url) as pair:
        fake.default(gated(["Hel"], ["lo"]))
        with begin(pair, 0, "ended") as first:
            assert "Hel" in first.frame().text
            redis.pause()
            try:
                fake.open("more")
                assert [frame.data for frame in first.frames()][-1] == "[DONE]"
            finally:
                redis.resume()
        with follow(pair, 1, f"{PATHS[1]}/ended") as other:
            assert joined(list(other.frames())) == "Hello"
        redis.flush()
        with follow(pair, 1, f"{PATHS[1]}/ended") as other:
            assert joined(list(other.frames())) == "Hello"


@thorough
def test_a_stream_that_begins_without_redis_is_resumed_at_its_own_process_only(
    fake: FakeProvider, redis: RedisServer
) -> None:
    redis.refresh()
    with a_pair(fake, redis.url) as pair:
        fake.default(gated(["Hel"], ["lo"]))
        redis.crash()
        try:
            wait(lambda: pair.output().count("Redis is unavailable") == 2, HANG_S, "both notice")
            with pair.client(0) as client:
                body = {"model": "fake/m", "prompt": "x", "stream": True, "resumable": True}
                client.request("POST", PATHS[1], body | {"stream_id": "alone"})
                head = client.read_head()
                assert (head.status, head.headers["x-sluice-resumable"]) == (200, "0")
                frame = client.frame()
                assert "this process only" in frame.text
                assert "\n\n" not in frame.text
                assert "Hel" in frame.text
                assert number_of(frame) == 1
            assert status_of(pair, 1, f"{PATHS[1]}/alone") == 503
            assert status_of(pair, 1, f"{PATHS[1]}/alone", {}) == 503
            with follow(pair, 0, f"{PATHS[1]}/alone") as client:
                assert "Hel" in client.frame().text
                fake.open("more")
                assert [frame.data for frame in client.frames()][-1] == "[DONE]"
        finally:
            redis.restart()


@thorough
def test_with_sluice_replay_redis_0_nothing_of_an_answer_reaches_redis(
    fake: FakeProvider, redis: RedisServer
) -> None:
    redis.refresh()
    with a_pair(fake, redis.url, SLUICE_REPLAY_REDIS="0") as pair:
        fake.default(gated(["Hel"], ["lo"]))
        with pair.client(0) as first:
            body = {"model": "fake/m", "prompt": "x", "stream": True, "resumable": True}
            first.request("POST", PATHS[1], body | {"stream_id": "kept"})
            assert first.read_head().status == 200
            assert "Hel" in first.frame().text
            wait_settled(pair)
            assert status_of(pair, 1, f"{PATHS[1]}/kept") == 503
            assert status_of(pair, 1, f"{PATHS[1]}/unknown") == 404
            with follow(pair, 0, f"{PATHS[1]}/kept") as client:
                fake.open("more")
                assert joined(list(client.frames())) == "Hello"
        with contextlib.closing(redis.client()) as asking:
            assert [name for name in asking.scan_iter("*") if "replay" in name] == []


def wait_settled(pair: Pair) -> None:
    """Wait until both processes say that an unknown stream is unknown."""

    def settled() -> bool:
        found = {status_of(pair, number, f"{PATHS[1]}/nothing") for number in (0, 1)}
        assert found <= {404, 503}
        return found == {404}

    wait(settled, HANG_S, "an unknown stream is 404")


# A process fails


@thorough
def test_followers_elsewhere_get_a_prefix_and_interrupted_when_the_owner_is_killed(
    fake: FakeProvider, redis: RedisServer
) -> None:
    redis.refresh()
    with a_pair(fake, redis.url) as pair, ExitStack() as stack:
        wait_settled(pair)
        fake.default(script(1000, 0.02))
        paths = [PATHS[number % 2] for number in range(20)]
        records, clients = [], []
        for number, path in enumerate(paths):
            first = stack.enter_context(begin(pair, 0, f"killed-{number}", path))
            first.frame()
            clients.append(stack.enter_context(follow(pair, 1, f"{path}/killed-{number}")))
            records.append(Resumed(f"killed-{number}", path))
        other = stack.enter_context(begin(pair, 1, "other"))
        lasting = Resumed("other", PATHS[1])
        threads = [
            threading.Thread(target=read, args=pair_)
            for pair_ in zip([*clients, other], [*records, lasting], strict=True)
        ]
        for thread in threads:
            thread.start()
        wait(lambda: all(record.last > 50 for record in records), HANG_S, "50 frames each")
        killed_at = time.monotonic()
        os.kill(pair.worker(0), signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert_unbroken([*records, lasting])
        text = "".join(PIECES)
        assert [record.error for record in records] == ["interrupted"] * len(records)
        assert all(text.startswith(record.text) and record.text for record in records)
        took = max(record.error_at for record in records) - killed_at
        print(f"interrupted at the latest {took:.1f} s after the owner was killed")
        assert took < INTERRUPTED_WITHIN_S
        assert (lasting.error, lasting.text) == (None, text)
        wait(pair.servers[0].is_ready, HANG_S, "the owner has a successor")
        for record in records:
            assert_interrupted(pair, record)
        wait(lambda: not open_rows(pair.ledger), HANG_S, "all rows are settled")
        ended = [row["end_reason"] for row in rows(pair.ledger)]
        assert sorted(ended) == ["completed"] + ["interrupted"] * len(records)


def assert_interrupted(pair: Pair, record: Resumed) -> None:
    """Assert that both processes say that a stream was interrupted, whatever a client has of it."""
    path = f"{record.path}/{record.stream_id}"
    for number in (0, 1):
        for after in (record.last - 1, record.last - 1_000_000):  # as an owner may have sent more
            with follow(pair, number, path, after=after) as client:
                [frame] = client.frames()
            assert (number_of(frame), failed(frame.json)) == (record.last, "interrupted")
        assert status_of(pair, number, f"{path}?starting_after={record.last}") == 204
        with follow(pair, number, path, after=record.last + 7) as client:
            [frame] = client.frames()
        assert failed(frame.json) == "interrupted"
        with follow(pair, number, path) as client:
            assert joined(list(client.frames())) == record.text
        with pair.client(number) as client:
            state = state_of(client, record)
        assert state["status"] == "interrupted"
        assert failed(state["result"]) == "interrupted"


def read(client: RawClient, record: Resumed) -> None:
    """Read a connection to its end."""
    try:
        for frame in client.frames():
            take(record, frame)
    except (OSError, EOFError) as failure:
        record.faults.append(repr(failure))
    if not (record.done or record.error):
        record.faults.append("a clean end without the last frame")


@thorough
def test_clients_of_a_killed_owner_that_come_back_anywhere_get_a_prefix_and_interrupted(
    fake: FakeProvider, redis: RedisServer
) -> None:
    redis.refresh()
    with a_pair(fake, redis.url) as pair:
        wait_settled(pair)
        fake.default(script(EVENTS, INTERVAL_S))
        records: dict[int, Resumed] = {}
        found: list[Resumed | BaseException] = []

        def run() -> None:
            found.extend(
                read_all(pair.processes, STREAMS, EVENTS, CUTS, 15, patient=True, records=records)
            )

        thread = threading.Thread(target=run)
        thread.start()
        wait(
            lambda: len(records) == STREAMS and all(r.last > 50 for r in list(records.values())),
            HANG_S,
            "50 frames each",
        )
        killed_at = time.monotonic()
        os.kill(pair.worker(0), signal.SIGKILL)
        thread.join()
        done = assert_unbroken(found)
        print(described(done))
        its = [record for record in done if record.owner == 0]
        others = [record for record in done if record.owner == 1]
        assert its
        assert others
        text = "".join(PIECES[:EVENTS])
        assert {record.error for record in its} == {"interrupted"}
        assert all(text.startswith(record.text) for record in its)
        assert {(record.error, record.text) for record in others} == {(None, text)}
        took = max(record.error_at for record in its) - killed_at
        print(f"interrupted at the latest {took:.1f} s after the owner was killed")
        found_rows = by_request(rows(pair.ledger))
        assert {found_rows[record.request_id]["end_reason"] for record in others} == {"completed"}


@thorough
def test_streams_of_a_stalled_owner_go_on(fake: FakeProvider, redis: RedisServer) -> None:
    redis.refresh()
    with a_pair(fake, redis.url) as pair, ExitStack() as stack:
        wait_settled(pair)
        fake.default(script(EVENTS, INTERVAL_S))
        for number, path in enumerate(PATHS):
            first = stack.enter_context(begin(pair, 0, f"stalled-{number}", path))
            first.frame()
        records = [Resumed(f"stalled-{number}", path) for number, path in enumerate(PATHS)]
        threads = []
        for record in records:
            client = stack.enter_context(follow(pair, 1, f"{record.path}/{record.stream_id}"))
            threads.append(threading.Thread(target=read, args=(client, record)))
            threads[-1].start()
        wait(lambda: all(record.last > 50 for record in records), HANG_S, "50 frames each")
        owner = pair.worker(0)
        os.kill(owner, signal.SIGSTOP)
        try:
            time.sleep(STALLED_S)
            for record in records:  # who comes meanwhile gets what there is
                path = f"{record.path}/{record.stream_id}"
                client = stack.enter_context(follow(pair, 1, path))
                again = Resumed(record.stream_id, record.path)
                threads.append(threading.Thread(target=read, args=(client, again)))
                threads[-1].start()
                wait(lambda again=again: again.last > 50, HANG_S, "50 frames")  # type: ignore[misc]
                with pair.client(1) as asking:
                    assert state_of(asking, record)["status"] == "in_progress"
                records = [*records, again]
        finally:
            os.kill(owner, signal.SIGCONT)
        for thread in threads:
            thread.join()
        assert_unbroken(records)
        assert {record.error for record in records} == {None}
        assert {record.text for record in records} == {"".join(PIECES[:EVENTS])}


# A process drains


@thorough
@pytest.mark.parametrize("how", ["TERM", "HUP"])
def test_a_worker_that_drains_cuts_followers_of_other_processes_streams_only(
    fake: FakeProvider, redis: RedisServer, how: str
) -> None:
    redis.refresh()
    with a_pair(fake, redis.url, SLUICE_DRAIN_S="60") as pair, ExitStack() as stack:
        fake.default(gated(["Hel"], ["lo"]))
        local = stack.enter_context(begin(pair, 0, "drained"))
        assert "Hel" in local.frame().text
        remote = stack.enter_context(follow(pair, 1, f"{PATHS[1]}/drained"))
        assert "Hel" in remote.frame().text
        second = stack.enter_context(follow(pair, 0, f"{PATHS[1]}/drained"))
        assert "Hel" in second.frame().text
        owner = stack.enter_context(begin(pair, 1, "lasting"))
        assert "Hel" in owner.frame().text
        cut = stack.enter_context(follow(pair, 0, f"{PATHS[1]}/lasting"))
        assert "Hel" in cut.frame().text
        old = pair.worker(0)
        if how == "TERM":
            os.kill(old, signal.SIGTERM)
        else:
            pair.servers[0].signal(signal.SIGHUP)
        with pytest.raises((EOFError, ConnectionError)):  # no terminating chunk
            list(cut.frames())
        # A worker that gets TERM from others than its master is replaced when it has exited.
        rests = [
            stack.enter_context(follow(pair, number, f"{PATHS[1]}/lasting", after=1))
            for number in ((0, 1) if how == "HUP" else (1,))
        ]
        # A draining worker still has its own followers, and its stream is followed elsewhere.
        late = stack.enter_context(follow(pair, 1, f"{PATHS[1]}/drained"))
        assert "Hel" in late.frame().text
        fake.open("more")
        for client in (local, second, remote, late, owner, *rests):
            frames = list(client.frames())
            assert joined(frames) == "lo"
            assert frames[-1].data == "[DONE]"
        wait(lambda: old not in pair.servers[0].worker_pids(), HANG_S, "the old worker has exited")
        wait(pair.servers[0].is_ready, HANG_S, "the new worker is ready")
        for number in (0, 1):  # the owner has exited, and its stream is still there
            with follow(pair, number, f"{PATHS[1]}/drained") as client:
                assert joined(list(client.frames())) == "Hello"


@thorough
def test_a_server_that_shuts_down_writes_the_ends_of_its_streams(
    fake: FakeProvider, redis: RedisServer
) -> None:
    redis.refresh()
    with a_pair(fake, redis.url, SLUICE_DRAIN_S="1") as pair, ExitStack() as stack:
        fake.default(gated(["Hel"], ["lo"]))
        local = stack.enter_context(begin(pair, 0, "shut"))
        assert "Hel" in local.frame().text
        remote = stack.enter_context(follow(pair, 1, f"{PATHS[1]}/shut"))
        assert "Hel" in remote.frame().text
        pair.servers[0].signal(signal.SIGTERM)
        ends = [[frame.text for frame in client.frames()] for client in (local, remote)]
        assert ends[0] == ends[1]
        assert "error" in ends[0][-1] or "[DONE]" in ends[0][-1]
        assert pair.servers[0].wait_exit() == 0
        with pair.client(1) as client:
            state = state_of(client, Resumed("shut", PATHS[1]))
        assert state["status"] == "interrupted"


@thorough
def test_streams_survive_the_reload_of_both_servers_in_turn(
    fake: FakeProvider, redis: RedisServer
) -> None:
    redis.refresh()
    with a_pair(fake, redis.url, SLUICE_DRAIN_S="120") as pair:
        fake.default(script(EVENTS, INTERVAL_S))
        load = Load(pair, seed=16)
        with load.running():
            for server in pair.servers:
                before = set(server.worker_pids())
                server.signal(signal.SIGHUP)

                def renewed(server: Any = server, before: set[int] = before) -> bool:
                    return bool(set(server.worker_pids()) - before)

                wait(renewed, HANG_S, "the server has a new worker")
                load.wait_local(20)
        done = load.assert_whole()
        assert sum(resumed.broken for resumed in done) > 0
