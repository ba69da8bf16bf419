"""Tests of resumable streams with real clients: the openai SDKs, LangChain, the Vercel AI SDK, and
a browser's EventSource.

- LangChain, the openai package for Node.js and the Vercel AI SDK run as programs of
  tests/support/programs/, with packages that packages.py installs.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from playwright.sync_api import Browser

from tests.support import fake as fp
from tests.support import packages
from tests.support.cutting_proxy import CuttingProxy
from tests.support.daemons import CantRunError
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.resuming import PATHS, PIECES
from tests.support.servers import UNTROUBLED, Server, clean_environment, fake_rows

TEXT = "".join(PIECES[:40])


@pytest.fixture(scope="module")
def server(fake_process: FakeProvider) -> Iterator[Server]:
    settings = UNTROUBLED | {"SLUICE_KEEPALIVE_S": "1"}
    with Server(fake_rows(fake_process.base_url), env=settings) as found:
        yield found


def with_a_pause(*, chat: bool = False) -> list[fp.Step]:
    """Return the steps of a provider that sends pieces, with a pause for keep-alive comments."""
    frames = fp.chunks(PIECES[:40], chat=chat, usage=(7, 40))
    first = fp.sse(frames[:20], interval=0.005, done=False, complete=False)
    rest = [step for frame in frames[20:] for step in (fp.event(frame), fp.sleep(0.005))]
    return [*first, fp.sleep(2.2), *rest, fp.event("[DONE]"), fp.last_chunk()]


@pytest.fixture
def _pieces(fake: FakeProvider) -> None:
    fake.default(with_a_pause())


def test_openai_sdk_reads_a_stream_with_ids_and_keep_alive_comments(
    server: Server, _pieces: None
) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        stream = client.completions.create(
            model="fake/m", prompt="x", stream=True, extra_body={"resumable": True}
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == TEXT


@pytest.mark.thorough
def test_async_openai_sdk_reads_a_stream_with_ids_and_keep_alive_comments(
    server: Server, _pieces: None
) -> None:
    async def read() -> str:
        url = f"{server.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=server.key, max_retries=0) as client:
            stream = await client.completions.create(
                model="fake/m", prompt="x", stream=True, extra_body={"resumable": True}
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

    assert asyncio.run(read()) == TEXT


@pytest.mark.thorough
def test_the_guide_for_the_openai_sdk_survives_cuts(server: Server, _pieces: None) -> None:
    guide = (ROOT / "docs" / "guides" / "resumable.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    with CuttingProxy(server.port, [2500, 2000, 1200]) as proxy:
        address = {"SLUICE_URL": proxy.url, "SLUICE_KEY": server.key}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program.replace("local/pydoc", "fake/m")],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            env=clean_environment() | address | {"NO_PROXY": "*", "no_proxy": "*"},
            check=False,
        )
        assert (done.stdout, proxy.made) == (TEXT + "\n", 3), done.stderr


PROGRAMS: dict[str, tuple[str, Callable[[], Path]]] = {
    "openai_resumable.mjs": ("node", packages.node),
    "vercel_resumable.mjs": ("node", packages.node),
    "langchain_resumable.py": ("python", packages.python),
}


def command(program: str) -> list[str]:
    """Return what runs a program, whose packages are installed. Skip the test if they can't be."""
    kind, install = PROGRAMS[program]
    try:
        found = install()
    except CantRunError as error:
        pytest.skip(str(error))
    if kind == "node":
        return ["node", str(found / program)]
    return [str(found), str(packages.PROGRAMS / program)]


@pytest.mark.thorough
@pytest.mark.parametrize("program", PROGRAMS)
def test_other_clients_read_streams_with_ids_and_keep_alive_comments(
    server: Server, fake: FakeProvider, program: str
) -> None:
    fake.script(with_a_pause())
    fake.script(with_a_pause(chat=True))
    done = subprocess.run(
        [*command(program), server.url, server.key],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=clean_environment() | {"NO_PROXY": "*", "no_proxy": "*"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.strip().split("\n")[-1]) == {"completion": TEXT, "chat": TEXT}
    assert len(fake.requests) == 2


EVENTS = """
([url]) => new Promise((resolve) => {
  const found = { texts: [], ids: [], opens: 0, errors: 0, named: [] };
  const source = new EventSource(url);
  source.onopen = () => { found.opens += 1; };
  source.addEventListener("usage_start", (event) => found.named.push(event.type));
  source.addEventListener("usage_final", (event) => found.named.push(event.type));
  source.onmessage = (event) => {
    found.ids.push(Number(event.lastEventId));
    if (event.data !== "[DONE]") {
      const choices = JSON.parse(event.data).choices;
      found.texts.push(...choices.map((choice) => choice.text));
    }
  };
  source.onerror = () => {
    found.errors += 1;
    if (source.readyState === EventSource.CLOSED) resolve(found);
  };
})
"""


@pytest.mark.thorough
@pytest.mark.parametrize("path", PATHS)
def test_an_event_source_resumes_by_itself_and_stops_at_the_end(
    server: Server, browser: Browser, path: str, _pieces: None
) -> None:
    body = {
        "model": "fake/m",
        "prompt": "x",
        "background": True,
        "stream_id": f"b{PATHS.index(path)}",
    }
    with server.client() as client:
        client.request("POST", path, body)
        head = client.read_head()
        assert (head.status, json.loads(client.body())["status"]) in (
            (202, "queued"),
            (202, "in_progress"),
        )
    with CuttingProxy(server.port, [3000]) as proxy:
        context = browser.new_context(
            extra_http_headers={"Authorization": f"Bearer {server.key}"}, bypass_csp=True
        )
        page = context.new_page()
        page.goto(f"{server.url}/health")
        found = page.evaluate(EVENTS, [f"{proxy.url}{path}/{body['stream_id']}"])
        context.close()
    assert "".join(found["texts"]) == TEXT
    assert found["ids"] == sorted(set(found["ids"]))
    assert found["named"] == (["usage_start", "usage_final"] if path == PATHS[0] else [])
    assert (found["opens"], proxy.made) == (2, 1)
