"""Which processes are alive, so that only a dead one's open rows are closed: a reload starts the
new worker before the old one has ended.

On SQLite a process holds a lock on a file of its own beside the database, which the system lets go
when it dies. On Postgres, which others may reach from other machines, it changes a row of its own
every few seconds, and who has seen that row unchanged for DEAD_AFTER_S takes it for dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, delete, select, update

from ledger.schema import now_us, owners

DEAD_AFTER_S = 60.0
OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Presence(Protocol):
    """How this process says that it is alive, and learns who else is. Used by one thread."""

    def begin(self, connection: Connection) -> None:
        """Say so, before the first row is opened; again on each new connection."""

    def beat(self, connection: Connection) -> None:
        """Go on saying so."""

    def is_dead(self, connection: Connection, owner: str) -> bool:
        """Whether another process is known to have ended."""

    def leave(self, connection: Connection) -> None:
        """This process has no open row and is about to end."""


class LockFile:
    """A locked file for each process, in a folder beside the database file."""

    def __init__(self, database: Path, me: str) -> None:
        self._folder = database.with_name(database.name + ".owners")
        self._me = me
        self._held: int | None = None

    def begin(self, _connection: Connection) -> None:
        if self._held is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._sweep()
            # Under its own name only when it is locked: else it could be taken for a dead one's.
            early = self._folder / f".{self._me}"
            held = os.open(early, OPEN | os.O_CREAT, 0o600)
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
                early.rename(self._folder / self._me)
            except OSError:
                os.close(held)
                raise
            self._held = held

    def beat(self, _connection: Connection) -> None:
        return

    def is_dead(self, _connection: Connection | None, owner: str) -> bool:
        try:
            found = os.open(self._folder / owner, OPEN)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(found)
        return True

    def _sweep(self) -> None:
        """Remove what dead processes left."""
        for path in self._folder.glob("[!.]*"):
            if self.is_dead(None, path.name):
                path.unlink(missing_ok=True)

    def leave(self, _connection: Connection) -> None:
        if self._held is not None:
            with contextlib.suppress(OSError):
                (self._folder / self._me).unlink()
            os.close(self._held)
            self._held = None


class Heartbeat:
    """A row for each process, that it changes while it lives."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._seen: dict[str, tuple[int, float]] = {}
        """By process: its last change, and when it was first seen here."""

    def begin(self, connection: Connection) -> None:
        self._seen.clear()  # while the database was away, nobody could say a thing
        connection.execute(delete(owners).where(owners.c.id == self._me))
        # Not from 0: who looks now and then could see the same number each time.
        connection.execute(owners.insert().values(id=self._me, beats=now_us()))

    def beat(self, connection: Connection) -> None:
        mine = update(owners).where(owners.c.id == self._me)
        if not connection.execute(mine.values(beats=owners.c.beats + 1)).rowcount:
            self.begin(connection)  # it had stood still for so long that it was taken for dead

    def is_dead(self, connection: Connection, owner: str) -> bool:
        beat = connection.execute(select(owners.c.beats).where(owners.c.id == owner)).scalar()
        if beat is None:
            return True
        now = time.monotonic()
        last, since = self._seen.setdefault(owner, (beat, now))
        if beat != last:
            self._seen[owner] = (beat, now)
            return False
        if now - since < DEAD_AFTER_S:
            return False
        connection.execute(delete(owners).where(owners.c.id == owner))
        return True

    def leave(self, connection: Connection) -> None:
        connection.execute(delete(owners).where(owners.c.id == self._me))
