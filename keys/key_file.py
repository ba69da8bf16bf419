"""The key file: how its lines are read and written, and how the file is replaced.

- An error about a line names its number and the field, but never quotes its content.
- This module keeps no state; keys.store.KeyStore does.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from keys.key import BrokenLine, Key, KeyFileError, Row, read_row

VARIABLE = "SLUICE_KEYS"


class Line(NamedTuple):
    """A valid line of the key file or of SLUICE_KEYS."""

    at: int
    """The index of the line in its file or variable."""
    key: Key
    row: Row
    """The line's whole JSON object."""
    fixed: bool
    """True if the line comes from SLUICE_KEYS, so that commands can't change the key."""


class View(NamedTuple):
    """A snapshot of all keys, those of the file first."""

    lines: tuple[Line, ...] = ()
    by_hash: Mapping[str, Key] = MappingProxyType({})
    problems: tuple[str, ...] = ()

    def pick(self, id_or_name: str) -> Line:
        """Return a key's line. Raises KeyFileError if none or more than one has this id or name."""
        found = [line for line in self.lines if line.key.id == id_or_name]
        found = found or [line for line in self.lines if line.key.name == id_or_name]
        if not found:
            # The argument isn't quoted, because it may be a secret that was pasted by mistake.
            raise KeyFileError("No key has this id or name; 'flask keys list' shows all keys.")
        if len(found) > 1:
            ids = ", ".join(line.key.id for line in found)
            raise KeyFileError(f"More than one key is named {id_or_name!r}; use an id: {ids}.")
        return found[0]

    def pick_changeable(self, id_or_name: str) -> Line:
        """Return the line of a key in the file.

        Raises KeyFileError as `pick` does, and for a key of SLUICE_KEYS.
        """
        line = self.pick(id_or_name)
        if line.fixed:
            raise KeyFileError(
                f"The key {line.key.name!r} comes from {VARIABLE}; change that variable instead."
            )
        return line


def read_view(data: bytes, name: str, fixed: bytes) -> View:
    """Parse the key file and SLUICE_KEYS.

    Of several lines with the same id or hash, only the first counts.

    Args:
        data: the content of the file.
        name: the file's name, for the messages about its lines.
        fixed: the value of SLUICE_KEYS.
    """
    lines: list[Line] = []
    problems: list[str] = []
    taken: set[str] = set()
    for where, text, is_fixed in ((name, data, False), (VARIABLE, fixed, True)):
        for index, raw in enumerate(split_lines(text)):
            if not raw.strip():
                continue
            try:
                row, key = read_line(raw)
                if not taken.isdisjoint((key.id, key.hash)):
                    raise BrokenLine("an earlier line has the same id or hash")
            except BrokenLine as error:
                problems.append(f"{where}: skipped line {index + 1}: {error}")
                continue
            taken |= {key.id, key.hash}
            lines.append(Line(index, key, row, is_fixed))
    return View(tuple(lines), {line.key.hash: line.key for line in lines}, tuple(problems))


def split_lines(data: bytes) -> list[bytes]:
    """Split bytes into lines without their line ends. A final line end doesn't start a new line."""
    data = data.removeprefix(codecs.BOM_UTF8)
    return data.removesuffix(b"\n").split(b"\n") if data else []


def read_line(raw: bytes) -> tuple[Row, Key]:
    """Return a line's JSON object and its key. Raises BrokenLine."""
    try:
        row = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        raise BrokenLine("not JSON") from None
    if not isinstance(row, dict):
        raise BrokenLine("not a JSON object")
    return row, read_row(row)


def write_line(row: Row) -> bytes:
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def regular(path: Path) -> os.stat_result:
    """Return the status of a regular file.

    Raises OSError for any other file: reading a pipe could hang, and a device must not be replaced.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return found


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock file beside a file, so that no other process changes it. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(target.with_name(target.name + ".lock"), flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def replace(target: Path, data: bytes) -> None:
    """Replace a file's content atomically. The new file has mode 0600 and keeps its owner.

    Raises OSError, even if only the owner can't be kept: the replacement would lock out the owner.
    """
    old = target.stat() if target.exists() else None
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        try:
            if old is not None and old.st_uid != os.fstat(handle).st_uid:
                os.fchown(handle, old.st_uid, old.st_gid)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink()
        raise
    # The change is made. An error from here on only means that it may not survive a power cut.
    with suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
