"""The Cohere dialect: requests, unsupported parameters, and responses that no fixture has."""

from __future__ import annotations

import json
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
from providers.base import Dialect, Provider, Target
from providers.cohere import dialect as cohere
from providers.cohere.response import FAILURES, usage_of
from providers.cohere.schemas import Counts, Tokens

ROW = Provider(name="cohere", dialect="cohere", base_url="https://sim.example/v2")
TARGET = Target(ROW, "command-1", Secret("test-credential"))

PLAIN: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
EXTRA: dict[str, Any] = {
    "k": 4,
    "safety_mode": "STRICT",
    "thinking": {"type": "disabled"},
    "priority": None,
}


def request(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"prompts": ("Hi",), **fields})


def body(target: Target, **fields: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(cohere.call(request(**fields), target).body)
    assert decoded.pop("model") == target.model
    return decoded


BODIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no parameters": ({}, {}),
    "max_tokens": ({"max_tokens": 5}, {"max_tokens": 5}),
    "temperature": ({"temperature": 0.5}, {"temperature": 0.5}),
    "top_p": ({"top_p": 0.9}, {"p": 0.9}),
    "stop": ({"stop": ("\n", "END")}, {"stop_sequences": ["\n", "END"]}),
    "seed": ({"seed": 7}, {"seed": 7}),
    "frequency_penalty": ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
    "presence_penalty": ({"presence_penalty": 0.5}, {"presence_penalty": 0.5}),
    "zeros are values": ({"temperature": 0.0, "seed": 0}, {"temperature": 0.0, "seed": 0}),
    "stream": ({"stream": True}, {"stream": True}),
    "extra": ({"extra": EXTRA}, EXTRA),
    "empty means absent": ({"stop": (), "extra": {}}, {}),
    "not ASCII": (
        {"prompts": ("naïve 🦊",)},
        {"messages": [{"role": "user", "content": "naïve 🦊"}]},
    ),
    "unsupported parameters are not sent": (
        {
            "logit_bias": {"1": 1.0},
            "n": 2,
            "best_of": 2,
            "logprobs": 1,
            "echo": True,
            "suffix": "!",
            "user": "u",
            "openai_extra": {"ignore_eos": True},
        },
        {},
    ),
}


@pytest.mark.parametrize(("fields", "expected"), BODIES.values(), ids=BODIES)
def test_the_request_body_holds_the_requested_fields(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert body(TARGET, **fields) == {**PLAIN, **expected}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"extra": {"messages": []}}, "messages"),
    "another top_p": ({"top_p": 0.5, "extra": {"p": 0.6}}, "p"),
}


@pytest.mark.parametrize(("fields", "name"), REFUSED.values(), ids=REFUSED)
def test_a_passed_on_field_that_contradicts_the_body_is_refused(
    fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(TARGET, **fields)
    assert caught.value.param == name
    assert name in caught.value.message


def test_fields_that_the_provider_does_not_support_are_not_sent() -> None:
    few = Target(Provider(name="few", base_url="http://h", cannot=("seed",)), "m")
    assert body(few, seed=1, top_p=0.5) == {**PLAIN, "p": 0.5}


def test_several_prompts_in_one_call_raise_a_value_error() -> None:
    with pytest.raises(ValueError):
        cohere.call(request(prompts=("a", "b")), TARGET)


def test_a_call_goes_to_the_chat_path_with_the_key_in_a_header() -> None:
    expected = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "sluice",
        "Authorization": "Bearer test-credential",
    }
    call = cohere.call(request(), TARGET)
    assert (call.method, call.url) == ("POST", "https://sim.example/v2/chat")
    assert call.headers == expected
    expected["Accept"] = "text/event-stream"
    assert cohere.call(request(stream=True), TARGET).headers == expected
    del expected["Authorization"]
    assert cohere.call(request(stream=True), Target(ROW, "m")).headers == expected


def test_unsupported_lists_fields_that_the_api_and_the_provider_lack() -> None:
    lacks = {
        *("suffix", "logprobs", "echo", "echo_logprobs", "token_ids", "prompt_list"),
        *("n", "best_of", "logit_bias", "user", "openai_extra"),
    }
    assert cohere.unsupported(TARGET) == lacks
    row = msgspec.structs.replace(ROW, cannot=("seed",))
    assert cohere.unsupported(Target(row, "m")) == lacks | {"seed"}


def test_the_cohere_module_is_a_dialect() -> None:
    dialect: Dialect = cohere
    assert dialect.unsupported(TARGET)


def event(kind: str, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}).encode()
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def delta(text: str) -> bytes:
    return event("content-delta", index=0, delta={"message": {"content": {"text": text}}})


def end(**fields: Any) -> bytes:
    return event("message-end", delta=fields)


START = event("message-start", id="1", delta={"message": {"role": "assistant", "content": []}})
USAGE = {"billed_units": {"input_tokens": 5, "output_tokens": 2}}


def test_stream_events_come_in_a_batch_per_chunk() -> None:
    chunks = [
        START + delta("a") + delta("b"),
        event("content-end", index=0),
        delta("c")[:9],
        delta("c")[9:],
        end(finish_reason="MAX_TOKENS", usage=USAGE),
        b"data: [DONE]\n\n",
    ]
    assert list(cohere.events(chunks, request())) == [
        [Started(), Delta(0, "a"), Delta(0, "b")],
        [],
        [Delta(0, "c")],
        [Used(Usage(5, 2)), Finished(0, "length")],
    ]


def test_no_chunk_is_read_after_message_end() -> None:
    def chunks() -> Any:
        yield START + delta("a") + end(finish_reason="COMPLETE")
        raise AssertionError

    assert len(list(cohere.events(chunks(), request()))) == 1


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("COMPLETE", "stop"),
        ("STOP_SEQUENCE", "stop"),
        ("TOOL_CALL", "stop"),
        ("MAX_TOKENS", "length"),
        ("ERROR_LIMIT", "length"),
        ("ERROR_TOXIC", "content_filter"),
        ("SOMETHING_NEW", "stop"),
        (None, "stop"),
    ],
)
def test_each_cohere_finish_reason_maps_to_a_finish_reason(
    word: str | None, reason: FinishReason
) -> None:
    answer = json.dumps({"message": {"content": []}, "finish_reason": word}).encode()
    assert fold(cohere.complete(answer, request())).choices[0].finish_reason == reason
    streamed = fold(flatten(cohere.events([START + end(finish_reason=word)], request())))
    assert streamed.choices[0].finish_reason == reason


@pytest.mark.parametrize("word", FAILURES)
def test_a_failure_finish_reason_raises_an_error_after_the_usage(word: str) -> None:
    """A failed completion still has a usage, which must be billed."""
    stream = START + delta("a") + end(finish_reason=word, error="oh", usage=USAGE)
    events = cohere.events([stream], request())
    assert next(events) == [Started(), Delta(0, "a"), Used(Usage(5, 2))]
    with pytest.raises(UpstreamError) as raised:
        next(events)
    assert raised.value.upstream_status == FAILURES[word]
    assert (raised.value.upstream_code, raised.value.upstream_message) == (word, "oh")


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        (Counts(), None),
        (Counts(Tokens(), Tokens()), None),
        (Counts(Tokens(5.0, 2.0), Tokens(71.0, 9.0)), Usage(5, 2)),
        (Counts(None, Tokens(71, 9)), Usage(71, 9)),
        (Counts(Tokens(None, 2), Tokens(71, 9)), Usage(71, 2)),
        (Counts(Tokens(0, 0), Tokens(71, 9)), Usage(0, 0)),
        (Counts(None, Tokens(output_tokens=9), 4), Usage(0, 9)),
        (Counts(Tokens(50, 2), None, 40), Usage(50, 2, cache_read_tokens=40)),
        (Counts(Tokens(50, 2), None, 60), Usage(50, 2, cache_read_tokens=50)),
    ],
)
def test_token_counts_are_converted_to_usage(counts: Counts, usage: Usage | None) -> None:
    assert usage_of(counts) == usage


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                (
                    *("type", "delta", "text", "message", "content", "error", "finish_reason"),
                    *("usage", "billed_units", "tokens", "input_tokens", "cached_tokens"),
                )
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
NAMES = ("message-start", "content-start", "content-delta", "message-end", "message")


@settings(deadline=None, max_examples=150, database=None)
@given(values=st.lists(st.tuples(st.sampled_from(NAMES), JSON), max_size=4))
def test_any_json_is_a_completion_or_an_upstream_error(values: list[tuple[str, Any]]) -> None:
    """The text of a completion can be encoded as UTF-8."""
    frames = [f"event: {name}\ndata: {json.dumps(value)}\n\n" for name, value in values]
    for streamed in (True, False):
        try:
            if streamed:
                stream = "".join(frames).encode() + end(finish_reason="COMPLETE")
                events = list(flatten(cohere.events([stream], request())))
            else:
                whole = json.dumps(values[0][1] if values else None).encode()
                events = cohere.complete(whole, request())
        except UpstreamError:
            continue
        assert any(isinstance(event, Finished) for event in events)
        msgspec.json.encode(events)


@settings(deadline=None, max_examples=300, database=None)
@given(data=st.binary(max_size=60), status=st.integers(400, 599))
def test_random_bytes_raise_an_upstream_error(data: bytes, status: int) -> None:
    with pytest.raises(UpstreamError):
        cohere.complete(data, request())
    with pytest.raises(UpstreamError):
        list(cohere.events([data], request()))
    with pytest.raises(UpstreamError):
        list(cohere.events([b"event: message-start\ndata: " + data + b"\n\n"], request()))
    assert cohere.error(status, {}, data).upstream_status == status
