"""Prices of what was served: tiers, speeds, cache lifetimes, searches, and routers' suffixes."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from completion import CompletionRequest, Usage, total
from ledger.price_terms import PriceTerms, possible_terms, requested_terms, served_terms
from ledger.pricing import FREE, MTOK, NANO, Price, Prices, Rate, ceiling, cost
from providers.base import Provider
from providers.hosts import BUILT_IN

ROWS = {row.name: row for row in BUILT_IN}
OPENROUTER, HUGGINGFACE = ROWS["openrouter"], ROWS["huggingface"]
PRIORITY: PriceTerms = (("service_tier", "priority"),)
FLEX: PriceTerms = (("service_tier", "flex"),)
FAST: PriceTerms = (("speed", "fast"),)
TABLE = {"input_per_mtok": 7, "output_per_mtok": 7}


def inputs(price: Price | None) -> int:
    assert price is not None
    return price.input.base


# Terms


@pytest.mark.parametrize(
    ("tier", "speed", "requested", "terms"),
    [
        (None, None, PRIORITY, PRIORITY),
        ("default", None, PRIORITY, ()),
        ("standard", None, FLEX, ()),
        ("priority", None, (), PRIORITY),
        ("flex", None, PRIORITY, FLEX),
        (None, "fast", (), FAST),
        (None, None, FAST, FAST),
        (None, "standard", FAST, ()),
        (None, None, (("service_tier", "auto"),), ()),
        (None, None, (), ()),
    ],
)
def test_reported_terms_count_and_otherwise_the_requested_ones(
    tier: str | None, speed: str | None, requested: PriceTerms, terms: PriceTerms
) -> None:
    assert served_terms(Usage(1, 1, tier=tier, speed=speed), requested) == terms


@pytest.mark.parametrize(
    ("fields", "terms"),
    [
        ({"service_tier": "Priority"}, PRIORITY),
        ({"serviceTier": "flex"}, FLEX),
        ({"speed": "fast"}, FAST),
        ({"web_search_options": {"search_type": "fast"}}, (("search_type", "fast"),)),
        ({"service_tier": {"type": "priority"}, "speed": 3, "web_search_options": 1}, ()),
        ({}, ()),
    ],
)
@pytest.mark.parametrize("where", ["extra", "openai_extra"])
def test_terms_are_requested_by_parameters_that_sluice_does_not_know(
    fields: dict[str, Any], terms: PriceTerms, where: str
) -> None:
    request = CompletionRequest(prompts=("x",), **{where: fields})  # type: ignore[arg-type]
    assert requested_terms(request) == terms


def test_a_requested_tier_may_be_served_as_the_standard_tier() -> None:
    assert possible_terms(()) == [()]
    assert possible_terms(PRIORITY) == [(), PRIORITY]
    both = possible_terms(PRIORITY + FAST)
    assert both == [(), PRIORITY, FAST, PRIORITY + FAST]
    auto = possible_terms((("service_tier", "auto"),))
    assert [dict(terms).get("service_tier") for terms in auto] == [None, "fast", "flex", "priority"]


def test_the_price_data_has_tiers_and_speeds() -> None:
    prices = Prices({})
    tiers = [inputs(prices.price(ROWS["openai"], "gpt-5.4-mini", t)) for t in (FLEX, (), PRIORITY)]
    assert tiers == sorted(set(tiers))
    opus = [prices.price(ROWS["anthropic"], "claude-opus-5-5", t) for t in ((), FAST)]
    assert inputs(opus[0]) < inputs(opus[1])
    assert prices.price(ROWS["openai"], "gpt-5.4-mini", (("service_tier", "x"),)) == prices.price(
        ROWS["openai"], "gpt-5.4-mini"
    )


# Units


@pytest.mark.parametrize(
    ("usage", "nano"),
    [
        (Usage(10, 0, 0, 10), 20),
        (Usage(10, 0, 0, 10, cache_write_1h_tokens=10), 30),
        (Usage(10, 0, 0, 8, cache_write_1h_tokens=3), 2 + 10 + 9),
        (Usage(0, 10, reasoning_tokens=4), 60 + 16),
        (Usage(1, 0, citation_tokens=5), 1 + 25),
        (Usage(1, 0, searches=2), 1 + 14),
    ],
)
def test_each_unit_has_its_own_rate(usage: Usage, nano: int) -> None:
    rates = {"cache_write": 2, "cache_write_1h": 3, "reasoning": 4, "citation": 5}
    more: dict[str, Any] = {name: Rate(rate * MTOK) for name, rate in rates.items()}
    assert cost(usage, Price(Rate(MTOK), Rate(10 * MTOK), per_search=7, **more)) == nano


@pytest.mark.parametrize("write", [None, Rate(2 * MTOK)])
def test_units_without_a_rate_cost_what_their_kind_costs(write: Rate | None) -> None:
    price = Price(Rate(MTOK), Rate(MTOK), cache_write=write)
    usage = Usage(4, 4, 0, 4, 4, cache_write_1h_tokens=4, citation_tokens=9, searches=9)
    assert cost(usage, price) == cost(Usage(4, 4, 0, 4), price)


def test_the_ceiling_holds_for_cache_writes_of_an_hour_and_for_reasoning() -> None:
    price = Price(Rate(MTOK), Rate(MTOK), cache_write_1h=Rate(3 * MTOK), reasoning=Rate(5 * MTOK))
    dearest = Usage(10, 7, 0, 10, 7, cache_write_1h_tokens=10)
    assert ceiling(price, 10, 7) == cost(dearest, price) == 30 + 35


def test_rates_of_an_hour_and_of_reasoning_can_be_set_in_sluice_toml() -> None:
    table = TABLE | {"cache_write_1h_per_mtok": 9, "reasoning_per_mtok": 3}
    price = Prices({"openai/x": table}).price(ROWS["openai"], "x", PRIORITY)
    assert price is not None
    assert (price.cache_write_1h, price.reasoning) == (Rate(9 * NANO), Rate(3 * NANO))


# Routers


@pytest.mark.parametrize("suffix", ["nitro", "floor", "online", "exacto", "nitro:online"])
def test_a_suffix_of_openrouter_does_not_hide_the_price(suffix: str) -> None:
    prices = Prices({"openrouter/own/model": TABLE})
    for model in ("openai/gpt-4o-mini", "own/model"):
        found = prices.price(OPENROUTER, f"{model}:{suffix}")
        assert found == prices.price(OPENROUTER, model) is not None


@pytest.mark.parametrize("name", ["groq", "cerebras", "fireworks-ai"])
def test_a_provider_behind_hugging_face_has_its_own_price(name: str) -> None:
    data = Provider(name="x", base_url="http://127.0.0.1:1", price_id=f"huggingface_{name}")
    prices = Prices({})
    found = prices.price(HUGGINGFACE, f"openai/gpt-oss-120b:{name}")
    assert found == prices.price(data, "openai/gpt-oss-120b") is not None
    assert prices.price(HUGGINGFACE, f"no/such-model:{name}") is None
    assert prices.price(HUGGINGFACE, "openai/gpt-oss-120b:no-such-provider") is None


@pytest.mark.parametrize("model", ["deepseek/deepseek-r1:free", "made/up:free", "openrouter/free"])
def test_free_models_of_openrouter_are_free(model: str) -> None:
    row = msgspec.structs.replace(OPENROUTER, name="mine", price_id="openrouter")
    assert Prices({}).price(OPENROUTER, model) == Prices({}).price(row, model) == FREE
    own = Prices({f"openrouter/{model}": TABLE}).price(OPENROUTER, model)
    assert inputs(own) == 7 * NANO


@pytest.mark.parametrize("model", ["gpt-4o-mini:free", "gpt-4o-mini:nitro", ":free", ":"])
def test_suffixes_mean_nothing_at_other_hosts(model: str) -> None:
    assert Prices({}).price(ROWS["groq"], model) is None


def test_an_odd_name_at_a_router_has_no_price() -> None:
    for model in (":", "::", ":nitro", "a:", "a:" * 50):
        assert Prices({}).price(OPENROUTER, model) is None


# Prices of sluice.toml that apply to nothing


def test_prices_that_apply_to_no_call_are_named_with_the_reason() -> None:
    names = ["sim-1", "fast", "simm/sim-1", "sim/sim-1", "sim/", "sim/org/model"]
    found = Prices(dict.fromkeys(names, TABLE)).unused({"sim"}, ["fast"])
    assert ['[prices."sim-1"]' in found[0], "provider/model" in found[0]] == [True, True]
    assert ['[prices."fast"]' in found[1], "alias" in found[1]] == [True, True]
    assert ['[prices."simm/sim-1"]' in found[2], "no provider simm" in found[2]] == [True, True]
    assert '[prices."sim/"]' in found[3]
    assert len(found) == 4


# Sums


def test_sums_add_units_and_keep_what_all_agree_on() -> None:
    one = Usage(1, 2, searches=1, tier="flex", speed="fast", cost_nano=3)
    other = msgspec.structs.replace(one, cache_write_1h_tokens=4, tier="default")
    found = total([one, other])
    assert (found.searches, found.cache_write_1h_tokens, found.cost_nano) == (2, 4, 6)
    assert (found.tier, found.speed) == (None, "fast")
    for pair in itertools.permutations([one, msgspec.structs.replace(one, cost_nano=None)]):
        assert total(pair).cost_nano is None
    assert total([]) == Usage()
