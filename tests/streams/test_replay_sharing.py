"""Tests of resumable streams that several processes share through a real Redis.

Several stores in one process stand for the processes.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import messages, ownership
from cluster.deaths import dead
from cluster.ownership import Answers, Cluster
from cluster.redis_client import RedisClient
from completion import StreamKey
from config import ConfigError
from errors import SluiceError, Unavailable
from streams.replay import LOST_ID, About, Ending, Replay
from streams.replay_log import FRAME
from streams.replay_scripts import FOLLOWED
from streams.replay_sharing import SharedReplays
from streams.replay_store import ReplayStore
from streams.replay_writer import ReplayWriter
from tests.cluster.test_ownership import Calls, wait
from tests.support.pace import HANG_S
from tests.support.redis_server import RedisServer

KEY = ("key_1", "s-1")
LOST = b"id: %d\ndata: interrupted\n\n" % LOST_ID
MB = 1 << 20


class Process:
    """A process: its store, and what it shares."""

    def __init__(
        self,
        url: str,
        total: int = 64 * MB,
        *,
        keep: float = 300,
        orphan: float = 300,
        joins: bool = True,
    ) -> None:
        self.redis = RedisClient(url)
        self.cluster = Cluster(self.redis)
        self.store = ReplayStore(64 * MB, keep, orphan)
        self.shared = SharedReplays(
            self.cluster, self.redis, self.store, keep=keep, orphan=orphan, total=total
        )
        subjects = {self.shared.subject: self.shared.has}
        self.cluster.attend(Calls(), self.shared.beat, subjects=subjects)
        if joins:
            self.cluster.start()

    def close(self) -> None:
        self.shared.close()
        self.cluster.close()

    def begin(self, stream_key: StreamKey = KEY) -> Call:
        return Call(self.store, stream_key)


class Call:
    """A resumable call without a recorder."""

    def __init__(self, store: ReplayStore, stream_key: StreamKey) -> None:
        self._store = store
        self.state: Any = "queued"
        self.replay = Replay(stream_key, "native", self.about)
        self.replay.encode_error = encoded
        self.kind = self.replay.log.add_template((b'data: "', b'"\n\n')) or 0
        store.add(self.replay)

    def about(self) -> About:
        return About("r-1", 12.5, self.state, "sim", "m")

    def write(self, *texts: str) -> None:
        self.state = "in_progress"
        for text in texts:
            self.replay.log.append(self.kind, text.encode())
        self._store.grown(self.replay)
        self.replay.wake()

    def end(self, result: tuple[bytes, ...] = (b"{}",)) -> None:
        self.state = "completed"
        self.replay.log.append(FRAME, b"data: [DONE]\n\n")
        kinds = frozenset({self.kind})
        self.replay.close(Ending(self.about(), result, kinds, None, time.time()))
        self._store.ended(self.replay)


def encoded(error: SluiceError) -> tuple[bytes, bytes]:
    return b"data: %b\n\n" % error.code.encode(), b'"%b"' % error.code.encode()


class Reading:
    """A follower in a thread."""

    def __init__(self, replay: Replay, after: int = 0, client: socket.socket | None = None) -> None:
        self.data = b""
        follower = replay.follow(after, client, missed=False, keepalive=1e9)
        self._frames = follower.frames(lambda error: encoded(error)[0])
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for data in self._frames:
            self.data += data

    def whole(self) -> bytes:
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        return self.data.removeprefix(b":open\n")


def texts(*found: str, first: int = 1) -> bytes:
    return b"".join(
        b'id: %d\ndata: "%b"\n\n' % (first + n, text.encode()) for n, text in enumerate(found)
    )


def done(number: int) -> bytes:
    return b"id: %d\ndata: [DONE]\n\n" % number


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_S", 0.05)
    monkeypatch.setattr(ownership, "MAX_PAUSE_S", 0.1)
    monkeypatch.setattr(ownership, "SETTLED_S", 0.0)


@pytest.fixture
def new(redis_server: RedisServer) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(**settings: Any) -> Process:
        processes.append(Process(redis_server.url, **settings))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


@pytest.fixture
def owner(new: Callable[..., Process]) -> Process:
    return new()


@pytest.fixture
def other(new: Callable[..., Process]) -> Process:
    return new()


def found(process: Process, stream_key: StreamKey = KEY) -> Replay:
    """Return a process's copy of a stream, once it can have one."""
    copies: list[Replay] = []

    def known() -> bool:
        try:
            copy = process.shared.find(stream_key)
        except Unavailable:
            return False
        if copy is not None:
            copies.append(copy)
        return copy is not None

    wait(known)
    return copies[0]


def test_another_process_follows_a_stream_from_its_start_to_its_end(
    owner: Process, other: Process
) -> None:
    call = owner.begin()
    call.write("a", "b")
    reading = Reading(found(other))
    wait(lambda: texts("a", "b") in reading.data)
    call.write("c")
    wait(lambda: texts("c", first=3) in reading.data)
    call.write("d", "e")
    call.end((b'{"text":"', b'"}'))
    assert reading.whole() == texts("a", "b", "c", "d", "e") + done(6)


def test_a_copy_has_the_state_and_the_whole_answer(owner: Process, other: Process) -> None:
    call = owner.begin()
    copy = found(other)
    assert (copy.face, copy.about()) == ("native", About("r-1", 12.5, "queued", "sim", "m"))
    call.write("a", "b")
    wait(lambda: copy.about().state == "in_progress")
    call.end((b'{"text":"', b'"}'))
    wait(lambda: copy.ending is not None)
    ending = copy.ending
    assert ending is not None
    assert call.replay.ending is not None
    assert copy.about() == call.replay.about()
    assert ending.ended_at == call.replay.ending.ended_at
    assert copy.result(ending) == b'{"text":"ab"}'


# Redis loses data, is away, or lies


def test_a_flush_is_repaired_and_followers_miss_nothing(
    owner: Process, other: Process, redis_server: RedisServer
) -> None:
    call = owner.begin()
    call.write("a", "b")
    reading = Reading(found(other))
    wait(lambda: texts("a", "b") in reading.data)
    redis_server.flush()
    call.write("c")
    wait(lambda: texts("c", first=3) in reading.data)
    late = Reading(found(other, KEY), 1)
    call.end()
    assert reading.whole() == texts("a", "b", "c") + done(4)
    assert late.whole() == texts("b", "c", first=2) + done(4)


def test_a_check_that_finds_another_entry_takes_nothing_from_the_count_of_appends(
    owner: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.written_stream.CHECK_S", 0.1)
    call = owner.begin()
    call.write("a")
    wait(lambda: owner.shared.counts.appends == 1)
    owner.redis.run(lambda client: client.delete("sluice:replay:key_1/s-1"))
    wait(lambda: owner.shared.counts.repeats == 1)
    wait(lambda: owner.shared.counts.appends == 2)
    call.end()


def test_a_flush_after_the_end_is_repaired(
    owner: Process, other: Process, redis_server: RedisServer
) -> None:
    call = owner.begin()
    call.write("a")
    call.end()
    wait(lambda: found(other).ending)
    redis_server.flush()
    third = Process(redis_server.url)
    try:
        assert Reading(found(third)).whole() == texts("a") + done(2)
    finally:
        third.close()


def test_a_flush_long_after_the_end_is_repaired(
    owner: Process, other: Process, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.written_stream.CHECKED_S", 0.1)
    call = owner.begin()
    call.write("a", "b")
    call.end()
    wait(lambda: owner.shared.counts.appends and call.replay.marks is None)
    redis_server.flush()
    assert Reading(found(other)).whole() == texts("a", "b") + done(3)


def test_a_lost_tail_is_written_again_without_a_hole(
    owner: Process, other: Process, redis_server: RedisServer
) -> None:
    raw = RedisClient(redis_server.url)
    name = f"sluice:replay:{'/'.join(KEY)}"
    call = owner.begin()
    call.write("a", "b")
    early = Reading(found(other))
    wait(lambda: texts("a", "b") in early.data)
    before: Any = raw.run(lambda redis: redis.dump(name))
    call.write("c", "d")
    wait(lambda: texts("c", "d", first=3) in early.data)
    raw.run(lambda redis: redis.restore(name, 60_000, before, replace=True))  # as after a failover
    call.write("e")
    wait(lambda: texts("e", first=5) in early.data)
    call.end()
    assert early.whole() == texts("a", "b", "c", "d", "e") + done(6)
    third = Process(redis_server.url)
    try:
        assert Reading(found(third)).whole() == texts("a", "b", "c", "d", "e") + done(6)
    finally:
        third.close()
    raw.close()


def test_followers_elsewhere_wait_while_redis_is_away_and_miss_nothing(
    new: Callable[..., Process], redis_server: RedisServer
) -> None:
    owner, other = new(), new()
    call = owner.begin()
    call.write("a")
    here, there = Reading(call.replay), Reading(found(other))
    wait(lambda: texts("a") in there.data)
    redis_server.crash()
    try:
        call.write("b")
        wait(lambda: texts("b", first=2) in here.data)
        wait(lambda: not other.redis.available)
        with pytest.raises(Unavailable):
            other.shared.find(("key_1", "s-2"))
        call.write("c")
    finally:
        redis_server.restart()
    call.write("d")
    wait(lambda: texts("d", first=4) in there.data)
    call.end()
    for reading in (here, there):
        assert reading.whole() == texts("a", "b", "c", "d") + done(5)


def test_another_calls_stream_with_the_id_replaces_an_ended_one(
    owner: Process, new: Callable[..., Process], other: Process
) -> None:
    call = owner.begin()
    call.write("a")
    call.end()
    wait(lambda: found(other).ending)
    second = new()
    again = second.begin()
    again.write("x")
    third = new()
    wait(lambda: third.shared.find(KEY) is not None)
    reading = Reading(found(third))
    again.end()
    assert reading.whole() == texts("x") + done(2)


def test_the_copy_of_an_ended_stream_is_read_again_after_a_while(
    owner: Process, new: Callable[..., Process], other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.replay_reader.KEEP_S", 0.2)
    call = owner.begin()
    call.write("a")
    call.end()
    wait(lambda: found(other).ending)
    again = new().begin()
    again.write("x")
    wait(lambda: found(other).ending is None)
    again.end()
    assert Reading(found(other)).whole() == texts("x") + done(2)


def test_an_ended_stream_is_nowhere_found_longer_than_it_is_kept(
    new: Callable[..., Process],
) -> None:
    owner, other = new(keep=1.0), new(keep=1.0)
    call = owner.begin()
    call.write("a")
    call.end()
    assert Reading(found(other)).whole() == texts("a") + done(2)

    def is_gone() -> bool:
        owner.store.sweep()
        try:
            return not any(process.shared.find(KEY) for process in (owner, other))
        except Unavailable:  # the owner's sweeper hasn't dropped it yet
            return False

    wait(is_gone)
    again = other.begin()  # the id is free
    again.write("b")
    again.end()
    assert Reading(found(owner)).whole() == texts("b") + done(2)


def test_copies_are_dropped_when_nobody_needs_them(
    owner: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.replay_reader.KEEP_S", 0.2)
    call = owner.begin()
    call.write("a" * 50_000)
    reading = Reading(found(other))
    wait(lambda: len(reading.data) > 50_000)
    wait(lambda: other.shared.counts.copies == 1)
    assert other.store.size > 50_000
    call.end()
    assert reading.whole() == texts("a" * 50_000) + done(2)
    wait(lambda: other.shared.counts.copies == 0)
    wait(lambda: other.store.size == 0)


def test_a_stream_that_is_no_longer_in_redis_cuts_its_followers_elsewhere(
    owner: Process, other: Process, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.replay_reader.MISSING_S", 0.0)
    client = redis_server.client()
    ours, theirs = socket.socketpair()
    call = owner.begin()
    call.write("a")
    reading = Reading(found(other), client=theirs)
    wait(lambda: texts("a") in reading.data)
    call.replay.marks = None  # the owner gives it up
    owner.shared.close()  # before the deletion, which the writer might notice and repair
    client.delete(f"sluice:replay:{'/'.join(KEY)}")
    assert reading.whole() == texts("a")
    ours.settimeout(HANG_S)
    assert ours.recv(1) == b""
    for end in (ours, theirs):
        end.close()
    client.close()


# A dead owner


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function before whose call no process counts as dead."""
    monkeypatch.setattr(ownership, "SETTLED_S", 3600)
    return lambda: monkeypatch.setattr(ownership, "SETTLED_S", 0.0)


def test_the_stream_of_a_dead_owner_ends_with_the_error(
    new: Callable[..., Process], settle: Callable[[], None]
) -> None:
    readers = [new(), new()]
    ghost = new(joins=False)
    call = ghost.begin()
    call.write("a", "b")
    readings = [Reading(found(process)) for process in readers]
    wait(lambda: all(texts("a", "b") in reading.data for reading in readings))
    settle()
    for reading in readings:
        assert reading.whole() == texts("a", "b") + LOST
    for process in readers:
        copy = found(process)
        ending = copy.ending
        assert ending is not None
        assert (copy.about().state, copy.result(ending)) == ("interrupted", b'"interrupted"')
        assert process.cluster.claim(KEY) == ("kept", None), "the id isn't free"
    call.write("c")  # the owner was only away, and its own followers get the rest
    call.end()
    assert Reading(call.replay).whole() == texts("a", "b", "c") + done(4)


def test_a_client_that_has_more_than_an_interrupted_stream_gets_its_error(
    new: Callable[..., Process], settle: Callable[[], None]
) -> None:
    ghost, other = new(joins=False), new()
    ghost.begin().write("a")
    copy = found(other)
    early = [Reading(copy, after) for after in (2, 7)]
    wait(lambda: copy.log.last == 1)
    settle()
    wait(lambda: copy.ending)
    assert copy.last == LOST_ID
    for reading in (*early, *[Reading(copy, after) for after in (1, 2, 7)]):
        assert reading.whole() == LOST


def test_a_silent_owner_that_still_listens_is_not_dead(
    new: Callable[..., Process], redis_server: RedisServer
) -> None:
    ghost, other = new(joins=False), new()
    name = ghost.cluster.name
    client = redis_server.client()
    listener = client.pubsub()
    listener.subscribe(messages.CHANNEL + name)
    listener.get_message(timeout=HANG_S)
    client.zadd(ownership.PROCESSES, {name: time.time() - ownership.SILENT_S - 1})
    assert dead(other.redis, other.cluster, [name]) == set()
    listener.close()
    wait(lambda: dead(other.redis, other.cluster, [name]) == {name})
    client.zadd(ownership.PROCESSES, {name: time.time()})
    assert dead(other.redis, other.cluster, [name]) == set()
    client.close()


def test_nobody_counts_as_dead_before_redis_has_been_steady(
    new: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new()
    wait(lambda: dead(other.redis, other.cluster, ["nobody"]) == {"nobody"})
    monkeypatch.setattr(ownership, "SETTLED_S", 3600)
    assert dead(other.redis, other.cluster, ["nobody"]) == set()


def test_the_owners_data_is_lost_with_it_and_its_followers_get_the_error(
    new: Callable[..., Process], redis_server: RedisServer, settle: Callable[[], None]
) -> None:
    ghost, other = new(joins=False), new()
    ghost.begin().write("a")
    reading = Reading(found(other))
    wait(lambda: texts("a") in reading.data)
    ghost.close()
    redis_server.flush()
    settle()
    assert reading.whole() == texts("a") + LOST


# Looking for a stream


def test_a_stream_that_no_process_has_is_not_found(owner: Process, other: Process) -> None:
    wait(lambda: owner.cluster.settled)
    assert owner.shared.find(KEY) is None
    other.begin(("key_2", "s-1"))
    assert owner.shared.find(KEY) is None, "another key's stream isn't shown"


def test_a_stream_that_only_its_own_process_has_is_unavailable(
    new: Callable[..., Process],
) -> None:
    owner, other = new(total=0), new(total=0)
    call = owner.begin()
    call.write("a")
    with pytest.raises(Unavailable, match="Only the process that runs this stream has it"):
        other.shared.find(KEY)
    assert other.shared.find(("key_1", "s-2")) is None
    assert owner.redis.run(lambda redis: redis.keys("sluice:replay:*")) == []


def test_a_stream_that_has_just_begun_at_another_process_is_waited_for(
    owner: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()
    tick, ask = ReplayWriter._tick, other.cluster.ask_others

    def late(writer: ReplayWriter, now: float) -> bool:
        return asked.is_set() and tick(writer, now)

    def ask_others(*words: str) -> Answers:
        answers = ask(*words)
        asked.set()
        return answers

    monkeypatch.setattr(ReplayWriter, "_tick", late)
    monkeypatch.setattr(other.cluster, "ask_others", ask_others)
    owner.begin().write("a")
    assert other.shared.find(KEY) is not None
    assert asked.is_set()


def test_a_stream_is_found_by_a_process_that_is_asked_at_once(
    owner: Process, other: Process
) -> None:
    for number in range(20):
        stream_key = ("key_1", f"s-{number}")
        owner.begin(stream_key)
        assert other.shared.find(stream_key) is not None


def test_a_stream_is_unavailable_while_a_process_is_silent(
    owner: Process, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    client.zadd(ownership.PROCESSES, {"silent": time.time() - ownership.SILENT_S - 1})
    with pytest.raises(Unavailable, match="whether this stream exists"):
        owner.shared.find(KEY)
    client.close()


def test_a_process_that_leaves_cuts_the_followers_of_other_processes_streams(
    owner: Process, other: Process
) -> None:
    ours, theirs = socket.socketpair()
    call = owner.begin()
    call.write("a")
    here = Reading(call.replay)
    there = Reading(found(other), client=theirs)
    wait(lambda: texts("a") in there.data)
    other.shared.leave()
    assert there.whole() == texts("a")
    ours.settimeout(HANG_S)
    assert ours.recv(1) == b"", "the connection is shut"
    with pytest.raises(Unavailable, match="shutting down"):
        other.shared.find(KEY)
    owner.shared.leave()
    call.end()
    assert here.whole() == texts("a") + done(2), "the owner's followers get the end"
    for end in (ours, theirs):
        end.close()


# Orphans


def alone(call: Call) -> None:
    """Let a stream have been without followers in its own process for longer than allowed."""
    call.replay.alone_since = time.monotonic() - 301


def test_a_follower_of_another_process_keeps_a_stream_alive(
    owner: Process, other: Process, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    call = owner.begin()
    ended: list[int] = []
    call.replay.abandon = lambda: ended.append(1)
    reading = Reading(found(other))
    wait(lambda: client.zscore(FOLLOWED, "/".join(KEY)))
    alone(call)
    owner.store.sweep()
    wait(lambda: time.monotonic() - (call.replay.alone_since or 0) < 300)
    assert ended == []
    client.zadd(FOLLOWED, {"/".join(KEY): time.time() - 301})
    alone(call)
    owner.store.sweep()
    wait(lambda: ended)
    call.end()
    assert reading.whole() == done(1)
    client.close()


def test_an_orphan_isnt_ended_while_redis_is_away(
    owner: Process, redis_server: RedisServer
) -> None:
    call = owner.begin()
    ended: list[int] = []
    call.replay.abandon = lambda: ended.append(1)
    wait(lambda: call.replay.marks is not None)
    redis_server.crash()
    try:
        wait(lambda: not owner.redis.available)
        alone(call)
        owner.store.sweep()
        assert ended == []
    finally:
        redis_server.restart()
    wait(lambda: ended)
    call.end()


# Bounds


def top(process: Process, name: str) -> bytes:
    """Return the id of a stream's last entry in Redis; empty if there is none."""
    entries: Any = process.redis.run(lambda redis: redis.xrevrange(name, count=1))
    return bytes(entries[0][0]) if entries else b""


def test_a_long_stream_keeps_its_newest_entries_in_redis(
    owner: Process, other: Process, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    name = f"sluice:replay:{'/'.join(KEY)}"
    call = owner.begin()
    call.replay.awaited = True  # so that its own log isn't cut
    piece = "x" * 50_000
    for _ in range(120):
        call.write(piece)
    call.end((b'{"text":"', b'"}'))
    wait(lambda: top(owner, name).startswith(b"18446744073709551615-"))
    assert client.memory_usage(name) < 5 * MB
    copy = found(other)
    first = copy.log.first
    assert first > 20
    reading = Reading(copy, first - 1)
    assert reading.whole() == texts(*[piece] * (121 - first), first=first) + done(121)
    assert Reading(copy, first - 2).whole() == b"data: stream_trimmed\n\n"
    client.close()


def test_a_stream_without_room_in_redis_goes_on_in_its_own_process(
    new: Callable[..., Process], redis_server: RedisServer
) -> None:
    client = redis_server.client()
    owner, other = new(total=100_000), new(total=100_000)
    call = owner.begin()
    call.write("a")
    there = Reading(found(other))
    wait(lambda: texts("a") in there.data)
    call.write("x" * 100_000)
    wait(lambda: owner.shared.obstacle("key_1"))
    assert owner.shared.obstacle("key_1") == "there is no room in Redis"
    wait(lambda: client.keys("sluice:replay:*") == [])
    assert call.replay.marks is None
    call.write("c")
    call.end()
    assert Reading(call.replay).whole() == texts("a", "x" * 100_000, "c") + done(4)
    with pytest.raises(Unavailable, match="Only the process that runs this stream has it"):
        new(total=100_000).shared.find(KEY)
    client.close()


def test_a_stream_whose_place_has_another_type_is_given_up_and_others_go_on(
    owner: Process, other: Process
) -> None:
    owner.redis.run(lambda client: client.set("sluice:replay:key_1/s-1", "x"))
    calls = [owner.begin(), owner.begin(("key_1", "s-2"))]
    for call in calls:
        call.write("a")
    wait(lambda: calls[0].replay.marks is None)
    assert owner.redis.available
    there = Reading(found(other, ("key_1", "s-2")))
    for call in calls:
        call.end()
    assert there.whole() == texts("a") + done(2)
    assert owner.shared.counts.given_up == 1


@pytest.mark.parametrize("total", [0, 64 * MB])
def test_the_start_fails_if_redis_forbids_the_keys_of_streams_unless_none_may_be_there(
    new: Callable[..., Process], redis_server: RedisServer, total: int
) -> None:
    process = new(total=total, joins=False)
    client = redis_server.client()
    rules = "on nopass resetkeys ~sluice:trial ~sluice:fleet ~LIMITS:* &* +@all"
    client.execute_command("ACL", "SETUSER", "default", *rules.split())
    try:
        if total:
            with pytest.raises(ConfigError, match="the user lacks a permission"):
                process.redis.check()
        else:
            process.redis.check()
    finally:
        client.execute_command("ACL", "SETUSER", "default", "allkeys")
        client.close()


def test_an_ended_stream_that_made_room_for_another_one_isnt_written_again(
    new: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.written_stream.CHECK_S", 0.1)
    owner = new(total=100_000)
    first = owner.begin()
    first.write("x" * 60_000)
    first.end()
    wait(lambda: top(owner, "sluice:replay:key_1/s-1").startswith(b"18446744073709551615-"))
    second = owner.begin(("key_1", "s-2"))
    second.write("y" * 60_000)
    wait(lambda: top(owner, "sluice:replay:key_1/s-2").startswith(b"1-"))
    wait(lambda: first.replay.marks is None)
    assert top(owner, "sluice:replay:key_1/s-1") == b""
    assert second.replay.marks is not None
    assert owner.shared.counts.given_up == 0
    second.end()


def test_an_expired_stream_gives_its_bytes_back(
    new: Callable[..., Process], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.replay_room.REFRESH_S", 0.0)
    monkeypatch.setattr("streams.replay_room.LEAST_TTL_S", 0.2)
    monkeypatch.setattr("streams.written_stream.LEAST_TTL_S", 0.2)
    client = redis_server.client()
    owner = new(keep=0.2)
    call = owner.begin()
    call.write("a")
    call.end()
    wait(lambda: owner.shared.counts.bytes > 0)
    wait(lambda: client.keys("sluice:replay*") == [])
    wait(lambda: owner.shared.counts.bytes == 0)
    client.close()
