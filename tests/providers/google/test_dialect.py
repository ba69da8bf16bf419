"""The Google dialect: requests, unsupported parameters, and responses that no fixture has."""

from __future__ import annotations

import json
from typing import Any

import pytest

from completion import (
    CompletionRequest,
    Delta,
    Finished,
    FinishReason,
    Started,
    Usage,
    Used,
    flatten,
    fold,
)
from errors import InvalidRequest, UpstreamError
from keys.redaction import Secret
from providers.base import Dialect, Provider, Target
from providers.google import dialect as google
from providers.google.response import FAILURES, NOT_YET, REASONS

HOST = "https://generativelanguage.example/v1beta"
ROW = Provider(name="google", dialect="google", base_url=HOST, key_header="x-goog-api-key")
TARGET = Target(ROW, "gemini-2.5-flash", Secret("test-credential"))

EVERYTHING: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 2,
    "stop": ("\n", "END"),
    "seed": 7,
    "frequency_penalty": -1.0,
    "presence_penalty": 1.5,
    "logprobs": 3,
}
CONFIG = {
    "maxOutputTokens": 5,
    "temperature": 0.5,
    "topP": 0.9,
    "candidateCount": 2,
    "stopSequences": ["\n", "END"],
    "seed": 7,
    "frequencyPenalty": -1.0,
    "presencePenalty": 1.5,
    "responseLogprobs": True,
    "logprobs": 3,
}
SAFETY = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]


def request(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"prompts": ("Hi",), **fields})


def body(target: Target = TARGET, **fields: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(google.call(request(**fields), target).body)
    assert decoded.pop("contents") == [{"role": "user", "parts": [{"text": "Hi"}]}]
    return decoded


BODIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no parameters": ({}, {}),
    "a stream changes only the path": ({"stream": True}, {}),
    "all parameters": (EVERYTHING, {"generationConfig": CONFIG}),
    **{
        name: ({name: EVERYTHING[name]}, {"generationConfig": {theirs: CONFIG[theirs]}})
        for name, theirs in google.CONFIG.items()
    },
    "zeros are values": (
        {"temperature": 0.0, "seed": 0, "logprobs": 0},
        {"generationConfig": {"temperature": 0.0, "seed": 0, "responseLogprobs": True}},
    ),
    "empty means absent": ({"stop": (), "logit_bias": {}, "extra": {}}, {}),
    "unsupported parameters are not sent": (
        {"echo": True, "best_of": 2, "suffix": "!", "user": "u"},
        {},
    ),
    "extra at the top": (
        {"extra": {"safetySettings": SAFETY, "cachedContent": "cachedContents/1", "new": 1}},
        {"safetySettings": SAFETY, "cachedContent": "cachedContents/1", "new": 1},
    ),
    "extra fields of generationConfig": (
        {"extra": {"topK": 4, "thinkingConfig": {"thinkingBudget": 0}, "response_mime_type": "x"}},
        {
            "generationConfig": {
                "topK": 4,
                "thinkingConfig": {"thinkingBudget": 0},
                "responseMimeType": "x",
            }
        },
    ),
    "generationConfig in extra": (
        {"top_p": 0.9, "extra": {"generationConfig": {"topK": 4, "thinkingConfig": {"x": 1}}}},
        {"generationConfig": {"topP": 0.9, "topK": 4, "thinkingConfig": {"x": 1}}},
    ),
    "extra fields and generationConfig are merged": (
        {
            "extra": {
                "thinkingConfig": {"thinkingBudget": 0},
                "generation_config": {"thinkingConfig": {"includeThoughts": True}},
            }
        },
        {"generationConfig": {"thinkingConfig": {"thinkingBudget": 0, "includeThoughts": True}}},
    ),
}


@pytest.mark.parametrize(("fields", "expected"), BODIES.values(), ids=BODIES)
def test_parameters_are_translated_to_the_google_request_body(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert body(**fields) == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "contents": ({"extra": {"contents": []}}, "contents"),
    "another value in generationConfig": (
        {"top_p": 0.9, "extra": {"generationConfig": {"topP": 0.1}}},
        "topP",
    ),
    "another value in snake case": (
        {"stop": ("a",), "extra": {"generation_config": {"stop_sequences": ["b"]}}},
        "stopSequences",
    ),
    "another value at the top": ({"top_p": 0.9, "extra": {"topP": 0.1}}, "topP"),
    "two values in the caller's own objects": (
        {"extra": {"topK": 4, "generationConfig": {"topK": 5}}},
        "topK",
    ),
    "no object inside generationConfig": (
        {"extra": {"thinkingConfig": {}, "generationConfig": {"thinkingConfig": 7}}},
        "thinkingConfig",
    ),
    "generationConfig is None": (
        {"max_tokens": 5, "extra": {"generationConfig": None}},
        "generationConfig",
    ),
    "generationConfig is []": (
        {"max_tokens": 5, "extra": {"generationConfig": []}},
        "generationConfig",
    ),
    "generationConfig is a string": (
        {"max_tokens": 5, "extra": {"generationConfig": "x"}},
        "generationConfig",
    ),
    "generation_config is None": (
        {"max_tokens": 5, "extra": {"generation_config": None}},
        "generation_config",
    ),
    "generation_config is []": (
        {"max_tokens": 5, "extra": {"generation_config": []}},
        "generation_config",
    ),
    "generation_config is a string": (
        {"max_tokens": 5, "extra": {"generation_config": "x"}},
        "generation_config",
    ),
}


@pytest.mark.parametrize(("fields", "name"), REFUSED.values(), ids=REFUSED)
def test_a_passed_on_field_that_contradicts_the_body_is_refused(
    fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(**fields)
    assert caught.value.param == name
    assert name in caught.value.message


def test_parameters_in_the_cannot_list_of_a_provider_are_not_sent() -> None:
    row = Provider(name="g", base_url=HOST, cannot=("seed", "logprobs"))
    sent = body(Target(row, "m"), seed=1, logprobs=2, top_p=0.5)
    assert sent == {"generationConfig": {"topP": 0.5}}


def test_characters_beyond_ascii_are_sent_unchanged() -> None:
    sent = json.loads(google.call(request(prompts=("naïve 🦊",)), TARGET).body)
    assert sent["contents"][0]["parts"] == [{"text": "naïve 🦊"}]


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", "models/gemini-2.5-flash"),
        ("models/gemini-2.5-flash", "models/gemini-2.5-flash"),
        ("tunedModels/mine-1", "tunedModels/mine-1"),
        ("a/b c?d#e:f", "models/a%2Fb%20c%3Fd%23e%3Af"),
        ("../x", "models/..%2Fx"),
    ],
)
def test_the_url_has_the_model_and_the_method_for_streams_or_json_bodies(
    model: str, path: str
) -> None:
    for base in (HOST, HOST + "/"):
        target = Target(Provider(name="google", base_url=base), model)
        whole, streamed = google.call(request(), target), google.call(request(stream=True), target)
        assert (whole.method, whole.url) == ("POST", f"{HOST}/{path}:generateContent")
        assert streamed.url == f"{HOST}/{path}:streamGenerateContent?alt=sse"


def test_the_query_of_a_provider_row_is_kept_in_the_url() -> None:
    target = Target(Provider(name="g", base_url=HOST, query="a=1"), "m")
    assert google.call(request(), target).url == f"{HOST}/models/m:generateContent?a=1"
    streamed = google.call(request(stream=True), target).url
    assert streamed == f"{HOST}/models/m:streamGenerateContent?alt=sse&a=1"


def test_the_key_is_sent_only_in_the_x_goog_api_key_header() -> None:
    call = google.call(request(stream=True), TARGET)
    assert call.headers["x-goog-api-key"] == "test-credential"
    assert "Authorization" not in call.headers
    assert call.headers["Accept"] == "text/event-stream"
    assert "test-credential" not in call.url + call.body.decode()
    assert "x-goog-api-key" not in google.call(request(), Target(ROW, "m")).headers


def test_unsupported_lists_what_the_dialect_and_the_provider_row_lack() -> None:
    row = Provider(name="g", base_url=HOST, cannot=("seed",))
    lacks = {"suffix", "best_of", "logit_bias", "user", "openai_extra"}
    lacks |= {"token_ids", "echo", "echo_logprobs", "prompt_list"}
    assert google.unsupported(Target(row, "m")) == lacks | {"seed"}
    assert google.unsupported(TARGET) == lacks


def test_the_google_module_is_a_dialect() -> None:
    dialect: Dialect = google
    assert dialect


# Responses


def candidate(text: str = "", finish: str | None = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"content": {"parts": [{"text": text}]}, **more}
    return {**found, "finishReason": finish} if finish else found


def sse(*chunks: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks)


def ended(word: str) -> FinishReason | None:
    stream = sse({"candidates": [candidate("Hi", word)]})
    (choice,) = fold(flatten(google.events([stream], request(stream=True)))).choices
    return choice.finish_reason


@pytest.mark.parametrize("word", sorted(REASONS))
def test_a_finish_reason_is_translated(word: str) -> None:
    assert ended(word) == REASONS[word]


@pytest.mark.parametrize("word", ["STOP", "SOMETHING_NEW"])
def test_stop_and_unknown_finish_reasons_become_stop(word: str) -> None:
    assert ended(word) == "stop"


@pytest.mark.parametrize("word", sorted(FAILURES))
def test_a_finish_reason_that_means_failure_raises_an_upstream_error(word: str) -> None:
    with pytest.raises(UpstreamError) as raised:
        ended(word)
    assert raised.value.upstream_code == word
    assert raised.value.upstream_status is None


@pytest.mark.parametrize("word", sorted(NOT_YET - {""}))
def test_an_unspecified_finish_reason_does_not_end_a_stream(word: str) -> None:
    with pytest.raises(UpstreamError, match="before the completion was finished"):
        ended(word)


def test_text_after_a_finish_reason_is_still_sent() -> None:
    """Some hosts put STOP on every chunk, even on empty chunks before the text."""
    stream = sse(
        {"candidates": [candidate("", "STOP")]},
        {"candidates": [candidate("Hel", "STOP")]},
        {"candidates": [candidate("lo")]},
        {"candidates": [candidate("!", "MAX_TOKENS")]},
    )
    events = list(flatten(google.events([stream], request(stream=True))))
    assert events == [
        Started(None),
        Finished(0, "stop"),
        Delta(0, "Hel"),
        Finished(0, "stop"),
        Delta(0, "lo"),
        Delta(0, "!"),
        Finished(0, "length"),
    ]


def usage(prompt: int, candidates: int | None = None) -> dict[str, Any]:
    counts = {"promptTokenCount": prompt}
    return counts if candidates is None else {**counts, "candidatesTokenCount": candidates}


def used(prompt: int, output: int) -> Used:
    return Used(Usage(input_tokens=prompt, output_tokens=output))


def test_usage_is_reported_after_the_text_that_it_counts() -> None:
    stream = [
        sse({"usageMetadata": usage(8)}),
        sse({"candidates": [candidate("a")], "usageMetadata": usage(8)}),
        sse({"candidates": [candidate("b")], "usageMetadata": usage(8, 2)}),
        sse({"candidates": [candidate("c")], "usageMetadata": usage(8, 2)}),
        sse({"candidates": [candidate("", "STOP")], "usageMetadata": usage(8, 3)}),
    ]
    assert list(google.events(stream, request(stream=True))) == [
        [Started(None, 8), used(8, 0)],
        [Delta(0, "a")],
        [Delta(0, "b"), used(8, 2)],
        [Delta(0, "c"), used(8, 2)],
        [Finished(0, "stop"), used(8, 3)],
    ]


def test_usage_without_output_tokens_is_not_reported_for_a_cut_off_stream() -> None:
    stream = sse({"candidates": [candidate("a")], "usageMetadata": usage(8)})
    events = google.events([stream], request(stream=True))
    assert next(events) == [Started(None, 8), Delta(0, "a")]
    with pytest.raises(UpstreamError):
        next(events)


def test_usage_is_reported_for_a_failed_completion() -> None:
    broken = candidate("a", "OTHER")
    stream = sse({"candidates": [broken], "usageMetadata": usage(8)})
    events = google.events([stream], request(stream=True))
    assert next(events) == [Started(None, 8), Delta(0, "a"), used(8, 0)]
    with pytest.raises(UpstreamError):
        next(events)


def test_logprobs_are_kept_for_tokens_without_alternatives() -> None:
    result = {
        "chosenCandidates": [{"token": "a", "logProbability": -1}, {"token": None}, {"token": "b"}],
        "topCandidates": [{"candidates": [{"token": "a", "logProbability": -1}]}, {}],
    }
    stream = {"candidates": [candidate("ab", "STOP", logprobsResult=result)]}
    batch = google.complete(json.dumps(stream).encode(), request(logprobs=1))
    (choice,) = fold(batch).choices
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["a", "b"]
    assert choice.logprobs.token_logprobs == [-1.0, None]
    assert choice.logprobs.top_logprobs == [{"a": -1.0}, {}]
    assert choice.logprobs.text_offset == [0, 1]


@pytest.mark.parametrize(
    ("status", "details", "expected"),
    [
        (400, [], 400),
        (400, [{"reason": "API_KEY_INVALID"}], 401),
        (400, [{"reason": 7}, "x", {"reason": "API_KEY_EXPIRED"}], 401),
        (403, [{"reason": "API_KEY_IP_ADDRESS_BLOCKED"}], 403),
        (401, [{"reason": "API_KEY_INVALID"}], 401),
        (403, [{"reason": "SERVICE_DISABLED"}], 403),
        (400, None, 400),
    ],
)
def test_an_invalid_key_reason_turns_status_400_into_401(
    status: int, details: Any, expected: int
) -> None:
    answer = {"error": {"code": status, "status": "INVALID_ARGUMENT", "details": details}}
    assert google.error(status, {}, json.dumps(answer).encode()).upstream_status == expected


@pytest.mark.parametrize("code", [200, "429", None, 99, 600])
def test_an_error_code_that_is_not_an_http_error_status_is_ignored(code: Any) -> None:
    stream = sse({"error": {"code": code, "message": "no"}})
    with pytest.raises(UpstreamError) as raised:
        list(google.events([stream], request(stream=True)))
    assert raised.value.upstream_status is None
    assert raised.value.upstream_message == "no"


def test_an_error_in_bare_json_lines_is_found_after_a_long_stream() -> None:
    text = sse({"candidates": [candidate("x" * 1000)]}) * 100
    late = json.dumps({"error": {"code": 503, "message": "busy"}}, indent=2).encode()
    for chunks in ([text, late], [text + late]):
        with pytest.raises(UpstreamError) as raised:
            list(google.events(chunks, request(stream=True)))
        assert raised.value.upstream_status == 503


def test_a_json_array_instead_of_a_stream_has_a_size_limit() -> None:
    chunks = [b"[", *[b" " * (1 << 20)] * 5]
    with pytest.raises(UpstreamError, match="larger than"):
        list(google.events(chunks, request(stream=True)))
