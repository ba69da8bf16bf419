"""The file of keys: what a line says, what a set of lines means, how a file is replaced.

Rules that hold here: what is said about a line is its number and a field, never its content.
Nothing is remembered between calls (auth.KeyStore does that).
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
    """A good line: at which index, its key, its whole object, whether it is SLUICE_KEYS's."""

    at: int
    key: Key
    row: Row
    fixed: bool


class View(NamedTuple):
    """All keys at one moment, those of the file first."""

    lines: tuple[Line, ...] = ()
    by_hash: Mapping[str, Key] = MappingProxyType({})
    problems: tuple[str, ...] = ()

    def pick(self, id_or_name: str) -> Line:
        """The one line that is meant. Raises KeyFileError."""
        found = [line for line in self.lines if line.key.id == id_or_name]
        found = found or [line for line in self.lines if line.key.name == id_or_name]
        if not found:
            # What was asked for isn't repeated: by mistake it may be a key's text.
            raise KeyFileError("No key has this id or name; 'flask keys list' shows them all.")
        if len(found) > 1:
            ids = ", ".join(line.key.id for line in found)
            raise KeyFileError(f"More than one key is called {id_or_name!r}; use an id: {ids}.")
        return found[0]

    def pick_changeable(self, id_or_name: str) -> Line:
        """The same, if it is the file's. Raises KeyFileError."""
        line = self.pick(id_or_name)
        if line.fixed:
            raise KeyFileError(
                f"The key {line.key.name!r} comes from {VARIABLE}; change that variable instead."
            )
        return line


def read_view(data: bytes, name: str, fixed: bytes) -> View:
    """The keys in a file's bytes and in SLUICE_KEYS; of two with one id or hash, the first."""
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
                    raise BrokenLine("its id or hash is an earlier line's")
            except BrokenLine as error:
                problems.append(f"{where} line {index + 1} is skipped: {error}")
                continue
            taken |= {key.id, key.hash}
            lines.append(Line(index, key, row, is_fixed))
    return View(tuple(lines), {line.key.hash: line.key for line in lines}, tuple(problems))


def split_lines(data: bytes) -> list[bytes]:
    """Without line ends; the end of the last line doesn't begin another."""
    data = data.removeprefix(codecs.BOM_UTF8)
    return data.removesuffix(b"\n").split(b"\n") if data else []


def read_line(raw: bytes) -> tuple[Row, Key]:
    """A line's object and its key. Raises BrokenLine."""
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
    """A file's status. Raises OSError: a pipe hangs its reader, a device must not be replaced."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return found


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Holds the lock beside a file, against other processes. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(target.with_name(target.name + ".lock"), flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def replace(target: Path, data: bytes) -> None:
    """Gives a file new content, whole or not at all; mode 0600, the owner stays.

    Raises OSError, also where the owner can't stay: a replacement would lock them out.
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
    # From here on the change is there; only whether a power cut spares it is open.
    with suppress(OSError):
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
