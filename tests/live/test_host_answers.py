"""Tests of hosts that respond in another form or lack a parameter, with a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from ledger import upkeep
from ledger.database import make_engine
from ledger.schema import now_us
from tests.support import fake as fp
from tests.support.books import ledger_of, rows
from tests.support.fake import FakeProvider, Step
from tests.support.pace import HANG_S
from tests.support.servers import Server

ROWS = """
[providers.up]
base_url = "{0}"
completions = true
[providers.fim]
base_url = "{0}"
completions = true
fim = {{path = "/infill", dialect = "infill"}}
[prices."up/m"]
input_per_mtok = 1
output_per_mtok = 2
"""


@pytest.fixture(scope="module")
def server(fake_process: FakeProvider) -> Iterator[Server]:
    with Server(ROWS.format(fake_process.base_url), env={"SLUICE_RETRIES": "2"}) as found:
        yield found


def post(server: Server, **fields: Any) -> requests.Response:
    body = {"model": "up/m", "prompt": "Hi", **fields}
    headers = {"Authorization": f"Bearer {server.key}"}
    return requests.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=HANG_S)


def answer(**fields: Any) -> list[Step]:
    choice = {"index": 0, "text": "Hello", "finish_reason": "stop"}
    return fp.answer(json.dumps({"model": "m", "choices": [choice], **fields}).encode())


def stream(*parts: bytes) -> list[Step]:
    kind = {"content-type": "text/event-stream"}
    return [fp.head(headers=kind), *map(fp.send, parts)]


CHUNK = b'data: {"model":"m","choices":[{"index":0,"text":"Hello","finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":3}}\n\n'


def test_a_stream_instead_of_json_is_read_up_to_its_last_event(
    server: Server, fake: FakeProvider
) -> None:
    fake.script([*stream(CHUNK, USAGE, b"data: [DONE]\n\n"), fp.hold()])
    found = post(server).json()
    assert found["choices"][0]["text"] == "Hello"
    assert (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]) == (8, 3)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_host_that_ignores_n_is_asked_once_and_its_usage_is_billed(
    server: Server, fake: FakeProvider, *, streamed: bool
) -> None:
    usage = {"prompt_tokens": 8, "completion_tokens": 3}
    done = [*stream(CHUNK, USAGE, b"data: [DONE]\n\n"), fp.close()]
    fake.script(done if streamed else answer(usage=usage))
    found = post(server, n=2, stream=streamed)
    assert 'set cannot = [\\"n\\"] in [providers.up]' in found.text
    assert "unsupported_parameter" in found.text
    assert found.status_code == (200 if streamed else 400)
    assert len(fake.requests) == 1
    row = rows(ledger_of(server))[-1]
    assert (row["input_tokens"], row["output_tokens"], row["cost_nano"]) == (8, 3, 14_000)


def test_a_501_names_the_parameter_in_the_words_of_the_host(
    server: Server, fake: FakeProvider
) -> None:
    words = "Infill is not supported by this model"
    error = {"error": {"code": 501, "message": words, "type": "not_supported_error"}}
    fake.script(fp.error(501, json.dumps(error).encode()))
    found = post(server, model="fim/m", suffix="end")
    assert found.status_code == 400
    assert found.json()["error"]["code"] == "unsupported_parameter"
    assert found.json()["error"]["param"] == "suffix"
    assert words in found.json()["error"]["message"]
    assert len(fake.requests) == 1


def test_a_fallback_is_tried_after_a_parameter_that_the_host_refuses(
    server: Server, fake: FakeProvider
) -> None:
    words = b'{"error":{"message":"m does not support insert","type":"invalid_request_error"}}'
    fake.script(fp.error(400, words))
    fake.script(answer())
    found = post(server, suffix="end", fallbacks=["up/other"])
    assert found.status_code == 200
    assert found.json()["model"] == "up/other"


ABSURD = [
    {"prompt_tokens": 8, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 99}},
    {"prompt_tokens": -8, "completion_tokens": -3},
    {"prompt_tokens": "8", "completion_tokens": 3.7},
    {"prompt_tokens": 2**63, "completion_tokens": 10**40},
    {"prompt_tokens": 2**31 - 1, "completion_tokens": 2**31 - 1},
    {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 11},
    {"prompt_tokens": 8, "completion_tokens": 3, "completion_tokens_details": {
        "reasoning_tokens": 99}},
    {"prompt_tokens": [], "completion_tokens": True},
]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
def test_absurd_usage_leaves_rows_that_verify_accepts(
    server: Server, fake: FakeProvider, *, streamed: bool
) -> None:
    for usage in ABSURD:
        chunk = b'data: {"choices":[],"usage":' + json.dumps(usage).encode() + b"}\n\n"
        done = [*stream(CHUNK, chunk, b"data: [DONE]\n\n"), fp.close()]
        fake.script(done if streamed else answer(usage=usage))
        assert post(server, stream=streamed).status_code == 200
        row = rows(ledger_of(server))[-1]
        assert row["input_tokens"] > 0
        assert row["output_tokens"] > 0
    with make_engine(f"sqlite:///{ledger_of(server)}", writes=False).connect() as connection:
        assert upkeep.verify(connection, now_us()).problems == []
