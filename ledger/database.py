"""The way to the ledger's database: its URL, and a connection that lives in a native thread.

Rules that hold here: a connection is used by its own thread alone, so no pool is needed; what is
raised never quotes a password.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
)
from sqlalchemy.pool import NullPool

from concurrency.native import NativeThread
from config import ConfigError

T = TypeVar("T")

BUSY_MS = 3_000
"""How long SQLite waits for another process's transaction."""
POSTGRES = {
    "connect_timeout": 5,
    # A network that swallows everything: else a commit would wait for a quarter of an hour.
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "options": "-c statement_timeout=30000 -c lock_timeout=5000",
    "application_name": "sluice",
}


class DatabaseAway(Exception):
    """The database can't be reached, or can't write: what was asked for was not done, or nobody
    knows. Its text is for the log."""


def database_url(variable: str | None, path: Path) -> str:
    """SQLAlchemy's URL of the database: Postgres if DATABASE_URL is set (Heroku's postgres:// too),
    else the SQLite file. Raises ConfigError."""
    if not variable:
        found = URL.create("sqlite", database=str(path.absolute()))
        return found.render_as_string()
    url, count = re.subn(
        r"^postgres(ql)?(\+psycopg)?://", "postgresql+psycopg://", variable.strip()
    )
    try:
        make_url(url)
    except (ArgumentError, ValueError):  # whose words may quote the password
        count = 0
    if not count:
        raise ConfigError("DATABASE_URL takes postgresql://USER:PASSWORD@HOST/NAME")
    return url


class Link:
    """A connection and the native thread that it lives in."""

    def __init__(
        self,
        url: str,
        *,
        writes: bool = False,
        connected: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """connected: called on each new connection, in a transaction of its own."""
        self._engine = make_engine(url, writes=writes)
        self._thread = NativeThread()
        self._connected = connected
        self._connection: Connection | None = None

    def run(self, work: Callable[[Connection], T]) -> T:
        """What the work returns, done as one transaction. It must bear being done twice: it is,
        when the connection breaks. Raises DatabaseAway, and what the work raises."""
        return self._thread.run(self._run, work)

    def close(self) -> None:
        self._thread.run(self._drop)

    def _run(self, work: Callable[[Connection], T]) -> T:
        for last in (False, True):
            try:
                connection = self._connection or self._connect()
                with connection.begin():
                    return work(connection)
            except DatabaseAway:
                raise
            except BaseException as failure:
                self._drop()  # nobody knows what state it is in
                if not is_away(failure):
                    raise
                if last:
                    raise DatabaseAway(said(failure)) from failure
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def _connect(self) -> Connection:
        try:
            connection = self._connection = self._engine.connect()
            with connection.begin():
                self._connected(connection)
        except Exception as failure:  # such as a right that is missing
            if is_away(failure):
                raise
            self._drop()
            raise DatabaseAway(said(failure)) from failure
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()


def directly(
    connection: Connection,
    statement: str,
    parameters: Any = (),
    *,
    several: Sequence[Any] | None = None,
) -> Any:
    """The driver's cursor, which has executed a statement: once, or for several parameters. For
    what each call needs: SQLAlchemy's own way costs more than such a statement. Raises its
    DBAPIError."""
    cursor = connection.connection.cursor()
    dbapi = connection.dialect.loaded_dbapi
    try:
        if several is None:
            cursor.execute(statement, parameters)
        else:
            cursor.executemany(statement, several)
    except dbapi.Error as failure:
        if connection.dialect.is_disconnect(failure, connection.connection, cursor):
            connection.invalidate(failure)  # so that nobody tries to roll it back
        raise DBAPIError.instance(None, None, failure, dbapi.Error) from failure
    return cursor


def is_away(failure: BaseException) -> bool:
    """Whether it is the database that failed, and not the values that it was given: it can't be
    reached, is damaged or full, takes no writes (a replica), lacks a right or a table."""
    if isinstance(failure, DataError | IntegrityError | NotSupportedError):
        return False
    return isinstance(failure, DBAPIError | OSError)


def said(failure: BaseException) -> str:
    """What the database or the system said, on one line, without the statement."""
    text = str(failure.orig if isinstance(failure, DBAPIError) else failure)
    return " ".join(text.split())[:300] or type(failure).__name__


def make_engine(url: str, *, writes: bool = False) -> Engine:
    if not url.startswith("sqlite"):
        return create_engine(url, poolclass=NullPool, connect_args=POSTGRES, hide_parameters=True)
    # Its native thread may be the thread of whoever asks, one at a time.
    arguments = {"check_same_thread": False}
    engine = create_engine(url, poolclass=NullPool, connect_args=arguments, hide_parameters=True)
    path = Path(engine.url.database or "")
    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

    @event.listens_for(engine, "do_connect")
    def create(*_: object) -> None:
        if not path.exists():  # with our mode, which its -wal and -shm take over
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say when a transaction begins
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # what a client was told is on disk

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        directly(connection, begin)

    return engine
