"""response.py: answers without text to calls that asked for none."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from completion import Added, CompletionRequest, Event, Used, flatten, fold
from errors import UpstreamError
from providers.openai import dialect, response
from providers.openai.schemas import (
    CHOICE,
    HIDDEN,
    TOP,
    KnownChoice,
    KnownChunk,
    KnownMessage,
    decode_many,
)

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


@pytest.mark.parametrize(
    ("kind", "known"), [(KnownChunk, TOP), (KnownChoice, CHOICE), (KnownMessage, HIDDEN)]
)
def test_a_known_object_has_no_field_that_would_be_passed_on(kind: Any, known: Any) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    assert known <= fields.keys()
    assert {fields[name] for name in fields.keys() - known} <= {type(None)}


PARTS: list[dict[str, Any]] = [
    {},
    {"id": "1", "object": "text_completion", "created": 1, "model": "m"},
    {"system_fingerprint": None},
    {"system_fingerprint": "fp"},
    {"x": 1},
    {"x": None},
    {"usage": USAGE},
    {"usage": {**USAGE, "x": 1}},
]
CHOICES: list[dict[str, Any]] = [
    {"text": "a", "logprobs": None, "finish_reason": None},
    {"text": "a", "stop_reason": None, "token_ids": None},
    {"text": "a", "stop_reason": 7, "token_ids": [1]},
    {"text": "a", "x": {"y": [1]}},
    {"text": "a", "finish_reason": "stop", "x": 1},
    {"delta": {"role": "assistant", "content": "a", "reasoning_details": [1]}},
    {"delta": {"content": "a", "x": 1}},
    {"delta": {"content": "a", "x": None}},
]


def events_of(chunks: list[dict[str, Any]], *, together: bool) -> list[Event]:
    frames = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    frames.append(b"data: [DONE]\n\n")
    request = CompletionRequest(prompts=("Hi",), stream=True, extra={"x": 1})
    batches = dialect.events([b"".join(frames)] if together else frames, request)
    return list(flatten(batches))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("choice", CHOICES)
def test_added_fields_do_not_depend_on_which_chunks_hold_only_known_fields(
    part: dict[str, Any], choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"choices": [{"index": 0, "text": "b"}]}
    chunk = part | {"choices": [{"index": 0} | choice]}
    chunks = [plain, chunk, plain, chunk, plain]
    found = [events_of(chunks, together=together) for together in (True, False)]
    monkeypatch.setattr(response, "KnownChunk", type("Never", (), {}))
    expected = events_of(chunks, together=False)
    assert found == [expected, expected]


def test_chunks_that_hold_only_known_fields_are_decoded_once() -> None:
    chunk = PARTS[1] | {"choices": [{"index": 0} | CHOICES[0]]}
    data = [json.dumps(chunk).encode()] * 3
    assert {type(found) for found in decode_many(data, adds=True)} == {KnownChunk}
    assert not any(isinstance(e, Added) for e in events_of([chunk] * 3, together=True))


@pytest.mark.parametrize("together", [True, False])
def test_a_service_tier_that_arrives_after_the_first_text_is_known(together: bool) -> None:
    plain: dict[str, Any] = {"choices": [{"index": 0, "text": "b"}]}
    chunks = [plain, plain | {"service_tier": "flex"}, plain, {"choices": [], "usage": USAGE}]
    [used] = [e for e in events_of(chunks, together=together) if isinstance(e, Used)]
    assert used.usage.tier == "flex"


@pytest.mark.parametrize("together", [True, False])
def test_a_service_tier_that_changes_beside_a_text_is_the_last_one(together: bool) -> None:
    plain: dict[str, Any] = {"choices": [{"index": 0, "text": "b"}]}
    tiers = [plain | {"service_tier": tier} for tier in ("auto", "auto", "default")]
    chunks = [*tiers, plain, {"choices": [], "usage": USAGE}]
    [used] = [e for e in events_of(chunks, together=together) if isinstance(e, Used)]
    assert used.usage.tier == "default"
