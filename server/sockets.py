"""Sockets: how much waits in one, and shutting one down that may be closed already.

- Nothing waits, and no byte is taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
import termios


def unread(sock: socket.socket) -> int:
    """How many bytes wait in a socket. Raises OSError."""
    waiting = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(waiting, sys.byteorder)


def shut(client: socket.socket) -> None:
    """Shut a socket down that may be closed already."""
    with contextlib.suppress(OSError):
        # Not SSLSocket's own: that drops its TLS state under the reader's feet.
        socket.socket.shutdown(client, socket.SHUT_RDWR)
