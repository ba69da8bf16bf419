"""The ledger's tables and their migrations.

Each accepted call has one row in `requests`, whatever happens to it. `daily` is the roll-up of
settled rows by the UTC day on which the call started, updated in the transactions that settle them.
`refusals` counts the calls that were refused, which have no row. `group_daily` is the roll-up of
the calls of groups of keys, and `key_changes` is the audit log of the keys.

- Amounts of money are integer nano-dollars.
- Times are microseconds since 1970 UTC, and durations are microseconds.
- Ids sort by the time at which they were made.
- A change to a table is a new entry of MIGRATIONS. A released entry never changes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
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
    Column("reserved_nano", BigInteger, nullable=False),  # part of the key's budget; 0 once settled
    Column("ended_us", BigInteger),  # NULL while the row is open
    Column("status", Integer),
    Column("end_reason", Text),
    Column("error_code", Text),
    # While a row is open, the tokens and the cost are estimates, which stay if its process dies.
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("usage_source", Text, nullable=False),
    Column("cost_nano", BigInteger),  # NULL if the price is unknown
    Column("attempts", Integer, nullable=False),
    Column("duration_us", BigInteger),
    Column("latency_us", BigInteger),  # the provider's part of the duration
    Column("first_event_us", BigInteger),
    Column("tries", Text),  # since version 2: the attempts as JSON, if there was more than one
    Column("group_name", Text),  # since version 4: the group of the key at the opening, if any
    sqlite_with_rowid=False,
)
Index("requests_of_key", requests.c.key_id, requests.c.id)
OPEN = "ended_us IS NULL"
OPEN_OF_GROUP = "ended_us IS NULL AND group_name IS NOT NULL"
PARTIAL = (
    # Without ended_us, SQLite may use requests_of_key instead.
    (Index("requests_open", requests.c.ended_us, requests.c.key_id), OPEN),
    (Index("requests_open_of_group", requests.c.group_name), OPEN_OF_GROUP),
)
"""The partial indexes, each with the condition of its rows."""

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
    Column("unpriced", BigInteger, nullable=False),  # the number of requests of unknown cost
    sqlite_with_rowid=False,
)
Index("daily_by_day", daily.c.day)

refusals = Table(  # since version 3: the calls that had no row, because they were refused
    "refusals",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("calls", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

group_daily = Table(  # since version 4: a roll-up of its own, because workers of the release
    "group_daily",  # before, which don't know groups, may still settle rows into `daily`
    metadata,
    Column("group_name", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("unpriced", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

key_changes = Table(  # since version 4: see ledger/key_changes.py
    "key_changes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("via", Text, nullable=False),
    Column("actor_id", Text),  # the id of the admin key; NULL for a command
    Column("actor_name", Text, nullable=False),
    Column("request_id", Text),
    Column("action", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("key_name", Text, nullable=False),
    Column("changes", Text, nullable=False),  # JSON; never a secret or a hash
    sqlite_with_rowid=False,
)
Index("key_changes_of_key", key_changes.c.key_id, key_changes.c.id)

owners = Table(
    "owners",  # only used on Postgres: processes that may have open rows, and their heartbeats
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


def add_refusals(connection: Connection) -> None:
    columns = "key_id TEXT NOT NULL, day TEXT NOT NULL, reason TEXT NOT NULL"
    more = "calls BIGINT NOT NULL, PRIMARY KEY (key_id, day, reason)"
    end = " WITHOUT ROWID" if connection.dialect.name == "sqlite" else ""
    connection.exec_driver_sql(f"CREATE TABLE refusals ({columns}, {more}){end}")


def add_groups_and_key_changes(connection: Connection) -> None:
    end = " WITHOUT ROWID" if connection.dialect.name == "sqlite" else ""
    counts = ("requests", "input_tokens", "output_tokens", "cost_nano", "unpriced")
    sums = ", ".join(f"{name} BIGINT NOT NULL" for name in counts)
    rolled_up = "group_name TEXT NOT NULL, day TEXT NOT NULL"
    changed = (
        "id TEXT NOT NULL PRIMARY KEY, at_us BIGINT NOT NULL, via TEXT NOT NULL, actor_id TEXT, "
        "actor_name TEXT NOT NULL, request_id TEXT, action TEXT NOT NULL, key_id TEXT NOT NULL, "
        "key_name TEXT NOT NULL, changes TEXT NOT NULL"
    )
    for statement in (
        "ALTER TABLE requests ADD COLUMN group_name TEXT",
        f"CREATE INDEX requests_open_of_group ON requests (group_name) WHERE {OPEN_OF_GROUP}",
        f"CREATE TABLE group_daily ({rolled_up}, {sums}, PRIMARY KEY (group_name, day)){end}",
        f"CREATE TABLE key_changes ({changed}){end}",
        "CREATE INDEX key_changes_of_key ON key_changes (key_id, id)",
    ):
        connection.exec_driver_sql(statement)


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    add_tries,
    add_refusals,
    add_groups_and_key_changes,
)
"""The steps from version 1 to 2, from 2 to 3, and so on."""

VERSION = 1 + len(MIGRATIONS)


def new_id() -> str:
    """Return a row's id: the time as 14 hexadecimal digits, then 16 random ones."""
    return first_id(now_us()) + os.urandom(8).hex()


def first_id(moment_us: int) -> str:
    """Return a text that sorts before the ids made at that time, and after all earlier ids."""
    return f"{moment_us:014x}"


def now_us() -> int:
    return time.time_ns() // 1000


def as_utc(moment_us: int) -> str:
    """Return a time in UTC, such as 2026-01-31T12:00:00.123Z."""
    found = datetime.fromtimestamp(moment_us / 1_000_000, UTC).replace(tzinfo=None)
    return found.isoformat(timespec="milliseconds") + "Z"


def day_of(moment_us: int) -> str:
    """Return the UTC day of a time, such as 2026-01-31."""
    return _day(moment_us // DAY_US)


@lru_cache(maxsize=64)
def _day(days: int) -> str:
    return (EPOCH + timedelta(days)).isoformat()


def create(connection: Connection) -> None:
    """Create the tables that don't exist.

    The conditions of partial indexes are set here, because SQLAlchemy loads each dialect that is
    named, and Postgres's takes 2 MB.
    """
    for index, condition in PARTIAL:
        index.dialect_options[connection.dialect.name]["where"] = text(condition)
    metadata.create_all(connection)


def migrate(connection: Connection) -> None:
    """Create the tables, or migrate those of an older version, in the current transaction.

    Raises ConfigError if the tables are newer than this program.
    """
    if connection.dialect.name == "postgresql":  # several workers may start at once
        for limit in ("statement_timeout", "lock_timeout"):  # a migration may take longer
            connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
        connection.execute(select(text(f"pg_advisory_xact_lock({MIGRATION_LOCK})")))
    if not inspect(connection).has_table(facts.name):
        create(connection)
        connection.execute(facts.insert().values(name="schema", value=str(VERSION)))
        return
    version = int(
        connection.execute(select(facts.c.value).where(facts.c.name == "schema")).scalar_one()
    )
    if version > VERSION:
        raise ConfigError(
            f"the ledger's tables are of version {version}, but this Sluice only knows versions "
            f"up to {VERSION}: run a newer Sluice, or restore a backup from before the upgrade"
        )
    for step in MIGRATIONS[version - 1 :]:
        step(connection)
    if version < VERSION:
        connection.execute(update(facts).where(facts.c.name == "schema").values(value=str(VERSION)))
