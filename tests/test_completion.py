"""completion.py: folding events gives one result, in whatever batches they arrive."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from completion import (
    Choice,
    Completion,
    CompletionRequest,
    Delta,
    Event,
    Finished,
    FinishReason,
    Logprobs,
    Opaque,
    Started,
    Usage,
    Used,
    estimate_tokens,
    flatten,
    fold,
    has_output,
    join_logprobs,
    utf8_size,
)

INDEXES = st.integers(0, 3)
REASONS = st.sampled_from(["stop", "length", "content_filter", "cancelled"])
VALUES = st.floats(-50, 0)


@st.composite
def logprobs_of(draw: st.DrawFn, *, with_top: bool | None = None) -> Logprobs:
    """Draw log probabilities for up to 4 tokens."""
    tokens = draw(st.lists(st.text(min_size=1, max_size=3), max_size=4))
    size = len(tokens)
    top = draw(st.booleans()) if with_top is None else with_top
    return Logprobs(
        tokens=tokens,
        token_logprobs=draw(st.lists(st.none() | VALUES, min_size=size, max_size=size)),
        top_logprobs=[{token: -1.0} for token in tokens] if top else None,
        text_offset=list(range(size)),
    )


DELTAS = st.builds(Delta, INDEXES, st.text(max_size=5), st.none() | logprobs_of())
EVENTS: st.SearchStrategy[Event] = st.one_of(
    DELTAS,
    st.builds(Finished, INDEXES, REASONS),
    st.builds(Started, st.none() | st.text(max_size=3), st.none() | st.integers(0, 99)),
    st.builds(Used, st.builds(Usage, st.integers(0, 99), st.integers(0, 99))),
)


def test_fold_joins_events_into_choices_ordered_by_index() -> None:
    events: list[Event] = [
        Started("m-1", 7),
        Delta(1, "b"),
        Delta(0, "He"),
        Delta(0, "llo"),
        Finished(1, "length"),
        Used(Usage(7, 1)),
        Finished(0, "stop"),
        Used(Usage(7, 3)),
    ]
    assert fold(events) == Completion(
        model="m-1",
        choices=(Choice(0, "Hello", "stop"), Choice(1, "b", "length")),
        usage=Usage(7, 3),
        input_tokens=7,
    )


def test_fold_of_no_events_is_an_empty_completion() -> None:
    assert fold([]) == Completion(None, (), None)


def test_fold_keeps_choices_without_text_or_without_an_end() -> None:
    assert fold([Finished(1, "stop"), Delta(0, "x")]).choices == (
        Choice(0, "x", None),
        Choice(1, "", "stop"),
    )


def test_fold_keeps_a_model_that_is_reported_only_once() -> None:
    assert fold([Started("m"), Started(None)]).model == "m"


@given(st.lists(EVENTS, max_size=20))
def test_fold_keeps_every_text_and_the_last_finish_reason_and_usage(events: list[Event]) -> None:
    folded = fold(events)
    indexed = [event for event in events if isinstance(event, Delta | Finished)]
    assert [c.index for c in folded.choices] == sorted({event.index for event in indexed})
    for choice in folded.choices:
        own = [event for event in indexed if event.index == choice.index]
        deltas = [event for event in own if isinstance(event, Delta)]
        reasons: list[FinishReason] = [e.reason for e in own if isinstance(e, Finished)]
        assert choice.text == "".join(event.text for event in deltas)
        assert choice.finish_reason == (reasons[-1] if reasons else None)
        assert (choice.logprobs is None) == all(event.logprobs is None for event in deltas)
    usages = [event.usage for event in events if isinstance(event, Used)]
    assert folded.usage == (usages[-1] if usages else None)


@given(st.lists(st.lists(EVENTS, max_size=5), max_size=5))
def test_fold_result_does_not_depend_on_batches(batches: list[list[Event]]) -> None:
    assert fold(flatten(batches)) == fold([event for batch in batches for event in batch])


@given(st.lists(logprobs_of(), min_size=1, max_size=5))
def test_joined_logprobs_stay_parallel(parts: list[Logprobs]) -> None:
    joined = join_logprobs(parts)
    count = sum(len(part.tokens) for part in parts)
    assert joined.tokens == [token for part in parts for token in part.tokens]
    assert joined.token_logprobs == [value for part in parts for value in part.token_logprobs]
    assert len(joined.tokens) == len(joined.token_logprobs) == len(joined.text_offset) == count
    if joined.top_logprobs is not None:
        assert len(joined.top_logprobs) == count
    assert (joined.top_logprobs is None) == all(part.top_logprobs is None for part in parts)


@given(st.lists(logprobs_of(with_top=True), min_size=3, max_size=3))
def test_join_logprobs_is_associative(parts: list[Logprobs]) -> None:
    first, second, third = parts
    assert join_logprobs([join_logprobs([first, second]), third]) == join_logprobs(parts)
    assert join_logprobs([first]) is first


def test_joined_top_logprobs_are_none_for_tokens_without_alternatives() -> None:
    plain = Logprobs(["a", "b"], [-1.0, -2.0], None, [0, 1])
    rich = Logprobs(["c"], [-3.0], [{"c": -3.0}], [2])
    assert join_logprobs([plain, rich]).top_logprobs == [None, None, {"c": -3.0}]


@pytest.mark.parametrize(
    ("text", "pieces", "tokens"),
    [
        ("", 0, 0),
        ("", 2, 2),
        ("a", 0, 1),
        ("abcd", 0, 1),
        ("abcde", 0, 2),
        ("abcde", 9, 9),
        ("\N{EURO SIGN}\N{EURO SIGN}", 0, 2),
        ("\ud800", 0, 1),
    ],
)
def test_token_estimate_is_a_quarter_of_the_bytes_but_at_least_the_pieces(
    text: str, pieces: int, tokens: int
) -> None:
    assert estimate_tokens(text, pieces) == tokens


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({"prompts": ("a",)}, 1),
        ({"prompts": ("a",), "n": 3}, 3),
        ({"prompts": ("a", (1, 2)), "n": 3}, 6),
    ],
)
def test_a_completion_has_n_choices_for_each_prompt(fields: dict[str, Any], choices: int) -> None:
    assert CompletionRequest(**fields).choices == choices


def test_total_tokens_are_input_plus_output_tokens() -> None:
    usage = Usage(3, 4, cache_read_tokens=2, reasoning_tokens=1)
    assert usage.total_tokens == 7


@given(st.text())
def test_size_counts_the_utf_8_bytes_of_a_text(text: str) -> None:
    assert utf8_size(text) == len(text.encode("utf-8", "surrogatepass"))


def test_fold_keeps_opaque_data_in_order() -> None:
    events: list[Event] = [Started(), Opaque(b"1"), Opaque(b"2", 1, 5), Finished(0, "stop")]
    found = fold(events)
    assert found.opaque == (b"1", b"2")
    assert [(choice.index, choice.text) for choice in found.choices] == [(0, "")]


@pytest.mark.parametrize(("size", "output"), [(0, False), (1, True)])
def test_opaque_data_with_text_is_output(size: int, *, output: bool) -> None:
    assert has_output([Started(), Opaque(b"{}", 0, size)]) is output
