"""Real servers, started in the ways in which users start them.

- A server gets its settings only from the test, never from the developer's environment.
- It listens on loopback, and its files are in a temporary directory.
- After `stop` none of its processes is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeAlias

from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.raw_client import RawClient

POLL_S = 0.02

Kind: TypeAlias = Literal["gevent", "gthread", "python", "flask"]

FOREIGN_PREFIXES = ("SLUICE_", "FLASK_", "GUNICORN_")
FOREIGN_NAMES = (
    *("PORT", "WEB_CONCURRENCY", "REDIS_URL", "DATABASE_URL"),
    *("PROMETHEUS_MULTIPROC_DIR", "SCRIPT_NAME", "FORWARDED_ALLOW_IPS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
"""Environment variables that would change a server, in addition to those that end with _API_KEY."""


UNTROUBLED = {"SLUICE_COOLDOWN": "0", "SLUICE_RETRIES": "0"}
"""Settings without retries and cool-downs, so that tests which share a server don't affect each
other. Retries and cool-downs are tested on separate servers."""


UNASKED = {"SLUICE_DISCOVERY_S": "0"}
"""A setting with which no host is asked for its models. Otherwise tests would ask whatever listens
on the ports of local engines on the developer's machine."""


def fake_rows(base_url: str) -> str:
    """Return rows for sluice.toml: `fake` with legacy completions, and `fakechat` without."""
    row = '[providers.{}]\ndialect = "openai"\nbase_url = "{}"\ncompletions = {}\n\n'
    return row.format("fake", base_url, "true") + row.format("fakechat", base_url, "false")


def make_key(name: str = "test", **fields: object) -> tuple[str, str]:
    """Return a new key and its line for the key file. `fields` override fields of the line."""
    text = f"sluice-{secrets.token_urlsafe(32)}"
    line = {
        "id": f"key_{secrets.token_urlsafe(9)}",
        "name": name,
        "hash": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}",
        "created": "2026-01-01T00:00:00Z",
        "expires": None,
        "disabled": False,
        "tier": "unlimited",
        "requests_per_minute": None,
        "tokens_per_hour": None,
        "budget_usd": None,
        "models": ["*"],
    }
    return text, json.dumps(line | fields) + "\n"


def clean_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN_PREFIXES)
        and not name.endswith("_API_KEY")
        and name not in FOREIGN_NAMES
    }


def settings_files(directory: Path) -> dict[str, str]:
    return {
        "SLUICE_CONFIG": str(directory / "sluice.toml"),
        "SLUICE_KEYS_FILE": str(directory / "keys.jsonl"),
        "SLUICE_DATABASE": str(directory / "sluice.db"),
    }


class Server:
    """A running Sluice: `with Server(fake_rows(fake.base_url)) as server: ...`

    Args:
        config: The text of its sluice.toml.
        kind: The command: gunicorn as configured ("gevent"), gunicorn with threads ("gthread"),
            `python wsgi.py` ("python"), or `flask run` ("flask").
        env: Additional environment variables.
        args: Additional arguments of the command.
        threads: The number of threads of "gthread".
        directory: A directory for its files and its output, which is kept so that another server
            can use these files. None for a temporary directory, which is deleted on `stop`.
        root: The checkout to run; None for this one.
    """

    def __init__(
        self,
        config: str = "",
        *,
        kind: Kind = "gevent",
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        threads: int = 16,
        directory: Path | None = None,
        root: Path | None = None,
    ) -> None:
        self.port = free_port()
        self._root = root
        self.url = f"http://127.0.0.1:{self.port}"
        self._cleanup = contextlib.ExitStack()
        if directory is None:
            temporary = tempfile.TemporaryDirectory(prefix="sluice-test-")
            directory = Path(self._cleanup.enter_context(temporary))
        self.directory = directory
        self._output = ""
        (self.directory / "sluice.toml").write_text(config)
        self.key = self.add_key()
        self._env = self._environment() | dict(env or {})
        self._command = [sys.executable, *_command(kind, self.port, threads, args)]

    def start(self) -> Self:
        """Launch the server and wait until it accepts calls.

        Raises:
            RuntimeError: The server didn't become ready. The message has its output.
        """
        with (self.directory / "output").open("ab") as output:
            # A separate process group doesn't get Ctrl-C, and identifies the server's processes.
            self._process = subprocess.Popen(
                self._command,
                cwd=self._root or ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            self.wait(self.is_ready, HANG_S)
        except BaseException as failure:
            output_so_far = self.output()
            self.stop()
            if not isinstance(failure, TimeoutError):
                raise
            message = f"{self._command} didn't become ready:\n{output_so_far}"
            raise RuntimeError(message) from None
        return self

    def stop(self, timeout: float = 10.0) -> int:
        """End the server with SIGTERM, and after the timeout with SIGKILL. Return its status."""
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(HANG_S)
        self._end_orphans()
        self._output = self.output()
        self._cleanup.close()
        return self._process.returncode

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The id of the master, or of the only process."""
        return self._process.pid

    def worker_pids(self) -> list[int]:
        return [p.pid for p in _processes() if p.parent == self.pid]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def returncode(self) -> int | None:
        """Return the exit status, or None while the server runs."""
        return self._process.poll()

    def wait_exit(self, timeout: float = HANG_S) -> int:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            message = f"the server still runs after {timeout:g} s:\n{self.output()}"
            raise TimeoutError(message) from None

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait(self, condition: Callable[[], bool], timeout: float = HANG_S) -> None:
        """Wait until the condition is true.

        Raises:
            TimeoutError: The condition isn't true in time, or the server has exited.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or self.returncode() is not None:
                problem = f"not true within {timeout:g} s, or the server has exited"
                raise TimeoutError(f"{problem}; its output:\n{self.output()}")
            time.sleep(POLL_S)

    def output(self) -> str:
        """Return the output on stdout and stderr so far. This also works after `stop`."""
        path = self.directory / "output"
        return path.read_text(errors="replace") if path.exists() else self._output

    def add_key(self, name: str = "test", **fields: object) -> str:
        text, line = make_key(name, **fields)
        path = self.directory / "keys.jsonl"
        path.touch(mode=0o600)
        with path.open("a") as file:
            file.write(line)
        return text

    def client(self, **options: Any) -> RawClient:
        return RawClient(self.port, key=self.key, **options)

    def _environment(self) -> dict[str, str]:
        return clean_environment() | {
            "PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
            "FLASK_SKIP_DOTENV": "1",  # a developer's .env holds real keys
            **settings_files(self.directory),
            **UNASKED,
        }

    def _end_orphans(self) -> None:
        """Kill workers of a killed master that don't exit by themselves within 2 s."""
        deadline = time.monotonic() + 2
        while members := [p.pid for p in _processes() if p.group == self.pid]:
            if time.monotonic() > deadline:
                for pid in members:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(POLL_S)


def _command(kind: Kind, port: int, threads: int, args: Sequence[str]) -> list[str]:
    gunicorn = ["-m", "gunicorn", "-b", f"127.0.0.1:{port}"]
    match kind:
        case "gevent":
            return [*gunicorn, *args, "wsgi:app"]
        case "gthread":
            return [*gunicorn, "-k", "gthread", "--threads", str(threads), *args, "wsgi:app"]
        case "python":
            return ["wsgi.py", *args]
        case "flask":
            return ["-m", "flask", "--app", "wsgi", "run", "--port", str(port), *args]


def free_port() -> int:
    """Return a free port.

    It is below the range of ports for outgoing connections, so that no connection of a test takes
    the port before the server does.
    """
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class _Process(NamedTuple):
    pid: int
    parent: int
    group: int


def _processes() -> Iterator[_Process]:
    """Yield all processes except zombies."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, group = path.read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                yield _Process(int(path.parent.name), int(parent), int(group))
