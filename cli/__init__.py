"""The operator's commands: flask keys, providers, quickstart.

What they share is in cli.shared: this module imports the commands, so they can't import it.
"""

from __future__ import annotations

from flask import Flask

from cli.keys import keys as keys_group
from cli.providers import list_providers
from cli.quickstart import quickstart as quickstart_command

COMMANDS = (
    keys_group,
    list_providers,
    quickstart_command,
    # cli.usage's groups `usage` and `ledger`: add them here when the module is there.
)


def register(app: Flask) -> None:
    """Adds the commands to an app whose extensions["sluice"] has its parts."""
    for command in COMMANDS:
        app.cli.add_command(command)
