"""The operator's commands: ./sluice keys, usage, ledger, providers, quickstart and serve.

`flask` has them too, except serve. Importing this package imports nothing else, so that __main__
can report missing packages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click
    from flask import Flask


def commands() -> tuple[click.Command, ...]:
    """Return the commands that need an app."""
    from cli.keys import keys
    from cli.providers import providers_group
    from cli.quickstart import quickstart
    from cli.usage import ledger_group, usage_group

    return keys, usage_group, ledger_group, providers_group, quickstart


def register(app: Flask) -> None:
    """Add the commands to an app whose services are in extensions["sluice"]."""
    for command in commands():
        app.cli.add_command(command)
