"""A PostgreSQL server for the tests: a child process with a temporary directory.

- The server listens only on a Unix socket.
- The programs are those of the `pgserver` package, but its Python code isn't used. As root it adds
  a user to the system and makes parent directories of its files accessible to everyone. If the
  tests are killed, its server keeps running.
- This server gets a signal when the tests die, if `setpriv` is installed (Linux).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from tests.support.daemons import CantRunError, launch
from tests.support.pace import HANG_S


class Postgres:
    """A running server: `with Postgres() as postgres: ...`

    Raises:
        CantRunError: PostgreSQL can't run here.
    """

    def __init__(self) -> None:
        self._programs = programs()
        # PostgreSQL refuses to run as root. Any user can enter the temporary directory, and its
        # path is usually short enough for a socket.
        self._user = "nobody" if os.geteuid() == 0 else None
        self._databases = 0

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="sluice-pg-"))
        try:
            if self._user is not None:
                shutil.chown(self._directory, self._user)
            self._initialize()
            self._launch()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)  # "fast" shutdown: ends all sessions
            try:
                process.wait(HANG_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)  # "immediate" shutdown: kills its children
                process.wait(HANG_S)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """The id of the main process."""
        return self._process.pid

    def output(self) -> str:
        """Return the server's log so far."""
        return (self._directory / "output").read_text(errors="replace")

    def crash(self) -> None:
        """End the server at once, without closing its sessions properly."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(HANG_S)

    def restart(self) -> None:
        self._launch()

    def new_database(self) -> tuple[str, str]:
        """Create an empty database. Return its name and its URL."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return name, f"postgresql://postgres@/{name}?host={self._directory}"

    def drop(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        import psycopg

        url = f"postgresql://postgres@/postgres?host={self._directory}"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement.encode())

    def _initialize(self) -> None:
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        data = self._directory / "data"
        command: list[str | Path] = [self._programs / "initdb", "-D", data, *options]
        try:
            done = subprocess.run(
                command,
                cwd=self._directory,
                user=self._user,
                capture_output=True,
                text=True,
                timeout=HANG_S,
                check=False,
            )
        except OSError as error:  # for example, a path that `nobody` may not enter
            raise CantRunError(f"initdb can't be started: {error}") from None
        if done.returncode:
            raise CantRunError(f"initdb failed: {done.stderr.strip()}")

    def _launch(self) -> None:
        settings = ("listen_addresses=", f"unix_socket_directories={self._directory}", "fsync=off")
        options = [word for setting in settings for word in ("-c", setting)]
        program = self._programs / "postgres"
        command: list[str | Path] = [program, "-D", self._directory / "data", *options]
        self._process = launch(
            command, self._directory, self._is_ready, farewell="INT", user=self._user
        )

    def _is_ready(self) -> bool:
        command: list[str | Path] = [self._programs / "pg_isready", "-q", "-h", self._directory]
        return subprocess.run(command, timeout=HANG_S, check=False).returncode == 0


def programs() -> Path:
    """Return the folder of PostgreSQL's programs. Raises CantRunError if there is none."""
    package = importlib.util.find_spec("pgserver")  # importing it has side effects
    if package is None or package.origin is None:
        raise CantRunError("pgserver isn't installed")
    return Path(package.origin).parent / "pginstall" / "bin"
