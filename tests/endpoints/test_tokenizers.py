"""Tests of /tokenize, /detokenize and /tokenizer_info with hosts that have them, and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from app import create_app
from config import ConfigError, Settings
from routing.router import Route
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.paths import TESTS
from tests.support.servers import make_key, settings_files

VLLM = TESTS / "fixtures" / "vllm"
KEYS = "sk-host-key-number-one,sk-host-key-number-two"
ENDPOINTS = ["/tokenize", "/detokenize", "/tokenizer_info"]
TOKENS = {"tokens": [1, 2]}


def rows(origin: str) -> str:
    return f"""
[providers.vllm]
base_url = "{origin}/vllm/v1"
api_key_env = "HOST_KEY"
[providers.llamacpp]
base_url = "{origin}/llama/v1"
[providers.plain]
base_url = "{origin}/v1"
[providers.asked]
base_url = "{origin}/asked"
query = "version=1"
tokenizer = "vllm"
timeouts = {{first_event = 0.2}}
[providers.dead]
base_url = "http://127.0.0.1:1/v1"
tokenizer = "vllm"
[providers.pair]
base_url = ["http://127.0.0.1:1/v1", "{origin}/vllm/v1"]
tokenizer = "vllm"
[providers.twins]
base_url = ["{origin}/vllm/v1", "{origin}/twin/v1"]
tokenizer = "vllm"
[aliases]
mine = ["vllm/m", "llamacpp/m"]
none = ["plain/m", "vllm/m"]
"""


class Site:
    def __init__(self, app: Flask, key: str, fake: FakeProvider) -> None:
        self.app, self.fake = app, fake
        self.headers = {"Authorization": f"Bearer {key}"}

    def post(
        self, path: str, headers: dict[str, str] | None = None, /, **body: Any
    ) -> TestResponse:
        client = self.app.test_client()
        return client.post(path, json=body, headers=self.headers | (headers or {}))

    def get(self, path: str) -> TestResponse:
        return self.app.test_client().get(path, headers=self.headers)

    def call(self, endpoint: str, model: str) -> TestResponse:
        if endpoint == "/tokenizer_info":
            return self.get(f"{endpoint}?model={model}")
        sent = {"prompt": "a"} if endpoint == "/tokenize" else TOKENS
        return self.post(endpoint, model=model, **sent)

    def answers(self, name: str, status: int = 200) -> None:
        """Let the host answer the next request with a fixture."""
        self.fake.script(fp.answer((VLLM / f"{name}.json").read_bytes(), status))

    @property
    def sent(self) -> dict[str, Any]:
        """The body of the host's last request."""
        found: dict[str, Any] = json.loads(self.fake.requests[-1].body)
        return found


SITES: list[Site] = []


@pytest.fixture(autouse=True)
def close_connections() -> Iterator[None]:
    yield
    while SITES:
        SITES.pop().app.extensions["sluice"].gateway.tokenizers._transport.close()


def make_site(directory: Path, fake: FakeProvider, *lines: str, **environ: str) -> Site:
    key, line = make_key()
    (directory / "sluice.toml").write_text(rows(fake.origin))
    (directory / "keys.jsonl").touch(mode=0o600)
    (directory / "keys.jsonl").write_text("".join([line, *lines]))
    fixed = {"HOST_KEY": KEYS, "SLUICE_MAX_BODY": "20000"}
    app = create_app(Settings.from_env({**settings_files(directory), **fixed, **environ}))
    SITES.append(Site(app, key, fake))
    return SITES[-1]


@pytest.fixture
def site(tmp_path: Path, fake: FakeProvider) -> Site:
    return make_site(tmp_path, fake)


def code(found: TestResponse) -> tuple[int, str]:
    """Return the status and the code of an error, which has OpenAI's shape."""
    return found.status_code, found.get_json()["error"]["code"]


# vLLM


def test_a_prompt_is_tokenized_by_vllm(site: Site) -> None:
    site.answers("tokenize")
    found = site.post("/tokenize", model="vllm/m", prompt="The quick brown")
    assert found.get_json() == {
        "count": 3, "max_model_len": 4096, "tokens": [791, 4062, 14198], "token_strs": None,
    }  # fmt: skip
    assert site.sent == {"model": "m", "prompt": "The quick brown", "add_special_tokens": True}
    [request] = site.fake.requests
    assert request.path == "/vllm/tokenize"
    assert request.headers["authorization"] in [f"Bearer {key}" for key in KEYS.split(",")]


def test_messages_are_tokenized_by_vllm(site: Site) -> None:
    site.answers("tokenize_strings")
    chat = {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False}
    found = site.post("/tokenize", model="vllm/m", **chat, return_token_strs=True, tools=None)
    assert found.get_json()["token_strs"] == ["The", "Ġquick", "Ġbrown"]
    assert site.sent == chat | {
        "model": "m", "add_special_tokens": False, "return_token_strs": True,
    }  # fmt: skip


def test_llamacpps_body_is_translated_for_vllm(site: Site) -> None:
    site.answers("tokenize")
    found = site.post("/tokenize", model="vllm/m", content="x", parse_special=True)
    assert found.get_json() == {"tokens": [791, 4062, 14198]}
    assert site.sent == {"model": "m", "prompt": "x", "add_special_tokens": False}


def test_tokens_become_a_text(site: Site) -> None:
    site.answers("detokenize")
    found = site.post("/detokenize", model="vllm/m", tokens=[791, 4062, 14198])
    assert found.get_json() == {"prompt": "The quick brown"}
    assert site.sent == {"model": "m", "tokens": [791, 4062, 14198]}


def test_tokenizer_info_is_passed_on(site: Site) -> None:
    site.answers("tokenizer_info")
    found = site.get("/tokenizer_info?model=vllm/m")
    assert found.get_json() == json.loads((VLLM / "tokenizer_info.json").read_text())
    [request] = site.fake.requests
    assert (request.method, request.path, request.body) == ("GET", "/vllm/tokenizer_info", b"")


def test_tokenizer_info_never_shows_the_hosts_key(site: Site) -> None:
    site.fake.default(fp.answer({"eos_token": "</s>", "sent": [f"Bearer {KEYS}"]}))
    found = site.get("/tokenizer_info?model=vllm/m").text
    assert "</s>" in found
    assert "number-one" not in found
    assert "number-two" not in found


def test_a_query_goes_behind_the_path(site: Site) -> None:
    site.answers("tokenize")
    assert site.post("/tokenize", model="asked/m", prompt="x").status_code == 200
    assert site.fake.requests[0].path == "/asked/tokenize?version=1"


# llama.cpp


def test_a_prompt_is_tokenized_by_llamacpp(site: Site) -> None:
    site.fake.script(fp.answer({"tokens": [1, 15043]}))
    found = site.post("/tokenize", model="llamacpp/m", prompt="Hello")
    assert found.get_json() == {
        "count": 2, "max_model_len": None, "tokens": [1, 15043], "token_strs": None,
    }  # fmt: skip
    assert site.sent == {
        "model": "m", "content": "Hello", "add_special": True, "parse_special": True,
    }  # fmt: skip
    assert site.fake.requests[0].path == "/llama/tokenize"


PIECES = [{"id": 198, "piece": [195]}, {"id": 299, "piece": "H"}]


def test_strings_and_pieces_of_llamacpp(site: Site) -> None:
    site.fake.default(fp.answer({"tokens": PIECES}))
    found = site.post("/tokenize", model="llamacpp/m", prompt="x", return_token_strs=True)
    assert found.get_json()["tokens"] == [198, 299]
    assert found.get_json()["token_strs"] == ["bytes:\\xc3", "H"]
    assert site.sent["with_pieces"] is True
    whole = {"content": "x", "with_pieces": True}
    found = site.post("/tokenize", model="llamacpp/m", **whole, add_special=True)
    assert found.get_json() == {"tokens": PIECES}
    assert site.sent["add_special"] is True
    found = site.post("/tokenize", model="llamacpp/m", content="x", return_token_strs=True)
    assert found.get_json() == {"tokens": [198, 299], "token_strs": ["bytes:\\xc3", "H"]}


@pytest.mark.parametrize("strings", [True, False])
def test_no_tokens_are_an_empty_list(site: Site, strings: bool) -> None:
    site.fake.default(fp.answer({"tokens": []}))
    found = site.post("/tokenize", model="llamacpp/m", prompt="", return_token_strs=strings)
    assert (found.get_json()["count"], found.get_json()["tokens"]) == (0, [])
    assert found.get_json()["token_strs"] == ([] if strings else None)


def test_llamacpps_content_is_the_prompt(site: Site) -> None:
    site.fake.script(fp.answer({"content": "Hello"}))
    assert site.post("/detokenize", model="llamacpp/m", **TOKENS).get_json() == {"prompt": "Hello"}


# What a host can't do


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("model", ["plain/m", "none", "local/pydoc"])
def test_a_model_without_a_tokenizer_is_refused(site: Site, endpoint: str, model: str) -> None:
    found = site.call(endpoint, model)
    assert code(found) == (400, "unsupported_parameter")
    assert f"has no {endpoint}. Sluice doesn't guess tokens." in found.text
    assert ("set tokenizer =" in found.text) == (model != "local/pydoc")
    assert site.fake.requests == []


def test_llamacpp_has_no_tokenizer_info(site: Site) -> None:
    found = site.get("/tokenizer_info?model=llamacpp/m")
    assert code(found) == (400, "unsupported_parameter")
    assert site.fake.requests == []


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_host_that_lacks_the_endpoint_is_refused_by_name(site: Site, endpoint: str) -> None:
    site.answers("no_route", 404)
    found = site.call(endpoint, "vllm/m")
    assert code(found) == (400, "unsupported_parameter")
    assert f"vllm/m has no {endpoint}: it answered with status 404." in found.text
    assert ("--enable-tokenizer-info-endpoint" in found.text) == (endpoint == "/tokenizer_info")


def test_a_model_that_the_host_lacks_is_not_found(site: Site) -> None:
    site.answers("no_model", 404)
    assert code(site.call("/tokenize", "vllm/m")) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("model", "body", "param"),
    [
        ("llamacpp/m", {"messages": []}, "messages"),
        ("vllm/m", {"content": "x", "parse_special": False}, "parse_special"),
        ("vllm/m", {"content": "x", "with_pieces": True}, "with_pieces"),
    ],
)
def test_a_field_that_the_host_lacks_is_refused(
    site: Site, model: str, body: dict[str, Any], param: str
) -> None:
    found = site.post("/tokenize", model=model, **body)
    assert code(found) == (400, "unsupported_parameter")
    assert found.get_json()["error"]["param"] == param
    assert site.fake.requests == []


# Models, keys and limits


def test_a_request_without_a_model_uses_the_configured_one(
    tmp_path: Path, fake: FakeProvider
) -> None:
    site = make_site(tmp_path, fake, SLUICE_TOKENIZE_MODEL="mine", SLUICE_DEFAULT_MODEL="plain/m")
    site.answers("tokenizer_info")
    assert site.get("/tokenizer_info").status_code == 200
    site.answers("tokenize")
    assert site.post("/tokenize", prompt="x", model="").status_code == 200
    assert site.sent["model"] == "m"
    site.answers("detokenize")
    assert site.post("/detokenize", **TOKENS).status_code == 200


def test_without_a_tokenize_model_the_default_model_counts(
    tmp_path: Path, fake: FakeProvider
) -> None:
    site = make_site(tmp_path, fake, SLUICE_DEFAULT_MODEL="vllm/m")
    site.answers("tokenize")
    assert site.post("/tokenize", prompt="x").status_code == 200


def test_an_unknown_tokenize_model_stops_the_start(tmp_path: Path, fake: FakeProvider) -> None:
    with pytest.raises(ConfigError, match="SLUICE_TOKENIZE_MODEL: 'nobody/m'"):
        make_site(tmp_path, fake, SLUICE_TOKENIZE_MODEL="nobody/m")


def test_an_unknown_tokenizer_stops_the_start(tmp_path: Path) -> None:
    toml = '[providers.x]\nbase_url = "http://a"\ntokenizer = "other"\n'
    (tmp_path / "sluice.toml").write_text(toml)
    with pytest.raises(ConfigError, match=r"providers\.x.*tokenizer"):
        create_app(Settings.from_env(settings_files(tmp_path)))


def test_an_alias_asks_its_first_model_only(site: Site) -> None:
    site.fake.default(fp.error(503))
    assert code(site.post("/tokenize", model="mine", prompt="x")) == (502, "provider_error")
    assert [request.path for request in site.fake.requests] == ["/vllm/tokenize"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_key_is_needed(site: Site, endpoint: str) -> None:
    site.headers = {}
    assert code(site.call(endpoint, "vllm/m")) == (401, "unauthorized")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_key_reaches_only_its_models(tmp_path: Path, fake: FakeProvider, endpoint: str) -> None:
    key, line = make_key("limited", models=["mine"])
    site = make_site(tmp_path, fake, line)
    site.headers = {"Authorization": f"Bearer {key}"}
    assert code(site.call(endpoint, "llamacpp/m")) == (403, "model_forbidden")
    site.answers(endpoint.strip("/"))
    assert site.call(endpoint, "mine").status_code == 200


def test_each_request_counts_against_requests_per_minute_but_not_as_a_call(
    tmp_path: Path, fake: FakeProvider
) -> None:
    key, line = make_key("limited", requests_per_minute=2, tokens_per_hour=1)
    site = make_site(tmp_path, fake, line)
    site.headers = {"Authorization": f"Bearer {key}"}
    fake.default(fp.answer({"tokens": [1]}))
    left = []
    for _ in range(2):
        found = site.call("/tokenize", "llamacpp/m")
        assert found.status_code == 200
        left.append(found.headers["x-ratelimit-remaining-requests"])
        assert found.headers["x-ratelimit-remaining-tokens"] == "1"
    assert left == ["1", "0"]
    assert code(site.call("/tokenize", "plain/m")) == (400, "unsupported_parameter")
    assert code(site.call("/tokenize", "llamacpp/m")) == (429, "rate_limited")
    assert len(fake.requests) == 2
    listed = site.app.test_client().get("/api/v1/user/requests", headers=site.headers).get_json()
    assert listed["data"] == [], "there is no row in the ledger"
    text = site.app.test_client().get("/metrics").text
    assert 'endpoint="/tokenize"' in text


def test_a_callers_own_key_is_sent_instead(site: Site) -> None:
    for name, body in (("X-Provider-API-Key", {}), ("X-Other", {"byok_api_key": "own-key-1"})):
        site.answers("tokenize")
        headers = {name: "own-key-1"}
        found = site.post("/tokenize", headers, model="vllm/m", prompt="x", **body)
        assert found.status_code == 200
        assert site.fake.requests[-1].headers["authorization"] == "Bearer own-key-1"


# Failures


def test_a_limited_key_is_replaced_by_another_key(site: Site) -> None:
    site.fake.script(fp.error(429, headers={"Retry-After": "60"}))
    site.answers("tokenize")
    assert site.call("/tokenize", "vllm/m").status_code == 200
    first, second = (request.headers["authorization"] for request in site.fake.requests)
    assert first != second
    site.answers("tokenize")
    assert site.call("/tokenize", "vllm/m").status_code == 200
    assert site.fake.requests[-1].headers["authorization"] == second, "the other one is paused"


def test_a_host_that_cannot_be_reached_opens_its_circuit_breaker(site: Site) -> None:
    found = [code(site.call("/tokenize", "dead/m")) for _ in range(6)]
    assert found == [(502, "provider_error")] * 5 + [(503, "unavailable")]


def test_a_tokens_refusal_does_not_open_the_circuit_breaker(site: Site) -> None:
    site.fake.default(fp.error(500))
    for _ in range(8):
        assert code(site.call("/detokenize", "llamacpp/m")) == (502, "provider_error")


def test_an_answer_does_not_close_the_circuit_breaker(site: Site) -> None:
    gateway = site.app.extensions["sluice"].gateway
    [target] = gateway.router.targets(Route(model="llamacpp/m"))
    site.fake.default(fp.answer({"tokens": [1]}))
    for _ in range(4):
        gateway.reader.breakers.failed(target)
        assert site.call("/tokenize", "llamacpp/m").status_code == 200
    gateway.reader.breakers.failed(target)
    assert code(site.call("/tokenize", "llamacpp/m")) == (503, "unavailable")


def test_a_silent_host_times_out(site: Site) -> None:
    site.fake.default([fp.hold()])
    found = site.call("/tokenize", "asked/m")
    assert code(found) == (504, "provider_timeout")
    found = site.post("/tokenize", {"X-Sluice-Timeout": "0.2"}, model="llamacpp/m", prompt="x")
    assert code(found) == (504, "provider_timeout")


def test_a_host_that_sends_byte_by_byte_times_out(site: Site) -> None:
    head = fp.head(200, {"Content-Type": "application/json", "Content-Length": "9000"})
    site.fake.default([head, fp.drip(b" " * 9000, 0.01)])
    found = site.post("/tokenize", {"X-Sluice-Timeout": "0.3"}, model="llamacpp/m", prompt="x")
    assert code(found) == (504, "provider_timeout")


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"null", b"[1]", b"not JSON", b"{}", b'{"tokens": null}', b'{"tokens": ["a"]}',
        b'{"tokens": [1.5]}', b'{"tokens": [{"id": 1, "piece": [300]}]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("model", ["vllm/m", "llamacpp/m"])
def test_a_bad_answer_is_an_error_of_the_provider(site: Site, answer: bytes, model: str) -> None:
    site.fake.default(fp.answer(answer))
    assert code(site.call("/tokenize", model)) == (502, "provider_error")
    assert code(site.call("/detokenize", model)) == (502, "provider_error")


def test_a_host_that_breaks_off_is_an_error_of_the_provider(site: Site) -> None:
    head = fp.head(200, {"Content-Length": "100"})
    site.fake.default([head, fp.send(b'{"tokens"'), fp.close()])
    assert code(site.call("/tokenize", "llamacpp/m")) == (502, "provider_error")


def test_a_request_that_the_host_refuses_is_a_400(site: Site) -> None:
    site.fake.default(fp.error(400))
    found = site.call("/tokenize", "vllm/m")
    assert code(found) == (400, "invalid_request")
    assert "fake 400" in found.text


# Proxies and certificates


def test_the_rows_certificates_and_proxy_count(
    tmp_path: Path, tls_fake: FakeProvider, ca_bundle: str
) -> None:
    site = make_site(tmp_path, tls_fake)
    assert code(site.call("/tokenize", "llamacpp/m")) == (502, "provider_error")
    toml = (
        f'[providers.llamacpp]\nbase_url = "{tls_fake.base_url}"\nca_bundle = "{ca_bundle}"\n'
        '[providers.away]\nbase_url = "http://example.com/v1"\ntokenizer = "vllm"\n'
        'proxy = "http://127.0.0.1:1"\n'
    )
    (tmp_path / "sluice.toml").write_text(toml)
    again = Site(create_app(Settings.from_env(settings_files(tmp_path))), "", tls_fake)
    again.headers = site.headers
    SITES.append(again)
    tls_fake.script(fp.answer({"tokens": [1]}))
    assert again.call("/tokenize", "llamacpp/m").status_code == 200
    found = again.call("/tokenize", "away/m")
    assert code(found) == (502, "provider_error")
    assert "proxy" in found.text


# Bodies


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": None}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "a"}, "content"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special": True}, "add_special"),
        ("/tokenize", {"content": "a", "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "yes"}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "Model": "x"}, "Model"),
        ("/tokenize", {"messages": "a"}, "messages"),
        ("/tokenize", {"messages": [], "tools": 1}, "tools"),
        ("/tokenize", {"prompt": "a", "model": 5}, "model"),
        ("/tokenize", {"prompt": "a", "model": "vllm/sk-sluice-" + "a" * 43}, None),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [1], "prompt": "a"}, "prompt"),
    ],
)
def test_an_invalid_body_is_refused(
    site: Site, path: str, body: dict[str, Any], param: str | None
) -> None:
    found = site.post(path, **({"model": "vllm/m"} | body))
    assert code(found) == (400, "invalid_request")
    assert found.get_json()["error"]["param"] == param
    assert site.fake.requests == []


def test_an_unknown_query_parameter_is_refused(site: Site) -> None:
    assert code(site.get("/tokenizer_info?modle=vllm/m")) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_a_body_that_is_too_large_is_refused(site: Site, path: str) -> None:
    assert code(site.post(path, prompt="a" * 30000)) == (413, "request_too_large")


@pytest.mark.parametrize("path", ENDPOINTS)
def test_a_trailing_slash_is_accepted(site: Site, path: str) -> None:
    site.answers(path.strip("/"))
    if path == "/tokenizer_info":
        assert site.get(f"{path}/?model=vllm/m").status_code == 200
    else:
        sent = {"prompt": "a"} if path == "/tokenize" else TOKENS
        assert site.post(f"{path}/", model="vllm/m", **sent).status_code == 200


# Replicas


def test_a_replica_that_cannot_be_reached_is_left_for_another(site: Site) -> None:
    for _ in range(10):
        site.answers("tokenize")
        found = site.post("/tokenize", model="pair/m", prompt="The quick brown")
        assert found.status_code == 200, found.get_json()
        assert found.get_json()["count"] == 3


def test_a_replica_that_breaks_the_connection_is_left_once(site: Site) -> None:
    site.fake.script([fp.close()])
    site.answers("tokenize")
    found = site.post("/tokenize", model="twins/m", prompt="The quick brown")
    assert found.status_code == 200, found.get_json()
    assert len({request.path for request in site.fake.requests}) == 2
