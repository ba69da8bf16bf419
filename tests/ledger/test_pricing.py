"""Tests of ledger/pricing.py: prices, and costs in whole nano-dollars."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from completion import Usage
from config import ConfigError
from ledger import pricing
from ledger.model_facts import UNLISTED
from ledger.pricing import FREE, MTOK, NANO, Price, Prices, Rate, ceiling, cost, dollars, per_mtok
from providers.base import Provider, Target
from providers.hosts import BUILT_IN
from tests.support.paths import ROOT

LOCAL = next(row for row in BUILT_IN if row.name == "local")
OPENAI = next(row for row in BUILT_IN if row.name == "openai")
UNKNOWN = Provider(name="sim", base_url="http://127.0.0.1:1/v1")

RATES = st.integers(0, 100 * NANO)
TOKENS = st.integers(0, 10_000_000)


@st.composite
def rates(draw: st.DrawFn) -> Rate:
    """Draw a rate that never decreases from one tier to the next."""
    base = draw(RATES)
    tiers = draw(st.lists(st.tuples(TOKENS, RATES), max_size=3))
    starts = sorted(start for start, _ in tiers)
    steps = sorted(base + more for _, more in tiers)
    return Rate(base, tuple(zip(starts, steps, strict=True)))


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Draw usage whose cached tokens are part of the input tokens."""
    read, write, other, output = (draw(TOKENS) for _ in range(4))
    return Usage(read + write + other, output, cache_read_tokens=read, cache_write_tokens=write)


PRICES = st.builds(
    Price,
    input=rates(),
    output=rates(),
    cache_read=st.none() | rates(),
    cache_write=st.none() | rates(),
    per_call=st.integers(0, NANO),
)


def more(usage: Usage, **tokens: int) -> Usage:
    fields = {name: getattr(usage, name) for name in usage.__struct_fields__}
    return Usage(**{**fields, **{name: fields[name] + count for name, count in tokens.items()}})


# cost


def test_listed_models_complete_text() -> None:
    openai = next(row for row in BUILT_IN if row.name == "openai")
    names = {facts.id for facts in Prices({}).models(openai)}
    assert {"gpt-4o-mini", "gpt-3.5-turbo-instruct", "o3"} <= names
    others = {"gpt-4o-mini-tts", "gpt-image-1", "gpt-realtime", "gpt-4o-transcribe", "ft:gpt-4o"}
    assert not others & names
    assert Prices({}).price(openai, "gpt-4o-mini-tts") is not None  # still billed


def test_models_that_sluice_toml_prices_are_listed() -> None:
    price = {"input_per_mtok": 1, "output_per_mtok": 1}
    found = Prices({"local/other": price, "openai/x": price}).models(LOCAL)
    assert [facts.id for facts in found] == ["pydoc", "slow", "other"]


@given(usages(), PRICES)
def test_a_cost_is_a_whole_number_and_never_negative(usage: Usage, price: Price) -> None:
    found = cost(usage, price)
    assert isinstance(found, int)
    assert found >= 0


@given(usages(), PRICES, TOKENS)
def test_more_tokens_never_cost_less(usage: Usage, price: Price, count: int) -> None:
    assert cost(more(usage, output_tokens=count), price) >= cost(usage, price)
    assert cost(more(usage, input_tokens=count), price) >= cost(usage, price)


@given(usages(), PRICES)
def test_a_cost_is_rounded_up_by_less_than_a_nano_dollar(usage: Usage, price: Price) -> None:
    size, read, write = usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens
    exact = Decimal(
        (size - read - write) * price.input.at(size)
        + read * (price.cache_read or price.input).at(size)
        + write * (price.cache_write or price.input).at(size)
        + usage.output_tokens * price.output.at(size)
    ) / MTOK + (price.per_call if usage.total_tokens else 0)
    assert 0 <= cost(usage, price) - exact < 1


@st.composite
def any_rates(draw: st.DrawFn) -> Rate:
    """Draw a rate whose tiers may cost less than the tier before."""
    tiers = draw(st.lists(st.tuples(TOKENS, RATES), max_size=3))
    return Rate(draw(RATES), tuple(sorted(tiers)))


@given(usages(), TOKENS, TOKENS, st.data())
def test_no_call_costs_more_than_its_ceiling(
    usage: Usage, more_input: int, more_output: int, data: st.DataObject
) -> None:
    kinds: dict[str, st.SearchStrategy[Any]] = {
        **{name: any_rates() for name in ("input", "output")},
        **{name: st.none() | any_rates() for name in ("cache_read", "cache_write")},
    }
    price = data.draw(st.builds(Price, **kinds, per_call=st.integers(0, NANO)))
    most = ceiling(price, usage.input_tokens + more_input, usage.output_tokens + more_output)
    assert isinstance(most, int)
    assert cost(usage, price) <= most


@pytest.mark.parametrize(
    ("price", "nano"),
    [
        (Price(Rate(MTOK), Rate(2 * MTOK)), 10 + 14),
        (Price(Rate(MTOK), Rate(2 * MTOK), Rate(0), Rate(3 * MTOK)), 30 + 14),
        (Price(Rate(MTOK, ((200, 4 * MTOK),)), Rate(0)), 40),
        (Price(Rate(MTOK), Rate(MTOK, ((200, 4 * MTOK),)), per_call=5), 10 + 28 + 5),
        (Price(Rate(1), Rate(0)), 1),
        (FREE, 0),
    ],
)
def test_the_ceiling_uses_the_highest_rates_that_a_call_may_have(price: Price, nano: int) -> None:
    assert ceiling(price, 10, 7) == nano


@pytest.mark.parametrize(
    ("usage", "price", "nano"),
    [
        (Usage(8, 18), Price(Rate(150_000_000), Rate(600_000_000)), 12_000),
        (Usage(1, 0), Price(Rate(1), Rate(1)), 1),
        (Usage(), Price(Rate(NANO), Rate(NANO)), 0),
        (Usage(1_000_000, 1_000_000), FREE, 0),
        (Usage(1, 0), Price(Rate(0), Rate(0), per_call=5_000_000), 5_000_000),
        (Usage(10, 0, cache_read_tokens=4), Price(Rate(MTOK), Rate(0)), 10),
        (Usage(10, 0, cache_read_tokens=4), Price(Rate(MTOK), Rate(0), Rate(0)), 6),
        (Usage(10, 0, cache_write_tokens=4), Price(Rate(MTOK), Rate(0), None, Rate(2 * MTOK)), 14),
        (Usage(3, 0, cache_read_tokens=9), Price(Rate(MTOK), Rate(0), Rate(0)), 0),
        (Usage(3, 2, reasoning_tokens=2), Price(Rate(MTOK), Rate(MTOK)), 5),
    ],
)
def test_the_cost_follows_tokens_cache_rates_and_the_price_per_call(
    usage: Usage, price: Price, nano: int
) -> None:
    assert cost(usage, price) == nano


def test_a_refused_call_costs_nothing_even_with_a_price_per_call() -> None:
    assert cost(Usage(), Price(Rate(1), Rate(1), per_call=5)) == 0


@pytest.mark.parametrize(("tokens", "rate"), [(0, 1), (200, 1), (201, 2), (500, 2), (501, 3)])
def test_a_long_input_changes_the_rate_of_all_its_tokens(tokens: int, rate: int) -> None:
    assert Rate(1, ((200, 2), (500, 3))).at(tokens) == rate


def test_nano_dollars_are_converted_to_dollars() -> None:
    assert dollars(None) is None
    assert dollars(2_850) == 2.85e-06
    assert dollars(0) == 0
    assert per_mtok(Rate(150_000_000)) == 0.15


# Prices


def test_the_price_in_sluice_toml_wins() -> None:
    tables = {"openai/gpt-4o-mini": {"input_per_mtok": 1, "output_per_mtok": 2.5}}
    price = Prices(tables).of(Target(OPENAI, "gpt-4o-mini"))
    assert price == Price(Rate(1_000_000_000), Rate(2_500_000_000))


def test_a_free_provider_may_be_given_a_price() -> None:
    tables = {"local/pydoc": {"input_per_mtok": 1, "output_per_mtok": 1}}
    assert Prices({}).price(LOCAL, "pydoc") == FREE
    assert Prices(tables).price(LOCAL, "pydoc") == Price(Rate(NANO), Rate(NANO))


def test_all_four_rates_may_be_set_exactly() -> None:
    table = {
        "input_per_mtok": 0.1,
        "output_per_mtok": 0.7,
        "cache_read_per_mtok": 0.03,
        "cache_write_per_mtok": 0,
    }
    price = Prices({"sim/m": table}).price(UNKNOWN, "m")
    rates = (Rate(100_000_000), Rate(700_000_000), Rate(30_000_000), Rate(0))
    assert price == Price(*rates)


@given(st.decimals(0, 10_000, places=9))
def test_a_rate_of_sluice_toml_is_read_without_loss(number: Decimal) -> None:
    table = {"input_per_mtok": float(number), "output_per_mtok": 0}
    price = pricing.from_table("sim/m", table)
    assert price.input.base == int(Decimal(str(float(number))) * NANO)
    assert abs(per_mtok(price.input) - float(number)) < 1e-8


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "input_per_mtok and output_per_mtok are required"),
        ({"input_per_mtok": 1}, "input_per_mtok and output_per_mtok are required"),
        ({"input": 1}, "unknown field input; the fields are input_per_mtok, output_per_mtok"),
        (
            {"input_per_mtok": "1"},
            "input_per_mtok must be a number of USD per million tokens, not '1'",
        ),
        ({"input_per_mtk": 1}, "did you mean input_per_mtok?"),
        ({"input_per_mtok": True}, "per million tokens, not True"),
        ({"input_per_mtok": -1}, "per million tokens, not -1"),
        ({"input_per_mtok": float("nan")}, "per million tokens, not nan"),
        ({"input_per_mtok": float("inf")}, "per million tokens, not inf"),
    ],
)
def test_the_error_for_an_invalid_price_names_its_table(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Prices({"sim/m": table})
    assert str(caught.value).startswith('sluice.toml, [prices."sim/m"]: ')
    assert says in str(caught.value)


@pytest.mark.parametrize("model", ["no-such-model-at-all", ""])
@pytest.mark.parametrize("provider", [OPENAI, UNKNOWN], ids=lambda row: row.name)
def test_an_unknown_price_is_none_and_not_zero(provider: Provider, model: str) -> None:
    assert Prices({}).price(provider, model) is None


def test_a_known_price_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = Prices({})
    first = prices.price(OPENAI, "gpt-4o-mini")
    assert first is not None
    assert 0 < first.input.base < first.output.base
    assert first.cache_read is not None
    assert first.cache_read.base < first.input.base
    monkeypatch.setattr(pricing, "find", None)
    assert prices.price(OPENAI, "gpt-4o-mini") is first


def test_price_id_names_the_provider_in_the_price_data() -> None:
    row = Provider(name="mine", base_url="http://127.0.0.1:1/v1", price_id="openai")
    prices = Prices({})
    assert prices.price(row, "gpt-4o-mini") == prices.price(OPENAI, "gpt-4o-mini")


def test_made_up_model_names_do_not_fill_the_price_cache() -> None:
    prices = Prices({})
    prices._found = {("x", str(number)): lambda: None for number in range(10_000)}
    assert prices.price(UNKNOWN, "one-more") is None
    assert len(prices._found) == 10_000


def test_prices_that_depend_on_the_time_can_be_looked_up() -> None:
    """Look up the price of every model in the data whose price depends on the time."""
    from genai_prices.data_snapshot import get_snapshot

    dated = [
        (provider.id, info.id)
        for provider in get_snapshot().providers
        for info in provider.models
        if isinstance(info.prices, list)
    ]
    assert dated
    looked_up = [pricing.find(*place)() for place in dated]
    assert any(price is not None for price in looked_up)


def test_prices_of_every_provider_in_the_price_data_can_be_read() -> None:
    from genai_prices.data_snapshot import get_snapshot

    for provider in get_snapshot().providers:
        for info in provider_models(provider.id):
            price = pricing.find(provider.id, info.id)()
            assert price is None or cost(Usage(1000, 1000), price) >= 0


def provider_models(price_id: str) -> list[Any]:
    return list(pricing.known_models(price_id))[:3]


@pytest.mark.parametrize(
    ("data", "price"),
    [
        ({}, None),
        ({"requests_kcount": Decimal(5)}, None),
        ({"input_mtok": Decimal(1)}, Price(Rate(NANO), Rate(0))),
        ({"output_mtok": Decimal("0.5")}, Price(Rate(0), Rate(NANO // 2))),
        (
            {"input_mtok": Decimal(1), "output_mtok": Decimal(2), "requests_kcount": Decimal(5)},
            Price(Rate(NANO), Rate(2 * NANO), per_call=5_000_000),
        ),
        (
            {"input_mtok": Decimal(1), "cache_read_mtok": Decimal(0)},
            Price(Rate(NANO), Rate(0), Rate(0)),
        ),
        (
            {"input_mtok": Decimal(1), "cache_write_mtok": Decimal(2)},
            Price(Rate(NANO), Rate(0), None, Rate(2 * NANO)),
        ),
    ],
)
def test_a_model_price_of_the_price_data_becomes_a_price(
    data: dict[str, Any], price: Price | None
) -> None:
    from genai_prices.types import ModelPrice

    assert pricing.from_data(ModelPrice(**data)) == price


def test_tiered_prices_of_the_price_data_become_a_tiered_rate() -> None:
    from genai_prices.types import Tier, TieredPrices

    tiered = TieredPrices(base=Decimal(1), tiers=[Tier(start=200_000, price=Decimal(2))])
    assert pricing.rate(tiered) == Rate(NANO, ((200_000, 2 * NANO),))
    assert pricing.rate(None) is None


# Models


def test_models_of_a_provider_row_come_first_and_may_be_unknown() -> None:
    row = Provider(name="openai", base_url="http://127.0.0.1:1/v1", models=("mine", "gpt-4o-mini"))
    found = Prices({}).models(row)
    assert [facts.id for facts in found[:2]] == ["mine", "gpt-4o-mini"]
    assert (found[0].name, found[0].context_window, found[0].price) == (None, None, None)
    assert found[1].context_window == 128_000
    assert found[1].price is not None
    ids = [facts.id for facts in found]
    assert len(ids) == len(set(ids))


def test_a_provider_without_price_data_lists_only_the_models_of_its_row() -> None:
    assert Prices({}).models(UNKNOWN) == []
    assert [facts.id for facts in Prices({}).models(LOCAL)] == ["pydoc", "slow"]


def test_deprecated_models_and_embedding_models_are_not_listed() -> None:
    from genai_prices.data_snapshot import get_snapshot

    listed = {facts.id for facts in Prices({}).models(OPENAI)}
    (data,) = [provider for provider in get_snapshot().providers if provider.id == "openai"]
    assert listed < {info.id for info in data.models}
    assert not listed & {info.id for info in data.models if info.deprecated}
    assert not any("embedding" in name for name in listed)


@pytest.mark.parametrize("name", sorted(UNLISTED))
def test_the_price_data_knows_nothing_of_a_local_engine(name: str) -> None:
    with pytest.raises(LookupError):
        get_snapshot().find_provider(None, name, None)


def test_each_built_in_local_engine_is_unlisted() -> None:
    engines = {row.name for row in BUILT_IN if row.base_url.startswith("http://127.0.0.1")}
    assert {*engines, LOCAL.name} == UNLISTED


LOADING = """
import sys
from ledger.pricing import Prices
from providers.base import Provider
from providers.hosts import BUILT_IN
own = Provider(name="gpu", dialect="openai", base_url="http://127.0.0.1:8001/v1", free=True)
prices, rows = Prices({}), [row for row in (*BUILT_IN, own) if row.name in sys.argv[1:]]
prices.load(rows)
at_first = "genai_prices" in sys.modules
for row in rows:
    prices.price(row, "some-model"), prices.models(row), prices.facts(row, "some-model")
print(at_first, "genai_prices" in sys.modules)
"""


@pytest.mark.parametrize(
    ("names", "loaded"),
    [(["local", "vllm", "ollama"], False), (["vllm", "openai"], True), (["vllm", "gpu"], True)],
)
def test_the_price_data_is_loaded_at_first_or_never(names: list[str], loaded: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{loaded} {loaded}\n", "")
