"""The OpenAI dialect: requests, unsupported parameters, and responses that no fixture has."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    Finished,
    FinishReason,
    Started,
    Usage,
    Used,
    flatten,
)
from errors import InvalidRequest, UpstreamError
from keys.redaction import Secret
from providers.base import Dialect, Provider, Target
from providers.decoding import sse
from providers.openai import dialect as openai
from providers.openai.response import FAILURES, REASONS, usage_of
from providers.openai.schemas import Details, Tokens

BOTH = Provider(name="sim", base_url="https://sim.example/v1", completions=("old-*",))
LEGACY = Target(BOTH, "old-1", Secret("test-credential"))
CHAT = Target(BOTH, "new-1", Secret("test-credential"))

EVERYTHING: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 2,
    "stop": ("\n", "END"),
    "seed": 7,
    "frequency_penalty": -1.0,
    "presence_penalty": 1.5,
    "logit_bias": {"50256": -100.0},
    "user": "u-1",
}
SAME = {**EVERYTHING, "stop": ["\n", "END"]}
USER = {"messages": [{"role": "user", "content": "Hi"}]}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
EXTRA = {"top_k": 4, "ignore_eos": None}


def request(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"prompts": ("Hi",), **fields})


def body(target: Target, **fields: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(openai.call(request(**fields), target).body)
    assert decoded.pop("model") == target.model
    return decoded


BODIES: dict[str, tuple[Target, dict[str, Any], dict[str, Any]]] = {
    "legacy, no parameters": (LEGACY, {}, {"prompt": "Hi"}),
    "chat, no parameters": (CHAT, {}, USER),
    "legacy, all parameters": (
        LEGACY,
        {**EVERYTHING, "logprobs": 3, "echo": True, "best_of": 4, "suffix": "!"},
        {"prompt": "Hi", **SAME, "logprobs": 3, "echo": True, "best_of": 4, "suffix": "!"},
    ),
    "chat, all parameters": (
        CHAT,
        {**EVERYTHING, "logprobs": 3},
        {**USER, **SAME, "logprobs": True, "top_logprobs": 3},
    ),
    "legacy, zeros are values": (
        LEGACY,
        {"temperature": 0.0, "seed": 0, "logprobs": 0, "max_tokens": 0},
        {"prompt": "Hi", "temperature": 0.0, "seed": 0, "logprobs": 0, "max_tokens": 0},
    ),
    "chat, logprobs without alternatives": (CHAT, {"logprobs": 0}, {**USER, "logprobs": True}),
    "chat, parameters that only legacy has": (
        CHAT,
        {"echo": True, "best_of": 2, "suffix": "!"},
        USER,
    ),
    "empty means absent": (LEGACY, {"stop": (), "logit_bias": {}, "extra": {}}, {"prompt": "Hi"}),
    "an empty suffix is sent": (LEGACY, {"suffix": ""}, {"prompt": "Hi", "suffix": ""}),
    "several prompts": (LEGACY, {"prompts": ("a", "b")}, {"prompt": ["a", "b"]}),
    "token ids": (LEGACY, {"prompts": ((1, 2),)}, {"prompt": [1, 2]}),
    "lists of token ids": (LEGACY, {"prompts": ((1, 2), (3,))}, {"prompt": [[1, 2], [3]]}),
    "not ASCII": (LEGACY, {"prompts": ("naïve 🦊",)}, {"prompt": "naïve 🦊"}),
    "legacy stream": (LEGACY, {"stream": True}, {"prompt": "Hi", **STREAM}),
    "chat stream": (CHAT, {"stream": True}, {**USER, **STREAM}),
    "extra": (LEGACY, {"extra": EXTRA}, {"prompt": "Hi", **EXTRA}),
    "extra fields of both places are merged": (
        LEGACY,
        {"extra": {"a": {"b": 1}, "c": 2}, "openai_extra": {"a": {"d": 3}, "c": 2}},
        {"prompt": "Hi", "a": {"b": 1, "d": 3}, "c": 2},
    ),
    "a null counts as absent beside a value": (
        LEGACY,
        {"seed": 1, "extra": {"seed": None}},
        {"prompt": "Hi", "seed": 1},
    ),
    "parameters that the host lacks are not sent": (
        Target(Provider(name="few", base_url="http://h", cannot=("seed", "user")), "m"),
        {"seed": 1, "user": "u", "top_p": 0.5},
        {**USER, "top_p": 0.5},
    ),
}


@pytest.mark.parametrize(("target", "fields", "expected"), BODIES.values(), ids=BODIES)
def test_the_request_body_holds_the_requested_fields(
    target: Target, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert body(target, **fields) == expected


REFUSED: dict[str, tuple[Target, dict[str, Any], str]] = {
    "messages": (CHAT, {"extra": {"messages": []}}, "messages"),
    "the model": (LEGACY, {"openai_extra": {"model": "x"}}, "model"),
    "stream_options": (CHAT, {"extra": {"stream_options": {}}}, "stream_options"),
    "another value": (CHAT, {"logprobs": 2, "extra": {"top_logprobs": 5}}, "top_logprobs"),
    "two values in the two places for extra fields": (
        LEGACY,
        {"extra": {"top_k": 1}, "openai_extra": {"top_k": 2}},
        "top_k",
    ),
}


@pytest.mark.parametrize(("target", "fields", "name"), REFUSED.values(), ids=REFUSED)
def test_a_passed_on_field_that_contradicts_the_body_is_refused(
    target: Target, fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(target, **fields)
    assert caught.value.param == name
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("base_url", "target", "url"),
    [
        ("https://h/v1", "old-1", "https://h/v1/completions"),
        ("https://h/v1/", "new-1", "https://h/v1/chat/completions"),
    ],
)
def test_the_url_is_completions_or_chat_completions_by_model(
    base_url: str, target: str, url: str
) -> None:
    row = Provider(name="sim", base_url=base_url, completions=("old-*",))
    call = openai.call(request(), Target(row, target))
    assert (call.method, call.url) == ("POST", url)


def test_headers_carry_the_key_and_the_accepted_type() -> None:
    expected = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "sluice",
        "Authorization": "Bearer test-credential",
    }
    assert openai.call(request(), LEGACY).headers == expected
    expected["Accept"] = "text/event-stream"
    assert openai.call(request(stream=True), CHAT).headers == expected
    del expected["Authorization"]
    assert openai.call(request(stream=True), Target(BOTH, "m")).headers == expected


def test_several_prompts_in_one_chat_call_raise_a_value_error() -> None:
    """The gateway sends one prompt per attempt. If it ever fails to, no prompt is lost silently."""
    with pytest.raises(ValueError):
        openai.call(request(prompts=("a", "b")), CHAT)


def test_unsupported_lists_what_the_endpoint_and_the_provider_row_lack() -> None:
    chat = {"suffix", "best_of", "token_ids", "echo", "echo_logprobs", "prompt_list"}
    assert openai.unsupported(LEGACY) == frozenset()
    assert openai.unsupported(CHAT) == chat
    row = Provider(name="few", completions=("old-*",), cannot=("seed", "logit_bias"))
    assert openai.unsupported(Target(row, "old-1")) == {"seed", "logit_bias"}
    assert openai.unsupported(Target(row, "new-1")) == chat | {"seed", "logit_bias"}


def test_the_openai_module_is_a_dialect() -> None:
    dialect: Dialect = openai
    assert dialect.unsupported(LEGACY) == frozenset()


def chunk(text: str, finish: str | None = None, index: int = 0) -> bytes:
    choice = {"text": text, "index": index, "finish_reason": finish}
    return b"data: " + json.dumps({"model": "m", "choices": [choice]}).encode() + b"\n\n"


def test_each_chunk_with_a_frame_or_a_comment_yields_one_batch() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    chunks = [
        chunk("a") + chunk("b"),
        b": ping\n\n",
        chunk("")[:9],
        chunk("")[9:] + chunk("", "length"),
        usage + b"data: [DONE]\n\n",
    ]
    assert list(openai.events(chunks, request())) == [
        [Started("m"), Delta(0, "a"), Delta(0, "b")],
        [],
        [Finished(0, "length")],
        [Used(Usage(1, 2))],
    ]


def test_no_chunk_is_read_after_done() -> None:
    """Some hosts keep the connection open after [DONE]."""

    def chunks() -> Any:
        yield chunk("a", "stop") + b"data: [DONE]\n\n"
        raise AssertionError

    assert len(list(openai.events(chunks(), request()))) == 1


def test_text_before_a_malformed_event_is_yielded() -> None:
    batches = openai.events([chunk("a") + chunk("b") + b"data: {\n\n"], request())
    assert next(batches) == [Started("m"), Delta(0, "a"), Delta(0, "b")]
    with pytest.raises(UpstreamError):
        next(batches)


WORDS: dict[str, FinishReason | None] = {
    **dict.fromkeys(("stop", "eos", "end_turn", "stop_sequence", "eos_token"), "stop"),
    **dict.fromkeys(("tool_calls", "function_call", "COMPLETE", "a new word"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "MAX_TOKENS"), "length"),
    **dict.fromkeys(("content_filter", "safety", "SAFETY"), "content_filter"),
    **dict.fromkeys(("", "null"), None),
}


@pytest.mark.parametrize(("word", "reason"), WORDS.items())
def test_each_finish_reason_word_is_translated(word: str, reason: FinishReason | None) -> None:
    events = list(flatten(openai.events([chunk("a", word), b"data: [DONE]\n\n"], request())))
    assert events == [Started("m"), Delta(0, "a"), Finished(0, reason or "stop")]
    if reason is None:
        with pytest.raises(UpstreamError, match="before the completion was finished"):
            list(openai.events([chunk("a", word)], request()))


@pytest.mark.parametrize("word", sorted(FAILURES))
def test_a_failure_finish_reason_raises_an_upstream_error(word: str) -> None:
    assert word not in REASONS
    with pytest.raises(UpstreamError) as raised:
        list(openai.events([chunk("a", word)], request()))
    assert raised.value.upstream_code == word


def test_a_json_body_instead_of_a_stream_has_a_size_limit() -> None:
    huge = [b'{"a":"'] + [b"x" * (1 << 20)] * 5
    with pytest.raises(UpstreamError, match="body larger than"):
        list(openai.events(huge, request()))
    assert len(b"".join(huge)) > sse.MAX_EVENT


def test_a_stream_of_blank_chunks_is_an_upstream_error() -> None:
    with pytest.raises(UpstreamError, match="without a completion"):
        list(openai.events([b"\n", b" ", b""], request()))


@pytest.mark.parametrize(
    ("tokens", "usage"),
    [
        (Tokens(), None),
        (Tokens(0, 0, 0), None),
        (Tokens(None, 2), Usage(0, 2)),
        (Tokens(3, None), Usage(3, 0)),
        (Tokens(3, 2, 5), Usage(3, 2)),
        (Tokens(3, 2, 99), Usage(3, 2)),
        (
            Tokens(9, 5, 14, 4, None, Details(reasoning_tokens=3)),
            Usage(9, 5, cache_read_tokens=4, reasoning_tokens=3),
        ),
        (
            Tokens(9, 5, 17, None, Details(2, 1), Details(reasoning_tokens=3)),
            Usage(9, 8, cache_read_tokens=2, cache_write_tokens=1, reasoning_tokens=3),
        ),
    ],
)
def test_reported_token_counts_become_usage(tokens: Tokens, usage: Usage | None) -> None:
    assert usage_of(tokens) == usage


NAMES = st.sampled_from(
    [
        "model",
        "choices",
        "usage",
        "error",
        "index",
        "text",
        "delta",
        "message",
        "content",
        "type",
        "finish_reason",
        "logprobs",
        "tokens",
        "token",
        "bytes",
        "logprob",
        "top_logprobs",
        "code",
        "text_offset",
        "prompt_tokens",
        "completion_tokens_details",
        "x_groq",
        "detail",
        "value",
    ]
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 10**20),
        st.floats(),
        st.sampled_from(["", "stop", "a", "\ud83e", "1", "text", "error"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=5)),
    max_leaves=12,
)
CHOICES = st.fixed_dictionaries({"choices": st.lists(VALUES, max_size=3)})


@settings(deadline=None, max_examples=150, database=None)
@given(values=st.lists(st.one_of(VALUES, CHOICES), max_size=4), n=st.integers(1, 3))
def test_any_json_is_a_completion_or_an_upstream_error(values: list[Any], n: int) -> None:
    """The text of a completion can be encoded as UTF-8."""
    asked = request(n=n, logprobs=1)
    bodies = [json.dumps(value).encode() for value in values]
    stream = b"".join(b"data: " + data + b"\n\n" for data in bodies) + b"data: [DONE]\n\n"
    for streamed in (True, False):
        try:
            if streamed:
                events = list(flatten(openai.events([stream], asked)))
            else:
                events = openai.complete(b"".join(bodies[:1]), asked)
        except UpstreamError:
            continue
        assert any(isinstance(event, Finished) for event in events)
        msgspec.json.encode(events)


@settings(deadline=None, max_examples=300, database=None)
@given(body=st.binary(max_size=60), status=st.integers(400, 599))
def test_random_bytes_raise_an_upstream_error(body: bytes, status: int) -> None:
    with pytest.raises(UpstreamError):
        openai.complete(body, request())
    with pytest.raises(UpstreamError):
        list(openai.events([body], request()))
    error = openai.error(status, {}, body)
    assert error.upstream_status == status
    assert error.message.endswith(f"with status {status}.")


def test_deeply_nested_json_is_an_error() -> None:
    deep = b'{"a":' * 100_000
    with pytest.raises(UpstreamError, match="not JSON"):
        openai.complete(deep, request())
    with pytest.raises(UpstreamError, match="not JSON"):
        list(openai.events([b"data: " + deep + b"\n\n"], request()))
    assert openai.error(500, {}, deep).upstream_code is None


def test_a_deeply_nested_error_event_is_an_error() -> None:
    data = b"event: error\ndata: " + b"[" * 100_000 + b"\n\n"
    with pytest.raises(UpstreamError, match="reported an error"):
        list(openai.events([data], request()))


# Usage in every chunk


def counted(index: int, text: str, made: int, **more: Any) -> dict[str, Any]:
    choices = [{"index": index, "text": text, "finish_reason": None} | more]
    return {"model": "m", "choices": choices, **usage_field(made)}


def usage_field(made: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 4, "completion_tokens": made}}


def streamed(frames: list[dict[str, Any]], n: int, *, done: bool = True) -> Batch:
    lines = [b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames]
    lines += [b"data: [DONE]\n\n"] if done else []
    request = CompletionRequest(prompts=("Hi",), n=n, stream=True)
    return list(flatten(openai.events(lines, request)))


def used(events: Batch) -> list[int]:
    return [event.usage.output_tokens for event in events if isinstance(event, Used)]


def test_running_usage_of_one_choice_follows_each_text() -> None:
    events = streamed([counted(0, "a", 1), counted(0, "b", 2, finish_reason="stop")], 1)
    assert [type(event) for event in events] == [Started, Delta, Used, Delta, Finished, Used]
    assert used(events) == [1, 2]


@pytest.mark.parametrize("done", [True, False])
def test_running_usage_beside_several_choices_counts_only_at_the_end(done: bool) -> None:
    frames = [
        counted(0, "a", 1),
        counted(1, "b", 1),
        counted(0, "c", 2, finish_reason="stop"),
        counted(1, "d", 2, finish_reason="stop"),
    ]
    last = {"model": "m", "choices": [], **usage_field(4)}
    assert used(streamed([*frames, last], 2, done=done)) == [4]
    assert used(streamed(frames, 2, done=done)) == [2]  # without a later usage, the last one counts
