"""Access of the commands to the ledger, which they never create."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import click
from flask import current_app

from errors import SluiceError
from ledger import key_usage
from ledger.key_usage import KeySpending
from ledger.ledger import Ledger

NOTHING: Mapping[str, KeySpending] = MappingProxyType({})


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


def today() -> str:
    """Return the current UTC day, such as 2026-01-31."""
    return datetime.now(UTC).date().isoformat()


def usage_of_keys(key_id: str | None = None) -> Mapping[str, KeySpending] | None:
    """Return the usage of one key, or of all keys that have any.

    Return None, and print a warning, if the ledger can't be read.
    """
    ledger: Ledger = current_app.extensions["sluice"].ledger
    if ledger.path is not None and not ledger.path.exists():
        return NOTHING
    try:
        return ledger.peek(lambda connection: key_usage.by_key(connection, today(), key_id))
    except SluiceError:
        click.echo("Warning: the ledger can't be read, so what keys used is unknown.", err=True)
        return None
    finally:
        ledger.close()
