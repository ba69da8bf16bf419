"""The command `quickstart`, which shows a new user a first key, the address and an example."""

from __future__ import annotations

import shlex

import click
from flask import current_app
from flask.cli import with_appcontext

from cli.keys import store
from cli.open_ledger import audited_keys
from config import DEFAULT_PORT, Settings
from keys.key_errors import KeyFileError
from keys.store import KeyStore

FIRST_KEY = """\
Your first API key. Save it now, it can't be shown again:

{address}  export SLUICE_KEY={secret}

It is an admin key, which can also manage this server's keys, on the page /admin. To give a key to a
program or to a colleague, create another one there, or run ./sluice keys create --name NAME
"""
LOST = "Lost your key? ./sluice keys rotate {name} gives it a new secret and keeps its history.\n"
RACED = "Another process has just created the first key, and has printed it.\n"
EXAMPLE = """\
Playground: {url}/
Admin page: {url}/admin

In another terminal (this model never finishes; Ctrl-C there stops it):

  curl -N {url}/api/v1/completions \\
    -H "Authorization: Bearer $SLUICE_KEY" -H 'Content-Type: application/json' \\
    -d '{{"model": "local/slow", "prompt": "The best way to open a file is", "stream": true}}'
"""
ANY = ("", "0.0.0.0", "::")  # noqa: S104 - addresses to show, not to listen on


@click.command("quickstart")
@with_appcontext
def quickstart() -> None:
    """Create a key if there is none, and print an example request."""
    settings: Settings = current_app.extensions["sluice"].settings
    url = url_of(settings.host, settings.port or DEFAULT_PORT)
    try:
        create_first_key(url)
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"Sluice listens on {url} once it is started (./sluice serve).")
    click.echo(EXAMPLE.format(url=url))


def create_first_key(url: str = "") -> None:
    """Create a key and print it, or say how to replace a lost one. Raises KeyFileError.

    Args:
        url: the server's URL, which is printed with the key. Empty means that it isn't known.
    """
    if keys := store().all():
        click.echo(LOST.format(name=shlex.quote(keys[0].name) if len(keys) == 1 else "NAME"))
        return
    try:
        with audited_keys(store()) as audited:
            _, secret = audited.create("first", admin=True)
            address = f"  export SLUICE_URL={url}\n" if url else ""
            click.echo(FIRST_KEY.format(secret=secret, address=address))
    except KeyFileError:
        if not KeyStore(store().path).all():
            raise
        click.echo(RACED)  # another process has created it meanwhile


def url_of(host: str, port: int, *, scheme: str = "http", prefix: str = "") -> str:
    """Return a URL that leads from this machine to a server, without a slash at its end.

    Args:
        host: the address on which it listens. The address of all interfaces becomes 127.0.0.1.
        port: the port on which it listens.
        prefix: the path prefix under which it serves.
    """
    shown = "127.0.0.1" if host in ANY else f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}{prefix.rstrip('/')}"
