"""Tests of endpoints/request_secrets.py: long keys are refused before any search for secrets."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import pytest
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

from keys import redaction
from keys.store import MAX_SECRET
from tests.test_app import Site, make_app

FACES = ("/api/v1/completions", "/v1/completions")
STOP = "/v1/completions/stop-stream/"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


def text(length: int) -> str:
    return secrets.token_urlsafe(length)[:length]


def three_keys(length: int) -> dict[str, str]:
    """Return headers with three different keys of a length, none of them valid."""
    names = ("X-API-Key", "X-Provider-API-Key")
    return {"Authorization": f"Bearer {text(length)}"} | {name: text(length) for name in names}


def cost(site: Site, path: str, headers: dict[str, str]) -> float:
    """Return the CPU time of a refused request, in seconds: the least of several rounds."""
    rounds = []
    for _ in range(5):
        made = [EnvironBuilder(path, method="POST", headers=Headers(headers)) for _ in range(20)]
        environs = [builder.get_environ() for builder in made]
        began = time.process_time()
        for environ in environs:
            response = site.app.wsgi_app(environ, lambda *_: lambda _: None)
            b"".join(response)
            response.close()  # type: ignore[attr-defined]
        rounds.append(time.process_time() - began)
    return min(rounds) / 20


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize("length", [MAX_SECRET, 8000])
@pytest.mark.parametrize("request_id", ["", "r" * 128])
def test_a_401_with_three_long_keys_costs_little_more_than_a_plain_one(
    site: Site, path: str, length: int, request_id: str
) -> None:
    plain = cost(site, path, {"Authorization": f"Bearer {text(40)}"})
    headers = three_keys(length) | ({"X-Request-ID": request_id} if request_id else {})
    assert cost(site, path, headers) < 5 * plain  # it was 100 times, and 165 with a request id


@pytest.mark.parametrize("name", ["Authorization", "X-API-Key"])
@pytest.mark.parametrize("over", [1, 7500])
@pytest.mark.parametrize("path", [*FACES, STOP + "s-1", "/v1/models", "/api/v1/user/usage"])
def test_a_key_above_the_longest_is_refused_before_any_search_for_secrets(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str, over: int, path: str
) -> None:
    """Some of these paths serve only GET, but the check comes before the method."""
    searched: list[str] = []
    search = redaction.Secret.hidden_in

    def watched(secret: redaction.Secret, value: str, *least: int) -> str:
        searched.append(value)
        return search(secret, value, *least)

    monkeypatch.setattr(redaction.Secret, "hidden_in", watched)
    secret = text(MAX_SECRET + over)
    headers = {name: f"Bearer {secret}" if name == "Authorization" else secret}
    method = "POST" if "completions" in path else "GET"
    answer = site.client.open(path, method=method, headers=headers)
    wrong = site.client.open(path, method=method, headers={name: "Bearer wrong-key"})
    assert (answer.status_code, wrong.status_code) == (401, 401)
    body, other = (
        response.text.replace(response.headers["X-Request-ID"], "ID")
        for response in (answer, wrong)
    )
    assert body == other
    assert not [
        value for value in searched if value != path
    ]  # the path is searched later, for the log line


def test_a_request_id_of_a_request_with_a_too_long_key_is_replaced(site: Site) -> None:
    secret = text(MAX_SECRET + 100)
    for headers in ({"X-API-Key": secret}, {"Authorization": f"Bearer {secret}"}):
        answer = site.client.get("/health", headers=headers | {"X-Request-ID": secret[-40:]})
        assert answer.headers["X-Request-ID"] != secret[-40:]


def test_a_piece_of_a_long_provider_key_is_never_shown(site: Site) -> None:
    secret = text(8192)
    body = {"prompt": "Hi", "model": f"local/{secret[8000:8100]}", "byok_api_key": secret}
    for path in FACES:
        answer = site.client.post(path, json=body, headers={"X-API-Key": site.secret})
        assert answer.status_code == 400
        assert secret[8000:8020] not in answer.text


@pytest.mark.parametrize("path", FACES)
def test_a_provider_key_of_a_megabyte_costs_no_more_than_its_length(site: Site, path: str) -> None:
    """The key is refused because of its length, and not searched for."""
    headers = {"X-API-Key": site.secret}
    began = time.process_time()
    body = {"prompt": "Hi", "model": "local/pydoc", "byok_api_key": "k" * 1_000_000}
    answer = site.client.post(path, json=body, headers=headers)
    assert answer.status_code == 400
    assert time.process_time() - began < 0.25
