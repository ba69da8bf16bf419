"""Counts of refused calls: by key, UTC day and reason.

- A refused call has no row in `requests`. It costs an append to a queue, and no write: the counts
  are written together, every FLUSH_S seconds at most and at shutdown, so a client that is refused a
  thousand times a second adds nothing but numbers. A process that is killed loses the counts of its
  last seconds.
- The counts are statistics, not books: if a connection breaks during a commit, they may be written
  twice.
- While the database is unavailable, the counts are kept in memory: one for each key, day and
  reason.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from sqlalchemy import BigInteger, Connection, Select, cast, func, select

from errors import (
    InsufficientCredits,
    ModelForbidden,
    RateLimited,
    SluiceError,
    StreamExists,
    Unavailable,
)
from ledger.database import DatabaseAway, Link
from ledger.schema import day_of, now_us, refusals
from ledger.statements import Statement, execute, inserter
from ledger.usage import Scope, of_days, of_key

log = logging.getLogger("sluice.ledger")

Place: TypeAlias = tuple[str, str, str]
"""A key's id, a day and a reason."""

FLUSH_S: Final = 5.0
"""Seconds between two writes of the counts."""
OF_GROUP: Final = ":group"
REASONS: Final = (
    f"{InsufficientCredits.code}:budget",
    f"{InsufficientCredits.code}:budget{OF_GROUP}",
    ModelForbidden.code,
    f"{RateLimited.code}:concurrency",
    f"{RateLimited.code}:requests",
    f"{RateLimited.code}:requests{OF_GROUP}",
    f"{RateLimited.code}:tokens",
    f"{RateLimited.code}:tokens{OF_GROUP}",
    StreamExists.code,
    f"{Unavailable.code}:capacity",
    f"{Unavailable.code}:ledger",
    f"{Unavailable.code}:limits",
)
"""The reasons that are counted. A reason is an error's code, a colon and the limit that was reached
or the part that the server lacked, and OF_GROUP if the limit is that of the key's group."""


def reason_of(error: SluiceError) -> str | None:
    """Return the reason for which a call was refused, or None if that isn't counted."""
    details = error.details or {}
    lacks = error.lacks if isinstance(error, Unavailable) else ""
    limit = details.get("limit_type") or lacks
    reason = f"{error.code}:{limit}" if limit else error.code
    reason += OF_GROUP if "group" in details else ""
    return reason if reason in REASONS else None


def ledger_away() -> Unavailable:
    """Return the error for a call that is refused because the ledger can't record it."""
    return Unavailable(
        "The ledger is unavailable, so no calls are accepted. Try again.", lacks="ledger"
    )


class RefusedCalls:
    """The counts of one process that aren't written yet.

    Any thread may add to them. Only the ledger's thread flushes them.
    """

    def __init__(self, writer: Link) -> None:
        """Make empty counts. `writer` is the link that writes them."""
        self._writer = writer
        self._new: deque[Place] = deque()
        self._counts: Counter[Place] = Counter()
        self._due = 0.0
        """The monotonic time of the next flush."""

    def add(self, key_id: str, reason: str) -> None:
        self._new.append((key_id, day_of(now_us()), reason))

    def flush(self, *, at_once: bool, paused: bool) -> None:
        """Write the counts if it is time, or keep them. Raises nothing.

        Args:
            at_once: write now, because the process ends.
            paused: write nothing, because the database is unavailable.
        """
        for _ in range(len(self._new)):  # what is added meanwhile waits for the next flush
            self._counts[self._new.popleft()] += 1
        if paused or not (at_once or time.monotonic() >= self._due):
            return
        self._due = time.monotonic() + FLUSH_S
        if not self._counts:
            return
        counts = self._counts
        try:
            self._writer.run(lambda connection: write(connection, counts))
        except DatabaseAway:  # the ledger's next turn notices it, and logs it
            return
        except Exception:
            log.exception("can't write the counts of refused calls; they are lost")
        self._counts = Counter()


def addition(dialect: str) -> Any:
    """Return the statement that adds to the counts, or inserts them."""
    insert = inserter(dialect)(refusals)
    more = {"calls": refusals.c.calls + insert.excluded.calls}
    return insert.on_conflict_do_update(index_elements=list(refusals.primary_key), set_=more)


ADDITION = Statement(addition, (*(column.name for column in refusals.primary_key), "calls"))


def write(connection: Connection, counts: Mapping[Place, int]) -> None:
    """Add counts in the current transaction."""
    # Sorted, because two processes that update rows in different orders could deadlock.
    execute(connection, ADDITION, [(*place, count) for place, count in sorted(counts.items())])


def refused(connection: Connection, scope: Scope) -> dict[tuple[str, str], int]:
    """Return the refused calls of a scope by key and reason, most of them first."""
    found = connection.execute(refusals_of(scope))
    rows = sorted(found, key=lambda one: (-one[2], one[0], one[1]))
    return {(key_id, reason): count for key_id, reason, count in rows}


def refusals_of(scope: Scope) -> Select[*tuple[Any, ...]]:
    """Return the query for the refused calls of a scope: key_id, reason, calls."""
    row = refusals.c
    calls = cast(func.sum(row.calls), BigInteger).label("calls")  # as in ledger/usage.py
    found = select(row.key_id, row.reason, calls).group_by(row.key_id, row.reason)
    return found.where(*of_key(row.key_id, scope), *of_days(row.day, scope))
