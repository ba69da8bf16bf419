"""Tests of streams/mailbox.py and streams/tally.py: messages between threads, and token counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from completion import (
    Batch,
    Delta,
    EndReason,
    Event,
    Finished,
    Prompt,
    Started,
    Thought,
    Usage,
    Used,
    prompt_tokens,
)
from errors import InternalError
from streams.mailbox import (
    BACKLOG,
    End,
    Mailbox,
    Message,
    Nudge,
)
from streams.tally import EVENT_WEIGHT, Tally
from tests.support.pace import HANG_S

A: Batch = [Delta(0, "a")]
B: Batch = [Delta(0, "b")]
REASONS: tuple[EndReason, ...] = (
    "completed", "stopped", "client_gone", "provider_error", "deadline", "shutdown",
)  # fmt: skip
FROM_OUTSIDE = ("stopped", "client_gone", "shutdown")
SHORT_S = 0.03


class Beside:
    """A function that runs in a separate thread, because it may wait."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.result: object = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.result = self._work()

    @property
    def waits(self) -> bool:
        self._thread.join(SHORT_S)
        return self._thread.is_alive()

    def done(self) -> object:
        """Return the function's result. Fail if it still waits."""
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        return self.result


# The mailbox


def test_take_returns_all_messages_in_order() -> None:
    mailbox = Mailbox()
    assert mailbox.put(A, 1)
    mailbox.nudge(Nudge.KEEP_ALIVE)
    assert mailbox.put(B, 1)
    assert mailbox.end(End("completed"))
    assert mailbox.take() == [A, Nudge.KEEP_ALIVE, B, End("completed")]


def test_take_waits_for_a_message() -> None:
    mailbox = Mailbox()
    taker = Beside(mailbox.take)
    assert taker.waits
    mailbox.put(A, 1)
    assert taker.done() == [A]


@pytest.mark.parametrize("message", [Nudge.RELEASE, End("stopped")])
def test_a_nudge_or_an_end_wakes_a_waiting_take(message: Nudge | End) -> None:
    mailbox = Mailbox()
    taker = Beside(mailbox.take)
    if isinstance(message, End):
        mailbox.end(message)
    else:
        mailbox.nudge(message)
    assert taker.done() == [message]


def test_a_nudge_is_not_repeated_while_it_waits() -> None:
    mailbox = Mailbox()
    for nudge in (Nudge.KEEP_ALIVE, Nudge.RELEASE, Nudge.KEEP_ALIVE):
        mailbox.nudge(nudge)
    assert mailbox.take() == [Nudge.KEEP_ALIVE, Nudge.RELEASE]
    mailbox.nudge(Nudge.KEEP_ALIVE)
    assert mailbox.take() == [Nudge.KEEP_ALIVE]


def test_a_mailbox_accepts_nothing_after_its_end() -> None:
    mailbox = Mailbox()
    mailbox.end(End("stopped"))
    mailbox.nudge(Nudge.KEEP_ALIVE)
    assert not mailbox.put(A, 1)
    assert mailbox.take() == [End("stopped")]


@pytest.mark.parametrize("first", REASONS)
@pytest.mark.parametrize("second", REASONS)
def test_the_first_end_of_a_mailbox_wins(first: EndReason, second: EndReason) -> None:
    """The writer has taken all messages, so no later End can replace the first."""
    mailbox = Mailbox()
    mailbox.put(A, 1)
    error = InternalError()
    assert mailbox.end(End(first, error))
    assert mailbox.take() == [A, End(first, error)]
    assert not mailbox.end(End(second))
    assert mailbox.ended_by == first


@pytest.mark.parametrize("first", REASONS)
@pytest.mark.parametrize("second", REASONS)
def test_only_a_complete_undelivered_answer_can_get_another_end_reason(
    first: EndReason, second: EndReason
) -> None:
    mailbox = Mailbox()
    mailbox.put(A, 1)
    mailbox.end(End(first))
    changed = first == "completed" and second in FROM_OUTSIDE
    assert mailbox.end(End(second)) is changed
    assert mailbox.take() == ([End(second)] if changed else [A, End(first)])
    assert mailbox.ended_by == (second if changed else first)


def test_events_before_a_stop_are_still_delivered() -> None:
    mailbox = Mailbox()
    mailbox.put(A, 1)
    mailbox.end(End("stopped"))
    assert mailbox.take() == [A, End("stopped")]


def test_a_mailbox_without_an_end_has_no_end_reason() -> None:
    assert Mailbox().ended_by is None


def test_put_waits_while_the_mailbox_is_full() -> None:
    mailbox = Mailbox()
    full = []
    for weight in (BACKLOG, 1):
        assert mailbox.put(A, weight)
        full.append(mailbox.full)
    reader = Beside(lambda: mailbox.put(B, 1))
    assert reader.waits
    assert mailbox.take() == [A, A]
    assert reader.done() is True
    assert [*full, mailbox.full] == [False, True, False]
    assert mailbox.take() == [B]


@pytest.mark.parametrize("reason", REASONS)
def test_an_end_releases_a_put_that_waits_for_room(reason: EndReason) -> None:
    mailbox = Mailbox()
    mailbox.put(A, BACKLOG + 1)
    reader = Beside(lambda: mailbox.put(B, 1))
    assert reader.waits
    mailbox.end(End(reason))
    assert reader.done() is False
    assert mailbox.take() == [A, End(reason)]


def test_nudges_and_ends_never_wait_for_a_full_mailbox() -> None:
    mailbox = Mailbox()
    mailbox.put(A, BACKLOG + 1)
    mailbox.nudge(Nudge.KEEP_ALIVE)
    mailbox.end(End("deadline"))
    assert mailbox.take() == [A, Nudge.KEEP_ALIVE, End("deadline")]


def test_nothing_is_lost_or_reordered_between_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.mailbox.BACKLOG", 50)
    mailbox = Mailbox()
    sent: list[Batch] = [[Delta(0, str(number))] for number in range(500)]

    def read() -> bool:
        accepted = all(mailbox.put(batch, 20) for batch in sent)
        return mailbox.end(End("completed")) and accepted

    reader = Beside(read)
    received: list[Message] = []
    most = 0
    while End("completed") not in received:
        taken = mailbox.take()
        most = max(most, len(taken))
        received += taken
    assert reader.done() is True
    assert received == [*sent, End("completed")]
    assert most <= 4  # three batches of 20 bytes exceed the backlog of 50; the fourth is the End


def test_only_one_of_many_concurrent_ends_succeeds() -> None:
    for _ in range(50):
        mailbox = Mailbox()
        gate = threading.Barrier(4)

        def end(reason: EndReason, mailbox: Mailbox = mailbox, gate: threading.Barrier = gate
                ) -> bool:  # fmt: skip
            gate.wait(HANG_S)
            return mailbox.end(End(reason))

        threads = [
            Beside(lambda r=reason: end(r))  # type: ignore[misc]
            for reason in ("stopped", "client_gone", "deadline", "shutdown")
        ]
        assert [thread.done() for thread in threads].count(True) == 1
        assert len(mailbox.take()) == 1


# The tally


@pytest.mark.parametrize(
    ("batch", "weight"),
    [
        ([], 0),
        ([Started("m", 3)], EVENT_WEIGHT),
        ([Delta(0, "abc")], EVENT_WEIGHT + 3),
        ([Delta(0, "\N{EURO SIGN}"), Finished(0, "stop")], 2 * EVENT_WEIGHT + 3),
        ([Delta(0, "\ud800")], EVENT_WEIGHT + 3),
    ],
)
def test_a_batch_weighs_its_text_plus_a_fixed_weight_per_event(batch: Batch, weight: int) -> None:
    assert Tally(("Hi",)).add(batch) == weight


def tally_of(*events: Event, prompts: tuple[Prompt, ...] = ("Hi",),
             echoes: int = 0) -> Tally:  # fmt: skip
    tally = Tally(prompts, echoes)
    tally.add(list(events))
    return tally


@pytest.mark.parametrize("failed", [True, False])
def test_the_last_reported_usage_is_used(failed: bool) -> None:
    reported = Usage(5, 9, cache_read_tokens=2)
    tally = tally_of(Started("m", 4), Used(Usage(5, 1)), Delta(0, "x" * 100), Used(reported))
    assert tally.usage(failed=failed) is reported
    assert (tally.input_tokens, tally.output_tokens) == (5, 9)


@pytest.mark.parametrize("failed", [True, False])
def test_output_after_the_last_reported_usage_is_estimated(failed: bool) -> None:
    reported = Usage(5, 9, cache_read_tokens=2)
    tally = tally_of(Delta(0, "x" * 100), Used(reported), Delta(0, "abcdefgh"), Delta(0, "i"))
    assert tally.usage(failed=failed) == Usage(5, 9 + 3, cache_read_tokens=2, source="estimate")
    assert tally.output_tokens == 12
    tally.add([Used(Usage(5, 13))])
    assert tally.usage(failed=failed) == Usage(5, 13)


def test_output_is_estimated_when_the_provider_reports_only_input() -> None:
    tally = tally_of(Started("m"), Used(Usage(5, 0)), *[Delta(0, "ab")] * 6, Finished(0, "stop"))
    assert tally.usage(failed=False) == Usage(5, 6, source="estimate")


@pytest.mark.parametrize(
    ("before", "after", "since"),
    [("", "p" * 20 + "a" * 8, 2), ("p" * 12, "p" * 8 + "a" * 8, 2), ("p" * 20, "a" * 8, 2),
     ("p" * 20 + "a" * 8, "", 0)],
)  # fmt: skip
def test_an_echo_is_not_output_before_or_after_a_reported_usage(
    before: str, after: str, since: int
) -> None:
    tally = Tally(("p" * 20,), echoes=1)
    for text in (before, None, after):
        tally.add([Used(Usage(5, 1))] if text is None else [Delta(0, text)] if text else [])
    assert tally.output_tokens == 1 + since


@given(st.lists(st.one_of(st.text(max_size=9), st.integers(0, 99)), max_size=20),
       st.integers(0, 2))  # fmt: skip
def test_reported_usage_is_exact_until_more_text_comes(steps: list[str | int], echoes: int) -> None:
    tally = Tally(("a prompt",), echoes)
    for step in steps:
        tally.add([Delta(0, step) if isinstance(step, str) else Used(Usage(3, step))])
    reported = [step for step in steps if isinstance(step, int)]
    usage = tally.usage(failed=False)
    exact = bool(steps) and isinstance(steps[-1], int)
    assert usage.source == ("provider" if exact else "estimate")
    assert usage.output_tokens >= (reported[-1] if reported else 0)
    if exact:
        assert usage == Usage(3, reported[-1])


def test_reasoning_counts_as_output_until_the_provider_reports_usage() -> None:
    tally = tally_of(Started("m", 7), Thought(40), Thought(2), echoes=1, prompts=("p" * 20,))
    assert tally.usage(failed=False) == Usage(7, 11, source="estimate")
    tally.add([Delta(0, "p" * 20), Delta(0, "abcd")])
    assert tally.output_tokens == 12
    tally.add([Used(Usage(7, 30, reasoning_tokens=20))])
    assert tally.usage(failed=False) == Usage(7, 30, reasoning_tokens=20)


def test_only_text_and_finish_reasons_are_visible() -> None:
    tally = tally_of(Started("m"), Thought(4), Used(Usage(1, 1)))
    assert tally.visible == 0
    tally.add([Delta(0, "a"), Finished(0, "stop")])
    assert tally.visible == 2


@pytest.mark.parametrize(
    ("texts", "reported", "exact"),
    [
        (["Hello world"] * 2, Usage(5, 3), False),
        (["Hello world"] * 2, Usage(5, 5), True),
        (["a", "b", "c", "d"], Usage(5, 2), False),
        (["a", "b", "c", "d"], Usage(5, 4), True),
        (["a", "b"], Usage(5, 1), True),
    ],
)
def test_usage_that_covers_one_of_several_choices_is_estimated(
    texts: list[str], reported: Usage, exact: bool
) -> None:
    for choices in (1, 2):
        tally = Tally(("Hi",), choices=choices)
        tally.add([Delta(number % 2, text) for number, text in enumerate(texts)])
        tally.add([Used(reported)])
        usage = tally.usage(failed=False)
        if exact or choices == 1:
            assert usage == reported
        else:
            assert usage.source == "estimate"
            assert usage.output_tokens == max(len(texts), len("".join(texts)) / 4 // 1 + 1)


@pytest.mark.parametrize(("given", "exact"), [(2, False), (3, True), (9, True)])
def test_usage_that_covers_one_of_several_prompts_is_estimated(given: int, exact: bool) -> None:
    tally = Tally(((1, 2), "p"), choices=2)
    tally.add([Delta(0, "a"), Delta(1, "b"), Used(Usage(given, 2))])
    usage = tally.usage(failed=False)
    assert usage == (Usage(given, 2) if exact else Usage(3, 2, source="estimate"))


def test_a_refused_call_used_nothing() -> None:
    assert tally_of().usage(failed=True) == Usage()


@pytest.mark.parametrize("failed", [True, False])
def test_usage_of_a_started_call_is_estimated_from_its_output(failed: bool) -> None:
    tally = tally_of(Started("m", 7), Delta(0, "abcdefgh"), Delta(0, "i"), Finished(0, "stop"))
    assert tally.usage(failed=failed) == Usage(7, 3, source="estimate")


def test_usage_of_a_call_ended_before_its_start_is_estimated() -> None:
    tally = tally_of(prompts=("abcdefgh", (1, 2, 3)))
    assert tally.usage(failed=False) == Usage(2 + 3, 0, source="estimate")
    assert tally.input_tokens is None
    assert tally.output_tokens == 0


def test_input_is_estimated_when_the_start_event_has_no_token_count() -> None:
    tally = tally_of(Started("m"), prompts=("abcdefgh",))
    assert tally.input_tokens is None
    assert tally.usage(failed=True) == Usage(2, 0, source="estimate")


def test_a_reported_input_of_zero_tokens_counts_as_zero() -> None:
    assert tally_of(Started("m", 0)).usage(failed=False) == Usage(0, 0, source="estimate")


@pytest.mark.parametrize(("echoes", "tokens"), [(1, 2), (2, 2), (0, 7)])
def test_an_echoed_prompt_is_not_counted_as_output(echoes: int, tokens: int) -> None:
    """Each echo has 20 bytes of prompt; the answer has 8 bytes."""
    prompt = "p" * 20
    echo = [Delta(index, prompt) for index in range(max(1, echoes))]
    tally = tally_of(*echo, Delta(0, "a" * 8), prompts=(prompt,), echoes=echoes)
    assert tally.output_tokens == max(tokens, len(echo) + 1)


@given(st.lists(st.text(max_size=10), max_size=20), st.integers(0, 3))
def test_an_output_estimate_is_at_least_the_number_of_deltas(texts: list[str], echoes: int) -> None:
    tally = Tally(("a long enough prompt",), echoes)
    for text in texts:
        tally.add([Delta(0, text)])
    assert tally.pieces == len(texts)
    assert tally.output_tokens >= len(texts)
    assert tally.usage(failed=False).output_tokens == tally.output_tokens


@pytest.mark.parametrize(("prompt", "tokens"), [("", 0), ("abcde", 2), ((), 0), ((5, 6, 7), 3)])
def test_prompt_tokens_counts_token_ids_and_estimates_texts(prompt: Prompt, tokens: int) -> None:
    assert prompt_tokens(prompt) == tokens


def test_a_waiting_take_uses_no_cpu_time() -> None:
    """The waiting thread sleeps; it doesn't poll."""
    mailbox = Mailbox()
    taker = Beside(mailbox.take)
    began = time.process_time()
    assert taker.waits
    assert time.process_time() - began < SHORT_S / 2
    mailbox.end(End("stopped"))
    taker.done()
