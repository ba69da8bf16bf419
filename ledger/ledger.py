"""One row for each accepted request, whatever happens to it.

A call's row is opened before its provider is called and settled before its last byte is sent, and
is on disk when `open` and `settle` return. One writer, in a native thread, commits what has
gathered meanwhile as one transaction (group commit), the daily roll-up and the budget check with
it. Rules that hold here: what a group can't commit is committed step by step, so that one odd row
spoils no other; while the database is away no call is accepted, and what ends is kept until it is
back.
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
from ledger.entries import Claim, Entry, LedgerStep, Opening, Settlement, Withdrawal
from ledger.owners import Heartbeat, LockFile, Presence
from ledger.writing import interrupt, owners_of_open, write

log = logging.getLogger("sluice.ledger")
T = TypeVar("T")

WAIT_S = 10.0
"""How long a call waits for its group; above SQLite's own wait for another process."""
TEND_S = 15.0
RETRY_S = 1.0
FEW_CALLS = 8
GATHER_S, MOST_GATHER_S = 0.0002, 0.016
"""With more than a few calls under way a group waits for others, so long for each of them: a
transaction costs as much as the rows of a dozen calls."""


class Group:
    """Steps that are committed together, and tasks that follow them."""

    def __init__(self) -> None:
        self.steps: list[LedgerStep] = []
        self.tasks: list[Callable[[], None]] = []
        self.done = threading.Event()
        self._watched = self._late = False

    def wait(self) -> bool:
        """Whether it was done within WAIT_S. The first who waits looks at the clock for all: a
        timer for each costs as much as the rest of the wait."""
        if self._watched:
            self.done.wait()
        else:
            self._watched = True
            if not self.done.wait(WAIT_S):
                self._late = True
                self.done.set()
        return not self._late


class Ledger:
    """The ledger of one process. It connects at the first use, or when `start` is called."""

    def __init__(
        self,
        url: str,
        *,
        required: bool = True,
        failed: Callable[[], None] = lambda: None,
        unrecorded: Callable[[], None] = lambda: None,
    ) -> None:
        """required: whether a call without a row is refused. failed, unrecorded: called for each
        commit that failed, and for each call that goes on without a row."""
        self.path = Path(make_url(url).database or "") if url.startswith("sqlite") else None
        self._required = required
        self._failed, self._unrecorded = failed, unrecorded
        self._owner = secrets.token_hex(16)
        self._presence: Presence = (
            LockFile(self.path, self._owner) if self.path else Heartbeat(self._owner)
        )
        self._writer = Link(url, writes=True, connected=self._connected)
        self._reader = Link(url)
        self._lock = BriefLock()
        self._wanted = threading.Event()
        self._next = Group()
        self._late: list[LedgerStep] = []
        """What could not be committed and has to be."""
        self._pump = BackgroundThread(self._run, "ledger")
        self._trouble = ""
        self._under_way = 0  # about: it only says whether to wait for others pays
        self._tend_at = 0.0
        self._ready = False
        self._closing = False
        self._ended = False

    @property
    def available(self) -> bool:
        """Whether calls are accepted, as far as the ledger is concerned."""
        return not (self._trouble and self._required)

    @property
    def queue(self) -> int:
        """How many steps wait for their commit."""
        return len(self._next.steps) + len(self._late)

    def start(self) -> None:
        """Connect, migrate, close the rows of the dead. Raises ConfigError."""
        try:
            self.write(lambda _: None)
        except Unavailable:
            where = f" ({self.path})" if self.path else ""
            raise ConfigError(f"the ledger can't be opened{where}: {self._trouble}") from None

    def open(self, entry: Entry, claim: Claim | None = None) -> bool:
        """Open a call's row; on return it is on disk. False: the call goes on without a row.

        Raises InsufficientCredits when the budget has no room for the claim; Unavailable when the
        ledger is away and is required, or the budget needs it.
        """
        if not self._trouble:
            opening = Opening(entry, claim)
            if not self._submit(opening).wait():
                self._note("it has not answered")  # until it does, nobody else waits in vain
                self._submit(Withdrawal(entry.id))
            elif opening.refusal is not None:
                raise opening.refusal
            elif not opening.failed:
                self._under_way += 1
                return True
        if self._required or claim is not None:
            raise Unavailable("The ledger can't be written now, so no call is accepted. Try again.")
        self._unrecorded()
        return False

    def settle(self, settlement: Settlement) -> None:
        """Close a call's row; on return it is on disk, or the ledger is away and it is kept."""
        self._under_way -= 1
        group = self._submit(settlement)
        if not self._trouble:
            group.wait()

    def read(self, query: Callable[[Connection], T]) -> T:
        """What a query gives. Raises Unavailable."""
        if not self._ready:
            self.write(lambda _: None)  # so that there are tables
            self._ready = True
        try:
            return self._reader.run(query)
        except (DatabaseAway, SQLAlchemyError) as failure:
            log.error("a query of the ledger failed: %s", failure)
            raise Unavailable("The ledger can't be read now. Try again.") from None

    def write(self, change: Callable[[Connection], T]) -> T:
        """What a change gives that is a transaction of its own. Raises Unavailable."""
        results: list[T] = []
        failures: list[Exception] = []
        over = threading.Event()  # its group's may come early

        def task() -> None:
            try:
                results.append(self._writer.run(change))
            except Exception as failure:  # noqa: BLE001 - raised again, where it is waited for
                failures.append(failure)
            over.set()

        self._submit(task=task)
        over.wait()
        if failures and not isinstance(failures[0], DatabaseAway):
            raise failures[0]
        if not results:
            raise Unavailable("The ledger can't be written now. Try again.")
        return results[0]

    def close(self, patience: float = 5.0) -> None:
        """Commit what waits, and say that this process has no open row."""
        if self._pump.started:
            self._closing = True
            self._wanted.set()
            self._pump.join(patience)

    def _submit(self, *steps: LedgerStep, task: Callable[[], None] | None = None) -> Group:
        self._pump.start()
        with self._lock:
            if self._ended:
                raise Unavailable("This process is about to end. Try again.")
            group = self._next
            group.steps += steps
            if task is not None:
                group.tasks.append(task)
        self._wanted.set()
        return group

    def _run(self) -> None:
        """The pump: one group after another."""
        while not self._closing:
            if self._trouble:
                time.sleep(RETRY_S)
            elif self._wanted.wait(TEND_S) and self._under_way > FEW_CALLS:
                time.sleep(min(GATHER_S * self._under_way, MOST_GATHER_S))
            self._wanted.clear()
            self._turn()
        with self._lock:
            self._ended = True
        self._turn()
        if self._late:
            log.error("the ledger is away: %d steps are not written", len(self._late))
        with contextlib.suppress(DatabaseAway):
            self._writer.run(self._presence.leave)
        self._writer.close()
        self._reader.close()

    def _turn(self) -> None:
        with self._lock:
            group, self._next = self._next, Group()
        steps, self._late = [*self._late, *group.steps], []
        try:
            if steps:
                self._commit(steps)
            if time.monotonic() >= self._tend_at:
                self._tend()
        except DatabaseAway as failure:
            self._keep(steps)
            self._note(str(failure))
        else:
            self._note("")
        for task in group.tasks:
            task()
        group.done.set()

    def _commit(self, steps: list[LedgerStep]) -> None:
        """Raises DatabaseAway."""
        try:
            self._writer.run(lambda connection: write(connection, self._owner, steps))
        except DatabaseAway:
            raise
        except Exception:
            if len(steps) > 1:
                for step in steps:
                    self._commit([step])
                return
            log.exception("a row of the ledger can't be written, and is lost")
            self._failed()
            if isinstance(steps[0], Opening):
                steps[0].failed = True

    def _keep(self, steps: list[LedgerStep]) -> None:
        """Nothing of these is known to be written. Their calls are refused, or have ended."""
        self._failed()
        for step in steps:
            if isinstance(step, Opening):
                step.failed = True
                step = Withdrawal(step.entry.id)
            self._late.append(step)

    def _note(self, trouble: str) -> None:
        if trouble and not self._trouble:
            log.error("the ledger is away: %s", trouble)
        elif self._trouble and not trouble:
            log.warning("the ledger is back")
        self._trouble = trouble
        if trouble:
            self._tend_at = 0.0  # what asks for nothing still asks whether it is back

    def _connected(self, connection: Connection) -> None:
        schema.migrate(connection)
        self._presence.begin(connection)

    def _tend(self) -> None:
        """Say that this process is alive, and close the open rows of those that are not. Raises
        DatabaseAway."""
        closed = 0
        try:
            closed = self._writer.run(self._look_around)
        except DatabaseAway:
            raise
        except Exception:  # one odd row must not end the pump
            log.exception("the rows of processes that have ended can't be closed")
            self._failed()
        if closed:  # said here: a log's lock is not for the native thread
            log.warning("%d calls of a process that has ended are closed as interrupted", closed)
        self._tend_at = time.monotonic() + TEND_S

    def _look_around(self, connection: Connection) -> int:
        self._presence.beat(connection)
        others = (owner for owner in owners_of_open(connection) if owner != self._owner)
        dead = [owner for owner in others if self._presence.is_dead(connection, owner)]
        return sum(interrupt(connection, owner) for owner in dead)
