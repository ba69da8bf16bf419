"""unknown_paths.py: what a client learns at a path that other servers have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from config import Settings
from endpoints.unknown_paths import NOTHING, SERVED, UNSERVED, is_openai, message
from errors import is_sluice
from telemetry import logs
from tests.endpoints.test_native import assert_right_words

TWICE = "It has /api/v1 twice: set the client's base_url to this server's address, without /api/v1."
COMPLETIONS = ("/v1/completions", "/api/v1/completions")


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    return create_app(Settings(keys_file=tmp_path / "keys.jsonl"))


@pytest.fixture
def client(app: Flask) -> Iterator[FlaskClient]:
    with app.test_client() as found:
        yield found


CASES = [
    ("/v1/embeddings", "doesn't serve embeddings", "openai"),
    ("/embeddings", "doesn't serve embeddings", "openai"),
    ("/v1/responses", "Responses API", "openai"),
    ("/v1/messages", "Anthropic's Messages API", "openai"),
    ("/v1/messages/count_tokens", "Anthropic's Messages API", "openai"),
    ("/v1/v1/messages", "Anthropic's Messages API", "openai"),
    ("/v1/images/generations", "doesn't serve images", "openai"),
    ("/openai/deployments/x/completions", "Azure's deployments", "openai"),
    ("/api/generate", "Ollama's API", "native"),
    ("/v1beta/models/m:generateContent", "the Gemini API", "native"),
]


@pytest.mark.parametrize(("path", "says", "face"), CASES)
def test_a_path_of_another_server_says_what_sluice_serves(
    client: FlaskClient, path: str, says: str, face: str
) -> None:
    answer = client.post(path, json={"model": "local/pydoc"})
    text = message_of(answer.get_json(), face)
    assert answer.status_code == 404
    assert says in text
    assert all(served in text for served in COMPLETIONS)
    assert_right_words(text, 404, "not_found")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/models", "followed by /v1."),
        ("/chat/completions", "followed by /v1."),
        ("/openai/v1/completions", "followed by /v1."),
        ("/v1/v1/completions", "/v1 twice"),
    ],
)
def test_a_wrong_base_url_is_explained(client: FlaskClient, path: str, says: str) -> None:
    answer = client.post(path, json={})
    text = message_of(answer.get_json(), "openai")
    assert answer.status_code == 404
    assert says in text
    assert_right_words(text, 404, "not_found")


@pytest.mark.parametrize(
    "path", ["/x", "/v1/nothing", "/api/v1/x", "/api", "/v1", "//", "/favicon"]
)
def test_another_path_gets_the_plain_message(path: str) -> None:
    assert message(path) == NOTHING


@pytest.mark.parametrize(
    ("path", "openai"),
    [
        *((path, True) for path in ("/infill", "/infill/", "/infill/a", "/completion/a")),
        *((path, True) for path in ("/completions/a", "/v1/infill/a", "/tokenize")),
        *((path, False) for path in ("/api/v1/completions/a", "/infills", "/x/infill")),
    ],
)
def test_errors_of_a_path_and_of_those_under_it_have_one_format(path: str, openai: bool) -> None:
    assert is_openai(path) == openai


def message_of(body: dict[str, object], face: str) -> str:
    if face == "native":
        return str(body["message"])
    error = body["error"]
    assert isinstance(error, dict)
    return str(error["message"])


def test_no_path_that_is_served_counts_as_unserved(app: Flask) -> None:
    served = {rule.rule for rule in app.url_map.iter_rules()}
    firsts = {rule.split("/")[2] for rule in served if rule.startswith("/v1/")}
    assert firsts.isdisjoint(UNSERVED), "take it out of UNSERVED"
    assert firsts >= SERVED


def test_a_404_says_that_sluice_sent_it_so_that_a_sluice_that_calls_itself_notices(
    client: FlaskClient,
) -> None:
    for path in ("/v1/embeddings", "/nothing"):
        assert is_sluice({"via": client.post(path).headers["Via"]})


@pytest.mark.parametrize("path", ["auth/api-key", "auth/token", "completions"])
def test_a_base_url_that_the_official_client_extends_again_is_explained(
    client: FlaskClient, path: str
) -> None:
    body = client.post(f"/api/v1/api/v1/{path}", json={}).get_json()
    assert body["detail"].startswith(f"{NOTHING} {TWICE}")
    assert_right_words(body["detail"], 404, "not_found")
