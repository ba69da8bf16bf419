"""The ledger, which records a row for each accepted call, whatever happens to the call.

- A call's row is opened before its provider is called and settled before the last byte of the
  response is sent. The row is on disk when `open` and `settle` return.
- A single writer, in a native thread, commits all pending steps in one transaction (group commit),
  together with the daily roll-up and the budget check.
- If a group can't be committed, its steps are committed one by one, so that an invalid row doesn't
  affect the others.
- While the database is unavailable, no calls are accepted (unless the ledger isn't required), and
  the settlements of calls that end are kept in memory until the database is available again.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from concurrency.native import BriefLock
from concurrency.threads import BackgroundThread
from config import ConfigError
from errors import Unavailable
from ledger import schema
from ledger.database import DatabaseAway, Link
from ledger.database_file import LOOK_S, DatabaseFile
from ledger.entries import Claim, Entry, LedgerStep, Opening, Settlement, Withdrawal
from ledger.owners import Heartbeat, LockFile, Presence
from ledger.refusals import RefusedCalls, ledger_away
from ledger.writing import interrupt, owners_of_open, write

log = logging.getLogger("sluice.ledger")
T = TypeVar("T")

WAIT_S = 10.0
"""Seconds that a call waits for its group's commit; longer than SQLite waits for a lock."""
TEND_S = 15.0
"""Seconds between two checks for dead processes."""
RETRY_S = 1.0
"""Seconds between two attempts to reach a database that is unavailable."""
FEW_CALLS = 8
GATHER_S, MOST_GATHER_S = 0.0002, 0.016
"""Seconds that a group waits for more steps: GATHER_S for each open call, MOST_GATHER_S at most.
With up to FEW_CALLS open calls it doesn't wait. A transaction costs much more than a row, see
docs/decisions/0007-the-ledger.md."""


class Group:
    """Steps that are committed together, and tasks that run after the commit."""

    def __init__(self) -> None:
        self.steps: list[LedgerStep] = []
        self.tasks: list[Callable[[], None]] = []
        self.done = threading.Event()
        self._watched = self._late = False

    def wait(self) -> bool:
        """Wait for the commit, and return False if it takes longer than WAIT_S.

        Only the first waiter has a timeout and wakes the others: under gevent, a timer for each
        would double the cost of waiting.
        """
        if self._watched:
            self.done.wait()
        else:
            self._watched = True
            if not self.done.wait(WAIT_S):
                self._late = True
                self.done.set()
        return not self._late


class Ledger:
    """The ledger of one process. It connects on first use, or when `start` is called."""

    def __init__(
        self,
        url: str,
        *,
        required: bool = True,
        failed: Callable[[], None] = lambda: None,
        unrecorded: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare the ledger without connecting to its database.

        Args:
            url: SQLAlchemy's URL of the database.
            required: whether a call is refused if its row can't be written.
            failed: callback for each commit that failed.
            unrecorded: callback for each call that is served without a row.
        """
        self.path = Path(make_url(url).database or "") if url.startswith("sqlite") else None
        self._required = required
        self._failed, self._unrecorded = failed, unrecorded
        self._owner = secrets.token_hex(16)
        lock_file = LockFile(self.path, self._owner) if self.path else None
        self._presence: Presence = lock_file or Heartbeat(self._owner)
        self._file = DatabaseFile(lock_file.database, lock_file.in_use) if lock_file else None
        self._writer = Link(url, writes=True, connected=self._connected, file=self._file)
        self._reader = Link(url, file=self._file)
        self._lock = BriefLock()
        self._wanted = threading.Event()
        self._next = Group()
        self._late: list[LedgerStep] = []
        """Steps that could not be committed and will be tried again."""
        self._refused = RefusedCalls(self._writer)
        self._pump = BackgroundThread(self._run, "ledger")
        self._trouble = ""  # what is wrong with the database; empty: nothing is known to be
        self._under_way = 0
        """The number of open calls. It is updated without a lock and may be slightly wrong, but it
        only decides how long a group waits for more steps."""
        self._look_at = self._tend_at = 0.0
        self._ready = False
        self._closing = False
        self._ended = False

    @property
    def available(self) -> bool:
        """True unless the ledger is required and its database is unavailable."""
        return not (self._trouble and self._required)

    @property
    def queue(self) -> int:
        """The number of steps that wait for their commit."""
        return len(self._next.steps) + len(self._late)

    def never_create(self) -> None:
        """Use the database only if it exists. A SQLite file that is missing stays missing."""
        if self._file is not None:
            self._file.may_create = False

    def is_shared(self) -> bool:
        """Return True if another process is known to use the ledger's SQLite file."""
        return isinstance(self._presence, LockFile) and self._presence.in_use()

    def start(self) -> None:
        """Connect to the database, migrate it and close the rows of dead processes.

        Raises ConfigError if that fails.
        """
        try:
            self.write(lambda _: None)
        except Unavailable:
            where = f" ({self.path})" if self.path else ""
            raise ConfigError(f"the ledger can't be opened{where}: {self._trouble}") from None

    def open(self, entry: Entry, claim: Claim | None = None) -> bool:
        """Open a call's row, which is on disk on return.

        Args:
            claim: the part of a budget to reserve; None if the key has no budget.

        Returns:
            False if the row can't be written and the call is to be served without it.

        Raises:
            InsufficientCredits: the budget has no room for the claim.
            Unavailable: the row can't be written, and the ledger is required or there is a claim.
        """
        if not self._trouble:
            opening = Opening(entry, claim)
            if not self._submit(opening).wait():
                self._note("no response")  # from now on, calls don't wait until it responds
                self._submit(Withdrawal(entry.id))
            elif opening.refusal is not None:
                raise opening.refusal
            elif not opening.failed:
                self._under_way += 1
                return True
        if self._required or claim is not None:
            raise ledger_away()
        self._unrecorded()
        return False

    def settle(self, settlement: Settlement) -> None:
        """Settle a call's row, which is on disk on return.

        While the database is unavailable, the settlement is kept in memory and written later.
        """
        self._under_way -= 1
        group = self._submit(settlement)
        if not self._trouble:
            group.wait()

    def refused(self, key_id: str, reason: str) -> None:
        """Count a call that was refused. The count is written soon; see ledger/refusals.py."""
        self._refused.add(key_id, reason)
        self._pump.start()

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query and return its result. Raises Unavailable if it fails."""
        if not self._ready:
            self.write(lambda _: None)  # creates the tables
            self._ready = True
        return self.peek(query)

    def peek(self, query: Callable[[Connection], T]) -> T:
        """Run a query on tables of any version, which are neither created nor migrated.

        Raises Unavailable if it fails.
        """
        try:
            return self._reader.run(query)
        except (DatabaseAway, SQLAlchemyError) as failure:
            log.error("a query of the ledger failed: %s", failure)
            raise Unavailable("The ledger can't be read at the moment. Try again.") from None

    def write(self, change: Callable[[Connection], T], *, wait: bool = True) -> T:
        """Run a change in a separate transaction and return its result.

        Args:
            wait: False to fail at once while the database is known to be unavailable.

        Raises:
            Unavailable: the database is unavailable.
            Exception: whatever the change raises.
        """
        results: list[T] = []
        failures: list[Exception] = []
        finished = threading.Event()  # a waiter that times out sets the group's event early

        def task() -> None:
            try:
                results.append(self._writer.run(change))
            except Exception as failure:  # noqa: BLE001 - raised again in the caller's thread
                failures.append(failure)
            finished.set()

        if wait or not self._trouble:
            self._submit(task=task)
            finished.wait()
        if failures and not isinstance(failures[0], DatabaseAway):
            raise failures[0]
        if not results:
            raise Unavailable("The ledger can't be written to at the moment. Try again.")
        return results[0]

    def close(self, patience: float = 5.0) -> None:
        """Commit the pending steps, and record that this process has no open rows.

        Args:
            patience: seconds to wait for the commit.
        """
        if self._pump.started:
            self._closing = True
            self._wanted.set()
            self._pump.join(patience)
        else:
            self._reader.close()

    def _submit(self, *steps: LedgerStep, task: Callable[[], None] | None = None) -> Group:
        self._pump.start()
        with self._lock:
            if self._ended:
                raise Unavailable("The server is shutting down. Try again.")
            group = self._next
            group.steps += steps
            if task is not None:
                group.tasks.append(task)
        self._wanted.set()
        return group

    def _run(self) -> None:
        while not self._closing:
            if self._trouble:
                time.sleep(RETRY_S)
            elif self._wanted.wait(min(TEND_S, LOOK_S)) and self._under_way > FEW_CALLS:
                time.sleep(min(GATHER_S * self._under_way, MOST_GATHER_S))
            self._wanted.clear()
            self._turn()
        with self._lock:
            self._ended = True
        self._turn()
        if self._late:
            log.error(
                "the ledger's database is unavailable: %d steps were not written", len(self._late)
            )
        try:
            self._writer.run(self._presence.leave)
        except DatabaseAway:
            self._presence.leave(None)
        self._writer.close()
        self._reader.close()
        if self._file is not None:
            self._file.close()

    def _turn(self) -> None:
        with self._lock:
            group, self._next = self._next, Group()
        steps, self._late = [*self._late, *group.steps], []
        try:
            if steps:
                self._commit(steps)
            if time.monotonic() >= self._look_at:
                self._check()
            if time.monotonic() >= self._tend_at:
                self._tend()
        except DatabaseAway as failure:
            self._keep(steps)
            self._note(str(failure))
            if self._file is not None:  # its other connection may have the wrong file open too
                self._reader.close()
        else:
            self._note("")
        for task in group.tasks:
            task()
        group.done.set()
        self._refused.flush(at_once=self._ended, paused=bool(self._trouble))

    def _check(self) -> None:
        """Check that SQLite's files are in their place. Raises DatabaseAway."""
        if self._file is not None and not self._trouble:
            self._writer.check()
            with contextlib.suppress(OSError):
                self._presence.renew()
        self._look_at = time.monotonic() + LOOK_S / 2

    def _commit(self, steps: list[LedgerStep]) -> None:
        """Commit steps together, or one by one if that fails. Raises DatabaseAway."""
        try:
            self._writer.run(lambda connection: write(connection, self._owner, steps))
        except DatabaseAway:
            raise
        except Exception:
            if len(steps) > 1:
                for step in steps:
                    self._commit([step])
                return
            log.exception("can't write a row of the ledger; the row is lost")
            self._failed()
            if isinstance(steps[0], Opening):
                steps[0].failed = True

    def _keep(self, steps: list[LedgerStep]) -> None:
        """Keep steps to be committed later, and mark openings as failed.

        None of these steps is known to be written. The call of an opening is refused, or served
        without a row, so the opening is replaced with the withdrawal of its row.
        """
        self._failed()
        for step in steps:
            if isinstance(step, Opening):
                step.failed = True
                step = Withdrawal(step.entry.id)
            self._late.append(step)

    def _note(self, trouble: str) -> None:
        if trouble and not self._trouble:
            log.error("the ledger's database is unavailable: %s", trouble)
        elif self._trouble and not trouble:
            log.warning("the ledger's database is available again")
        self._trouble = trouble
        if trouble:
            self._tend_at = 0.0  # so that a turn without steps still tries to reach the database

    def _connected(self, connection: Connection) -> None:
        schema.migrate(connection)
        self._presence.begin(connection)

    def _tend(self) -> None:
        """Send a heartbeat and close the open rows of dead processes. Raises DatabaseAway."""
        closed = 0
        try:
            closed = self._writer.run(self._look_around)
        except DatabaseAway:
            raise
        except Exception:  # an invalid row must not end this thread
            log.exception("can't close the rows of dead processes")
            self._failed()
        if closed:  # logged here, because the native thread must not take a logging lock
            log.warning("closed %d calls of a dead process as interrupted", closed)
        self._tend_at = time.monotonic() + TEND_S

    def _look_around(self, connection: Connection) -> int:
        self._presence.beat(connection)
        others = (owner for owner in owners_of_open(connection) if owner != self._owner)
        dead = [owner for owner in others if self._presence.is_dead(connection, owner)]
        return sum(interrupt(connection, owner) for owner in dead)
