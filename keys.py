"""A key and the file of keys: what a line says, what a set of lines means, how a file is replaced.

Rules that hold here: a key's text is never kept, only its SHA-256. What is said about a line is
its number and a field, never its content. Nothing is remembered between calls (auth.KeyStore
does that).
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import msgspec
from msgspec import Meta

Tier: TypeAlias = Literal["free", "standard", "enterprise", "unlimited"]
Status: TypeAlias = Literal["active", "disabled", "expired"]
Instant: TypeAlias = Annotated[datetime, Meta(tz=True)]
Row: TypeAlias = dict[str, Any]

TIERS: tuple[Tier, ...] = get_args(Tier)
SECRET_PREFIX = "sk-sluice-"  # noqa: S105
ID_PREFIX = "key_"
VARIABLE = "SLUICE_KEYS"


class KeyFileError(Exception):
    """What can't be done with the keys: one line for the operator."""


class BrokenLine(Exception):
    """What is wrong with a line, without its content."""


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A caller. Instants are UTC; a limit of None is the tier's; models are globs."""

    id: Annotated[str, Meta(pattern=r"\Akey_[A-Za-z0-9_-]{1,64}\Z")]
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    hash: Annotated[str, Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
    created: Instant
    expires: Instant | None = None
    disabled: bool = False
    tier: Tier = "unlimited"
    requests_per_minute: Annotated[int, Meta(ge=0)] | None = None
    tokens_per_hour: Annotated[int, Meta(ge=0)] | None = None
    budget_usd: Annotated[float, Meta(ge=0)] | None = None
    models: tuple[str, ...] = ("*",)

    def __repr__(self) -> str:
        return f"Key({self.id!r}, {self.name!r})"

    @property
    def status(self) -> Status:
        """As of now."""
        if self.disabled:
            return "disabled"
        return "active" if self.expires is None or datetime.now(UTC) < self.expires else "expired"


FIELDS = msgspec.structs.fields(Key)


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


def allows(key: Key, model: str) -> bool:
    """Whether the key may use a model, given by its full name (provider/model)."""
    return any(fnmatchcase(model, glob) for glob in key.models)


def fingerprint(secret: str) -> str:
    """The form in which a key's text is kept."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_line(
    name: str, expires: timedelta | datetime | None, models: tuple[str, ...], tier: str
) -> tuple[bytes, str]:
    """A new key's line, and its text: the only time that it is known. Raises KeyFileError."""
    check_new(name, models, tier)
    secret = SECRET_PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).replace(microsecond=0)
    row = {
        "id": ID_PREFIX + secrets.token_urlsafe(9),
        "name": name,
        "hash": fingerprint(secret),
        "created": as_text(created),
        "expires": as_text(expiry(created, expires)),
        "disabled": False,
        "tier": tier,
        "requests_per_minute": None,
        "tokens_per_hour": None,
        "budget_usd": None,
        "models": list(models),
    }
    line = write_line(row)
    try:
        read_line(line)
    except BrokenLine as error:
        raise KeyFileError(f"This can't be a key: {error}.") from None
    return line, secret


def check_new(name: str, models: tuple[str, ...], tier: str) -> None:
    """What a key may not be called or allow. Raises KeyFileError."""
    if name.startswith((ID_PREFIX, SECRET_PREFIX, "-")) or name != name.strip():
        raise KeyFileError(
            f"A name can't begin with {ID_PREFIX!r}, {SECRET_PREFIX!r} or '-', "
            "nor begin or end with a space."
        )
    if tier not in TIERS:
        raise KeyFileError(f"The tier must be one of {', '.join(TIERS)}.")
    if not models or "" in models:
        raise KeyFileError("The models must be names or patterns, such as 'openai/*'.")


def expiry(created: datetime, expires: timedelta | datetime | None) -> datetime | None:
    """When a key ends, in whole seconds. Raises KeyFileError when that is not after `created`."""
    if expires is None:
        return None
    try:
        end = created + expires if isinstance(expires, timedelta) else expires.astimezone(UTC)
    except OverflowError:
        raise KeyFileError("A key can't expire as late as that.") from None
    end = end.replace(microsecond=0)
    if end <= created:
        raise KeyFileError("A key must expire in the future.")
    return end


def as_text(instant: datetime | None) -> str | None:
    """An instant of UTC as a line has it: 2026-01-01T00:00:00Z."""
    return None if instant is None else instant.replace(tzinfo=None).isoformat() + "Z"


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
    """A line's object and its key. Every field must be there: a restriction whose name is
    misspelt must not be a restriction lifted. Raises BrokenLine."""
    try:
        row = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        raise BrokenLine("not JSON") from None
    if not isinstance(row, dict):
        raise BrokenLine("not a JSON object")
    values: Row = {}
    for field in FIELDS:
        if field.name not in row:
            raise BrokenLine(f"{field.name!r} is missing")
        try:
            values[field.name] = msgspec.convert(row[field.name], field.type)
        except msgspec.ValidationError:
            raise BrokenLine(f"{field.name!r} is wrong") from None
        if not is_sound(values[field.name]):
            raise BrokenLine(f"{field.name!r} is wrong")
    return row, Key(**values)


def is_sound(value: object) -> bool:
    """What a type can't say: a text is fit for a terminal, an instant is UTC."""
    match value:
        case str():
            return value.isprintable()
        case tuple():
            return all(map(is_sound, value))
        case datetime():
            return value.utcoffset() == timedelta(0)
    return True


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
