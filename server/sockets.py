"""Two operations on a client's socket that don't wait and don't read."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
import termios


def unread(sock: socket.socket) -> int:
    """Return how many bytes have arrived and are unread. Raises OSError."""
    waiting = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(waiting, sys.byteorder)


def shut(client: socket.socket) -> None:
    """Shut a socket down, unless it is closed already."""
    with contextlib.suppress(OSError):
        # Not SSLSocket.shutdown, which drops the TLS state while a greenlet may be reading.
        socket.socket.shutdown(client, socket.SHUT_RDWR)
