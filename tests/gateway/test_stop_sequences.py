"""stop_sequences.py: what a client sees of a call's events, against a naive search."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from completion import (
    Added,
    Batch,
    Completion,
    Delta,
    Event,
    Finished,
    Logprobs,
    Started,
    Thought,
    Usage,
    Used,
    fold,
    utf8_size,
)
from concurrency.yielding import Yielder
from gateway.stop_automaton import StopAutomaton
from gateway.stop_sequences import MOST_TOKENS, Scanner
from tests.gateway.test_stop_automaton import STOPS, TEXTS, naive_cut, naive_held

FINISH = Finished(0, "length")


def scanner_of(*stops: str, choices: int = 1, logprobs: bool = False) -> Scanner:
    return Scanner(StopAutomaton(stops), choices, logprobs=logprobs)


def shown(scanner: Scanner, batches: list[Batch]) -> list[Event]:
    return [event for batch in batches for event in scanner.take(batch)]


def words(*texts: str, index: int = 0) -> list[Batch]:
    return [[Delta(index, text)] for text in texts]


def text_of(events: list[Event], index: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, Delta) and e.index == index)


def expected(text: str, stops: tuple[str, ...]) -> tuple[str, str]:
    end = naive_cut(text, stops)
    return (text, "length") if end is None else (text[:end], "stop")


def counted(events: list[Event]) -> tuple[int, int]:
    """Return the pieces and bytes that a tally counts in some events."""
    pieces = size = 0
    for event in events:
        if isinstance(event, Delta):
            pieces, size = pieces + 1, size + utf8_size(event.text)
        elif isinstance(event, Thought):
            pieces, size = pieces + event.pieces, size + event.size
    return pieces, size


@given(TEXTS, STOPS, st.data())
def test_split_text_ends_where_a_naive_search_of_the_whole_text_says(
    text: str, stops: tuple[str, ...], data: st.DataObject
) -> None:
    places = data.draw(st.sets(st.integers(0, len(text))))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *sorted(places), len(text)])]
    scanner = scanner_of(*stops)
    sent: list[Event] = []
    found: list[Event] = []
    for piece in filter(None, pieces):
        batch: Batch = [Delta(0, piece), Used(Usage(1, 1))]
        sent += batch
        found += scanner.take(batch)
        end = naive_cut(text_of(sent), stops)
        if end is None:
            end = len(text_of(sent)) - naive_held(text_of(sent), stops)
        assert text_of(found) == text_of(sent)[:end]
        assert counted(found) == counted(sent)
    found += scanner.take([FINISH])
    assert fold(found).choices[0].text == expected(text, stops)[0]
    assert fold(found).choices[0].finish_reason == expected(text, stops)[1]


@given(st.lists(TEXTS, min_size=1, max_size=4), STOPS, st.data())
def test_choices_that_arrive_mixed_end_independently(
    texts: list[str], stops: tuple[str, ...], data: st.DataObject
) -> None:
    scanner = scanner_of(*stops, choices=len(texts))
    letters = [(index, letter) for index, text in enumerate(texts) for letter in text]
    order = data.draw(st.permutations([index for index, _ in letters]))
    rest = {index: iter(text) for index, text in enumerate(texts)}
    sent: list[Event] = [Delta(index, next(rest[index])) for index in order]
    sent += [Finished(index, "length") for index in range(len(texts))]
    size = data.draw(st.integers(1, 5))
    found = shown(scanner, [sent[at : at + size] for at in range(0, len(sent), size)])
    assert counted(found) == counted(sent)
    for index, text in enumerate(texts):
        assert (text_of(found, index), fold(found).choices[index].finish_reason) == expected(
            text, stops
        )


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_stream_and_a_whole_answer_are_equal(size: int) -> None:
    text, stops = "one two\n\nthree", ("\n\n", "x")
    whole = shown(scanner_of(*stops), [[Delta(0, text), FINISH, Used(Usage(3, 4))]])
    pieces = words(*(text[at : at + size] for at in range(0, len(text), size)))
    parts = shown(scanner_of(*stops), [*pieces, [FINISH, Used(Usage(3, 4))]])
    assert fold(whole) == fold(parts)
    assert fold(whole).choices[0].text == "one two"
    assert fold(whole).choices[0].finish_reason == "stop"


def test_only_what_could_begin_a_stop_is_held_back() -> None:
    scanner = scanner_of("END")
    assert scanner.take([Delta(0, "The E")]) == [Delta(0, "The "), Thought(1, 0)]
    assert scanner.take([Delta(0, "N")]) == [Thought(1, 1)]
    assert scanner.take([Delta(0, "G")]) == [Delta(0, "ENG"), Thought(-2, 0)]


def test_text_without_a_stop_passes_unchanged() -> None:
    batch: Batch = [Started("m", 3), Thought(9), Delta(0, "Hello"), Used(Usage(3, 1))]
    found = scanner_of("END").take(batch)
    assert found == batch
    assert all(a is b for a, b in zip(found, batch, strict=True))


def test_reasoning_is_not_searched() -> None:
    assert shown(scanner_of("x"), [[Thought(1)], [Delta(0, "a")]]) == [Thought(1), Delta(0, "a")]


@pytest.mark.parametrize("reason", ["length", "content_filter", "stop"])
def test_held_text_is_shown_before_another_end(reason: Any) -> None:
    found = shown(scanner_of("END"), [*words("a E", "N"), [Finished(0, reason)]])
    assert text_of(found) == "a EN"
    assert found[-2:] == [Finished(0, reason), Thought(-2, -1)]


def test_held_text_is_flushed_when_no_more_events_follow() -> None:
    scanner = scanner_of("END")
    assert text_of(shown(scanner, words("a E"))) == "a "
    assert text_of(scanner.flush()) == "E"
    assert scanner.flush() == []


def test_usage_counts_the_text_that_a_stop_cuts_off() -> None:
    found = shown(scanner_of("END"), [[Delta(0, "a END b"), Used(Usage(3, 5))]])
    assert found == [
        *(Delta(0, "a "), Finished(0, "stop")),
        *(Thought(5, 0), Used(Usage(3, 5))),
    ]


def test_a_call_has_ended_when_each_choice_has_its_stop() -> None:
    scanner = scanner_of("x", choices=2)
    scanner.take([Delta(0, "ax")])
    assert scanner.ended({}) is None
    scanner.take([Delta(1, "bx")])
    assert scanner.ended({}) == []


def test_a_call_has_ended_when_the_host_has_finished_the_other_choices() -> None:
    scanner = scanner_of("xy", choices=2)
    scanner.take([Delta(1, "bx")])
    scanner.take([Delta(0, "axy")])
    assert scanner.ended({0: "length"}) is None
    assert scanner.ended({0: "length", 1: "length"}) == [
        *(Delta(1, "x"), Finished(1, "length")),
        Thought(-1, -1),
    ]


def test_a_call_that_its_host_has_ended_needs_no_other_end() -> None:
    scanner = scanner_of("x")
    scanner.take([Delta(0, "ax")])
    scanner.take([Finished(0, "stop")])
    assert scanner.ended({}) is None


# Log probabilities


def logprobs(*tokens: str, offset: int = 0) -> Logprobs:
    offsets = list(itertools.accumulate(map(len, tokens), initial=offset))[:-1]
    values = [-float(len(token)) for token in tokens]
    top: list[dict[str, float] | None] = [{token: -1.0} for token in tokens]
    return Logprobs(list(tokens), list(values), top, offsets)


def in_tokens(*tokens: str) -> list[Batch]:
    batches, at = list[Batch](), 0
    for token in tokens:
        batches.append([Delta(0, token, logprobs(token, offset=at))])
        at += len(token)
    return batches


def folded(scanner: Scanner, batches: list[Batch]) -> Completion:
    return fold(shown(scanner, [*batches, [FINISH]]))


def test_text_with_log_probabilities_is_held_by_whole_tokens() -> None:
    scanner = scanner_of("END", logprobs=True)
    first, second, third = in_tokens("Hi", " the E", "NG")
    assert scanner.take(first) == first
    assert scanner.take(second) == [Thought(6)]
    assert text_of(scanner.take(third)) == " the ENG"


@pytest.mark.parametrize("whole", [True, False])
def test_a_token_that_reaches_into_a_stop_loses_its_log_probabilities(whole: bool) -> None:
    tokens = ("Hi", " there", "! E", "ND", " more")
    together: list[Batch] = [[Delta(0, "".join(tokens), logprobs(*tokens))]]
    found = folded(
        scanner_of("END", logprobs=True), together if whole else in_tokens(*tokens)
    ).choices[0]
    assert (found.text, found.finish_reason) == ("Hi there! ", "stop")
    assert found.logprobs == logprobs("Hi", " there")


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=3), max_size=8), STOPS, st.data())
def test_text_and_tokens_with_log_probabilities_end_where_a_naive_search_says(
    tokens: list[str], stops: tuple[str, ...], data: st.DataObject
) -> None:
    text = "".join(tokens)
    batches = in_tokens(*tokens)
    joined = data.draw(st.integers(1, 3))
    batches = [
        list(itertools.chain(*batches[at : at + joined])) for at in range(0, len(batches), joined)
    ]
    found = folded(scanner_of(*stops, logprobs=True), batches).choices[0]
    kept, reason = expected(text, stops)
    assert (found.text, found.finish_reason) == (kept, reason)
    ends = itertools.accumulate(map(len, tokens))
    whole = [token for token, end in zip(tokens, ends, strict=True) if end <= len(kept)]
    assert (found.logprobs.tokens if found.logprobs else []) == whole
    assert (found.logprobs or Logprobs()).text_offset == logprobs(*whole).text_offset


def test_tokens_that_come_before_their_text_are_shown_with_it() -> None:
    """vLLM holds text back for the stop sequences that it got, but not the tokens."""
    tokens = ("one", " two", " END", " x")
    texts = ("", "one", " two", " END x")
    offsets = (0, 0, 3, 7)  # vLLM counts the text that it has sent
    batches: list[Batch] = [
        [Delta(0, text, logprobs(token, offset=at))]
        for token, text, at in zip(tokens, texts, offsets, strict=True)
    ]
    found = folded(scanner_of("END", logprobs=True), batches).choices[0]
    assert found.text == "one two "
    assert found.logprobs is not None
    assert found.logprobs.tokens == ["one", " two"]


@pytest.mark.parametrize(("stop", "kept"), [("\u2019", ["it"]), ("s", ["it", 1, 2])])
def test_parts_of_a_character_belong_to_it(stop: str, kept: list[Any]) -> None:
    parts = ["bytes:\\xe2\\x80", "bytes:\\x99"]
    batches: list[Batch] = [
        *in_tokens("it"),
        [Delta(0, "", Logprobs([parts[0]], [-1.0], None, [2]))],
        [Delta(0, "\u2019", Logprobs([parts[1]], [-1.0], None, [2]))],
        [Delta(0, "s", Logprobs(["s"], [-1.0], None, [3]))],
    ]
    found = folded(scanner_of(stop, logprobs=True), batches).choices[0]
    assert found.text == "it\u2019s"[: "it\u2019s".index(stop)]
    assert found.logprobs is not None
    assert found.logprobs.tokens == [kept[0], *(parts[number - 1] for number in kept[1:])]


def test_log_probabilities_without_text_do_not_collect_without_a_bound() -> None:
    scanner = scanner_of("END", logprobs=True)
    batch: Batch = [Delta(0, "", logprobs("x"))]
    found = [scanner.take(batch) for _ in range(MOST_TOKENS + 2)]
    assert any(isinstance(event, Delta) for event in found[-2])


# Fields that a provider added


def added(number: int, **fields: Any) -> Added:
    return Added(0, {"token_ids": [number], **fields})


def test_added_fields_come_with_their_text() -> None:
    scanner = scanner_of("END")
    one, two, three = added(1), added(2), added(3)
    assert scanner.take([one, Delta(0, "a")]) == [one, Delta(0, "a")]
    assert scanner.take([two, Delta(0, "E")]) == [Thought(1)]
    assert scanner.take([three, Delta(0, "X")]) == [two, three, Delta(0, "EX"), Thought(-1, 0)]


def test_added_fields_of_text_that_a_stop_cuts_off_are_dropped() -> None:
    scanner = scanner_of("END")
    found = shown(
        scanner,
        [
            [added(1), Delta(0, "a")],
            [added(2), Delta(0, "E")],
            [added(3, prompt_token_ids=[7]), Delta(0, "ND")],
            [added(4), Delta(0, "b")],
        ],
    )
    assert fold(found).added_to == {0: {"token_ids": [1], "prompt_token_ids": [7]}}
    assert text_of(found) == "a"


def test_added_fields_beside_the_choices_pass() -> None:
    timings = Added(0, {"timings": {}}, top=True)
    assert scanner_of("x").take([Delta(0, "ax"), timings])[-2:] == [timings, Thought(1, 0)]


def test_added_fields_without_text_come_with_the_end() -> None:
    found = shown(scanner_of("x"), [[Delta(0, "a"), added(1)], [FINISH]])
    assert found == [Delta(0, "a"), added(1), FINISH]


def test_other_calls_run_while_many_choices_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    yields: list[bool] = []

    class Counted(Yielder):
        def yield_if_due(self, waited: float = 0.0) -> None:
            yields.append(True)

    monkeypatch.setattr("concurrency.yielding.Yielder", Counted)
    scanner = scanner_of("END", choices=500)
    batch: Batch = [Delta(index, f"text {index} END") for index in range(500)]
    found = fold([event for event in scanner.take(batch) if not isinstance(event, Thought)])
    assert [choice.text for choice in found.choices] == [f"text {index} " for index in range(500)]
    assert len(yields) == 500
