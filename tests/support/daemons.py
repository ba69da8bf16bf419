"""Servers of others that the tests start: child processes of theirs, which go with them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.pace import HANG_S

POLL_S = 0.02


class CantRunError(Exception):
    """Why a server can't run here."""


def launch(
    command: Sequence[str | Path],
    directory: Path,
    is_ready: Callable[[], bool],
    *,
    farewell: str,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start it in a directory, and wait until it is ready. farewell: the signal by which it is told
    when the tests die, where there is `setpriv` (Linux). Raises CantRunError."""
    name = Path(command[0]).name
    follow = ["setpriv", "--pdeathsig", farewell] if shutil.which("setpriv") else []
    try:
        with (directory / "output").open("wb") as output:
            process = subprocess.Popen(
                [*follow, *command],
                cwd=directory,
                user=user,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the tests
            )
    except OSError as error:  # such as a program of another kind of machine
        raise CantRunError(f"{name} can't be run: {error}") from None
    until = time.monotonic() + HANG_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > until:
            said = (directory / "output").read_text(errors="replace")
            process.kill()
            process.wait()
            raise CantRunError(f"{name} isn't ready:\n{said[-2000:]}")
        time.sleep(POLL_S)
    return process
