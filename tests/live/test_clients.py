"""Tests of real clients with a real server: the openai SDK (sync and async), `indoxhub`, the
official client, and plain HTTP requests like those of LangChain.

- Clients are used as their documentation says.
- Calls are counted at the provider.
- Clients don't retry, except in tests of retries.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import indoxhub  # type: ignore[import-untyped]
import openai
import pytest
import requests
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion

from tests.support import calls
from tests.support import fake as fp
from tests.support.calls import BEGUN, EVENT
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.servers import Server

WITHIN_S = scaled(2)
"""A bound for "at once" on a busy machine. The sweeper runs once a second."""
STOPS = ["/v1/completions/stop-stream/", "/api/v1/completions/stop-stream/"]
FACES = ["/v1/completions", "/api/v1/completions"]


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's proxy and OpenAI settings away from the clients."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.delenv(name, raising=False)


def sdk(server: Server, **options: Any) -> OpenAI:
    settings: dict[str, Any] = {"max_retries": 0, "timeout": 10, "api_key": server.key}
    return OpenAI(base_url=f"{server.url}/v1", **(settings | options))


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with sdk(server) as client:
        yield client


@contextmanager
def hub(server: Server, **options: Any) -> Iterator[indoxhub.Client]:
    settings = {"api_key": server.key, "base_url": server.url, "timeout": 10}
    client = indoxhub.Client(**(settings | options))
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def official(server: Server) -> Iterator[indoxhub.Client]:
    with hub(server) as client:
        yield client


def timed(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


# openai: good calls


def test_openai_sdk_gets_a_completion(client: OpenAI, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("Hello", usage=(3, 5))))
    answer = client.completions.create(
        model="fake/m", prompt="Say it", max_tokens=5, temperature=0, top_p=0.5, stop=["\n"],
        seed=7, user="me", logit_bias={"50256": -100}, suffix="end", best_of=2,
        extra_body={"top_k": 40},
    )  # fmt: skip
    assert isinstance(answer, Completion)
    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.model) == ("text_completion", "fake/m")
    assert abs(answer.created - time.time()) < 60
    [choice] = answer.choices
    assert (choice.text, choice.index, choice.finish_reason) == ("Hello", 0, "stop")
    assert choice.logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 5)
    assert answer.usage.total_tokens == 8
    [request] = fake.requests
    assert request.json == {
        "model": "m", "prompt": "Say it", "max_tokens": 5, "temperature": 0, "top_p": 0.5,
        "stop": ["\n"], "seed": 7, "user": "me", "logit_bias": {"50256": -100}, "suffix": "end",
        "best_of": 2, "top_k": 40,
    }  # fmt: skip
    assert not any(name.startswith("x-stainless") for name in request.headers)


def test_openai_sdk_reads_the_raw_response_and_its_request_id(
    client: OpenAI, fake: FakeProvider
) -> None:
    fake.script(fp.answer(fp.body("Hello")))
    raw = client.completions.with_raw_response.create(
        model="fake/m", prompt="a", extra_headers={"X-Request-ID": "mine-1"}
    )
    assert raw.status_code == 200
    assert raw.headers["x-request-id"] == raw.request_id == "mine-1"
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].text == "Hello"
    assert raw.retries_taken == 0


def test_openai_sdk_reads_a_stream(client: OpenAI, fake: FakeProvider) -> None:
    fake.script(fp.sse(fp.chunks(["Hel", "lo \u2028", "you"], usage=(3, 5)), interval=0.01))
    with client.completions.create(model="fake/m", prompt="a", stream=True) as stream:
        chunks = list(stream)
    assert [c.choices[0].text for c in chunks] == ["Hel", "lo \u2028", "you", ""]
    # By the SDK's types finish_reason is never None, but OpenAI itself sends null.
    assert [str(c.choices[0].finish_reason) for c in chunks] == ["None"] * 3 + ["stop"]
    assert {(c.object, c.model) for c in chunks} == {("text_completion", "fake/m")}
    assert len({c.id for c in chunks}) == 1
    assert stream.response.headers["x-stream-id"]


def test_openai_sdk_reads_a_stream_with_its_usage(client: OpenAI, fake: FakeProvider) -> None:
    fake.script(fp.sse(fp.chunks(["Hello"], usage=(3, 5))))
    *chunks, last = client.completions.create(
        model="fake/m", prompt="a", stream=True, stream_options={"include_usage": True}
    )
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.to_dict() == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "cost": None,
    }


def test_openai_sdk_gets_each_stream_chunk_without_delay(
    client: OpenAI, fake: FakeProvider
) -> None:
    fake.script([*BEGUN, fp.gate("more"), EVENT, fp.event("[DONE]"), fp.last_chunk()])
    stream = client.completions.create(model="fake/m", prompt="a", stream=True)
    assert next(stream).choices[0].text == "Hello"
    fake.open("more")
    assert [chunk.choices[0].text for chunk in stream] == ["word ", ""]


@pytest.mark.parametrize("model", ["fake/m", "fakechat/m"])
def test_openai_sdk_completes_a_list_of_prompts(
    client: OpenAI, fake: FakeProvider, model: str
) -> None:
    chat = model == "fakechat/m"
    body = fp.body("Hello", chat=chat)
    if not chat:  # one request with all prompts, whose choices are numbered
        body["choices"] = [body["choices"][0] | {"index": index} for index in range(3)]
    fake.default(fp.answer(body))
    answer = client.completions.create(model=model, prompt=["a", "b", "c"])
    assert [(c.index, c.text) for c in answer.choices] == [(i, "Hello") for i in range(3)]
    assert answer.usage is not None
    assert answer.usage.total_tokens == (24 if chat else 8)
    assert len(fake.requests) == (3 if chat else 1)


def test_openai_sdk_streams_many_prompts_in_one_call(client: OpenAI, fake: FakeProvider) -> None:
    fake.default(fp.sse(fp.chunks(["a", "b"], chat=True, usage=(3, 5)), interval=0.01))
    prompts = [f"prompt {number}" for number in range(20)]
    texts = dict.fromkeys(range(20), "")
    *chunks, last = client.completions.create(
        model="fakechat/m", prompt=prompts, stream=True, stream_options={"include_usage": True}
    )
    for choice in itertools.chain(*(chunk.choices for chunk in chunks)):
        texts[choice.index] += choice.text
    assert texts == dict.fromkeys(range(20), "ab")
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (60, 100)
    sent = [request.json["messages"][0]["content"] for request in fake.requests]
    assert sorted(sent) == sorted(prompts)


def test_openai_sdk_token_ids_reach_the_provider(client: OpenAI, fake: FakeProvider) -> None:
    fake.default(fp.answer(fp.body("Hello")))
    client.completions.create(model="fake/m", prompt=[1, 2, 3])
    client.completions.create(model="fake/m", prompt=[[1, 2, 3]])
    assert [request.json["prompt"] for request in fake.requests] == [[1, 2, 3]] * 2


def test_openai_sdk_gets_n_choices_logprobs_and_echo(client: OpenAI) -> None:
    ask = {"model": "local/pydoc", "max_tokens": 4, "seed": 7}
    answer = client.completions.create(prompt=["The list", "A dict"], n=2, logprobs=2, **ask)  # type: ignore[call-overload]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        logprobs = choice.logprobs
        assert "".join(logprobs.tokens) == choice.text
        assert (
            len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
        )
        assert all(value <= 0 for value in logprobs.token_logprobs)
    echoed = client.completions.create(prompt="The list", echo=True, **ask)  # type: ignore[call-overload]
    plain = client.completions.create(prompt="The list", **ask)  # type: ignore[call-overload]
    assert echoed.choices[0].text == "The list" + plain.choices[0].text


def test_openai_sdk_sees_dropped_parameters_in_a_header(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="local/pydoc", prompt="The list", max_tokens=2, logit_bias={"1": 1}
    )
    assert raw.headers["x-sluice-dropped"] == "logit_bias"


def test_openai_sdk_can_send_a_byok_key(client: OpenAI, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("Hello")))
    raw = client.completions.with_raw_response.create(
        model="fake/m", prompt="a", extra_body={"byok_api_key": "my-own"}
    )
    assert raw.headers["x-ratelimit-bypass"] == "BYOK API key used"
    assert fake.requests[0].headers["authorization"] == "Bearer my-own"
    assert "byok_api_key" not in fake.requests[0].json


def test_openai_sdk_lists_and_retrieves_models(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert "local/pydoc" in names
    found = client.models.retrieve("local/pydoc")
    assert (found.id, found.object, found.owned_by) == ("local/pydoc", "model", "local")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody/m")
    assert caught.value.code == "model_not_found"


# openai: failures


def test_openai_sdk_raises_authentication_error_for_an_invalid_key(server: Server) -> None:
    with sdk(server, api_key="wrong") as client, pytest.raises(openai.AuthenticationError) as e:
        client.completions.create(model="fake/m", prompt="a")
    assert (e.value.status_code, e.value.code) == (401, "unauthorized")
    assert e.value.type == "authentication_error"
    assert e.value.request_id
    assert "A valid API key is required" in e.value.message


Create = dict[str, Any]
REFUSED: dict[str, tuple[Create, type[openai.APIStatusError], str, str | None]] = {
    "value": ({"temperature": 3}, openai.BadRequestError, "invalid_request", "temperature"),
    "prompt": ({"prompt": []}, openai.BadRequestError, "invalid_request", "prompt"),
    "unsupported": (
        {"model": "fakechat/m", "suffix": "x"},
        openai.BadRequestError,
        "unsupported_parameter",
        "suffix",
    ),
    "provider": ({"model": "nobody/m"}, openai.NotFoundError, "provider_not_found", None),
    "model": ({"model": "bare"}, openai.NotFoundError, "model_not_found", "model"),
    "large": ({"prompt": "a" * 1_100_000}, openai.APIStatusError, "request_too_large", None),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_openai_sdk_raises_for_a_request_the_gateway_refuses(
    client: OpenAI, fake: FakeProvider, name: str, *, stream: bool
) -> None:
    fields, kind, code, param = REFUSED[name]
    body: dict[str, Any] = {"model": "fake/m", "prompt": "a", "stream": stream}
    with pytest.raises(kind) as caught:
        client.completions.create(**(body | fields))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert fake.requests == []


UPSTREAM: dict[str, tuple[int, type[openai.APIStatusError], int, str]] = {
    "bad": (400, openai.BadRequestError, 400, "invalid_request"),
    "key": (401, openai.InternalServerError, 502, "provider_error"),
    "credit": (402, openai.InternalServerError, 502, "provider_error"),
    "forbidden": (403, openai.InternalServerError, 502, "provider_error"),
    "model": (404, openai.NotFoundError, 404, "model_not_found"),
    "large": (413, openai.APIStatusError, 413, "request_too_large"),
    "entity": (422, openai.BadRequestError, 400, "invalid_request"),
    "rate": (429, openai.RateLimitError, 429, "rate_limited"),
    "failed": (500, openai.InternalServerError, 502, "provider_error"),
    "overloaded": (529, openai.InternalServerError, 502, "provider_error"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", UPSTREAM)
def test_openai_sdk_raises_for_a_request_the_provider_refuses(
    client: OpenAI, fake: FakeProvider, name: str, *, stream: bool
) -> None:
    status, kind, shown, code = UPSTREAM[name]
    fake.script(fp.error(status))
    with pytest.raises(kind) as caught:
        client.completions.create(model="fake/m", prompt="a", stream=stream)
    assert (caught.value.status_code, caught.value.code) == (shown, code)
    assert caught.value.request_id
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["details"]["upstream_status"] == status


def test_openai_sdk_raises_permission_denied_for_a_rejected_byok_key(
    client: OpenAI, fake: FakeProvider
) -> None:
    fake.script(fp.error(401))
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client.completions.create(model="fake/m", prompt="a", extra_body={"byok_api_key": "mine"})
    assert caught.value.code == "byok_rejected"


def test_openai_sdk_waits_for_retry_after_before_its_retry(
    server: Server, fake: FakeProvider
) -> None:
    fake.script(fp.error(429, headers={"Retry-After": "1"}))
    fake.script(fp.answer(fp.body("Hello")))
    with sdk(server, max_retries=2) as client:
        raw = client.completions.with_raw_response.create(model="fake/m", prompt="a")
    first, second = fake.requests
    assert 1 <= second.received_at - first.received_at < 3
    assert (raw.retries_taken, raw.parse().choices[0].text) == (1, "Hello")


@pytest.mark.parametrize(
    ("status", "kind"), [(429, openai.RateLimitError), (500, openai.InternalServerError)]
)
def test_openai_sdk_gives_up_after_its_retries(
    server: Server, fake: FakeProvider, status: int, kind: type[openai.APIStatusError]
) -> None:
    fake.default(fp.error(status, headers={"retry-after-ms": "1"}))
    with sdk(server, max_retries=1) as client, pytest.raises(kind):
        client.completions.create(model="fake/m", prompt="a")
    assert len(fake.requests) == 2


NEVER: dict[str, tuple[int, dict[str, str], dict[str, Any]]] = {
    "long_wait": (429, {"Retry-After": "3000"}, {}),
    "our_key": (401, {}, {}),
    "own_key": (401, {}, {"byok_api_key": "mine"}),
    "no_credit": (402, {}, {}),
    "bad": (400, {}, {}),
}


@pytest.mark.parametrize("name", NEVER)
def test_openai_sdk_does_not_retry_a_permanent_failure(
    server: Server, fake: FakeProvider, name: str
) -> None:
    status, headers, fields = NEVER[name]
    fake.default(fp.error(status, headers=headers))
    with sdk(server, max_retries=3) as client:

        def ask() -> None:
            with pytest.raises(openai.APIStatusError) as caught:
                client.completions.create(model="fake/m", prompt="a", extra_body=fields)
            assert caught.value.response.headers.get("retry-after") == headers.get("Retry-After")

        assert timed(ask) < WITHIN_S
    assert len(fake.requests) == 1


def test_openai_sdk_does_not_retry_an_active_stream_id(server: Server, fake: FakeProvider) -> None:
    fake.default([*BEGUN, fp.hold()])
    body = {"stream_id": "mine"}
    with sdk(server, max_retries=3) as client:
        stream = client.completions.create(model="fake/m", prompt="a", stream=True, extra_body=body)
        with stream, pytest.raises(openai.ConflictError) as caught:
            client.completions.create(model="fake/m", prompt="a", extra_body=body)
        assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
        assert (caught.value.code, caught.value.param) == ("stream_exists", "stream_id")
        client.post(f"{STOPS[0][3:]}mine", cast_to=object)
    assert len(fake.requests) == 1


HALF = fp.sse(fp.chunks(["Half"], finish=None), done=False, complete=False)
BREAKS = {
    "error_frame": [*HALF, fp.event({"error": {"message": "no more", "code": "x"}})],
    "end": [*HALF, fp.last_chunk()],
    "cut": [*HALF, fp.close()],
    "reset": [*HALF, fp.sleep(0.05), fp.reset()],
    "not_json": [*HALF, fp.event("{nonsense")],
}


@pytest.mark.parametrize("name", BREAKS)
def test_openai_sdk_raises_when_a_stream_breaks(
    client: OpenAI, fake: FakeProvider, name: str
) -> None:
    fake.script([*BREAKS[name], fp.sleep(0.2)])
    texts = []
    with pytest.raises(openai.APIError) as caught:  # noqa: PT012 - the loop raises
        for chunk in client.completions.create(model="fake/m", prompt="a", stream=True):
            texts += [choice.text for choice in chunk.choices]
    assert texts == ["Half"]
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == caught.value.code == "provider_error"
    assert caught.value.body["request_id"]
    assert caught.value.type == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_openai_sdk_timeout_closes_the_upstream_request(
    server: Server, fake: FakeProvider, *, stream: bool
) -> None:
    fake.script([fp.hold()])
    with sdk(server, timeout=0.3) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(model="fake/m", prompt="a", stream=stream)
    [request] = fake.wait_closed()
    assert (request.closed_by, request.outcome) == ("peer", "aborted")
    calls.wait_active(server, 0)


def test_openai_sdk_closing_a_stream_closes_the_upstream_request(
    server: Server, client: OpenAI, fake: FakeProvider
) -> None:
    fake.script([*BEGUN, fp.repeat(EVENT.data, 0.01)])
    with client.completions.create(model="fake/m", prompt="a", stream=True) as stream:
        next(stream)
    [request] = fake.wait_closed()
    assert request.outcome == "aborted"
    calls.wait_active(server, 0)


# Stop, over both faces


@pytest.mark.parametrize("path", STOPS)
def test_stop_ends_a_stream_of_the_openai_sdk(
    server: Server, client: OpenAI, fake: FakeProvider, path: str
) -> None:
    fake.script([*BEGUN, EVENT, fp.hold()])
    stream = client.completions.create(
        model="fake/m", prompt="a", stream=True, stream_options={"include_usage": True}
    )
    texts = [next(stream).choices[0].text for _ in range(2)]
    assert texts == ["Hello", "word "]
    stop(server, path, stream.response.headers["x-stream-id"])
    last, usage = stream
    assert last.choices[0].to_dict() == {
        "text": "",
        "index": 0,
        "logprobs": None,
        "finish_reason": "stop",
        "native_finish_reason": "cancelled",
    }
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 3
    assert fake.wait_closed()[0].outcome == "aborted"


@pytest.mark.parametrize("path", STOPS)
def test_stop_before_the_first_text_ends_a_stream_of_the_openai_sdk(
    server: Server, client: OpenAI, fake: FakeProvider, path: str
) -> None:
    fake.script([fp.hold()])
    answers: list[Completion] = []

    async def both() -> None:
        def ask() -> None:
            body = {"stream_id": "mine"}
            answers.extend(
                client.completions.create(model="fake/m", prompt="a", stream=True, extra_body=body)
            )

        asking = asyncio.create_task(asyncio.to_thread(ask))
        await asyncio.to_thread(fake.wait_requests)
        await asyncio.to_thread(stop, server, path, "mine")
        await asyncio.wait_for(asking, HANG_S)

    asyncio.run(both())
    [only] = answers
    assert only.choices[0].finish_reason == "stop"
    assert only.choices[0].text == ""


@pytest.mark.parametrize("path", STOPS)
@pytest.mark.parametrize("face", FACES)
def test_stop_ends_a_plain_http_stream_and_may_be_repeated(
    server: Server, fake: FakeProvider, face: str, path: str
) -> None:
    fake.default([*BEGUN, fp.hold()])
    body = {"model": "fake/m", "prompt": "a", "stream": True, "stream_id": "mine"}
    with post(server, face, body, stream=True) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert any(b"Hello" in line for line in lines)
        stop(server, path, "mine")
        rest = list(lines)
    assert rest[-1] == b"data: [DONE]"
    assert any(b'"cancelled"' in line for line in rest)
    assert fake.wait_closed()[0].outcome == "aborted"
    stop(server, path, "mine")  # a repeated stop succeeds, too
    assert requests.post(server.url + path + "other", headers=bearer(server)).status_code == 404


def stop(server: Server, path: str, stream_id: str) -> None:
    answer = requests.post(server.url + path + stream_id, headers=bearer(server), timeout=HANG_S)
    assert (answer.status_code, answer.json()) == (200, {"success": True})


def test_openai_sdk_can_stop_its_own_stream(client: OpenAI, fake: FakeProvider) -> None:
    fake.script([*BEGUN, fp.hold()])
    stream = client.completions.create(model="fake/m", prompt="a", stream=True)
    next(stream)
    stream_id = stream.response.headers["x-stream-id"]
    found = client.post(f"/completions/stop-stream/{stream_id}", cast_to=object)
    assert found == {"success": True}
    assert [chunk.choices[0].text for chunk in stream] == [""]


# openai, asynchronous


@asynccontextmanager
async def async_sdk(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key=server.key, max_retries=0, timeout=HANG_S
    ) as client:
        yield client


def test_async_openai_sdk_completes_twenty_calls_at_once(
    server: Server, fake: FakeProvider
) -> None:
    fake.default(fp.answer(fp.body("Hello")))

    async def ask() -> list[Completion]:
        async with async_sdk(server) as client:
            one = client.completions.create
            return await asyncio.gather(*(one(model="fake/m", prompt=f"{i}") for i in range(20)))

    assert [answer.choices[0].text for answer in asyncio.run(ask())] == ["Hello"] * 20
    assert len(fake.requests) == 20


def test_async_openai_sdk_reads_twenty_streams_at_once(server: Server, fake: FakeProvider) -> None:
    frames = fp.chunks([f"{number} " for number in range(10)], usage=(3, 10))
    fake.default(fp.sse(frames, interval=0.01))

    async def read(client: AsyncOpenAI) -> str:
        stream = await client.completions.create(model="fake/m", prompt="a", stream=True)
        return "".join([c.choices[0].text async for c in stream])

    async def ask() -> list[str]:
        async with async_sdk(server) as client:
            return await asyncio.gather(*(read(client) for _ in range(20)))

    assert asyncio.run(ask()) == ["".join(f"{number} " for number in range(10))] * 20


@pytest.mark.parametrize("path", STOPS)
def test_async_openai_sdk_can_stop_its_own_stream(
    server: Server, fake: FakeProvider, path: str
) -> None:
    fake.script([*BEGUN, fp.hold()])

    async def ask() -> list[Completion]:
        async with async_sdk(server) as client:
            stream = await client.completions.create(model="fake/m", prompt="a", stream=True)
            chunks = [await anext(stream)]
            await client.post(
                f"{server.url}{path}{stream.response.headers['x-stream-id']}", cast_to=object
            )
            return chunks + [chunk async for chunk in stream]

    first, last = asyncio.run(ask())
    assert first.choices[0].text == "Hello"
    assert last.choices[0].to_dict()["native_finish_reason"] == "cancelled"
    assert fake.wait_closed()[0].outcome == "aborted"


def test_async_openai_sdk_canceling_a_task_closes_the_upstream_request(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([fp.hold()])

    async def ask() -> None:
        async with async_sdk(server) as client:
            task = asyncio.create_task(client.completions.create(model="fake/m", prompt="a"))
            await asyncio.to_thread(fake.wait_requests)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(ask())
    assert fake.wait_closed()[0].outcome == "aborted"
    calls.wait_active(server, 0)


def test_async_openai_sdk_raises_for_unknown_provider_and_broken_stream(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([*BREAKS["error_frame"], fp.sleep(0.2)])

    async def ask() -> None:
        async with async_sdk(server) as client:
            with pytest.raises(openai.NotFoundError):
                await client.completions.create(model="nobody/m", prompt="a")
            stream = await client.completions.create(model="fake/m", prompt="a", stream=True)
            with pytest.raises(openai.APIError, match="reported an error"):
                [chunk async for chunk in stream]

    asyncio.run(ask())


# indoxhub, the official client


def test_indoxhub_client_gets_a_completion(official: indoxhub.Client, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("Hello", usage=(3, 5))))
    answer = official.completion("Say it", model="fake/m", max_tokens=5)
    assert (answer["data"], answer["success"], answer["finish_reason"]) == ("Hello", True, "stop")
    assert (answer["provider"], answer["model"]) == ("fake", "m")
    assert answer["usage"]["tokens_total"] == 8
    sent = fake.requests[0].json
    assert sent == {"model": "m", "prompt": "Say it", "max_tokens": 5, "temperature": 0.7}


def test_indoxhub_client_extra_arguments_reach_the_provider(
    official: indoxhub.Client, fake: FakeProvider
) -> None:
    fake.script(fp.answer(fp.body("Hello")))
    official.completion(
        "a", model="m", provider="fake", top_p=0.5, stop=["\n"], seed=7, top_k=40, min_p=0.1,
        frequency_penalty=1, user="me", logit_bias={"1": 1}, return_generator=True,
    )  # fmt: skip
    assert fake.requests[0].json == {
        "model": "m", "prompt": "a", "temperature": 0.7, "top_p": 0.5, "stop": ["\n"], "seed": 7,
        "top_k": 40, "min_p": 0.1, "frequency_penalty": 1, "user": "me", "logit_bias": {"1": 1},
    }  # fmt: skip


def test_indoxhub_client_usage_counts_a_completion(
    official: indoxhub.Client, fake: FakeProvider
) -> None:
    before = official.get_usage()
    fake.script(fp.answer(fp.body("Hello", usage=(3, 5))))
    official.completion("Say it", model="fake/m", max_tokens=5)
    after = official.get_usage()
    assert after["total_requests"] == before["total_requests"] + 1
    assert after["total_tokens"]["total"] == before["total_tokens"]["total"] + 8
    assert after["remaining_credits"] is None
    assert "fake/m" in after["models"]
    assert after["daily_usage"][-1]["requests"] >= 1


def test_indoxhub_client_reads_a_stream(official: indoxhub.Client, fake: FakeProvider) -> None:
    fake.script(fp.sse(fp.chunks(["Hel", "lo \u2028\u0085", "you"], usage=(3, 5))))
    start, *content, finish, final = official.completion("a", model="fake/m", stream=True)
    assert start["type"] == "usage_start"
    assert [chunk["data"] for chunk in content] == ["Hel", "lo \u2028\u0085", "you"]
    assert {chunk["type"] for chunk in content} == {"content"}
    assert (finish["type"], finish["finish_reason"]) == ("finish", "stop")
    assert (final["input_tokens"], final["output_tokens"]) == (3, 5)


@pytest.mark.parametrize("path", STOPS)
def test_stop_ends_a_stream_of_the_indoxhub_client(
    server: Server, official: indoxhub.Client, fake: FakeProvider, path: str
) -> None:
    fake.script([*BEGUN, fp.hold()])
    chunks = official.completion("a", model="fake/m", stream=True, stream_id="mine")
    assert [next(chunks)["type"] for _ in range(2)] == ["usage_start", "content"]
    stop(server, path, "mine")
    finish, final = chunks
    assert finish["finish_reason"] == "cancelled"
    assert final["type"] == "usage_final"


def test_indoxhub_client_can_send_a_byok_key(official: indoxhub.Client, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("Hello")))
    answer = official.completion("a", model="fake/m", byok_api_key="my-own")
    assert (answer["byok_api_key"], answer["usage"]["cost"]) == (True, 0)
    assert fake.requests[0].headers["authorization"] == "Bearer my-own"


def test_indoxhub_client_lists_providers_and_models(official: indoxhub.Client) -> None:
    rows = {row["name"]: row for row in official.models()}
    assert {"local", "fake", "fakechat"} <= rows.keys()
    assert official.models("local") == rows["local"]
    listed = {model["modelName"]: model for model in rows["local"]["text_completions"]}
    assert listed.keys() == {"pydoc", "slow"}
    for name, model in listed.items():
        assert official.get_model_info("local", name) == model
        assert model["pricing"] == {"input": 0, "output": 0, "unit": "per_million_tokens"}


def test_indoxhub_client_test_connection_succeeds(
    server: Server, official: indoxhub.Client
) -> None:
    found = official.test_connection()
    assert (found["status"], found["status_code"]) == ("connected", 200)
    assert found["server_info"]["name"] == "sluice"


def test_indoxhub_client_works_as_a_context_manager(server: Server) -> None:
    with indoxhub.Client(api_key=server.key, base_url=server.url + "/", timeout=HANG_S) as client:
        assert client.access_token == server.key


def test_indoxhub_client_raises_for_an_invalid_key_at_construction(server: Server) -> None:
    with pytest.raises(indoxhub.AuthenticationError) as caught, hub(server, api_key="wrong"):
        pass
    assert str(caught.value).startswith("Authentication failed: A valid API key is required")
    assert "request_id" in str(caught.value)


def test_indoxhub_client_raises_once_its_key_is_removed(server: Server, fake: FakeProvider) -> None:
    key = server.add_key("short-lived")
    calls_key = {"Authorization": f"Bearer {key}"}
    server.wait(lambda: requests.get(server.url + MODELS, headers=calls_key).status_code == 200)
    path = server.directory / "keys.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    with hub(server, api_key=key) as client:
        path.write_text("".join(lines[:-1]))
        server.wait(lambda: requests.get(server.url + MODELS, headers=calls_key).status_code == 401)
        with pytest.raises(indoxhub.AuthenticationError):
            client.completion("a", model="fake/m")
        with pytest.raises(indoxhub.AuthenticationError):
            client.completion("a", model="fake/m", stream=True)


MODELS = "/v1/models"
HUB_REFUSED: dict[str, tuple[Create, type[Exception], str]] = {
    "provider": ({"model": "nobody/m"}, indoxhub.ProviderNotFoundError, "Provider 'nobody' was"),
    "model": ({"model": "bare"}, indoxhub.ModelNotFoundError, "Model 'bare' was not found"),
    "range": ({"temperature": 3}, indoxhub.InvalidParametersError, "temperature: got 3"),
    "type": ({"max_tokens": "x"}, indoxhub.InvalidParametersError, 'max_tokens: got "x"'),
    "prompt": ({"prompt": ""}, indoxhub.InvalidParametersError, "prompt: got"),
    "list": ({"prompt": ["a"]}, indoxhub.InvalidParametersError, "prompt: got a list of length 1"),
    "param": ({"messages": []}, indoxhub.InvalidParametersError, "can't set messages"),
    "unsupported": (
        {"model": "fakechat/m", "suffix": "x"},
        indoxhub.InvalidParametersError,
        "fakechat/m doesn't support suffix",
    ),
    "large": ({"prompt": "a" * 1_100_000}, indoxhub.APIError, "Client error (413): The body is"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", HUB_REFUSED)
def test_indoxhub_client_raises_for_a_request_the_gateway_refuses(
    official: indoxhub.Client, name: str, *, stream: bool
) -> None:
    fields, kind, message = HUB_REFUSED[name]
    expect(official, kind, message, {"stream": stream, **fields})


def expect(
    official: indoxhub.Client, kind: type[Exception], message: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(indoxhub.IndoxHubError) as caught:
        official.completion(**({"prompt": "a", "model": "fake/m"} | fields))
    assert type(caught.value) is kind, caught.value
    assert message in str(caught.value)
    assert "request_id" in str(caught.value)


HUB_UPSTREAM: dict[str, tuple[int, Create, type[Exception], str]] = {
    "bad": (400, {}, indoxhub.InvalidParametersError, "fake/m rejected the request: fake 400"),
    "entity": (422, {}, indoxhub.InvalidParametersError, "fake/m rejected the request"),
    "our_key": (401, {}, indoxhub.RequestError, "Server error (502): fake wants an API key"),
    "own_key": (401, {"byok_api_key": "mine"}, indoxhub.APIError, "(403): fake rejected your own"),
    "model": (404, {}, indoxhub.ModelNotFoundError, "Model 'fake/m' was not found"),
    "rate": (429, {}, indoxhub.RateLimitError, "Try again in 5 s"),
    "failed": (500, {}, indoxhub.RequestError, "Server error (502): "),
    "overloaded": (503, {}, indoxhub.RequestError, "Server error (502): "),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", HUB_UPSTREAM)
def test_indoxhub_client_raises_for_a_request_the_provider_refuses(
    official: indoxhub.Client, fake: FakeProvider, name: str, *, stream: bool
) -> None:
    status, fields, kind, message = HUB_UPSTREAM[name]
    fake.script(fp.error(status))
    expect(official, kind, message, {"stream": stream, **fields})
    assert len(fake.requests) == 1


def test_a_provider_message_does_not_mislead_the_indoxhub_client(
    official: indoxhub.Client, fake: FakeProvider
) -> None:
    # The client picks its exception by words in the message, such as "validation" in a 400.
    words = {"error": {"message": "validation of the provider failed: invalid format"}}
    fake.script(fp.error(400, words))
    expect(official, indoxhub.InvalidParametersError, "fake/m rejected the request", {})
    fake.script(fp.error(404, words))
    expect(official, indoxhub.ModelNotFoundError, "Model 'fake/m' was not found", {})


@pytest.mark.parametrize("name", BREAKS)
def test_indoxhub_client_raises_when_a_stream_breaks(
    official: indoxhub.Client, fake: FakeProvider, name: str
) -> None:
    fake.script([*BREAKS[name], fp.sleep(0.2)])
    chunks = official.completion("a", model="fake/m", stream=True)
    kinds = [next(chunks)["type"] for _ in range(3)]
    assert kinds == ["usage_start", "content", "usage_final"]
    with pytest.raises(indoxhub.APIError, match=r"API error during streaming: .*request_id"):
        next(chunks)


def test_indoxhub_client_timeout_closes_the_upstream_request(
    server: Server, fake: FakeProvider
) -> None:
    with hub(server) as client:
        client.timeout = 0.3
        fake.script([fp.hold()])
        with pytest.raises(indoxhub.NetworkError):
            client.completion("a", model="fake/m")
    assert fake.wait_closed()[0].outcome == "aborted"


def test_indoxhub_client_closing_a_stream_closes_the_upstream_request(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([*BEGUN, fp.repeat(EVENT.data, 0.01)])
    with hub(server) as client:
        chunks = client.completion("a", model="fake/m", stream=True)
        next(chunks)
        chunks.close()
    assert fake.wait_closed()[0].outcome == "aborted"
    calls.wait_active(server, 0)


# Plain HTTP


def bearer(server: Server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.key}"}


def post(
    server: Server,
    path: str,
    body: dict[str, Any],
    headers: dict[str, str] | None = None,
    *,
    stream: bool = False,
) -> requests.Response:
    sent = bearer(server) | (headers or {})
    return requests.post(server.url + path, json=body, headers=sent, stream=stream, timeout=HANG_S)


LANGCHAIN: dict[str, Any] = {
    "model": "fakechat/m",
    "prompt": ["Say it"],
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": None,
    "logprobs": None,
    "max_tokens": 256,
    "n": 1,
    "best_of": 1,
    "seed": None,
    "stop": None,
    "temperature": 0.7,
    "top_p": 1,
}


def test_a_langchain_request_gets_a_completion(server: Server, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("Hello", chat=True)))
    answer = post(server, FACES[0], LANGCHAIN, {"X-Sluice-Strict": "1"})
    assert (answer.status_code, answer.json()["choices"][0]["text"]) == (200, "Hello")
    assert fake.requests[0].json == {
        "model": "m",
        "messages": [{"role": "user", "content": "Say it"}],
        "max_tokens": 256,
        "temperature": 0.7,
    }


def test_a_langchain_request_gets_a_stream(server: Server, fake: FakeProvider) -> None:
    fake.script(fp.sse(fp.chunks(["Hello"], chat=True, usage=(3, 5))))
    body = {**LANGCHAIN, "stream": True, "stream_options": {"include_usage": True}}
    with post(server, FACES[0], body, stream=True) as answer:
        lines = [line for line in answer.iter_lines(decode_unicode=True) if line]
    assert len(lines) == 4
    assert lines[-1] == "data: [DONE]"


def test_one_connection_serves_many_calls(server: Server, fake: FakeProvider) -> None:
    fake.default(fp.sse(fp.chunks(["Hello"])))
    with requests.Session() as session:
        session.headers.update(bearer(server))
        for face in FACES * 2:
            body = {"model": "fake/m", "prompt": "a", "stream": True}
            answer = session.post(server.url + face, json=body, timeout=HANG_S)
            assert answer.text.endswith("data: [DONE]\n\n")
            assert session.post(server.url + face, json={}, timeout=HANG_S).status_code == 400
        adapter = session.get_adapter(server.url)
        assert isinstance(adapter, requests.adapters.HTTPAdapter)
        pools = adapter.poolmanager.pools
        assert [pools[key].num_connections for key in pools.keys()] == [1]  # noqa: SIM118


@pytest.mark.parametrize("header", ["bearer {}", "BEARER  {}", "Bearer {} "])
def test_the_bearer_scheme_is_accepted_in_any_case_and_spacing(server: Server, header: str) -> None:
    sent = {"Authorization": header.format(server.key)}
    assert requests.get(server.url + MODELS, headers=sent, timeout=HANG_S).status_code == 200
    by_key = {"X-API-Key": server.key}
    assert requests.get(server.url + MODELS, headers=by_key, timeout=HANG_S).status_code == 200


def test_a_cors_preflight_from_another_origin_is_allowed(server: Server) -> None:
    asked = {
        "Origin": "http://elsewhere",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    for face in FACES:
        answer = requests.options(server.url + face, headers=asked, timeout=HANG_S)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] in ("*", "http://elsewhere")
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"].lower()
