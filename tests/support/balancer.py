"""A load balancer for the tests: each connection of a client goes to the next backend in turn.

It is a process of its own, so that a busy test doesn't slow down what passes through it, and ends
when its pipe does. Rules that hold here: it knows nothing of HTTP; of what one side says it holds a
single read, until the other has taken it; an end and a reset are passed on as they came; a backend
that refuses a connection is passed over.
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
    """`with Balancer([("127.0.0.1", 8001), ...]) as balancer: connect to balancer.port`"""

    def __init__(self, backends: Sequence[Address], *, host: str = "127.0.0.1") -> None:
        """host: the address to listen on."""
        self._backends, self._host = list(backends), host

    def __enter__(self) -> Self:
        with socket.create_server((self._host, 0), backlog=BACKLOG) as listener:
            self.port = int(listener.getsockname()[1])
            command = f"from tests.support.balancer import serve; serve({listener.fileno()})"
            # A process group of its own: Ctrl-C is for the tests, which then end it.
            self._process = subprocess.Popen(
                [sys.executable, "-c", command, json.dumps(self._backends)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                process_group=0,
            )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Side:
    """One end of a connection that passes through. held: what the other side said and this one has
    not taken. over: it has said all."""

    other: Side

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.held, self.over = connection, b"", False

    @property
    def interest(self) -> int:
        reads = not self.over and not self.other.held
        return reads * selectors.EVENT_READ | bool(self.held) * selectors.EVENT_WRITE

    def hear(self) -> None:
        """Take what it says, for the other side."""
        data = self.socket.recv(READ_BYTES)
        if data:
            self.other.held = data
            self.other.tell()
        else:
            self.over = True
            self.other.socket.shutdown(socket.SHUT_WR)

    def tell(self) -> None:
        """Give it what is held for it, as far as it takes that."""
        with contextlib.suppress(BlockingIOError):
            self.held = self.held[self.socket.send(self.held) :]

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Loop:
    """What the process does."""

    def __init__(self, listener: socket.socket, backends: Sequence[Address]) -> None:
        self._listener, self._count, self._next = listener, len(backends), cycle(backends)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)

    def run(self) -> None:
        """Until the pipe on stdin closes."""
        while True:
            for key, events in self._selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif key.data.socket.fileno() >= 0:  # not closed in this same round
                    self._serve(key.data, events)

    def _accept(self) -> None:
        client = self._listener.accept()[0]
        near = Side(client)
        for _ in range(self._count):
            with contextlib.suppress(OSError):
                backend = socket.create_connection(next(self._next), CONNECT_TIMEOUT_S)
                near.other = Side(backend)
                near.other.other = near
                self._watch(near)
                self._watch(near.other)
                return
        near.reset()

    def _serve(self, side: Side, events: int) -> None:
        try:
            if events & side.interest & selectors.EVENT_WRITE:
                side.tell()
            if events & side.interest & selectors.EVENT_READ:
                side.hear()
        except BlockingIOError:
            pass
        except OSError:  # either of them has reset it
            self._forget(side, side.other)
            side.reset()
            side.other.reset()
            return
        if side.over and side.other.over:
            self._forget(side, side.other)
            side.socket.close()
            side.other.socket.close()
            return
        self._watch(side)
        self._watch(side.other)

    def _watch(self, side: Side) -> None:
        """Be told of what it waits for, and of nothing else."""
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
    """The main function of the process. listener: the file descriptor of a listening socket."""
    with socket.socket(fileno=listener) as sock:
        Loop(sock, [(host, port) for host, port in json.loads(sys.argv[1])]).run()
