"""Connections to the ledger's database, each of which lives in a native thread.

- Only its own thread uses a connection, so no connection pool is needed.
- Before and after each transaction on SQLite, the connection's files are checked: see
  ledger/database_file.py.
- No exception quotes a password.
"""

from __future__ import annotations

import ctypes
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
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
from ledger.database_file import (
    RECENT_S,
    DatabaseFile,
    DatabaseFileChanged,
    OpenFiles,
    create_private,
)

T = TypeVar("T")

BUSY_MS = 3_000
"""Milliseconds that SQLite waits for another process's transaction."""
POSTGRES = {
    "connect_timeout": 5,
    # If the network drops all packets, a commit would wait for a quarter of an hour without these.
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "options": "-c statement_timeout=30000 -c lock_timeout=5000",
    "application_name": "sluice",
}
TIMEOUTS = (
    "SELECT set_config('statement_timeout', '30000', true), "
    "set_config('lock_timeout', '5000', true)"
)
"""The timeouts of POSTGRES for one transaction."""
LOST_STATEMENTS = ("26000", "42P05")
"""SQLSTATEs of a prepared statement that a connection lacks, or has although it is new."""


class DatabaseAway(Exception):
    """The database can't be reached or can't write. The work may or may not have been committed.

    The message is meant for the log.
    """


def database_url(variable: str | None, path: Path) -> str:
    """Return the database's URL for SQLAlchemy.

    Args:
        variable: the value of DATABASE_URL; Heroku's postgres:// is accepted.
        path: the SQLite file to use if DATABASE_URL isn't set.

    Raises:
        ConfigError: DATABASE_URL isn't the URL of a Postgres database.
    """
    if not variable:
        return URL.create("sqlite", database=str(path.absolute())).render_as_string()
    url, count = re.subn(
        r"^postgres(ql)?(\+psycopg)?://", "postgresql+psycopg://", variable.strip()
    )
    try:
        make_url(url)
    except (ArgumentError, ValueError):  # not chained: the message may quote the password
        count = 0
    if not count:
        raise ConfigError("DATABASE_URL must be postgresql://USER:PASSWORD@HOST/NAME")
    return url


class Link:
    """A database connection and the native thread that it lives in."""

    def __init__(
        self,
        url: str,
        *,
        writes: bool = False,
        connected: Callable[[Connection], None] | None = None,
        file: DatabaseFile | None = None,
    ) -> None:
        """Prepare a connection, which is opened on first use.

        A link that only reads doesn't create a SQLite file that is missing.

        Args:
            writes: whether transactions take SQLite's write lock when they begin.
            connected: callback for each new connection, called in a separate transaction.
            file: the checks of the SQLite file, which a process's links share.
        """
        if file is None and url.startswith("sqlite"):
            file = DatabaseFile(Path(make_url(url).database or ""))
        self._pooler = Pooler()
        self._engine = make_engine(url, writes=writes, create=False, pooler=self._pooler)
        self._thread = NativeThread()
        self._creates = writes or connected is not None
        self._connected = connected or (lambda _: None)
        self._connection: Connection | None = None
        self._file = file
        self._open_files: OpenFiles | None = None

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run the work in one transaction and return its result.

        The work must be idempotent: it runs a second time if the connection breaks.

        Raises:
            DatabaseAway: the database can't be reached or can't write.
            Exception: whatever the work raises.
        """
        return self._thread.run(self._run, work)

    def check(self) -> None:
        """Check that SQLite's files are those that are open. No-op if there is no connection.

        Raises:
            DatabaseAway: they aren't. The connection is closed.
        """
        self._thread.run(self._check)

    def close(self) -> None:
        self._thread.run(self._drop)

    def _run(self, work: Callable[[Connection], T]) -> T:
        for last in (False, True):
            try:
                self._check_files(RECENT_S)
                connection = self._connection or self._connect()
                with connection.begin():
                    result = work(connection)
                self._check_files()  # a row in a file that nobody finds isn't recorded
                return result
            except DatabaseAway:
                raise
            except BaseException as failure:
                with suppress(DatabaseFileChanged):
                    self._check_files()  # which saves what closing the connection would lose
                self._drop()  # the connection's state is unknown
                self._pooler.learn(failure)
                if not is_away(failure):
                    raise
                if last:
                    raise DatabaseAway(failure_text(failure)) from failure
        raise AssertionError  # pragma: no cover - the loop returns or raises

    def _check(self) -> None:
        try:
            self._check_files()
        except DatabaseFileChanged as failure:
            self._drop()
            raise DatabaseAway(failure_text(failure)) from failure

    def _check_files(self, recent_s: float = 0.0) -> None:
        if self._open_files is not None:
            self._open_files.check(recent_s)

    def _connect(self) -> Connection:
        try:
            admitted = None if self._file is None else self._file.admit(create=self._creates)
            connection = self._connection = self._engine.connect()
            with connection.begin():
                self._connected(connection)
            if self._file is not None and admitted is not None:
                raw: Any = connection.connection.dbapi_connection
                self._open_files = self._file.opened(admitted, raw)
        except Exception as failure:  # for example, a missing privilege
            if is_away(failure):
                raise
            self._drop()
            raise DatabaseAway(failure_text(failure)) from failure
        return connection

    def _drop(self) -> None:
        connection, self._connection, self._open_files = self._connection, None, None
        if connection is None:
            return
        if self._file is not None and self._file.damaged:
            abandon(connection)
            return
        connection.invalidate()
        connection.close()


def abandon(connection: Connection) -> None:
    """Keep a connection to a damaged SQLite file open until the process ends.

    Closing it, even at the interpreter's exit, would write its -wal file into a backup that was
    copied over the file.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def directly(
    connection: Connection,
    statement: str,
    parameters: Any = (),
    *,
    several: Sequence[Any] | None = None,
) -> Any:
    """Execute a statement on the driver's own cursor and return the cursor.

    This is for the statements of every call: SQLAlchemy's execute() costs more than they do.

    Args:
        parameters: the parameters of a single execution.
        several: the parameters of each of several executions; they replace `parameters`.

    Raises:
        DBAPIError: SQLAlchemy's form of the driver's error.
    """
    cursor = connection.connection.cursor()
    dbapi = connection.dialect.loaded_dbapi
    try:
        if several is None:
            cursor.execute(statement, parameters)
        else:
            cursor.executemany(statement, several)
    except dbapi.Error as failure:
        if connection.dialect.is_disconnect(failure, connection.connection, cursor):
            connection.invalidate(failure)  # so that SQLAlchemy doesn't try to roll it back
        raise DBAPIError.instance(None, None, failure, dbapi.Error) from failure
    return cursor


def is_away(failure: BaseException) -> bool:
    """Return True if the database itself failed, rather than the values that it was given.

    For example, it is unreachable, damaged, full or a read-only replica, or a privilege or a table
    is missing.
    """
    if isinstance(failure, DataError | IntegrityError | NotSupportedError):
        return False
    return isinstance(failure, DBAPIError | OSError)


def failure_text(failure: BaseException) -> str:
    """Return the message of the database or the system on one line, without the statement."""
    text = str(failure.orig if isinstance(failure, DBAPIError) else failure)
    return " ".join(text.split())[:300] or type(failure).__name__


class Pooler:
    """The knowledge of whether a pooler such as PgBouncer is in front of Postgres.

    In its transaction mode, a pooler gives each transaction any of its connections to the server.
    Then no setting and no prepared statement outlives a transaction: the timeouts are set in each
    transaction, and nothing is prepared. Without a pooler, both are faster.
    """

    def __init__(self) -> None:
        self.found = False

    def connect(self, dialect: Any, arguments: Any, options: dict[str, Any]) -> Any:
        """Return a connection of the driver. Raises the driver's errors."""
        if not self.found:
            try:
                connection = dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError as failure:
                # The driver gives no SQLSTATE for a connection that was refused.
                if "unsupported startup parameter" not in str(failure):
                    raise
            else:
                # Some poolers are configured to ignore the option.
                [timeout] = connection.execute("SHOW statement_timeout").fetchone()
                connection.rollback()
                if timeout == "30s":
                    return connection
                connection.close()
            self.found = True
        options = options | {"prepare_threshold": None}
        options.pop("options", None)
        return dialect.connect(*arguments, **options)

    def begin(self, connection: Connection) -> None:
        if self.found:
            directly(connection, TIMEOUTS)

    def learn(self, failure: BaseException) -> None:
        """Recognize a pooler by an error that only its mixing of connections explains."""
        cause = failure.orig if isinstance(failure, DBAPIError) else None
        if getattr(cause, "sqlstate", None) in LOST_STATEMENTS:
            self.found = True


def make_engine(
    url: str, *, writes: bool = False, create: bool = True, pooler: Pooler | None = None
) -> Engine:
    """Return an engine without a connection pool.

    Args:
        writes: whether transactions take SQLite's write lock when they begin.
        create: whether an engine that writes creates a SQLite file that is missing.
        pooler: what is known of a pooler in front of Postgres.
    """
    if not url.startswith("sqlite"):
        return make_postgres_engine(url, pooler or Pooler())
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    path = Path(engine.url.database or "")
    existing = f"{path.absolute().as_uri()}?mode=rw"
    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

    @event.listens_for(engine, "do_connect")
    def connect(*_: object) -> sqlite3.Connection:
        if writes and create and not path.exists():
            create_private(path)
        # Without gevent, NativeThread runs the work in the calling thread, one caller at a time.
        return sqlite3.connect(existing, uri=True, check_same_thread=False)

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # `start` below begins each transaction
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        # A client gets its response after the commit, so the commit must survive a power cut.
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        directly(connection, begin)

    return engine


def make_postgres_engine(url: str, pooler: Pooler) -> Engine:
    engine = create_engine(url, poolclass=NullPool, connect_args=POSTGRES, hide_parameters=True)

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: object, arguments: Any, options: dict[str, Any]) -> Any:
        return pooler.connect(dialect, arguments, options)

    event.listen(engine, "begin", pooler.begin)
    return engine
