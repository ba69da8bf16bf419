"""The infill dialect with a body in llama.cpp's own format: it and its answer pass through."""

from __future__ import annotations

import json
from typing import Any

import pytest

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    Event,
    Finished,
    Opaque,
    Started,
    Usage,
    Used,
    flatten,
    fold,
)
from errors import UpstreamError
from providers import registry
from providers.base import Target
from providers.infill import dialect

BODY = {"input_prefix": "a", "input_suffix": "b", "cache_prompt": True, "response_fields": ["x"]}
TARGET = Target(registry.rows({})["llamacpp"], "tiny")


def asked(**fields: Any) -> CompletionRequest:
    return CompletionRequest(**{"prompts": ("a",), "suffix": "b", "infill": BODY} | fields)


def piece(content: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "content": content, "stop": False, "tokens_evaluated": 9} | more


def last(index: int = 0, made: int = 2, content: str = "", **more: Any) -> dict[str, Any]:
    return piece(content, index, stop=True, stop_type="limit", tokens_predicted=made, **more)


def frames(*pieces: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + compact(one) + b"\n\n" for one in pieces)


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def events(body: bytes, **fields: Any) -> list[Event]:
    return list(flatten(dialect.events([body], asked(stream=True, **fields))))


def opaque(found: Batch) -> list[bytes]:
    return [event.data for event in found if isinstance(event, Opaque)]


@pytest.mark.parametrize("stream", [False, True])
def test_the_body_is_sent_as_it_came_but_for_the_model_and_the_fields_of_the_answer(
    *, stream: bool
) -> None:
    assert dialect.body(asked(stream=stream), TARGET) == {
        "input_prefix": "a",
        "input_suffix": "b",
        "cache_prompt": True,
        "model": "tiny",
        "stream": stream,
    }


def test_the_pieces_of_a_stream_pass_through_and_are_counted() -> None:
    pieces = [piece("He", timings={"a": 1.5}), piece("llo é"), last(id_slot=3)]
    found = events(frames(*pieces))
    assert opaque(found) == [compact(one) for one in pieces]
    assert [e.text_size for e in found if isinstance(e, Opaque)] == [2, 6, 0]
    assert [e.visible for e in found if isinstance(e, Opaque)] == [True, True, True]
    assert found[0] == Started(None)
    assert Finished(0, "length") in found
    assert found[-1] == Used(Usage(9, 2))
    assert not any(isinstance(event, Delta) for event in found)


def test_a_piece_without_text_is_invisible_and_still_passes_through() -> None:
    progress = piece("", prompt_progress={"total": 9})
    [event] = [e for e in events(frames(progress, last())) if isinstance(e, Opaque)][:1]
    assert (event.data, event.visible, event.text_size) == (compact(progress), False, 0)


def test_a_stream_is_the_same_at_every_split_of_its_bytes() -> None:
    body = frames(piece("Hé"), piece("llo"), last())
    expected = events(body)
    for at in range(1, len(body)):
        parts = [body[:at], body[at:]]
        assert list(flatten(dialect.events(parts, asked(stream=True)))) == expected


def test_each_choice_of_a_stream_has_its_index_and_the_usage_is_of_all() -> None:
    pieces = [piece("a", 1), piece("b", 0), last(1, 3), piece("c", 0), last(0, 4)]
    found = events(frames(*pieces), n=2)
    assert [e.index for e in found if isinstance(e, Opaque)] == [1, 0, 1, 0, 0]
    assert [e for e in found if isinstance(e, Finished)] == [
        Finished(1, "length"),
        Finished(0, "length"),
    ]
    assert found[-1] == Used(Usage(9, 7))


def test_a_whole_answer_passes_through_as_one_event() -> None:
    body = compact(last(made=4, content="Hello", generation_settings={"a": 1}))
    found = dialect.complete(body, asked())
    assert opaque(found) == [body]
    completion = fold(found)
    assert completion.opaque == (body,)
    assert completion.usage == Usage(9, 4)
    assert completion.choices[0].finish_reason == "length"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_answer_on_several_lines_becomes_one_line(end: bytes) -> None:
    """In a stream, each of these would end the event's line."""
    body = end.join([b"", b'{"content":"a",', b'"stop":true}', b""])
    [data] = opaque(dialect.complete(body, asked()))
    assert not {*b"\r\n"} & {*data}
    assert json.loads(data) == {"content": "a", "stop": True}


@pytest.mark.parametrize("stream", [False, True])
def test_a_piece_that_is_not_utf_8_is_passed_on_in_utf_8(*, stream: bool) -> None:
    body = b'{"content":"a\xff","stop":true}'
    found = events(b"data: " + body + b"\n\n") if stream else dialect.complete(body, asked())
    assert opaque(found) == [body.replace(b"\xff", "\ufffd".encode())]


def test_several_results_are_an_event_each() -> None:
    results = [last(index, 2, content=f"text {index}") for index in range(3)]
    found = dialect.complete(compact(results), asked(n=3))
    assert opaque(found) == [compact(one) for one in results]
    assert fold(found).usage == Usage(9, 6)


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_ignores_n_cmpl_answers_with_one_result(*, stream: bool) -> None:
    if stream:
        found = events(frames(piece("a"), last()), n=3)
    else:
        found = dialect.complete(compact(last(content="a")), asked(n=3))
    assert len([event for event in found if isinstance(event, Finished)]) == 1


def test_data_with_line_breaks_becomes_one_line() -> None:
    body = json.dumps(last(content="a\nb"), indent=1).encode()
    [data] = opaque(dialect.complete(body, asked()))
    assert b"\n" not in data
    assert json.loads(data) == json.loads(body)


def test_a_whole_answer_to_a_streamed_request_is_its_only_event() -> None:
    body = compact(last(content="Hello"))
    assert opaque(events(body)) == [body]


def test_a_stream_instead_of_a_whole_answer_is_decoded_to_text() -> None:
    found = fold(dialect.complete(frames(piece("He"), piece("llo"), last()), asked()))
    assert (found.opaque, found.choices[0].text) == ((), "Hello")


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"[1]",
        b"{}",
        b"null",
        b'{"content":null}',
        b"[[]]",
        b'{"error":{"code":500,"message":"x"}}',
        b"<html>",
    ],
)
def test_a_body_that_is_no_answer_is_an_upstream_error(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        dialect.complete(body, asked())


@pytest.mark.parametrize(
    "body",
    [
        frames(piece("a")),
        frames(piece("a"), {"error": {"code": 500, "message": "x"}}),
        frames(piece("a")) + b'error: {"code":500,"message":"x"}\n\n',
    ],
)
def test_a_stream_that_breaks_off_or_fails_is_an_upstream_error(body: bytes) -> None:
    with pytest.raises(UpstreamError):
        events(body)


def test_a_request_that_did_not_come_in_llamacpps_format_gets_text() -> None:
    request = CompletionRequest(prompts=("a",), suffix="b")
    found = dialect.complete(compact(last(content="Hello")), request)
    assert Delta(0, "Hello") in found
    assert opaque(found) == []
