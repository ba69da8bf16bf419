"""The lists of models of both faces with what hosts say, and who may see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from endpoints import openai_models
from ledger.pricing import ModelFacts
from providers.base import ListedModel, Provider
from providers.model_fetch import FoundItself, Listing
from tests.test_app import Site, make_app, make_key

MODELS, NATIVE = "/v1/models", "/api/v1/models"
TOLD = Listing(
    (
        ListedModel("coder", "Coder 7B", 32768, 7, (1_000_000_000, 2_000_000_000)),
        ListedModel("/models/llama.gguf"),
        ListedModel("a b/ü:latest"),
    ),
    frozenset({"other"}),
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_site(tmp_path, monkeypatch)


def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Site:
    site = make_app(tmp_path, monkeypatch, **settings)
    tell(site, TOLD, monkeypatch)
    return site


def tell(site: Site, told: Listing | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host of the provider sim list models."""
    catalog = site.gateway.catalog
    discovery = catalog._discovery
    monkeypatch.setattr(discovery, "models", lambda name: told if name == "sim" else None)
    names = frozenset({"other"}) if told else frozenset()
    monkeypatch.setattr(type(discovery), "instances", property(lambda _self: names))


def ids(site: Site, headers: dict[str, str] | None = None) -> list[str]:
    answer = site.client.get(MODELS, headers=headers) if headers else site.get(MODELS)
    assert answer.status_code == 200, answer.data
    assert answer.json is not None
    return [model["id"] for model in answer.json["data"]]


def test_a_hosts_models_are_listed_on_both_faces(site: Site) -> None:
    listed = site.get(MODELS).json
    assert listed is not None
    [coder] = [model for model in listed["data"] if model["id"] == "sim/coder"]
    assert coder == {
        "id": "sim/coder",
        "object": "model",
        "created": 7,
        "owned_by": "sim",
        "context_length": 32768,
    }
    entry = site.get(f"{NATIVE}/sim").json
    assert entry is not None
    [native] = [model for model in entry["text_completions"] if model["modelName"] == "coder"]
    assert native == {
        "modelName": "coder",
        "name": "Coder 7B",
        "provider": "sim",
        "pricing": {
            "input": 1.0,
            "output": 2.0,
            "unit": "per_million_tokens",
            "source": "provider",
        },
        "specs": {"context_window": 32768},
        "capabilities": [],
        "byok": False,
        "is_disabled": False,
    }
    assert site.get(f"{NATIVE}/sim/text_completions").json == entry["text_completions"]
    assert site.get(f"{NATIVE}/nobody/text_completions").status_code == 404


def looked_up(site: Site, path: str) -> TestResponse:
    return site.client.get(path, headers=site.bearer, follow_redirects=True)


def test_each_listed_model_can_be_looked_up_whatever_its_name(site: Site) -> None:
    for name in ids(site):
        answer = looked_up(site, f"{MODELS}/{name}")
        assert (answer.status_code, answer.json and answer.json["id"]) == (200, name)
    for model in TOLD.models:
        answer = looked_up(site, f"{NATIVE}/sim/{model.id}")
        assert answer.json is not None
        assert answer.json["modelName"] == model.id


def test_a_response_names_this_sluice_and_those_whose_models_it_lists(site: Site) -> None:
    own = site.gateway.catalog.instance
    for path in (MODELS, f"{MODELS}/sim/coder"):
        assert site.get(path).headers["X-Sluice-Instance"] == f"{own}, other"


@pytest.mark.parametrize("row", ["llamacpp", "vllm"])
def test_no_model_says_that_llamacpp_owns_it(row: str) -> None:
    # Editors would ask such a server for more of llama.cpp's own endpoints.
    facts = ModelFacts("m", context_window=5, created=7)
    found = openai_models.described_model(Provider(name=row, base_url="http://x"), facts)
    assert found["owned_by"] == {"llamacpp": "llama.cpp", "vllm": "vllm"}[row]
    assert "meta" not in found


def test_a_key_sees_only_the_models_that_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, secret = make_key(models=("sim/c*", "quick"))
    aliases = {"quick": ["local/pydoc"], "coder": "sim/coder", "slow": "local/slow"}
    site = make_site(tmp_path, monkeypatch, keys=line, aliases=aliases)
    headers = {"Authorization": f"Bearer {secret}"}
    assert ids(site, headers) == ["quick", "coder", "sim/coder"]
    for path in (f"{MODELS}/local/pydoc", f"{MODELS}/slow", f"{NATIVE}/local/pydoc"):
        answer = site.client.get(path, headers=headers)
        assert answer.status_code == 404
        assert b"model_not_found" in answer.data
    listed = site.client.get(NATIVE, headers=headers).json
    assert listed is not None
    names = [model["modelName"] for row in listed for model in row["text_completions"]]
    assert names == ["coder"]


def test_models_need_a_key_unless_they_are_public(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    for path in (MODELS, f"{MODELS}/local/pydoc", NATIVE):
        assert site.client.get(path).status_code == 401
    public = make_site(tmp_path / "public", monkeypatch, public_models=True)
    assert public.client.get(MODELS).status_code == 200
    assert public.client.get(f"{MODELS}/sim/coder").status_code == 200
    assert public.client.get(NATIVE).status_code == 401
    wrong = {"Authorization": "Bearer sluice-wrong"}
    assert public.client.get(MODELS, headers=wrong).status_code == 401
    body = {"model": "local/pydoc", "prompt": "a"}
    assert public.client.post("/v1/completions", json=body).status_code == 401


def test_a_request_from_this_sluice_does_not_wait_for_itself(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    catalog = site.gateway.catalog
    monkeypatch.setattr(catalog, "refresh", waits.append)
    for name in (catalog.instance, "other"):
        site.client.get(MODELS, headers=site.bearer | {"X-Sluice-Instance": name})
    assert waits[0] == 0 < waits[1] < 2


def test_a_call_needs_no_list_and_asks_for_none(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_wait: float = 0.0) -> None:
        raise FoundItself("asked")

    monkeypatch.setattr(site.gateway.catalog, "refresh", never)
    body = {"model": "local/pydoc", "prompt": "a", "max_tokens": 3}
    assert site.post(body, "/v1/completions").status_code == 200
