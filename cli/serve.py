"""The command `./sluice serve`, which checks what could keep a server from working, and starts it.

- The checks come before the announcement. Each problem is one line, and ends the start.
- gunicorn replaces this process, so that signals and the exit status are its own.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
from flask.cli import ScriptInfo

from cli import start_checks
from cli.keys import store
from cli.quickstart import ANY, EXAMPLE, create_first_key, url_of
from config import ConfigError, Settings, pass_on_shown, prepare_to_serve, refuse_workers
from endpoints.services import Services
from keys.key_errors import KeyFileError
from telemetry import logs


class Plan(NamedTuple):
    """The effect of gunicorn's options and settings."""

    addresses: list[tuple[str, int]]
    """The TCP addresses to listen on; empty if only gunicorn can know them."""
    scheme: str
    backlog: int
    claims: bool
    """True if ./sluice can open the sockets and hand them to gunicorn."""
    workers: int = 1
    """The number of workers that the options request."""


@click.command("serve", context_settings={"ignore_unknown_options": True})
@click.option("--first-key", is_flag=True, help="Create a key and print it, if there is none.")
@click.argument("options", metavar="[GUNICORN_OPTIONS]...", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def serve(context: click.Context, first_key: bool, options: tuple[str, ...]) -> None:
    """Start the server.

    It listens on 127.0.0.1:8000, unless HOST or PORT says otherwise: HOST=0.0.0.0 opens it to other
    machines. Options that follow are gunicorn's, such as --access-logfile -.
    """
    prepare_to_serve()
    with logs.collected() as warnings:
        app = context.ensure_object(ScriptInfo).load_app()
    services: Services = app.extensions["sluice"]
    plan = plan_of(options)
    refuse_workers(plan.workers, services.settings)
    sockets: list[socket.socket] = []
    with app.app_context():
        try:
            store()
            if plan.claims:
                command = "make run" if first_key else "./sluice serve"
                sockets = start_checks.listen(plan.addresses, plan.backlog, command)
            for warning in (*warnings, *start_checks.check_files(services)):
                click.echo(f"Warning: {warning}", err=True)
            pass_on_shown(warnings)
            start_checks.connect(services)
            announce(services.settings, plan, first_key=first_key)
        except KeyFileError as error:
            raise ConfigError(str(error)) from None
    become_gunicorn(options, sockets)


def plan_of(options: Sequence[str]) -> Plan:
    """Return what gunicorn would do. It exits if gunicorn doesn't know an option."""
    # Imported here because its import fails if WEB_CONCURRENCY is blank.
    from gunicorn.config import Config
    from gunicorn.util import parse_address

    config = Config(usage="./sluice serve [GUNICORN_OPTIONS]", prog="sluice serve")
    given = config.parser().parse_args([*options])
    variable = config.parser().parse_args(config.get_cmd_args_from_env())

    def option(name: str) -> Any:
        return getattr(given, name) or getattr(variable, name)

    scheme = "https" if option("certfile") or option("keyfile") else "http"
    backlog = option("backlog") or config.settings["backlog"].get()
    workers = option("workers") or 1
    if option("config") and not option("bind"):
        return Plan([], scheme, backlog, claims=False, workers=workers)
    binds = option("bind") or runpy.run_path("gunicorn.conf.py")["bind"].split(",")
    found = [parse_address(bind) for bind in binds]
    addresses = [address for address in found if isinstance(address, tuple)]
    claims = addresses == found and not given.bind and not option("reuse_port")
    return Plan(addresses, scheme, backlog, claims=claims, workers=workers)


def become_gunicorn(options: Sequence[str], sockets: Sequence[socket.socket]) -> None:
    """Replace this process by gunicorn, which gets the sockets."""
    binds = []
    for each in sockets:
        each.set_inheritable(True)
        binds += ["--bind", f"fd://{each.fileno()}"]
    sys.stdout.flush()
    words = [sys.executable, "-m", "gunicorn", *options, *binds, "wsgi:app"]
    os.execv(sys.executable, words)  # noqa: S606 - no shell is needed


def announce(settings: Settings, plan: Plan, *, first_key: bool) -> None:
    """Print the address, how to get a key, and an example. Raises KeyFileError."""
    url = ""
    if plan.addresses:
        prefix = settings.environ.get("SCRIPT_NAME", "")
        url = url_of(*plan.addresses[0], scheme=plan.scheme, prefix=prefix)
    if first_key:
        create_first_key(url)
    elif not store().all():
        click.echo("There are no keys yet: ./sluice keys create --name NAME creates one.\n")
    if url:
        listens = "listens" if plan.claims else "will listen"
        click.echo(
            f"Sluice {listens} on {' and '.join(map(shown, plan.addresses))} (Ctrl-C stops it)."
        )
        click.echo(EXAMPLE.format(url=url))


def shown(address: tuple[str, int]) -> str:
    """Return an address for people, such as 127.0.0.1:8000."""
    host, port = address
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"{place}, which is all interfaces" if host in ANY else place
