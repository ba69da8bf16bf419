"""The test's side of the fake provider: it starts the process and drives it over a pipe.

The process ends when its pipe does, so it never outlives the tests, however they end.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Self, cast

from tests.support.fake.steps import Counts, Fault, Request, Step
from tests.support.pace import HANG_S
from tests.support.paths import ROOT


class FakeProvider:
    """The fake as tests see it: `with FakeProvider.start() as fake: ...`"""

    def __init__(self, process: subprocess.Popen[bytes], control: Connection, scheme: str) -> None:
        self._process, self._pipe, self._lock = process, control, threading.Lock()
        self.port = int(self._control("port"))
        self.origin = f"{scheme}://127.0.0.1:{self.port}"
        self.base_url = f"{self.origin}/v1"

    @classmethod
    def start(cls, tls: Path | None = None) -> Self:
        """tls: a PEM file with a private key and its certificate chain."""
        ours, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            command = (
                f"from tests.support.fake.server import serve; serve({fd}, {str(tls or '')!r})"
            )
            # A process group of its own: Ctrl-C is for the tests, which then stop it.
            process = subprocess.Popen(
                [sys.executable, "-c", command], cwd=ROOT, pass_fds=[fd], process_group=0
            )
        return cls(process, ours, "https" if tls else "http")

    def stop(self) -> None:
        self._pipe.close()
        try:
            self._process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(HANG_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._process.pid

    def script(self, steps: Sequence[Step], path: str | None = None) -> None:
        """Answer the next request (to that path) so."""
        self._control("script", steps, path)

    def named(self, scripts: Mapping[str, Sequence[Step]]) -> None:
        """Answer requests whose prompt's first word is such a name so, however often they come;
        "NAME PATH" is for that path alone."""
        self._control("named", scripts)

    def placed(self, scripts: Mapping[str, Sequence[Sequence[Step]]]) -> None:
        """Answer requests to paths under /NAME/ with the next of its scripts, and with the last
        one again and again."""
        self._control("placed", scripts)

    def default(self, steps: Sequence[Step]) -> None:
        """Answer requests that no script waits for so."""
        self._control("default", steps)

    def next_connection(self, fault: Fault) -> None:
        """Spoil the next new connection before a byte: reset it at once, or never read from it
        (once a mute one's buffers are full, its peer's FIN waits behind the data, unseen)."""
        self._control("fault", fault)

    def open(self, name: str) -> None:
        """Let scripts pass the gate of that name, now and later."""
        self._control("open", name)

    def forget(self) -> None:
        """Forget the requests that were answered, which a long run would heap up."""
        self._control("forget")

    def reset(self) -> None:
        """Forget scripts, gates and requests, and close all connections."""
        self._control("reset")

    @property
    def requests(self) -> list[Request]:
        """In the order in which they came, as they are now."""
        return cast(list[Request], self._control("requests"))

    @property
    def counts(self) -> Counts:
        return cast(Counts, self._control("counts"))

    def wait_requests(self, n: int = 1, timeout: float = HANG_S) -> list[Request]:
        """Wait until n requests have arrived."""
        return self.wait(lambda counts: counts.received >= n, timeout)

    def wait_closed(self, n: int = 1, timeout: float = HANG_S) -> list[Request]:
        """Wait until the connections of n requests are closed."""
        return self.wait(lambda counts: counts.closed >= n, timeout)

    def wait(self, condition: Callable[[Counts], bool], timeout: float = HANG_S) -> list[Request]:
        """Wait for the counts to be so; the requests by then."""
        deadline = time.monotonic() + timeout
        while not condition(counts := self.counts):
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {timeout:g} s: {counts}")
            time.sleep(0.005)
        return self.requests

    def _control(self, *command: object) -> Any:
        with self._lock:
            self._pipe.send(command)
            if not self._pipe.poll(HANG_S):
                raise TimeoutError("the fake provider's process doesn't answer")
            return self._pipe.recv()


@contextlib.contextmanager
def blackhole() -> Iterator[str]:
    """The origin of a host that never accepts: a connect to it hangs, as its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
