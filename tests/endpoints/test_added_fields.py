"""Unknown fields of a provider's answer come back to callers who asked for them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from completion import (
    Added,
    CompletionRequest,
    Delta,
    Finished,
    Opaque,
    Started,
    Usage,
    Used,
    flatten,
    fold,
)
from errors import UpstreamError
from gateway.added_fields import redacted
from keys.redaction import Secret
from providers import registry
from providers.base import Dialect
from providers.fanout import BatchMerge
from providers.openai import dialect as openai_dialect
from streams.tally import Tally
from tests.endpoints.test_openai import Face, Upstream, app, face, upstream

__all__ = ["app", "face", "upstream"]

SCRIPT: list[Any] = [
    [Started(), Added(0, {"kv_transfer_params": {"a": 1}}, 9, top=True)],
    [Added(0, {"prompt_token_ids": [1, 2]}, 9)],
    [Added(0, {"token_ids": [5]}, 9), Delta(0, "He")],
    [Added(0, {"token_ids": [6]}, 9)],
    [Added(0, {"token_ids": [7]}, 9), Delta(0, "llo")],
    [Added(0, {"stop_reason": "x"}, 9), Finished(0, "stop"), Used(Usage(3, 5))],
]
ASKING = {"return_token_ids": True}


def chunks(text: str) -> list[dict[str, Any]]:
    lines = (line[6:] for line in text.splitlines() if line.startswith("data: {"))
    return [json.loads(line) for line in lines]


def test_fields_come_back_in_a_whole_answer(face: Face, upstream: Upstream) -> None:
    upstream.play(*SCRIPT)
    data = face.ask(**ASKING).get_json()
    assert data["kv_transfer_params"] == {"a": 1}
    [choice] = data["choices"]
    assert choice["prompt_token_ids"] == [1, 2]
    assert (choice["token_ids"], choice["stop_reason"]) == ([5, 6, 7], "x")
    assert (choice["text"], choice["finish_reason"]) == ("Hello", "stop")


def test_fields_come_back_in_the_chunks_of_a_stream(face: Face, upstream: Upstream) -> None:
    upstream.play(*SCRIPT)
    first, second, last = chunks(face.ask(stream=True, **ASKING).text)
    assert first["kv_transfer_params"] == {"a": 1}
    assert first["choices"][0]["prompt_token_ids"] == [1, 2]
    assert (first["choices"][0]["text"], first["choices"][0]["token_ids"]) == ("He", [5])
    assert (second["choices"][0]["text"], second["choices"][0]["token_ids"]) == ("llo", [6, 7])
    assert "kv_transfer_params" not in second
    assert last["choices"][0]["stop_reason"] == "x"
    assert last["choices"][0]["finish_reason"] == "stop"


def test_a_field_never_replaces_one_of_the_face(face: Face, upstream: Upstream) -> None:
    upstream.play(
        [Started(), Added(0, {"model": "z", "id": "z"}, 9, top=True)],
        [Added(0, {"text": "z", "index": 9}, 9), Delta(0, "a"), Finished(0, "stop")],
    )
    data = face.ask(**ASKING).get_json()
    assert data["model"] == "fake/m"
    assert (data["choices"][0]["text"], data["choices"][0]["index"]) == ("a", 0)


@pytest.mark.parametrize("stream", [False, True])
def test_members_of_stream_options_are_named_as_dropped(face: Face, stream: bool) -> None:
    options = {"continuous_usage_stats": True, "include_obfuscation": True, "other": False}
    response = face.ask(stream=stream, stream_options=options)
    assert response.headers["X-Sluice-Dropped"] == (
        "stream_options.continuous_usage_stats, stream_options.include_obfuscation"
    )
    response = face.ask(stream=stream, stream_options=options | {"include_usage": True})
    assert response.headers["X-Sluice-Dropped"] == "stream_options.include_obfuscation"
    strict = face.ask({"X-Sluice-Strict": "1"}, stream=stream, stream_options=options)
    assert strict.status_code == 400


VLLM = {
    "choices": [
        {"index": 0, "text": "Hi", "finish_reason": "stop", "stop_reason": 7, "token_ids": [9]}
    ],
    "kv_transfer_params": None,
    "timings": {"n": 1},
}
BODIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "openai": (VLLM, {"stop_reason": 7, "token_ids": [9]}, {"timings": {"n": 1}}),
    "anthropic": (
        {"content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn", "container": 1},
        {},
        {"container": 1},
    ),
    "cohere": (
        {"message": {"content": "Hi", "citations": [1]}, "finish_reason": "COMPLETE"},
        {},
        {"citations": [1]},
    ),
    "google": (
        {
            "candidates": [
                {
                    "content": {"parts": [{"text": "Hi"}]},
                    "finishReason": "STOP",
                    "safetyRatings": [1],
                }
            ],
            "responseId": "r",
        },
        {"safetyRatings": [1]},
        {"responseId": "r"},
    ),
    "bedrock": (
        {
            "output": {"message": {"content": [{"text": "Hi"}]}},
            "stopReason": "end_turn",
            "trace": {"a": 1},
        },
        {},
        {"trace": {"a": 1}},
    ),
    "infill": ({"content": "Hi", "stop": True, "timings": {"n": 1}}, {}, {"timings": {"n": 1}}),
}


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("name", BODIES)
def test_every_dialect_passes_unknown_fields_on_only_if_asked(name: str, asks: bool) -> None:
    body, choice, top = BODIES[name]
    request = CompletionRequest(prompts=("Hi",), extra={"x": 1} if asks else {})
    dialect: Dialect = registry.dialect(name)
    found = fold(dialect.complete(json.dumps(body).encode(), request))
    assert found.choices[0].text == "Hi"
    assert found.added_to.get(0, {}) == (choice if asks else {})
    assert found.added == (top if asks else {})


def test_a_streamed_chunk_with_text_and_a_finish_keeps_its_lists_beside_the_text() -> None:
    body = f"data: {json.dumps(VLLM)}\n\ndata: [DONE]\n\n".encode()
    request = CompletionRequest(prompts=("Hi",), openai_extra={"x": 1}, stream=True)
    events = list(flatten(openai_dialect.events([body], request)))
    kinds = [event.fields if isinstance(event, Added) else type(event) for event in events]
    assert kinds == [
        Started, {"timings": {"n": 1}}, {"token_ids": [9]}, Delta, {"stop_reason": 7}, Finished,
    ]  # fmt: skip


def test_the_fields_of_several_calls_are_combined() -> None:
    merge = BatchMerge([Tally(("a",)), Tally(("b",))], 1)
    events = [
        *merge.add(1, [Added(0, {"ids": [3], "same": "s"}, 1, top=True), Delta(0, "y")]),
        *merge.add(1, [Added(0, {"token_ids": [8]}, 1), Finished(0, "stop")]),
        *merge.add(0, [Added(0, {"ids": [1], "same": "s"}, 1, top=True), Delta(0, "x")]),
    ]
    found = fold(events)
    assert found.added == {"ids": [1, 3], "same": "s"}
    assert found.added_to == {1: {"token_ids": [8]}}


def test_secrets_in_fields_are_redacted() -> None:
    secret = "a-secret-of-the-operator-1234"
    event = Added(0, {"echo": {"key": [f"Bearer {secret}", secret[3:20], 5]}, "ok": "fine"}, 9)
    [[found]] = redacted(iter([[event]]), Secret(secret))
    assert isinstance(found, Added)
    assert found.fields == {"echo": {"key": ["[key]", "[key]", 5]}, "ok": "fine"}


def test_fields_that_are_nested_too_deeply_are_left_out() -> None:
    body = json.dumps(VLLM)[:-1] + ', "deep": ' + "[" * 500 + "]" * 500 + "}"
    request = CompletionRequest(prompts=("Hi",), extra={"x": 1})
    assert "deep" not in fold(openai_dialect.complete(body.encode(), request)).added


def native(face: Face, **fields: Any) -> Any:
    body = {"model": "fake/m", "prompt": "Say it", "additional_params": ASKING} | fields
    return face.app.test_client().post("/api/v1/completions", json=body, headers=face.headers)


def test_fields_come_back_in_a_whole_native_answer(face: Face, upstream: Upstream) -> None:
    upstream.play(*SCRIPT)
    data = native(face).get_json()
    assert data["extra"] == {"kv_transfer_params": {"a": 1}}
    assert (data["data"], data["choices"][0]["token_ids"]) == ("Hello", [5, 6, 7])


def test_fields_come_back_in_a_native_stream(face: Face, upstream: Upstream) -> None:
    upstream.play(*SCRIPT)
    _, first, second, last, _ = chunks(native(face, stream=True).text)
    assert first["extra"] == {"kv_transfer_params": {"a": 1}}
    assert first["choices"][0]["token_ids"] == [5]
    assert second["choices"][0]["token_ids"] == [6, 7]
    assert last["choices"][0]["stop_reason"] == "x"


@pytest.mark.parametrize("stream", [False, True])
def test_only_the_fields_of_the_attempt_that_serves_the_call_come_back(
    face: Face, upstream: Upstream, stream: bool
) -> None:
    failed: list[Any] = [
        [Started(), Added(0, {"first": 1}, 9, top=True), Added(0, {"early": [1]}, 9)],
        UpstreamError("gone", upstream_status=500),
    ]
    upstream.scripts = [failed, SCRIPT]
    answer = face.ask(stream=stream, fallbacks=["fakechat/m"], **ASKING)
    assert answer.status_code == 200, answer.text
    assert "kv_transfer_params" in answer.text
    assert "early" not in answer.text
    assert '"first"' not in answer.text


def test_many_fields_before_the_first_text_are_not_held_forever(
    face: Face, upstream: Upstream
) -> None:
    big: list[Any] = [Added(0, {"ids": ["x" * 1000]}, 1000)]
    upstream.play([Started()], *[big] * 600, [Delta(0, "a")], [Finished(0, "stop")])
    found = chunks(face.ask(stream=True, **ASKING).text)
    ids = [item for chunk in found for item in chunk["choices"][0].get("ids", [])]
    assert len(ids) == 600
    assert len(found) > 3


def test_an_emulated_echo_comes_with_the_fields(face: Face, upstream: Upstream) -> None:
    upstream.play(*SCRIPT)
    [choice] = face.ask(model="fakechat/m", echo=True, **ASKING).get_json()["choices"]
    assert (choice["text"], choice["token_ids"]) == ("Say itHello", [5, 6, 7])


CREDENTIAL = "operator-credential-1234567890"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"content":"a","stop":false}', b'{"content":"a","stop":false}'),
        (b'{"content":"sk-abcdefghijklmn"}', b'{"content":"sk-abcdefghijklmn"}'),
        (
            f'{{"a":["x {CREDENTIAL}"],"{CREDENTIAL}":1}}'.encode(),
            b'{"a":["x [key]"],"[key]":1}',
        ),
    ],
)
def test_opaque_data_loses_only_the_credential_that_was_sent(data: bytes, expected: bytes) -> None:
    batches = redacted(iter([[Opaque(data, 1, 3)]]), Secret(CREDENTIAL))
    assert list(flatten(batches)) == [Opaque(expected, 1, 3)]
    assert list(flatten(redacted(iter([[Opaque(data)]]), None))) == [Opaque(data)]
