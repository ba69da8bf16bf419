"""The folder from which ./sluice was called, to which files in its arguments are relative."""

from __future__ import annotations

from pathlib import Path

import click
from flask.cli import ScriptInfo

FOLDER = "folder"
"""The folder's name in ScriptInfo.data. `flask` doesn't set it, and works in its own folder."""


def callers_folder() -> Path:
    info = click.get_current_context().find_object(ScriptInfo)
    return Path((info and info.data.get(FOLDER)) or "")
