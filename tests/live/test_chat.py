"""Tests of chats with a real server, from the openai SDK and the official client to the ledger."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import indoxhub  # type: ignore[import-untyped]
import pytest
import requests
from openai import APIError, AsyncOpenAI, OpenAI
from pydantic import BaseModel

from tests.support import fake as fp
from tests.support.books import ledger_of, row_of
from tests.support.fake import FakeProvider, Step
from tests.support.pace import HANG_S
from tests.support.paths import FIXTURES
from tests.support.servers import UNTROUBLED, Server, fake_rows

MESSAGES: list[Any] = [{"role": "user", "content": "Say it"}]
TOOL = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MIB = 1 << 20
CALLS = FIXTURES / "chat" / "openai" / "parallel_tool_calls"


class Weather(BaseModel):
    city: str
    celsius: float


@pytest.fixture(scope="module")
def chat_server(fake_process: FakeProvider) -> Iterator[Server]:
    env = UNTROUBLED | {"SLUICE_BODIES_TOTAL": str(40 * MIB)}
    with Server(fake_rows(fake_process.base_url), env=env) as found:
        yield found


@pytest.fixture
def served(chat_server: Server, fake: FakeProvider) -> Server:
    return chat_server


@pytest.fixture
def client(served: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAI]:
    monkeypatch.setenv("NO_PROXY", "*")
    with OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as found:
        yield found


def streamed(*, usage: tuple[int, int] | None = (9, 3)) -> list[Step]:
    called = fp.chunks([""], chat=True, finish=None)[0]
    called["choices"][0]["delta"] = {"tool_calls": [TOOL]}
    texts = fp.chunks(["Hel", "lo"], chat=True, finish=None)
    return fp.sse([*texts, called, *fp.chunks([], chat=True, finish="tool_calls", usage=usage)])


def test_the_openai_sdk_streams_tool_calls_and_usage(
    client: OpenAI, served: Server, fake: FakeProvider
) -> None:
    fake.script(streamed())
    with client.chat.completions.with_raw_response.create(
        model="fake/m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    ).parse() as found:
        chunks = list(found)
    assert {chunk.model for chunk in chunks} == {"fake/m"}
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "Hello"
    assert [d.tool_calls[0].id for d in deltas if d.tool_calls] == ["t"]
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (9, 3)


def test_the_openai_sdk_gets_a_whole_answer_and_a_row(
    client: OpenAI, served: Server, fake: FakeProvider
) -> None:
    fake.script(fp.answer(fp.body("Hello", chat=True, usage=(3, 5))))
    answer = client.chat.completions.with_raw_response.create(model="fake/m", messages=MESSAGES)
    assert answer.parse().choices[0].message.content == "Hello"
    row = row_of(ledger_of(served), answer.headers["X-Request-ID"])
    assert (row["endpoint"], row["status"]) == ("/v1/chat/completions", 200)
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (3, 5, "provider")


def played(name: str) -> list[Step]:
    head = fp.head(200, {"Content-Type": "text/event-stream", "Connection": "close"})
    return [head, fp.send((CALLS / name).read_bytes()), fp.close()]


def test_the_openai_sdks_helpers_join_tool_calls_and_parse_objects(
    client: OpenAI, fake: FakeProvider
) -> None:
    fake.script(played("stream.sse"))
    options: Any = {"include_usage": True}
    with client.chat.completions.stream(
        model="fake/m", messages=MESSAGES, stream_options=options
    ) as stream:
        kinds = {event.type for event in stream}
        found = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    calls = [call.function for call in found.choices[0].message.tool_calls or ()]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Köln", "Rome"]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (61, 34)
    fake.script(fp.answer(fp.body('{"city": "Rome", "celsius": 21.5}', chat=True)))
    parsed = client.chat.completions.parse(
        model="fake/m", messages=MESSAGES, response_format=Weather
    )
    assert parsed.choices[0].message.parsed == Weather(city="Rome", celsius=21.5)
    sent = fake.requests[-1].json["response_format"]["json_schema"]
    assert (sent["name"], sent["strict"]) == ("Weather", True)


def test_the_async_openai_sdk_reads_streams_at_once(served: Server, fake: FakeProvider) -> None:
    fake.default(fp.sse(fp.chunks(["Hel", "lo"], chat=True, usage=(3, 5)), interval=0.01))

    async def read(client: AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(
            model="fake/m", messages=MESSAGES, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key) as client:
            return await asyncio.gather(*(read(client) for _ in range(10)))

    assert asyncio.run(ask()) == ["Hello"] * 10


OPEN_WEBUI: dict[str, Any] = {
    "stream": True,
    "model": "fake/m",
    "messages": [{"role": "system", "content": "Be brief."}, *MESSAGES],
    "stream_options": {"include_usage": True},
}
"""The body that Open WebUI sends (backend/open_webui/routers/openai.py, read 2026-11)."""
N8N: dict[str, Any] = {
    "model": "fake/m",
    "temperature": 0.7,
    "top_p": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "max_tokens": -1,
    "stream": False,
    "response_format": {"type": "text"},
    "messages": MESSAGES,
}
"""The body that n8n's chat node sends (LmChatOpenAi.node.ts, read 2026-11).

-1 is its "no limit".
"""


def test_open_webui_lists_models_and_reads_a_stream(served: Server, fake: FakeProvider) -> None:
    headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"}
    models = requests.get(f"{served.url}/v1/models", headers=headers, timeout=HANG_S).json()
    assert all(model["id"] and model["object"] == "model" for model in models["data"])
    fake.script(streamed())
    headers |= {"X-OpenWebUI-User-Name": "me", "X-OpenWebUI-User-Role": "user"}
    url = f"{served.url}/v1/chat/completions"
    answer = requests.post(url, json=OPEN_WEBUI, headers=headers, timeout=HANG_S)
    assert "text/event-stream" in answer.headers["Content-Type"]
    chunks = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
    usage = [one["usage"] for chunk in chunks if (one := json.loads(chunk)).get("usage")]
    assert usage[-1]["total_tokens"] == 12
    assert not any(name.startswith("x-openwebui") for name in fake.requests[-1].headers)
    fake.script(fp.error(400))
    refused = requests.post(url, json=OPEN_WEBUI, headers=headers, timeout=HANG_S)
    assert refused.json()["error"]["message"]


def test_n8n_gets_a_whole_answer(served: Server, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("Hello", chat=True)))
    headers = {"Authorization": f"Bearer {served.key}"}
    url = f"{served.url}/v1/chat/completions"
    answer = requests.post(url, json=N8N, headers=headers, timeout=HANG_S)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert fake.requests[-1].json == N8N | {"model": "m"}


def test_a_broken_stream_raises_in_the_openai_sdk(client: OpenAI, fake: FakeProvider) -> None:
    fake.script(fp.sse(fp.chunks(["Hel"], chat=True, finish=None), done=False))
    stream = client.chat.completions.create(model="fake/m", messages=MESSAGES, stream=True)
    with pytest.raises(APIError):
        list(stream)


def test_the_official_clients_chat_works_whole_and_streamed(
    served: Server, fake: FakeProvider
) -> None:
    official = indoxhub.Client(api_key=served.key, base_url=served.url, timeout=10)
    try:
        fake.script(fp.answer(fp.body("Hello", chat=True, usage=(3, 5))))
        whole = official.chat(messages=MESSAGES, model="fake/m", seed=3)
        assert (whole["data"], whole["usage"]["tokens_total"]) == ("Hello", 8)
        assert json.loads(fake.requests[-1].body)["seed"] == 3
        fake.script(streamed())
        chunks = list(official.chat(messages=MESSAGES, model="fake/m", stream=True))
        assert "".join(c.get("data") or "" for c in chunks if c["type"] == "content") == "Hello"
        assert chunks[-1]["type"] == "usage_final"
    finally:
        official.close()


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_stop_ends_a_silent_chat_and_bills_what_there_was(
    served: Server, fake: FakeProvider, path: str
) -> None:
    begun = fp.sse(fp.chunks(["Hello you"], chat=True, finish=None), done=False, complete=False)
    fake.script([*begun, fp.hold()])
    headers = {"X-API-Key": served.key}
    body = {"model": "fake/m", "messages": MESSAGES, "stream": True}
    body["stream_options"] = {"include_usage": True}
    url = f"{served.url}/v1/chat/completions"
    with requests.post(url, json=body, headers=headers, stream=True, timeout=HANG_S) as answer:
        stop_id = answer.headers["X-Stream-ID"]
        lines = answer.iter_lines()
        assert b"Hello you" in next(lines)
        stop = f"{served.url}/v1/{path}/stop-stream/{stop_id}"
        assert requests.post(stop, headers=headers, timeout=HANG_S).json() == {"success": True}
        *_, end, usage, done = [line[6:] for line in lines if line.startswith(b"data: ")]
    assert done == b"[DONE]"
    [choice] = json.loads(end)["choices"]
    assert (choice["finish_reason"], choice["native_finish_reason"]) == ("stop", "cancelled")
    assert json.loads(usage)["usage"]["source"] == "estimate"
    row = row_of(ledger_of(served), answer.headers["X-Request-ID"])
    assert (row["end_reason"], row["output_tokens"]) == ("stopped", 3)
    assert fake.wait_closed()[-1].outcome == "aborted"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v1/chat/completions"])
def test_a_stop_after_the_finish_reason_sends_no_second_one(
    served: Server, fake: FakeProvider, path: str
) -> None:
    """The reason comes with text, so that Sluice waits for more until the stop."""
    [chunk] = fp.chunks(["Hello you"], chat=True, finish=None)
    chunk["choices"][0]["finish_reason"] = "stop"
    fake.script([*fp.sse([chunk], done=False, complete=False), fp.hold()])
    headers = {"X-API-Key": served.key}
    body = {"model": "fake/m", "messages": MESSAGES, "stream": True}
    url = served.url + path
    with requests.post(url, json=body, headers=headers, stream=True, timeout=HANG_S) as answer:
        lines = filter(b"".__ne__, answer.iter_lines())
        while b"Hello you" not in (seen := next(lines)):
            pass
        assert b'"finish_reason":"stop"' in seen
        stop = f"{served.url}/v1/completions/stop-stream/{answer.headers['X-Stream-ID']}"
        assert requests.post(stop, headers=headers, timeout=HANG_S).json() == {"success": True}
        rest = list(lines)
    assert rest[-1] == b"data: [DONE]"
    assert b"finish_reason" not in b"".join(rest)
    assert row_of(ledger_of(served), answer.headers["X-Request-ID"])["end_reason"] == "stopped"


@pytest.mark.thorough
def test_a_body_of_many_megabytes_is_sent_and_other_calls_go_on(
    served: Server, fake: FakeProvider
) -> None:
    url = "data:image/png;base64," + "A" * (15 * MIB)
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    body = json.dumps({"messages": messages, "model": "fake/m"}).encode()
    headers = {"X-API-Key": served.key, "Content-Type": "application/json"}
    for number in range(4):  # more than SLUICE_BODIES_TOTAL together, were they not released
        fake.script(fp.answer(fp.body("Seen", chat=True)))
        began = time.monotonic()
        answer = requests.post(
            f"{served.url}/v1/chat/completions", data=body, headers=headers, timeout=HANG_S
        )
        assert answer.status_code == 200, (number, time.monotonic() - began, answer.text)
    sent = body.replace(b'"fake/m"', b'"m"').replace(b'": ', b'":', 1)
    assert fake.requests[-1].body == sent.replace(b', "model": ', b',"model":')
