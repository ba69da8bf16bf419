"""The command `flask providers models`, which lists the models of providers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click
from flask import current_app

from cli.formats import as_json, cell, table, to_json
from errors import ProviderNotFound
from gateway.gateway import Gateway
from gateway.model_catalog import ModelCatalog
from ledger.pricing import ModelFacts, Rate, per_mtok
from providers.base import Provider

WAIT_S = 10.0
"""The seconds that the hosts have to send their lists."""
TITLES = ("model", "context", "input $/Mtok", "output $/Mtok")


@click.command("models")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@as_json
def list_models(names: tuple[str, ...], as_json: bool) -> None:
    """List the models of providers that complete text, as GET /v1/models does.

    Without a NAME, those of all enabled providers are listed. The hosts are asked for their models
    now. If a host sends no list, its models are those of sluice.toml and of the price list.
    """
    found = gateway()
    try:
        rows = [found.router.provider(name) for name in dict.fromkeys(names)]
    except ProviderNotFound as error:
        raise click.ClickException(error.message) from None
    catalog = found.catalog
    catalog.refresh(WAIT_S)
    listed = rows or [row for row in found.router.providers.values() if found.router.enabled(row)]
    models = [(row, facts) for row in listed for facts in catalog.models(row)]
    if as_json:
        click.echo(to_json([as_object(row, facts) for row, facts in models]))
    elif models:
        click.echo(table([TITLES, *(cells(row, facts) for row, facts in models)]))
    for line in remarks(catalog, rows):
        click.echo(line, err=True)


def gateway() -> Gateway:
    found: Gateway = current_app.extensions["sluice"].gateway
    return found


def remarks(catalog: ModelCatalog, rows: Iterable[Provider]) -> Iterator[str]:
    """Yield a line for each named provider whose host sent no list."""
    for row in rows:
        if catalog.count(row) is None:
            yield (
                f"{row.name} sent no list of its models; ./sluice providers check {row.name} says "
                "whether it answers"
            )


def cells(row: Provider, facts: ModelFacts) -> list[str]:
    prices = [facts.price.input, facts.price.output] if facts.price else [None, None]
    sizes = [cell(facts.context_window), *(dollars(rate) for rate in prices)]
    return [f"{row.name}/{facts.id}", *sizes]


def dollars(rate: Rate | None) -> str:
    return "-" if rate is None else f"{per_mtok(rate):g}"


def as_object(row: Provider, facts: ModelFacts) -> dict[str, Any]:
    price = facts.price
    return {
        "model": f"{row.name}/{facts.id}",
        "name": facts.name,
        "context_window": facts.context_window,
        "input_per_mtok": per_mtok(price.input) if price else None,
        "output_per_mtok": per_mtok(price.output) if price else None,
    }
