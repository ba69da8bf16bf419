"""response.py: answers without text to calls that asked for none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from completion import CompletionRequest, flatten, fold
from errors import UpstreamError
from providers.openai import dialect

USAGE = {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}


def whole(data: dict[str, Any], **fields: Any) -> Any:
    request = CompletionRequest(prompts=("Hi",), **fields)
    return fold(dialect.complete(json.dumps(data).encode(), request))


@pytest.mark.parametrize("reason", ["length", None])
@pytest.mark.parametrize(
    "part", [{"text": ""}, {"message": {"role": "assistant", "content": None}}]
)
def test_an_answer_without_text_is_complete_if_no_text_was_requested(
    part: dict[str, Any], reason: str | None
) -> None:
    data = {"choices": [{"index": 0, **part, "finish_reason": reason}], "usage": USAGE}
    found = whole(data, max_tokens=0)
    assert [(c.text, c.finish_reason) for c in found.choices] == [("", "length")]
    assert (found.usage.input_tokens, found.usage.output_tokens) == (5, 0)
    assert found.usage.source == "provider"


def test_a_stream_without_text_is_complete_if_no_text_was_requested() -> None:
    chunk = {"choices": [{"index": 0, "text": "", "finish_reason": None}], "usage": USAGE}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
    request = CompletionRequest(prompts=("Hi",), max_tokens=0, stream=True)
    found = fold(flatten(dialect.events([body], request)))
    assert [(c.text, c.finish_reason) for c in found.choices] == [("", "length")]


def test_an_answer_without_text_and_finish_reason_is_a_failure_otherwise() -> None:
    with pytest.raises(UpstreamError):
        whole({"choices": [{"index": 0, "text": ""}], "usage": USAGE}, max_tokens=1)
