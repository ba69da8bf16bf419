"""Tests of the chat dialect on raw bytes: what is sent, and what becomes of what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from completion import (
    NO_CHOICE,
    Chat,
    CompletionRequest,
    Event,
    Finished,
    Opaque,
    Started,
    Thought,
    Usage,
    Used,
    flatten,
)
from config import ConfigError
from errors import UpstreamError
from keys.redaction import Secret
from providers import registry
from providers.base import Provider, Target
from providers.hosts import BUILT_IN
from providers.openai import chat, dialect
from streams.tally import Tally
from tests.support.paths import FIXTURES

ROWS = {row.name: registry.fill_in(row, {"AWS_REGION": "eu-west-1"}) for row in BUILT_IN}
FIXTURES_OF_OPENAI = sorted(
    folder for folder in (FIXTURES / "openai").iterdir() if list(folder.glob("stream.*"))
)
HEAD = '"id":"c1","object":"chat.completion.chunk","created":5,"model":"gpt-x"'


def request(body: str = '{"model":"a/b","messages":[]}', **fields: Any) -> CompletionRequest:
    raws = msgspec.json.decode(body, type=dict[str, Raw])
    found = Chat(fields=raws, size=len(body), input_tokens=7, most_input=30)
    given: dict[str, Any] = {"prompts": ("x",), "chat": found, "stream": True}
    return CompletionRequest(**(given | fields))


def target(name: str = "openai", model: str = "m", **changes: Any) -> Target:
    row = msgspec.structs.replace(ROWS[name], **changes)
    found = Target(row, model, Secret("sk-1234567890")).for_chat
    assert found is not None
    return found


def sent(body: str, to: Target | None = None, **fields: Any) -> str:
    call = chat.call(request(body, **fields), to or target())
    return b"".join((call.body, *call.more)).decode()


# What is sent


def test_fields_keep_their_bytes_and_their_order() -> None:
    body = (
        '{"tools":[ {"x" : 1.0} ],"model":"openai/m","messages":[{"role":"user",'
        '"content":"\\u00e9"}],"vendor":1e400,"temperature":0.50,"response_format":null}'
    )
    assert sent(body, stream=False) == (
        '{"tools":[ {"x" : 1.0} ],"model":"m","messages":[{"role":"user","content":"\\u00e9"}],'
        '"vendor":1e400,"temperature":0.50,"response_format":null}'
    )


def test_usage_is_requested_beside_the_callers_own_options() -> None:
    one = '{"messages":[],"stream":true}'
    assert sent(one) == (
        '{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}'
    )
    found = request(one)
    assert found.chat is not None
    found.chat.stream_options = {"include_obfuscation": False}
    call = chat.call(found, target())
    assert json.loads(call.body)["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }


@pytest.mark.parametrize("name", ["mistral", "perplexity"])
def test_hosts_without_stream_options_dont_get_them(name: str) -> None:
    body = '{"stream_options":{"include_usage":true},"stream":true,"messages":[]}'
    assert sent(body, target(name)) == '{"model":"m","stream":true,"messages":[]}'


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("openai", "max_tokens", "max_completion_tokens"),
        ("openai", "max_completion_tokens", "max_completion_tokens"),
        ("mistral", "max_completion_tokens", "max_tokens"),
        ("vllm", "max_tokens", "max_tokens"),
        ("mistral", "seed", "random_seed"),
    ],
)
def test_a_field_gets_the_hosts_name(name: str, field: str, expected: str) -> None:
    found = json.loads(sent(f'{{"messages":[],"{field}":5}}', target(name)))
    assert found[expected] == 5
    assert expected == field or field not in found


def test_a_null_doesnt_replace_the_other_name_of_a_limit() -> None:
    found = json.loads(sent('{"max_tokens":5,"max_completion_tokens":null,"messages":[]}'))
    assert (found["max_completion_tokens"], "max_tokens" in found) == (5, False)


def test_a_long_body_is_sent_in_slices_that_arent_copied() -> None:
    text = "x" * (3 * chat.SLICE)
    body = f'{{"model":"a/b","messages":"{text}","n":1}}'
    call = chat.call(request(body, stream=False), target())
    assert max(part.nbytes for part in call.more) == chat.SLICE
    whole = b"".join((call.body, *call.more)).decode()
    assert whole == f'{{"model":"m","messages":"{text}","n":1}}'


URLS = {
    "openai": "https://api.openai.com/v1/chat/completions",
    "anthropic": "https://api.anthropic.com/v1/chat/completions",
    "cohere": "https://api.cohere.com/compatibility/v1/chat/completions",
    "google": "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions",
    "azure": "{AZURE_OPENAI_ENDPOINT}/openai/v1/chat/completions",
    "deepseek": "https://api.deepseek.com/chat/completions",
    "groq": "https://api.groq.com/openai/v1/chat/completions",
    "perplexity": "https://api.perplexity.ai/chat/completions",
    "fireworks": "https://api.fireworks.ai/inference/v1/chat/completions",
    "llamacpp": "http://127.0.0.1:8080/v1/chat/completions",
}


@pytest.mark.parametrize("name", URLS)
def test_each_row_has_its_url_for_chats(name: str) -> None:
    assert target(name).chat_url == URLS[name]


def test_the_key_goes_into_the_header_of_the_compatibility_layer() -> None:
    for name in ("anthropic", "google", "cohere", "openai"):
        headers = chat.call(request(), target(name)).headers
        assert headers["Authorization"] == "Bearer sk-1234567890"
        assert "x-goog-api-key" not in headers
    assert chat.call(request(), target("azure")).headers["api-key"] == "sk-1234567890"


def test_bedrock_chats_only_with_the_models_that_its_endpoint_has() -> None:
    row = ROWS["bedrock"]
    assert Target(row, "anthropic.claude-haiku-4-5-20251001-v1:0").for_chat is None
    found = Target(row, "openai.gpt-oss-20b-1:0").for_chat
    assert found is not None
    assert found.chat_url == (
        "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1/chat/completions"
    )


def test_a_row_can_have_a_url_of_its_own_or_none() -> None:
    row = Provider(name="x", base_url="https://x.example/a/{model}", query="v=1")
    found = Target(row, "m/1").for_chat
    assert found is not None
    assert found.chat_url == "https://x.example/a/m%2F1/chat/completions?v=1"
    assert Target(msgspec.structs.replace(row, chat_url=""), "m").for_chat is None
    other = msgspec.structs.replace(row, chat_url="https://y.example/chat", query="")
    assert Target(other, "m").chat_url == "https://y.example/chat"


def test_a_rows_url_for_chats_is_checked_and_its_variables_are_needed() -> None:
    table = {"x": {"base_url": "https://x.example", "chat_url": "https://{CHAT_HOST}/chat"}}
    row = registry.rows(table)["x"]
    assert registry.missing(row, {}) == ["CHAT_HOST"]
    filled = registry.rows(table, {"CHAT_HOST": "y.example"})["x"]
    assert Target(filled, "m").chat_url == "https://y.example/chat"
    with pytest.raises(ConfigError, match="chat_url must begin with http:// or https://"):
        registry.rows({"x": table["x"] | {"chat_url": "ftp://y.example"}})


# What comes back


def chunk(delta: str, reason: str = "null", more: str = "", index: int = 0) -> str:
    choice = f'{{"index":{index},"delta":{delta},"finish_reason":{reason}}}'
    return f'{{{HEAD},"choices":[{choice}]{more}}}'


def stream(*data: str) -> bytes:
    return "".join(f"data: {one}\n\n" for one in data).encode()


USAGE = f'{{{HEAD},"choices":[],"usage":{{"prompt_tokens":9,"completion_tokens":4}}}}'
ROLE = chunk('{"role":"assistant","content":"","refusal":null}')
CALLS = (
    chunk('{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":""}}]}'),
    chunk('{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":"}}]}'),
    chunk('{"tool_calls":[{"index":1,"function":{"arguments":"é"}}],"vendor":[1]}'),
)
OTHERS = (
    chunk('{"reasoning_content":"hm"}'),
    chunk('{"reasoning":"hm","reasoning_content":"hm"}'),
    chunk('{"refusal":"No."}'),
    chunk('{"audio":{"id":"a","transcript":"Hi","data":"UklG"}}'),
    chunk('{"content":[{"type":"text","text":"part"}]}'),
)
FULL = stream(
    ROLE,
    chunk('{"content":"Hel"}', more=',"service_tier":"flex"'),
    chunk('{"content":"lo \U0001f600"}'),
    *CALLS,
    *OTHERS,
    chunk("{}", '"tool_calls"'),
    USAGE,
    "[DONE]",
)


def decode(data: bytes | Iterable[bytes], **fields: Any) -> list[Event]:
    chunks = [data] if isinstance(data, bytes) else data
    return list(flatten(chat.events(chunks, request(**fields))))


def opaques(events: Iterable[Event]) -> list[Opaque]:
    return [event for event in events if isinstance(event, Opaque)]


def test_each_chunk_is_passed_on_byte_by_byte() -> None:
    events = decode(FULL)
    lines = [line[6:] for line in FULL.split(b"\n\n") if line.startswith(b"data: {")]
    assert [event.data for event in opaques(events)] == lines
    assert [type(event) for event in events if not isinstance(event, Opaque)] == [
        Started,
        Finished,
        Used,
    ]
    assert Finished(0, "stop") in events
    assert opaques(events)[-1].index == NO_CHOICE


@pytest.mark.parametrize("size", [1, 1000])
def test_a_service_tier_beside_a_text_counts_for_the_usage(size: int) -> None:
    pieces = [FULL[at : at + size] for at in range(0, len(FULL), size)]
    [used] = [event for event in decode(pieces) if isinstance(event, Used)]
    assert used.usage.tier == "flex", "only one chunk has a tier, and it has text"


def test_sizes_count_all_that_was_generated() -> None:
    sizes = [event.text_size for event in opaques(decode(FULL))]
    assert sizes == [0, 3, 7, 0, 5, 2, 2, 2, 3, 2, 4, 0, 0]


def test_only_a_role_and_empty_strings_are_invisible() -> None:
    shown = [event.visible for event in opaques(decode(FULL))]
    assert shown == [False, *([True] * 11), False]
    none = '{"role":"assistant","content":null,"tool_calls":[]}'
    [event, _] = opaques(decode(stream(chunk(none), chunk("{}", '"stop"'))))
    assert not event.visible


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_pieces_of_any_size_give_equal_events(size: int) -> None:
    pieces = [FULL[at : at + size] for at in range(0, len(FULL), size)]
    assert decode(pieces) == decode(FULL)


@pytest.mark.thorough
def test_any_split_gives_equal_events() -> None:
    expected = decode(FULL)
    for at in range(1, len(FULL)):
        assert decode([FULL[:at], FULL[at:]]) == expected


def test_the_fast_path_passes_on_what_the_slow_one_does() -> None:
    text = stream(ROLE, chunk('{"content":"a"}'), chunk('{"content":"b\\ud83d"}'))
    rest = stream(chunk('{"content":"\\ude00"}'), chunk("{}", '"stop"'), "[DONE]")
    together = decode(text + rest)
    one_by_one = decode([part + b"\n\n" for part in (text + rest).split(b"\n\n")[:-1]])
    assert together == one_by_one
    assert b"b\\ud83d" in opaques(together)[2].data


def test_a_chunk_of_several_lines_becomes_one_line() -> None:
    [event] = opaques(decode(b'data: {"choices":[{"delta":\ndata: {"content":"a"}}]}\n\n'
                             b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'))[:1]  # fmt: skip
    assert event.data == b'{"choices":[{"delta": {"content":"a"}}]}'


@pytest.mark.parametrize(
    "end",
    [b"", stream(ROLE), stream(ROLE, chunk('{"content":"a"}'))],
)
def test_a_stream_that_ends_without_a_finish_is_truncated(end: bytes) -> None:
    with pytest.raises(UpstreamError):
        decode(end)


@pytest.mark.parametrize(
    "error",
    [
        '{"error":{"message":"no","code":500}}',
        '{"error":"no"}',
        '{"detail":"no"}',
        f'{{{HEAD},"choices":[{{"delta":{{"content":"a"}}}}],"error":{{"message":"no"}}}}',
        chunk('{"content":"a"}', '"error"'),
        '[{"error":{"message":"no"}}]',
        '{"x_groq":{"error":"no"}}',
    ],
)
def test_an_error_in_a_stream_is_an_error_and_isnt_passed_on(error: str) -> None:
    events, failure = until_failure(chat, [stream(ROLE), stream(error)], request())
    assert failure is not None
    assert all(b"no" not in event.data for event in opaques(events))


def test_text_beside_an_error_is_counted_as_generated() -> None:
    data = f'{{{HEAD},"choices":[{{"delta":{{"content":"abc"}}}}],"error":"no"}}'
    events, failure = until_failure(chat, [stream(data)], request())
    assert failure is not None
    assert Thought(3) in events


@pytest.mark.parametrize("folder", FIXTURES_OF_OPENAI, ids=lambda folder: folder.name)
def test_ends_usage_and_errors_are_those_of_a_completion(folder: Path) -> None:
    path = folder / "request.json"
    fields = json.loads(path.read_text()) if path.exists() else {}
    if len(fields.get("prompts", [1])) > 1 or fields.get("extra") or fields.get("echo"):
        pytest.skip("a chat has no such request")
    plain = CompletionRequest(prompts=("Hi",), stream=True, n=fields.get("n"))
    [data] = [found.read_bytes() for found in folder.glob("stream.*")]
    same = (Finished, Used, Started)
    expected, failure = until_failure(dialect, [data], plain)
    events, found = until_failure(chat, [data], request(n=fields.get("n")))
    assert [e for e in events if isinstance(e, same)] == [
        e for e in expected if isinstance(e, same)
    ]
    assert (found and found.args, found and found.upstream_message) == (
        failure and failure.args,
        failure and failure.upstream_message,
    )


def kept(events: Iterable[Event], kinds: tuple[type, ...]) -> list[Event]:
    return [event for event in events if isinstance(event, kinds)]


def until_failure(
    dialect_of: Any, chunks: Iterable[bytes], asked: CompletionRequest
) -> tuple[list[Event], UpstreamError | None]:
    """Return a stream's events up to its end or its failure, and the failure."""
    events: list[Event] = []
    try:
        for batch in dialect_of.events(chunks, asked):
            events += batch
    except UpstreamError as failure:
        return events, failure
    return events, None


def test_done_without_a_finish_reason_gets_a_chunk_that_ends_the_choice() -> None:
    events = decode(stream(ROLE, chunk('{"content":"a"}'), "[DONE]"))
    last = opaques(events)[-1]
    assert json.loads(last.data) == {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "gpt-x",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    }
    assert events[-1] == Finished(0, "stop")


def test_usage_under_x_groq_is_billed_and_passed_on() -> None:
    last = chunk("{}", '"stop"', ',"x_groq":{"usage":{"prompt_tokens":3,"completion_tokens":1}}')
    events = decode(stream(ROLE, chunk('{"content":"a"}'), last, "[DONE]"))
    assert Used(Usage(3, 1)) in events
    assert opaques(events)[-1].data == last.encode()


def test_several_choices_have_their_indexes() -> None:
    data = [chunk('{"content":"a"}', index=at) for at in (1, 0)]
    ends = [chunk("{}", '"stop"', index=at) for at in (0, 1)]
    events = decode(stream(*data, *ends, "[DONE]"), n=2)
    assert [event.index for event in opaques(events)] == [1, 0, 0, 1]
    assert [event.ends for event in opaques(events)] == [(), (), (0,), (1,)]
    with pytest.raises(UpstreamError, match="1 of the 2 requested choices"):
        decode(stream(data[1], ends[0], "[DONE]"), n=2)


WHOLE = (
    '{"id":"c1","object":"chat.completion","model":"gpt-x","choices":[{"index":0,"message":'
    '{"role":"assistant","content":null,"tool_calls":[{"id":"t","function":{"arguments":"{}"}}]},'
    '"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":9,"completion_tokens":4}}'
)


def test_a_whole_answer_is_one_event() -> None:
    events = chat.complete(WHOLE.encode(), request(stream=False))
    assert opaques(events) == [Opaque(WHOLE.encode(), 0, 2, reports=True, ends=(0,))]
    assert Finished(0, "stop") in events
    assert Used(Usage(9, 4)) in events


def test_a_whole_answer_to_a_request_for_a_stream_becomes_a_chunk() -> None:
    [event] = opaques(decode(WHOLE.encode()))
    found = json.loads(event.data)
    assert found["object"] == "chat.completion.chunk"
    assert found["choices"][0]["delta"]["tool_calls"][0]["id"] == "t"
    assert "message" not in found["choices"][0]


def test_an_unreported_input_is_the_estimate_of_the_chat() -> None:
    tally = Tally(("x",), estimate=7)
    tally.add(decode(stream(ROLE, chunk('{"content":"12345678"}'), chunk("{}", '"stop"'))))
    usage = tally.usage(failed=False)
    assert (usage.input_tokens, usage.output_tokens, usage.source) == (7, 2, "estimate")
