"""Tests of streams/tally.py: the tokens to bill, reported by the provider or estimated."""

from __future__ import annotations

import pytest

from completion import Delta, Finished, Opaque, Prompt, Started, Usage, Used
from streams.tally import EVENT_WEIGHT, Tally

PROMPT = "a prompt of thirty-two characters"


def tally(*events: Started | Delta | Used) -> Usage:
    found = Tally((PROMPT,))
    for event in events:
        found.add([event])
    return found.usage(failed=False)


def reported(given: int, made: int, *, zero: bool = False) -> Used:
    return Used(Usage(given, made, source="estimate" if zero else "provider"))


@pytest.mark.parametrize(
    ("events", "given", "made", "source"),
    [
        ([Delta(0, "12345678"), reported(8, 2)], 8, 2, "provider"),
        ([Delta(0, "12345678"), reported(8, 0, zero=True)], 8, 2, "estimate"),
        ([Delta(0, "12345678"), reported(0, 5, zero=True)], 9, 5, "estimate"),
        ([Started("m", 7), Delta(0, "x"), reported(0, 5, zero=True)], 7, 5, "estimate"),
        (
            [Delta(0, "x"), reported(8, 1), Delta(0, "1234"), reported(0, 0, zero=True)],
            8,
            2,
            "estimate",
        ),
        ([reported(8, 0)], 8, 0, "provider"),
        ([reported(0, 0)], 0, 0, "provider"),
    ],
)
def test_a_count_of_zero_that_cannot_be_true_is_estimated(
    events: list[Started | Delta | Used], given: int, made: int, source: str
) -> None:
    usage = tally(*events)
    assert (usage.input_tokens, usage.output_tokens, usage.source) == (given, made, source)


@pytest.mark.parametrize("prompt", [PROMPT, (1, 2, 3)])
def test_the_echo_of_a_call_without_output_is_not_counted_as_output(prompt: Prompt) -> None:
    found = Tally((prompt,), 1, silent=True)
    found.add([Started("m"), Delta(0, PROMPT), Finished(0, "length")])
    usage = found.usage(failed=False)
    assert (usage.output_tokens, usage.source) == (0, "estimate")
    assert usage.input_tokens == (9 if isinstance(prompt, str) else 3)


def test_an_opaque_event_is_counted_like_text_and_weighs_its_data() -> None:
    found = Tally((PROMPT,))
    data = b'{"content":"12345678","stop":false}'
    assert found.add([Opaque(data, 0, 8)]) == len(data) + EVENT_WEIGHT
    assert (found.visible, found.output_tokens) == (1, 2)
    assert found.add([Opaque(b"{}", 0, 0, visible=False)]) == 2 + EVENT_WEIGHT
    assert (found.visible, found.output_tokens) == (1, 2)
    found.add([reported(9, 5)])
    found.add([Opaque(data, 0, 8)])
    assert (found.output_tokens, found.usage(failed=False).source) == (7, "estimate")


@pytest.mark.parametrize("sent", [PROMPT, "<A>" + PROMPT * 3 + "<B>"])
def test_only_the_callers_own_prompt_counts_as_echoed(sent: str) -> None:
    found = Tally((sent,), 1, echoed=(PROMPT,))
    found.add([Started("m"), Delta(0, PROMPT), Delta(0, "12345678"), Finished(0, "stop")])
    assert found.usage(failed=False).output_tokens == 2
