"""Tests of editors' clients, unmodified, with a real server: what they send, and what they read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support import editors
from tests.support import fake as fp
from tests.support.books import ledger_of, rows
from tests.support.calls import BEGUN
from tests.support.editors import GAP_CLIENTS, PREFIX, SUFFIX, TEXT_CLIENTS
from tests.support.fake import FakeProvider, Step
from tests.support.pace import HANG_S
from tests.support.servers import UNTROUBLED, Server

ROWS = """
[providers.coder]
base_url = "{0}"
completions = true
cannot = ["best_of", "suffix", "user"]
limits = {{stop = 4}}
fim = "template"
[providers.taker]
base_url = "{0}"
completions = true
[providers.mistralike]
base_url = "{0}"
stream_options = {{}}
[providers.mistralike.fim]
path = "/fim/completions"
cannot = ["n", "best_of", "seed", "logit_bias", "user", "prompt_list", "token_ids"]
only = ["min_tokens"]
[providers.deeplike]
base_url = "{1}"
fim = {{path = "/beta/completions"}}
[providers.llamacpp]
base_url = "{0}"
[providers.lonely]
base_url = "{0}"
completions = true
cannot = ["n", "suffix"]
fim = {{template = "qwen-coder"}}
"""
CODER = "coder/Qwen2.5-Coder-7B"
MODELS = {
    "template": (CODER, "/v1/completions"),
    "suffix": ("taker/m", "/v1/completions"),
    "mistral": ("mistralike/codestral", "/v1/fim/completions"),
    "deepseek": ("deeplike/m", "/beta/completions"),
    "llamacpp": ("llamacpp/tiny", "/infill"),
}
"""A model for each way of filling in, and the path at its host."""


@pytest.fixture(scope="module")
def server(fake_process: FakeProvider) -> Iterator[Server]:
    rows = ROWS.format(fake_process.base_url, fake_process.origin)
    env = UNTROUBLED | {"SLUICE_FIM_MODEL": CODER, "SLUICE_MAX_BODY": "100000"}
    found = Server(rows, env=env)
    KEYS["other models"] = found.add_key(models=["local/*"])
    KEYS.update({path: found.add_key(requests_per_minute=1) for path in PATHS})
    with found:
        yield found


KEYS: dict[str, str] = {}
"""Keys with limits, of the module's server."""
PATHS: dict[str, dict[str, Any]] = {
    "/v1/fim/completions": {"prompt": "a", "suffix": "b"},
    "/fim/completions": {"prompt": "a"},
    "/beta/completions": {"prompt": "a", "suffix": "b"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/v1/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/completion": {"prompt": "a"},
    "/completions": {"prompt": "a"},
}


def legacy(stream: bool) -> list[Step]:
    if stream:
        return fp.sse(fp.chunks(["return ", "a + b"], usage=(20, 5)))
    return fp.answer(fp.body("return a + b", usage=(20, 5)))


def piece(content: str, **more: Any) -> dict[str, Any]:
    return {"index": 0, "content": content, "stop": False, "tokens_evaluated": 20} | more


LAST = {"stop": True, "stop_type": "eos", "tokens_predicted": 5, "timings": {"predicted_n": 5}}


def infill(stream: bool) -> list[Step]:
    if stream:
        return fp.sse([piece("return "), piece("a + b"), piece("", **LAST)], done=False)
    whole = json.dumps(piece("return a + b", **LAST), separators=(",", ":"))
    return fp.answer(whole.encode())


def serve(fake: FakeProvider, path: str, *, stream: bool) -> None:
    fake.script((infill if path == "/infill" else legacy)(stream), path)


def is_streamed(name: str) -> bool:
    return name not in ("zed_codestral", "zed_openai", "lsp_ai", "llama_vim")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", GAP_CLIENTS)
def test_each_client_reads_the_text_however_its_host_fills_in(
    server: Server, fake: FakeProvider, name: str, kind: str
) -> None:
    model, path = MODELS[kind]
    serve(fake, path, stream=is_streamed(name))
    assert GAP_CLIENTS[name](server, model) == "return a + b"
    [request] = fake.requests
    assert request.path == path
    assert request.headers.get("authorization") is None
    sent = request.json
    assert sent["model"] == model.partition("/")[2]
    if kind == "template":
        assert sent["prompt"].endswith("<|fim_middle|>")
        assert "suffix" not in sent
        assert len(sent["stop"]) <= 4
    elif kind != "llamacpp":
        assert sent["prompt"].startswith(PREFIX)
        assert sent["suffix"] == ("" if name == "zed_codestral" else SUFFIX)
    row = rows(ledger_of(server))[-1]
    assert (row["status"], row["input_tokens"], row["output_tokens"]) == (200, 20, 5)


@pytest.mark.parametrize("name", [name for name in TEXT_CLIENTS if name not in GAP_CLIENTS])
def test_each_client_with_a_prompt_of_its_own_reads_the_text(
    server: Server, fake: FakeProvider, name: str
) -> None:
    serve(fake, "/v1/completions", stream=is_streamed(name))
    assert TEXT_CLIENTS[name](server, "taker/m") == "return a + b"
    [request] = fake.requests
    assert request.json["prompt"].startswith("<|fim_prefix|>")
    assert request.json["max_tokens"] == 64


def test_llama_vim_reaches_a_llamacpp_server_unchanged(server: Server, fake: FakeProvider) -> None:
    fake.script(infill(False), "/infill")
    assert editors.llama_vim(server, "llamacpp/tiny") == "return a + b"
    [request] = fake.requests
    body = editors.llama_vim_body(model="tiny")
    del body["response_fields"], body["stop"]  # the answer is cut here, and [] is no stop
    assert request.json == body


def test_llama_vim_warms_the_cache(server: Server, fake: FakeProvider) -> None:
    fake.script(infill(False), "/infill")
    assert editors.llama_vim_warm_up(server, "llamacpp/tiny") == "{}"
    assert fake.requests[0].json["n_predict"] == 0
    fake.script(legacy(False), "/v1/completions")
    assert editors.llama_vim_warm_up(server, "") == "{}"  # SLUICE_FIM_MODEL
    assert fake.requests[1].json["max_tokens"] == 1


def test_llama_vim_without_a_key_is_refused(server: Server) -> None:
    found = editors.post(server, "/infill", editors.llama_vim_body(), Authorization="Bearer ")
    assert found.status_code == 401
    assert found.json()["error"]["code"] == "unauthorized"


def test_llama_vscode_gets_several_suggestions(server: Server, fake: FakeProvider) -> None:
    results = [piece(f"text {index}", **LAST) | {"index": index} for index in range(3)]
    fake.script(fp.answer(results), "/infill")
    assert editors.llama_vscode(server, "llamacpp/tiny") == ["text 0", "text 1", "text 2"]
    assert fake.requests[0].json["n_cmpl"] == 3
    choices = [{"index": i, "text": f"t{i}", "finish_reason": "stop"} for i in range(3)]
    fake.script(fp.answer({"model": "m", "choices": choices}), "/v1/completions")
    assert editors.llama_vscode(server, CODER) == ["t0", "t1", "t2"]
    assert fake.requests[1].json["n"] == 3


def test_llama_vscode_gets_one_suggestion_of_a_host_without_n(
    server: Server, fake: FakeProvider
) -> None:
    fake.script(legacy(False), "/v1/completions")
    assert editors.llama_vscode(server, "lonely/m") == ["return a + b"]
    assert "n" not in fake.requests[0].json


def test_llama_vscode_finds_a_healthy_server_and_its_models(
    server: Server, fake: FakeProvider
) -> None:
    assert editors.llama_vscode_health(server) == "ok"
    assert "local/pydoc" in editors.llama_vscode_models(server)
    fake.script(legacy(False), "/v1/completions")
    assert editors.llama_vscode_warm_up(server)["content"] == ""


def test_a_model_that_cannot_fill_in_answers_llamacpps_words(
    server: Server, fake: FakeProvider
) -> None:
    words = "Infill is not supported by this model: prefix token is missing. "
    error = {"error": {"code": 501, "message": words, "type": "not_supported_error"}}
    fake.script(fp.error(501, error), "/infill")
    found = editors.post(server, "/infill", editors.llama_vim_body(model="llamacpp/tiny"))
    assert found.status_code == 400
    assert found.json()["error"]["code"] == "unsupported_parameter"
    assert "prefix token is missing" in found.json()["error"]["message"]


# Stop, hang-up, limits

PASSED: dict[str, Any] = {"model": "llamacpp/tiny", "input_prefix": "a", "input_suffix": "b"}
LLAMA_BEGUN = fp.sse([piece("Hello")], done=False, complete=False)
CALLS: list[Any] = [
    *(pytest.param(path, body | {"model": CODER}, BEGUN, id=path) for path, body in PATHS.items()),
    pytest.param("/infill", PASSED, LLAMA_BEGUN, id="passed through"),
]


@pytest.mark.parametrize(("path", "body", "begun"), CALLS)
def test_a_stream_can_be_stopped_by_the_id_in_its_header(
    server: Server, fake: FakeProvider, path: str, body: dict[str, Any], begun: list[Step]
) -> None:
    fake.script([*begun, fp.hold()])
    answer = editors.post(server, path, body | {"stream": True})
    stream_id = answer.headers["X-Stream-ID"]
    stopped = editors.post(server, f"/v1/completions/stop-stream/{stream_id}", {})
    assert stopped.json() == {"success": True}
    text = answer.content.decode()
    assert "Hello" in text
    assert '"stop":true' in text or '"finish_reason":"stop"' in text
    [request] = fake.wait_closed()
    assert request.closed_by == "peer"
    row = rows(ledger_of(server))[-1]
    assert (row["endpoint"], row["end_reason"], row["status"]) == (path, "stopped", 200)


@pytest.mark.parametrize(("path", "body", "begun"), CALLS)
def test_a_client_that_hangs_up_ends_the_call_at_its_host(
    server: Server, fake: FakeProvider, path: str, body: dict[str, Any], begun: list[Step]
) -> None:
    fake.script([*begun, fp.hold()])
    answer = editors.post(server, path, body | {"stream": True})
    next(answer.iter_content(64))
    answer.close()
    [request] = fake.wait_closed()
    assert request.closed_by == "peer"


def test_the_usage_of_a_stopped_stream_of_llamacpp_is_what_it_reported(
    server: Server, fake: FakeProvider
) -> None:
    begun = fp.sse(
        [piece("Hello", tokens_predicted=1), piece(" you", tokens_predicted=2)],
        done=False,
        complete=False,
    )
    fake.script([*begun, fp.hold()])
    answer = editors.post(server, "/infill", PASSED | {"stream": True})
    parts = answer.iter_content(4096)
    while b"you" not in next(parts):
        pass
    stop = f"/v1/completions/stop-stream/{answer.headers['X-Stream-ID']}"
    assert editors.post(server, stop, {}).status_code == 200
    for _ in parts:
        pass
    fake.wait_closed()
    row = rows(ledger_of(server))[-1]
    assert (row["input_tokens"], row["output_tokens"]) == (20, 2)


@pytest.mark.parametrize("path", PATHS)
def test_a_key_limited_to_other_models_is_refused(
    server: Server, fake: FakeProvider, path: str
) -> None:
    headers = {"Authorization": f"Bearer {KEYS['other models']}"}
    found = editors.post(server, path, PATHS[path], **headers)
    assert (found.status_code, found.json()["error"]["code"]) == (403, "model_forbidden")
    assert fake.requests == []


@pytest.mark.parametrize("path", PATHS)
def test_a_limit_of_a_key_holds_on_every_path(
    server: Server, fake: FakeProvider, path: str
) -> None:
    headers = {"Authorization": f"Bearer {KEYS[path]}"}
    fake.script(legacy(False))
    assert editors.post(server, path, PATHS[path], **headers).status_code == 200
    refused = editors.post(server, path, PATHS[path], **headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")


@pytest.mark.parametrize("path", PATHS)
def test_a_huge_body_is_refused(server: Server, path: str) -> None:
    name = "input_extra" if "infill" in path else "prompt"
    found = editors.post(server, path, PATHS[path] | {name: "x" * 200_000})
    assert (found.status_code, found.json()["error"]["code"]) == (413, "request_too_large")


def test_each_path_is_an_endpoint_in_the_metrics(server: Server, fake: FakeProvider) -> None:
    for path, body in PATHS.items():
        fake.script(legacy(False))
        assert editors.post(server, path, body).status_code == 200
    text = requests.get(f"{server.url}/metrics", timeout=HANG_S).text
    for path in PATHS:
        assert f'sluice_requests_total{{endpoint="{path}",model="Qwen2.5-Coder-7B"' in text


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in GAP_CLIENTS if is_streamed(name)])
def test_a_client_survives_a_stream_whose_host_is_slow_to_begin(
    slow: Server, fake: FakeProvider, name: str
) -> None:
    model, _ = MODELS["template"]
    fake.script([fp.sleep(0.3), *legacy(True)])
    assert GAP_CLIENTS[name](slow, model) == "return a + b"


@pytest.fixture(scope="module")
def slow(fake_process: FakeProvider) -> Iterator[Server]:
    """Yield a server that sends the status line, with a comment, before the first event."""
    rows = ROWS.format(fake_process.base_url, fake_process.origin)
    with Server(rows, env=UNTROUBLED | {"SLUICE_FIRST_EVENT_WAIT_S": "0"}) as found:
        yield found
