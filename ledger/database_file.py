"""The ledger's SQLite file, which somebody may move, replace or truncate while it is open.

SQLite would continue to write to a file that no path leads to, and report success.

- A process uses one file. While the path leads to another file or to none, the database
  counts as unavailable, until that file is back or the process is restarted.
- Only a process's first connection may create the file.
- Before a connection to changed files is closed, the rows in its -wal file are moved to the
  database file, so that the file is complete wherever it is now.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

FileId: TypeAlias = tuple[int, int]
"""A file's device and inode, which stay the same when the file is renamed."""

LOOK_S = 1.0
"""Seconds between two thorough checks."""
RECENT_S = 0.002
"""Seconds for which a check isn't repeated: one transaction may follow another."""
APART_S = 2.5
"""Seconds without connections after a file was removed or truncated. Two processes with different
-wal files would damage the database, so all processes must close theirs before one creates a new
file."""
PIN = getattr(os, "O_PATH", None)
"""The flag for a descriptor whose only purpose is to keep a file's inode from being reused. Closing
any other descriptor would release SQLite's locks, because POSIX locks belong to the process. None
on macOS, which has no O_PATH and doesn't reuse inodes."""


class DatabaseFileChanged(OSError):
    """The path doesn't lead to the files that are open. The message is meant for the log."""


class DatabaseFile:
    """A SQLite file, and the conditions under which this process may connect to it."""

    def __init__(self, path: Path, in_use: Callable[[], bool] = lambda: False) -> None:
        """Prepare the checks.

        Args:
            path: the database file.
            in_use: returns True if another process is known to use the database.
        """
        self.path = path
        self.may_create = True
        self.damaged = False
        """True once the file has been overwritten or truncated, so that rows are missing."""
        self._in_use = in_use
        self._first: FileId | None = None
        """The file that this process uses; None until it has opened one."""
        self._pin: int | None = None
        self._disturbance = ""
        self._shut_until = 0.0

    def admit(self, *, create: bool) -> FileId:
        """Return the id of the file at the path, if a connection may be opened to it now.

        Args:
            create: True to create a missing file, if this process hasn't opened one before.

        Raises:
            DatabaseFileChanged: it isn't the file that this process uses, or it is damaged.
            OSError: the file can't be created.
        """
        if self.damaged:
            raise DatabaseFileChanged(
                f"{self._disturbance}, and rows are missing; restore a backup and restart Sluice"
            )
        if time.monotonic() < self._shut_until:
            raise DatabaseFileChanged(self._disturbance)
        if create and self._first is None and self.may_create and not self.path.exists():
            # Several workers may start at once. Each creates the file before it registers as a
            # user, so if another worker was faster, the file exists by now.
            if self._in_use() and not self.path.exists():
                raise DatabaseFileChanged(f"{self.path} is gone, but other processes use it")
            create_private(self.path)
        found = self.look(thorough=True)
        if self._first is not None and not found.st_size:  # SQLite would create an empty database
            raise DatabaseFileChanged(f"{self.path} is empty; restore a backup and restart Sluice")
        return id_of(found)

    def opened(self, admitted: FileId, connection: sqlite3.Connection) -> OpenFiles:
        """Return the files of a new connection. Call this after its first transaction.

        Args:
            admitted: the result of `admit` before the connection was opened.

        Raises:
            DatabaseFileChanged: the path leads to another file by now.
        """
        found = self.look(thorough=False)
        if id_of(found) != admitted:
            raise DatabaseFileChanged(f"{self.path} was replaced while it was opened")
        if self._first is None:
            if PIN is not None:
                self._pin = os.open(self.path, PIN | os.O_CLOEXEC)
            self._first = admitted
        return OpenFiles(self, connection, found)

    def look(self, *, thorough: bool) -> os.stat_result:
        """Return the state of the file at the path.

        Args:
            thorough: True to check the permissions too.

        Raises:
            DatabaseFileChanged: it isn't the file that this process uses, or it can't be reached.
        """
        try:
            found = self.path.stat()
        except FileNotFoundError:
            advice = "; put it back, or restart Sluice to start a new one" if self._first else ""
            raise DatabaseFileChanged(f"{self.path} does not exist{advice}") from None
        except OSError as failure:
            raise DatabaseFileChanged(f"{self.path}: {failure.strerror}") from None
        if not stat.S_ISREG(found.st_mode):
            raise DatabaseFileChanged(f"{self.path} is not a file")
        if self._first is not None and self._first != id_of(found):
            raise DatabaseFileChanged(
                f"{self.path} is not the file that Sluice has opened; "
                "put that file back, or restart Sluice to use this one"
            )
        if thorough and not os.access(self.path, os.R_OK | os.W_OK):
            raise DatabaseFileChanged(f"{self.path} can't be read and written")
        return found

    def disturbed(self, what: str, *, damaged: bool) -> None:
        """Record that somebody changed the files. No connection is admitted for APART_S."""
        self._disturbance = what
        self._shut_until = time.monotonic() + APART_S
        self.damaged = damaged

    def close(self) -> None:
        """Release the file's inode. All connections must be closed."""
        pin, self._pin = self._pin, None
        if pin is not None:
            os.close(pin)


class OpenFiles:
    """The files of one connection: the database file, its -wal file and its -shm file."""

    def __init__(
        self, file: DatabaseFile, connection: sqlite3.Connection, found: os.stat_result
    ) -> None:
        self._file, self._connection = file, connection
        self._name, self._id = str(file.path), id_of(found)
        self._wal, self._shm = (f"{file.path}{ending}" for ending in ("-wal", "-shm"))
        self._ids = state_of(self._wal)[0], state_of(self._shm)[0]
        self._size, self._wal_size = found.st_size, state_of(self._wal)[1]
        self._checked = self._looked = time.monotonic()

    def check(self, recent_s: float = 0.0) -> None:
        """Check that the path leads to these files, and that nobody truncated them.

        Args:
            recent_s: the age in seconds up to which the last check is not repeated.

        Raises:
            DatabaseFileChanged: the connection must be closed. The rows of its -wal file have been
                moved to the database file, unless that is damaged.
        """
        now = time.monotonic()
        if now - self._checked <= recent_s:
            return
        thorough = now - self._looked >= LOOK_S
        if not thorough and self._is_unchanged():
            self._checked = now
            return
        try:
            self._check(thorough=thorough)
        except DatabaseFileChanged:
            # The connection still reaches its files, even if no path leads to them.
            if not self._file.damaged:
                with suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raise
        self._checked, self._looked = now, now if thorough else self._looked

    def _is_unchanged(self) -> bool:
        """Return True if the database and -wal files are the known ones, and none is smaller.

        Each commit calls this, so it makes few function calls. `_check` finds out what changed.
        """
        try:
            found, wal = os.stat(self._name), os.stat(self._wal)  # noqa: PTH116 - faster than a Path
        except OSError:
            return False
        if (found.st_dev, found.st_ino) != self._id or (wal.st_dev, wal.st_ino) != self._ids[0]:
            return False
        if found.st_size < self._size or wal.st_size < self._wal_size:
            return False
        self._size, self._wal_size = found.st_size, wal.st_size
        return True

    def _check(self, *, thorough: bool) -> None:
        size = self._file.look(thorough=thorough).st_size
        wal_id, wal_size = state_of(self._wal)
        shm_id = state_of(self._shm)[0] if thorough else self._ids[1]
        removed, cut = (wal_id, shm_id) != self._ids, size < self._size
        if (removed or cut or wal_size < self._wal_size) and not is_closed(self._connection):
            self._examine(size, removed=removed, cut=cut)
        self._size, self._wal_size = size, wal_size

    def _examine(self, size: int, *, removed: bool, cut: bool) -> None:
        """Raise DatabaseFileChanged unless SQLite itself changed the files, in another process."""
        path, what = self._file.path, ""
        damaged = not is_sound(self._connection)
        if cut and (removed or size):
            # VACUUM cuts the file too, but then nothing is missing. Something else may have been
            # copied over the file, which must not be mixed with the rows of the -wal file.
            damaged = removed or damaged or size < size_of_database(self._connection)
            what = f"{path} was overwritten or truncated" if damaged else ""
        elif cut:
            what = f"{path} was truncated"
        elif removed:
            what = f"the -wal or -shm file of {path} was removed"
        elif damaged:  # else another process has moved the rows to the database file
            what = f"the -wal file of {path} was truncated"
        if what:
            self._file.disturbed(what, damaged=damaged)
            raise DatabaseFileChanged(what)


def create_private(path: Path) -> None:
    """Create the file with a mode that SQLite then gives to the -wal and -shm files too."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def id_of(found: os.stat_result) -> FileId:
    return found.st_dev, found.st_ino


def state_of(path: str) -> tuple[FileId | None, int]:
    """Return a file's id and size, or None and 0 if it can't be reached."""
    try:
        found = Path(path).stat()
    except OSError:
        return None, 0
    return id_of(found), found.st_size


def is_closed(connection: sqlite3.Connection) -> bool:
    try:
        return connection.total_changes < 0
    except sqlite3.ProgrammingError:
        return True


def size_of_database(connection: sqlite3.Connection) -> int:
    """Return the size in bytes that the database file must have for all of its pages."""
    names = ("page_count", "page_size")
    count, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return int(count * size)


def is_sound(connection: sqlite3.Connection) -> bool:
    """Return True if the database file and its -wal file are a complete database now.

    This reads all of the database, which takes seconds if it is large.
    """
    try:
        connection.execute("PRAGMA shrink_memory")  # forgets the pages that were read before
        return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.Error:
        return False
