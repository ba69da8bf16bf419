"""Tests of the fill-in-the-middle endpoints of Mistral and DeepSeek, as editors see them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from app import create_app
from completion import Delta, Finished, Started, Usage, Used
from config import ConfigError, Settings
from errors import Unavailable
from tests.endpoints.test_openai import STOP, Upstream, answer, chunks, plain, upstream
from tests.support.servers import settings_files

__all__ = ["upstream"]

CONFIG = """
[providers.fake]
base_url = "http://127.0.0.1:1/v1"
completions = true
[providers.coder]
base_url = "http://127.0.0.1:1/v1"
completions = true
cannot = ["suffix", "n"]
fim = {template = "qwen-coder"}
[providers.llama]
base_url = "http://127.0.0.1:1/v1"
completions = true
fim = {path = "/infill", dialect = "infill"}
[providers.chatty]
base_url = "http://127.0.0.1:1/v1"
[aliases]
coder = "coder/m"
[prices."fake/m"]
input_per_mtok = 1.0
output_per_mtok = 2.0
"""
FIM = ["/v1/fim/completions", "/fim/completions"]
BETA = "/beta/completions"
MISTRAL = {"model": "fake/m", "prompt": "def f(", "suffix": "return 1"}


class Editor:
    """An editor that calls one server with one key."""

    def __init__(self, app: Flask, key: str) -> None:
        self.app = app
        self.headers = {"Authorization": f"Bearer {key}"}

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None, /) -> TestResponse:
        client = self.app.test_client()
        return client.post(path, json=body, headers=self.headers | (headers or {}))

    def stop(self) -> None:
        """Stop the call `mine`."""
        assert self.app.test_client().post(STOP, headers=self.headers).status_code == 200


def make_app(directory: Path, key_line: str, **environ: str) -> Flask:
    (directory / "sluice.toml").write_text(CONFIG)
    (directory / "keys.jsonl").touch(mode=0o600)
    (directory / "keys.jsonl").write_text(key_line)
    fixed = {"SLUICE_MAX_BODY": "20000", "SLUICE_RETRIES": "0", "SLUICE_FIM_MODEL": "coder"}
    return create_app(Settings.from_env({**settings_files(directory), **fixed, **environ}))


@pytest.fixture
def editor(tmp_path: Path, new_key: tuple[str, str], upstream: Upstream) -> Editor:
    return Editor(make_app(tmp_path, new_key[1]), new_key[0])


# Mistral's


@pytest.mark.parametrize("path", FIM)
def test_a_whole_answer_has_the_shape_of_a_chat(editor: Editor, path: str) -> None:
    found = editor.post(path, MISTRAL)
    assert plain(found.text) == (
        '{"id":"ID","object":"chat.completion","created":0,"model":"fake/m","choices":[{"index":0,'
        '"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{'
        '"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,"cost":0.000013}}'
    )


def piece(text: str, reason: str = "null", more: str = "") -> str:
    return (
        'data: {"id":"ID","object":"chat.completion.chunk","created":0,"model":"fake/m",'
        f'"choices":[{{"index":0,"delta":{{"role":"assistant","content":"{text}"}},'
        f'"finish_reason":{reason}}}]{more}}}\n\n'
    )


USED = '"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,"cost":0.000013'


@pytest.mark.parametrize("path", FIM)
def test_a_stream_ends_with_the_reason_and_the_usage_in_one_chunk(
    editor: Editor,
    upstream: Upstream,
    path: str,
) -> None:
    upstream.scripts = [answer("He", "llo", reason="length")]
    found = editor.post(path, MISTRAL | {"stream": True})
    last = piece("", '"length"', f',"usage":{{{USED}}}')
    assert plain(found.text) == piece("He") + piece("llo") + last + "data: [DONE]\n\n"
    assert found.headers["X-Stream-ID"]


def test_a_stopped_stream_has_a_reason_before_its_end(
    editor: Editor,
    upstream: Upstream,
) -> None:
    upstream.play([Started(), Delta(0, "Half")], editor.stop, None)
    found = editor.post(FIM[0], MISTRAL | {"stream": True}, {"X-Stream-ID": "mine"})
    first, last = chunks(found.text)
    assert first["choices"][0]["delta"]["content"] == "Half"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["choices"][0]["native_finish_reason"] == "cancelled"
    assert last["choices"][0]["delta"]["content"] == ""
    assert isinstance(last["usage"]["total_tokens"], int)
    assert found.text.endswith("data: [DONE]\n\n")


def test_a_stream_stopped_before_its_first_text_has_one_chunk(
    editor: Editor,
    upstream: Upstream,
) -> None:
    upstream.play(editor.stop, None)
    found = editor.post(FIM[0], MISTRAL | {"stream": True, "stream_id": "mine"})
    [only] = chunks(found.text)
    assert only["choices"][0]["finish_reason"] == "stop"
    assert only["usage"]["source"] == "estimate"


def test_a_failed_stream_ends_with_an_error(editor: Editor, upstream: Upstream) -> None:
    upstream.play([Started(), Delta(0, "Half")], Unavailable("Later."))
    found = editor.post(FIM[0], MISTRAL | {"stream": True})
    assert chunks(found.text)[-1]["error"]["code"] == "unavailable"
    assert "[DONE]" not in found.text


def test_every_parameter_of_mistral_reaches_the_provider(
    editor: Editor,
    upstream: Upstream,
) -> None:
    editor.post(
        FIM[0],
        MISTRAL
        | {"temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 9, "random_seed": 7}
        | {"stop": "x", "min_tokens": 1, "metadata": {"a": 1}, "presence_penalty": 0.1},
    )
    request = upstream.request
    assert (request.prompts, request.suffix) == (("def f(",), "return 1")
    assert (request.temperature, request.top_p, request.max_tokens) == (0.5, 0.9, 9)
    assert (request.seed, request.stop, request.presence_penalty) == (7, ("x",), 0.1)
    assert request.openai_extra == {"min_tokens": 1, "metadata": {"a": 1}}


@pytest.mark.parametrize("suffix", [{}, {"suffix": None}, {"suffix": ""}])
def test_a_missing_suffix_is_an_empty_one(
    editor: Editor,
    upstream: Upstream,
    suffix: dict[str, Any],
) -> None:
    found = editor.post(FIM[0], {"model": "coder", "prompt": "a"} | suffix)
    assert found.status_code == 200
    assert upstream.request.prompts == ("<|fim_prefix|>a<|fim_suffix|><|fim_middle|>",)


def test_nulls_and_an_empty_stop_list_count_as_absent(
    editor: Editor,
    upstream: Upstream,
) -> None:
    body: dict[str, Any] = MISTRAL | {
        "min_tokens": None,
        "random_seed": None,
        "stop": [],
        "top_p": None,
    }
    assert editor.post(FIM[0], body).status_code == 200
    assert (upstream.request.seed, upstream.request.openai_extra) == (None, {})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"suffix": 5}, "suffix"),
        ({"suffix": ["a"]}, "suffix"),
        ({"random_seed": "x"}, "random_seed"),
        ({"random_seed": 1, "seed": 2}, "random_seed"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"stop": [5]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"model": 5}, "model"),
        ({"model": ["fake/m"]}, "model"),
        ({"stream_id": "a b"}, "stream_id"),
    ],
)
@pytest.mark.parametrize("path", FIM)
def test_a_field_of_a_wrong_type_is_a_400_that_names_it(
    editor: Editor, path: str, body: dict[str, Any], param: str
) -> None:
    found = editor.post(path, MISTRAL | body)
    assert found.status_code == 400
    assert found.get_json()["error"]["param"] == param
    assert found.get_json()["error"]["type"] == "invalid_request_error"


def test_a_chat_model_refuses_with_the_setting(editor: Editor) -> None:
    found = editor.post(FIM[0], MISTRAL | {"model": "chatty/m"})
    assert found.status_code == 400
    assert found.get_json()["error"]["code"] == "unsupported_parameter"
    assert "[providers.chatty] of sluice.toml" in found.get_json()["error"]["message"]


# The model


@pytest.mark.parametrize("model", [{}, {"model": ""}, {"model": None}])
@pytest.mark.parametrize("path", [*FIM, BETA])
def test_without_a_model_the_servers_model_for_editors_counts(
    editor: Editor,
    upstream: Upstream,
    path: str,
    model: dict[str, Any],
) -> None:
    body: dict[str, Any] = {"prompt": "a", "suffix": "b"} | model
    assert editor.post(path, body).get_json()["model"] == "coder/m"
    assert upstream.targets[0].name == "coder/m"


@pytest.mark.parametrize("path", [*FIM, BETA, "/infill", "/completion"])
def test_without_a_model_and_a_setting_the_answer_is_a_400(
    tmp_path: Path,
    new_key: tuple[str, str],
    upstream: Upstream,
    path: str,
) -> None:
    editor = Editor(make_app(tmp_path, new_key[1], SLUICE_FIM_MODEL=""), new_key[0])
    found = editor.post(path, {"prompt": "a", "input_prefix": "a", "input_suffix": "b"})
    assert found.status_code == 400
    assert found.get_json()["error"]["param"] == "model"
    assert "SLUICE_FIM_MODEL" in found.get_json()["error"]["message"]
    assert upstream.requests == []


def test_the_model_for_editors_must_exist(tmp_path: Path, new_key: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="SLUICE_FIM_MODEL: 'nobody/m'"):
        make_app(tmp_path, new_key[1], SLUICE_FIM_MODEL="nobody/m")


# DeepSeek's


@pytest.mark.parametrize("stream", [False, True])
def test_deepseeks_endpoint_answers_as_v1_completions(editor: Editor, *, stream: bool) -> None:
    found, same = (
        editor.post(path, MISTRAL | {"stream": stream}) for path in (BETA, "/v1/completions")
    )
    assert plain(found.text) == plain(same.text)
    assert found.content_type == same.content_type


# Common


@pytest.mark.parametrize("path", [*FIM, BETA, "/infill", "/v1/infill", "/completion"])
def test_errors_have_openais_shape_on_every_path_of_editors(editor: Editor, path: str) -> None:
    for found, code in (
        (editor.post(path, [1]), "invalid_request"),
        (editor.post(path, MISTRAL, {"Authorization": "Bearer "}), "unauthorized"),
        (editor.post(path, MISTRAL, {"Authorization": "Bearer wrong"}), "unauthorized"),
        (editor.post(path, {"prompt": "a" * 30_000}), "request_too_large"),
        (editor.app.test_client().get(path, headers=editor.headers), "method_not_allowed"),
    ):
        assert found.get_json()["error"]["code"] == code
        assert found.get_json()["error"]["request_id"] == found.headers["X-Request-ID"]


def test_each_path_has_its_own_endpoint_in_the_usage(editor: Editor) -> None:
    for path in (*FIM, BETA):
        assert editor.post(path, MISTRAL).status_code == 200
    client = editor.app.test_client()
    report = client.get("/api/v1/user/usage", headers=editor.headers).get_json()
    assert {*report["endpoints"]} == {*FIM, BETA}


def test_usage_that_the_provider_did_not_report_is_estimated(
    editor: Editor,
    upstream: Upstream,
) -> None:
    upstream.play([Started(), Delta(0, "four"), Finished(0, "stop")])
    usage = editor.post(FIM[0], MISTRAL).get_json()["usage"]
    assert usage["source"] == "estimate"
    assert all(isinstance(usage[name], int) for name in ("prompt_tokens", "completion_tokens"))


def test_the_tokens_of_a_template_are_those_that_the_provider_counts(
    editor: Editor,
    upstream: Upstream,
) -> None:
    upstream.play([Started(), Delta(0, "x"), Finished(0, "stop"), Used(Usage(40, 1))])
    usage = editor.post(FIM[0], MISTRAL | {"model": "coder"}).get_json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (40, 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        *("model", "prompt", "suffix", "max_tokens", "min_tokens", "stream", "stop", "seed"),
        *("random_seed", "n", "n_predict", "n_cmpl", "input_prefix", "input_suffix"),
        *("input_extra", "response_fields", "temperature", "samplers", "provider", "stream_id"),
        *("echo", "logprobs", "best_of", "options", "additional_params", "byok_api_key"),
    ]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([*FIM, BETA, "/infill", "/completion"]),
    body=st.dictionaries(NAMES, JSON, max_size=8),
    whole=st.booleans(),
    model=st.sampled_from(["", "fake/m", "llama/m", "chatty/m", "local/pydoc", "nobody/m"]),
)
def test_no_body_of_any_shape_is_a_server_error(
    editor: Editor, path: str, body: dict[str, Any], model: str, *, whole: bool
) -> None:
    base = {"model": model}
    if whole:
        base |= {"input_prefix": "a", "input_suffix": "b", "prompt": "c"}
    found = editor.post(path, base | body)
    assert found.status_code in (200, 400, 404)
    if found.status_code != 200:
        assert {"message", "type", "param", "code"} <= json.loads(found.text)["error"].keys()
