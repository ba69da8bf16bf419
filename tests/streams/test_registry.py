"""stream.py and registry.py: the end of a call, its timeouts, the registry, stop, and hang-ups."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    EndReason,
    Started,
    Thought,
    Usage,
    Used,
)
from config import Timeouts
from errors import (
    InternalError,
    RateLimited,
    StreamExists,
    StreamNotFound,
    Unavailable,
    UpstreamTimeout,
)
from providers.base import Target, UpstreamCall
from providers.hosts import BUILT_IN
from server.sockets import shut
from streams import registry
from streams.deadlines import Deadlines
from streams.disconnect import DisconnectPolicy, hung_up
from streams.mailbox import (
    BACKLOG,
    End,
    Nudge,
)
from streams.registry import StreamRegistry
from streams.stream import Stream
from tests.support.pace import HANG_S

FOREVER = float("inf")
TARGET = Target(BUILT_IN[0], "pydoc")
OTHER = Target(BUILT_IN[1], "gpt-4o-mini")
TIMEOUTS = Timeouts(connect=1, first_event=30, idle=20, total=100)


class Quiet(UpstreamCall):
    """An attempt without events that counts the calls of `abort` and `wind_up`."""

    def __init__(self) -> None:
        self.aborts = self.wound_up = 0

    def events(self) -> Iterator[Any]:
        return iter(())

    def abort(self) -> None:
        self.aborts += 1

    def wind_up(self) -> None:
        self.wound_up += 1

    def close(self) -> None:
        pass


def a_stream(**changes: Any) -> Stream:
    fields: dict[str, Any] = {
        "stream_id": "s-1",
        "key_id": "key_1",
        "endpoint": "/v1/completions",
        "request_id": "r-1",
        "request": CompletionRequest(prompts=("Hi",), stream=True),
        **changes,
    }
    timeouts = fields.pop("timeouts", TIMEOUTS)
    own = {name: fields.pop(name) for name in ("within", "keepalive", "hold") if name in fields}
    deadlines = Deadlines(timeouts, TARGET, **own)
    return Stream(fields.pop("request"), TARGET, deadlines, **fields)


def with_attempt(**changes: Any) -> tuple[Stream, Quiet]:
    """Return a stream whose first attempt has started."""
    stream, attempt = a_stream(**changes), Quiet()
    assert stream.attach(attempt, TARGET, ())
    return stream, attempt


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + HANG_S
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


# One call


def test_attach_sets_the_target_and_counts_the_attempts() -> None:
    stream = a_stream()
    assert stream.attach(Quiet(), OTHER, ("seed",))
    assert (stream.target, stream.dropped, len(stream.attempts)) == (OTHER, ("seed",), 1)
    assert stream.attach(Quiet(), TARGET, ())
    assert (stream.target, stream.dropped, len(stream.attempts)) == (TARGET, (), 2)


def test_no_attempt_starts_after_the_call_has_ended() -> None:
    stream = a_stream()
    stream.end("stopped")
    assert not stream.attach(Quiet(), OTHER, ("seed",))
    assert (stream.target, stream.dropped, len(stream.attempts)) == (TARGET, (), 0)


def test_events_after_a_stop_still_count_in_the_usage() -> None:
    stream, _ = with_attempt()
    before = stream.first_visible
    assert stream.put([Started("m", 3), Delta(0, "abcde")])
    first = stream.first_visible
    assert before is None
    assert first is not None
    stream.end("stopped")
    assert not stream.put([Delta(0, "f"), Used(Usage(3, 9))])
    assert stream.first_visible == first
    assert stream.tally.usage(failed=False) == Usage(3, 9)


@pytest.mark.parametrize(
    "reason", ["completed", "stopped", "client_gone", "provider_error", "deadline", "shutdown"]
)
def test_every_end_but_completion_aborts_the_attempt(reason: EndReason) -> None:
    stream, attempt = with_attempt()
    assert stream.end(reason)
    assert attempt.aborts == (0 if reason == "completed" else 1)
    assert stream.mailbox.take() == [End(reason)]


def test_a_stream_can_end_before_its_first_attempt() -> None:
    stream, error = a_stream(), InternalError()
    assert stream.end("shutdown", error)
    assert not stream.end("stopped")
    assert stream.mailbox.take() == [End("shutdown", error)]


def test_only_the_current_attempt_is_aborted() -> None:
    stream, first = with_attempt()
    second = Quiet()
    stream.attach(second, OTHER, ())
    stream.end("stopped")
    assert (first.aborts, second.aborts) == (0, 1)


@pytest.mark.parametrize(
    ("fields", "echoed"), [({}, 0), ({"echo": True}, 1), ({"echo": True, "n": 3}, 3)]
)
def test_an_echoed_prompt_is_not_counted_as_output(fields: dict[str, Any], echoed: int) -> None:
    stream, _ = with_attempt(request=CompletionRequest(prompts=("p" * 400,), **fields))
    stream.put([Delta(index, "p" * 400) for index in range(max(1, echoed))])
    assert stream.tally.output_tokens == (echoed or 100)


# Drains

DRAIN = DisconnectPolicy("drain", seconds=30, cost=1000)
WHOLE: list[Any] = [Delta(0, "b"), Used(Usage(3, 9))]


def row(disconnect: str) -> Target:
    return Target(msgspec.structs.replace(BUILT_IN[1], disconnect=disconnect), "m")


def draining(**changes: Any) -> tuple[Stream, Quiet]:
    """Return a stream that is being drained."""
    stream, attempt = a_stream(**{"disconnect": DRAIN, **changes}), Quiet()
    assert stream.attach(attempt, row(""), ())
    assert stream.put([Started("m", 3), Delta(0, "a")])
    assert stream.end("client_gone")
    return stream, attempt


@pytest.mark.parametrize(
    ("default", "own", "drains"),
    [
        ("cancel", "", False),
        ("drain", "", True),
        ("cancel", "drain", True),
        ("drain", "cancel", False),
    ],
)
def test_the_disconnect_policy_of_a_row_overrides_the_default(
    default: str, own: str, drains: bool
) -> None:
    stream, attempt = a_stream(disconnect=DisconnectPolicy(default)), Quiet()
    stream.attach(attempt, row(own), ())
    assert stream.end("client_gone")
    assert (attempt.aborts, attempt.wound_up) == ((0, 1) if drains else (1, 0))
    assert stream.put([Delta(0, "a")]) is drains
    assert stream.mailbox.take() == [End("client_gone")]


def test_a_drain_counts_usage_and_delivers_no_more_events() -> None:
    stream, attempt = draining()
    assert stream.put(WHOLE)
    assert not stream.end("client_gone")
    assert attempt.aborts == 0
    assert stream.tally.usage(failed=False) == Usage(3, 9)
    assert stream.mailbox.take() == [[Started("m", 3), Delta(0, "a")], End("client_gone")]


def test_a_reader_blocked_by_a_full_mailbox_drains_when_the_client_leaves() -> None:
    stream, attempt = with_attempt(disconnect=DRAIN)
    stream.attach(attempt, row(""), ())
    stream.put([Delta(0, "x" * BACKLOG)])
    results: list[bool] = []
    reader = threading.Thread(target=lambda: results.append(stream.put(WHOLE)))
    reader.start()
    stream.end("client_gone")
    reader.join(HANG_S)
    assert results == [True]
    assert stream.put([Delta(0, "x" * BACKLOG)])


@pytest.mark.parametrize("reason", ["stopped", "shutdown", "deadline"])
def test_a_stop_shutdown_or_deadline_ends_a_drain(reason: EndReason) -> None:
    stream, attempt = draining()
    assert stream.end(reason)
    assert not stream.end(reason)
    assert attempt.aborts == 1
    assert not stream.put(WHOLE)
    stream.drained()
    assert stream.mailbox.ended_by == "client_gone"
    assert stream.stopped is (reason == "stopped")


def test_drained_waits_for_the_end_of_the_drain() -> None:
    stream, attempt = draining()
    threading.Timer(0.02, stream.end, ["completed"]).start()
    began = time.monotonic()
    stream.drained()
    assert 0.01 < time.monotonic() - began < HANG_S
    assert attempt.aborts == 0
    assert stream.drain is not None
    assert stream.drain.ended_by == End("completed")


def test_drained_returns_when_the_reader_has_left() -> None:
    stream, _ = draining()
    stream.reader_left()
    stream.drained()


def test_drained_aborts_a_drain_past_its_time_limit() -> None:
    stream, attempt = draining(disconnect=DisconnectPolicy("drain", seconds=0.01))
    stream.drained()
    assert attempt.aborts == 1
    assert not stream.put(WHOLE)


def test_a_drain_above_its_cost_limit_ends() -> None:
    stream, _ = draining(cost=lambda target, usage: usage.output_tokens * 400)
    assert stream.put([Delta(0, "b")])
    assert stream.put([Delta(0, "c")])
    assert not stream.put([Delta(0, "d")])


@pytest.mark.parametrize(
    ("begun", "seconds", "ended"),
    [(True, 19, False), (True, 21, True), (False, 29, False), (False, 31, True)],
)
@pytest.mark.parametrize("full", [True, False])
def test_first_event_and_idle_timeouts_end_a_drain(
    begun: bool, seconds: float, ended: bool, full: bool
) -> None:
    stream, attempt = with_attempt(disconnect=DisconnectPolicy("drain", seconds=1000))
    stream.attach(attempt, row(""), ())
    if begun:
        stream.put([Delta(0, "x" * BACKLOG if full else "x")])
    stream.end("client_gone")
    stream.look(stream.deadlines.last_event + seconds)
    assert attempt.aborts == int(ended)


@pytest.mark.parametrize(("seconds", "ended"), [(98, False), (101, True)])
def test_the_total_timeout_ends_a_drain(seconds: float, ended: bool) -> None:
    stream, attempt = draining(disconnect=DisconnectPolicy("drain", seconds=1000))
    stream.deadlines.last_event = stream.opened + seconds
    stream.look(stream.opened + seconds)
    assert attempt.aborts == int(ended)


def test_look_aborts_a_drain_past_its_time_limit() -> None:
    stream, attempt = draining(disconnect=DisconnectPolicy("drain", seconds=2))
    stream.look(time.monotonic() + 3)
    assert attempt.aborts == 1


def test_a_call_that_never_started_or_is_complete_is_not_drained() -> None:
    early = a_stream(disconnect=DRAIN)
    early.end("client_gone")
    assert not early.attach(Quiet(), row("drain"), ())
    complete, attempt = with_attempt(disconnect=DRAIN)
    complete.put([Delta(0, "x")])
    complete.end("completed")
    assert complete.end("client_gone")
    for stream in (early, complete):
        assert stream.drain is None
        stream.drained()
    assert attempt.wound_up == 0


def test_a_stop_before_the_disconnect_starts_no_drain() -> None:
    stream, attempt = with_attempt(disconnect=DRAIN)
    stream.end("stopped")
    assert not stream.end("client_gone")
    assert attempt.aborts >= 1
    assert stream.drain is None


@pytest.mark.parametrize("removed", [True, False])
def test_a_drain_can_be_stopped_twice_by_its_id(removed: bool) -> None:
    registry = StreamRegistry(10)
    stream, attempt = draining()
    registry.add(stream)
    assert registry.of("key_1") == [stream]
    registry.stop("key_1", "s-1")
    if removed:
        registry.remove(stream)
    registry.stop("key_1", "s-1")
    assert attempt.aborts >= 1


# Timeouts and nudges


def test_look_does_nothing_within_the_timeouts() -> None:
    stream, attempt = with_attempt()
    stream.look(stream.opened + 29)
    stream.put([Delta(0, "x")])
    stream.look(stream.deadlines.last_event + 19)
    assert stream.mailbox.take() == [[Delta(0, "x")]]
    assert stream.expired is None
    assert attempt.aborts == 0


def test_the_first_event_timeout_aborts_the_attempt_and_not_the_call() -> None:
    stream, attempt = with_attempt()
    stream.look(stream.attempt_began + 31)
    assert stream.expired is not None
    assert (stream.expired.phase, stream.expired.details) == (
        "first_event",
        {"phase": "first_event", "seconds": 30},
    )
    assert attempt.aborts == 1
    assert stream.mailbox.ended_by is None


def test_a_fallback_attempt_has_its_own_first_event_timeout() -> None:
    stream, first = with_attempt()
    stream.look(stream.attempt_began + 31)
    second = Quiet()
    assert stream.attach(second, OTHER, ())
    assert stream.expired is None
    stream.look(stream.attempt_began + 29)
    assert (first.aborts, second.aborts) == (1, 0)
    assert stream.mailbox.ended_by is None


def test_an_attempt_that_does_not_end_when_aborted_ends_the_call() -> None:
    stream, attempt = with_attempt()
    stream.look(stream.attempt_began + 31)
    expired = stream.expired
    stream.look(stream.attempt_began + 32)
    assert stream.mailbox.take() == [End("deadline", expired)]
    assert attempt.aborts == 2


def test_the_total_timeout_ends_a_call_without_an_attempt() -> None:
    """For a queued call, the timeout of the first event doesn't count, but the total one does."""
    stream = a_stream()
    stream.look(stream.opened + 31)
    assert stream.mailbox.ended_by is None
    stream.look(stream.opened + 101)
    assert stream.mailbox.ended_by == "deadline"


def test_the_idle_timeout_aborts_an_attempt_silent_after_an_event() -> None:
    stream, attempt = with_attempt()
    stream.put([Delta(0, "x")])
    stream.look(stream.deadlines.last_event + 21)
    assert stream.expired is not None
    assert stream.expired.phase == "idle"
    assert attempt.aborts == 1


class Finishing(Quiet):
    """An attempt whose answer has finished: it can be ended once."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = 0

    def end_if_finished(self) -> bool:
        self.ends += 1
        return self.ends == 1


@pytest.mark.parametrize("seconds", [21.0, 101.0], ids=["idle", "total"])
def test_a_finished_answer_is_ended_at_its_deadline_and_not_aborted(seconds: float) -> None:
    stream, attempt = a_stream(), Finishing()
    assert stream.attach(attempt, TARGET, ())
    stream.put([Delta(0, "a")])
    stream.look(time.monotonic() + seconds)
    assert (attempt.ends, attempt.aborts, stream.expired, stream.ended) == (1, 0, None, False)
    stream.look(time.monotonic() + seconds)
    assert attempt.aborts == 1, "it didn't end, so it is aborted"


@pytest.mark.parametrize("batch", [[], [Thought(9)], [Started("m")], [Used(Usage(3, 1))]])
def test_invisible_events_reset_the_idle_timeout_and_stay_in_the_stream(batch: Batch) -> None:
    stream, attempt = with_attempt()
    before = stream.deadlines.last_event
    assert stream.put(batch)
    assert stream.attempts[0].first_event is not None
    assert stream.deadlines.last_event > before
    assert stream.first_visible is None
    stream.look(time.monotonic() + 19)
    assert attempt.aborts == 0
    stream.end("stopped")
    assert stream.mailbox.take() == [End("stopped")]
    assert not stream.put(batch), "the reader must leave"


def test_an_attempt_at_a_whole_answer_replaces_what_the_last_one_sent() -> None:
    stream, _ = with_attempt(request=CompletionRequest(prompts=("a", "b")))
    assert stream.put([Delta(0, "lost")])
    stream.detach(None)
    assert stream.attach(Quiet(), OTHER, ())
    assert stream.first_visible is None
    assert stream.put([Delta(0, "kept")])
    assert stream.mailbox.take() == [Nudge.RESTARTED, [Delta(0, "kept")]]


def test_the_idle_timeout_does_not_run_while_the_mailbox_is_full() -> None:
    stream, attempt = with_attempt()
    stream.put([Delta(0, "x" * BACKLOG)])
    assert stream.mailbox.full
    stream.look(stream.deadlines.last_event + 21)
    assert attempt.aborts == 0
    stream.mailbox.take()
    stream.look(stream.deadlines.last_event + 21)
    assert attempt.aborts == 1


@pytest.mark.parametrize("begun", [True, False])
def test_the_total_timeout_ends_a_call_with_its_fallback_attempt(begun: bool) -> None:
    stream, _ = with_attempt()
    attempt = Quiet()
    stream.attach(attempt, OTHER, ())
    if begun:
        stream.put([Delta(0, "x")])
        stream.mailbox.take()
    stream.look(stream.opened + 101)
    (end,) = stream.mailbox.take()
    assert isinstance(end, End)
    assert end.reason == "deadline"
    assert isinstance(end.error, UpstreamTimeout)
    assert end.error.phase == "total"
    assert attempt.aborts == 1


def test_no_timeout_ends_a_complete_answer_that_is_undelivered() -> None:
    stream, _ = with_attempt()
    stream.put([Delta(0, "x")])
    stream.end("completed")
    for later in (21, 22, 101, 1000):
        stream.look(stream.deadlines.last_event + later)
    assert stream.mailbox.take() == [[Delta(0, "x")], End("completed")]


def test_the_held_status_line_is_released_once_after_its_hold_time() -> None:
    stream, _ = with_attempt(hold=10)
    stream.look(stream.opened + 9)
    stream.look(stream.opened + 10)
    assert stream.mailbox.take() == [Nudge.RELEASE]
    stream.look(stream.opened + 11)
    stream.end("stopped")
    assert stream.mailbox.take() == [End("stopped")]


def test_no_release_nudge_is_sent_after_the_first_event() -> None:
    stream, _ = with_attempt(hold=10)
    stream.put([Delta(0, "x")])
    stream.look(stream.opened + 11)
    assert stream.mailbox.take() == [[Delta(0, "x")]]


def test_keep_alive_nudges_are_sent_at_intervals() -> None:
    stream, _ = with_attempt(keepalive=15)
    for seconds, nudged in [(14, False), (15, True), (16, False), (29, False), (30, True)]:
        stream.look(stream.opened + seconds)
        assert drained(stream) == ([Nudge.KEEP_ALIVE] if nudged else [])


def drained(stream: Stream) -> list[Any]:
    """Return the messages in the mailbox without waiting for any."""
    stream.mailbox.nudge(Nudge.RELEASE)
    return [message for message in stream.mailbox.take() if message is not Nudge.RELEASE]


def test_a_write_delays_the_next_keep_alive() -> None:
    stream, _ = with_attempt(keepalive=15)
    stream.deadlines.last_write = stream.opened + 10
    stream.look(stream.opened + 24)
    assert drained(stream) == []
    stream.look(stream.opened + 25)
    assert drained(stream) == [Nudge.KEEP_ALIVE]


# The registry


def test_a_key_sees_its_own_calls_oldest_first() -> None:
    registry = StreamRegistry(10)
    first, second = a_stream(stream_id="a"), a_stream(stream_id="b")
    foreign = a_stream(stream_id="a", key_id="key_2")
    for stream in (first, foreign, second):
        registry.add(stream)
    assert registry.of("key_1") == [first, second]
    assert registry.of("key_2") == [foreign]
    assert registry.of("key_3") == []
    assert len(registry) == 3
    registry.remove(first)
    registry.remove(first)
    assert registry.of("key_1") == [second]
    assert len(registry) == 2


def test_a_stream_id_is_in_use_while_its_call_is_active() -> None:
    registry, stream = StreamRegistry(10), a_stream()
    registry.add(stream)
    with pytest.raises(StreamExists):
        registry.add(a_stream())
    registry.remove(stream)
    registry.add(a_stream())


def test_calls_above_the_limit_are_refused_until_a_call_ends() -> None:
    registry, stream = StreamRegistry(2, per_key=9), a_stream(stream_id="a")
    registry.add(stream)
    registry.add(a_stream(stream_id="b"))
    with pytest.raises(Unavailable) as caught:
        registry.add(a_stream(stream_id="c"))
    assert caught.value.headers == {"Retry-After": "1"}
    assert len(registry) == 2
    registry.remove(stream)
    registry.add(a_stream(stream_id="c"))


def test_a_call_is_not_registered_when_the_sweeper_cannot_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    registry = StreamRegistry(2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            registry.add(a_stream())
    assert len(registry) == 0
    registry.add(a_stream())


# The queue


class Queue:
    """A registry with one slot, and calls that wait for it, each in its own thread."""

    def __init__(self, size: int = 9, limit: int = 1) -> None:
        self.registry = StreamRegistry(limit, queue=size, per_key=99)
        self.begun: list[str] = []
        self.refused: list[str] = []
        self.threads: list[threading.Thread] = []

    def enter(self, name: str, patience: float = HANG_S) -> Stream:
        """Add a call. Return once it is queued, has started, or has been refused."""
        stream = a_stream(stream_id=name)
        self.registry.add(stream)
        before = len(self.begun) + len(self.refused) + len(self.registry._waiting)
        thread = threading.Thread(target=self._wait, args=(stream, patience))
        thread.start()
        self.threads.append(thread)
        assert eventually(
            lambda: len(self.begun) + len(self.refused) + len(self.registry._waiting) > before
        )
        return stream

    def _wait(self, stream: Stream, patience: float) -> None:
        granted = self.registry.await_turn(stream, patience)
        (self.begun if granted else self.refused).append(stream.id)

    def settle(self) -> None:
        for thread in self.threads:
            thread.join(HANG_S)
            assert not thread.is_alive()


def test_queued_calls_start_in_the_order_of_their_arrival() -> None:
    queue = Queue()
    calls = [queue.enter(name) for name in "abcd"]
    for number, stream in enumerate(calls, 1):
        assert eventually(lambda: len(queue.begun) == number)  # noqa: B023
        queue.registry.remove(stream)
    queue.settle()
    assert queue.begun == list("abcd")
    assert (queue.registry._running, len(queue.registry)) == (set(), 0)


def test_a_call_that_waits_too_long_leaves_the_queue() -> None:
    queue = Queue()
    first, late = queue.enter("a"), queue.enter("b", patience=0.01)
    assert eventually(lambda: queue.refused == ["b"])
    third = queue.enter("c")
    queue.registry.remove(late)
    assert queue.begun == ["a"]
    queue.registry.remove(first)
    queue.settle()
    assert queue.begun == ["a", "c"]
    queue.registry.remove(third)
    assert queue.registry._running == set()


@pytest.mark.parametrize("removed", [True, False])
def test_the_turn_of_an_ended_call_passes_to_the_next_call(removed: bool) -> None:
    """The writer may even remove the call before its reader wakes up."""
    queue = Queue()
    first = queue.enter("a")
    gone = a_stream(stream_id="b")
    queue.registry.add(gone)
    queue.registry._waiting.append(gone)  # its reader has not woken yet
    third = queue.enter("c")
    gone.end("stopped")
    if removed:
        queue.registry.remove(gone)
    queue.registry.remove(first)
    queue.settle()
    assert queue.begun == ["a", "c"]
    queue.registry.remove(gone)
    queue.registry.remove(third)
    assert (queue.registry._running, len(queue.registry._waiting)) == (set(), 0)


@pytest.mark.parametrize("removed", [True, False])
def test_an_ended_call_takes_no_turn(removed: bool) -> None:
    registry, stream = StreamRegistry(1), a_stream()
    registry.add(stream)
    stream.end("stopped")
    if removed:
        registry.remove(stream)
    assert not registry.await_turn(stream, HANG_S)
    assert registry._running == set()


def test_a_turn_granted_while_the_wait_times_out_is_kept() -> None:
    registry = StreamRegistry(1, queue=1, per_key=9)
    first, second = a_stream(stream_id="a"), a_stream(stream_id="b")
    for stream in (first, second):
        registry.add(stream)
    assert registry.await_turn(first, 0)

    def give_up(patience: float) -> bool:
        registry.remove(first)
        return False

    second.turn.wait = give_up  # type: ignore[method-assign, assignment]
    assert registry.await_turn(second, 1)
    assert registry._running == {second}


def test_a_queued_call_can_be_stopped_and_gets_keep_alives() -> None:
    queue = Queue()
    queue.enter("a")
    waiting = a_stream(stream_id="b", keepalive=15, hold=10)
    queue.registry.add(waiting)
    thread = threading.Thread(target=queue._wait, args=(waiting, HANG_S))
    thread.start()
    waiting.look(waiting.opened + 16)
    assert waiting.mailbox.take() == [Nudge.RELEASE, Nudge.KEEP_ALIVE]
    began = time.monotonic()
    queue.registry.stop("key_1", "b")
    thread.join(HANG_S)
    assert time.monotonic() - began < 1
    assert queue.refused == ["b"]
    queue.registry.remove(queue.registry.of("key_1")[0])


def test_many_concurrent_calls_leave_the_registry_empty() -> None:
    """A leaked slot would reduce the server's capacity for good."""
    registry = StreamRegistry(3, queue=1000, per_key=2000)
    most, running = 0, 0
    lock = threading.Lock()

    def live(number: int) -> None:
        nonlocal most, running
        stream = a_stream(stream_id=f"s-{number}")
        registry.add(stream)
        if number % 3 == 0:
            threading.Timer(0.002 * (number % 5), stream.end, ["stopped"]).start()
        if registry.await_turn(stream, 0.001 * (number % 7) if number % 2 else HANG_S):
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.001)
            with lock:
                running -= 1
        registry.remove(stream)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
        assert not thread.is_alive()
    assert most <= 3
    assert (registry._running, len(registry._waiting), len(registry)) == (set(), 0, 0)
    assert registry._of_key == {}


@pytest.mark.parametrize(
    ("limit", "queue", "per_key", "own", "share"),
    [
        (10, 0, None, None, 8),
        (10, 10, None, None, 16),
        (1, 0, None, None, 1),
        (10, 10, 3, None, 3),
        (10, 10, 3, 5, 5),
        (10, 10, None, 2, 2),
    ],
)
def test_a_key_is_limited_to_its_share_of_concurrent_calls(
    limit: int, queue: int, per_key: int | None, own: int | None, share: int
) -> None:
    registry = StreamRegistry(limit, queue=queue, per_key=per_key)
    calls = [a_stream(stream_id=f"s-{number}") for number in range(share)]
    for stream in calls:
        registry.add(stream, own)
    if share < limit + queue:
        with pytest.raises(RateLimited) as caught:
            registry.add(a_stream(stream_id="more"), own)
        assert caught.value.headers == {"Retry-After": "1"}
        details = caught.value.details or {}
        assert (details["limit_type"], details["limit"]) == ("concurrency", share)
        registry.add(a_stream(key_id="key_2"))
        registry.remove(calls[0])
        registry.add(a_stream(stream_id="more"), own)


# Stop


def test_a_stopped_call_ends_at_once() -> None:
    registry = StreamRegistry(10)
    stream, attempt = with_attempt()
    registry.add(stream)
    registry.stop("key_1", "s-1")
    assert stream.mailbox.take() == [End("stopped")]
    assert attempt.aborts == 1


@pytest.mark.parametrize("removed", [True, False])
def test_a_repeated_stop_succeeds_for_a_minute(
    monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    clock = Clock(monkeypatch)
    registry, stream = StreamRegistry(10), a_stream()
    registry.add(stream)
    registry.stop("key_1", "s-1")
    if removed:
        registry.remove(stream)
    clock.now += 59
    registry.stop("key_1", "s-1")
    clock.now += 2
    if removed:
        with pytest.raises(StreamNotFound):
            registry.stop("key_1", "s-1")
    else:
        registry.stop("key_1", "s-1")


class Clock:
    """A clock for registry.py that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        seen = SimpleNamespace(monotonic=lambda: self.now, time=time.time, sleep=time.sleep)
        monkeypatch.setattr(registry, "time", seen)


@pytest.mark.parametrize(("key_id", "stream_id"), [("key_1", "other"), ("key_2", "s-1")])
def test_stop_reports_unknown_calls_and_calls_of_other_keys_as_not_found(
    key_id: str, stream_id: str
) -> None:
    registry, stream = StreamRegistry(10), a_stream()
    registry.add(stream)
    with pytest.raises(StreamNotFound) as caught:
        registry.stop(key_id, stream_id)
    assert caught.value.message == "No active stream has this id. It may have finished already."
    assert stream.mailbox.ended_by is None


@pytest.mark.parametrize("reason", ["provider_error", "deadline", "client_gone", "shutdown"])
def test_a_call_that_has_ended_cannot_be_stopped(reason: EndReason) -> None:
    registry, stream = StreamRegistry(10), a_stream()
    registry.add(stream)
    stream.end(reason)
    with pytest.raises(StreamNotFound):
        registry.stop("key_1", "s-1")


def test_a_complete_but_undelivered_answer_can_still_be_stopped() -> None:
    registry = StreamRegistry(10)
    stream, _ = with_attempt()
    registry.add(stream)
    stream.put([Delta(0, "x")])
    stream.end("completed")
    registry.stop("key_1", "s-1")
    assert stream.mailbox.take() == [End("stopped")]


def test_a_delivered_answer_cannot_be_stopped() -> None:
    registry = StreamRegistry(10)
    stream, _ = with_attempt()
    registry.add(stream)
    stream.end("completed")
    stream.mailbox.take()
    with pytest.raises(StreamNotFound):
        registry.stop("key_1", "s-1")


def test_a_request_id_stops_all_its_calls_and_may_be_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    registry = StreamRegistry(10)
    found = [a_stream(stream_id=name, request_id="r") for name in ("a", "b")]
    others = [a_stream(stream_id="c", request_id="x"), a_stream(request_id="r", key_id="key_2")]
    for stream in (*found, *others):
        registry.add(stream)
    registry.stop("key_1", "r")
    assert [stream.mailbox.ended_by for stream in found] == ["stopped"] * 2
    assert [stream.mailbox.ended_by for stream in others] == [None] * 2
    for stream in found:
        registry.remove(stream)
    clock.now += 59
    registry.stop("key_1", "r")
    clock.now += 2
    with pytest.raises(StreamNotFound):
        registry.stop("key_1", "r")


def test_a_stream_id_wins_over_the_request_id_of_another_call() -> None:
    registry = StreamRegistry(10)
    named, requested = a_stream(stream_id="x"), a_stream(stream_id="y", request_id="x")
    for stream in (named, requested):
        registry.add(stream)
    registry.stop("key_1", "x")
    assert (named.mailbox.ended_by, requested.mailbox.ended_by) == ("stopped", None)
    registry.remove(named)
    registry.stop("key_1", "x")  # a repeated stop of the stream
    assert requested.mailbox.ended_by is None


def test_a_request_id_of_a_call_that_has_ended_is_not_found() -> None:
    registry, stream = StreamRegistry(10), a_stream(request_id="r")
    registry.add(stream)
    stream.end("deadline")
    with pytest.raises(StreamNotFound):
        registry.stop("key_1", "r")


def test_a_new_call_with_a_stopped_id_does_not_count_as_stopped() -> None:
    registry, old = StreamRegistry(10), a_stream()
    registry.add(old)
    registry.stop("key_1", "s-1")
    registry.remove(old)
    new = a_stream()
    registry.add(new)
    new.end("completed")
    new.mailbox.take()
    with pytest.raises(StreamNotFound):
        registry.stop("key_1", "s-1")


def test_two_concurrent_stops_both_succeed() -> None:
    """The second stop arrives before the first one has been recorded."""
    registry, stream = StreamRegistry(10), a_stream()
    registry.add(stream)
    stream.end("stopped")
    registry.stop("key_1", "s-1")


def test_shutdown_ends_all_calls_with_an_unavailable_error() -> None:
    registry = StreamRegistry(10)
    calls = [a_stream(stream_id=name) for name in "abc"]
    for stream in calls:
        registry.add(stream)
    registry.end_all()
    for stream in calls:
        (end,) = stream.mailbox.take()
        assert isinstance(end, End)
        assert end.reason == "shutdown"
        assert isinstance(end.error, Unavailable)


# The sweeper


def test_the_sweeper_survives_a_failing_call_and_forgets_old_stops(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streams.registry.SWEEP_S", 0.001)
    monkeypatch.setattr("streams.registry.REMEMBER_STOPPED_S", 0.0)

    def fail(now: float) -> None:
        raise OSError("odd")

    registry = StreamRegistry(10)
    odd, late, stopped = (a_stream(stream_id=name, request_id=name) for name in ("a", "b", "c"))
    odd.look = fail  # type: ignore[method-assign]
    late.deadlines.opened -= 1000
    with caplog.at_level(logging.ERROR, "sluice.streams"):
        for stream in (odd, late, stopped):
            registry.add(stream)
        registry.stop("key_1", "c")
        assert eventually(lambda: late.mailbox.ended_by == "deadline")
        assert eventually(lambda: registry._stopped == {})
        registry.remove(odd)
    found = [record for record in caplog.records if record.message == "sweep failed"]
    assert found
    assert {record.__dict__["request_id"] for record in found} == {"a"}


def test_one_sweeper_serves_all_calls() -> None:
    registry = StreamRegistry(10)
    registry.add(a_stream(stream_id="a"))
    sweeper = registry._sweeper
    registry.add(a_stream(stream_id="b"))
    assert registry._sweeper is sweeper
    thread = sweeper._thread
    assert thread is not None
    assert thread.daemon
    sweeper.start()
    assert sweeper._thread is thread


# Clients that hang up


def tcp_pair(family: socket.AddressFamily = socket.AF_INET) -> tuple[socket.socket, socket.socket]:
    """Return the server's socket and the client's socket of a connection."""
    with socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0),
                              family=family) as listener:  # fmt: skip
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
    return server, client


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def say_goodbye(sock: socket.socket) -> None:
    sock.sendall(b"GET / HTTP/1.1")
    sock.close()


PAIRS = [tcp_pair, unix_pair]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_client_that_waits_or_sends_has_not_hung_up(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    server, client = pair()
    with closing(server), closing(client):
        server.settimeout(7)
        assert not hung_up(server)
        client.sendall(b"GET / HTTP/1.1")
        assert not hung_up(server)
        assert server.gettimeout() == 7
        assert server.recv(100) == b"GET / HTTP/1.1"


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("leave", [socket.socket.close, half_close])
def test_a_client_that_closes_or_half_closes_has_hung_up(
    pair: Callable[[], tuple[socket.socket, socket.socket]], leave: Callable[[socket.socket], None]
) -> None:
    server, client = pair()
    with closing(server), closing(client):
        server.settimeout(7)
        leave(client)
        assert eventually(lambda: hung_up(server))
        assert server.gettimeout() == 7


@pytest.mark.parametrize("leave", [reset, say_goodbye])
def test_a_tcp_reset_or_a_close_behind_unread_bytes_is_a_hang_up(
    leave: Callable[[socket.socket], None],
) -> None:
    server, client = tcp_pair()
    with closing(server):
        leave(client)
        assert eventually(lambda: hung_up(server))


def test_a_hang_up_is_detected_over_ipv6() -> None:
    try:
        server, client = tcp_pair(socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with closing(server), closing(client):
        assert not hung_up(server)
        half_close(client)
        assert eventually(lambda: hung_up(server))


@pytest.mark.parametrize("pair", PAIRS)
def test_a_socket_closed_by_the_server_counts_as_hung_up(
    pair: Callable[[], tuple[socket.socket, socket.socket]],
) -> None:
    server, client = pair()
    client.close()
    server.close()
    assert hung_up(server)
    shut(server)


@pytest.mark.parametrize("leave", [socket.socket.close, half_close, reset])
def test_a_peek_detects_a_hang_up_where_tcp_info_is_missing(
    monkeypatch: pytest.MonkeyPatch, leave: Callable[[socket.socket], None]
) -> None:
    monkeypatch.setattr("streams.disconnect.sys.platform", "darwin")
    server, client = tcp_pair()
    with closing(server), closing(client):
        assert not hung_up(server)
        leave(client)
        assert eventually(lambda: hung_up(server))


def test_a_socket_that_cannot_be_peeked_counts_as_connected() -> None:
    class Tls(socket.socket):
        def recv(self, *_: Any) -> bytes:
            raise ValueError("non-zero flags not allowed in calls to recv() on SSLSocket")

    with Tls(socket.AF_UNIX) as server:
        server.settimeout(7)
        assert not hung_up(server)
        assert server.gettimeout() == 7


def test_a_client_hang_up_ends_the_call_and_shuts_its_socket() -> None:
    server, client = tcp_pair()
    stream, attempt = with_attempt(client=server)
    with closing(server):
        stream.look(stream.opened)
        assert stream.mailbox.ended_by is None
        client.close()
        assert eventually(lambda: hung_up(server))
        stream.look(stream.opened)
        assert stream.mailbox.take() == [End("client_gone")]
        assert attempt.aborts == 1
        with pytest.raises(OSError, match="Broken pipe"):
            server.send(b"x")
