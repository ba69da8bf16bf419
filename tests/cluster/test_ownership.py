"""ownership.py: claims and stops across processes, also while Redis fails.

Several Cluster objects in one process stand for the processes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from cluster import messages, ownership
from cluster.lua import ScriptPart
from cluster.marks import kept_mark_of
from cluster.ownership import Answers, Cluster
from cluster.redis_client import RedisClient
from completion import StreamKey, Summary
from errors import Unavailable
from tests.support.pace import HANG_S
from tests.support.redis_server import RedisServer

KEY = "key_a"
CALL = (KEY, "call-1")


class Calls:
    """A fake registry of a process's calls."""

    def __init__(self) -> None:
        self.active: dict[StreamKey, Summary] = {}
        self.stopped: list[StreamKey] = []
        self.requests: dict[tuple[str, str], StreamKey] = {}
        self.kept_ids: dict[StreamKey, int] = {}

    def end_active(self, stream_key: StreamKey) -> bool:
        if stream_key in self.active:
            self.stopped.append(stream_key)
        return stream_key in self.active

    def stop_here(self, stream_key: StreamKey) -> bool:
        return self.end_active(stream_key)

    def end_requests(self, request_key: tuple[str, str]) -> bool:
        found = self.requests.get(request_key)
        return found is not None and self.end_active(found)

    def summaries_here(self, key_id: str) -> list[Summary]:
        return [summary for (owner, _), summary in self.active.items() if owner == key_id]

    def stream_keys(self) -> list[StreamKey]:
        return list(self.active)

    def kept_for(self, stream_key: StreamKey) -> int:
        return self.kept_ids.get(stream_key, 0)

    def kept(self) -> dict[StreamKey, int]:
        return self.kept_ids


class Process:
    """A process of the cluster: a Cluster and its calls."""

    def __init__(self, url: str) -> None:
        self.shared = RedisClient(url)
        self.cluster = Cluster(self.shared)
        self.calls = Calls()
        self.beats = 0
        subjects = {"calls": lambda rest: [rest, *self.calls.active]}
        self.cluster.attend(self.calls, self._count, self._fail, subjects=subjects)
        self.cluster.start()
        wait(lambda: self.beats > 0)

    def _count(self) -> None:
        self.beats += 1

    def _fail(self) -> None:
        raise RuntimeError("a task that fails")

    def begin(self, stream_key: StreamKey = CALL, max_calls: int | None = None) -> str:
        verdict, _ = self.cluster.claim(stream_key, max_calls)
        if verdict == "yes":
            self.calls.active[stream_key] = Summary(stream_key[1], "fake", "m", time.time(), 1, 2)
        return verdict

    def end(self, stream_key: StreamKey = CALL, *, stopped: bool = False) -> None:
        del self.calls.active[stream_key]
        self.cluster.release(stream_key, stopped=stopped)

    def reported_all(self) -> None:
        """Wait for two heartbeats. The second one starts after this call."""
        so_far = self.beats
        wait(lambda: self.beats > so_far + 1)


def wait(condition: Callable[[], object], timeout: float = HANG_S) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def answered(condition: Callable[[], bool]) -> bool:
    """Return the condition's value, once it no longer raises Unavailable."""
    found: list[bool] = []

    def known() -> bool:
        try:
            found.append(condition())
        except Unavailable:
            return False
        return True

    wait(known)
    return found[0]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_S", 0.05)
    monkeypatch.setattr(ownership, "MAX_PAUSE_S", 0.1)
    monkeypatch.setattr(ownership, "SETTLED_S", 0.0)


@pytest.fixture
def new(redis_server: RedisServer) -> Iterator[Callable[[], Process]]:
    processes: list[Process] = []

    def start() -> Process:
        processes.append(Process(redis_server.url))
        return processes[-1]

    yield start
    for process in processes:
        process.cluster.close()


@pytest.fixture
def ours(new: Callable[[], Process]) -> Process:
    return new()


@pytest.fixture
def other(new: Callable[[], Process]) -> Process:
    return new()


# Claims


def test_a_stream_id_is_claimed_by_one_call_among_all_processes(
    ours: Process, other: Process
) -> None:
    assert (ours.begin(), other.begin()) == ("yes", "exists")
    assert other.begin(("key_b", CALL[1])) == "yes"
    ours.end()
    assert other.begin() == "yes"


def test_the_id_of_a_kept_stream_is_free_at_no_process(ours: Process, other: Process) -> None:
    ours.begin()
    ours.calls.kept_ids[CALL] = 300
    ours.end()
    assert (ours.begin(), other.begin()) == ("kept", "kept")
    assert other.begin(("key_b", CALL[1])) == "yes"


def test_the_id_of_a_kept_stream_is_taken_again_after_redis_lost_its_data(
    redis_server: RedisServer, ours: Process, other: Process
) -> None:
    ours.begin()
    ours.calls.kept_ids[CALL] = 300
    ours.end()
    redis_server.flush()
    ours.reported_all()
    assert other.begin() == "kept"


def test_the_id_of_a_stream_that_ended_without_redis_is_taken_once_it_is_back(
    redis_server: RedisServer, ours: Process, other: Process
) -> None:
    ours.begin()
    redis_server.crash()
    ours.calls.kept_ids[CALL] = 300
    ours.end()
    redis_server.restart()
    wait(lambda: ours.shared.available and other.shared.available)
    ours.reported_all()
    assert other.begin() == "kept"


def test_a_call_that_began_without_redis_is_claimed_although_its_id_was_taken(
    redis_server: RedisServer, ours: Process, other: Process
) -> None:
    redis_server.crash()
    assert ours.begin() == "yes"
    redis_server.restart()
    with contextlib.closing(redis_server.client()) as client:
        client.set(kept_mark_of(CALL), "1")
    wait(lambda: ours.shared.available and other.shared.available)
    ours.reported_all()
    assert other.begin() == "exists"


def test_a_process_may_repeat_its_own_claim(ours: Process) -> None:
    assert (ours.begin(), ours.begin()) == ("yes", "yes")


def test_release_does_not_free_a_claim_of_another_process(ours: Process, other: Process) -> None:
    ours.begin()
    other.cluster.release(CALL, stopped=False)
    assert other.begin() == "exists"


def test_the_stream_limit_of_a_key_holds_among_all_processes(ours: Process, other: Process) -> None:
    assert [ours.begin((KEY, str(n)), max_calls=3) for n in range(2)] == ["yes", "yes"]
    assert [other.begin((KEY, str(n)), max_calls=3) for n in (2, 3)] == ["yes", "too many"]
    assert other.begin(("key_b", "3"), max_calls=3) == "yes"
    ours.end((KEY, "0"))
    assert other.begin((KEY, "3"), max_calls=3) == "yes"
    assert ours.begin((KEY, "4")) == "yes"


def test_calls_of_a_closed_process_do_not_count_against_the_key(
    ours: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.begin((KEY, "0"), max_calls=1)
    ours.cluster.close()
    assert other.begin((KEY, "1"), max_calls=1) == "yes"


def test_the_stream_id_of_a_closed_process_is_free_again(ours: Process, other: Process) -> None:
    ours.begin()
    ours.cluster.close()
    assert other.begin() == "yes"


# Parts of claims and releases


COUNT = "redis.call('INCRBY', KEYS[1], ARGV[1]) return true, 'counted'"
REFUSE = "redis.call('INCRBY', KEYS[1], ARGV[1]) return false, 'refused'"


def asked(process: Process, *command: str) -> Any:
    """Return Redis' reply to a command."""

    def ask(client: Any) -> Any:
        return client.execute_command(*command)

    return process.shared.run(ask)


def counted(process: Process) -> int:
    return int(asked(process, "GET", "count") or 0)


def owner_of(process: Process) -> Any:
    return asked(process, "HGET", ownership.CALLS + KEY, CALL[1])


def test_a_part_runs_with_the_claim_and_decides_on_it(ours: Process) -> None:
    part = ScriptPart(REFUSE, ["count"], [2])
    assert ours.cluster.claim(CALL, part=part) == ("yes", b"refused")
    assert (counted(ours), owner_of(ours)) == (2, None)
    part = ScriptPart(COUNT, ["count"], [3])
    assert ours.cluster.claim(CALL, part=part) == ("yes", b"counted")
    assert (counted(ours), owner_of(ours)) == (5, ours.cluster._me.encode())


def test_a_part_does_not_run_if_the_call_cannot_be_claimed(ours: Process, other: Process) -> None:
    part = ScriptPart(COUNT, ["count"], [1])
    ours.begin()
    assert other.cluster.claim(CALL, part=part) == ("exists", None)
    assert other.cluster.claim((KEY, "2"), 1, part) == ("too many", None)
    assert counted(ours) == 0


def test_a_part_runs_with_the_release(ours: Process) -> None:
    ours.begin()
    del ours.calls.active[CALL]
    part = ScriptPart(COUNT, ["count"], [4])
    assert ours.cluster.release(CALL, stopped=False, part=part)
    assert (counted(ours), owner_of(ours)) == (4, None)


def test_a_part_gives_no_reply_while_redis_is_unavailable(
    ours: Process, redis_server: RedisServer
) -> None:
    redis_server.pause()
    part = ScriptPart(COUNT, ["count"], [1])
    assert ours.cluster.claim(CALL, part=part) == ("yes", None)
    assert not ours.cluster.release(CALL, stopped=False, part=part)
    redis_server.resume()


# Stop


def test_a_call_of_another_process_is_stopped(ours: Process, other: Process) -> None:
    ours.begin()
    assert other.cluster.stop(CALL) is True
    assert ours.calls.stopped == [CALL]


def test_stop_succeeds_again_after_a_call_was_stopped(ours: Process, other: Process) -> None:
    ours.begin()
    ours.end(stopped=True)
    assert other.cluster.stop(CALL) is True
    assert ours.cluster.stop(CALL) is True


def test_stop_reaches_the_next_call_with_a_stopped_stream_id(ours: Process, other: Process) -> None:
    ours.begin()
    ours.end(stopped=True)
    other.begin()
    assert ours.cluster.stop(CALL) is True
    assert other.calls.stopped == [CALL]
    other.end()
    assert ours.cluster.stop(CALL) is False


def test_stop_reaches_a_call_that_redis_does_not_know(ours: Process, other: Process) -> None:
    ours.calls.active[CALL] = Summary(CALL[1], "fake", "m", time.time(), 1, 2)
    assert other.cluster.stop(CALL) is True
    assert ours.calls.stopped == [CALL]


def test_a_request_id_stops_calls_of_all_processes(ours: Process, other: Process) -> None:
    for process, name in ((ours, "call-1"), (other, "call-2")):
        process.begin((KEY, name))
        process.calls.requests[KEY, "request"] = (KEY, name)
    assert other.cluster.stop((KEY, "request")) is True
    assert ours.calls.stopped == [(KEY, "call-1")]
    assert other.calls.stopped == [(KEY, "call-2")]
    assert other.cluster.stop(("key_b", "request")) is False


def test_a_stream_id_of_another_process_wins_over_a_request_id(
    ours: Process, other: Process
) -> None:
    ours.begin()
    other.begin((KEY, "call-2"))
    other.calls.requests[CALL] = (KEY, "call-2")
    assert other.cluster.stop(CALL) is True
    assert (ours.calls.stopped, other.calls.stopped) == ([CALL], [])


def test_a_request_id_is_stopped_here_although_another_process_does_not_answer(
    ours: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    other.begin()
    other.calls.requests[KEY, "request"] = CALL
    monkeypatch.setattr(messages, "ANSWER_S", 0.1)
    monkeypatch.setattr(ours.cluster._post, "reply_to", lambda _: None)
    assert answered(lambda: other.cluster.stop((KEY, "request"))) is True
    assert other.calls.stopped == [CALL]
    with pytest.raises(Unavailable):
        other.cluster.stop((KEY, "unknown"))


def test_stop_reports_false_for_an_unknown_or_ended_call(ours: Process, other: Process) -> None:
    assert other.cluster.stop(CALL) is False
    ours.begin()
    ours.end()
    assert other.cluster.stop(CALL) is False
    assert other.cluster.stop(("key_b", CALL[1])) is False


def test_stop_reports_false_when_the_owner_has_ended_the_call(
    ours: Process, other: Process
) -> None:
    ours.begin()
    del ours.calls.active[CALL]
    assert other.cluster.stop(CALL) is False


def test_many_calls_of_another_process_are_stopped_in_order(ours: Process, other: Process) -> None:
    stream_keys = [(KEY, str(n)) for n in range(200)]
    for stream_key in stream_keys:
        ours.begin(stream_key)
    assert all(other.cluster.stop(stream_key) for stream_key in stream_keys)
    assert ours.calls.stopped == stream_keys


@pytest.mark.parametrize("side", [ownership, messages], ids=["question", "answer"])
def test_stop_succeeds_although_a_published_message_is_lost(
    ours: Process, other: Process, monkeypatch: pytest.MonkeyPatch, side: ModuleType
) -> None:
    ours.begin()
    monkeypatch.setattr(side, "CHANNEL", "nowhere:")
    assert other.cluster.stop(CALL) is True


def test_stop_and_list_are_unavailable_while_the_owner_does_not_answer(
    ours: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.begin()
    monkeypatch.setattr(messages, "ANSWER_S", 0.3)
    monkeypatch.setattr(ours.cluster._post, "reply_to", lambda _: None)
    with pytest.raises(Unavailable, match="didn't respond"):
        other.cluster.stop(CALL)
    with pytest.raises(Unavailable, match="didn't respond"):
        other.cluster.others(KEY)


def silence(process: Process, seconds: float) -> None:
    """Stop a process's heartbeat, and pretend that the last one was some seconds ago."""
    process.cluster._closing = True
    process.cluster._thread.join(HANG_S)
    process.shared.run(lambda client: age(client, process, seconds))


def age(client: Any, process: Process, seconds: float) -> None:
    client.zincrby(ownership.PROCESSES, -seconds, process.cluster._me)


def test_stop_is_unavailable_while_a_process_is_silent(ours: Process, other: Process) -> None:
    ours.begin()
    silence(ours, ownership.SILENT_S)
    with pytest.raises(Unavailable, match="haven't reported"):
        other.cluster.stop(CALL)
    with pytest.raises(Unavailable, match="haven't reported"):
        other.cluster.stop((KEY, "the silent process may have started this call"))
    assert other.begin() == "exists"
    assert other.cluster.others(KEY) == []


def test_calls_of_a_process_silent_for_long_count_as_ended(ours: Process, other: Process) -> None:
    ours.begin()
    silence(ours, ownership.DEAD_S)
    other.reported_all()
    assert other.cluster.stop(CALL) is False
    assert other.begin() == "yes"


def test_others_lists_the_calls_of_a_key_in_all_other_processes(
    ours: Process, other: Process, new: Callable[[], Process]
) -> None:
    third = new()
    for n, process in enumerate((ours, other, third)):
        process.begin((KEY, str(n)))
        process.begin(("key_b", str(n)))
    found = ours.cluster.others(KEY)
    assert sorted(found, key=lambda summary: summary.stream_id) == [
        other.calls.active[(KEY, "1")],
        third.calls.active[(KEY, "2")],
    ]
    assert ours.cluster.others("key_c") == []


# Failures of Redis


def test_calls_start_and_end_while_redis_is_unavailable(
    redis_server: RedisServer, ours: Process, other: Process
) -> None:
    ours.begin((KEY, "before"))
    redis_server.crash()
    assert ours.begin() == "yes"
    ours.end((KEY, "before"))
    with pytest.raises(Unavailable, match="can't reach its other processes"):
        other.cluster.stop(CALL)
    with pytest.raises(Unavailable, match="can't reach its other processes"):
        other.cluster.others(KEY)
    redis_server.restart()
    wait(lambda: ours.shared.available and other.shared.available)
    ours.reported_all()
    assert answered(lambda: other.cluster.stop(CALL))
    assert other.begin() == "exists"
    assert not other.cluster.stop((KEY, "before"))


def test_a_call_that_ended_while_redis_hung_is_released(
    redis_server: RedisServer, ours: Process, other: Process
) -> None:
    ours.begin()
    ours.begin((KEY, "stopped"))
    redis_server.pause()
    ours.end()
    ours.end((KEY, "stopped"), stopped=True)
    redis_server.resume()
    wait(lambda: ours.shared.available and other.shared.available)
    ours.reported_all()
    assert other.begin() == "yes"
    assert answered(lambda: other.cluster.stop((KEY, "stopped")))


def test_claims_are_reported_again_after_a_redis_flush(
    redis_server: RedisServer, ours: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.begin()
    monkeypatch.setattr(ownership, "SETTLED_S", 3600)
    redis_server.flush()
    other.reported_all()
    with pytest.raises(Unavailable, match="haven't reported"):
        other.cluster.stop((KEY, "unknown"))
    ours.reported_all()
    assert other.begin() == "exists"
    assert other.cluster.stop(CALL) is True


def test_a_listener_that_lost_its_connection_listens_again(
    redis_server: RedisServer, ours: Process, other: Process
) -> None:
    ours.begin()
    with redis_server.client() as client:
        client.client_kill_filter(_type="pubsub")
    ours.reported_all()
    assert answered(lambda: other.cluster.stop(CALL))


def test_a_call_that_ends_while_claims_are_repeated_is_not_claimed(
    redis_server: RedisServer, ours: Process, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.begin()
    claim_all = ours.cluster._claim_all

    def end_first(stream_keys: list[StreamKey]) -> None:
        if CALL in ours.calls.active:
            ours.end()
        claim_all(stream_keys)

    monkeypatch.setattr(ours.cluster, "_claim_all", end_first)
    ours.cluster._stale = True
    ours.reported_all()
    assert other.begin() == "yes"


def test_a_closed_process_is_removed_from_the_cluster(
    redis_server: RedisServer, ours: Process, other: Process
) -> None:
    ours.cluster.close()
    other.reported_all()
    with redis_server.client() as client:
        assert client.zrange(ownership.PROCESSES, 0, -1) == [other.cluster._me]


# Questions about whole processes


def test_every_other_process_answers_a_question_about_the_whole_process(
    ours: Process, other: Process, new: Callable[[], Process]
) -> None:
    third = new()
    other.begin()
    third.begin((KEY, "call-2"))
    found = ours.cluster.ask_others("calls", "all")
    assert sorted(found.found) == [["all", list(CALL)], ["all", [KEY, "call-2"]]]
    assert found.missing == 0


def test_a_process_that_does_not_know_the_question_is_missing(
    ours: Process, other: Process
) -> None:
    """A process of an earlier release takes the question for a stop of an unknown call."""
    other.cluster._subjects = {}
    assert ours.cluster.ask_others("calls") == Answers([], 1)
    assert other.calls.stopped == []


def test_a_process_that_does_not_answer_in_time_is_missing(
    ours: Process, other: Process, new: Callable[[], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    third = new()
    monkeypatch.setattr(messages, "ANSWER_S", 0.2)
    monkeypatch.setattr(third.cluster._post, "reply_to", lambda _: None)
    wait(lambda: ours.cluster.ask_others("calls") == Answers([[""]], 1))
    assert other.calls.active == {}


def test_it_is_not_known_who_is_missing_while_redis_is_away(
    ours: Process, redis_server: RedisServer
) -> None:
    redis_server.crash()
    try:
        assert ours.cluster.ask_others("calls") == Answers([], None)
    finally:
        redis_server.restart()


def test_a_process_is_steady_only_when_its_heartbeats_had_no_gap_for_a_while(
    ours: Process, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait(lambda: ours.cluster.steady)
    monkeypatch.setattr(ownership, "SETTLED_S", 1.0)
    wait(lambda: ours.cluster.steady)
    redis_server.pause()
    wait(lambda: not ours.shared.available)
    redis_server.resume()
    wait(lambda: ours.shared.available)
    ours.reported_all()
    monkeypatch.setattr(ownership, "SETTLED_S", 3600)
    assert not ours.cluster.steady
    monkeypatch.setattr(ownership, "SETTLED_S", 0.1)
    wait(lambda: ours.cluster.steady)


def test_a_redis_that_lost_its_data_is_not_settled_at_once(
    ours: Process, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "SETTLED_S", 3600)
    client = redis_server.client()
    client.set(ownership.SINCE, time.time() - 3601)
    wait(lambda: ours.cluster.settled)
    before = ours.cluster.since
    redis_server.flush()
    wait(lambda: ours.cluster.since != before)
    assert not ours.cluster.settled
    client.close()
