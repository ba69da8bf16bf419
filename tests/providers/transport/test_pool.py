"""Tests of providers/transport/pool.py: reuse and closing of connections, and TLS verification."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from config import Timeouts
from providers.base import UpstreamRequest
from providers.transport.abort import AbortSwitch
from providers.transport.exchange import Transport
from providers.transport.pool import IDLE_S, MAX_ORIGINS, Origin, Pool
from server.sockets import shut
from tests.providers.transport.conftest import Peers
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S

HERE = Origin("127.0.0.1", 9, "")


@pytest.fixture
def pool() -> Iterator[Pool]:
    with closing(Pool(3)) as made:
        yield made


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("providers.transport.pool.time", made)
    return made


def taken(pool: Pool, origin: Origin = HERE) -> socket.socket | None:
    """Return the pooled connection, or None if there is none: nobody listens at the origin."""
    try:
        return pool.connection(origin, 1, AbortSwitch())
    except OSError:
        return None


def test_pool_reuses_the_last_returned_connection_first(pool: Pool, peers: Peers) -> None:
    first, second = peers.new(), peers.new()
    pool.give_back(HERE, first)
    pool.give_back(HERE, second)
    assert [taken(pool), taken(pool), taken(pool)] == [second, first, None]


@pytest.mark.parametrize(
    "other", [Origin("127.0.0.2", 9, ""), Origin("127.0.0.1", 7, ""), Origin("127.0.0.1", 9, "x")]
)
def test_pool_keeps_the_connections_of_each_origin_apart(
    pool: Pool, peers: Peers, other: Origin
) -> None:
    """Origins with other certificates count as different ones."""
    ours = peers.new()
    pool.give_back(HERE, ours)
    assert taken(pool, other) is None
    assert taken(pool) is ours


def test_full_pool_closes_its_oldest_connection(pool: Pool, peers: Peers) -> None:
    socks = [peers.new() for _ in range(4)]
    for sock in socks:
        pool.give_back(HERE, sock)
    assert socks[0].fileno() == -1
    assert [taken(pool) for _ in range(4)] == [*reversed(socks[1:]), None]


def test_pool_bounds_its_number_of_origins(pool: Pool, peers: Peers) -> None:
    first = peers.new()
    pool.give_back(HERE, first)
    others = [Origin("127.0.0.1", 1000 + number, "") for number in range(MAX_ORIGINS)]
    for other in others:
        pool.give_back(other, peers.new())
    assert first.fileno() == -1
    assert all(taken(pool, other) for other in others)


def test_pool_does_not_reuse_a_connection_past_its_idle_limit(
    pool: Pool, peers: Peers, clock: Clock
) -> None:
    socks = [peers.new() for _ in range(3)]
    for sock in socks:
        pool.give_back(HERE, sock)
    clock.now += IDLE_S + 1
    assert taken(pool) is None
    assert [sock.fileno() for sock in socks] == [-1] * 3


def test_returning_a_connection_closes_older_connections_past_the_idle_limit(
    pool: Pool, peers: Peers, clock: Clock
) -> None:
    """The pool is last in, first out, so that nothing else would reach the older ones."""
    old, fresh = peers.new(), peers.new()
    pool.give_back(HERE, old)
    clock.now += IDLE_S + 1
    pool.give_back(HERE, fresh)
    assert old.fileno() == -1
    assert taken(pool) is fresh


@pytest.mark.parametrize("event", ["closed", "half_closed", "junk", "junk_and_closed", "shut"])
def test_pool_skips_connections_that_are_closed_or_hold_unexpected_data(
    pool: Pool, peers: Peers, event: str
) -> None:
    well, ours = peers.new(), peers.new()
    pool.give_back(HERE, well)
    pool.give_back(HERE, ours)
    theirs = peers.theirs[ours]
    if "junk" in event:
        theirs.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    if event == "half_closed":
        theirs.shutdown(socket.SHUT_WR)
    elif event == "shut":
        ours.shutdown(socket.SHUT_RDWR)
    elif event.endswith("closed"):
        theirs.close()
    assert taken(pool) is well
    assert ours.fileno() == -1


def test_a_closed_pool_keeps_nothing(peers: Peers) -> None:
    pool = Pool(3)
    before, after = peers.new(), peers.new()
    pool.give_back(HERE, before)
    pool.close()
    pool.give_back(HERE, after)
    assert (before.fileno(), after.fileno()) == (-1, -1)


def test_many_threads_never_share_a_connection(peers: Peers) -> None:
    with closing(Pool(50)) as pool:
        for _ in range(8):
            pool.give_back(HERE, peers.new())
        used: set[socket.socket] = set()
        wrong: list[object] = []

        def work() -> None:
            for _ in range(300):
                sock = taken(pool)
                if sock is None or sock in used:
                    wrong.append(sock)
                    return
                used.add(sock)
                used.remove(sock)
                pool.give_back(HERE, sock)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


# TLS


def test_tls_context_requires_a_valid_certificate_for_the_host_name(ca_bundle: str) -> None:
    with closing(Pool(1)) as pool:
        context = pool._context(ca_bundle)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert not context.hostname_checks_common_name
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.keylog_filename is None


def test_tls_context_ignores_the_sslkeylogfile_variable(
    ca_bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", "/nowhere/keys")
    with closing(Pool(1)) as pool:
        assert pool._context(ca_bundle).keylog_filename is None


def test_certificates_are_read_again_when_they_change(
    tls_fake: FakeProvider, ca_bundle: str, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    trustme.CA().cert_pem.write_to_path(str(bundle))
    origin = Origin("127.0.0.1", int(tls_fake.origin.rpartition(":")[2]), str(bundle))
    with closing(Pool(1)) as pool:
        with pytest.raises(ssl.SSLError):
            pool.connection(origin, 5, AbortSwitch())
        bundle.write_bytes(Path(ca_bundle).read_bytes())
        os.utime(bundle, (1, 1))
        with closing(pool.connection(origin, 5, AbortSwitch())) as sock:
            assert isinstance(sock, ssl.SSLSocket)
        assert pool._context(str(bundle)) is pool._context(str(bundle))


def test_a_folder_of_certificates_may_be_trusted(tmp_path: Path) -> None:
    with closing(Pool(1)) as pool:
        assert pool._context(str(tmp_path)).verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_missing_or_invalid_certificate_bundle_prevents_a_connection(
    tls_fake: FakeProvider, tmp_path: Path, content: str | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    origin = Origin("127.0.0.1", int(tls_fake.origin.rpartition(":")[2]), str(bundle))
    with closing(Pool(1)) as pool, pytest.raises(OSError):
        pool.connection(origin, 5, AbortSwitch())
    assert tls_fake.requests == []


def test_host_certificate_must_match_the_requested_name(
    ca: trustme.CA, ca_bundle: str, tmp_path: Path
) -> None:
    certificate = ca.issue_cert("localhost").private_key_and_cert_chain_pem
    certificate.write_to_path(str(tmp_path / "named.pem"))
    with FakeProvider.start(tls=tmp_path / "named.pem") as named, closing(Pool(1)) as pool:
        port = int(named.origin.rpartition(":")[2])
        pool.connection(Origin("localhost", port, ca_bundle), 5, AbortSwitch()).close()
        with pytest.raises(ssl.SSLCertVerificationError):
            pool.connection(Origin("127.0.0.1", port, ca_bundle), 5, AbortSwitch())


@contextmanager
def tls_host(pem: Path, first: bytes) -> Iterator[Origin]:
    """Yield a host whose first connection sends `first` in one piece; others send OK."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    listener = socket.create_server(("127.0.0.1", 0))
    ready = [first]

    def serve() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with suppress(OSError), context.wrap_socket(sock, server_side=True) as secured:
                    while secured.recv(65536):
                        secured.sendall(ready.pop() if ready else OWN)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield Origin("127.0.0.1", listener.getsockname()[1], "")
    finally:
        shut(listener)
        listener.close()
        thread.join(HANG_S)


def a_response(body: bytes, size: int | None = None) -> bytes:
    """Return a response. `size` is its size in bytes, including the head."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %05d\r\n\r\n"
    if size is not None:
        body = body * (size - len(head % 0))
    return head % len(body) + body


OWN = a_response(b"own")


@pytest.mark.parametrize("size", [None, 4096, 8192, 16384 - len(a_response(b"injected"))])
def test_decrypted_bytes_after_a_response_never_reach_the_next_caller(
    ca: trustme.CA, ca_bundle: str, tmp_path: Path, size: int | None
) -> None:
    """The first response fills one read, and a second one follows in the same TLS record."""
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "pem"))
    first = a_response(b"x", size)
    with (
        tls_host(tmp_path / "pem", first + a_response(b"injected")) as host,
        closing(Transport()) as transport,
    ):
        request = UpstreamRequest("POST", f"https://127.0.0.1:{host.port}/v1", {}, b"{}")
        bodies = []
        for _ in range(2):
            exchange = transport.exchange(request, Timeouts(), ca_bundle)
            exchange.open()
            bodies.append(exchange.read())
            exchange.close()
    assert bodies == [first.partition(b"\r\n\r\n")[2], b"own"]
