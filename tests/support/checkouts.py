"""A checkout as a user has it after the set-up, in which tests run commands of the docs.

- The checkout is a folder of links to this repository, with a copy of ./sluice, and without
  private files (.env, keys, ledger, sluice.toml).
- Files that a command writes stay in that folder.
- A server that is started there listens on loopback, and stops when the test leaves the checkout.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.servers import clean_environment, free_port

PRIVATE = (".env", "keys.jsonl", "keys.jsonl.lock", "sluice.toml", "sluice.db", ".venv", ".git")
ADDRESS = "127.0.0.1:8000"
"""The address of the server in the docs."""


class Checkout:
    """A set-up checkout.

    with Checkout(tmp_path) as checkout:
        checkout.bash("./sluice providers")
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for path in ROOT.iterdir():
            if path.name not in PRIVATE and not path.name.startswith("sluice.db"):
                (directory / path.name).symlink_to(path)
        # ./sluice works in the folder of the file that a link leads to.
        (directory / "sluice").unlink()
        shutil.copy2(ROOT / "sluice", directory)
        venv = directory / ".venv"
        venv.mkdir()
        for name in ("bin", "lib", "lib64", "include", "pyvenv.cfg"):
            if (found := Path(sys.prefix) / name).exists():
                (venv / name).symlink_to(found)
        for name in (".requirements", ".requirements-dev"):
            (venv / name).touch()
        self.env = clean_environment() | {
            "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self.port}",
            "PYTHONUNBUFFERED": "1",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def bash(self, text: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.ours(text)],
            cwd=self.directory,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )

    def ours(self, text: str) -> str:
        """Return commands of the docs with the address of this checkout's server."""
        return text.replace(ADDRESS, f"127.0.0.1:{self.port}")

    def serve(self, command: str) -> str:
        """Start a server; stop the running one first. Return the output until it is ready."""
        self.stop()
        output = self.directory / "output"
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.directory,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        deadline = time.monotonic() + HANG_S
        while self.bash(f"curl -fsS http://{ADDRESS}/ready").returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"{command} didn't become ready:\n{output.read_text()}")
            time.sleep(0.1)
        return output.read_text()

    def stop(self) -> None:
        """Stop the server with SIGINT, as Ctrl-C does."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
            try:
                self._process.wait(HANG_S)
            finally:
                if self._process.poll() is None:
                    os.killpg(self._process.pid, signal.SIGKILL)
                    self._process.wait(HANG_S)
        self._process = None
