"""Tests of the load balancer: connections through it behave like direct connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from tests.support.balancer import Balancer
from tests.support.pace import HANG_S
from tests.support.raw_client import RawClient
from tests.support.servers import free_port

MORE_THAN_THE_SYSTEM_HOLDS = 64 << 20


@pytest.fixture
def backends() -> Iterator[list[socket.socket]]:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        for listener in (one, two):
            listener.settimeout(HANG_S)
        yield [one, two]


def balancer(backends: Sequence[socket.socket]) -> Balancer:
    return Balancer([("127.0.0.1", backend.getsockname()[1]) for backend in backends])


@pytest.fixture
def joined(backends: list[socket.socket]) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield the two ends of a connection through a balancer: the client's and the backend's."""
    with balancer(backends[:1]) as between, RawClient(between.port, timeout=HANG_S) as client:
        served, _ = backends[0].accept()
        with served:
            served.settimeout(HANG_S)
            yield client.sock, served


def reset(sock: socket.socket) -> None:
    client = RawClient.__new__(RawClient)
    client.sock = sock
    client.reset()


def test_each_connection_goes_to_the_next_backend(backends: list[socket.socket]) -> None:
    with balancer(backends) as between:
        for backend in backends * 3:
            with RawClient(between.port), backend.accept()[0]:
                pass


def test_redirect_resets_connections_and_leads_new_ones_to_other_backends(
    backends: list[socket.socket],
) -> None:
    first, second = backends
    with balancer([first]) as between, RawClient(between.port) as client, first.accept()[0]:
        between.redirect([("127.0.0.1", second.getsockname()[1])])
        assert client.ended()
        with RawClient(between.port), second.accept()[0]:
            pass


def test_a_dead_backend_is_skipped(backends: list[socket.socket]) -> None:
    addresses = [("127.0.0.1", free_port()), ("127.0.0.1", backends[0].getsockname()[1])]
    with Balancer(addresses) as between:
        for _ in range(3):
            with RawClient(between.port), backends[0].accept()[0]:
                pass


def test_a_client_is_disconnected_when_every_backend_is_dead() -> None:
    with Balancer([("127.0.0.1", free_port())]) as between, RawClient(between.port) as client:
        assert client.ended()


def test_bytes_pass_unchanged_both_ways(joined: tuple[socket.socket, socket.socket]) -> None:
    every = bytes(range(256)) * 20_000
    for one, other in (joined, joined[::-1]):
        sending = threading.Thread(target=one.sendall, args=(every,))
        sending.start()
        got = b""
        while len(got) < len(every):
            got += other.recv(65536)
        sending.join()
        assert got == every


@pytest.mark.parametrize("by_client", [True, False])
def test_a_half_close_is_forwarded_and_the_other_side_can_still_send(
    joined: tuple[socket.socket, socket.socket], *, by_client: bool
) -> None:
    one, other = joined if by_client else joined[::-1]
    one.sendall(b"before")
    one.shutdown(socket.SHUT_WR)
    assert other.recv(100) == b"before"
    assert other.recv(100) == b""
    other.sendall(b"after")
    assert one.recv(100) == b"after"
    other.shutdown(socket.SHUT_WR)
    assert one.recv(100) == b""


@pytest.mark.parametrize("by_client", [True, False])
def test_a_reset_is_forwarded(
    joined: tuple[socket.socket, socket.socket], *, by_client: bool
) -> None:
    one, other = joined if by_client else joined[::-1]
    reset(one)
    with pytest.raises(ConnectionResetError):
        other.recv(100)


def test_the_balancer_stops_reading_for_a_peer_that_does_not_read(
    joined: tuple[socket.socket, socket.socket],
) -> None:
    client, _ = joined
    client.settimeout(1)
    with pytest.raises(TimeoutError):
        client.sendall(bytes(MORE_THAN_THE_SYSTEM_HOLDS))


def test_a_slow_connection_does_not_block_other_connections(backends: list[socket.socket]) -> None:
    with (
        balancer(backends[:1]) as between,
        RawClient(between.port, timeout=0.5) as slow,
        backends[0].accept()[0],
    ):
        with pytest.raises(TimeoutError):
            slow.send(bytes(MORE_THAN_THE_SYSTEM_HOLDS))
        with RawClient(between.port) as quick, backends[0].accept()[0] as served:
            quick.send(b"x")
            assert served.recv(10) == b"x"
