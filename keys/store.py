"""The keys of a process: read from a file again when it changes, and changed through it.

- A reader never waits and never sees a moment without keys: a new View replaces the old one in one
  assignment.
- A change rewrites one line. Every other line keeps its bytes, a broken one too.
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
LONGEST_SECRET = 512
"""Characters. Nothing longer is hashed: a header can be a megabyte."""

log = logging.getLogger("sluice.auth")


class KeyStore:
    """The keys of a file, which need not exist, and of SLUICE_KEYS's lines, which can't be changed.

    The file is looked at again when LOOK_EVERY_S have passed. While it can't be read, the keys
    last read stay. Threads may share a store, processes may share a file.
    """

    def __init__(self, path: Path, lines: str = "") -> None:
        self.path = path
        self._fixed = lines.encode("utf-8", "surrogateescape")
        self._lock = threading.Lock()
        self._view = View()
        self._seen: tuple[int, ...] | None = None
        """The (mtime, size, inode) last read; () when there was no file, None before."""
        self._trouble = ""
        self._warned_of_mode = False
        self._look_at = 0.0
        self._look()

    def find(self, secret: str) -> Key | None:
        """The key with this text; None when it is unknown, disabled or expired."""
        if len(secret) > LONGEST_SECRET:
            return None
        key = self._fresh().by_hash.get(fingerprint(secret))
        return key if key is not None and key.status == "active" else None

    def all(self) -> list[Key]:
        return [line.key for line in self._fresh().lines]

    def get(self, id_or_name: str) -> Key:
        """Raises KeyFileError when no key, or more than one, is called so."""
        return self._fresh().pick(id_or_name).key

    def line(self, id_or_name: str) -> str:
        """The key's line, fit for SLUICE_KEYS: it has the hash, not the text. Raises as get."""
        return write_line(self._fresh().pick(id_or_name).row).decode("utf-8", "replace")

    def is_fixed(self, key: Key) -> bool:
        """Whether it comes from SLUICE_KEYS."""
        return any(line.fixed and line.key.id == key.id for line in self._fresh().lines)

    def problems(self) -> list[str]:
        """What is wrong with the file and the variable: a sentence each, no content."""
        view = self._fresh()
        return [self._trouble, *view.problems] if self._trouble else list(view.problems)

    def create(self, name: str, **terms: Unpack[Terms]) -> tuple[Key, str]:
        """A new key, and its text: the only time that it is known. Raises KeyFileError."""
        new, secret = new_row(name, terms)

        def add(view: View, rows: list[bytes]) -> Key:
            if any(line.key.name == name for line in view.lines):
                raise KeyFileError(f"There is a key called {name!r} already.")
            rows.append(write_line(new))
            return read_row(new)

        return self._rewrite(add), secret

    def update(self, id_or_name: str, **terms: Unpack[Terms]) -> Key:
        """The key as it is now; what isn't named stays. Raises KeyFileError."""

        def change(view: View, rows: list[bytes]) -> Key:
            line = view.pick_changeable(id_or_name)
            new = changed(line.row, terms, datetime.now(UTC))
            rows[line.at] = write_line(new)
            return read_row(new)

        return self._rewrite(change)

    def delete(self, id_or_name: str) -> Key:
        """The key that was. Raises KeyFileError."""

        def drop(view: View, rows: list[bytes]) -> Key:
            line = view.pick_changeable(id_or_name)
            del rows[line.at]
            return line.key

        return self._rewrite(drop)

    def _rewrite(self, edit: Callable[[View, list[bytes]], Key]) -> Key:
        """Reads, lets `edit` change the list of lines, and writes, all under the file's lock."""
        target = Path(os.path.realpath(self.path))
        try:
            if target.exists():
                regular(target)
            with locked(target):
                # Asked again: another process may have made it while this one waited.
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
        """The keys as of LOOK_EVERY_S ago at most; who comes while another looks has the old."""
        if time.monotonic() >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._view

    def _look(self) -> None:
        """Reads the file, if it isn't the one last read."""
        self._look_at = time.monotonic() + LOOK_EVERY_S
        try:
            found = regular(self.path)
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen == self._seen:
                return
            # The bytes may be newer than `seen`; then the next look reads them once more.
            self._take(self.path.read_bytes(), seen)
            self._warn_of_mode(found.st_mode)
        except FileNotFoundError:
            if self._seen or self._trouble:
                log.warning("%s is gone, and its keys with it", self.path.name)
            if self._seen != ():
                self._take(b"", ())
        except OSError as error:
            trouble = f"{self.path.name} can't be read: {error.strerror}"
            if trouble != self._trouble:
                log.error("%s; the keys last read stay", trouble)
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
            log.warning("others may read or write %s: chmod 600 it", self.path.name)
