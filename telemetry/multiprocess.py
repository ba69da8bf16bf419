"""The files through which several processes add up their metrics: one per process and kind.

- prometheus_client maps them into memory, where a write to a full disk kills the process (SIGBUS).
  So this module allocates their room on the disk before prometheus_client writes there.
- A failing disk costs counts, never a call.
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
"""How the values of a gauge in several processes are merged into one."""
MERGES: tuple[GaugeMerge, ...] = ("livesum", "livemax", "livemin")
FILE_BYTES = 1 << 16
"""The initial size of a file."""
ENTRY_BYTES = 28
"""The most bytes that a value takes in its file, beside its key."""


class Files:
    """The files of this process."""

    def __init__(self, directory: Path) -> None:
        """Create the files in a directory. Raises OSError."""
        self._counters = directory / f"counter_{os.getpid()}.db"
        self._full = False
        kinds = ("histogram", *(f"gauge_{merge}" for merge in MERGES))
        others = (directory / f"{kind}_{os.getpid()}.db" for kind in kinds)
        for path in (self._counters, *others):
            if not path.exists():  # one that exists is a dead process's with this pid: count on
                create(path)

    def make_room(self, key: str) -> bool:
        """Return True if there is room for one more counter.

        The file is doubled if it must grow, exactly as prometheus_client would double it later.

        Args:
            key: the key that prometheus_client gives the counter.
        """
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
    """Create a file of zeros, which other processes see only once complete. Raises OSError."""
    new = path.with_suffix(".new")
    try:
        new.write_bytes(bytes(FILE_BYTES))
        new.rename(path)
    finally:
        new.unlink(missing_ok=True)


def append(file: int, size: int) -> None:
    """Append zeros to a file of `size` bytes until it has twice the size.

    Raises OSError if that fails; the file then keeps its size.
    """
    try:
        if os.pwrite(file, bytes(size), size) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        raise
