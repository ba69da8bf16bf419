"""The key file: how its lines are read and written, and how the file is replaced.

- An error about a line names its number and the field, but never quotes its content.
- Reading yields to other greenlets, and takes bounded memory, whatever the file holds.
- The commands never leave a file of zero bytes, so such a file wasn't written by them.
- This module keeps no state; keys.store.KeyStore and keys.last_good.LastGood do.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from concurrency.yielding import Yielder
from keys.group import KeyGroup, group_of
from keys.key import Key, Row, read_row
from keys.key_errors import BrokenLine, CannotWriteKeys, KeyFileError, UnknownKey

VARIABLE = "SLUICE_KEYS"
CHUNK = 1 << 16
MOST_BYTES = 32 << 20
"""The largest key file. It has room for some 90,000 keys."""
MOST_LINE = 1 << 20
MOST_LINES = 1_000_000
MOST_INVALID = 10_000
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
COMMENT = (b"#", b"//")
ID = re.compile(rb"key_[A-Za-z0-9_-]{1,64}")


class Unreadable(Exception):
    """The error for a key file that isn't read. The message follows the file's name."""


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
    """The keys by the hashes of their secrets, and of the secrets before a rotation."""
    problems: tuple[str, ...] = ()

    def pick(self, id_or_name: str) -> Line:
        """Return a key's line. Raises KeyFileError if none or more than one has this id or name."""
        found = [line for line in self.lines if line.key.id == id_or_name]
        found = found or [line for line in self.lines if line.key.name == id_or_name]
        if not found:
            # The argument isn't quoted, because it may be a secret that was pasted by mistake.
            raise UnknownKey("No key has this id or name; './sluice keys list' shows all keys.")
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
            raise CannotWriteKeys(
                f"The key {line.key.name!r} comes from {VARIABLE}; change that variable instead."
            )
        return line


class Content(NamedTuple):
    """The lines of the key file or of SLUICE_KEYS."""

    lines: tuple[Line, ...] = ()
    problems: tuple[str, ...] = ()
    alien: frozenset[int] = frozenset()
    """The hashes of the lines that aren't a key's: no JSON object with an id or a hash, and no
    comment. A line that an operator has changed on purpose is hardly ever among them."""
    named: frozenset[bytes] = frozenset()
    """The ids in the other invalid lines. An operator has invalidated these keys on purpose."""
    tail: int | None = None
    """The hash of the last line, if it is one of these lines and has no line end."""


def read_content(data: bytes, name: str, *, fixed: bool = False) -> Content:
    """Parse the key file or SLUICE_KEYS. Of several lines with an id or a hash, the first counts.

    Args:
        name: the name of the file or variable, for the messages about its lines.
        fixed: whether the data is SLUICE_KEYS.

    Raises:
        Unreadable: the file has too many lines, or too many invalid ones.
    """
    lines: list[Line] = []
    problems: list[str] = []
    alien: set[int] = set()
    named: set[bytes] = set()
    tail: int | None = None
    taken: set[str] = set()
    yielder = Yielder()
    for index, raw in enumerate(each_line(data)):
        yielder.yield_if_due()
        if index >= MOST_LINES:
            raise Unreadable(f"has more than {MOST_LINES:,} lines")
        if not raw or raw.isspace():
            continue
        try:
            row, key = read_line(raw)
            if not taken.isdisjoint((key.id, key.hash)):
                raise BrokenLine("an earlier line has the same id or hash")
        except BrokenLine as error:
            problems.append(f"{name}: skipped line {index + 1}: {error}")
            if len(problems) > MOST_INVALID and not fixed:
                raise Unreadable(f"has more than {MOST_INVALID:,} invalid lines") from None
            tail = None
            if is_alien(raw):
                tail = hash(raw.strip())
                alien.add(tail)
            else:
                named.update(ID.findall(raw))
            continue
        tail = None
        taken |= {key.id, key.hash}
        lines.append(Line(index, key, row, fixed))
    if data.endswith(b"\n"):
        tail = None
    return Content(tuple(lines), tuple(problems), frozenset(alien), frozenset(named), tail)


def each_line(data: bytes) -> Iterator[bytes]:
    """Yield the lines of a file without their line ends. Of a long line, only the start counts."""
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        yield data[start : min(end, start + MOST_LINE + 1)]
        start = end + 1


NO_GROUPS: Mapping[str, KeyGroup] = MappingProxyType({})


def view_of(file: Content, fixed: Content, groups: Mapping[str, KeyGroup] = NO_GROUPS) -> View:
    """Return the keys of the file and of SLUICE_KEYS, each with its group.

    If a key is in both, the file's counts.
    """
    taken = {text for line in file.lines for text in (line.key.id, line.key.hash)}
    lines = list(file.lines)
    problems = [*file.problems, *fixed.problems]
    for line in fixed.lines:
        if taken.isdisjoint((line.key.id, line.key.hash)):
            lines.append(line)
        else:
            reason = "an earlier line has the same id or hash"
            problems.append(f"{VARIABLE}: skipped line {line.at + 1}: {reason}")
    for at, line in enumerate(lines):
        if line.key.group is not None:
            key = with_group(line.key, groups)
            lines[at] = line._replace(key=key)
            if key.shared is not None and not key.shared.defined:
                problems.append(
                    f"{key.id} has a group that sluice.toml lacks, so it may use no model"
                )
    by_hash = {line.key.previous_hash: line.key for line in lines if line.key.previous_hash}
    by_hash |= {line.key.hash: line.key for line in lines}  # these win
    return View(tuple(lines), by_hash, tuple(problems))


def with_group(key: Key, groups: Mapping[str, KeyGroup]) -> Key:
    if key.group is None:
        return key
    return msgspec.structs.replace(key, shared=group_of(key.group, groups))


def read_bytes(path: Path) -> bytes:
    """Return the content of a key file. Raises OSError and Unreadable."""
    parts: list[bytes] = []
    yielder = Yielder()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while size <= MOST_BYTES and (part := file.read(CHUNK)):
            parts.append(part)
            size = max(size, file.tell())
            yielder.yield_if_due()
    if size > MOST_BYTES:
        raise Unreadable(f"is larger than {MOST_BYTES >> 20} MiB")
    data = b"".join(parts)
    if data.startswith(UTF_16):
        raise Unreadable("is UTF-16; save it as UTF-8")
    return data


def split_lines(data: bytes) -> list[bytes]:
    """Split bytes into lines without their line ends. A final line end doesn't start a new line."""
    data = data.removeprefix(codecs.BOM_UTF8)
    return data.removesuffix(b"\n").split(b"\n") if data else []


def read_line(raw: bytes) -> tuple[Row, Key]:
    """Return a line's JSON object and its key. Raises BrokenLine."""
    if len(raw) > MOST_LINE:
        raise BrokenLine("too long")
    try:
        row = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        raise BrokenLine("not JSON") from None
    if not isinstance(row, dict):
        raise BrokenLine("not a JSON object")
    return row, read_row(row)


def is_alien(raw: bytes) -> bool:
    """Return True if an invalid line shows no trace of a key. See Content.alien."""
    if len(raw) > MOST_LINE:
        return True
    try:
        row = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return not raw.lstrip().startswith(COMMENT)
    return not isinstance(row, dict) or row.keys().isdisjoint(("id", "hash"))


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


def signature(found: os.stat_result) -> tuple[int, ...]:
    """Return what changes when a file does."""
    return found.st_mtime_ns, found.st_size, found.st_ino


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
