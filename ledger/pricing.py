"""What tokens cost: Usage x price -> cost, in integer nano-dollars (a token can cost less than a
micro-dollar).

Prices are those of the genai-prices package, whose data ships with it, overridden by sluice.toml.
Rules that hold here: no floats in a sum; the package is loaded by `Prices.load` or at the first
price, not on import; a row that was looked up is kept. Time-dependent prices are read at each call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from completion import Usage
from config import ConfigError
from providers.base import Provider, Target

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice

NANO = 1_000_000_000
MTOK = 1_000_000


class Rate(msgspec.Struct, frozen=True):
    """Nano-dollars per million tokens; more than `start` input tokens in the call may change it."""

    base: int
    tiers: tuple[tuple[int, int], ...] = ()  # (start, rate), ascending

    def at(self, input_tokens: int) -> int:
        rate = self.base
        for start, tier in self.tiers:
            if input_tokens > start:
                rate = tier
        return rate

    @property
    def most(self) -> int:
        return max(self.base, *(rate for _, rate in self.tiers), 0) if self.tiers else self.base


class Price(msgspec.Struct, frozen=True):
    """What one model costs. Cached input without a rate of its own costs as other input."""

    input: Rate
    output: Rate
    cache_read: Rate | None = None
    cache_write: Rate | None = None
    per_call: int = 0  # nano-dollars


class ModelFacts(msgspec.Struct, frozen=True):
    """What is known of a model: its id, display name, context window in tokens, price."""

    id: str
    name: str | None = None
    context_window: int | None = None
    price: Price | None = None


FREE = Price(Rate(0), Rate(0))


def cost(usage: Usage, price: Price) -> int:
    """Nano-dollars for a call, rounded up: a token is never given away by rounding. A call without
    a token was refused, and costs nothing."""
    size = usage.input_tokens
    read, write = usage.cache_read_tokens, usage.cache_write_tokens
    total = max(0, size - read - write) * price.input.at(size)
    total += usage.output_tokens * price.output.at(size)
    if read:
        total += read * (price.cache_read or price.input).at(size)
    if write:
        total += write * (price.cache_write or price.input).at(size)
    return -(-total // MTOK) + (price.per_call if usage.total_tokens else 0)


def ceiling(price: Price, input_tokens: int, output_tokens: int) -> int:
    """Nano-dollars that a call with so many tokens can't exceed, whatever is cached and whichever
    tier it falls into."""
    inputs = (price.input, price.cache_read, price.cache_write)
    dearest = max([rate.most for rate in inputs if rate is not None])
    return -(-(input_tokens * dearest + output_tokens * price.output.most) // MTOK) + price.per_call


def dollars(nano: int | None) -> float | None:
    """Nano-dollars as the USD number that answers carry."""
    return None if nano is None else nano / NANO


def per_mtok(rate: Rate) -> float:
    """A rate as USD per million tokens."""
    return rate.base / NANO


class Prices:
    """The price of each target."""

    def __init__(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """tables: [prices."provider/model"] of sluice.toml. Raises ConfigError."""
        self._own = {name: from_table(name, table) for name, table in tables.items()}
        self._found: dict[tuple[str, str], Callable[[], Price | None]] = {}

    def load(self) -> None:
        """Load the price data, which takes a fraction of a second, before anybody waits for it."""
        find("openai", "gpt-4o-mini")

    def of(self, target: Target) -> Price | None:
        """None: unknown."""
        return self.price(target.provider, target.model)

    def price(self, provider: Provider, model: str) -> Price | None:
        own = self._own.get(f"{provider.name}/{model}")
        if own is not None:
            return own
        if provider.free:
            return FREE
        place = (provider.price_id or provider.name, model)
        lookup = self._found.get(place)
        if lookup is None:
            lookup = find(*place)
            if len(self._found) < 10_000:  # model names come from callers
                self._found[place] = lookup
        return lookup()

    def models(self, provider: Provider) -> list[ModelFacts]:
        """The models of a provider that are known to complete text, those of its row first."""
        known = {facts.id: facts for facts in known_models(provider.price_id or provider.name)}
        rows = {
            name: known.get(name) or ModelFacts(name, price=self.price(provider, name))
            for name in provider.models
        }
        return [
            msgspec.structs.replace(facts, price=self._own[name])
            if (name := f"{provider.name}/{facts.id}") in self._own
            else facts
            for facts in (rows | known).values()
        ]


def find(price_id: str, model: str) -> Callable[[], Price | None]:
    """A function that gives the model's price now."""
    from genai_prices.data_snapshot import get_snapshot
    from genai_prices.types import ModelPrice

    try:
        _, info = get_snapshot().find_provider_model(model, None, price_id, None)
    except LookupError:
        return lambda: None
    if isinstance(info.prices, ModelPrice):
        price = from_data(info.prices)
        return lambda: price
    return lambda: from_data(info.get_prices(datetime.now(UTC)))


def known_models(price_id: str) -> Iterator[ModelFacts]:
    """The text models of a provider in the data, those that are being retired left out."""
    from genai_prices.data_snapshot import get_snapshot

    for provider in get_snapshot().providers:
        if provider.id == price_id:
            for info in provider.models:
                price = from_data(info.get_prices(datetime.now(UTC)))
                if price is not None and price.output.base and not info.deprecated:
                    yield ModelFacts(info.id, info.name, info.context_window, price)


def from_data(data: ModelPrice) -> Price | None:
    fields = data.__dict__
    if fields.get("input_mtok") is None and fields.get("output_mtok") is None:
        return None
    per_call = fields.get("requests_kcount")
    return Price(
        input=rate(fields.get("input_mtok")) or Rate(0),
        output=rate(fields.get("output_mtok")) or Rate(0),
        cache_read=rate(fields.get("cache_read_mtok")),
        cache_write=rate(fields.get("cache_write_mtok")),
        per_call=int(per_call * NANO / 1000) if isinstance(per_call, Decimal) else 0,
    )


def rate(value: Any) -> Rate | None:
    """A rate of genai-prices' data: a Decimal in USD per million tokens, or tiers of them."""
    if value is None:
        return None
    if isinstance(value, Decimal):
        return Rate(int(value * NANO))
    return Rate(
        int(value.base * NANO), tuple((tier.start, int(tier.price * NANO)) for tier in value.tiers)
    )


FIELDS = {
    "input_per_mtok": "input",
    "output_per_mtok": "output",
    "cache_read_per_mtok": "cache_read",
    "cache_write_per_mtok": "cache_write",
}


def from_table(name: str, table: Mapping[str, Any]) -> Price:
    where = f'sluice.toml, [prices."{name}"]'
    for field in table:
        if field not in FIELDS:
            raise ConfigError(f"{where}: {field} is not known; it takes {', '.join(FIELDS)}")
    rates: dict[str, Rate] = {}
    for field, value in table.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ConfigError(f"{where}: {field} is {value!r}; it takes USD per million tokens")
        rates[FIELDS[field]] = Rate(int(Decimal(str(value)) * NANO))
    if "input" not in rates or "output" not in rates:
        raise ConfigError(f"{where}: input_per_mtok and output_per_mtok are needed")
    return Price(rates["input"], rates["output"], rates.get("cache_read"), rates.get("cache_write"))
