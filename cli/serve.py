"""The command `./sluice serve`, which checks what could keep a server from working, and starts it.

- The checks come before the announcement. Each problem is one line, and ends the start.
- gunicorn replaces this process, so that signals and the exit status are its own.
"""

from __future__ import annotations

import logging
import os
import runpy
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click
from flask import Flask
from flask.cli import ScriptInfo
from gunicorn.config import Config
from gunicorn.util import parse_address

from cli import start_checks
from cli.keys import store
from cli.quickstart import ANY, EXAMPLE, create_first_key, url_of
from config import ConfigError, prepare_to_serve
from endpoints.services import Services
from keys.key import KeyFileError


class Plan(NamedTuple):
    """What gunicorn will do, by its options."""

    addresses: list[tuple[str, int]]
    """The TCP addresses to listen on; empty if only gunicorn can know them."""
    shares_port: bool
    scheme: str


@click.command("serve", context_settings={"ignore_unknown_options": True})
@click.option("--first-key", is_flag=True, help="Create a key and print it, if there is none.")
@click.argument("options", metavar="[GUNICORN_OPTIONS]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def serve(context: click.Context, first_key: bool, options: tuple[str, ...]) -> None:
    """Start the server, on 127.0.0.1:8000 unless HOST or PORT says otherwise."""
    prepare_to_serve()
    logging.disable()  # the server itself will log what there is to log
    app = context.ensure_object(ScriptInfo).load_app()
    plan = plan_of(options)
    command = "make run" if first_key else "./sluice serve"
    with app.app_context():
        services: Services = app.extensions["sluice"]
        try:
            store()
            if not plan.shares_port:
                start_checks.check_addresses(plan.addresses, command)
            for warning in start_checks.check_files(services):
                click.echo(f"Warning: {warning}", err=True)
            start_checks.connect(services)
            announce(app, plan, first_key=first_key)
        except (ConfigError, KeyFileError) as error:
            raise ConfigError(str(error)) from None
    sys.stdout.flush()
    words = [sys.executable, "-m", "gunicorn", *options, "wsgi:app"]
    os.execv(sys.executable, words)  # noqa: S606 - no shell is needed


def plan_of(options: Sequence[str]) -> Plan:
    """Return what gunicorn will do. It exits if gunicorn doesn't know an option."""
    config = Config(prog="sluice serve")
    parser = config.parser()
    given = [parser.parse_args(words) for words in (config.get_cmd_args_from_env(), [*options])]
    found = {}
    for name in ("bind", "config", "certfile", "keyfile", "reuse_port"):
        found[name] = next((v for v in (getattr(g, name) for g in reversed(given)) if v), None)
    scheme = "https" if found["certfile"] or found["keyfile"] else "http"
    binds = found["bind"]
    if binds is None:
        if found["config"]:
            return Plan([], True, scheme)
        binds = runpy.run_path("gunicorn.conf.py")["bind"].split(",")
    addresses = [address for address in map(parse_address, binds) if isinstance(address, tuple)]
    return Plan(addresses, bool(found["reuse_port"]), scheme)


def announce(app: Flask, plan: Plan, *, first_key: bool) -> None:
    """Print the address, how to get a key, and an example. Raises KeyFileError."""
    services: Services = app.extensions["sluice"]
    if first_key:
        create_first_key()
    elif not store().all():
        click.echo("There are no keys yet: ./sluice keys create --name NAME creates one.\n")
    if not plan.addresses:
        return
    urls = [
        url_of(
            host, port, scheme=plan.scheme, prefix=services.settings.environ.get("SCRIPT_NAME", "")
        )
        for host, port in plan.addresses
    ]
    click.echo(f"Sluice listens on {' and '.join(map(shown, plan.addresses))} (Ctrl-C stops it).")
    click.echo(EXAMPLE.format(url=urls[0]))


def shown(address: tuple[str, int]) -> str:
    """Return an address for people, such as 127.0.0.1:8000."""
    host, port = address
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{place} (all interfaces)" if host in ANY else place
