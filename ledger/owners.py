"""Detection of dead processes, whose open rows the ledger must close.

A reload starts new workers while the old ones still serve, so an open row of another process
doesn't mean that the process is dead.

- On SQLite each process locks a file beside the database. The system releases the lock when the
  process dies.
- On Postgres, which several machines may share, each process changes its row of `owners` every few
  seconds. A process is considered dead when another one has seen that row unchanged for
  DEAD_AFTER_S.
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
    """The means to show that this process is alive, and to detect dead ones. Not thread-safe."""

    def begin(self, connection: Connection) -> None:
        """Announce this process, before it opens a row and again on each new connection."""

    def beat(self, connection: Connection) -> None:
        """Send a heartbeat."""

    def renew(self) -> None:
        """Restore what shows that this process is alive, if somebody has deleted it.

        Raises OSError. Waits for nothing, so that it may be called every second.
        """

    def is_dead(self, connection: Connection, owner: str) -> bool:
        """Return True if another process is known to be dead."""

    def leave(self, connection: Connection | None) -> None:
        """Remove this process, which is shutting down.

        Args:
            connection: None if the database is unavailable.
        """


class LockFile:
    """A locked file for each process, in a folder beside the database file."""

    def __init__(self, database: Path, me: str) -> None:
        self.database = database
        self._folder = database.with_name(database.name + ".owners")
        self._me = me
        self._held: int | None = None

    def begin(self, _connection: Connection | None) -> None:
        if self._held is not None and not self._is_held():
            os.close(self._held)
            self._held = None
        if self._held is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._sweep()
            # Renamed only once it is locked: an unlocked file means that its process is dead.
            early = self._folder / f".{self._me}"
            held = os.open(early, OPEN | os.O_CREAT, 0o600)
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
                early.rename(self._folder / self._me)
            except OSError:
                os.close(held)
                raise
            self._held = held

    def _is_held(self) -> bool:
        """Return True if the locked file is still in its place."""
        try:
            found = (self._folder / self._me).stat()
            return self._held is not None and os.path.samestat(os.fstat(self._held), found)
        except FileNotFoundError:
            return False

    def beat(self, connection: Connection | None) -> None:
        self.begin(connection)

    def renew(self) -> None:
        if self._held is not None:
            self.begin(None)

    def in_use(self) -> bool:
        """Return True if another process is known to use the database."""
        others = (path.name for path in self._folder.glob("[!.]*") if path.name != self._me)
        return not all(self.is_dead(None, owner) for owner in others)

    def is_dead(self, _connection: Connection | None, owner: str) -> bool:
        try:
            found = os.open(self._folder / owner, OPEN)
        except FileNotFoundError:
            return True
        except PermissionError:  # another user's process, of which nothing is known
            return False
        try:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(found)
        return True

    def _sweep(self) -> None:
        """Remove the files of dead processes."""
        for path in self._folder.glob("[!.]*"):
            if self.is_dead(None, path.name):
                path.unlink(missing_ok=True)

    def leave(self, _connection: Connection | None) -> None:
        if self._held is not None:
            with contextlib.suppress(OSError):
                (self._folder / self._me).unlink()
            os.close(self._held)
            self._held = None


class Heartbeat:
    """A row for each process, which the process changes as long as it lives."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._seen: dict[str, tuple[int, float]] = {}
        """For each process: its last value of `beats`, and when this process first saw it."""

    def begin(self, connection: Connection) -> None:
        self._seen.clear()  # no process could send heartbeats while the database was unavailable
        connection.execute(delete(owners).where(owners.c.id == self._me))
        # Not 0: if the count restarted on each connection, another process could see the same
        # number twice and consider this one dead.
        connection.execute(owners.insert().values(id=self._me, beats=now_us()))

    def beat(self, connection: Connection) -> None:
        mine = update(owners).where(owners.c.id == self._me)
        if not connection.execute(mine.values(beats=owners.c.beats + 1)).rowcount:
            self.begin(connection)  # another process considered this one dead and deleted its row

    def renew(self) -> None:
        return

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

    def leave(self, connection: Connection | None) -> None:
        if connection is not None:
            connection.execute(delete(owners).where(owners.c.id == self._me))
