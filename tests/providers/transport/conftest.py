"""Pairs of sockets for the tests of the pool and of the abort switch."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest


class Peers:
    """Pairs of connected sockets: `ours` for the code under test, `theirs` for the test."""

    def __init__(self) -> None:
        self.theirs: dict[socket.socket, socket.socket] = {}

    def new(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.theirs[ours] = theirs
        return ours


@pytest.fixture
def peers() -> Iterator[Peers]:
    made = Peers()
    yield made
    for ours, theirs in made.theirs.items():
        ours.close()
        theirs.close()
