"""Rows for tests that read a ledger, written by the ledger's own code."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from completion import Usage
from ledger import schema, writing
from ledger.database import make_engine
from ledger.entries import Entry, Opening, Settlement

OWNER = "owner"


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """Yield a connection in a transaction, on a database with the ledger's tables."""
    with make_engine(url, writes=True).begin() as connection:
        schema.migrate(connection)
        yield connection


def at(text: str) -> int:
    """Return a UTC time as microseconds since 1970."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1_000_000)


def entry(when: str, **fields: Any) -> Entry:
    moment = at(when)
    values: dict[str, Any] = {
        "id": schema.first_id(moment) + secrets.token_hex(8),
        "request_id": "r-1",
        "stream_id": "s-1",
        "key_id": "key_a",
        "endpoint": "/api/v1/completions",
        "provider": "sim",
        "model": "m",
        "streamed": False,
        "byok": False,
        "started_us": moment,
        "input_tokens": 5,
        "cost_nano": 50,
    }
    return Entry(**values | fields)


def open_row(connection: Connection, when: str, **fields: Any) -> Entry:
    made = entry(when, **fields)
    writing.write(connection, OWNER, [Opening(made)])
    return made


def settled_row(
    connection: Connection,
    when: str,
    tokens: tuple[int, int] = (8, 2),
    cost: int | None = 1000,
    **fields: Any,
) -> Entry:
    """Write the row of a call that took half a second. `tokens` are input and output tokens."""
    made = open_row(connection, when, **fields)
    settle(connection, made, usage=Usage(*tokens), cost_nano=cost)
    return made


def settle(connection: Connection, made: Entry, **fields: Any) -> None:
    values: dict[str, Any] = {
        "entry": made,
        "provider": made.provider,
        "model": made.model,
        "status": 200,
        "end_reason": "completed",
        "error_code": None,
        "usage": Usage(8, 2),
        "cost_nano": 1000,
        "attempts": 1,
        "ended_us": made.started_us + 500_000,
        "duration_us": 500_000,
        "latency_us": 450_000,
        "first_event_us": 100_000,
    }
    writing.write(connection, OWNER, [Settlement(**values | fields)])
