"""The key store: reads the key file again when the file changes, and can edit it.

- Readers never wait for each other and never see a partial set of keys: a single assignment
  replaces the View.
- A change affects a single line. All other lines keep their bytes, even invalid ones.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

from keys.key import Key, KeyFileError, Terms, changed, fingerprint, new_row, read_row
from keys.key_file import (
    View,
    locked,
    read_view,
    regular,
    replace,
    split_lines,
    write_line,
)

LOOK_EVERY_S = 0.25
MAX_SECRET = 512
"""Characters. A longer text is rejected without hashing it, because a header can be a megabyte."""

# The logger's name is kept from earlier releases: see docs/decisions/0013-the-house.md.
log = logging.getLogger("sluice.auth")


class KeyStore:
    """A store of the keys in a file, which need not exist, and in SLUICE_KEYS, which is read-only.

    The file is checked for changes once every LOOK_EVERY_S at most. While it can't be read, the
    keys last read remain valid. Threads may share a store, and processes may share a file.
    """

    def __init__(self, path: Path, lines: str = "") -> None:
        self.path = path
        self._fixed = lines.encode("utf-8", "surrogateescape")
        self._lock = threading.Lock()
        self._view = View()
        self._seen: tuple[int, ...] | None = None
        """The (mtime, size, inode) of the file last read; (): no file; None: read it again."""
        self._trouble = ""
        self._warned_of_mode = False
        self._look_at = 0.0
        self._look()

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret, or None if it is unknown, disabled or expired."""
        if len(secret) > MAX_SECRET:
            return None
        key = self._fresh().by_hash.get(fingerprint(secret))
        return key if key is not None and key.status == "active" else None

    def all(self) -> list[Key]:
        return [line.key for line in self._fresh().lines]

    def get(self, id_or_name: str) -> Key:
        """Return a key. Raises KeyFileError if none or more than one has this id or name."""
        return self._fresh().pick(id_or_name).key

    def line(self, id_or_name: str) -> str:
        """Return a key's line for SLUICE_KEYS. The line has the hash, not the secret.

        Raises KeyFileError as `get` does.
        """
        return write_line(self._fresh().pick(id_or_name).row).decode("utf-8", "replace")

    def is_fixed(self, key: Key) -> bool:
        """Return True if a key comes from SLUICE_KEYS."""
        return any(line.fixed and line.key.id == key.id for line in self._fresh().lines)

    def problems(self) -> list[str]:
        """Return a sentence for each problem in the file and in SLUICE_KEYS, quoting neither."""
        view = self._fresh()
        return [self._trouble, *view.problems] if self._trouble else list(view.problems)

    def create(self, name: str, **terms: Unpack[Terms]) -> tuple[Key, str]:
        """Create a key, and return it with its secret, which can't be shown again.

        Raises KeyFileError.
        """
        new, secret = new_row(name, terms)

        def add(view: View, rows: list[bytes]) -> Key:
            if any(line.key.name == name for line in view.lines):
                raise KeyFileError(f"A key named {name!r} already exists.")
            rows.append(write_line(new))
            return read_row(new)

        return self._rewrite(add), secret

    def update(self, id_or_name: str, **terms: Unpack[Terms]) -> Key:
        """Change the given terms of a key, and return the new key. Raises KeyFileError."""

        def change(view: View, rows: list[bytes]) -> Key:
            line = view.pick_changeable(id_or_name)
            new = changed(line.row, terms, datetime.now(UTC))
            rows[line.at] = write_line(new)
            return read_row(new)

        return self._rewrite(change)

    def delete(self, id_or_name: str) -> Key:
        """Delete a key, and return it. Raises KeyFileError."""

        def drop(view: View, rows: list[bytes]) -> Key:
            line = view.pick_changeable(id_or_name)
            del rows[line.at]
            return line.key

        return self._rewrite(drop)

    def _rewrite(self, edit: Callable[[View, list[bytes]], Key]) -> Key:
        """Let `edit` change the list of lines, and write the file, all under the file's lock."""
        target = Path(os.path.realpath(self.path))
        try:
            if target.exists():
                regular(target)
            with locked(target):
                # Check again: another process may have created it while this one waited.
                data = target.read_bytes() if target.exists() else b""
                rows = split_lines(data)
                key = edit(read_view(data, self.path.name, self._fixed), rows)
                replace(target, b"".join(row + b"\n" for row in rows))
        except OSError as error:
            raise KeyFileError(f"{self.path} can't be changed: {error.strerror}.") from error
        with self._lock:
            self._look()
        return key

    def _fresh(self) -> View:
        """Return the keys, checking the file first if LOOK_EVERY_S have passed.

        While one thread checks the file, the others get the old keys.
        """
        if time.monotonic() >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._view

    def _look(self) -> None:
        """Read the file again if it has changed."""
        self._look_at = time.monotonic() + LOOK_EVERY_S
        try:
            found = regular(self.path)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen == self._seen:
                return
            # The bytes may be newer than `seen`. In that case the next check reads them again.
            self._take(self.path.read_bytes(), seen)
            self._warn_of_mode(found.st_mode)
        except FileNotFoundError:
            if self._seen or self._trouble:
                log.warning("%s no longer exists, so its keys are no longer valid", self.path.name)
            if self._seen != ():
                self._take(b"", ())
        except OSError as error:
            trouble = f"{self.path.name} can't be read: {error.strerror}"
            if trouble != self._trouble:
                log.error("%s; the keys last read remain valid", trouble)
            self._trouble, self._seen = trouble, None

    def _take(self, data: bytes, seen: tuple[int, ...]) -> None:
        view = read_view(data, self.path.name, self._fixed)
        for problem in view.problems:
            if problem not in self._view.problems:
                log.warning("%s", problem)
        self._view, self._seen, self._trouble = view, seen, ""

    def _warn_of_mode(self, mode: int) -> None:
        if mode & 0o077 and not self._warned_of_mode:
            self._warned_of_mode = True
            log.warning("other users can read or write %s: run chmod 600 on it", self.path.name)
