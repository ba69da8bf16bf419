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

from config import ConfigError
from endpoints.services import Services

MOST_TRIED = 50
"""The number of ports that are tried to suggest a free one."""


def check_addresses(addresses: Sequence[tuple[str, int]], command: str) -> None:
    """Raise ConfigError unless a server can listen on all these addresses.

    Args:
        addresses: hosts and ports.
        command: the command that starts the server, for the message.
    """
    for host, port in addresses:
        error = problem_of(host, port)
        if error is None:
            continue
        if isinstance(error, socket.gaierror):
            raise ConfigError(f"can't listen on {host}: there is no such host or address")
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"Port {port} is taken; try PORT={free_port(host, port)} {command}")
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"can't listen on {host}: this machine doesn't have that address")
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ConfigError(
                f"Port {port} needs more rights than you have; try PORT=8000 {command}"
            )
        raise ConfigError(f"can't listen on {host}, port {port}: {error.strerror}")


def problem_of(host: str, port: int) -> OSError | None:
    """Return the error that a server would get that listens there; None if there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error
    return None


def free_port(host: str, taken: int) -> int:
    ports = range(taken + 1, min(taken + MOST_TRIED, 65536))
    return next((port for port in ports if problem_of(host, port) is None), taken + 1)


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
                    f"{folder} belongs to {owner(folder)}, but you are root: only root can read the "
                    "keys and the ledger that this server creates there"
                )


def require_writable(folder: Path) -> None:
    """Raise ConfigError if the ledger can't be created in a folder."""
    if not folder.is_dir():
        raise ConfigError(f"the folder of the ledger doesn't exist: {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{folder} belongs to {owner(folder)}, and you may not write there: clone Sluice into a "
            "folder of your own, or set SLUICE_DATABASE and SLUICE_KEYS_FILE to files in one"
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
