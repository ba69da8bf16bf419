"""The ledger's tables, and how a database comes to have them.

A request is one row of `requests`, whatever happens to it; `daily` is their roll-up by UTC day of
start, kept in the same transactions. Rules that hold here: money is integer nano-dollars, a moment
is microseconds since 1970 UTC, a duration microseconds. An id sorts by the moment it was made. A
change of a table is a new entry of MIGRATIONS; an entry that was released never changes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import date, timedelta
from functools import lru_cache

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    inspect,
    select,
    text,
    update,
)

from config import ConfigError

MIGRATION_LOCK = 0x51_1CE

EPOCH = date(1970, 1, 1)
DAY_US = 86_400_000_000

metadata = MetaData()

requests = Table(
    "requests",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("stream_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("streamed", Boolean, nullable=False),
    Column("byok", Boolean, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("reserved_nano", BigInteger, nullable=False),  # of the key's budget, while it is open
    Column("ended_us", BigInteger),  # NULL: open
    Column("status", Integer),
    Column("end_reason", Text),
    Column("error_code", Text),
    # While a row is open: the estimate that stays if its process dies.
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("usage_source", Text, nullable=False),
    Column("cost_nano", BigInteger),  # NULL: no price was known
    Column("attempts", Integer, nullable=False),
    Column("duration_us", BigInteger),
    Column("latency_us", BigInteger),  # the provider's part
    Column("first_event_us", BigInteger),
    Column("tries", Text),  # JSON of the attempts, where there was more than one; since version 2
    sqlite_with_rowid=False,
)
Index("requests_of_key", requests.c.key_id, requests.c.id)
Index(
    "requests_open",
    requests.c.ended_us,  # or SQLite may take the other one for it
    requests.c.key_id,
    sqlite_where=requests.c.ended_us.is_(None),
    postgresql_where=requests.c.ended_us.is_(None),
)

daily = Table(
    "daily",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("provider", Text, primary_key=True),
    Column("model", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("unpriced", BigInteger, nullable=False),  # requests whose cost is not known
    sqlite_with_rowid=False,
)
Index("daily_by_day", daily.c.day)

owners = Table(
    "owners",  # on Postgres: the processes that may have open rows; each counts on while it lives
    metadata,
    Column("id", Text, primary_key=True),
    Column("beats", BigInteger, nullable=False),
)

facts = Table(
    "facts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)


def add_tries(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE requests ADD COLUMN tries TEXT")


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (add_tries,)
"""What turns version 1 into 2, 2 into 3, and so on."""

VERSION = 1 + len(MIGRATIONS)


def new_id() -> str:
    """A row's id: fourteen hexadecimal digits of the moment in microseconds, sixteen of chance."""
    return first_id(now_us()) + secrets.token_hex(8)


def first_id(moment_us: int) -> str:
    """What sorts before the ids of that moment and after those of the moment before."""
    return f"{moment_us:014x}"


def now_us() -> int:
    return time.time_ns() // 1000


def day_of(moment_us: int) -> str:
    """The UTC day of a moment: 2026-01-31."""
    return _day(moment_us // DAY_US)


@lru_cache(maxsize=64)
def _day(days: int) -> str:
    return (EPOCH + timedelta(days)).isoformat()


def migrate(connection: Connection) -> None:
    """Within a transaction: make the tables, or bring those of an older version up to date.
    Raises ConfigError when they are newer than this program."""
    if connection.dialect.name == "postgresql":  # several workers may start at once
        for limit in ("statement_timeout", "lock_timeout"):  # they are for calls
            connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
        connection.execute(select(text(f"pg_advisory_xact_lock({MIGRATION_LOCK})")))
    if not inspect(connection).has_table(facts.name):
        metadata.create_all(connection)
        connection.execute(facts.insert().values(name="schema", value=str(VERSION)))
        return
    version = int(
        connection.execute(select(facts.c.value).where(facts.c.name == "schema")).scalar_one()
    )
    if version > VERSION:
        raise ConfigError(
            f"the ledger's tables are version {version} and this Sluice knows {VERSION}: "
            "start the newer one, or restore a backup from before the upgrade"
        )
    for step in MIGRATIONS[version - 1 :]:
        step(connection)
    if version < VERSION:
        connection.execute(update(facts).where(facts.c.name == "schema").values(value=str(VERSION)))
