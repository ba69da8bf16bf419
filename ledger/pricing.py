"""Prices of models, and the cost of a call's usage in integer nano-dollars.

Prices come from the data that ships with the genai-prices package; sluice.toml overrides them. The
unit is the nano-dollar because a token can cost less than a micro-dollar.

- A call is priced by what was served: the service tier, the speed, the kinds of tokens.
- Sums never use floats.
- The package is loaded by `Prices.load` or on first use, not on import.
- Lookups are cached, but a price that depends on the time is computed for each call.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import msgspec

from completion import Usage
from config_file import TomlError, did_you_mean
from ledger.model_facts import UNLISTED, about, look_up
from ledger.price_terms import PriceTerms
from providers.base import Provider, Target

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice

NANO = 1_000_000_000
MTOK = 1_000_000

ROUTERS: Final = frozenset(("huggingface", "openrouter"))
"""The price_id of hosts that route by suffixes of the model's name, such as :nitro and :groq."""

NOT_TEXT: Final = re.compile(
    r"(^|[-./])"
    r"(audio|computer-use|embed|image|live|moderation|nano-banana|prompt-guard|realtime|sonic"
    r"|transcribe|tts)"
    r"($|[-.0-9])"
    r"|^ft:|-$|:batch$"
)
"""The names of models that complete no text, of price groups, and of models only for batches."""


class Rate(msgspec.Struct, frozen=True):
    """A price in nano-dollars per million tokens, which may depend on the call's input tokens."""

    base: int
    tiers: tuple[tuple[int, int], ...] = ()
    """Pairs (start, rate), ascending: `rate` applies to calls of more than `start` input tokens."""

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
    """The price of a model.

    Cached input without a separate rate costs the same as other input, cache writes of an hour the
    same as other cache writes, and reasoning the same as other output.
    """

    input: Rate
    output: Rate
    cache_read: Rate | None = None
    cache_write: Rate | None = None
    per_call: int = 0
    """Nano-dollars for a call, in addition to its tokens."""
    cache_write_1h: Rate | None = None
    reasoning: Rate | None = None
    citation: Rate | None = None
    per_search: int = 0
    """Nano-dollars for a web search."""


class ModelFacts(msgspec.Struct, frozen=True):
    """The known facts about a model; None means unknown."""

    id: str
    name: str | None = None
    context_window: int | None = None
    """The size of the context window in tokens."""
    price: Price | None = None
    price_reported: bool = False
    """True if the price is the one that the host's list of models states."""
    created: int | None = None
    """The time of the model's creation, in seconds since 1970."""


FREE = Price(Rate(0), Rate(0))
FREE_ROUTE: Final = "openrouter/free"
"""OpenRouter's name for any of its free models, which have names that end with ":free"."""


def cost(usage: Usage, price: Price) -> int:
    """Return a call's cost in nano-dollars, rounded up.

    A call that used no tokens was refused by the provider, so it costs nothing.
    """
    size = usage.input_tokens
    read, write = usage.cache_read_tokens, usage.cache_write_tokens
    total = max(0, size - read - write) * price.input.at(size)
    if read:
        total += read * (price.cache_read or price.input).at(size)
    if write:
        short, rate = write - usage.cache_write_1h_tokens, price.cache_write or price.input
        total += short * rate.at(size)
        total += (write - short) * (price.cache_write_1h or rate).at(size)
    thought = usage.reasoning_tokens if price.reasoning else 0
    total += (usage.output_tokens - thought) * price.output.at(size)
    if price.reasoning:
        total += thought * price.reasoning.at(size)
    if price.citation:
        total += usage.citation_tokens * price.citation.at(size)
    fees = usage.searches * price.per_search + (price.per_call if usage.total_tokens else 0)
    return -(-total // MTOK) + fees


def ceiling(price: Price, input_tokens: int, output_tokens: int) -> int:
    """Return the highest possible cost of a call with that many tokens, in nano-dollars.

    The bound holds for any number of cached and reasoning tokens and in every tier. Searches and
    citations aren't included, because nothing bounds their number.
    """
    inputs = (price.input, price.cache_read, price.cache_write, price.cache_write_1h)
    dearest = max([rate.most for rate in inputs if rate is not None])
    made = max(price.output.most, price.reasoning.most if price.reasoning else 0)
    return -(-(input_tokens * dearest + output_tokens * made) // MTOK) + price.per_call


def dollars(nano: int | None) -> float | None:
    """Return nano-dollars as US dollars, for a response."""
    return None if nano is None else nano / NANO


def per_mtok(rate: Rate) -> float:
    """Return a rate's base in US dollars per million tokens."""
    return rate.base / NANO


class Prices:
    """A lookup of prices, first in sluice.toml and then in the data of genai-prices."""

    def __init__(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Read the tables [prices."provider/model"] of sluice.toml, by name.

        Raises ConfigError if one is invalid.
        """
        self._own = {name: from_table(name, table) for name, table in tables.items()}
        self._found: dict[tuple[str, str], Callable[..., Price | None]] = {}

    def load(self, providers: Iterable[Provider]) -> None:
        """Load the price data now if it may have facts of these providers' models.

        It takes a fraction of a second, which all calls would wait for. A free provider needs no
        prices, but a list of its models searches the data for their titles.
        """
        if any(listed_name(row) not in UNLISTED for row in providers):
            find("openai", "gpt-4o-mini")

    def of(self, target: Target, terms: PriceTerms = ()) -> Price | None:
        return self.price(target.provider, target.model, terms)

    def price(self, provider: Provider, model: str, terms: PriceTerms = ()) -> Price | None:
        """Return a model's current price, or None if it is unknown.

        A price of sluice.toml applies whatever the terms are.
        """
        own = self._own.get(f"{provider.name}/{model}")
        if own is not None:
            return own
        if provider.free:
            return FREE
        price_id = listed_name(provider)
        if price_id not in ROUTERS or not (":" in model or model == FREE_ROUTE):
            return self._look_up(price_id, model, terms)
        return self._routed(provider, price_id, model, terms)

    def _routed(
        self, provider: Provider, price_id: str, model: str, terms: PriceTerms
    ) -> Price | None:
        """Return the price of a router's model whose name has suffixes.

        The suffix of Hugging Face's router is a provider, which has prices of its own.
        """
        base, _, suffix = model.rpartition(":")
        if price_id == "openrouter" and (suffix == "free" or model == FREE_ROUTE):
            return FREE
        own = self._own.get(f"{provider.name}/{base}")
        return (
            own
            or self._look_up(price_id, model, terms)
            or self._look_up(f"{price_id}_{suffix}", base, terms)
            or (base and self.price(provider, base, terms))
            or None
        )

    def _look_up(self, price_id: str, model: str, terms: PriceTerms) -> Price | None:
        key = (price_id, model)
        lookup = self._found.get(key)
        if lookup is None:
            lookup = find(*key)
            if len(self._found) < 10_000:  # bounded, because callers choose the model names
                self._found[key] = lookup
        return lookup(terms) if terms else lookup()

    def unused(self, providers: Collection[str], aliases: Iterable[str]) -> list[str]:
        """Return a warning for each price of sluice.toml that can't apply to any call."""
        names = set(aliases)
        found = []
        for name in self._own:
            provider, _, model = name.partition("/")
            if name in names:
                why = "it is an alias. Set the prices of the models that it stands for"
            elif not model:
                why = "the name has no provider. Write it as provider/model"
            elif provider not in providers:
                why = f"there is no provider {provider}{did_you_mean(provider, providers)}"
            else:
                continue
            found.append(f'sluice.toml, [prices."{name}"] has no effect: {why}.')
        return found

    def models(self, provider: Provider) -> list[ModelFacts]:
        """Return a provider's known models for text.

        Those listed in its row come first, then those that sluice.toml prices.
        """
        known = {facts.id: facts for facts in known_models(listed_name(provider))}
        rows = {
            name: known.get(name) or ModelFacts(name, price=self.price(provider, name))
            for name in self.own(provider)
        }
        return [
            msgspec.structs.replace(facts, price=self._own[name])
            if (name := f"{provider.name}/{facts.id}") in self._own
            else facts
            for facts in (rows | known).values()
        ]

    def facts(self, provider: Provider, model: str) -> ModelFacts:
        """Return what is known about any model of a provider, listed or not."""
        title, window = about(listed_name(provider), model)
        return ModelFacts(model, title, window, self.price(provider, model))

    def own(self, provider: Provider) -> list[str]:
        """Return the models to list for a provider, whatever its host says.

        Those of its row come first, then those that sluice.toml prices.
        """
        return [*dict.fromkeys((*provider.models, *self._priced(provider)))]

    def _priced(self, provider: Provider) -> Iterator[str]:
        names = (name.partition("/") for name in self._own)
        return (model for row, _, model in names if row == provider.name and model)


def listed_name(provider: Provider) -> str:
    """Return the name of a provider in the package's data."""
    return provider.price_id or provider.name


def find(price_id: str, model: str) -> Callable[..., Price | None]:
    """Return a function that returns the model's current price, or None if it is unknown.

    The function takes the terms of the call. Without them, the price is the standard one.
    """
    info = look_up(price_id, model)
    if info is None:
        return lambda _terms=(): None
    from genai_prices.types import ModelPrice

    fixed = isinstance(info.prices, ModelPrice)
    standard = from_data(info.prices) if isinstance(info.prices, ModelPrice) else None

    def price(terms: PriceTerms = ()) -> Price | None:
        if fixed and not (terms and info.price_variants):
            return standard
        return from_data(info.get_prices(datetime.now(UTC), dict(terms)))

    return price


def known_models(price_id: str) -> Iterator[ModelFacts]:
    """Yield a provider's text models in the package's data, except deprecated ones.

    The package doesn't say what a model is for, so its name decides.
    """
    if price_id in UNLISTED:
        return
    from genai_prices.data_snapshot import get_snapshot

    for provider in get_snapshot().providers:
        if provider.id == price_id:
            for info in provider.models:
                price = from_data(info.get_prices(datetime.now(UTC)))
                usable = price is not None and price.output.base and not info.deprecated
                if usable and not NOT_TEXT.search(info.id.lower()):
                    yield ModelFacts(info.id, info.name, info.context_window, price)


def from_data(data: ModelPrice) -> Price | None:
    """Convert a price of the package. Return None if it has no price for text."""
    fields = data.__dict__
    if fields.get("input_mtok") is None and fields.get("output_mtok") is None:
        return None
    return Price(
        input=rate(fields.get("input_mtok")) or Rate(0),
        output=rate(fields.get("output_mtok")) or Rate(0),
        cache_read=rate(fields.get("cache_read_mtok")),
        cache_write=rate(fields.get("cache_write_mtok")),
        per_call=each(fields.get("requests_kcount")),
        cache_write_1h=rate(fields.get("cache_write_1h_mtok")),
        reasoning=rate(fields.get("output_reasoning_mtok")),
        citation=rate(fields.get("output_citation_mtok")),
        per_search=each(fields.get("web_searches_kcount")),
    )


def each(per_thousand: Any) -> int:
    """Convert a price of a thousand calls or searches to nano-dollars for each."""
    return int(per_thousand * NANO / 1000) if isinstance(per_thousand, Decimal) else 0


def rate(value: Any) -> Rate | None:
    """Convert a rate of the package: a Decimal in USD per million tokens, or tiers of Decimals."""
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
    "cache_write_1h_per_mtok": "cache_write_1h",
    "reasoning_per_mtok": "reasoning",
}


def from_table(name: str, table: Mapping[str, Any]) -> Price:
    """Return the price in a table of sluice.toml. Raises ConfigError if the table is invalid."""
    for field in table:
        if field not in FIELDS:
            problem = f"unknown field {field}; the fields are {', '.join(FIELDS)}"
            raise TomlError(f"{problem}{did_you_mean(field, FIELDS)}", "prices", name, field)
    rates: dict[str, Any] = {}
    for field, value in table.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            problem = f"{field} must be a number of USD per million tokens, not {value!r}"
            raise TomlError(problem, "prices", name, field)
        rates[FIELDS[field]] = Rate(int(Decimal(str(value)) * NANO))
    if "input" not in rates or "output" not in rates:
        raise TomlError("input_per_mtok and output_per_mtok are required", "prices", name)
    return Price(**rates)
