"""A load balancer for the tests: each new connection goes to the next backend.

- The balancer is a separate process, so a busy test doesn't slow down traffic. It exits when its
  stdin closes. A line there replaces the backends.
- It forwards bytes and knows nothing about HTTP.
- It buffers at most one read per direction, and reads again when the other side has taken the data.
- A FIN and a RST are forwarded.
- A backend that refuses a connection is skipped.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from itertools import cycle
from typing import Self, TypeAlias

from tests.support.pace import HANG_S, scaled
from tests.support.paths import ROOT

READ_BYTES = 65536
CONNECT_TIMEOUT_S = scaled(1.0)
BACKLOG = 1024

Address: TypeAlias = tuple[str, int]


class Balancer:
    """A running balancer.

    with Balancer([("127.0.0.1", 8001), ("127.0.0.1", 8002)]) as balancer:
        connect(balancer.port)
    """

    def __init__(self, backends: Sequence[Address], *, host: str = "127.0.0.1") -> None:
        self._backends, self._host = list(backends), host

    def __enter__(self) -> Self:
        with socket.create_server((self._host, 0), backlog=BACKLOG) as listener:
            self.port = int(listener.getsockname()[1])
            command = f"from tests.support.balancer import serve; serve({listener.fileno()})"
            # A separate process group doesn't get Ctrl-C. The tests get it, and end the process.
            self._process = subprocess.Popen(
                [sys.executable, "-c", command, json.dumps(self._backends)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                process_group=0,
            )
        return self

    def redirect(self, backends: Sequence[Address]) -> None:
        """Reset all connections, and lead new ones to other backends, as a failover does."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(list(backends)).encode() + b"\n")
        self._process.stdin.flush()

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Side:
    """One of the two sockets of a forwarded connection.

    Attributes:
        other: The other socket.
        held: Data from the other socket that this one hasn't accepted yet.
        over: True if this socket's peer has sent its FIN.
    """

    other: Side

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.held, self.over = connection, b"", False

    @property
    def interest(self) -> int:
        reads = not self.over and not self.other.held
        return reads * selectors.EVENT_READ | bool(self.held) * selectors.EVENT_WRITE

    def read(self) -> None:
        data = self.socket.recv(READ_BYTES)
        if data:
            self.other.held = data
            self.other.write()
        else:
            self.over = True
            self.other.socket.shutdown(socket.SHUT_WR)

    def write(self) -> None:
        """Write as much of the held data as the socket accepts."""
        with contextlib.suppress(BlockingIOError):
            self.held = self.held[self.socket.send(self.held) :]

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Loop:
    def __init__(self, listener: socket.socket, backends: Sequence[Address]) -> None:
        self._listener, self._count, self._next = listener, len(backends), cycle(backends)
        self._sides: set[Side] = set()
        self._commands = sys.stdin
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._commands, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            for key, events in self._selector.select():
                if key.fileobj is self._commands:
                    if not self._obey():
                        return
                elif key.fileobj is self._listener:
                    self._accept()
                elif key.data.socket.fileno() >= 0:  # not closed earlier in this round
                    self._serve(key.data, events)

    def _accept(self) -> None:
        client = self._listener.accept()[0]
        near = Side(client)
        for _ in range(self._count):
            with contextlib.suppress(OSError):
                backend = socket.create_connection(next(self._next), CONNECT_TIMEOUT_S)
                near.other = Side(backend)
                near.other.other = near
                self._sides |= {near, near.other}
                self._watch(near)
                self._watch(near.other)
                return
        near.reset()

    def _serve(self, side: Side, events: int) -> None:
        try:
            if events & side.interest & selectors.EVENT_WRITE:
                side.write()
            if events & side.interest & selectors.EVENT_READ:
                side.read()
        except BlockingIOError:
            pass
        except OSError:  # one of the two peers has reset the connection
            self._reset(side)
            return
        if side.over and side.other.over:
            self._forget(side, side.other)
            self._sides -= {side, side.other}
            side.socket.close()
            side.other.socket.close()
            return
        self._watch(side)
        self._watch(side.other)

    def _obey(self) -> bool:
        """Execute a command. Return False if there are none left."""
        line = self._commands.readline()
        if line:
            self._redirect([(host, port) for host, port in json.loads(line)])
        return bool(line)

    def _redirect(self, backends: Sequence[Address]) -> None:
        self._count, self._next = len(backends), cycle(backends)
        while self._sides:
            self._reset(next(iter(self._sides)))

    def _reset(self, side: Side) -> None:
        self._forget(side, side.other)
        self._sides -= {side, side.other}
        side.reset()
        side.other.reset()

    def _watch(self, side: Side) -> None:
        """Select only the events that the socket waits for."""
        if not side.interest:
            self._forget(side)
        elif side.socket in self._selector.get_map():
            self._selector.modify(side.socket, side.interest, side)
        else:
            self._selector.register(side.socket, side.interest, side)

    def _forget(self, *sides: Side) -> None:
        for side in sides:
            with contextlib.suppress(KeyError):
                self._selector.unregister(side.socket)


def serve(listener: int) -> None:
    """Run the process. `listener` is the file descriptor of a listening socket."""
    with socket.socket(fileno=listener) as sock:
        Loop(sock, [(host, port) for host, port in json.loads(sys.argv[1])]).run()
