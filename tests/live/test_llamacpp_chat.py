"""Tests of chats with llama.cpp's real server: tools, streams, stops and hang-ups."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support import packages
from tests.support.books import ledger_of, row_of
from tests.support.daemons import CantRunError
from tests.support.pace import HANG_S
from tests.support.servers import Server, free_port

pytestmark = pytest.mark.thorough

CHAT = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}},
    "required": ["city"],
}
TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}],
    "tool_choice": "required",
    "logit_bias": {"3": 100},  # the token that begins a call, so that one call follows another
    "max_tokens": 400,
}
HISTORY = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "21"},
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a running llama.cpp server."""
    folder, port = tmp_path_factory.mktemp("llamacpp"), free_port()
    try:
        program = str(packages.PROGRAMS / "llama_server.py")
        command = [str(packages.python()), program, str(folder), str(port)]
    except CantRunError as error:
        pytest.skip(str(error))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, process_group=0
        )
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert any(line.startswith("ready") for line in lines), (folder / "log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.communicate(timeout=HANG_S)


@pytest.fixture(scope="module")
def server(engine: str) -> Iterator[Server]:
    with Server(f'[providers.llamacpp]\nbase_url = "{engine}/v1"\n') as found:
        yield found


def post(url: str, server: Server, *, stream: bool = False, **fields: Any) -> requests.Response:
    body = {"model": "llamacpp/tiny", "messages": HISTORY, "temperature": 0, "seed": 1}
    headers = {"Authorization": f"Bearer {server.key}"}
    body |= fields | ({"stream": True} if stream else {})
    return requests.post(url + CHAT, json=body, headers=headers, stream=stream, timeout=HANG_S)


def chunks(answer: requests.Response) -> list[dict[str, Any]]:
    lines = [line[6:] for line in answer.iter_lines() if line.startswith(b"data: ")]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def without_ids(value: Any) -> Any:
    """Return choices without the ids of their tool calls, which are random."""
    if isinstance(value, dict):
        return {name: without_ids(item) for name, item in value.items() if name != "id"}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def is_idle(engine: str) -> bool:
    slots = requests.get(f"{engine}/slots", timeout=HANG_S).json()
    return not any(slot["is_processing"] for slot in slots)


def test_a_whole_answer_with_a_tool_call_is_the_engines(engine: str, server: Server) -> None:
    answer = post(server.url, server, **TOOLS)
    found, direct = answer.json(), post(engine, server, **TOOLS).json()
    assert without_ids(found["choices"]) == without_ids(direct["choices"])
    assert found.keys() == direct.keys()
    calls = found["choices"][0]["message"]["tool_calls"]
    assert len(calls) > 1
    assert json.loads(calls[0]["function"]["arguments"]).keys() == {"city"}
    row = row_of(ledger_of(server), answer.headers["X-Request-ID"])
    assert row["output_tokens"] == direct["usage"]["completion_tokens"]
    assert row["usage_source"] == "provider"


def test_the_fragments_of_a_tool_call_are_the_engines(engine: str, server: Server) -> None:
    options = {"stream_options": {"include_usage": True}}
    found = chunks(post(server.url, server, stream=True, **TOOLS, **options))
    direct = chunks(post(engine, server, stream=True, **TOOLS, **options))
    assert [without_ids(one["choices"]) for one in found] == [
        without_ids(one["choices"]) for one in direct
    ]
    assert found[-1]["usage"]["completion_tokens"] == direct[-1]["usage"]["completion_tokens"]
    assert {one["model"] for one in found} == {"llamacpp/tiny"}
    fragments = [
        call["function"]["arguments"]
        for one in found
        for choice in one["choices"]
        for call in choice["delta"].get("tool_calls", ())
        if call["index"] == 0
    ]
    assert len(fragments) > 2
    assert json.loads("".join(fragments)).keys() == {"city"}


@pytest.mark.parametrize("path", [CHAT, "/api/v1/chat/completions", "/v1/completions"])
def test_a_stop_ends_the_engines_work(engine: str, server: Server, path: str) -> None:
    with post(server.url, server, stream=True, max_tokens=4000) as answer:
        lines = answer.iter_lines()
        assert any(b'"content":"' in line for line in lines)
        assert not is_idle(engine)
        stop = f"{server.url}{path}/stop-stream/{answer.headers['X-Stream-ID']}"
        headers = {"Authorization": f"Bearer {server.key}"}
        assert requests.post(stop, headers=headers, timeout=HANG_S).json() == {"success": True}
        assert [line for line in lines if line][-1] == b"data: [DONE]"
    server.wait(lambda: is_idle(engine))
    row = row_of(ledger_of(server), answer.headers["X-Request-ID"])
    assert (row["end_reason"], row["usage_source"]) == ("stopped", "estimate")
    assert row["output_tokens"] > 0


def test_a_hang_up_ends_the_engines_work(engine: str, server: Server) -> None:
    answer = post(server.url, server, stream=True, max_tokens=4000)
    assert any(b'"content":"' in line for line in answer.iter_lines())
    answer.close()
    server.wait(lambda: is_idle(engine))
    request = answer.headers["X-Request-ID"]
    server.wait(lambda: row_of(ledger_of(server), request)["ended_us"] is not None)
    assert row_of(ledger_of(server), request)["end_reason"] == "client_gone"


def test_the_engines_refusal_of_a_body_is_shown(server: Server) -> None:
    answer = post(server.url, server, messages=[{"role": "user"}], tools=[{"type": "x"}])
    assert answer.status_code == 400
    assert answer.json()["error"]["details"]["upstream_status"] == 400
