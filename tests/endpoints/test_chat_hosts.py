"""Tests of what eight hosts' chat endpoints send: it arrives as it was sent, whole and streamed.

A fixture is a folder, tests/fixtures/chat/<host>/<case>/, with some of these files:

    stream.sse       a streamed body, as received
    body.json        a whole body
    refusal.json     {"status", "headers"} of a response whose status isn't 2xx
    refusal.body     the body of that response
    request.json     fields of the caller's body, besides the model and the messages
    expect.json      {"usage": the fields of the ledger's row that aren't 0}; or
                     {"error": {"status", "upstream_status", "upstream_code", "upstream_message"}}

Shapes follow the hosts' references, their SDKs' types, and reports of what they send (read
2026-11). The contents are made up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from werkzeug.test import TestResponse

from completion import Chat, CompletionRequest, Event, Opaque, Started, flatten
from errors import UpstreamError
from gateway import chat_answers
from providers.decoding.added_fields import decode_object
from providers.openai import chat
from tests.endpoints.test_chat import MESSAGES, NATIVE, OPENAI, ChatSite, data_of
from tests.providers.test_dialects import Places, at_places, few_places
from tests.support import fake as fp
from tests.support.books import row_of
from tests.support.fake import FakeProvider
from tests.support.paths import FIXTURES
from tests.test_app import make_app

PATHS = {
    "openai": ("/v1", "/v1/chat/completions"),
    "anthropic": ("/v1", "/v1/chat/completions"),
    "google": ("/v1beta", "/v1beta/openai/chat/completions"),
    "cohere": ("/v2", "/compatibility/v1/chat/completions"),
    "mistral": ("/v1", "/v1/chat/completions"),
    "groq": ("/openai/v1", "/openai/v1/chat/completions"),
    "deepseek": ("", "/chat/completions"),
    "xai": ("/v1", "/v1/chat/completions"),
}
"""The path of each host's row, and of its chats. The rest of a row is the built-in one."""
KEY = "host-key-0123456789"
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
MODEL = re.compile(rb'("model": ?)"[^"\\]*"')


class Case(NamedTuple):
    host: str
    folder: Path

    @property
    def model(self) -> str:
        return f"{self.host}/m"

    @property
    def request(self) -> dict[str, Any]:
        return self._json("request.json")

    @property
    def expected(self) -> dict[str, Any]:
        return self._json("expect.json")

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


CASES = [Case(folder.parent.name, folder) for folder in sorted((FIXTURES / "chat").glob("*/*/"))]


def cases(name: str) -> pytest.MarkDecorator:
    """Run a test for each case with a file of this name."""
    found = [case for case in CASES if (case.folder / name).exists()]
    ids = [f"{case.host}/{case.folder.name}" for case in found]
    return pytest.mark.parametrize("case", found, ids=ids)


@pytest.fixture(scope="module")
def hosts(
    tmp_path_factory: pytest.TempPathFactory, fake_process: FakeProvider
) -> Iterator[ChatSite]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.test_app.Site", ChatSite)
        rows = {host: {"base_url": fake_process.origin + path} for host, (path, _) in PATHS.items()}
        keys = {f"{'GEMINI' if host == 'google' else host.upper()}_API_KEY": KEY for host in PATHS}
        directory = tmp_path_factory.mktemp("hosts")
        found = make_app(directory, patch, providers=rows, environ=keys, cooldown=False)
        assert isinstance(found, ChatSite)
        found.place = directory / "sluice.db"
        yield found
        found.gateway.reader._transport.close()


@pytest.fixture
def site(hosts: ChatSite, fake: FakeProvider) -> ChatSite:
    hosts.fake = fake
    return hosts


def renamed(data: bytes, model: str) -> bytes:
    """Return a chunk with another model. The fixtures have the model's field once, at the top.

    Line separators are escaped, because some clients would end a line there.
    """
    data = data.replace("\u2028".encode(), b"\\u2028")
    return MODEL.sub(rb'\1"%s"' % model.encode(), data, count=1)


def lines_of(stream: bytes) -> list[bytes]:
    return [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: ")]


def is_usage(line: bytes) -> bool:
    """Return True if a chunk has only usage, which is shown to those who requested it."""
    return b'"choices":[]' in line


def answered(case: Case, site: ChatSite) -> None:
    """Let the host answer with the case's stream, in two pieces."""
    stream = case.read("stream.sse")
    head = fp.head(200, {"Content-Type": "text/event-stream", "Connection": "close"})
    half = len(stream) // 2
    site.fake.script([head, fp.send(stream[:half]), fp.send(stream[half:]), fp.close()])


def counts(answer: TestResponse, place: Path) -> dict[str, int]:
    """Return the counts in a call's row that aren't 0."""
    row = row_of(place, answer.headers["X-Request-ID"])
    names = ("input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens")
    return {name: row[name] for name in names if row[name]}


@cases("stream.sse")
def test_a_hosts_chunks_arrive_byte_by_byte(case: Case, site: ChatSite) -> None:
    answered(case, site)
    answer = site.ask(model=case.model, stream=True, **case.request)
    sent = [line for line in lines_of(case.read("stream.sse")) if not is_usage(line)]
    found = [line.encode() for line in data_of(answer.text)]
    if "error" in case.expected:
        good = [line for line in sent if line in found_chunks(sent)]
        assert found[: len(good)] == [renamed(line, case.model) for line in good]
        assert_error(json.loads(found[-1])["error"], case.expected["error"])
        assert len(found) == len(good) + 1
        return
    assert found == [renamed(line, case.model) for line in sent]
    assert counts(answer, site.place) == case.expected["usage"]
    [request] = site.fake.requests
    assert request.path == PATHS[case.host][1]
    assert request.headers["authorization"] == f"Bearer {KEY}"
    unasked = case.host in ("mistral", "groq")
    usage = {} if unasked else {"stream_options": {"include_usage": True}}
    body = {"model": "m", "messages": MESSAGES, "stream": True} | case.request | usage
    assert json.loads(request.body) == body


def found_chunks(sent: list[bytes]) -> list[bytes]:
    """Return the chunks that report no failure."""
    failing = (b'"error"', b'"insufficient_system_resource"', b"[DONE]")
    return [line for line in sent if not any(word in line for word in failing)]


def assert_error(found: dict[str, Any], expected: dict[str, Any]) -> None:
    details = found.get("details", {})
    for name, value in expected.items():
        if name != "status":
            assert details.get(name) == value, found


@cases("stream.sse")
def test_the_last_chunk_has_the_hosts_usage_and_the_cost(case: Case, site: ChatSite) -> None:
    if "error" in case.expected:
        return
    answered(case, site)
    answer = site.ask(model=case.model, **WITH_USAGE, **case.request)
    *_, last, done = data_of(answer.text)
    reported = [
        found
        for line in lines_of(case.read("stream.sse"))[:-1]
        if (found := usage_in(json.loads(line)))
    ]
    usage = json.loads(last)["usage"]
    assert done == "[DONE]"
    assert json.loads(last)["choices"] == []
    assert "cost" in usage
    assert {name: usage[name] for name in reported[-1]} == reported[-1]


def usage_in(chunk: dict[str, Any]) -> dict[str, Any]:
    found = chunk.get("usage") or chunk.get("x_groq", {}).get("usage") or {}
    assert isinstance(found, dict)
    return found


@cases("body.json")
def test_a_hosts_whole_answer_arrives_as_it_was_sent(case: Case, site: ChatSite) -> None:
    site.fake.script(fp.answer(case.read("body.json")))
    answer = site.ask(model=case.model, **case.request)
    sent, found = json.loads(case.read("body.json")), answer.get_json()
    usage = found.pop("usage")
    assert found == {n: v for n, v in sent.items() if n != "usage"} | {"model": case.model}
    assert "cost" in usage
    assert {name: usage[name] for name in sent["usage"]} == sent["usage"]
    raw = msgspec.json.decode(case.read("body.json"), type=dict[str, msgspec.Raw])
    choices = bytes(raw["choices"]).replace(b"\n", b" ").decode()
    assert choices in answer.text  # numbers and escapes keep their characters
    assert counts(answer, site.place) == case.expected["usage"]


def params(case: Case) -> dict[str, Any]:
    """Return the fields that the native face can pass on. `extra_body` isn't one."""
    return {name: value for name, value in case.request.items() if name != "extra_body"}


@cases("body.json")
def test_a_native_answer_has_the_hosts_choices(case: Case, site: ChatSite) -> None:
    site.fake.script(fp.answer(case.read("body.json")))
    answer = site.ask(NATIVE, model=case.model, additional_params=params(case)).get_json()
    assert answer["choices"] == json.loads(case.read("body.json"))["choices"]
    assert answer["usage"]["tokens_total"] == sum(
        case.expected["usage"][name] for name in ("input_tokens", "output_tokens")
    )


@cases("stream.sse")
def test_the_choices_of_native_frames_are_the_hosts(case: Case, site: ChatSite) -> None:
    if "error" in case.expected:
        return
    answered(case, site)
    answer = site.ask(NATIVE, model=case.model, stream=True, additional_params=params(case))
    frames = [json.loads(line) for line in data_of(answer.text)[:-1]]
    sent = [json.loads(line)["choices"] for line in lines_of(case.read("stream.sse"))[:-1]]
    assert [frame["choices"] for frame in frames if "choices" in frame] == list(filter(None, sent))


@cases("stream.sse")
def test_a_stream_is_joined_to_the_whole_answer(case: Case, site: ChatSite) -> None:
    """A host that streams although no stream was requested."""
    if "error" in case.expected:
        return
    answered(case, site)
    answer = site.ask(model=case.model, **case.request)
    assert answer.status_code == 200
    found = answer.get_json()["choices"]
    for choice in found:
        message = choice["message"]
        chunks = [json.loads(line) for line in lines_of(case.read("stream.sse"))[:-1]]
        deltas = [
            one["delta"]
            for chunk in chunks
            for one in chunk["choices"]
            if one["index"] == choice["index"]
        ]
        assert arguments(message) == arguments(*deltas)
        assert texts(message) == texts(*deltas)


def arguments(*parts: dict[str, Any]) -> list[list[str]]:
    """Return the name and the joined arguments of each tool call in a message or its deltas."""
    calls: dict[Any, list[str]] = {}
    for part in parts:
        for number, call in enumerate(part.get("tool_calls") or ()):
            inner = call.get("function") or call["custom"]
            place = call.get("id") if "index" not in call and len(parts) > 1 else None
            place = place or call.get("index", number)
            known = calls.setdefault(place, ["", ""])
            known[0] += inner.get("name") or ""
            known[1] += inner.get("arguments") or inner.get("input") or ""
    return list(calls.values())


def texts(*parts: dict[str, Any]) -> dict[str, str]:
    """Return the joined texts of a message or its deltas."""
    names = ("content", "refusal", "reasoning", "reasoning_content", "tool_plan")
    found = {
        name: "".join(part[name] for part in parts if isinstance(part.get(name), str))
        for name in names
    }
    if any(isinstance(part.get("content"), list) for part in parts):
        del found["content"]
    audio = [part["audio"] for part in parts if part.get("audio")]
    found |= {name: "".join(one.get(name, "") for one in audio) for name in ("data", "transcript")}
    return {name: text for name, text in found.items() if text}


@cases("refusal.json")
@pytest.mark.parametrize("path", [OPENAI, NATIVE])
def test_a_hosts_refusal_becomes_an_error_with_its_reason(
    case: Case, site: ChatSite, path: str
) -> None:
    response = json.loads(case.read("refusal.json"))
    body = case.read("refusal.body")
    site.fake.script(fp.answer(body, response["status"], response["headers"]))
    answer = site.ask(path, model=case.model)
    expected = case.expected["error"]
    assert answer.status_code == expected["status"]
    found = answer.get_json()
    assert_error(found["error"] if path == OPENAI else found, expected)


# Any split of the bytes


@pytest.mark.thorough
@cases("stream.sse")
def test_a_stream_that_arrives_in_any_two_pieces_reaches_the_client_unchanged(
    case: Case, site: ChatSite
) -> None:
    stream = case.read("stream.sse")
    head = fp.head(200, {"Content-Type": "text/event-stream", "Connection": "close"})
    texts = set()
    for place in few_places(stream):
        pieces = [fp.send(stream[:place]), fp.sleep(0.01), fp.send(stream[place:]), fp.close()]
        site.fake.script([head, *pieces])
        text = site.ask(model=case.model, **WITH_USAGE, **case.request).text
        texts.add(re.sub(r'"request_id":"[^"]*"', "", text))
    assert len(texts) == 1


def request_of(case: Case) -> CompletionRequest:
    fields = {name: msgspec.Raw(b"0") for name in case.request}
    found = Chat(fields=fields, size=1, input_tokens=1, most_input=1)
    return CompletionRequest(prompts=("x",), n=case.request.get("n"), stream=True, chat=found)


def decoded(case: Case, chunks: Iterable[bytes]) -> tuple[list[Event], tuple[Any, ...] | None]:
    events: list[Event] = []
    try:
        for batch in chat.events(chunks, request_of(case)):
            events += batch
    except UpstreamError as failure:
        return events, (failure.args, failure.upstream_status, failure.upstream_code)
    return events, None


@cache
def whole(case: Case) -> tuple[list[Event], tuple[Any, ...] | None]:
    return decoded(case, [case.read("stream.sse")])


@at_places
@cases("stream.sse")
def test_splitting_a_hosts_stream_anywhere_does_not_change_its_events(
    case: Case, places: Places
) -> None:
    stream = case.read("stream.sse")
    for place in places(stream):
        assert decoded(case, [stream[:place], stream[place:]]) == whole(case), place


@pytest.mark.thorough
@cases("stream.sse")
def test_reading_a_hosts_stream_byte_by_byte_does_not_change_its_events(case: Case) -> None:
    stream = case.read("stream.sse")
    assert decoded(case, [stream[at : at + 1] for at in range(len(stream))]) == whole(case)


@at_places
@cases("stream.sse")
def test_a_hosts_stream_cut_anywhere_is_truncated_unless_its_choices_have_finished(
    case: Case, places: Places
) -> None:
    stream, (events, _) = case.read("stream.sse"), whole(case)
    for place in places(stream):
        found, failure = decoded(case, [stream[:place]])
        assert found == events[: len(found)], place
        ended = stream[:place].count(b'"finish_reason":"')
        if failure is None:
            assert ended >= (case.request.get("n") or 1), place


@cases("stream.sse")
def test_a_role_is_invisible_and_everything_else_is_seen(case: Case) -> None:
    """A call may be retried at another host as long as all its chunks were invisible."""
    events, _ = whole(case)
    for event in flatten([events]):
        if isinstance(event, Opaque):
            fields = decode_object(event.data)
            choices = chat_answers.choices_of(fields)
            delta = (choices[0].get("delta") or {}) if choices else {}
            more = {name: value for name, value in delta.items() if value and name != "role"}
            ended = bool(choices and choices[0].get("finish_reason"))
            assert event.visible == (bool(more) or ended), event.data
    assert any(isinstance(event, Started) for event in events)


def test_each_host_has_streams_answers_and_refusals() -> None:
    assert {case.host for case in CASES} == set(PATHS)
    for host in PATHS:
        folders = [case.folder for case in CASES if case.host == host]
        for name in ("stream.sse", "body.json", "refusal.json"):
            assert any((folder / name).exists() for folder in folders), (host, name)
