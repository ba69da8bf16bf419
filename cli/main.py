"""The command line of ./sluice: the operator's commands, serve and flask.

- The commands work in the checkout's folder, whatever folder they are called from, so that they
  find the files of its server. Only files that an argument names are relative to the caller's
  folder.
- The checkout's .env is read before anything else is loaded.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from dotenv import dotenv_values, find_dotenv
from flask.cli import ScriptInfo

from cli import commands
from cli.callers_folder import FOLDER, callers_folder
from cli.serve import serve
from config import VERSION, ConfigError, load_dotenv, skip_dotenv

APP = "wsgi:app"
EPILOG = "Put a provider's key into .env, such as OPENAI_API_KEY=sk-...; see docs/quickstart.md."


def run(name: str, folder: Path, arguments: Sequence[str]) -> None:
    """Run a command and exit.

    Args:
        name: the name of the program, for messages.
        folder: the folder from which the program was called.
        arguments: the command's words.
    """
    info = ScriptInfo(app_import_path=APP, load_dotenv_defaults=False)
    info.data[FOLDER] = folder
    try:
        sluice.main(list(arguments), prog_name=name, obj=info)
    except ConfigError as error:
        sys.exit(f"sluice: {error}")


@click.group(
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, prog_name="sluice")
@click.pass_context
def sluice(context: click.Context) -> None:
    """Sluice, a self-hosted gateway for LLM completions."""
    if context.invoked_subcommand != flask.name:
        # The commands report what concerns them, and a server logs the rest when it starts.
        logging.disable()
        load_dotenv(Path(".env").absolute(), parse_dotenv)


@click.command("setup", add_help_option=False)
def setup() -> None:
    """Create .venv and install the packages."""
    raise click.ClickException("Call ./sluice itself for this command.")


@click.command("flask", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def flask(arguments: tuple[str, ...]) -> None:
    """Run a command of Flask itself, such as routes."""
    app = Path.cwd() / "wsgi.py"
    os.chdir(callers_folder())
    if not skip_dotenv():
        # As Flask does: .env takes precedence over .flaskenv, and both may be in a parent folder.
        for name in (".env", ".flaskenv"):
            if path := find_dotenv(name, usecwd=True):
                load_dotenv(Path(path), parse_dotenv)
    command = [sys.executable, "-m", "flask", "--app", str(app), *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - Python itself, without a shell


def parse_dotenv(text: str) -> Mapping[str, str | None]:
    return dotenv_values(stream=io.StringIO(text))


for command in (serve, *commands(), setup, flask):
    sluice.add_command(command)
