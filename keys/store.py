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
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Unpack

from concurrency.native import NativeThread
from keys.group import KeyGroup
from keys.key import (
    Key,
    Terms,
    as_text,
    changed,
    fingerprint,
    new_row,
    read_row,
    rotated,
)
from keys.key_errors import CannotWriteKeys, KeyFileError, NameTaken
from keys.key_file import (
    MOST_BYTES,
    NO_GROUPS,
    VARIABLE,
    Content,
    Line,
    Unreadable,
    View,
    locked,
    read_bytes,
    read_content,
    regular,
    replace,
    signature,
    split_lines,
    view_of,
    with_group,
    write_line,
)
from keys.last_good import GRACE_S, LastGood

LOOK_EVERY_S = 0.25
LARGE = 1 << 20
"""The size in bytes from which a changed file is read by a thread of its own, because reading it
would hold up the call that notices the change."""
MOST_LOGGED = 10
"""The maximum number of invalid lines that are logged at a time."""
MAX_SECRET = 512
"""Characters. A longer text is rejected without hashing it, because a header can be a megabyte."""

Check = Callable[[View, Line | None], None]
"""A check of a key before it is changed, or of nothing (None) before a key is created. It runs
while the file is locked, so that nobody can change the keys between the check and the change, and
raises what keeps the change from being made. It must not wait or log: under gevent, a native thread
runs it."""


def always(_view: View, _line: Line | None) -> None:
    """Allow every change."""


# The logger's name is kept from earlier releases: see docs/decisions/0013-the-house.md.
log = logging.getLogger("sluice.auth")


class KeyStore:
    """A store of the keys in a file, which need not exist, and in SLUICE_KEYS, which is read-only.

    A caller's key is looked up in keys that were read LOOK_EVERY_S ago at most, and everything else
    in the file's current keys. While the file can't be read or is damaged, the keys last read
    remain valid (see keys/last_good.py). Threads may share a store, and processes may share a file.
    """

    def __init__(
        self, path: Path, lines: str = "", groups: Mapping[str, KeyGroup] = NO_GROUPS
    ) -> None:
        """Read the keys.

        Args:
            path: the key file.
            lines: the lines of SLUICE_KEYS.
            groups: the groups of sluice.toml by their names.
        """
        self.path = path
        self.groups = groups
        self._fixed = read_content(lines.encode("utf-8", "surrogateescape"), VARIABLE, fixed=True)
        self._lock = threading.Lock()
        self._changes = NativeThread()
        """The thread that locks and writes the file. A greenlet that waited for the lock would
        block the process, and with it the greenlet that holds the lock."""
        self._view = View()
        self._good = LastGood()
        self._seen: tuple[int, ...] | None = None
        """The (mtime, size, inode) of the file last read; (): no file; None: read it again."""
        self._trouble = ""
        self._warned_of_mode = False
        self._looked_at = 0.0
        self._look()

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret, or None if it is unknown, disabled or expired."""
        if len(secret) > MAX_SECRET:
            return None
        hash_ = fingerprint(secret)
        # Before a key is refused, the file is checked: another process may just have created,
        # enabled or rotated the key.
        for age_s in (LOOK_EVERY_S, 0.0):
            key = self._fresh(age_s).by_hash.get(hash_)
            if key is not None and key.takes(hash_):
                return key
        return None

    def all(self) -> list[Key]:
        return [line.key for line in self._fresh().lines]

    def view(self) -> View:
        """Return a snapshot of all keys, with their lines."""
        return self._fresh()

    def get(self, id_or_name: str) -> Key:
        """Return a key. Raises KeyFileError if none or more than one has this id or name."""
        return self._fresh().pick(id_or_name).key

    def line(self, id_or_name: str) -> str:
        """Return a key's line for SLUICE_KEYS. The line has the hash, not the secret.

        Raises KeyFileError as `get` does.
        """
        return write_line(self._fresh().pick(id_or_name).row).decode("utf-8", "replace")

    def fixed_ids(self) -> frozenset[str]:
        """Return the ids of the keys that come from SLUICE_KEYS."""
        return frozenset(line.key.id for line in self._fresh().lines if line.fixed)

    def problems(self) -> list[str]:
        """Return a sentence for each problem in the file and in SLUICE_KEYS, quoting neither."""
        view = self._fresh()
        return [self._trouble, *view.problems] if self._trouble else list(view.problems)

    @property
    def trouble(self) -> str:
        """A sentence that says why the file can't be used now; empty if it was read or is missing.

        In a store that has read the file before, its keys remain valid meanwhile.
        """
        self._fresh()
        return self._trouble

    def create(self, name: str, check: Check = always, **terms: Unpack[Terms]) -> tuple[Key, str]:
        """Create a key, and return it with its secret, which can't be shown again.

        Raises KeyFileError, and whatever the check raises.
        """
        self._check_group(terms)
        new, secret = new_row(name, terms)

        def add(view: View, rows: list[bytes]) -> Key:
            check(view, None)
            if any(line.key.name == name for line in view.lines):
                raise NameTaken(f"A key named {name!r} already exists.", field="name")
            rows.append(write_line(new))
            return read_row(new)

        return self._rewrite(add), secret

    def update(self, id_or_name: str, check: Check = always, **terms: Unpack[Terms]) -> Key:
        """Change the given terms of a key, and return the new key.

        Raises KeyFileError, and whatever the check raises.
        """
        self._check_group(terms)

        def change(view: View, rows: list[bytes]) -> Key:
            line = view.pick_changeable(id_or_name)
            check(view, line)
            new = changed(line.row, terms, datetime.now(UTC))
            rows[line.at] = write_line(new)
            return read_row(new)

        return self._rewrite(change)

    def rotate(self, id_or_name: str, overlap: timedelta, check: Check = always) -> tuple[Key, str]:
        """Give a key a new secret, and return both. The key's id, limits and history stay.

        Args:
            overlap: how long the secret before it stays valid.

        Raises:
            KeyFileError: the key or the overlap is invalid, or the file can't be changed.
            Exception: whatever the check raises.
        """
        secret = ""

        def rotate(view: View, rows: list[bytes]) -> Key:
            nonlocal secret
            line = view.pick_changeable(id_or_name)
            check(view, line)
            new, secret = rotated(line.row, overlap, datetime.now(UTC))
            rows[line.at] = write_line(new)
            return read_row(new)

        return self._rewrite(rotate), secret

    def delete(self, id_or_name: str, check: Check = always) -> Key:
        """Delete a key, and return it. Raises KeyFileError, and whatever the check raises."""

        def drop(view: View, rows: list[bytes]) -> Key:
            line = view.pick_changeable(id_or_name)
            check(view, line)
            del rows[line.at]
            return line.key

        return self._rewrite(drop)

    def _rewrite(self, edit: Callable[[View, list[bytes]], Key]) -> Key:
        """Let `edit` change the list of lines, and write the file, all under the file's lock."""
        key = self._changes.run(self._write, edit)
        with self._lock:
            self._look()
        return with_group(key, self.groups)

    def _check_group(self, terms: Terms) -> None:
        """Raise KeyFileError for a group that sluice.toml lacks."""
        name = terms.get("group")
        if name is not None and name not in self.groups:
            known = ", ".join(self.groups)
            there = f"its groups are {known}" if known else "it has no groups"
            raise KeyFileError(f"sluice.toml has no such group: {there}.", field="group")

    def _write(self, edit: Callable[[View, list[bytes]], Key]) -> Key:
        target = Path(os.path.realpath(self.path))
        try:
            if target.exists():
                regular(target)
            with locked(target):
                # Check again: another process may have created it while this one waited.
                data = read_bytes(target) if target.exists() else b""
                rows = split_lines(data) if data.strip() else []
                key = edit(
                    view_of(read_content(data, self.path.name), self._fixed, self.groups), rows
                )
                # An empty file would look as if an editor were about to write it.
                replace(target, b"".join(row + b"\n" for row in rows) or b"\n")
        except Unreadable as error:
            raise CannotWriteKeys(f"{self.path} can't be changed: it {error}.") from None
        except OSError as error:
            raise CannotWriteKeys(f"{self.path} can't be changed: {error.strerror}.") from error
        return key

    def _fresh(self, age_s: float = 0.0) -> View:
        """Return the keys, checking the file first if the last check is at least `age_s` ago.

        While one thread checks the file, the others get the old keys.
        """
        if time.monotonic() >= self._looked_at + age_s and self._lock.acquire(blocking=False):
            if self._has_large_change():
                try:
                    threading.Thread(target=self._look_locked, name="key file", daemon=True).start()
                except RuntimeError:  # the system can't start another thread; try again later
                    self._lock.release()
            else:
                self._look_locked()
        return self._view

    def _has_large_change(self) -> bool:
        try:
            found = self.path.stat()
        except OSError:
            return False
        return LARGE < found.st_size <= MOST_BYTES and signature(found) != self._seen

    def _look_locked(self) -> None:
        """Check the file, and release the lock, which the caller has acquired."""
        try:
            self._look()
        finally:
            self._lock.release()

    def _look(self) -> None:
        """Read the file again if it has changed."""
        self._looked_at = time.monotonic()
        name = self.path.name
        try:
            found = regular(self.path)
            seen = signature(found)
            if seen != self._seen:
                # The bytes may be newer than `seen`. In that case the next check reads them again.
                self._take(read_bytes(self.path), seen)
                self._warn_of_mode(found.st_mode)
            elif self._good.is_waiting:
                self._lack("is empty", seen)
        except FileNotFoundError:
            self._lack("no longer exists", ())
        except Unreadable as error:
            self._keep(f"{name} {error}", seen)
        except OSError as error:
            self._keep(f"{name} can't be read: {error.strerror}", None)

    def _take(self, data: bytes, seen: tuple[int, ...]) -> None:
        """Take the content of the file. Raises Unreadable."""
        if not data:
            self._lack("is empty", seen)
            return
        content = read_content(data, self.path.name)
        self._good.read(content)
        content = content._replace(lines=self._good.lines)
        before = self._view
        old = set(before.problems)
        self._view, self._seen = view_of(content, self._fixed, self.groups), seen
        report_rotations(before, self._view)
        new = [problem for problem in self._view.problems if problem not in old]
        for problem in new[:MOST_LOGGED]:
            log.warning("%s", problem)
        if len(new) > MOST_LOGGED:
            log.warning("%s: skipped %d more lines", self.path.name, len(new) - MOST_LOGGED)
        damaged = f"{self.path.name} is damaged" if self._good.kept else ""
        self._report(damaged, "the keys that it lacks remain valid until it is repaired")

    def _lack(self, what: str, seen: tuple[int, ...]) -> None:
        """Keep the keys of a file that is empty or gone, for a while."""
        had = self._good.lines
        self._good.missing(time.monotonic())
        self._seen = seen
        if had and not self._good.lines:
            log.error("%s %s, so its keys are no longer valid", self.path.name, what)
        if self._good.lines != had or not had:
            self._view = view_of(Content(self._good.lines), self._fixed, self.groups)
        trouble = f"{self.path.name} {what}" if self._good.lines else ""
        self._report(trouble, f"the keys last read remain valid for {GRACE_S:.0f} s")

    def _keep(self, trouble: str, seen: tuple[int, ...] | None) -> None:
        """Keep the keys of a file that can't be read."""
        self._good.unreadable()
        self._seen = seen
        valid = (
            "the keys last read remain valid" if self._good.lines else "it has no valid keys yet"
        )
        self._report(trouble, valid)

    def _report(self, trouble: str, consequence: str) -> None:
        """Set the problem with the file, and log it if it is a new one. Empty means none."""
        if trouble and trouble != self._trouble:
            log.error("%s; %s", trouble, consequence)
        self._trouble = trouble

    def _warn_of_mode(self, mode: int) -> None:
        if mode & 0o077 and not self._warned_of_mode:
            self._warned_of_mode = True
            log.warning("other users can read or write %s: run chmod 600 on it", self.path.name)


def report_rotations(old: View, new: View) -> None:
    """Log the keys whose secret has changed between two views of the file."""
    unseen = [line.key for line in new.lines if line.key.hash not in old.by_hash]
    if not (unseen and old.lines):
        return
    known = {line.key.id for line in old.lines}
    for key in unseen:
        if key.id in known:
            end = "is no longer valid"
            if key.previous_until is not None:
                end = f"is valid until {as_text(key.previous_until)}"
            log.info("key %s has a new secret; the previous one %s", key.id, end)
