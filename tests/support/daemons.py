"""Third-party servers that the tests start as child processes, which end with the tests."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.pace import HANG_S

POLL_S = 0.02


class CantRunError(Exception):
    """An error that says why a server can't run on this machine."""


def launch(
    command: Sequence[str | Path],
    directory: Path,
    is_ready: Callable[[], bool],
    *,
    farewell: str,
    user: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server and wait until it is ready.

    Args:
        directory: The working directory. The server's output goes to its file `output`.
        is_ready: Returns True once the server accepts connections.
        farewell: The signal that the server gets if the tests die. Needs `setpriv` (Linux).
        user: The user that runs the server.

    Raises:
        CantRunError: The server can't be started, or doesn't become ready.
    """
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
                process_group=0,  # keeps Ctrl-C away: only the tests get it
            )
    except OSError as error:  # for example, a program for another processor
        raise CantRunError(f"{name} can't be started: {error}") from None
    until = time.monotonic() + HANG_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > until:
            output_text = (directory / "output").read_text(errors="replace")
            process.kill()
            process.wait()
            raise CantRunError(f"{name} didn't become ready:\n{output_text[-2000:]}")
        time.sleep(POLL_S)
    return process
