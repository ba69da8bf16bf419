"""FanOut: several prompts for a target that accepts only one per request.

- Attempts are scripted. They block until they are aborted or the test opens their gate.
- Nothing waits for longer than HANG_S, and no test may leave a thread behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest

from completion import (
    Batch,
    Completion,
    Delta,
    Event,
    Finished,
    Logprobs,
    Started,
    Usage,
    Used,
    flatten,
    fold,
)
from errors import RateLimited, SluiceError, UpstreamError
from providers.fanout import AT_ONCE, QUEUE_SIZE, BatchMerge, FanOut
from providers.transport.abort import Aborted
from streams.tally import Tally
from tests.support.pace import HANG_S, scaled

PROMPT_S = scaled(0.5)


class ScriptedCall:
    """An attempt that yields scripted batches, and then ends, fails or waits.

    Args:
        failure: the exception to raise after the batches.
        hold: True to wait for the abort after the batches.
        hush: True to end quietly when aborted, as `local` does. An attempt over HTTP raises.
        gate: an event to wait for before the first batch.
    """

    def __init__(
        self,
        batches: Sequence[Batch] = (),
        *,
        failure: BaseException | None = None,
        hold: bool = False,
        hush: bool = False,
        gate: threading.Event | None = None,
    ) -> None:
        self._batches = batches
        self._failure = failure
        self._hold = hold
        self._hush = hush
        self._gate = gate
        self._aborted = threading.Event()
        self._lock = threading.Lock()
        self.started = self.yielded = self.aborts = self.closes = 0
        self.threads: set[str] = set()

    def events(self) -> Iterator[Batch]:
        self.started += 1
        self.threads.add(threading.current_thread().name)
        self._wait(self._gate)
        for batch in self._batches:
            self._check()
            self.yielded += 1
            yield batch
        if self._failure is not None:
            raise self._failure
        if self._hold:
            self._wait(self._aborted)
        self._check()

    def abort(self) -> None:
        with self._lock:
            self.aborts += 1
        self._aborted.set()

    def end_if_finished(self) -> bool:
        return False

    def wind_up(self) -> None:
        pass

    def close(self) -> None:
        self.threads.add(threading.current_thread().name)
        with self._lock:
            self.closes += 1

    @property
    def running(self) -> bool:
        return self.started > 0 and not self.closes

    def _wait(self, event: threading.Event | None) -> None:
        deadline = time.monotonic() + HANG_S
        while event is not None and not event.wait(0.002) and not self._aborted.is_set():
            assert time.monotonic() < deadline
        self._check()

    def _check(self) -> None:
        if self._aborted.is_set() and not self._hush:
            raise Aborted


def one_choice(text: str, usage: Usage | None = None) -> list[Batch]:
    """Return the batches of an attempt that produces one choice."""
    used: list[Event] = [] if usage is None else [Used(usage)]
    return [[Started("m", 3)], [Delta(0, text)], [Finished(0, "stop"), *used]]


def fan(attempts: Sequence[ScriptedCall], n: int = 1) -> FanOut:
    def maker(attempt: ScriptedCall) -> Callable[[], ScriptedCall]:
        return lambda: attempt

    return FanOut([maker(attempt) for attempt in attempts], tallies(len(attempts)), n)


def tallies(count: int) -> list[Tally]:
    """Return tallies for prompts of ten tokens each."""
    return [Tally(("p" * 40,)) for _ in range(count)]


def texts(completion: Completion) -> list[tuple[int, str]]:
    return [(choice.index, choice.text) for choice in completion.choices]


def wait(condition: Callable[[], bool], timeout: float = HANG_S) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait(lambda: set(threading.enumerate()) <= before)


class Reader:
    """A thread that reads a fan-out, as the gateway does."""

    def __init__(self, fanout: FanOut) -> None:
        self.events: list[Event] = []
        self.failure: BaseException | None = None
        self.ended_at = 0.0
        self._fanout = fanout
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            for batch in self._fanout.events():
                self.events += batch
        except (SluiceError, Aborted) as failure:
            self.failure = failure
        finally:
            self.ended_at = time.monotonic()
            self._fanout.close()

    def join(self) -> None:
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()


# Numbering and usage


@pytest.mark.parametrize("count", [1, 2, AT_ONCE, AT_ONCE + 1, 40])
def test_choice_of_each_prompt_gets_the_index_of_its_prompt(count: int) -> None:
    fanout = fan([ScriptedCall(one_choice(f"t{number}")) for number in range(count)])
    completion = fold(flatten(fanout.events()))
    fanout.close()
    assert texts(completion) == [(number, f"t{number}") for number in range(count)]
    assert {choice.finish_reason for choice in completion.choices} == {"stop"}


def test_choices_are_numbered_prompt_by_prompt_when_n_is_3() -> None:
    def choices_of(name: str) -> list[Batch]:
        deltas: Batch = [Delta(2, f"{name}2"), Delta(0, f"{name}0"), Delta(1, f"{name}1")]
        return [[Started()], deltas, [Finished(index, "length") for index in range(3)]]

    completion = fold(
        flatten(fan([ScriptedCall(choices_of("a")), ScriptedCall(choices_of("b"))], n=3).events())
    )
    assert texts(completion) == [*enumerate(["a0", "a1", "a2", "b0", "b1", "b2"])]
    assert [choice.finish_reason for choice in completion.choices] == ["length"] * 6


def test_merge_renumbers_events_and_keeps_logprobs_and_finish_reasons() -> None:
    logprobs = Logprobs(["a"], [-1.0], None, [0])
    merge = BatchMerge(tallies(3), 2)
    assert merge.add(2, [Delta(1, "a", logprobs)]) == [Delta(5, "a", logprobs)]
    assert merge.add(0, [Finished(1, "content_filter")]) == [Finished(1, "content_filter")]


def test_merge_sums_the_input_tokens_of_the_started_calls() -> None:
    merge = BatchMerge(tallies(3), 1)
    assert merge.add(1, [Started("m", 3), Delta(0, "a")]) == [Started("m", 3), Delta(1, "a")]
    assert merge.add(0, [Started("m")]) == [Started("m", 13)]


def estimated(*tokens: Any) -> Batch:
    return [Used(msgspec.structs.replace(Usage(*tokens), source="estimate"))]


def test_merged_usage_is_the_sum_over_all_prompts() -> None:
    merge = BatchMerge(tallies(3), 1)
    assert merge.add(0, [Used(Usage(1, 2, 3, 4, 5))]) == estimated(1, 2, 3, 4, 5)
    assert merge.add(2, [Used(Usage(10, 20, 30, 40, 50))]) == estimated(11, 22, 33, 44, 55)
    assert merge.add(1, [Used(Usage(100, 200))]) == [Used(Usage(111, 222, 33, 44, 55))]


def test_last_usage_report_of_each_prompt_counts() -> None:
    merge = BatchMerge(tallies(2), 1)
    merge.add(0, [Used(Usage(1, 1)), Used(Usage(1, 2))])
    assert merge.add(1, [Used(Usage(5, 1))]) == [Used(Usage(6, 3))]
    assert merge.add(0, [Used(Usage(1, 9))]) == [Used(Usage(6, 10))]


def test_unreported_usage_of_a_prompt_is_estimated() -> None:
    merge = BatchMerge(tallies(2), 1)
    merge.add(0, [Started(), Delta(0, "a" * 20)])
    assert merge.add(1, [Delta(0, "b"), Used(Usage(5, 1))]) == [
        Delta(1, "b"), *estimated(10 + 5, 5 + 1)
    ]  # fmt: skip
    assert merge.add(0, [Used(Usage(8, 6))]) == [Used(Usage(13, 7))]
    merge.add(0, [Delta(0, "a" * 20)])
    assert merge.add(1, [Used(Usage(5, 1))]) == estimated(13, 7 + 5)


def test_echoed_prompt_does_not_count_as_output_tokens() -> None:
    merge = BatchMerge([Tally(("p" * 40,), echoes=1) for _ in range(2)], 1)
    merge.add(0, [Delta(0, "p" * 40 + "a" * 8)])
    assert merge.add(1, [Used(Usage(10, 3))]) == estimated(20, 2 + 3)


def test_merged_usage_is_an_estimate_when_a_prompt_reports_none() -> None:
    fanout = fan([ScriptedCall(one_choice("a", Usage(1, 2))), ScriptedCall(one_choice("b"))])
    usage = fold(flatten(fanout.events())).usage
    assert usage is not None
    assert usage.source == "estimate"


def test_a_failure_has_the_usage_of_all_prompts() -> None:
    failure = UpstreamError("The upstream sent 1 of the 2 requested choices.", unsupported="n")
    failure.usage = Usage(5, 2)
    calls = [ScriptedCall([[Used(Usage(3, 1))]]), ScriptedCall(failure=failure)]
    fanout = FanOut([partial(next, iter([call])) for call in calls], tallies(2), 2)
    with pytest.raises(UpstreamError) as raised:
        list(fanout.events())
    assert raised.value.usage is not None
    assert raised.value.usage.output_tokens in (2, 3)  # depends on which prompt is faster
    assert raised.value.usage.input_tokens in (5, 8)


def test_fanout_yields_no_empty_batch() -> None:
    quiet: list[Batch] = [[Started()], [Used(Usage(1, 1))], [Delta(0, "a"), Finished(0, "stop")]]
    assert all(fan([ScriptedCall(quiet), ScriptedCall(quiet)]).events())


# Concurrency


def test_at_most_eight_prompts_run_at_once() -> None:
    assert AT_ONCE == 8
    gates = [threading.Event() for _ in range(20)]
    attempts = [ScriptedCall(one_choice("a"), gate=gate) for gate in gates]
    reader = Reader(fan(attempts))
    for started in (*range(AT_ONCE, len(attempts)), *[len(attempts)] * AT_ONCE):
        wait(partial(has_started, attempts, started))
        assert sum(attempt.running for attempt in attempts) <= AT_ONCE
        next(gate for gate in gates if not gate.is_set()).set()
    reader.join()
    assert len({choice.index for choice in fold(reader.events).choices}) == 20
    assert [attempt.started for attempt in attempts] == [1] * 20


def has_started(attempts: Sequence[ScriptedCall], count: int) -> bool:
    return sum(attempt.started for attempt in attempts) == count


def test_fanout_starts_a_thread_per_prompt_and_none_before_reading() -> None:
    attempts = [ScriptedCall(one_choice("a"), hold=True) for _ in range(3)]
    before = threading.active_count()
    fanout = fan(attempts)
    assert threading.active_count() == before  # no attempt starts before the fan-out is read
    reader = Reader(fanout)
    wait(lambda: all(attempt.running for attempt in attempts))
    assert threading.active_count() == before + 1 + 3
    fanout.abort()
    reader.join()


def test_quick_prompt_does_not_wait_for_a_slow_prompt() -> None:
    gate = threading.Event()
    slow, quick = ScriptedCall(one_choice("slow"), gate=gate), ScriptedCall(one_choice("quick"))
    reader = Reader(fan([slow, quick]))
    wait(lambda: Finished(1, "stop") in reader.events)
    assert not any(isinstance(e, Delta) and e.index == 0 for e in reader.events)
    gate.set()
    reader.join()
    assert texts(fold(reader.events)) == [(0, "slow"), (1, "quick")]


# Failure


@pytest.mark.parametrize("count", [2, AT_ONCE, 30])
def test_first_failure_aborts_all_other_prompts(count: int) -> None:
    failure = UpstreamError("down", upstream_status=503)
    attempts = [ScriptedCall(one_choice("a"), hold=True) for _ in range(count - 1)]
    attempts.insert(1, ScriptedCall(failure=failure))
    reader = Reader(fan(attempts))
    reader.join()
    assert reader.failure is failure
    wait_closed(attempts)
    others = [attempt for attempt in attempts if attempt is not attempts[1]]
    assert all(attempt.aborts for attempt in others if attempt.started)
    assert [a.closes for a in attempts] == [a.started for a in attempts]


def test_events_before_a_failure_are_delivered() -> None:
    failing = ScriptedCall([[Started(None, 1)], [Delta(0, "half")]], failure=UpstreamError("down"))
    reader = Reader(fan([failing, ScriptedCall(hold=True)]))
    reader.join()
    assert reader.events == [Started(None, 1), Delta(0, "half")]


def test_failure_of_a_queued_prompt_is_raised() -> None:
    failure = RateLimited("Slowly.", retry_after=1)
    attempts = [ScriptedCall(one_choice("a")) for _ in range(20)]
    reader = Reader(fan([*attempts, ScriptedCall(failure=failure)]))
    reader.join()
    assert reader.failure is failure


def test_first_of_several_failures_is_raised() -> None:
    first, second = UpstreamError("first"), UpstreamError("second")
    gate = threading.Event()
    late = ScriptedCall(failure=second, gate=gate)
    reader = Reader(fan([late, ScriptedCall(failure=first)]))
    reader.join()
    gate.set()
    assert reader.failure is first


def test_unexpected_exception_in_a_prompt_is_raised_to_the_reader() -> None:
    fanout = fan([ScriptedCall(failure=KeyError("ours")), ScriptedCall(hold=True)])
    with pytest.raises(KeyError):
        list(fanout.events())
    fanout.close()


def test_failing_attempt_maker_ends_the_other_prompts() -> None:
    other = ScriptedCall(hold=True)

    def refuse() -> ScriptedCall:
        raise UpstreamError("no")

    fanout = FanOut([lambda: other, refuse], tallies(2), 1)
    with pytest.raises(UpstreamError):
        list(fanout.events())
    fanout.close()
    wait_closed([other])


# Wind-up, abort and close


@pytest.mark.parametrize("count", [1, AT_ONCE, AT_ONCE + 5])
def test_wind_up_lets_started_prompts_finish_and_starts_no_others(count: int) -> None:
    gate = threading.Event()
    attempts = [ScriptedCall(one_choice("a", Usage(1, 2)), gate=gate) for _ in range(count)]
    fanout = fan(attempts)
    reader = Reader(fanout)
    running = min(count, AT_ONCE)
    wait(partial(has_started, attempts, running))
    fanout.wind_up()
    fanout.wind_up()
    gate.set()
    reader.join()
    assert reader.failure is None
    completion = fold(reader.events)
    assert len(completion.choices) == running
    assert completion.usage == Usage(running, 2 * running)
    assert has_started(attempts, running)


def test_wind_up_before_the_start_runs_no_prompt() -> None:
    attempt = ScriptedCall(one_choice("a"))
    fanout = fan([attempt])
    fanout.wind_up()
    assert list(fanout.events()) == []
    assert attempt.started == 0


@pytest.mark.parametrize("hush", [False, True])
@pytest.mark.parametrize("count", [1, 5, 30])
def test_abort_ends_the_fanout_at_once_and_closes_started_attempts(
    count: int, *, hush: bool
) -> None:
    attempts = [ScriptedCall(one_choice("a"), hold=True, hush=hush) for _ in range(count)]
    fanout = fan(attempts)
    reader = Reader(fanout)
    busy = min(count, AT_ONCE)
    wait(lambda: sum(isinstance(e, Finished) for e in reader.events) == busy)
    began = time.monotonic()
    fanout.abort()
    reader.join()
    assert reader.ended_at - began < PROMPT_S
    assert reader.failure is None
    wait_closed(attempts, PROMPT_S)
    assert sum(attempt.started for attempt in attempts) == busy
    assert all(attempt.aborts for attempt in attempts if attempt.started)
    assert [a.closes for a in attempts] == [a.started for a in attempts]


def test_abort_before_the_start_runs_no_prompt() -> None:
    attempts = [ScriptedCall(one_choice("a")) for _ in range(3)]
    fanout = fan(attempts)
    fanout.abort()
    assert list(fanout.events()) == []
    fanout.close()
    assert not any(attempt.started for attempt in attempts)


def test_abort_ends_a_fanout_whose_reader_is_slow() -> None:
    attempts = [ScriptedCall([[Delta(0, "a")]] * 1000) for _ in range(4)]
    fanout = fan(attempts)
    events = fanout.events()
    next(events)
    fanout.abort()
    assert list(events) == []
    fanout.close()
    wait_closed(attempts)
    assert [attempt.closes for attempt in attempts] == [attempt.started for attempt in attempts]


def wait_closed(attempts: Sequence[ScriptedCall], timeout: float = HANG_S) -> None:
    """Wait until every started attempt is closed."""
    wait(lambda: not any(attempt.running for attempt in attempts), timeout)


def test_abort_at_any_moment_closes_each_started_attempt_once() -> None:
    """The delay before the abort varies, so that the abort falls between different steps."""
    for step in range(60):
        attempts = [ScriptedCall(one_choice("a")) for _ in range(12)]
        fanout = fan(attempts)
        reader = Reader(fanout)
        time.sleep(step * 0.00005)
        fanout.abort()
        reader.join()
        wait_closed(attempts)
        assert [a.closes for a in attempts] == [a.started for a in attempts]


def test_abort_from_several_threads_at_once_ends_the_fanout() -> None:
    attempts = [ScriptedCall(hold=True) for _ in range(20)]
    fanout = fan(attempts)
    reader = Reader(fanout)
    aborters = [threading.Thread(target=fanout.abort) for _ in range(5)]
    for thread in aborters:
        thread.start()
    reader.join()
    for thread in aborters:
        thread.join(HANG_S)
    wait_closed(attempts)


def test_closing_a_half_read_fanout_closes_its_started_attempts() -> None:
    attempts = [ScriptedCall([[Delta(0, "a")]] * 1000) for _ in range(3)]
    fanout = fan(attempts)
    for _ in fanout.events():
        break
    fanout.close()
    wait_closed(attempts)
    assert [a.closes for a in attempts] == [a.started for a in attempts]


def test_each_attempt_is_closed_once_by_its_own_thread() -> None:
    attempts = [ScriptedCall(one_choice("a")) for _ in range(20)]
    fanout = fan(attempts)
    list(fanout.events())
    fanout.close()
    fanout.close()
    wait(lambda: all(attempt.closes for attempt in attempts))
    assert [attempt.closes for attempt in attempts] == [1] * 20
    assert [len(attempt.threads) for attempt in attempts] == [1] * 20


# A slow reader


def test_a_slow_reader_slows_the_attempts() -> None:
    attempts = [ScriptedCall([[Delta(0, "a")]] * 500) for _ in range(AT_ONCE)]
    fanout = fan(attempts)
    events = fanout.events()
    taken = [next(events)]
    most = QUEUE_SIZE + AT_ONCE

    def settled() -> int:
        """Return the number of yielded batches, once it stops growing."""
        before = -1
        while (now := sum(attempt.yielded for attempt in attempts)) > before:
            before = now
            time.sleep(0.05)
        return now

    assert settled() <= len(taken) + most
    taken += [next(events) for _ in range(100)]
    assert len(taken) < settled() <= len(taken) + most
    taken += events
    assert len(taken) == 500 * AT_ONCE
    fanout.close()


def test_order_within_a_choice_is_kept() -> None:
    batches: list[Batch] = [[Delta(0, f"{number} ")] for number in range(200)]
    fanout = fan([ScriptedCall(batches) for _ in range(10)])
    expected = "".join(f"{number} " for number in range(200))
    completion = fold(flatten(fanout.events()))
    assert texts(completion) == [(number, expected) for number in range(10)]
    fanout.close()
