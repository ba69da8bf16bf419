"""PgBouncer for the tests: a child process in front of a PostgreSQL server of the tests."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Self

from tests.support.daemons import CantRunError, launch
from tests.support.pace import HANG_S
from tests.support.servers import free_port


class PgBouncer:
    """A running PgBouncer: `with PgBouncer(postgres_url) as pooler: ...`

    Args:
        postgres_url: The URL of the database, whose host is the folder of a Unix socket.
        settings: Settings beside Debian's defaults, such as pool_mode="session".

    Raises:
        CantRunError: PgBouncer can't run here.
    """

    def __init__(self, postgres_url: str, **settings: object) -> None:
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
        if program is None:
            raise CantRunError("PgBouncer isn't installed")
        self._program = program
        self._settings = {"pool_mode": "transaction", "default_pool_size": 20, **settings}
        rest, self._folder = postgres_url.split("?host=")
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/{rest.rpartition('/')[2]}"
        self._user = "nobody" if os.geteuid() == 0 else None  # PgBouncer refuses to run as root

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="sluice-pgb-"))
        settings = self._settings | {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "auth_type": "any",
            "unix_socket_dir": "",
        }
        lines = "\n".join(f"{name} = {value}" for name, value in settings.items())
        text = f"[databases]\n* = host={self._folder} user=postgres\n[pgbouncer]\n{lines}\n"
        (self._directory / "pgbouncer.ini").write_text(text)
        if self._user is not None:
            for path in (self._directory, self._directory / "pgbouncer.ini"):
                shutil.chown(path, self._user)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self) -> None:
        command: list[str | Path] = [self._program, self._directory / "pgbouncer.ini"]
        self._process = launch(
            command, self._directory, self._is_ready, farewell="KILL", user=self._user
        )

    def stop(self) -> None:
        """End PgBouncer at once, and all connections through it."""
        self._process.kill()
        self._process.wait(HANG_S)

    def _is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S).close()
        except OSError:
            return False
        return True
