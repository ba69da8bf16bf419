"""Tests of finish_reasons.py: each host's finish reasons, in any spelling and shape."""

from __future__ import annotations

from typing import Any

import pytest

from completion import FinishReason
from errors import UpstreamError
from providers.decoding.finish_reasons import FAILURES, REASONS, meaning_of

HOSTS: dict[str, dict[str, str | None]] = {
    "openai, groq": {
        "stop": "stop",
        "length": "length",
        "tool_calls": "stop",
        "function_call": "stop",
        "content_filter": "content_filter",
    },
    "glm": {
        "sensitive": "content_filter",
        "network_error": "failure",
        "model_context_window_exceeded": "length",
    },
    "openrouter": {"error": "failure"},
    "together": {"eos": "stop"},
    "vllm": {"abort": "failure", "error": "failure", "repetition": "length"},
    "tgi": {"eos_token": "stop", "stop_sequence": "stop"},
    "mistral": {"model_length": "length", "error": "failure"},
    "deepseek": {"insufficient_system_resource": "failure"},
    "anthropic": {"end_turn": "stop", "max_tokens": "length", "refusal": "content_filter"},
    "gemini": {
        "STOP": "stop",
        "MAX_TOKENS": "length",
        "SAFETY": "content_filter",
        "PROHIBITED_CONTENT": "content_filter",
        "FINISH_REASON_UNSPECIFIED": None,
        "MALFORMED_FUNCTION_CALL": "failure",
        "OTHER": "failure",
        "content_filter: RECITATION": "content_filter",
        "function_call_filter: MALFORMED_FUNCTION_CALL": "failure",
    },
    "other spellings": {
        "maxTokens": "length",
        "Content-Filter": "content_filter",
        "FinishReason.MAX_TOKENS": "length",
        "FINISH_REASON_LENGTH": "length",
        "null": None,
        "": None,
    },
    "unknown": {
        "a new word": "stop",
        "upstream_error": "failure",
        "engine failure": "failure",
        "gateway-timeout": "failure",
    },
}
WORDS = [(host, word, means) for host, words in HOSTS.items() for word, means in words.items()]


def found(raw: Any, **more: Any) -> str | None:
    try:
        return meaning_of(raw, **more)
    except UpstreamError:
        return "failure"


@pytest.mark.parametrize(("host", "word", "means"), WORDS)
def test_each_word_of_each_host_has_its_meaning_as_a_word_and_in_an_object(
    host: str, word: str, means: str | None
) -> None:
    assert found(word) == means, host
    assert found({"type": word}) == means, host
    assert found([word]) == means, host


@pytest.mark.parametrize(
    ("raw", "means"),
    [
        ({"length": {"limit": 3}}, "length"),
        ({"reason": "max_tokens", "index": 0}, "length"),
        ({"matched": 2, "type": "stop"}, "stop"),
        ({}, None),
        ([], None),
        (None, None),
        (7, None),
    ],
)
def test_objects_of_other_shapes_are_read_too(raw: Any, means: str | None) -> None:
    assert found(raw) == means


@pytest.mark.parametrize(
    ("raw", "native", "means"),
    [
        ("stop", "MAX_TOKENS", "length"),
        ("stop", "SAFETY", "content_filter"),
        ("stop", "network_error", "failure"),
        ("stop", "end_turn", "stop"),
        ("stop", None, "stop"),
        ("length", "network_error", "length"),
        (None, "length", "length"),
        (None, None, None),
        ("error", "stop", "failure"),
    ],
)
def test_the_reason_of_the_host_behind_counts_unless_the_host_says_more(
    raw: Any, native: Any, means: str | None
) -> None:
    assert found(raw, native=native) == means


def test_an_abort_object_of_sglang_has_its_status_and_message() -> None:
    raw = {"type": "abort", "message": "Out of memory", "status_code": 503, "err_type": "X"}
    with pytest.raises(UpstreamError) as raised:
        meaning_of(raw)
    error = raised.value
    assert (error.upstream_status, error.upstream_code) == (503, "abort")
    assert error.upstream_message == "Out of memory"


def test_the_words_of_a_dialect_come_first() -> None:
    own: dict[str, FinishReason] = {"ERROR_LIMIT": "length"}
    assert found("ERROR_LIMIT", own=own) == "length"
    assert found("ERROR_LIMIT") == "failure"
    assert found("stop", failures={"stop"}) == "failure"


def test_no_word_both_fails_and_finishes() -> None:
    assert not FAILURES & REASONS.keys()
