"""The command `flask providers`, which lists the known providers."""

from __future__ import annotations

from collections.abc import Iterable

import click
from flask import current_app
from flask.cli import with_appcontext

from cli.formats import cell, table
from gateway import capabilities
from providers.base import Provider, Target
from providers.fim_templates import FAMILIES
from providers.hosts import BUILT_IN
from providers.registry import missing

COLUMNS = (
    *("provider", "variables", "a model", "legacy completions", "fill-in-the-middle"),
    *("emulated", "dropped", "refused"),
)


@click.command("providers")
@click.option("--markdown", is_flag=True, help="Print the tables of docs/guides/providers.md.")
@with_appcontext
def list_providers(markdown: bool) -> None:
    """List the known providers, and show which of them are enabled."""
    if markdown:
        click.echo(f"{provider_table(BUILT_IN)}\n\n{family_table()}")
        return
    router = current_app.extensions["sluice"].gateway.router
    rows = [
        (row.name, cell(router.enabled(row)), cell(missing(row, {})), row.base_url)
        for row in router.providers.values()
    ]
    click.echo(table([("name", "enabled", "variables", "base_url"), *rows]))


def provider_table(rows: Iterable[Provider]) -> str:
    """Return a Markdown table of providers, with the shortcomings of each one's first model."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        model = row.models[0] if row.models else "any"
        cells = (
            f"`{row.name}`",
            ", ".join(f"`{name}`" for name in missing(row, {})) or "-",
            f"`{model}`",
            legacy(row),
            filling_in(row),
            *(", ".join(names) or "-" for names in capabilities.shortcomings(Target(row, model))),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def filling_in(row: Provider) -> str:
    """Return a text that says how a row's models fill in the middle."""
    found = []
    for rule in row.fim:
        which = "" if rule.models == ("*",) else " " + globs(rule.models)
        found.append(("template" if rule.by_template else "native") + which)
    names = ("*",) if row.completions is True else row.completions or ()
    takers = [name for name in names if "suffix" not in Target(row, name).cannot]
    if row.dialect == "openai" and not found and takers:
        found.append("native" if takers == ["*"] else f"native {globs(takers)}")
    return ", ".join(found) or "-"


def family_table() -> str:
    """Return a Markdown table of the families of models that fill in by a template."""
    lines = [
        "| family | models | prompt | other files | source |",
        "|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        but = f", but not {globs(family.unless)}" if family.unless else ""
        cells = (
            f"`{family.name}`",
            globs(family.models) + but,
            code(family.prompt.replace("{prefix}", "P").replace("{suffix}", "S")),
            code(family.repository.replace("{files}", family.file)),
            family.source,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def globs(patterns: Iterable[str]) -> str:
    return ", ".join(f"`{pattern}`" for pattern in patterns)


def code(text: str) -> str:
    """Return a text as code in the cell of a table."""
    return "`" + text.replace("|", "\\|").replace("\n", "\\n") + "`"


def legacy(row: Provider) -> str:
    """Return a text that names the models called through the legacy completions API."""
    if row.dialect != "openai":
        return "-"
    if isinstance(row.completions, bool):
        return "all" if row.completions else "none"
    return globs(row.completions)
