"""Access of the commands to the ledger.

- Only a change of a key creates a ledger that is missing.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import click
from flask import current_app
from sqlalchemy import Connection

from config import Settings
from errors import SluiceError
from keys.store import KeyStore
from ledger import key_usage
from ledger.database import database_url
from ledger.key_changes import Actor, AuditedKeys
from ledger.key_usage import KeySpending
from ledger.ledger import Ledger
from quota.key_state import today

NOTHING: Mapping[str, KeySpending] = MappingProxyType({})


@contextmanager
def audited_keys(keys: KeyStore) -> Iterator[AuditedKeys]:
    """Yield the keys to change. The changes are recorded in the ledger when the block ends.

    Print a warning if they can't be.
    """
    # A separate ledger, because ./sluice serve may have closed the app's after checking it.
    settings: Settings = current_app.extensions["sluice"].settings
    ledger = Ledger(database_url(settings.database_url, settings.database))
    if ledger.path is not None and not owns(ledger.path.absolute().parent):
        ledger.never_create()  # the server could not use a file of another user
    audited = AuditedKeys(keys, ledger, Actor("cli", user()))
    try:
        with audited:
            yield audited
    finally:
        ledger.close()
        if audited.unrecorded:
            click.echo(
                "Warning: the ledger can't be written, so './sluice keys log' lacks this change.",
                err=True,
            )


def owns(folder: Path) -> bool:
    with suppress(OSError):
        return folder.stat().st_uid == os.geteuid()
    return False


def user() -> str:
    """Return the name of the user who runs the command, or the user's number without a name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


@contextmanager
def open_ledger() -> Iterator[Ledger]:
    """Yield the ledger and close it afterwards. Raises ClickException if it doesn't exist yet."""
    found: Ledger = current_app.extensions["sluice"].ledger
    if found.path is not None:
        refuse_missing(found.path)
    found.never_create()
    try:
        yield found
    finally:
        found.close()


def refuse_missing(path: Path) -> None:
    if not path.exists():
        raise click.ClickException(f"Nothing has been recorded yet: {path} does not exist.")


def usage_of_keys(key_id: str | None = None) -> Mapping[str, KeySpending] | None:
    """Return the usage of one key, or of all keys that have any.

    Return None, and print a warning, if the ledger can't be read.
    """
    return spending(lambda connection: key_usage.by_key(connection, today(), key_id))


def usage_of_groups() -> Mapping[str, KeySpending] | None:
    """Return the usage of all groups that have any, as `usage_of_keys` does for keys."""
    return spending(lambda connection: key_usage.by_group(connection, today()))


def spending(
    query: Callable[[Connection], Mapping[str, KeySpending]],
) -> Mapping[str, KeySpending] | None:
    ledger: Ledger = current_app.extensions["sluice"].ledger
    if ledger.path is not None and not ledger.path.exists():
        return NOTHING
    try:
        return ledger.peek(query)
    except SluiceError:
        click.echo("Warning: the ledger can't be read, so what keys used is unknown.", err=True)
        return None
    finally:
        ledger.close()
