"""The configuration file sluice.toml: how it is read, and errors that name the line to change.

- The module imports only the standard library, because config.py does.
- What the tables contain is checked where it is used.
"""

from __future__ import annotations

import codecs
import difflib
import errno
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEFAULT_CONFIG = Path("sluice.toml")
TABLES = ("providers", "aliases", "prices", "groups")


class ConfigError(Exception):
    """The error for an invalid configuration. The message is one line that says what to change."""


class TomlError(ConfigError):
    """The error for a mistake in a table of sluice.toml.

    Attributes:
        at: the names that lead to the mistake: of a table, of a row in it, of a field.
        reason: what is wrong.
    """

    def __init__(self, reason: str, *at: str) -> None:
        super().__init__(f"sluice.toml, {table_of(at)}: {reason}")
        self.reason, self.at = reason, at

    def located(self, path: Path, text: str) -> ConfigError:
        """Return an error that also names the file and the line.

        Args:
            path: the file.
            text: its content.
        """
        lines = (line_of(text, self.at[:n]) for n in range(len(self.at), 0, -1))
        line = next((f", line {line}" for line in lines if line), "")
        return ConfigError(f"{path}{line}, {table_of(self.at)}: {self.reason}")


OF_ROWS = ("providers", "prices", "groups")
"""The tables of sluice.toml that consist of tables."""


def table_of(at: Sequence[str]) -> str:
    """Return the heading of the table that holds a mistake, such as [providers."a.b"]."""
    names = at[:2] if at[0] in OF_ROWS else at[:1]
    parts = (name if re.fullmatch(r"[\w-]+", name, re.ASCII) else f'"{name}"' for name in names)
    return f"[{'.'.join(parts)}]"


def line_of(text: str, at: Sequence[str]) -> int | None:
    """Return the number of the line that first sets a value in a TOML text.

    tomllib doesn't keep the lines. So the text is read up to each line that has the value's name,
    and a little further if a value ends on a later line.

    Args:
        text: a valid TOML text.
        at: the names of the tables that lead to the value, and its own.

    Returns:
        None if there is no such value, or none whose name is written out.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if at[-1] in line and has_value(lines, number, at):
            return number + 1
    return None


def has_value(lines: Sequence[str], number: int, at: Sequence[str]) -> bool:
    """Return True if the TOML text up to a line, or to the end of its value, has a value."""
    for end in range(number + 1, len(lines) + 1):
        try:
            found: Any = tomllib.loads("\n".join(lines[:end]))
        except tomllib.TOMLDecodeError:
            continue
        for name in at:
            found = found.get(name) if isinstance(found, dict) else None
        return found is not None
    return False


def decode(path: Path, data: bytes) -> str:
    """Return the text of a UTF-8 file, or of a UTF-16 file with a byte order mark.

    Raises ConfigError.
    """
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        where = "" if utf_16 else f" (see line {line})"
        raise ConfigError(f"{path} can't be read: save it as UTF-8{where}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ConfigError(f"{path} can't be read: line {line} has a NUL; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_file(path: Path, most: int = -1) -> bytes:
    """Return the first bytes of a regular file, or of /dev/null, which is empty.

    Args:
        path: the file, or a symbolic link to it.
        most: the most bytes to return; -1 for all.

    Raises:
        OSError: the file can't be read, or isn't a regular file: reading a pipe could hang, and
            some devices never end.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not Path(os.devnull).samefile(path):
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open("rb") as file:
        return file.read(most)


def read_toml(path: Path | None) -> dict[str, Any]:
    """Return the tables of a configuration file, and its text under the name "toml".

    Args:
        path: the file; None for ./sluice.toml, which counts as empty if it is missing.

    Raises:
        ConfigError: the file is invalid.
    """
    path = path or DEFAULT_CONFIG
    try:
        text = decode(path, read_file(path))
        data = tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except RecursionError:
        raise ConfigError(f"{path} can't be read: its values are nested too deeply") from None
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except ValueError as error:  # tomllib's own error is a ValueError
        quotes = "; a text needs quotes" if str(error).startswith("Invalid value") else ""
        raise ConfigError(f"{path} can't be read: {error}{quotes}") from None
    try:
        check_tables(data)
    except TomlError as error:
        raise error.located(path, text) from None
    return data | {"toml": text}


def check_tables(data: Mapping[str, Any]) -> None:
    """Raise TomlError if the tables of a configuration file aren't those that it may have."""
    for name, table in data.items():
        if name not in TABLES:
            raise TomlError(f"there is no such table{did_you_mean(name, TABLES)}", name)
        if not isinstance(table, dict):
            raise TomlError(f"{name} must be a table, [{name}]", name)
    for name in OF_ROWS:
        for key, row in data.get(name, {}).items():
            if not isinstance(row, dict):
                raise TomlError(f"{key} must be a table", name, key)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [*known], n=1)
    return f"; did you mean {near[0]}?" if near else ""
