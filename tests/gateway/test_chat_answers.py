"""Tests of whole answers that are joined from the chunks of a stream."""

from __future__ import annotations

import json
from typing import Any

from gateway.chat_answers import joined, usage_of


def message_of(*deltas: dict[str, Any]) -> dict[str, Any]:
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    found: dict[str, Any] = joined(json.dumps(chunk).encode() for chunk in chunks)
    message: dict[str, Any] = found["choices"][0]["message"]
    return message


def test_texts_of_any_name_are_joined_and_labels_that_are_repeated_arent() -> None:
    part = {"index": 0, "type": "reasoning.text", "format": "x-v1", "id": "r"}
    first = {"role": "assistant", "tool_plan": "I ", "reasoning_details": [part | {"text": "Hm"}]}
    second = {"role": "assistant", "tool_plan": "will", "reasoning_details": [part | {"text": "m"}]}
    assert message_of(first, second) == {
        "role": "assistant",
        "content": None,
        "tool_plan": "I will",
        "reasoning_details": [part | {"text": "Hmm"}],
    }


def test_the_last_string_of_a_choice_counts() -> None:
    chunks = [{"choices": [{"index": 0, "delta": {}, "stop_reason": word}]} for word in "ab"]
    [choice] = joined(json.dumps(chunk).encode() for chunk in chunks)["choices"]
    assert choice["stop_reason"] == "b"


def test_usage_is_found_beside_the_choices_and_in_an_object_of_its_own() -> None:
    usage = {"prompt_tokens": 1}
    assert usage_of({"usage": usage}) == usage_of({"x_groq": {"usage": usage}}) == usage
    assert usage_of({"usage": None, "x_groq": None}) is None
