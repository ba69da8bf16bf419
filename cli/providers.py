"""The command `flask providers`, which lists the known providers."""

from __future__ import annotations

from collections.abc import Iterable

import click
from flask import current_app
from flask.cli import with_appcontext

from cli.formats import cell, table
from gateway import capabilities
from providers.base import Provider, Target
from providers.hosts import BUILT_IN
from providers.registry import missing


@click.command("providers")
@click.option("--markdown", is_flag=True, help="Print the table of docs/guides/providers.md.")
@with_appcontext
def list_providers(markdown: bool) -> None:
    """List the known providers, and show which of them are enabled."""
    if markdown:
        click.echo(provider_table(BUILT_IN))
        return
    router = current_app.extensions["sluice"].gateway.router
    rows = [
        (row.name, cell(router.enabled(row)), cell(missing(row, {})), row.base_url)
        for row in router.providers.values()
    ]
    click.echo(table([("name", "enabled", "variables", "base_url"), *rows]))


def provider_table(rows: Iterable[Provider]) -> str:
    """Return a Markdown table of providers, with the shortcomings of each one's first model."""
    lines = [
        "| provider | variables | a model | legacy completions | emulated | dropped | refused |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        model = row.models[0] if row.models else "any"
        cells = (
            f"`{row.name}`",
            ", ".join(f"`{name}`" for name in missing(row, {})) or "-",
            f"`{model}`",
            legacy(row),
            *(", ".join(names) or "-" for names in capabilities.shortcomings(Target(row, model))),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def legacy(row: Provider) -> str:
    """Return a text that names the models called through the legacy completions API."""
    if row.dialect != "openai":
        return "-"
    if isinstance(row.completions, bool):
        return "all" if row.completions else "none"
    return ", ".join(f"`{pattern}`" for pattern in row.completions)
