"""Tests of providers/decoding/surrogates.py: characters that a host has cut in two."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from completion import Batch, Delta
from providers.decoding.surrogates import SplitPairs


def joined(*texts: str) -> str:
    pairs, batch = SplitPairs(), Batch()
    found = [pairs.join(0, text) for text in texts]
    pairs.flush(batch)
    return "".join([*found, *(event.text for event in batch if isinstance(event, Delta))])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a\ud83d", "\ude00b"], "a😀b"),
        (["\ud83d", "", "\ude00"], "😀"),
        (["\ud83d", "x", "\ude00"], "\ufffdx\ufffd"),
        (["\ud83d\ud83d", "\ude00"], "\ufffd😀"),
        (["a\ud83d"], "a\ufffd"),
        (["\ude00a"], "\ufffda"),
        (["plain"], "plain"),
    ],
)
def test_halves_are_joined_and_lone_halves_are_replaced(texts: list[str], expected: str) -> None:
    assert joined(*texts) == expected


@given(text=st.text(), cuts=st.lists(st.integers(0, 40), max_size=5))
def test_a_text_cut_between_any_utf_16_units_is_joined_again(text: str, cuts: list[int]) -> None:
    units = text.encode("utf-16-le")
    edges = [0, *sorted(2 * cut for cut in cuts), len(units) + 80]
    pieces = [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in pairwise(edges)]
    assert joined(*pieces) == text


def test_each_choice_has_its_own_half() -> None:
    pairs = SplitPairs()
    assert pairs.join(0, "\ud83d") == pairs.join(1, "\ud83d") == ""
    assert (pairs.join(1, "\ude01"), pairs.join(0, "\ude00")) == ("😁", "😀")
