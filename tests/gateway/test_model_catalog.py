"""model_catalog.py: hosts' lists merged with the rows, sluice.toml and the price list."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from config import Settings
from gateway import model_catalog
from gateway.model_catalog import ModelCatalog, instance_name
from ledger.pricing import ModelFacts, Prices, per_mtok
from providers import registry
from providers.base import ListedModel, Target
from providers.model_fetch import Listing
from routing.model_discovery import ModelDiscovery

PRICES = {"openai/priced": {"input_per_mtok": 1, "output_per_mtok": 2}}


class Told:
    """A discovery whose lists are given."""

    def __init__(self, **listings: Listing) -> None:
        self._listings = listings

    def models(self, provider: str) -> Listing | None:
        return self._listings.get(provider)


def models(provider: str, *told: ListedModel, **options: Any) -> dict[str, ModelFacts]:
    rows = registry.rows({"vllm": {"models": ["pinned"]}})
    discovery = cast(ModelDiscovery, Told(**{provider: Listing(told, **options)}))
    catalog = ModelCatalog(Prices(PRICES), discovery)
    return {facts.id: facts for facts in catalog.models(rows[provider])}


def test_without_a_list_the_price_list_counts() -> None:
    row = registry.rows({})["openai"]
    catalog = ModelCatalog(Prices(PRICES), cast(ModelDiscovery, Told()))
    assert catalog.models(row) == Prices(PRICES).models(row)


def test_the_embedded_models_are_counted_although_no_host_lists_them() -> None:
    rows = registry.rows({})
    catalog = ModelCatalog(Prices(PRICES), cast(ModelDiscovery, Told()))
    assert catalog.count(rows["local"]) == len(catalog.models(rows["local"])) == 2
    assert catalog.count(rows["openai"]) is None


def test_a_hosts_list_replaces_the_price_lists_and_keeps_the_operators_models() -> None:
    found = models("openai", ListedModel("gpt-4o-mini", created=7), ListedModel("mine"))
    assert list(found) == ["gpt-4.1-mini", "gpt-5.4-mini", "priced", "gpt-4o-mini", "mine"]
    mini = found["gpt-4o-mini"]
    assert mini.context_window == 128_000
    assert mini.price is not None
    assert (mini.created, mini.price_reported) == (7, False)
    assert found["mine"] == ModelFacts("mine")
    assert per_mtok(found["priced"].price.input) == 1  # type: ignore[union-attr]


def test_the_row_of_a_local_engine_comes_before_what_it_has_loaded() -> None:
    found = models("vllm", ListedModel("Qwen/Qwen2.5-Coder-7B", context_window=32768))
    assert list(found) == ["pinned", "Qwen/Qwen2.5-Coder-7B"]
    assert found["Qwen/Qwen2.5-Coder-7B"].context_window == 32768


def test_a_list_that_was_cut_off_does_not_hide_models() -> None:
    found = models("openai", ListedModel("mine"), complete=False)
    assert {"mine", "gpt-4o-mini", "gpt-4.1-mini"} <= found.keys()


def test_the_hosts_context_window_counts_before_the_price_lists() -> None:
    assert models("openai", ListedModel("gpt-4o-mini", context_window=5))[
        "gpt-4o-mini"
    ].context_window == 5  # fmt: skip


def test_the_hosts_price_counts_only_where_no_other_is_known() -> None:
    told = (7_000_000_000, 9_000_000_000)
    new, known = "acme/brand-new", "openai/gpt-4o-mini"
    found = models("openrouter", ListedModel(new, prices=told), ListedModel(known, prices=told))
    price = found[new].price
    assert price is not None
    assert (per_mtok(price.input), per_mtok(price.output)) == (7, 9)
    assert found[new].price_reported
    assert found[known].price != price
    assert not found[known].price_reported
    own = models("openai", ListedModel("priced", prices=told))["priced"]
    assert own.price is not None
    assert (per_mtok(own.price.input), own.price_reported) == (1, False)


def test_the_price_list_is_searched_before_a_list_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched: list[str] = []
    prices = Prices({})
    monkeypatch.setattr(prices, "facts", lambda row, model: searched.append(model))
    told = Listing((ListedModel("a"), ListedModel("b")))
    monkeypatch.setattr(model_catalog, "fetch", lambda *_: told)
    row = registry.rows({})["vllm"]
    target = Target(row, "models")
    assert model_catalog.priced_listing(prices, cast(Any, None), "me", target) is told
    assert searched == ["a", "b"]


def test_processes_with_one_database_have_one_name_without_its_password() -> None:
    def name(**fields: Any) -> str:
        return instance_name(Settings(**fields))

    url = "postgres://user:{}@db.example:5432/sluice"
    assert name(database_url=url.format("a")) == name(database_url=url.format("b"))
    assert name(database_url=url.format("a")) != name(database_url=url.format("a") + "2")
    assert name(database=Path("/a.db")) == name(database=Path("/a.db"))
    assert name(database=Path("/a.db")) != name(database=Path("/b.db"))
    assert len(name()) == 16


@pytest.mark.parametrize(
    "place",
    ["localhost/sluice", "127.0.0.1:5432/sluice", "[::1]/sluice", "/sluice?host=/run/postgresql"],
)
def test_databases_of_two_machines_make_two_names_even_on_localhost(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    names = set()
    for machine in ("first", "second"):
        monkeypatch.setattr("socket.gethostname", lambda machine=machine: machine)
        names.add(instance_name(Settings(database_url=f"postgres://user@{place}")))
    assert len(names) == 2


def test_other_threads_run_while_many_models_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("concurrency.yielding.time.sleep", pauses.append)
    monkeypatch.setattr("concurrency.yielding.WORK_S", 0.0)
    models("vllm", *(ListedModel(f"m{number}") for number in range(100)))
    assert len(pauses) > 50
