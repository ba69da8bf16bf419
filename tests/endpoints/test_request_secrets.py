"""Tests of endpoints/request_secrets.py: keys are shown nowhere, and the search is quick."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

from keys import redaction
from keys.store import MAX_SECRET
from tests.gateway.test_gateway import play
from tests.support.pace import scaled_cpu
from tests.support.sampling import sampled
from tests.test_app import Site, hello, make_app

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
    assert time.process_time() - began < scaled_cpu(0.25)


# Keys as names

OTHERS = {
    "a key of Sluice": "sk-sluice-",
    "a key of OpenAI": "sk-proj-",
    "a key of Groq": "gsk_",
    "a key of xAI": "xai-",
}
PLACES: dict[str, dict[str, Any]] = {
    "model": {"model": "sim/KEY"},
    "model without provider": {"model": "KEY"},
    "fallbacks": {"fallbacks": ["sim/KEY"]},
    "provider": {"provider": "KEY"},
    "provider of the model": {"model": "KEY/m"},
    "stream_id": {"stream_id": "KEY"},
    "field": {"KEY": 1},
    "param": {"additional_params": {"KEY": 1}},
    "member": {"additional_params": {"options": {"KEY": 1}}},
    "counted param": {"additional_params": {"max_tokens": 3, "n": "KEY"}},
    "value": {"temperature": "KEY"},
}


def assert_hidden(site: Site, pieces: list[str], response: Any) -> None:
    """Assert that the response, the ledger and the metrics have none of the pieces."""
    listed = site.get("/api/v1/user/requests"), site.get("/api/v1/user/usage")
    for shown in (response, *listed, site.client.get("/metrics")):
        for piece in pieces:
            assert piece not in shown.text
            assert piece not in str(shown.headers)


@pytest.mark.parametrize(
    "prefix",
    sampled(OTHERS.values(), OTHERS["a key of Sluice"], OTHERS["a key of OpenAI"]),
    ids=OTHERS,
)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", FACES)
def test_another_key_is_shown_nowhere(
    site: Site, caplog: pytest.LogCaptureFixture, path: str, place: str, prefix: str
) -> None:
    key = prefix + "9aZ" * 3 + text(30)
    body = {"prompt": "Hi", "model": "sim/m"}
    body |= json.loads(json.dumps(PLACES[place]).replace("KEY", key))
    response = site.post(body, path)
    assert response.status_code in (200, 400, 502)  # 502: the provider isn't there
    if place not in ("member", "value", "counted param", "field"):
        assert response.status_code == 400
        assert "Don't send a key as " in response.text
    assert_hidden(site, [key[-12:]], response)
    assert key not in " ".join(str(vars(record)) for record in caplog.records)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "in capitals": str.upper,
    "with letters swapped": str.swapcase,
    "percent-encoded": lambda key: "".join(f"%{ord(letter):02x}" for letter in key),
    "percent-encoded twice": lambda key: "".join(f"%25{ord(letter):02x}" for letter in key),
    "with dots": ".".join,
    "its second half with dashes": lambda key: "-".join(key[len(key) // 2 :]),
}


@pytest.mark.parametrize(
    "spelled",
    sampled(
        SPELLINGS.values(),
        SPELLINGS["with letters swapped"],
        SPELLINGS["percent-encoded twice"],
        SPELLINGS["its second half with dashes"],
    ),
    ids=SPELLINGS,
)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("path", FACES)
def test_the_requests_own_key_is_shown_nowhere_in_any_spelling(
    site: Site, path: str, place: str, spelled: Callable[[str], str]
) -> None:
    spelling = spelled(site.secret)
    body = {"prompt": "Hi", "model": "sim/m"}
    body |= json.loads(json.dumps(PLACES[place]).replace("KEY", spelling))
    response = site.post(body, path)
    if place in ("model", "fallbacks", "provider", "param"):
        assert response.status_code == 400
        too_long = "may have at most 256 characters" in response.text
        assert too_long or "Don't send a key as " in response.text
    assert_hidden(site, [spelling[-24:]], response)


def test_a_caller_s_own_provider_key_is_no_model_in_any_spelling(site: Site) -> None:
    own = text(60)
    for spelled in SPELLINGS.values():
        body = {"prompt": "Hi", "model": f"sim/{spelled(own)}", "byok_api_key": own}
        response = site.post(body)
        assert response.status_code == 400
        assert "Don't send a key as model" in response.text


def test_names_that_only_begin_like_keys_are_accepted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pplx-70b-online", "hf-internal-testing/tiny-random-gpt2", "sk-hynix/model-7b"):
        play(monkeypatch, hello())
        fields = {"prompt": "Hi", "model": f"sim/{name}", "stream_id": "hf-internal-testing-1"}
        assert site.post(fields).status_code == 200
        missing = site.post({"prompt": "Hi", "model": f"none/{name}"})
        assert missing.status_code == 404


def test_another_key_is_shown_by_no_path_and_no_request_id(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    key = "sk-proj-9aZ9aZ" + text(40)
    for path in (f"/v1/models/{key}", f"/v1/models/sim/{key}", f"/{key}", f"/api/v1/models/{key}"):
        response = site.get(path, **{"X-Request-ID": key.replace("_", "-")})
        assert response.status_code == 404
        assert key[-12:] not in response.text
        assert key[-12:] not in str(response.headers)
    assert key[-12:] not in " ".join(str(vars(record)) for record in caplog.records)


def test_names_that_are_searched_for_keys_cost_little(site: Site) -> None:
    """The most names, of the greatest length, with the longest keys: a worst case for a search."""
    own = ("a" * 15 + "b") * 512
    fields = {("a" * 14 + "c") * 16 + str(number): 1 for number in range(250)}
    body = {"prompt": "Hi", "model": "none/m", **fields, "byok_api_key": own}
    headers = {"X-API-Key": site.secret, "X-Provider-API-Key": own[1:]}
    rounds = []
    for _ in range(3):
        began = time.process_time()
        assert site.client.post(FACES[1], json=body, headers=headers).status_code == 404
        rounds.append(time.process_time() - began)
    assert min(rounds) < scaled_cpu(0.1)
