"""Tests of providers/transport/adapter.py over a scripted socket, which shows each read and byte.

test_exchange.py uses real sockets.
"""

from __future__ import annotations

import gzip
import math
import socket
import threading
from collections.abc import Iterable
from contextlib import closing
from typing import Any

import pytest
import requests

from providers.transport.abort import AbortSwitch
from providers.transport.adapter import Adapter, NotReached
from providers.transport.http1 import MAX_INTERIM, Malformed
from providers.transport.pool import Origin, Pool
from tests.support.fake import FakeProvider
from tests.support.fake import answer as answered
from tests.support.pace import HANG_S

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"


class Scripted:
    """A socket whose reads return the pieces in turn, then nothing. A piece may be an exception."""

    def __init__(self, pieces: Iterable[bytes | Exception], send: Exception | None = None) -> None:
        self.sent: list[bytes] = []
        self.reads = 0
        self.closed = False
        self._pieces = iter(pieces)
        self._send = send

    def send(self, data: bytes) -> int:
        if self._send is not None:
            raise self._send
        self.sent.append(data)
        return len(data)

    def recv(self, _size: int) -> bytes:
        self.reads += 1
        piece = next(self._pieces, b"")
        if isinstance(piece, Exception):
            raise piece
        return piece

    def settimeout(self, _seconds: float | None) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class OnePool(Pool):
    """A pool of one connection that records its origin and whether it was returned."""

    def __init__(self, sock: Scripted) -> None:
        super().__init__(1)
        self.sock: Any = sock
        self.origin: Origin | None = None
        self.returned = False

    def connection(self, origin: Origin, timeout: float, switch: AbortSwitch) -> socket.socket:
        self.origin = origin
        switch.note(self.sock)
        connected: socket.socket = self.sock
        return connected

    def give_back(self, origin: Origin, sock: socket.socket) -> None:
        assert (origin, sock) == (self.origin, self.sock)
        self.returned = True


def post(pool: Pool, url: str = "http://host/v1", body: bytes = b"{}") -> requests.Response:
    request = requests.PreparedRequest()
    request.method, request.url, request.body = "POST", url, body
    request.headers = requests.structures.CaseInsensitiveDict({"Content-Length": str(len(body))})
    return Adapter(pool, AbortSwitch()).send(request, timeout=(1, 5))


def rest(response: requests.Response) -> bytes:
    """Read the rest of the body."""
    raw: Any = response.raw
    return b"".join(iter(lambda: raw.read1(decode_content=True), b""))


def test_a_whole_response_is_read_and_its_connection_returned() -> None:
    pool = OnePool(Scripted([HELLO]))
    response = post(pool)
    assert isinstance(response, requests.Response)
    assert (response.status_code, response.reason, response.url) == (200, "OK", "http://host/v1")
    assert response.headers["content-length"] == "5"
    assert rest(response) == b"hello"
    assert pool.returned


def test_a_call_is_one_write_and_one_read() -> None:
    sock = Scripted([HELLO])
    rest(post(OnePool(sock)))
    assert sock.reads == 1
    assert sock.sent == [b"POST /v1 HTTP/1.1\r\nHost: host\r\nContent-Length: 2\r\n\r\n{}"]


def test_chunks_that_arrived_together_are_one_read() -> None:
    chunks = b"5\r\nhello\r\n" * 100
    sock = Scripted([OK + b"Transfer-Encoding: chunked\r\n\r\n", chunks, chunks + b"0\r\n\r\n"])
    raw: Any = post(OnePool(sock)).raw
    assert [raw.read1(), raw.read1(), raw.read1()] == [b"hello" * 100, b"hello" * 100, b""]
    assert sock.reads == 3


@pytest.mark.parametrize(
    ("url", "origin", "named", "target"),
    [
        ("http://h", ("h", 80), "h", "/"),
        ("http://h:80/a", ("h", 80), "h", "/a"),
        ("https://h:443/a", ("h", 443), "h", "/a"),
        ("http://h:443/a", ("h", 443), "h:443", "/a"),
        ("http://H:8080/a?b=c&d=%2F#e", ("h", 8080), "h:8080", "/a?b=c&d=%2F"),
        ("http://h/a/../b/./c", ("h", 80), "h", "/a/../b/./c"),
        ("http://h//a", ("h", 80), "h", "//a"),
        ("http://h/models/a%2Fb:do", ("h", 80), "h", "/models/a%2Fb:do"),
        ("http://h/a b\r\nX: y", ("h", 80), "h", "/a%20bX:%20y"),
        ("http://h/é", ("h", 80), "h", "/%C3%A9"),
        ("http://me:secret@h/a", ("h", 80), "h", "/a"),
        ("http://[::1]:8080/a", ("::1", 8080), "[::1]:8080", "/a"),
        ("https://bücher.example/a", ("xn--bcher-kva.example", 443), "xn--bcher-kva.example", "/a"),
    ],
)
def test_a_url_sets_the_origin_host_header_and_target(
    url: str, origin: tuple[str, int], named: str, target: str
) -> None:
    sock = Scripted([HELLO])
    pool = OnePool(sock)
    post(pool, url)
    assert pool.origin is not None
    assert pool.origin[:2] == origin
    assert bool(pool.origin.ca_bundle) == url.startswith("https")
    assert sock.sent[0].startswith(f"POST {target} HTTP/1.1\r\nHost: {named}\r\n".encode())


@pytest.mark.parametrize(
    "url", ["", "h/a", "ftp://h/", "http://", "http://h:99999/", "http://h:x/", "http://[::1/"]
)
def test_an_invalid_url_raises_invalid_url(url: str) -> None:
    with pytest.raises(requests.exceptions.InvalidURL):
        post(OnePool(Scripted([HELLO])), url)


INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"


@pytest.mark.parametrize("split", [False, True])
def test_interim_responses_are_skipped(split: bool) -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n" + INTERIM + HELLO
    pieces = [data[at : at + 1] for at in range(len(data))] if split else [data]
    response = post(OnePool(Scripted(pieces)))
    assert (response.status_code, rest(response)) == (200, b"hello")


@pytest.mark.parametrize(
    "data",
    [
        INTERIM * (MAX_INTERIM + 1) + HELLO,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + HELLO,
        INTERIM,
        b"",
        OK,
        b"SSH-2.0-OpenSSH\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        OK + b"Transfer-Encoding: gzip\r\n\r\nhello",
    ],
)
def test_an_invalid_response_raises_and_closes_the_connection(data: bytes) -> None:
    sock = Scripted([data])
    with pytest.raises(requests.ConnectionError):
        post(OnePool(sock))
    assert sock.closed


def test_a_response_that_is_not_http_is_refused_without_another_read() -> None:
    sock = Scripted([b"SSH", AssertionError("there was another read")])
    with pytest.raises(requests.ConnectionError):
        post(OnePool(sock))


def test_an_unexpected_read_failure_closes_the_connection() -> None:
    sock = Scripted([RuntimeError("odd")])
    with pytest.raises(RuntimeError):
        post(OnePool(sock))
    assert sock.closed


@pytest.mark.parametrize(
    "pieces",
    [
        [HELLO + b"x"],
        [OK + b"Content-Length: 5\r\n\r\n", b"hello!"],
        [OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello"],
        [OK + b"\r\nhello"],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nx"],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"],
    ],
)
def test_a_connection_that_cannot_be_reused_is_closed(pieces: list[bytes]) -> None:
    pool = OnePool(Scripted(pieces))
    assert rest(post(pool)) == b"hello"
    assert not pool.returned
    assert pool.sock.closed


def test_closing_an_incomplete_body_closes_its_connection() -> None:
    pool = OnePool(Scripted([OK + b"Content-Length: 5\r\n\r\nhel"]))
    response = post(pool)
    response.close()
    assert pool.sock.closed
    assert not pool.returned


def test_a_body_is_delivered_up_to_a_malformed_chunk() -> None:
    response = post(
        OnePool(Scripted([OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"]))
    )
    raw: Any = response.raw
    assert raw.read1() == b"hello"
    for _ in range(2):
        with pytest.raises(Malformed):
            raw.read1()


@pytest.mark.parametrize("failure", [BrokenPipeError(), ConnectionResetError()])
def test_a_response_is_read_although_sending_the_request_failed(failure: Exception) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
    pool = OnePool(Scripted([refusal], send=failure))
    response = post(pool)
    assert (response.status_code, rest(response)) == (413, b"no")
    assert not pool.returned, "the host would take the rest of this request for the next one"
    assert pool.sock.closed


def test_an_early_refusal_on_a_real_socket_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(1 << 20):
                    pass

        thread = threading.Thread(target=refuse)
        thread.start()
        with closing(Pool(1)) as pool:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            response = post(pool, url, b"x" * 5_000_000)
            assert (response.status_code, rest(response)) == (413, b"no")
            response.close()
        thread.join(HANG_S)


COMPRESSED = gzip.compress(b"hello")


@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize("together", [True, False])
def test_a_gzip_body_is_decompressed_even_with_a_cut_trailer(cut: int, together: bool) -> None:
    data = COMPRESSED[: len(COMPRESSED) - cut]
    head = OK + b"Content-Encoding: GZIP\r\nContent-Length: %d\r\n\r\n" % len(data)
    pool = OnePool(Scripted([head + data] if together else [head, data[:5], data[5:]]))
    assert rest(post(pool)) == b"hello"
    assert pool.returned


def test_a_refused_connection_raises_not_reached() -> None:
    with closing(Pool(1)) as pool, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.close()
        with pytest.raises(NotReached):
            post(pool, f"http://127.0.0.1:{port}/")


def test_the_adapter_serves_a_requests_session(fake: FakeProvider) -> None:
    fake.script(answered({"a": 1}))
    with closing(Pool(1)) as pool, requests.Session() as session:
        session.trust_env = False
        session.mount("http://", Adapter(pool, AbortSwitch()))
        response = session.post(f"{fake.origin}/x", json={"b": 2}, timeout=HANG_S)
        assert response.json() == {"a": 1}
    assert fake.requests[0].body == b'{"b": 2}'


def test_a_call_without_timeouts_is_refused() -> None:
    request = requests.Request("POST", "http://host/").prepare()
    for timeout in (None, (1.0, None)):
        with pytest.raises(AssertionError):
            Adapter(OnePool(Scripted([HELLO])), AbortSwitch()).send(request, timeout=timeout)
    assert AbortSwitch().silence == math.inf
