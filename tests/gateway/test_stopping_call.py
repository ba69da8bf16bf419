"""stopping_call.py: calls end at their stop sequences, in each dialect and in the whole gateway."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest

from completion import (
    Batch,
    Completion,
    CompletionRequest,
    Delta,
    Event,
    Finished,
    FinishReason,
    Started,
    Thought,
    Usage,
    Used,
    flatten,
    fold,
)
from errors import UpstreamError
from gateway.attempts import Reader
from gateway.call import COMMENTS, Call
from gateway.gateway import Gateway
from gateway.stop_automaton import StopAutomaton
from gateway.stop_sequences import Scanner
from gateway.stopping_call import StoppingCall
from providers.finish import Finish
from providers.transport.abort import Aborted
from streams.mailbox import Nudge
from tests.gateway.test_gateway import (
    Records,
    Scripted,
    Words,
    a_gateway,
    eventually,
    open_call,
    wait,
)
from tests.gateway.test_stop_automaton import naive_cut
from tests.gateway.test_stop_sequences import text_of, words
from tests.providers.test_dialects import Case, cases
from tests.routing.test_router import ROWS
from tests.support.pace import HANG_S

BROKEN = UpstreamError("It broke.", upstream_status=500)


class Single(Scripted):
    """A scripted call that is one request."""

    def __init__(self, *steps: Any, finished: Mapping[int, FinishReason] | None = None) -> None:
        super().__init__(*steps)
        self._reasons = finished or {}

    @property
    def finished(self) -> Mapping[int, FinishReason]:
        return self._reasons


def stopping(call: Single, *stops: str, **fields: Any) -> StoppingCall:
    request = CompletionRequest(**{"prompts": ("Hi",), "stream": True, **fields})
    return StoppingCall(call, StopAutomaton(stops), request)


def test_a_stream_is_ended_at_its_stop_sequence() -> None:
    call = Single(*words("a E", "ND b"), wait)
    found = list(flatten(stopping(call, "END").events()))
    assert (text_of(found), found[-2:]) == ("a ", [Finished(0, "stop"), Thought(4, 1)])
    assert call.aborts == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_that_its_host_has_ended_is_not_aborted(stream: bool) -> None:
    call = Single([Delta(0, "a END b")], [Finished(0, "length")], [Used(Usage(1, 5))])
    if not stream:
        call = Single([Delta(0, "a END b"), Finished(0, "length"), Used(Usage(1, 5))])
    found = list(flatten(stopping(call, "END", stream=stream).events()))
    assert fold(found).choices[0].text == "a "
    assert call.aborts == int(stream)
    assert (fold(found).usage is None) is stream


def test_a_stream_of_several_choices_is_ended_when_the_last_one_has_ended() -> None:
    call = Single([Delta(0, "aEND")], [Delta(1, "b")], [Delta(0, "c")], [Delta(1, "END")], wait)
    found = list(flatten(stopping(call, "END", n=2).events()))
    assert [choice.text for choice in fold(found).choices] == ["a", "b"]
    assert call.aborts == 1


def test_a_stream_is_ended_when_its_host_has_finished_the_other_choices() -> None:
    call = Single([Delta(1, "bE")], [Delta(0, "aEND")], wait, finished={1: "length"})
    found = list(flatten(stopping(call, "END", n=2).events()))
    assert [(choice.text, choice.finish_reason) for choice in fold(found).choices] == [
        *[("a", "stop"), ("bE", "length")]
    ]
    assert call.aborts == 1


def until_failure(call: StoppingCall) -> tuple[str, Exception | None]:
    """Return the text of a call's events, and the error after them."""
    found = list[Event]()
    try:
        for batch in call.events():
            found += batch
    except (UpstreamError, Aborted) as failure:
        return text_of(found), failure
    return text_of(found), None


@pytest.mark.parametrize("failure", [BROKEN, Aborted()])
def test_held_text_comes_before_an_error(failure: Exception) -> None:
    call = Single(*words("a E"), failure)
    assert until_failure(stopping(call, "END")) == ("a E", failure)


def test_held_text_is_dropped_before_an_error_if_nothing_was_shown() -> None:
    """Another attempt can then replace this one."""
    call = Single([Started()], *words("E", "N"), BROKEN)
    assert until_failure(stopping(call, "END")) == ("", BROKEN)


def test_aborts_and_closes_reach_the_call() -> None:
    call = Single()
    wrapped = stopping(call, "x")
    wrapped.abort()
    wrapped.wind_up()
    wrapped.close()
    assert (call.aborts, call.wound_up, call.closes) == (1, True, 1)
    assert wrapped.end_if_finished() is False


# Every dialect, on its fixtures


def ended_at(batches: Iterator[Batch], stops: tuple[str, ...], request: CompletionRequest) -> Any:
    """Return the completion of some batches, which end as HttpCall ends them."""
    finish = Finish(request.choices)
    scanner = Scanner(StopAutomaton(stops), request.choices, logprobs=request.logprobs is not None)
    found = [event for batch in batches for event in scanner.take(finish.take(batch))]
    return fold([*found, *scanner.take(finish.events())])


@cases("stream.*")
def test_stream_and_body_of_a_fixture_end_at_equal_places(case: Case) -> None:
    request, dialect = case.request, case.row.dialect
    if "error" in case.expected or case.stream is None:
        return
    full = fold(flatten(dialect.events([case.stream], request)))
    text = max((choice.text for choice in full.choices), key=len)
    for at in range(0, len(text), max(1, len(text) // 8)):
        stops = (text[at : at + 2], "\0 never")
        found = ended_at(dialect.events([case.stream], request), stops, request)
        for choice, whole in zip(found.choices, full.choices, strict=True):
            end = naive_cut(whole.text, stops)
            assert choice.text == whole.text[:end]
            assert choice.finish_reason == (whole.finish_reason if end is None else "stop")
        if case.body is not None:
            together = ended_at(iter([dialect.complete(case.body, request)]), stops, request)
            assert msgspec.structs.replace(together, usage=None) == msgspec.structs.replace(
                found, usage=None
            )


# The whole gateway


class Harness:
    """A gateway whose row `few` takes one stop sequence, and its scripted upstream calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records = Records()
        few = {**ROWS["sim"], "limits": {"stop": 1}}
        one = {**few, "cannot": ["prompt_list", "echo"]}
        self.gateway: Gateway = a_gateway(self.records, providers={"few": few, "one": one})
        self.asked: list[CompletionRequest] = []
        self.calls: list[Single] = []
        self._lock = threading.Lock()
        monkeypatch.setattr(Reader, "_make", self._make)

    def _make(self, request: CompletionRequest, *_: Any, **__: Any) -> Single:
        with self._lock:
            self.asked.append(request)
            return self.calls.pop(0)

    def open(self, *calls: Single, model: str = "few/m", **fields: Any) -> Call:
        self.calls = list(calls)
        return open_call(self.gateway, model, **{"stop": ("END", "\n"), **fields})

    def run(self, *calls: Single, **fields: Any) -> str:
        call = self.open(*calls, **fields)
        call.wait()
        return b"".join(call.frames(Words())).decode()


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Harness:
    return Harness(monkeypatch)


def test_a_stream_ends_completed_with_an_estimate_of_what_its_host_generated(
    harness: Harness,
) -> None:
    call = Single([Started("m", 8)], *words("one", " t", "wo\n", "x"), wait)
    assert harness.run(call) == "one  t wo completed"
    assert harness.asked[0].stop == ("END",)
    outcome = harness.records.only
    assert (outcome.reason, outcome.error, outcome.status) == ("completed", None, 200)
    assert outcome.usage == Usage(8, 3, source="estimate")
    assert call.aborts == call.closes == 1


def test_usage_that_a_host_told_before_a_stop_sequence_counts(harness: Harness) -> None:
    batches: list[Batch] = [
        [Delta(0, "one"), Used(Usage(8, 1))],
        [Delta(0, "\n"), Used(Usage(8, 2))],
    ]
    assert harness.run(Single(*batches, wait)) == "one completed"
    assert harness.records.only.usage == Usage(8, 2)


def test_a_whole_answer_ends_at_its_stop_sequence_with_the_usage_of_its_host(
    harness: Harness,
) -> None:
    batch: Batch = [Started("m"), Delta(0, "one\ntwo"), Finished(0, "length"), Used(Usage(8, 3))]
    completion, outcome = harness.open(Single(batch), stream=False).result()
    [choice] = completion.choices
    assert (choice.text, choice.finish_reason) == ("one", "stop")
    assert outcome.usage == Usage(8, 3)


def choices_of(completion: Completion) -> list[tuple[str, str | None]]:
    return [(choice.text, choice.finish_reason) for choice in completion.choices]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize("model", ["few/m", "one/m"])
def test_each_choice_of_each_prompt_ends_at_its_own_stop_sequence(
    harness: Harness, model: str, echo: bool, stream: bool
) -> None:
    def made(*prompts: str) -> Single:
        texts = [f"{prompt}{choice}" for prompt in prompts for choice in range(2)]
        starts: Batch = [Delta(i, f"{text}\nx") for i, text in enumerate(texts)]
        rest: Batch = [Finished(i, "length") for i in range(len(texts))]
        used: Batch = [Used(Usage(2 * len(prompts), 6 * len(prompts)))]
        return Single(starts + rest + used) if not stream else Single(starts, wait)

    calls = [made("p", "q")] if model == "few/m" else [made("p"), made("q")]
    call = harness.open(*calls, model=model, prompts=("p", "q"), n=2, stream=stream, echo=echo)
    completion, outcome = call.result()
    before = {True: ["p", "p", "q", "q"], False: [""] * 4}[echo]
    assert choices_of(completion) == [
        (start + text, "stop") for start, text in zip(before, ["p0", "p1", "q0", "q1"], strict=True)
    ]
    assert not any(request.echo for request in harness.asked)
    assert all(one.aborts >= int(stream) for one in calls)
    if not stream:
        assert outcome.usage == Usage(4, 12)


def test_held_text_is_not_visible(harness: Harness) -> None:
    """Until then, the status line is held, and the call can go to another attempt."""
    call = harness.open(Single([Started("m", 8), Thought(9)], *words("E"), wait))
    assert eventually(lambda: bool(call.stream.attempts))
    attempt = call.stream.attempts[0]
    assert eventually(lambda: attempt.tally.output_tokens == 3)  # of 10 bytes
    assert attempt.first_event is not None
    assert call.stream.first_visible is None
    call.stream.end("stopped")
    call.close()


def test_a_call_whose_text_was_only_held_goes_to_its_fallback(harness: Harness) -> None:
    harness.calls = [Single(*words("E"), BROKEN), Single(*words("one\n"), wait)]
    call = open_call(harness.gateway, "few/m", "one/m", stop=("END", "\n"))
    call.wait()
    assert b"".join(call.frames(Words())) == b"one completed"


def test_a_stopped_stream_shows_no_held_text_but_counts_it(harness: Harness) -> None:
    scripted = Single([Started("m", 8)], *words("one", " E"), wait)
    call = harness.open(scripted)
    assert scripted.reached.wait(HANG_S)
    call.stream.end("stopped")
    call.wait()
    assert b"".join(call.frames(Words())) == b"one   stopped"
    assert harness.records.only.usage == Usage(8, 2, source="estimate")


def test_a_broken_stream_shows_its_held_text(harness: Harness) -> None:
    found = harness.run(Single(*words("one", " E"), BROKEN))
    assert found == "one   E provider_error"


def test_a_continued_stream_ends_at_its_stop_sequence(harness: Harness) -> None:
    found = harness.run(
        Single(*words("one"), BROKEN), Single(*words(" two", "\n"), wait), continues=True
    )
    assert found == f"one {COMMENTS[Nudge.CONTINUED].decode()} two completed"
    assert harness.asked[1].prompts == ("Hi thereone",)


def test_a_stream_that_may_be_in_a_stop_sequence_is_not_continued(harness: Harness) -> None:
    found = harness.run(Single(*words("one E"), BROKEN), continues=True)
    assert found == "one  E provider_error"
