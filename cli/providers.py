"""The commands of `flask providers`, which list the providers and check whether they answer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import click
from flask import current_app
from flask.cli import AppGroup, with_appcontext

from cli.formats import as_json, cell, table, to_json, warn
from cli.provider_models import gateway, list_models
from config import Settings
from errors import ProviderNotFound
from gateway import capabilities
from providers.base import Provider, Target
from providers.checks import Check, check, check_all, public_url
from providers.fim_templates import FAMILIES
from providers.hosts import BUILT_IN
from providers.key_variables import near_misses
from providers.registry import missing
from providers.transport.exchange import Transport
from routing.router import Router, credentials

LIMIT_S = 5.0
"""Seconds that each provider has to answer."""
ANY_MODEL = "any"
BUILT_IN_ROWS = {row.name: row for row in BUILT_IN}
ABSENT = "refused"
"""The state that a check of a local engine that isn't running finds."""
NOT_RUNNING = "not running"

COLUMNS = (
    *("provider", "variables", "a model", "legacy completions", "fill-in-the-middle"),
    *("emulated", "dropped", "refused"),
)


@click.group(
    "providers",
    cls=AppGroup,
    invoke_without_command=True,
    help="List the known providers, and show which of them are enabled and answer now.",
    short_help="List the providers and whether they answer.",
)
@click.option("--markdown", is_flag=True, help="Print the tables of docs/guides/providers.md.")
@click.option(
    "--check/--no-check",
    "checks",
    default=True,
    help=f"Ask each enabled provider whether it answers (the default), for at most {LIMIT_S:g} s.",
)
@as_json
@click.pass_context
@with_appcontext
def providers_group(ctx: click.Context, markdown: bool, checks: bool, as_json: bool) -> None:
    if ctx.invoked_subcommand is not None:
        return
    if markdown:
        click.echo(f"{provider_table(BUILT_IN)}\n\n{family_table()}")
        return
    warn(near_misses(router().providers.values(), settings().environ))
    rows = list(router().providers.values())
    found = None
    if checks:
        until = time.monotonic() + LIMIT_S
        gateway().catalog.refresh()  # in the background, at the same time as the checks
        found = checked(rows)
        gateway().catalog.refresh(max(0.0, until - time.monotonic()))
    if as_json:
        click.echo(to_json([row_as_json(row, found) for row in rows]))
        return
    titles = [
        "name",
        "enabled",
        "variables",
        *(["models", "answers"] if checks else []),
        "base_url",
    ]
    cells = [line for row in rows for line in (row_cells(row, found), *replica_cells(row, found))]
    click.echo(table([titles, *cells]))


providers_group.add_command(list_models)


@providers_group.command("check", short_help="Check whether providers answer, and their keys.")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 300),
    default=LIMIT_S,
    show_default=True,
    metavar="SECONDS",
    help="The time that each provider has to answer.",
)
@as_json
@click.pass_context
def check_providers(
    ctx: click.Context, names: tuple[str, ...], timeout: float, as_json: bool
) -> None:
    """Say whether providers answer and accept their keys, and what is wrong if they don't.

    Without a NAME, all enabled providers are checked; a local engine that isn't running is no
    mistake then. A check costs no tokens. The exit status is 1 if anything is wrong.
    """
    try:
        rows = [router().provider(name) for name in dict.fromkeys(names)]
    except ProviderNotFound as error:
        raise click.ClickException(error.message) from None
    warn(near_misses(router().providers.values(), settings().environ))
    found = checked(rows or list(router().providers.values()), timeout, thorough=True)
    if rows:
        found = [*map(disabled, filter(lacks, rows)), *found]
    if as_json:
        click.echo(to_json([check_as_json(one) for one in found]))
    else:
        click.echo(table([name_of(one), in_words(one, named=bool(rows))] for one in found))
    if not all(one.ok or (not rows and is_absent(one)) for one in found):
        ctx.exit(1)


def router() -> Router:
    return gateway().router


def settings() -> Settings:
    found: Settings = current_app.extensions["sluice"].settings
    return found


def lacks(row: Provider) -> list[str]:
    """Return the variables that a row needs and that aren't set."""
    return missing(row, settings().environ)


def disabled(row: Provider) -> Check:
    names = lacks(row)
    verb = "is" if len(names) == 1 else "are"
    message = f"is not enabled: {' and '.join(names)} {verb} not set"
    return Check(row.name, ok=False, state="not_enabled", message=message)


def checked(
    rows: Sequence[Provider], limit: float = LIMIT_S, *, thorough: bool = False
) -> list[Check]:
    """Check the enabled ones of some providers, each with all of its keys, at the same time."""
    targets = [target for row in rows if not lacks(row) for target in targets_of(row)]
    transport = Transport(1, settings().proxy, settings().ca_bundle)
    checks = [partial(check, transport, target, limit, thorough=thorough) for target in targets]
    return worst(check_all(checks, targets, limit))


def targets_of(row: Provider) -> list[Target]:
    """Return a target for each of the operator's keys, at each of the row's replicas."""
    model = row.models[0] if row.models else ANY_MODEL
    text = settings().environ.get(row.api_key_env, "") if row.api_key_env else ""
    keys = credentials(text) or [None]
    found = [Target(row, model, key, key_number=number) for number, key in enumerate(keys, 1)]
    return [one for target in found for one in target.replicas] if row.replicas else found


def worst(found: Iterable[Check]) -> list[Check]:
    """Return one result for each provider or replica: the first of its keys with which something
    is wrong."""
    kept: dict[tuple[str, str], Check] = {}
    for one in found:
        key = (one.provider, one.replica)
        if key not in kept or (kept[key].ok and not one.ok):
            kept[key] = one
    return list(kept.values())


def name_of(one: Check) -> str:
    return f"{one.provider} {one.replica}" if one.replica else one.provider


def check_of(row: Provider, found: Iterable[Check] | None, replica: str = "") -> Check | None:
    """Return the result for a provider without replicas, or for a replica; None if there is none.

    Args:
        found: the results; None if there were no checks.
    """
    return next(
        (one for one in found or () if (one.provider, one.replica) == (row.name, replica)), None
    )


def is_absent(one: Check) -> bool:
    """Return True for a local engine that isn't running, and that no row says should run there.

    The built-in rows of local engines are always enabled, so this says nothing about a mistake.
    """
    row = router().providers[one.provider]
    built_in = BUILT_IN_ROWS.get(row.name)
    placed = built_in is None or bool(row.replicas) or row.base_url != built_in.base_url
    return one.state == ABSENT and row.api_key_env is None and not placed


def in_words(one: Check, *, named: bool = False) -> str:
    return one.message if named or not is_absent(one) else NOT_RUNNING


def row_cells(row: Provider, found: list[Check] | None) -> list[str]:
    names = cell(missing(row, {}))
    cells = [row.name, cell(not lacks(row)), names]
    if found is not None:
        cells.append(cell(gateway().catalog.count(row)))
        one = check_of(row, found)
        own = [check for check in found if check.provider == row.name and check.replica]
        well = f"{sum(check.ok for check in own)} of {len(own)} replicas answer" if own else "-"
        cells.append(in_words(one) if one else well)
    return [*cells, f"{len(row.replicas)} replicas" if row.replicas else public_url(row.base_url)]


def replica_cells(row: Provider, found: list[Check] | None) -> Iterator[list[str]]:
    """Yield the cells of a line for each of a row's replicas."""
    for replica in row.replicas:
        weight = "" if replica.weight == 1 else f" (weight {replica.weight:g})"
        cells = ["", "", ""]
        if found is not None:
            one = check_of(row, found, replica.name)
            cells += ["", in_words(one) if one else "-"]
        yield [*cells, public_url(replica.url) + weight]


def row_as_json(row: Provider, found: list[Check] | None) -> dict[str, Any]:
    one = check_of(row, found)
    replicas = [
        {
            "name": replica.name,
            "base_url": public_url(replica.url),
            "weight": replica.weight,
            "check": check and check_as_json(check),
        }
        for replica in row.replicas
        for check in [check_of(row, found, replica.name)]
    ]
    return {
        "name": row.name,
        "enabled": not lacks(row),
        "variables": missing(row, {}),
        "base_url": public_url(row.base_url),
        "check": None if one is None else check_as_json(one),
        "models": gateway().catalog.count(row),
        **({"replicas": replicas} if replicas else {}),
    }


def check_as_json(one: Check) -> dict[str, Any]:
    return {
        "name": one.provider,
        "ok": one.ok,
        "state": one.state,
        "message": one.message,
        "duration_ms": round(one.seconds * 1000, 1),
        **({"replica": one.replica} if one.replica else {}),
    }


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
