"""logprobs.py: malformed log probabilities. The dialects' fixtures cover well-formed ones."""

from __future__ import annotations

from typing import Any

import pytest

from completion import Logprobs
from providers.decoding.logprobs import LogprobsReader

MALFORMED: list[tuple[Any, Logprobs | None]] = [
    (None, None),
    ([], None),
    ({}, None),
    ({"content": None}, None),
    ({"content": []}, None),
    ({"content": [None, {}, {"token": 3}]}, None),
    ({"tokens": []}, None),
    ({"tokens": "ab"}, None),
    ({"content": [{"token": "é"}]}, Logprobs(["é"], [None], [{}], [0])),
    (
        {"content": [{"token": "a", "bytes": [999], "logprob": True, "top_logprobs": [3]}]},
        Logprobs(["a"], [None], [{}], [0]),
    ),
    (
        {"content": [{"token": "a", "logprob": float("nan"), "top_logprobs": [{"token": "b"}]}]},
        Logprobs(["a"], [None], [{}], [0]),
    ),
    ({"tokens": ["é", "b"]}, Logprobs(["é", "b"], [None, None], None, [0, 1])),
    (
        {"tokens": ["a"], "token_logprobs": [-1, -2], "top_logprobs": [], "text_offset": [None]},
        Logprobs(["a"], [None], None, [0]),
    ),
    (
        {"tokens": ["a"], "token_logprobs": ["x"], "top_logprobs": [3], "text_offset": [9]},
        Logprobs(["a"], [None], [None], [0]),
    ),
]


@pytest.mark.parametrize(("raw", "logprobs"), MALFORMED)
def test_malformed_logprobs_keep_only_their_valid_parts(
    raw: Any, logprobs: Logprobs | None
) -> None:
    assert LogprobsReader(1).read(raw) == logprobs


def test_the_likelier_of_two_equally_named_tokens_is_kept() -> None:
    top = [{"token": "?", "logprob": -1.0}, {"token": "?", "logprob": -2.0}]
    part = LogprobsReader(2).read(
        {"content": [{"token": "?", "logprob": -1.0, "top_logprobs": top}]}
    )
    assert part is not None
    assert part.top_logprobs == [{"?": -1.0}]
