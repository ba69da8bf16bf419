"""The resources of a process, read from /proc: memory, threads, sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ESTABLISHED = "01"


class Held(NamedTuple):
    rss: int
    """Resident memory in bytes."""
    threads: int
    sockets: int
    """All sockets, including those of clients."""
    clients: int
    """Connections from clients, in any state."""
    files: int


def held(pid: int, port: int) -> Held:
    """Return the resources of a process that listens on `port`."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    opened = list(links(pid))
    own = {name[8:-1] for name in opened if name.startswith("socket:")}
    clients = sum(
        1 for inode, local, peer in connections() if inode in own and local == port and peer
    )
    rss, threads = int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"])
    return Held(rss, threads, len(own), clients, len(opened))


def links(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            yield str(path.readlink())


def connections() -> Iterator[tuple[str, int, int]]:
    """Yield the inode, the local port and the peer's port of each TCP socket (0: no peer)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, peer = (int(fields[n].rpartition(":")[2], 16) for n in (1, 2))
        yield fields[9], local, peer
