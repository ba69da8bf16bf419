"""Whether the peer at the other end of a socket is still there, and whether it has sent anything.

Rules that hold here: nothing waits, no byte is taken. On Linux TCP is asked, elsewhere
a peek tells.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
import termios

TCP_ESTABLISHED = 1


def hung_up(client: socket.socket) -> bool:
    """Whether the client closed its connection, or its half of it. Never waits, takes no byte."""
    try:
        if sys.platform == "linux" and client.family in (socket.AF_INET, socket.AF_INET6):
            # Works on TLS sockets, and behind pipelined bytes.
            state = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
            return state[0] != TCP_ESTABLISHED
        return _at_end(client)
    except OSError:  # closed
        return True


def _at_end(client: socket.socket) -> bool:
    """The same where there is no TCP_INFO: peek, which can't see an end behind other bytes."""
    timeout = client.gettimeout()
    client.settimeout(0)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except (BlockingIOError, InterruptedError, ValueError):  # ValueError: a TLS socket can't
        return False
    finally:
        client.settimeout(timeout)


def unread(sock: socket.socket) -> int:
    """How many bytes wait in a socket. Raises OSError."""
    waiting = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(waiting, sys.byteorder)


def shut(client: socket.socket) -> None:
    """Shut a socket down that may be closed already."""
    with contextlib.suppress(OSError):
        # Not SSLSocket's own: that drops its TLS state under the reader's feet.
        socket.socket.shutdown(client, socket.SHUT_RDWR)
