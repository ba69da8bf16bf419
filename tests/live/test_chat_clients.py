"""Tests of chat clients, unmodified, with a real server: LangChain, LlamaIndex, LiteLLM, the openai
package for Node.js, the Vercel AI SDK and Continue's adapters.

- Each runs as a program of tests/support/programs/, with packages that packages.py installs.
- A program makes seven calls: text, text as a stream, two tool calls at once, these as a stream, a
  structured answer, a call that the host refuses, and a stream that breaks.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import fake as fp
from tests.support import packages
from tests.support.books import ledger_of, rows
from tests.support.daemons import CantRunError
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.paths import FIXTURES
from tests.support.servers import Server, clean_environment

pytestmark = pytest.mark.thorough

OPENAI = FIXTURES / "chat" / "openai"
TEXTS = ("Café déjà", 'Café 😀 déjà \u2028\n"model":"gpt"')
CALLS = [["get_weather", {"city": "Köln"}], ["get_weather", {"city": "Rome"}]]
WEATHER = {"city": "Rome", "celsius": 21.5}


def python(program: str, *arguments: str) -> list[str]:
    return [str(packages.python()), str(packages.PROGRAMS / program), *arguments]


def node(program: str, *arguments: str) -> list[str]:
    return ["node", str(packages.node() / program), *arguments]


CLIENTS: dict[str, tuple[Callable[..., list[str]], str, list[str]]] = {
    "langchain": (python, "langchain_chat.py", []),
    "llamaindex": (python, "llamaindex_chat.py", []),
    "litellm": (python, "litellm_chat.py", []),
    "openai_node": (node, "openai_chat.mjs", []),
    "vercel_compatible": (node, "vercel_chat.mjs", ["openai-compatible"]),
    "vercel_openai": (node, "vercel_chat.mjs", ["openai"]),
    "continue": (node, "continue_chat.mjs", []),
}


def stream(name: str) -> list[fp.Step]:
    head = fp.head(200, {"Content-Type": "text/event-stream", "Connection": "close"})
    return [head, fp.send((OPENAI / name / "stream.sse").read_bytes()), fp.close()]


def whole(name: str) -> list[fp.Step]:
    return fp.answer((OPENAI / name / "body.json").read_bytes())


def play(fake: FakeProvider) -> None:
    """Let the host answer the calls of a program."""
    for name in ("text", "parallel_tool_calls"):
        fake.script(whole(name))
        fake.script(stream(name))
    fake.script(fp.answer(fp.body(json.dumps(WEATHER), chat=True)))
    fake.script(fp.error(400))
    fake.script(stream("error_in_the_stream"))


def run(server: Server, name: str) -> dict[str, Any]:
    make, program, more = CLIENTS[name]
    try:
        command = make(program, server.url, server.key, *more)
    except CantRunError as error:
        pytest.skip(str(error))
    env = clean_environment() | {"NO_PROXY": "*", "no_proxy": "*", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=4 * HANG_S, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_reads_texts_tool_calls_objects_and_errors(
    server: Server, fake: FakeProvider, name: str
) -> None:
    play(fake)
    found = run(server, name)
    assert len(fake.requests) == 7
    assert found["whole"] == [TEXTS[0], 12, 9]
    assert found["streamed"] == [TEXTS[1], 12, 9]
    assert found["called"] == found["called in a stream"] == CALLS
    assert found["object"] == WEATHER
    assert "fake/m rejected the request: fake 400" in found["error"]
    assert "reported an error" in found["broken"]
    tools, schema = fake.requests[2].json, fake.requests[4].json
    assert tools["tools"][0]["function"]["name"] == "get_weather"
    assert schema["response_format"]["type"] in ("json_schema", "json_object")
    latest = rows(ledger_of(server))[-7:]
    assert {row["endpoint"] for row in latest} == {"/v1/chat/completions"}
    assert [row["status"] for row in latest] == [200, 200, 200, 200, 200, 400, 200]
    assert [row["input_tokens"] for row in latest[:4]] == [12, 12, 61, 61]
