"""A proxy in front of a server that cuts its first connections in the middle of their responses."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self


class CuttingProxy:
    """A running proxy: `with CuttingProxy(server.port, [500, 900]) as proxy: ...`

    Args:
        port: The server's port on loopback.
        cuts: The bytes that the first connections deliver before they are cut.
    """

    def __init__(self, port: int, cuts: list[int]) -> None:
        self._server, self._cuts = port, list(cuts)
        self._sockets: list[socket.socket] = []
        self.made = 0
        """The number of connections that were cut."""

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for sock in self._sockets:
            shut(sock)
            sock.close()

    def cut(self) -> None:
        """Cut all connections."""
        for sock in list(self._sockets):
            shut(sock)
        self.made += 1

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                room = self._cuts.pop(0) if self._cuts else None
                server = socket.create_connection(("127.0.0.1", self._server))
                self._sockets += [client, server]
                for source, target, most in ((client, server, None), (server, client, room)):
                    threading.Thread(
                        target=self._copy, args=(source, target, most), daemon=True
                    ).start()

    def _copy(self, source: socket.socket, target: socket.socket, room: int | None) -> None:
        """Copy bytes from one side to the other, at most `room` of them. Then close both."""
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data if room is None else data[:room])
                if room is not None:
                    room -= len(data)
                    if room <= 0:
                        self.made += 1
                        break
        shut(source)
        shut(target)


def shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
