"""The Anthropic dialect: requests, unsupported parameters, and responses that no fixture has."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from providers.anthropic import dialect as anthropic
from providers.anthropic.response import REASONS, usage_of
from providers.anthropic.schemas import STATUSES, Tokens
from providers.base import Dialect, Family, Provider, Target
from providers.decoding import sse
from streams.tally import Tally

ROW = Provider(
    name="anthropic",
    dialect="anthropic",
    base_url="https://sim.example/v1",
    families=(Family(models=("new-*",), cannot=("temperature", "top_p")),),
)
TARGET = Target(ROW, "old-1", Secret("test-credential"))

PLAIN: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4096}
EXTRA: dict[str, Any] = {
    "top_k": 4,
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "system": "Be brief.",
    "service_tier": None,
}


def request(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"prompts": ("Hi",), **fields})


def body(target: Target, **fields: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(anthropic.call(request(**fields), target).body)
    assert decoded.pop("model") == target.model
    return decoded


BODIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no parameters": ({}, {}),
    "max_tokens": ({"max_tokens": 5}, {"max_tokens": 5}),
    "temperature": ({"temperature": 0.5}, {"temperature": 0.5}),
    "a temperature of 0": ({"temperature": 0.0}, {"temperature": 0.0}),
    "top_p": ({"top_p": 0.9}, {"top_p": 0.9}),
    "stop": ({"stop": ("\nQ:", "END")}, {"stop_sequences": ["\nQ:", "END"]}),
    "user": ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
    "stream": ({"stream": True}, {"stream": True}),
    "extra": ({"extra": EXTRA}, EXTRA),
    "all parameters": (
        {
            "max_tokens": 5,
            "temperature": 1.0,
            "top_p": 0.1,
            "stop": ("a",),
            "user": "u",
            "stream": True,
            "extra": {"top_k": 1},
        },
        {
            "max_tokens": 5,
            "temperature": 1.0,
            "top_p": 0.1,
            "stop_sequences": ["a"],
            "metadata": {"user_id": "u"},
            "stream": True,
            "top_k": 1,
        },
    ),
    "empty means absent": ({"stop": (), "extra": {}}, {}),
    "not ASCII": (
        {"prompts": ("naïve 🦊",)},
        {"messages": [{"role": "user", "content": "naïve 🦊"}]},
    ),
    "unsupported parameters are not sent": (
        {
            "seed": 1,
            "frequency_penalty": 1.0,
            "presence_penalty": 1.0,
            "logit_bias": {"1": 1.0},
            "n": 2,
            "best_of": 2,
            "logprobs": 1,
            "echo": True,
            "suffix": "!",
            "openai_extra": {"ignore_eos": True},
        },
        {},
    ),
    "extra can set fields that the request leaves unset": (
        {"extra": {"max_tokens": 6, "metadata": {"user_id": "v"}}},
        {"max_tokens": 6, "metadata": {"user_id": "v"}},
    ),
}


@pytest.mark.parametrize(("fields", "expected"), BODIES.values(), ids=BODIES)
def test_the_request_body_holds_the_requested_fields(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert body(TARGET, **fields) == {**PLAIN, **expected}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"extra": {"messages": []}}, "messages"),
    "the model": ({"extra": {"model": "x"}}, "model"),
    "another stop": ({"stop": ("a",), "extra": {"stop_sequences": ["b"]}}, "stop_sequences"),
    "a user inside metadata": ({"user": "u", "extra": {"metadata": {"user_id": "v"}}}, "user_id"),
    "metadata that isn't an object": ({"user": "u", "extra": {"metadata": "x"}}, "metadata"),
}


@pytest.mark.parametrize(("fields", "name"), REFUSED.values(), ids=REFUSED)
def test_a_passed_on_field_that_contradicts_the_body_is_refused(
    fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(TARGET, **fields)
    assert caught.value.param == name
    assert name in caught.value.message


def test_fields_that_the_model_does_not_support_are_not_sent() -> None:
    target = Target(ROW, "new-1")
    assert body(target, temperature=0.5, top_p=0.5, stop=("a",)) == {
        **PLAIN,
        "stop_sequences": ["a"],
    }
    few = Target(Provider(name="few", base_url="http://h", cannot=("user",)), "m")
    assert body(few, user="u") == PLAIN


def test_several_prompts_in_one_call_raise_a_value_error() -> None:
    """The gateway sends one prompt per attempt. If it ever fails to, no prompt is lost silently."""
    with pytest.raises(ValueError):
        anthropic.call(request(prompts=("a", "b")), TARGET)


@pytest.mark.parametrize(
    ("base_url", "query", "url"),
    [
        ("https://h/v1", "", "https://h/v1/messages"),
        ("https://h/v1/", "", "https://h/v1/messages"),
        ("https://h/v1", "beta=true", "https://h/v1/messages?beta=true"),
    ],
)
def test_a_call_goes_to_the_messages_path_with_the_query_of_the_row(
    base_url: str, query: str, url: str
) -> None:
    row = Provider(name="sim", dialect="anthropic", base_url=base_url, query=query)
    call = anthropic.call(request(), Target(row, "m"))
    assert (call.method, call.url) == ("POST", url)


def test_call_headers_hold_the_api_version_and_the_key() -> None:
    expected = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "sluice",
        "anthropic-version": "2023-06-01",
        "x-api-key": "test-credential",
    }
    assert anthropic.call(request(), TARGET).headers == expected
    expected["Accept"] = "text/event-stream"
    assert anthropic.call(request(stream=True), TARGET).headers == expected
    del expected["x-api-key"]
    assert anthropic.call(request(stream=True), Target(ROW, "m")).headers == expected


def test_a_provider_row_may_set_a_different_header_for_the_key() -> None:
    row = msgspec.structs.replace(ROW, key_header="api-key")
    headers = anthropic.call(request(), Target(row, "m", Secret("test-credential"))).headers
    assert headers["api-key"] == "test-credential"
    assert not headers.keys() & {"Authorization", "x-api-key"}


def test_unsupported_lists_fields_that_the_api_and_the_model_lack() -> None:
    lacks = {
        *("suffix", "logprobs", "echo", "echo_logprobs", "token_ids", "prompt_list"),
        *("n", "best_of", "logit_bias", "seed", "frequency_penalty", "presence_penalty"),
        "openai_extra",
    }
    assert anthropic.unsupported(TARGET) == lacks
    assert anthropic.unsupported(Target(ROW, "new-1")) == lacks | {"temperature", "top_p"}


def test_the_anthropic_module_is_a_dialect() -> None:
    dialect: Dialect = anthropic
    assert dialect.unsupported(TARGET)


def event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}).encode()
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


START = event(
    "message_start",
    message={"model": "m", "content": [], "usage": {"input_tokens": 7, "output_tokens": 1}},
)
LAST = event("message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 2})
STOP = event("message_stop")


def test_stream_events_come_in_a_batch_per_chunk() -> None:
    chunks = [
        START + event("ping") + delta("a") + delta("b"),
        event("ping"),
        delta("c")[:9],
        delta("c")[9:] + LAST,
        STOP,
    ]
    assert list(anthropic.events(chunks, request())) == [
        [Started("m", 7), Delta(0, "a"), Delta(0, "b")],
        [],
        [Delta(0, "c"), Used(Usage(7, 2)), Finished(0, "length")],
        [],
    ]


def test_message_start_reports_the_input_with_its_cached_tokens() -> None:
    usage = {
        "input_tokens": 21,
        "cache_read_input_tokens": 2048,
        "cache_creation_input_tokens": 400,
        "output_tokens": 1,
    }
    start = event("message_start", message={"model": "m", "usage": usage})
    with pytest.raises(UpstreamError):
        list(anthropic.events([start], request()))
    first = next(anthropic.events([start, delta("a")], request()))
    assert first == [Started("m", 2469), Used(Usage(2469, 0, 2048, 400, source="estimate"))]


def test_no_chunk_is_read_after_message_stop() -> None:
    def chunks() -> Any:
        yield START + delta("a") + LAST + STOP
        raise AssertionError

    assert len(list(anthropic.events(chunks(), request()))) == 1


def test_events_before_an_error_event_are_delivered() -> None:
    broken = START + delta("a") + event("error", error={"type": "api_error", "message": "oh"})
    events = anthropic.events([broken], request())
    assert next(events) == [Started("m", 7), Delta(0, "a")]
    with pytest.raises(UpstreamError) as raised:
        next(events)
    assert raised.value.upstream_status == 500


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("tool_use", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_each_stop_reason_maps_to_a_finish_reason(word: str, reason: FinishReason) -> None:
    answer = json.dumps({"content": [], "stop_reason": word}).encode()
    assert fold(anthropic.complete(answer, request())).choices[0].finish_reason == reason
    last = event("message_delta", delta={"stop_reason": word})
    assert anthropic_reason(START + last + STOP) == reason


def anthropic_reason(stream: bytes) -> FinishReason | None:
    return fold(flatten(anthropic.events([stream], request()))).choices[0].finish_reason


def test_the_tables_have_seven_stop_reasons_and_overloaded_as_529() -> None:
    assert len(REASONS) == 7
    assert STATUSES["overloaded_error"] == 529


@pytest.mark.parametrize("kind", STATUSES)
def test_an_error_event_and_an_error_response_give_equal_upstream_errors(kind: str) -> None:
    value = {"type": "error", "error": {"type": kind, "message": "oh"}}
    stream = START + event("error", error=value["error"])
    with pytest.raises(UpstreamError) as raised:
        list(anthropic.events([stream], request()))
    plain = anthropic.error(STATUSES[kind], {}, json.dumps(value).encode())
    assert raised.value.upstream_status == plain.upstream_status
    assert raised.value.upstream_code == plain.upstream_code == kind
    assert raised.value.upstream_message == plain.upstream_message == "oh"


@pytest.mark.parametrize(
    ("tokens", "usage"),
    [
        (Tokens(), None),
        (Tokens(0, 0, 0, 0), None),
        (Tokens(input_tokens=5), Usage(5, 0)),
        (Tokens(output_tokens=5), Usage(0, 5)),
        (Tokens(1, 20, 300, 4), Usage(321, 4, cache_read_tokens=20, cache_write_tokens=300)),
    ],
)
def test_token_counts_are_converted_to_usage(tokens: Tokens, usage: Usage | None) -> None:
    assert usage_of(tokens) == usage


def test_a_json_body_instead_of_a_stream_has_a_size_limit() -> None:
    chunks = [b"{", *([b" " * 65536] * (sse.MAX_EVENT // 65536 + 1))]
    with pytest.raises(UpstreamError, match="larger than"):
        list(anthropic.events(chunks, request()))


def test_blank_chunks_before_a_json_body_instead_of_a_stream_are_skipped() -> None:
    answer = b'{"content":[{"type":"text","text":"a"}],"stop_reason":"end_turn"}'
    (batch,) = anthropic.events([b"", b" \n", answer[:9], answer[9:]], request())
    assert batch == [Started(), Delta(0, "a"), Finished(0, "stop")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                (
                    *("type", "delta", "text", "message", "content", "content_block", "error"),
                    *("usage", "input_tokens", "output_tokens", "stop_reason", "model"),
                )
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
NAMES = ("message_start", "content_block_start", "content_block_delta", "message_delta", "message")


@settings(deadline=None, max_examples=150, database=None)
@given(values=st.lists(st.tuples(st.sampled_from(NAMES), JSON), max_size=4))
def test_any_json_is_a_completion_or_an_upstream_error(values: list[tuple[str, Any]]) -> None:
    """The text of a completion can be encoded as UTF-8."""
    frames = [f"event: {name}\ndata: {json.dumps(value)}\n\n" for name, value in values]
    for streamed in (True, False):
        try:
            if streamed:
                stream = "".join(frames).encode() + STOP
                events = list(flatten(anthropic.events([stream], request())))
            else:
                whole = json.dumps(values[0][1] if values else None).encode()
                events = anthropic.complete(whole, request())
        except UpstreamError:
            continue
        assert any(isinstance(event, Finished) for event in events)
        msgspec.json.encode(events)


@settings(deadline=None, max_examples=300, database=None)
@given(data=st.binary(max_size=60), status=st.integers(400, 599))
def test_random_bytes_raise_an_upstream_error(data: bytes, status: int) -> None:
    with pytest.raises(UpstreamError):
        anthropic.complete(data, request())
    with pytest.raises(UpstreamError):
        list(anthropic.events([data], request()))
    with pytest.raises(UpstreamError):
        list(anthropic.events([b"event: message_start\ndata: " + data + b"\n\n"], request()))
    assert anthropic.error(status, {}, data).upstream_status == status


def test_deeply_nested_json_is_an_error() -> None:
    deep = b'{"a":' * 100_000
    with pytest.raises(UpstreamError, match="not JSON"):
        anthropic.complete(deep, request())
    for name, words in ((b"message_start", "not JSON"), (b"error", "reported an error")):
        with pytest.raises(UpstreamError, match=words):
            list(anthropic.events([b"event: " + name + b"\ndata: " + deep + b"\n\n"], request()))


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("cached", [{}, {"cache_read_input_tokens": 40}])
def test_the_input_tokens_of_a_truncated_stream_are_exact(
    text: bool, cached: dict[str, int]
) -> None:
    usage = {"input_tokens": 21, "output_tokens": 1, **cached}
    frames: list[dict[str, Any]] = [{"type": "message_start", "message": {"usage": usage}}]
    if text:
        delta = {"type": "text_delta", "text": "abcdefgh"}
        frames.append({"type": "content_block_delta", "delta": delta})
    chunks = (f"data: {json.dumps(frame)}\n\n".encode() for frame in frames)
    tally = Tally(("Hi",))
    with suppress(UpstreamError):  # the stream is truncated
        for batch in anthropic.events(chunks, CompletionRequest(prompts=("Hi",), stream=True)):
            tally.add(batch)
    used = tally.usage(failed=False)
    read = sum(cached.values())
    assert used == Usage(21 + read, 2 * text, cache_read_tokens=read, source="estimate")
