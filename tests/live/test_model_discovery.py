"""Real servers that ask hosts for their models: fake ones, each other, and themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.servers import Server

LOCAL_ENGINES = ("ollama", "vllm", "sglang", "llamacpp", "lmstudio")
QUIET = "".join(f"[providers.{name}]\ndiscover = false\n" for name in LOCAL_ENGINES)
"""Rows without which a test would ask what listens on the developer's machine."""
ASKING = {"SLUICE_DISCOVERY_S": "10"}


def row(name: str, base_url: str, key: str = "") -> str:
    secret = f'api_key_env = "{key}"\n' if key else ""
    return f'[providers.{name}]\nbase_url = "{base_url}"\ncompletions = true\n{secret}'


@pytest.fixture(scope="module")
def host() -> Iterator[FakeProvider]:
    with FakeProvider.start() as fake:
        yield fake


@pytest.fixture(scope="module")
def server(host: FakeProvider) -> Iterator[Server]:
    """Yield a server whose rows lead to the fake host, to itself, and to nothing."""
    made = Server(env=ASKING | {"OWN_KEY": ""})
    own = row("me", f"{made.url}/v1", "OWN_KEY") + row("stranger", f"{made.url}/v1")
    rows = QUIET + row("up", host.base_url) + own
    (made.directory / "sluice.toml").write_text(rows)
    made._env["OWN_KEY"] = made.key
    with made:
        yield made


@pytest.fixture(autouse=True)
def fresh(host: FakeProvider) -> None:
    host.reset()


def get(server: Server, path: str) -> Any:
    headers = {"Authorization": f"Bearer {server.key}"}
    answer = requests.get(f"{server.url}{path}", headers=headers, timeout=HANG_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(server: Server) -> list[str]:
    return [model["id"] for model in get(server, "/v1/models")["data"]]


def told(*models: str) -> Any:
    return fp.answer({"data": [{"id": name, "max_model_len": 4096} for name in models]})


def complete(server: Server, model: str) -> requests.Response:
    body = {"model": model, "prompt": "a"}
    headers = {"Authorization": f"Bearer {server.key}"}
    return requests.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=HANG_S)


OWN = ["local/pydoc", "local/slow"]


def test_the_first_list_has_a_hosts_models_and_never_ones_own(
    server: Server, host: FakeProvider
) -> None:
    host.default(told("coder", "a/b:c"))
    assert names(server) == [*OWN, "up/coder", "up/a/b:c"]
    listed = {entry["name"]: entry["text_completions"] for entry in get(server, "/api/v1/models")}
    assert [model["specs"]["context_window"] for model in listed["up"]] == [4096, 4096]
    assert listed["me"] == listed["stranger"] == []
    assert len(host.requests) == 1
    assert "it is Sluice itself" in server.output()


def test_another_sluice_lists_the_models_behind_this_one(
    server: Server, host: FakeProvider
) -> None:
    host.default(told("coder"))
    assert "up/coder" in names(server)
    rows = QUIET + row("first", f"{server.url}/v1", "FIRST_KEY")
    with Server(rows, env=ASKING | {"FIRST_KEY": server.key}) as second:
        assert "first/up/coder" in names(second)
        headers = {"Authorization": f"Bearer {second.key}"}
        answer = requests.get(f"{second.url}/v1/models", headers=headers, timeout=HANG_S)
        assert len(answer.headers["X-Sluice-Instance"].split(", ")) == 2


def test_a_host_that_hangs_delays_no_call_and_opens_no_circuit_breaker(
    host: FakeProvider,
) -> None:
    rows = QUIET + row("up", host.base_url)
    host.script([fp.hold()], "/v1/models")
    host.default(fp.answer({"choices": [{"text": "b", "finish_reason": "stop"}]}))
    with Server(rows, env=ASKING) as server:
        before = time.monotonic()
        assert names(server) == OWN
        assert time.monotonic() - before < scaled(8)
        before = time.monotonic()
        assert complete(server, "up/never-listed").json()["choices"][0]["text"] == "b"
        assert time.monotonic() - before < scaled(5)
        ready = requests.get(f"{server.url}/ready", timeout=HANG_S)
        assert (ready.status_code, ready.json().get("cooling", [])) == (200, [])
        metrics = requests.get(f"{server.url}/metrics", timeout=HANG_S).text
        assert "sluice_cooldown 0" in metrics
