"""The files through which several processes add their metrics up, one of each kind a process.

prometheus_client writes them through memory, where a full disk ends the process at once (SIGBUS).
So what it will write to is taken from the disk before. Rules that hold here: trouble with the disk
costs counts, never a call.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from pathlib import Path
from typing import Literal, TypeAlias

log = logging.getLogger("sluice.metrics")

GaugeMerge: TypeAlias = Literal["livesum", "livemax", "livemin"]
"""How a gauge's values in several processes become one."""
MERGES: tuple[GaugeMerge, ...] = ("livesum", "livemax", "livemin")
FILE_BYTES = 1 << 16
"""Of a file of values, at first."""
ENTRY_BYTES = 28
"""What a value takes in its file, at most, beside its key."""


class Files:
    """Of this process."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError."""
        self._counters = directory / f"counter_{os.getpid()}.db"
        self._full = False
        kinds = ("histogram", *(f"gauge_{merge}" for merge in MERGES))
        others = (directory / f"{kind}_{os.getpid()}.db" for kind in kinds)
        for path in (self._counters, *others):
            if not path.exists():  # else of a dead process with this pid, and its counts go on
                create(path)

    def make_room(self, key: str) -> bool:
        """Whether there is room for one more counter, by the key that the library gives it. It
        doubles the file when it needs to, as the library then does, which finds it done."""
        try:
            with self._counters.open("r+b") as file:
                used = int.from_bytes(file.read(4), sys.byteorder)
                size = file.seek(0, os.SEEK_END)
                if used + len(key) + ENTRY_BYTES > size:
                    append(file.fileno(), size)
        except OSError as error:
            if not self._full:
                log.error("there is no room for more metrics: %s", error.strerror)
            self._full = True
            return False
        return True


def create(path: Path) -> None:
    """A file of zeros, which no other process sees before it is whole. Raises OSError."""
    new = path.with_suffix(".new")
    try:
        new.write_bytes(bytes(FILE_BYTES))
        new.rename(path)
    finally:
        new.unlink(missing_ok=True)


def append(file: int, size: int) -> None:
    """Double a file by zeros. Raises OSError, and then it is as it was."""
    try:
        if os.pwrite(file, bytes(size), size) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        raise
