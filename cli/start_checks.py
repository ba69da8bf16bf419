"""The checks before a server starts: its addresses, its files, and its databases.

Each problem is raised as a ConfigError, whose message is one line that says what to do.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cli.quickstart import ANY, url_of
from config import ConfigError
from endpoints.services import Services
from errors import OWN_NAME, OWN_REALM

ANSWER_S = 1.0
"""The time that another server on the port has to say what it is."""
LONGEST_HEAD = 16_384
MOST_TRIED = 50
"""The number of ports that are tried to suggest a free one."""


def listen(addresses: Sequence[tuple[str, int]], backlog: int, command: str) -> list[socket.socket]:
    """Return sockets that listen on all these addresses.

    Args:
        addresses: hosts and ports.
        backlog: the most connections that may wait to be accepted.
        command: the command that starts the server, for messages.

    Raises:
        ConfigError: an address is taken, or can't be used.
    """
    sockets = []
    for host, port in addresses:
        try:
            sockets.append(listener(host, port, backlog))
        except OSError as error:
            raise ConfigError(refusal(host, port, error, command)) from None
    return sockets


def listener(host: str, port: int, backlog: int = 1) -> socket.socket:
    """Return a socket that listens, with gunicorn's options. Raises OSError."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(backlog)
    except BaseException:
        made.close()
        raise
    return made


def refusal(host: str, port: int, error: OSError, command: str) -> str:
    """Return a sentence that says why a server can't listen on an address, and what to try."""
    if isinstance(error, socket.gaierror):
        return f"can't listen on {host}: there is no such host or address"
    match error.errno:
        case errno.EADDRINUSE if is_sluice_at(host, port):
            url, port = url_of(host, port), free_port(host, port)
            return f"Sluice already runs at {url}; to start another one, try PORT={port} {command}"
        case errno.EADDRINUSE:
            return f"Port {port} is taken; try PORT={free_port(host, port)} {command}"
        case errno.EADDRNOTAVAIL:
            return f"can't listen on {host}: this machine doesn't have that address"
        case errno.EACCES | errno.EPERM:
            return f"Port {port} needs more rights than you have; try PORT=8000 {command}"
    return f"can't listen on {host}, port {port}: {error.strerror}"


def is_sluice_at(host: str, port: int) -> bool:
    """Return True if what listens at an address, without TLS, is a Sluice."""
    target = "127.0.0.1" if host in ANY else host
    head = b""
    with suppress(OSError), socket.create_connection((target, port), timeout=ANSWER_S) as asked:
        asked.sendall(b"GET /v1/models HTTP/1.0\r\nHost: localhost\r\n\r\n")
        while b"\r\n\r\n" not in head and len(head) < LONGEST_HEAD:
            if not (data := asked.recv(4096)):
                break
            head += data
    return OWN_REALM.encode() in head or f"Via: {OWN_NAME}\r".encode() in head


def free_port(host: str, taken: int) -> int:
    """Return the next port on which a server can listen, if one of the next ports is free."""
    for port in range(taken + 1, min(taken + MOST_TRIED, 65536)):
        with suppress(OSError), listener(host, port):
            return port
    return 8000


def check_files(services: Services) -> Iterator[str]:
    """Check the ledger's folder, and yield warnings. Raises ConfigError if it can't be written."""
    ledger = services.ledger
    folders = {services.keys.path.absolute().parent}
    if ledger.path is not None:
        folders.add(ledger.path.absolute().parent)
        require_writable(ledger.path.absolute().parent)
        if services.cluster is None and ledger.is_shared():
            yield (
                f"another server uses {ledger.path} too. Each of them stops only its own streams, "
                "and counts requests per minute for itself: let them share a REDIS_URL, or give "
                "this one a SLUICE_DATABASE of its own"
            )
    if os.geteuid() == 0:
        for folder in sorted(folders):
            if folder.is_dir() and folder.stat().st_uid != 0:
                yield (
                    f"{folder} belongs to {owner(folder)}, but you are root: only root can read "
                    "the keys and the ledger that this server creates there"
                )


def require_writable(folder: Path) -> None:
    """Raise ConfigError if the ledger can't be created in a folder."""
    if not folder.is_dir():
        raise ConfigError(f"the folder of the ledger doesn't exist: {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{folder} belongs to {owner(folder)}, and you may not write there: clone Sluice into "
            "a folder of your own, or set SLUICE_DATABASE and SLUICE_KEYS_FILE to files in one"
        )


def owner(folder: Path) -> str:
    """Return the name of a folder's owner, or the owner's number if it has no name."""
    with suppress(KeyError):
        return folder.owner()
    return f"user {folder.stat().st_uid}"


def connect(services: Services) -> None:
    """Connect to the ledger and to Redis as a worker does, and disconnect. Raises ConfigError."""
    try:
        for start, needed in services.starts():
            try:
                start()
            except ConfigError:
                if needed:
                    raise
    finally:
        services.close()
