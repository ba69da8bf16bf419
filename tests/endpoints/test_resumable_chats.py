"""Tests of resumable chats on both faces: chunks, reconnects and whole answers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.endpoints.test_chat import (
    CHUNKS,
    NATIVE,
    OPENAI,
    USAGE_CHUNK,
    ChatSite,
    chunk,
    data_of,
    serve,
    site,
)
from tests.gateway.test_gateway import eventually
from tests.support import fake as fp

__all__ = ["site"]

NAMES = {"resumable": True, "stream_id": "c-1"}
VARIED = r'"(id|request_id|stream_id|latency_ms|input_tokens)":("[^"]*"|[0-9.]+)'
FACES = [OPENAI, NATIVE]


def get(site: ChatSite, path: str, **headers: str) -> Any:
    sent = {"X-API-Key": site.secret} | headers
    return site.client.get(f"{path}/c-1", headers=sent, buffered=True)


@pytest.mark.parametrize("path", FACES)
def test_a_resumable_chat_has_the_chunks_of_a_plain_one_and_can_be_followed(
    site: ChatSite, path: str
) -> None:
    serve(site)
    plain = site.ask(path, stream=True).text
    serve(site)
    found = site.ask(path, stream=True, **NAMES)
    assert found.headers["X-Sluice-Resumable"] == "1"
    assert "stream_id" not in site.sent
    assert "resumable" not in site.sent
    text = found.text.removeprefix(":open\n")
    numbers = [int(n) for n in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    without_ids = re.sub(r"^id: \d+\n", "", text, flags=re.MULTILINE)
    assert re.sub(VARIED, "", without_ids) == re.sub(VARIED, "", plain)
    frames = text.split("\n\n")
    for seen in numbers[:-1]:
        again = get(site, path, Accept="text/event-stream", **{"Last-Event-ID": str(seen)})
        assert again.text == "\n\n".join(frames[seen:])
    assert get(site, FACES[1 - FACES.index(path)]).status_code == 404
    assert get(site, "/v1/completions").status_code == 404


@pytest.mark.parametrize("path", FACES)
def test_a_whole_resumable_chat_is_joined_from_its_chunks(site: ChatSite, path: str) -> None:
    serve(site)
    found = json.loads(site.ask(path, **NAMES).text)
    assert site.sent["stream"] is True
    [choice] = found["choices"]
    assert choice["message"]["content"] == "Hello"
    assert choice["message"]["tool_calls"] == [{"function": {"arguments": "{"}}]
    assert choice["finish_reason"] == "tool_calls"
    usage = found["usage"]
    counts = usage.get("prompt_tokens") or usage["tokens_prompt"]
    assert counts == 9

    def ended() -> bool:
        return get(site, path).json["expires_at"] is not None

    assert eventually(ended)
    assert get(site, path).json["result"] == found


def test_a_chat_in_the_background_answers_202(site: ChatSite) -> None:
    serve(site)
    answer = site.ask(background=True, stream_id="c-1")
    assert (answer.status_code, answer.headers["Location"]) == (202, f"{OPENAI}/c-1")
    assert eventually(lambda: get(site, OPENAI).json["status"] == "completed")
    assert get(site, OPENAI).json["result"]["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("path", FACES)
def test_a_chat_that_fails_in_the_middle_keeps_its_error(site: ChatSite, path: str) -> None:
    site.fake.script(fp.sse([CHUNKS[1], '{"error":{"message":"boom"}}'], done=False))
    text = site.ask(path, stream=True, **NAMES).text
    again = get(site, path, Accept="text/event-stream").text
    assert again == text.removeprefix(":open\n")
    assert "provider_error" in data_of(text)[-1]
    assert "[DONE]" not in text


def test_the_body_of_a_resumable_chat_is_released(site: ChatSite) -> None:
    for ask in ({"n": 9}, {}, {"model": "nowhere/m"}):
        site.fake.script(fp.sse([chunk('{"content":"x"}', '"stop"'), USAGE_CHUNK]))
        site.ask(stream=True, resumable=True, **ask)
        assert eventually(lambda: site.app.extensions["sluice"].bodies.held == 0)
