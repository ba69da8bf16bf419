"""The operator's commands: flask keys, usage, ledger, providers and quickstart."""

from __future__ import annotations

from flask import Flask

from cli.keys import keys as keys_group
from cli.providers import providers_group
from cli.quickstart import quickstart as quickstart_command
from cli.usage import ledger_group, usage_group

COMMANDS = (
    keys_group,
    providers_group,
    quickstart_command,
    usage_group,
    ledger_group,
)


def register(app: Flask) -> None:
    """Add the commands to an app whose services are in extensions["sluice"]."""
    for command in COMMANDS:
        app.cli.add_command(command)
