"""The operator's commands: flask keys, usage, ledger, providers, quickstart.

What they share is in cli.shared: this module imports the commands, so they can't import it.
"""

from __future__ import annotations

from flask import Flask

from cli.keys import keys as keys_group
from cli.providers import list_providers
from cli.quickstart import quickstart as quickstart_command
from cli.usage import ledger_group, usage_group

COMMANDS = (
    keys_group,
    list_providers,
    quickstart_command,
    usage_group,
    ledger_group,
)


def register(app: Flask) -> None:
    """Adds the commands to an app whose extensions["sluice"] has its parts."""
    for command in COMMANDS:
        app.cli.add_command(command)
