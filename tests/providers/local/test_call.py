"""The local provider: its parameters work, and it generates in short time slices."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from completion import (
    Batch,
    Completion,
    CompletionRequest,
    Delta,
    Finished,
    Started,
    Used,
    flatten,
    fold,
)
from errors import ModelNotFound, UnsupportedParameter
from providers.base import Provider, Target, UpstreamCall
from providers.local import call as local
from providers.local import ngram
from providers.local.call import LocalCall
from providers.local.dialect import UNSUPPORTED, unsupported
from providers.local.stop_strings import cut
from tests.support.pace import HANG_S
from tests.support.paths import ROOT

TARGET = Target(Provider(name="local", dialect="local"), "pydoc")
PROMPT = "Write a haiku about the sea"


def attempt(*prompts: str, **parameters: Any) -> LocalCall:
    request = CompletionRequest(prompts=prompts or (PROMPT,), **parameters)
    return LocalCall(request, TARGET)


def answer(*prompts: str, **parameters: Any) -> Completion:
    return fold(flatten(attempt(*prompts, **parameters).events()))


def text(*prompts: str, **parameters: Any) -> str:
    (choice,) = answer(*prompts, **parameters).choices
    return choice.text


class Model:
    """A fake of the shared model."""

    def __init__(self, model: ngram.Model) -> None:
        self.model = model

    def get(self) -> Generator[None, None, ngram.Model]:
        yield
        return self.model


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the model with one that repeats a single word and never ends."""
    word = len(ngram.SPECIAL)
    texts = [*ngram.SPECIAL, " la"]
    starts = (0, ngram.follow(0, ngram.BREAK), ngram.follow(0, word))
    rows = [
        start << 16 | then for start, then in zip(starts, (ngram.BREAK, word, word), strict=True)
    ]
    model = ngram.Model(texts, {" la": word}, array("Q", sorted(rows)))
    monkeypatch.setattr(local, "_shared", Model(model))


# The completion


def test_a_local_attempt_yields_started_delta_and_finished() -> None:
    one: UpstreamCall = attempt(max_tokens=1)
    assert [type(event) for event in flatten(one.events()) if not isinstance(event, Used)] == [
        Started,
        Delta,
        Finished,
    ]
    one.close()


def test_the_events_come_in_order() -> None:
    batches = list(attempt(seed=1).events())
    events = list(flatten(batches))
    assert events[0] == Started(model="pydoc", input_tokens=6)
    assert isinstance(events[-1], Used)
    assert events[-2] == Finished(0, "stop")
    assert all(isinstance(batch[-1], Used) for batch in batches)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert len(deltas) > 1
    assert {delta.index for delta in deltas} == {0}
    assert all(delta.text and delta.logprobs is None for delta in deltas)
    assert [type(event) for batch in batches for event in batch[:-1]] == (
        [Started] + [Delta] * len(deltas) + [Finished]
    )


def test_usage_is_exact_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SLICE_S", 0.0)
    sent = 0
    for batch in attempt(n=2, max_tokens=10, seed=3).events():
        sent += sum(isinstance(event, Delta) for event in batch)
        last = batch[-1]
        assert isinstance(last, Used)
        assert (last.usage.input_tokens, last.usage.output_tokens) == (6, sent)
        assert last.usage.source == "provider"
    assert sent == 20


def test_a_completion_has_text_and_ends_with_stop() -> None:
    for seed in range(20):
        (choice,) = answer("The end.", seed=seed).choices
        assert choice.text.strip()
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_streamed_and_unstreamed_completions_are_equal(stream: bool) -> None:
    assert answer(seed=1, stream=stream) == answer(seed=1)


def test_max_tokens_bounds_the_output_tokens() -> None:
    for most in (1, 5):
        done = answer(seed=1, max_tokens=most)
        assert done.usage is not None
        assert done.usage.output_tokens == most
        assert done.choices[0].finish_reason == "length"
    assert text(seed=1).startswith(text(seed=1, max_tokens=5))


def test_max_tokens_0_generates_no_text() -> None:
    (choice,) = answer(max_tokens=0, echo=True).choices
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("most", [None, 4096, 1_000_000])
def test_a_completion_has_at_most_4096_tokens(most: int | None) -> None:
    done = answer("la", max_tokens=most)
    assert done.usage is not None
    assert done.usage.output_tokens == local.MOST_TOKENS == 4096
    assert done.choices[0].finish_reason == "length"
    assert done.choices[0].text == "\n\n" + " la" * 4095


def test_temperature_0_gives_the_same_text_every_time() -> None:
    assert text(temperature=0) == text(temperature=0) == text(temperature=0, seed=5)


def test_completions_without_a_seed_differ() -> None:
    assert len({text(max_tokens=30) for _ in range(5)}) > 1


@given(st.floats(0, 2), st.floats(0, 1), st.floats(-2, 2), st.floats(-2, 2), st.integers())
@settings(max_examples=30, deadline=None)
def test_a_seed_makes_the_completion_repeatable_with_any_parameters(
    temperature: float, top_p: float, presence: float, frequency: float, seed: int
) -> None:
    parameters: dict[str, Any] = {
        "temperature": temperature,
        "top_p": top_p,
        "presence_penalty": presence,
        "frequency_penalty": frequency,
        "max_tokens": 20,
        "seed": seed,
    }
    first, second = answer(**parameters), answer(**parameters)
    assert first == second
    assert first.choices[0].text


def test_a_seed_gives_equal_completions_in_every_process() -> None:
    program = (
        "from providers.local.call import LocalCall as L; from providers.base import *;"
        "from completion import *;"
        f"r = CompletionRequest(prompts=({PROMPT!r},), seed=7, n=2, temperature=0.9);"
        "t = Target(Provider(name='local'), 'pydoc');"
        "print(ascii([c.text for c in fold(flatten(L(r, t).events())).choices]))"
    )
    here = ascii([choice.text for choice in answer(seed=7, n=2, temperature=0.9).choices])
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here


def test_penalties_change_the_text() -> None:
    parameters = {"seed": 1, "max_tokens": 60}
    assert text(frequency_penalty=2, **parameters) != text(**parameters)
    assert text(presence_penalty=2, **parameters) != text(**parameters)


def test_the_user_parameter_does_not_change_the_text() -> None:
    assert text(seed=1, user="someone") == text(seed=1)


# Choices


def test_choices_differ_and_do_not_depend_on_n() -> None:
    three = answer(n=3, seed=4).choices
    assert [choice.index for choice in three] == [0, 1, 2]
    assert len({choice.text for choice in three}) == 3
    assert answer(n=2, seed=4).choices == three[:2]
    assert answer(seed=4).choices == three[:1]


def test_each_of_several_prompts_gets_n_choices() -> None:
    done = answer("The", "A decorator is", n=2, seed=1, echo=True)
    assert done.input_tokens == 4
    assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
    starts = ["The", "The", "A decorator is", "A decorator is"]
    for choice, start in zip(done.choices, starts, strict=True):
        assert choice.text.startswith(start)
        assert len(choice.text) > len(start)
        assert choice.finish_reason == "stop"


def test_echo_puts_the_prompt_first() -> None:
    assert text(echo=True, seed=1) == PROMPT + text(seed=1)
    assert text("", echo=True, seed=1) == text("", seed=1) != ""
    done = answer(echo=True, max_tokens=3)
    assert done.usage is not None
    assert done.usage.output_tokens == 3


def test_best_of_keeps_the_likeliest_choices() -> None:
    every = answer(n=6, seed=2, logprobs=0).choices
    mean = {}
    for choice in every:
        assert choice.logprobs is not None
        values = [value or 0.0 for value in choice.logprobs.token_logprobs]
        mean[choice.text] = sum(values) / len(values)
    best = answer(n=2, best_of=6, seed=2)
    assert [choice.index for choice in best.choices] == [0, 1]
    assert [choice.text for choice in best.choices] == sorted(mean, key=mean.__getitem__)[:3:-1]
    assert [choice.logprobs for choice in best.choices] == [None, None]
    assert best.usage == answer(n=6, seed=2).usage


def test_best_of_returns_requested_logprobs() -> None:
    done = answer("The", "A", best_of=3, seed=2, logprobs=1, max_tokens=4)
    assert [choice.index for choice in done.choices] == [0, 1]
    for choice in done.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.top_logprobs


def test_best_of_with_max_tokens_0_gives_an_empty_choice() -> None:
    done = answer(best_of=2, max_tokens=0)
    assert [(c.index, c.text, c.finish_reason) for c in done.choices] == [(0, "", "length")]


# Log probabilities


@pytest.mark.parametrize("alternatives", [0, 1, 5, 8])
def test_logprobs_match_the_tokens_of_the_text(alternatives: int) -> None:
    (choice,) = answer(seed=6, logprobs=alternatives, max_tokens=50).choices
    found = choice.logprobs
    assert found is not None
    assert choice.text == text(seed=6, max_tokens=50)
    assert "".join(found.tokens) == choice.text
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert choice.text.startswith(token, offset)
    if not alternatives:
        assert found.top_logprobs is None
        return
    assert found.top_logprobs is not None
    for token, own, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top is not None
        assert top[token] == own
        assert 1 <= len(top) <= alternatives + 1
        assert math.fsum(map(math.exp, top.values())) <= 1 + 1e-9
        assert max(top.values()) <= 1e-9


def test_temperature_0_takes_the_likeliest_alternative() -> None:
    (choice,) = answer(temperature=0, logprobs=3).choices
    assert choice.logprobs is not None
    assert choice.logprobs.top_logprobs is not None
    for own, top in zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True):
        assert top is not None
        assert own == max(top.values())


def test_logprobs_stop_where_the_text_stops() -> None:
    (choice,) = answer(temperature=0, logprobs=2, stop=("is",)).choices
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens).startswith(choice.text)
    assert not choice.text or choice.logprobs.text_offset[-1] < len(choice.text)


# Stop strings

WHOLE = text(seed=11, n=1)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_stop_string_is_never_sent(data: st.DataObject) -> None:
    def part() -> str:
        start = data.draw(st.integers(0, len(WHOLE) - 1))
        return WHOLE[start : start + data.draw(st.integers(1, 30))]

    stops = tuple(
        data.draw(st.sampled_from((part(), part() + "x", data.draw(st.text(max_size=3)))))
        for _ in range(data.draw(st.integers(1, 4)))
    )
    done = answer(seed=11, stop=stops)
    (choice,) = done.choices
    places = [WHOLE.find(stop) for stop in stops if stop and stop in WHOLE]
    assert not [stop for stop in stops if stop and stop in choice.text]
    assert WHOLE.startswith(choice.text)
    assert choice.finish_reason == "stop"
    if places:
        # The stop string that is completed first counts. One that starts earlier may be cut.
        assert min(places) <= len(choice.text) < len(WHOLE)
    else:
        assert choice.text == WHOLE


def test_a_stop_string_may_span_tokens_and_begin_inside_a_token() -> None:
    place = WHOLE.index(" ", len(WHOLE) // 2)
    stop = WHOLE[place - 1 : place + 4]
    assert text(seed=11, stop=(stop,)) == WHOLE[: WHOLE.index(stop)]


def test_text_that_may_become_a_stop_string_is_held_back_and_then_sent() -> None:
    stop = WHOLE[:40] + "\0"
    deltas = [e for e in flatten(attempt(seed=11, stop=(stop,)).events()) if isinstance(e, Delta)]
    assert len(deltas[0].text) >= 40
    assert "".join(delta.text for delta in deltas) == WHOLE


def test_held_back_text_is_sent_when_max_tokens_is_reached() -> None:
    done = answer(seed=11, max_tokens=4, stop=(WHOLE,), logprobs=0)
    (choice,) = done.choices
    assert choice.finish_reason == "length"
    assert WHOLE.startswith(choice.text)
    assert choice.logprobs is not None
    assert len(choice.logprobs.tokens) == 4


def test_tokens_that_a_stop_string_cut_are_counted() -> None:
    (first, *_) = ngram.tokens(WHOLE)
    done = answer(seed=11, stop=(first,))
    assert done.usage is not None
    assert done.choices[0].text == ""
    assert done.usage.output_tokens == 1


def test_the_prompt_is_not_searched_for_stop_strings() -> None:
    assert text(echo=True, seed=11, stop=("haiku",)) == PROMPT + WHOLE


@given(st.text("ab", max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@example("ab", ["abb", "b"])
def test_cut_splits_text_before_a_stop_string_or_its_possible_start(
    whole: str, stops: list[str]
) -> None:
    sendable, found = cut(whole, tuple(stops))
    assert found == any(stop in whole for stop in stops)
    assert not any(stop in whole[:sendable] for stop in stops)
    if found:
        assert any(whole.startswith(stop, sendable) for stop in stops)
    else:
        rest = whole[sendable:]
        assert not rest or any(stop.startswith(rest) for stop in stops)
        longer = [whole[at:] for at in range(sendable)]
        assert not any(stop.startswith(tail) for stop in stops for tail in longer)


# Rejected requests


@pytest.mark.parametrize("model", ["x", "", "pydoc2", "x" * 10_000])
def test_an_unknown_model_is_not_found(model: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        list(LocalCall(CompletionRequest(prompts=("Hi",)), Target(TARGET.provider, model)).events())
    message = caught.value.message
    assert message.startswith(f"Model 'local/{model}"[:90])
    assert "was not found" in message
    assert "provider" not in message.lower()
    assert len(message) < 200


def test_token_ids_are_rejected() -> None:
    request = CompletionRequest(prompts=("Hi", (1, 2)))
    with pytest.raises(UnsupportedParameter):
        list(LocalCall(request, TARGET).events())


def test_the_unsupported_parameters_are_declared() -> None:
    assert local.MODELS == ("pydoc", "slow")
    assert {
        "suffix",
        "token_ids",
        "logit_bias",
        "echo_logprobs",
        "extra",
        "openai_extra",
    } == UNSUPPORTED
    row = Provider(name="local", dialect="local", cannot=("n",))
    assert unsupported(Target(row, "pydoc")) == UNSUPPORTED | {"n"}


# Time


@pytest.mark.parametrize("seconds", [0.0, 0.0001, 10.0])
@pytest.mark.parametrize("parameters", [{}, {"temperature": 0.8, "logprobs": 2, "stop": ("is",)}])
def test_the_length_of_a_time_slice_does_not_change_the_text(
    monkeypatch: pytest.MonkeyPatch, seconds: float, parameters: dict[str, Any]
) -> None:
    parameters = {"seed": 8, "n": 3, "max_tokens": 60, **parameters}
    usual = answer(**parameters)
    monkeypatch.setattr(local, "SLICE_S", seconds)
    monkeypatch.setattr(local, "PAUSE_S", 0.00001)
    assert answer(**parameters) == usual


@pytest.mark.usefixtures("endless")
def test_a_call_pauses_after_each_time_slice() -> None:
    began = time.monotonic()
    batches = list(attempt("la", n=10).events())
    took = time.monotonic() - began
    assert len(batches) > 5
    assert took > (len(batches) - 1) * (local.SLICE_S + local.PAUSE_S) * 0.99


def test_the_lock_is_free_at_each_yield(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SLICE_S", 0.0)
    states = {local._turns.lock.locked() for _ in attempt(max_tokens=10).events()}
    assert states == {False}


def test_slices_are_booked_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    turns = local._Turns()
    starts = [turns.book(worked=True) - now for _ in range(3)]
    assert starts == pytest.approx([0.0005, 0.003, 0.0055])
    now = 200.0
    assert turns.book(worked=True) - now == pytest.approx(0.0005)


def test_a_time_slice_is_too_soon_until_the_pause_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    turns = local._Turns()
    assert not turns.too_soon()
    turns.book(worked=True)
    assert turns.too_soon()
    turns.book(worked=False)
    now += local.PAUSE_S
    assert not turns.too_soon()


def test_a_turn_that_comes_too_soon_does_not_change_the_completion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = answer(seed=1, max_tokens=20)
    answers = iter([True, False] * 1000)
    monkeypatch.setattr(local._Turns, "too_soon", lambda _: next(answers))
    monkeypatch.setattr(local, "SLICE_S", 0.0)
    assert answer(seed=1, max_tokens=20) == usual


def test_a_long_prompt_is_read_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    class Turns(local._Turns):
        booked = 0

        def book(self, *, worked: bool) -> float:
            self.booked += 1
            return super().book(worked=worked)

    turns = Turns()
    monkeypatch.setattr(local, "_turns", turns)
    done = answer("word " * 100_000, max_tokens=1)
    assert done.input_tokens == 100_001
    assert turns.booked >= 5


GEVENT = """
from gevent import monkey; monkey.patch_all()
import threading, time
from completion import CompletionRequest
from providers.local import call as local
from providers.base import Provider, Target
target = Target(Provider(name="local"), "pydoc")
slices = 0
def counted(call, work, batch, advance=local.LocalCall._advance):
    global slices
    slices += 1
    return advance(call, work, batch)
local.LocalCall._advance = counted
def talk():
    request = CompletionRequest(prompts=("Hi",), n=10_000)
    for batch in local.LocalCall(request, target).events(): pass
for _ in range(8): threading.Thread(target=talk, daemon=True).start()
time.sleep(0.2)
between = []
until = time.monotonic() + 0.6
while time.monotonic() < until:
    before = slices
    time.sleep(0.001)
    between.append(slices - before)
print(sorted(between)[len(between) // 2])
"""


def test_gevent_gets_a_turn_between_any_two_slices() -> None:
    pytest.importorskip("gevent")
    done = subprocess.run(
        [sys.executable, "-c", GEVENT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # If the eight calls paused independently, all eight would work between two turns.
    assert int(done.stdout) <= 2


# Abort and close


def test_an_abort_before_the_start_yields_no_events() -> None:
    one = attempt()
    one.abort()
    one.abort()
    assert list(one.events()) == []


@pytest.mark.usefixtures("endless")
def test_an_abort_during_generation_ends_the_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SLICE_S", 0.0)
    one = attempt("la")
    events = one.events()
    batches = [next(events) for _ in range(5)]
    one.abort()
    batches += list(events)
    done = fold(flatten(batches))
    assert done.usage is not None
    assert len(batches) == 5
    assert done.choices[0].finish_reason is None
    assert done.usage.output_tokens == sum(
        isinstance(event, Delta) for batch in batches for event in batch
    )


@pytest.mark.usefixtures("endless")
def test_an_abort_from_another_thread_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PAUSE_S", 30.0)
    monkeypatch.setattr(local, "_turns", local._Turns())
    one = attempt("la", n=20)
    events = one.events()
    next(events)
    timer = threading.Timer(0.02, one.abort)
    timer.start()
    began = time.monotonic()
    assert list(events) == []
    assert time.monotonic() - began < 5
    timer.join()


def test_closing_unfinished_events_leaves_the_model_usable() -> None:
    events = attempt(n=50).events()
    next(events)
    assert isinstance(events, Generator)
    events.close()
    assert answer(seed=1).choices


# The slow model


def slow(*prompts: str, **parameters: Any) -> LocalCall:
    request = CompletionRequest(prompts=prompts or (PROMPT,), **parameters)
    return LocalCall(request, Target(TARGET.provider, "slow"))


def deltas_of(batch: Batch) -> list[Delta]:
    return [event for event in batch if isinstance(event, Delta)]


def test_the_slow_model_sends_one_token_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TOKEN_S", 0.01)
    began = time.monotonic()
    batches = list(slow(seed=1, max_tokens=20).events())
    took = time.monotonic() - began
    assert flatten(batches)
    assert max(len(deltas_of(batch)) for batch in batches) == 1
    assert took > 19 * 0.01 * 0.99
    done = fold(flatten(batches))
    assert done.usage is not None
    assert done.usage.output_tokens == 20
    assert done.choices[0].finish_reason == "length"
    assert done.model == "slow"


def test_the_slow_model_sends_10_tokens_per_second() -> None:
    assert local.TOKEN_S == 0.1


def test_the_slow_model_does_not_catch_up_after_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    one = slow(seed=1)
    work = one._work([PROMPT])
    waits = []
    for stall in (0.0, 0.1, 0.1, 7.0, 0.1):
        now += stall
        before = one._output_tokens
        while one._output_tokens == before:
            assert not one._advance(work, [])
        waits.append(one._next_token - now)
    assert waits == pytest.approx([0.1] * 5)


@pytest.mark.parametrize("parameters", [{}, {"temperature": 0}, {"temperature": 0.7, "top_p": 0.8}])
def test_the_slow_model_has_no_end_of_its_own(parameters: dict[str, Any]) -> None:
    events = slow(seed=1, logprobs=1, **parameters)._work([PROMPT])
    made = (event for event in events if isinstance(event, Delta | Finished))
    for _ in range(local.MOST_TOKENS + 1):
        assert isinstance(next(made), Delta)


def test_the_slow_model_writes_paragraphs_like_the_fast_one() -> None:
    begin = text(seed=1)
    whole = ""
    for event in slow(seed=1)._work([PROMPT]):
        whole += event.text if isinstance(event, Delta) else ""
        if len(whole) > len(begin) + 2:
            break
    assert whole.startswith(begin + "\n\n")


def test_the_slow_model_stops_at_stop_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TOKEN_S", 0.0)
    (choice,) = fold(flatten(slow(seed=1, stop=("\n\n",)).events())).choices
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("prompts", [("The",), ("The", "A decorator is")])
def test_choices_of_the_slow_model_come_in_turns(
    monkeypatch: pytest.MonkeyPatch, prompts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(local, "TOKEN_S", 0.0)
    events = flatten(slow(*prompts, n=2, seed=1, max_tokens=3).events())
    indexes = [event.index for event in events if isinstance(event, Delta)]
    assert sorted(indexes) == [*[0] * 3, *[1] * 3, *([*[2] * 3, *[3] * 3] if prompts[1:] else [])]
    assert sorted(indexes[: len(set(indexes))]) == sorted(set(indexes))


def test_each_choice_of_the_slow_model_has_max_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TOKEN_S", 0.0)
    for parameters in ({"n": 3}, {"n": 1, "best_of": 3}):
        done = fold(flatten(slow(max_tokens=4, seed=1, **parameters).events()))
        assert {choice.finish_reason for choice in done.choices} == {"length"}
        assert done.usage is not None
        assert done.usage.output_tokens == 12


def test_an_abort_ends_a_pause_of_the_slow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "TOKEN_S", 10.0 * HANG_S)
    one = slow()
    timer = threading.Timer(0.05, one.abort)
    batches = []
    began = time.monotonic()
    for batch in one.events():
        batches.append(batch)
        if deltas_of(batch):
            timer.start()
    assert time.monotonic() - began < HANG_S
    last = batches[-1][-1]
    assert isinstance(last, Used)
    assert last.usage.output_tokens == 1
    timer.join()


# Concurrent calls, and the first call


def run_all(calls: list[Any]) -> list[Any]:
    results: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            results[place] = calls[place]()
        except Exception as error:  # noqa: BLE001 - the test shows it
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    return results


def test_parallel_calls_and_sequential_calls_give_equal_completions() -> None:
    sequential = [answer(seed=seed, n=10) for seed in range(4)]
    parallel = run_all([lambda seed=seed: answer(seed=seed, n=10) for seed in range(4)])
    assert parallel == sequential


def test_the_index_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answer(seed=1)
    builds = []
    original = ngram.build

    def build(texts: Any) -> Iterator[ngram.Model | None]:
        builds.append(threading.get_ident())
        return original(texts)

    monkeypatch.setattr(ngram, "build", build)
    monkeypatch.setattr(local, "_shared", local._Shared())
    answers = run_all([lambda: answer(seed=1)] * 8)
    assert answers == [expected] * 8
    assert len(builds) == 1


def test_the_first_call_starts_before_the_index_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "_shared", local._Shared())
    monkeypatch.setattr(local, "SLICE_S", 0.0)
    batches: list[Batch] = []
    one = attempt()
    for batch in one.events():
        batches.append(batch)
        one.abort()
    assert [type(event) for event in batches[0]] == [Started, Used]
    assert answer(seed=1).choices  # a later call continues the build


def test_a_failed_build_of_the_index_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_texts: Any) -> Iterator[ngram.Model | None]:
        yield None
        raise MemoryError

    monkeypatch.setattr(local, "_shared", local._Shared())
    with monkeypatch.context() as patch:
        patch.setattr(ngram, "build", broken)
        for _ in range(2):
            with pytest.raises(MemoryError):
                answer()
    assert not local._turns.lock.locked()
    assert answer(seed=1).choices[0].text
