"""The models that Sluice lists: those of the rows, of sluice.toml, of the hosts and the price list.

- A host's own list replaces the price list's: it has what the operator's account can use.
- The price list's price applies before the host's, as it does to calls.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from functools import partial
from urllib.parse import urlsplit

import msgspec

from concurrency.yielding import Yielder, paced
from config import Settings
from ledger.pricing import ModelFacts, Price, Prices, Rate
from providers.base import ListedModel, Provider, Target
from providers.model_fetch import Listing, fetch
from providers.transport.exchange import Transport
from routing.model_discovery import ModelDiscovery, addresses
from routing.router import Router


class ModelCatalog:
    """The known models of each provider."""

    def __init__(self, prices: Prices, discovery: ModelDiscovery, instance: str = "") -> None:
        """Make a catalog.

        Args:
            instance: this Sluice's name in the header that names the instances of a list.
        """
        self._prices, self._discovery = prices, discovery
        self.instance = instance

    def refresh(self, wait: float = 0.0) -> None:
        """Ask hosts for their models, as `ModelDiscovery.refresh` does."""
        self._discovery.refresh(wait)

    @property
    def instances(self) -> list[str]:
        """The names of this Sluice, and of the others whose models are listed."""
        return [self.instance, *sorted(self._discovery.instances - {self.instance})]

    def count(self, row: Provider) -> int | None:
        """Return the number of models that a provider's host lists; None if no list is known."""
        if row.dialect == "local":  # no host: the row lists all of its models
            return len(row.models)
        listing = self._discovery.models(row.name)
        return None if listing is None else len(listing.models)

    def reached(self, row: Provider) -> tuple[bool, float] | None:
        """Return whether a provider could be reached, as `ModelDiscovery.reached` does."""
        return self._discovery.reached(row.name)

    def models(self, row: Provider) -> list[ModelFacts]:
        """Return a provider's models, as far as they are known now.

        Those of the row come first, then those that sluice.toml prices, then the host's.
        """
        listing = self._discovery.models(row.name)
        if listing is None:
            return self._prices.models(row)
        found = {facts.id: facts for facts in self._listed(row, listing)}
        if not listing.complete:
            found = {facts.id: facts for facts in self._prices.models(row)} | found
        return [*found.values()]

    def _listed(self, row: Provider, listing: Listing) -> Iterator[ModelFacts]:
        listed = {model.id: model for model in listing.models}
        for name in paced(dict.fromkeys((*self._prices.own(row), *listed))):
            yield merged(self._prices.facts(row, name), listed.get(name))


def merged(facts: ModelFacts, model: ListedModel | None) -> ModelFacts:
    """Return the facts of the price list with what the host says about its model."""
    if model is None:
        return facts
    price = None if facts.price else listed_price(model)
    return msgspec.structs.replace(
        facts,
        name=model.name or facts.name,
        context_window=model.context_window or facts.context_window,
        created=model.created,
        price=facts.price or price,
        price_reported=price is not None,
    )


def listed_price(model: ListedModel) -> Price | None:
    if model.prices is None:
        return None
    input_price, output_price = model.prices
    return Price(Rate(input_price), Rate(output_price))


def model_catalog(
    settings: Settings, router: Router, prices: Prices, transport: Transport
) -> ModelCatalog:
    """Return a catalog whose discovery asks through a transport."""
    name = instance_name(settings)
    discovery = ModelDiscovery(
        addresses(router, router.providers.values()),
        partial(priced_listing, prices, transport, name),
        interval=settings.discovery,
    )
    return ModelCatalog(prices, discovery, name)


def priced_listing(prices: Prices, transport: Transport, instance: str, target: Target) -> Listing:
    """Return a host's models, after the price list has been searched for each of them.

    A search takes milliseconds, and its result is cached. Here it delays nobody: this is the
    background, and other greenlets run in between. Raises what `fetch` raises.
    """
    listing, yielder = fetch(transport, target, instance), Yielder()
    for model in listing.models:
        prices.facts(target.provider, model.id)
        yielder.yield_if_due()
    return listing


def instance_name(settings: Settings) -> str:
    """Return a name of this Sluice, which all of its processes share.

    They share a database, so the name is a hash of where that is, without its password. A database
    of this machine is another one than that of another machine, even if both are on localhost.
    """
    url = urlsplit(settings.database_url)
    place = f"{url.netloc.rpartition('@')[2]}{url.path}"
    if not settings.database_url:
        place = f"{socket.gethostname()}:{settings.database.absolute()}"
    elif is_this_machine(url.hostname):
        place = f"{socket.gethostname()}:{place}"
    return hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def is_this_machine(host: str | None) -> bool:
    """Return True for the host of a URL that leads to this machine. None stands for a socket."""
    return host is None or host in ("localhost", "::1") or host.startswith(("127.", "%2f"))
