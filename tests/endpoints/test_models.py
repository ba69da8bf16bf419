"""Tests of endpoints/models.py: providers and models in the native format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from providers.hosts import BUILT_IN
from tests.test_app import Site, make_app

MODELS = "/api/v1/models"
PYDOC = {
    "modelName": "pydoc",
    "name": "pydoc",
    "provider": "local",
    "pricing": {"input": 0.0, "output": 0.0, "unit": "per_million_tokens"},
    "specs": {"context_window": None},
    "capabilities": [],
    "byok": False,
    "is_disabled": False,
}

SLOW = PYDOC | {"modelName": "slow", "name": "slow"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch, environ={"OPENAI_API_KEY": "sk-operator"})


def found(site: Site, path: str) -> Any:
    answer = site.get(path)
    assert answer.status_code == 200, answer.data
    assert "sk-operator" not in answer.get_data(as_text=True)
    return answer.json


@pytest.mark.parametrize("slash", ["", "/"])
def test_every_provider_is_listed_with_its_models(site: Site, slash: str) -> None:
    listed = found(site, MODELS + slash)
    assert all(list(row) == ["name", "enabled", "text_completions"] for row in listed)
    names = [row["name"] for row in listed]
    assert names == [row.name for row in BUILT_IN] + ["sim", "other", "poor", "locked"]
    enabled = {row["name"]: row["enabled"] for row in listed}
    assert enabled["local"] is enabled["openai"] is enabled["sim"] is True
    assert enabled["locked"] is False


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_provider_endpoint_returns_its_entry_of_the_model_list(site: Site, slash: str) -> None:
    local = {"name": "local", "enabled": True, "text_completions": [PYDOC, SLOW]}
    assert found(site, f"{MODELS}/local{slash}") == local
    assert local in found(site, MODELS)


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_model_endpoint_returns_its_entry_of_the_provider(site: Site, slash: str) -> None:
    assert found(site, f"{MODELS}/local/pydoc{slash}") == PYDOC
    model = found(site, f"{MODELS}/openai/gpt-4o-mini{slash}")
    assert list(model) == list(PYDOC)
    assert model in found(site, f"{MODELS}/openai")["text_completions"]
    assert (model["provider"], model["byok"], model["is_disabled"]) == ("openai", True, False)
    assert 0 < model["pricing"]["input"] < model["pricing"]["output"]
    assert model["specs"]["context_window"] == 128_000


def test_a_disabled_model_is_marked_and_its_unknown_price_is_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "NO_KEY", "models": ["a/b"]}
    site = make_app(tmp_path, monkeypatch, providers={"mine": row})
    model = found(site, f"{MODELS}/mine/a/b")
    assert model["is_disabled"] is True
    assert model["pricing"] == {"input": None, "output": None, "unit": "per_million_tokens"}


@pytest.mark.parametrize(
    ("path", "code", "says"),
    [
        ("nobody", "provider_not_found", "Provider 'nobody' was not found."),
        ("nobody/m", "provider_not_found", "Provider 'nobody'"),
        ("opneai", "provider_not_found", "Did you mean openai?"),
        ("local/none", "model_not_found", "Model 'none' is not a known model of local."),
    ],
)
def test_an_unknown_provider_or_model_answers_404_with_its_own_code(
    site: Site, path: str, code: str, says: str
) -> None:
    answer = site.get(f"{MODELS}/{path}")
    assert answer.status_code == 404
    assert answer.json is not None
    assert answer.json["code"] == code
    assert says in answer.json["detail"]


def test_a_long_unknown_model_name_is_truncated_in_the_error(site: Site) -> None:
    assert len(site.get(f"{MODELS}/local/{'x' * 5000}").data) < 1000


def test_a_provider_with_replicas_says_how_many_there_are_but_not_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"shared": {"base_url": ["http://10.0.0.1/v1", "http://10.0.0.2/v1"]}}
    site = make_app(tmp_path, monkeypatch, providers=rows)
    listed = found(site, f"{MODELS}/shared")
    assert listed["replicas"] == {"total": 2, "reachable": 2}
    assert "10.0.0" not in str(listed)
