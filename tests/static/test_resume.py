"""Tests of static/resume.js: how long a lost connection is tried again, and frames of both APIs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.javascript import call_each, needs_node

pytestmark = needs_node

NETWORK = {"code": "network", "status": 0}


def problem(status: int, code: str = "x") -> dict[str, Any]:
    return {"code": code, "status": status}


def test_only_failures_that_may_pass_are_tried_again() -> None:
    asked: list[tuple[Any, ...]] = [
        (NETWORK, True),
        (problem(503), True),
        (problem(502), True),
        (problem(429), True),
        (problem(404), True),
        (problem(410, "stream_trimmed"), True),
        (problem(401), True),
        # Whether the first request has arrived isn't known.
        (NETWORK, None),
        (problem(404), None),
        (problem(400), None),
    ]
    assert call_each("resume.js", "patience", *asked) == [15, 7, 7, 7, 0, 0, 0, 3, 3, 0]


def test_a_lost_connection_is_tried_again_more_and_more_rarely() -> None:
    waits = call_each("resume.js", "backOff", *((tries,) for tries in range(1, 16)))
    assert waits[:7] == [250, 500, 1000, 2000, 4000, 8000, 10000]
    assert set(waits[6:]) == {10000}
    assert 90_000 < sum(waits) < 120_000


def test_native_frames_stay_as_they_are() -> None:
    frame = {"type": "content", "data": "a", "choices": [{"text": "a"}]}
    assert call_each("resume.js", "nativeFrames", (frame,)) == [[frame]]


@pytest.mark.parametrize("chat", [False, True])
def test_frames_of_the_openai_api_become_native_ones(chat: bool) -> None:
    def choice(text: str, reason: str | None = None, **more: str) -> dict[str, Any]:
        part = {"delta": {"content": text}} if chat else {"text": text}
        return {"index": 0, **part, "finish_reason": reason, **more}

    found = call_each(
        "resume.js",
        "nativeFrames",
        ({"model": "fake/a/b", "choices": [choice("Hi")]},),
        ({"model": "fake/m", "choices": [choice("", "stop", native_finish_reason="cancelled")]},),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},),
        ({"error": {"message": "No", "code": "provider_error"}},),
    )
    [content], [_, finish], [usage], [error] = found
    assert (content["type"], content["data"]) == ("content", "Hi")
    assert (content["provider"], content["model"]) == ("fake", "a/b")
    assert (finish["type"], finish["finish_reason"]) == ("finish", "cancelled")
    assert usage == {
        "type": "usage_final",
        "input_tokens": 3,
        "output_tokens": 2,
        "cost_usd": None,
    }
    assert (error["type"], error["message"], error["code"]) == ("error", "No", "provider_error")
