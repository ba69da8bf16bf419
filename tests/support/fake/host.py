"""The test's side of the fake provider: it starts the process and controls it over a pipe.

The process exits when the pipe closes, so it never outlives the tests.
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
    """A running fake provider: `with FakeProvider.start() as fake: ...`"""

    def __init__(self, process: subprocess.Popen[bytes], control: Connection, scheme: str) -> None:
        self._process, self._pipe, self._lock = process, control, threading.Lock()
        self.port = int(self._control("port"))
        self.origin = f"{scheme}://127.0.0.1:{self.port}"
        self.base_url = f"{self.origin}/v1"

    @classmethod
    def start(cls, tls: Path | None = None) -> Self:
        """Start the process. `tls` is a PEM file with a private key and its certificate chain."""
        ours, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            command = (
                f"from tests.support.fake.server import serve; serve({fd}, {str(tls or '')!r})"
            )
            # A separate process group doesn't get Ctrl-C. The tests get it, and stop the process.
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
        """Play a script for the next request, or for the next request to `path`."""
        self._control("script", steps, path)

    def named(self, scripts: Mapping[str, Sequence[Step]]) -> None:
        """Play scripts by the first word of the prompt, for any number of requests.

        A script named "NAME PATH" is only for requests to that path.
        """
        self._control("named", scripts)

    def placed(self, scripts: Mapping[str, Sequence[Sequence[Step]]]) -> None:
        """Play scripts by the first part of the path, /NAME/.

        Each request plays the next script of its name. The last script is repeated.
        """
        self._control("placed", scripts)

    def default(self, steps: Sequence[Step]) -> None:
        """Play a script for all requests that no other script fits."""
        self._control("default", steps)

    def next_connection(self, fault: Fault) -> None:
        """Break the next new connection before it transfers a byte.

        Args:
            fault: "reset" resets the connection at once. "mute" never reads from it; once its
                buffers are full, a FIN of the peer waits behind the data and isn't noticed.
        """
        self._control("fault", fault)

    def open(self, name: str) -> None:
        self._control("open", name)

    def forget(self) -> None:
        """Forget finished requests, which would fill the memory in a long run."""
        self._control("forget")

    def reset(self) -> None:
        """Forget scripts, gates and requests, and close all connections."""
        self._control("reset")

    @property
    def requests(self) -> list[Request]:
        """A snapshot of the requests, in the order of their arrival."""
        return cast(list[Request], self._control("requests"))

    @property
    def counts(self) -> Counts:
        return cast(Counts, self._control("counts"))

    def wait_requests(self, n: int = 1, timeout: float = HANG_S) -> list[Request]:
        """Wait until n requests have arrived. Return all requests."""
        return self.wait(lambda counts: counts.received >= n, timeout)

    def wait_closed(self, n: int = 1, timeout: float = HANG_S) -> list[Request]:
        """Wait until the connections of n requests are closed. Return all requests."""
        return self.wait(lambda counts: counts.closed >= n, timeout)

    def wait(self, condition: Callable[[Counts], bool], timeout: float = HANG_S) -> list[Request]:
        """Wait until the condition is true for the counts. Return all requests."""
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
                raise TimeoutError("the fake provider's process doesn't respond")
            return self._pipe.recv()


@contextlib.contextmanager
def blackhole() -> Iterator[str]:
    """Yield the origin of a host with a full backlog, so that connecting to it hangs."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
