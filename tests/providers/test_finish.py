"""Tests of providers/finish.py: when an answer has finished, and when no text can follow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from completion import (
    Added,
    Batch,
    Delta,
    Event,
    Finished,
    FinishReason,
    Opaque,
    Started,
    Thought,
    Usage,
    Used,
)
from providers.finish import BEFORE_FINISHING, Finish

USED, USED_TOO = Used(Usage(7, 5)), Used(Usage(7, 5), with_text=True)
LAST = Finished(0, "stop", with_text=True)


def text(word: str = "a", index: int = 0) -> Delta:
    return Delta(index, word)


def end(reason: FinishReason = "stop", index: int = 0) -> Finished:
    return Finished(index, reason)


def finish_of(*batches: Batch, choices: int = 1) -> tuple[Finish, list[Event]]:
    """Pass batches to a Finish. Return it, and the events that it returned."""
    finish, kept = Finish(choices), list[Event]()
    for batch in batches:
        finishes = any(isinstance(event, Finished) for event in batch)
        kept += finish.take(batch) if finish.watchful or finishes else batch
    return finish, kept


@pytest.mark.parametrize(
    ("batches", "settled"),
    [
        # A reason on a chunk without text, and usage on one.
        ([[text()], [end()]], True),
        ([[text(), end()]], True),
        ([[text(), LAST], [USED]], True),
        ([[Started("m"), text(), LAST, USED]], True),
        ([[Thought(9)], [end()]], True),
        ([[Opaque(b"{}", 0, 9)], [Opaque(b"{}"), end()]], True),
        ([[Opaque(b"{}", 0, 9)], [end()], [Opaque(b"{}", 0, 9)]], False),
        # More text may follow a reason that came with text or reasoning.
        ([[text(), LAST]], False),
        ([[text()], [text(), LAST]], False),
        ([[text()], [Thought(3), LAST]], False),
        ([[text()], [end()], [text()]], False),
        # Usage with text and a reason settles an answer only if other chunks lacked them.
        ([[text()], [text(), LAST, USED_TOO]], True),
        ([[text(), text(), LAST, USED_TOO]], True),
        ([[text(), LAST, USED_TOO]], False),
        ([[text(), LAST, USED_TOO], [text(), LAST, USED_TOO]], False),
        ([[text(), LAST]] * 2, False),
        ([[text(), LAST]] * 2 + [[end()]], False),
        ([[text(), LAST]] * 2 + [[USED]], True),
        # Before there is any output, a reason may be a placeholder.
        ([[Started("m"), end()]], False),
        ([[Started("m"), end()], [USED]], True),
        # Signs of life change nothing.
        ([[text()], [end()], [], []], True),
        ([[text(), LAST], [], []], False),
    ],
)
def test_an_answer_is_settled_when_no_text_can_follow(batches: list[Batch], settled: bool) -> None:
    finish, _ = finish_of(*batches)
    assert finish.complete
    assert finish.settled is settled


def test_the_last_reason_counts_and_comes_at_the_end() -> None:
    finish, kept = finish_of([text("a"), end()], [text("b"), end("length")])
    assert kept == [text("a"), text("b")]
    assert finish.events() == [end("length")]


def test_every_choice_must_have_finished() -> None:
    finish, kept = finish_of([text("a", 0)], [text("b", 1), end("stop", 1)], choices=2)
    before = finish.complete
    assert finish.take([text("c", 0), end("length", 0)]) == [text("c", 0)]
    assert (before, finish.complete) == (False, True)
    assert finish.events() == [end("length", 0), end("stop", 1)]
    assert kept == [text("a", 0), text("b", 1)]


def test_text_of_another_choice_does_not_make_a_reason_early() -> None:
    finish, _ = finish_of([text("a", 0)], [end("stop", 0)], [text("b", 1)], [end("stop", 1)],
                          choices=2)  # fmt: skip
    assert finish.complete
    assert finish.settled


def test_plain_text_needs_no_attention() -> None:
    finish, _ = finish_of([Started("m")], [text()])
    assert not finish.watchful


@pytest.mark.parametrize(
    ("batches", "final"),
    [
        ([[text()], [end(index=1)]], {1: "stop"}),
        ([[text(index=1), end("length", 1)]], {1: "length"}),
        ([[text()], [Finished(1, "stop", with_text=True)]], {}),  # more text may follow
        ([[text(index=1), end(index=1)], [text(index=1)]], {}),
        ([[Started("m"), end(index=1)]], {}),  # it may be a placeholder
        ([[text()], [end(index=1)], [Finished(1, "stop", with_text=True)]], {}),
    ],
)
def test_the_final_reasons_are_those_that_no_text_can_follow(
    batches: list[Batch], final: dict[int, FinishReason]
) -> None:
    assert finish_of(*batches, choices=2)[0].final == final


EVENTS = st.sampled_from(
    [
        *(text(), text(index=1), Thought(3), Started("m"), Added(0, {"x": 1}, 7), USED, USED_TOO),
        *(end(), end("length", 1), LAST, Opaque(b"{}"), Opaque(b"{}", 0, 9)),
    ]
)


class Searching(Finish):
    """A Finish that searches each batch event by event."""

    def take(self, batch: Batch) -> Batch:
        self._look(batch)
        return [event for event in batch if not isinstance(event, Finished)]


@given(st.lists(st.lists(EVENTS, max_size=6), max_size=6), st.sampled_from([1, 2]))
def test_batches_without_a_finish_reason_count_as_if_searched_event_by_event(
    batches: list[Batch], choices: int
) -> None:
    quick, thorough = Finish(choices), Searching(choices)
    for batch in batches:
        assert quick.take(batch) == thorough.take(batch)
        for name in Finish.__slots__:
            assert getattr(quick, name) == getattr(thorough, name), name


def test_no_event_that_finishes_a_choice_is_skipped_by_the_search() -> None:
    assert BEFORE_FINISHING.isdisjoint((Finished, Opaque))
