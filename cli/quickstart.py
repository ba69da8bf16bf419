"""The command `flask quickstart`, which creates a first key and shows how to use it."""

from __future__ import annotations

import click
from flask import current_app
from flask.cli import with_appcontext

from cli.keys import store
from config import DEFAULT_PORT, Settings
from keys.key import KeyFileError

EXAMPLE = """\
  curl -N {url}/api/v1/completions \\
    -H 'Authorization: Bearer {secret}' -H 'Content-Type: application/json' \\
    -d '{{"prompt": "The best way to open a file is", "stream": true}}'
"""


@click.command("quickstart")
@with_appcontext
def quickstart() -> None:
    """Create a key if there is none, and print an example request."""
    settings: Settings = current_app.extensions["sluice"].settings
    secret = "YOUR_KEY"  # noqa: S105
    try:
        if not store().all():
            _, secret = store().create("first")
            click.echo(f"Your first API key (save it now, it can't be shown again): {secret}\n")
    except KeyFileError as error:
        raise click.ClickException(str(error)) from None
    url = f"http://127.0.0.1:{settings.port or DEFAULT_PORT}"
    click.echo(f"Sluice listens on {url} (Ctrl-C stops it). Open it in a browser, or try\n")
    click.echo(EXAMPLE.format(url=url, secret=secret))
