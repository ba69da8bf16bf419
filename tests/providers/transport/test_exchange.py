"""Tests of the transport with a fake upstream, over TCP and TLS, with native threads.

The live tests run it under gevent.
"""

from __future__ import annotations

import gc
import gzip
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from config import Timeouts
from errors import SluiceError, UpstreamError, UpstreamTimeout
from providers.base import UpstreamRequest
from providers.transport.abort import Aborted
from providers.transport.exchange import MAX_ERROR_BODY, Exchange, Transport
from tests.support import fake as fp
from tests.support.calls import BEGUN, EVENT, best_of
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.servers import free_port

# If a socket is shut down while it is wrapped, CPython's ssl leaves it to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")

WITHIN_S = scaled(0.05)  # from an abort to the reader's end, and to the close at the peer
TRIES = 5
PATIENT = Timeouts(connect=5, first_event=5, idle=5)


@pytest.fixture
def transport() -> Iterator[Transport]:
    with closing(Transport()) as made:
        yield made


class Upstream(NamedTuple):
    fake: FakeProvider
    ca_bundle: str | None


@pytest.fixture(params=["tcp", "tls"])
def upstream(request: pytest.FixtureRequest, ca_bundle: str) -> Iterator[Upstream]:
    """Yield the fake over TCP, and over TLS."""
    if request.param == "tcp":
        yield Upstream(request.getfixturevalue("fake"), None)
        return
    yield Upstream(request.getfixturevalue("tls_fake"), ca_bundle)
    gc.collect()  # so that the warning in pytestmark comes in this test


def make(
    transport: Transport, origin: str, timeouts: Timeouts = PATIENT, ca_bundle: str | None = None
) -> Exchange:
    request = UpstreamRequest("POST", f"{origin}/v1/x", {"Accept-Encoding": "identity"}, b"{}")
    return transport.exchange(request, timeouts, ca_bundle)


def to(upstream: Upstream, transport: Transport, timeouts: Timeouts = PATIENT) -> Exchange:
    return make(transport, upstream.fake.origin, timeouts, upstream.ca_bundle)


def fetch(exchange: Exchange) -> tuple[int, bytes]:
    """Run an exchange. Return the status and the body."""
    with closing(exchange):
        return exchange.open(), exchange.read()


class Reading:
    """An exchange that runs in its own thread."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.failure: Exception | None = None
        self.body = b""
        self.ended_at = 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with closing(self.exchange):
            try:
                self.exchange.open()
                for chunk in self.exchange.chunks():
                    self.body += chunk
            except Exception as failure:  # noqa: BLE001 - `end` returns it
                self.failure = failure
            self.ended_at = time.monotonic()

    def end(self) -> Exception | None:
        """Wait for the exchange to end. Return the exception that it raised, if any."""
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        return self.failure


# Abort

SILENT = [*BEGUN, fp.hold()]
PHASES = {
    "before_headers": [fp.hold()],
    "within_headers": fp.half_headers(),
    "silent": SILENT,
    "silent_with_content_length": [fp.head(200, {"Content-Length": "9"}), fp.hold()],
    "silent_until_closed": [*fp.sse(["a"], chunked=False), fp.hold()],
    "full_flow": [*BEGUN, fp.repeat(EVENT.data * 50)],
}


@pytest.mark.parametrize("phase", PHASES)
def test_abort_ends_the_exchange_in_each_phase_of_the_response(
    upstream: Upstream, transport: Transport, phase: str
) -> None:
    fake = upstream.fake

    def once() -> float:
        fake.reset()
        fake.script(PHASES[phase])
        reading = Reading(to(upstream, transport))
        fake.wait_requests()
        time.sleep(0.03)
        before = time.monotonic()
        reading.exchange.abort()
        assert isinstance(reading.end(), Aborted)
        [request] = fake.wait_closed()
        assert (request.closed_by, request.outcome) == ("peer", "aborted")
        assert request.closed_at is not None
        return max(reading.ended_at, request.closed_at) - before

    assert best_of(TRIES, WITHIN_S, once) < WITHIN_S


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_abort_ends_an_exchange_that_is_connecting(transport: Transport, scheme: str) -> None:
    with fp.blackhole() as origin:

        def once() -> float:
            reading = Reading(make(transport, origin.replace("http", scheme)))
            time.sleep(0.03)
            before = time.monotonic()
            reading.exchange.abort()
            assert isinstance(reading.end(), Aborted)
            return reading.ended_at - before

        assert best_of(TRIES, WITHIN_S, once) < WITHIN_S


def test_abort_ends_an_exchange_within_the_tls_handshake(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def once() -> float:
            reading = Reading(make(transport, f"https://127.0.0.1:{listener.getsockname()[1]}"))
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(5)
                assert peer.recv(1 << 16)  # the ClientHello, which gets no response
                time.sleep(0.03)
                before = time.monotonic()
                reading.exchange.abort()
                assert peer.recv(1 << 16) == b""
                closed_at = time.monotonic()
                assert isinstance(reading.end(), Aborted)
            return max(reading.ended_at, closed_at) - before

        assert best_of(TRIES, WITHIN_S, once) < WITHIN_S


def test_abort_at_any_moment_closes_the_connection(
    upstream: Upstream, transport: Transport
) -> None:
    """An abort may also come between two phases."""
    upstream.fake.default(SILENT)
    for number in range(40):
        reading = Reading(to(upstream, transport))
        time.sleep(number * 0.0002)
        reading.exchange.abort()
        assert isinstance(reading.end(), Aborted)
    gc.collect()
    upstream.fake.wait(lambda counts: counts.open == 0)


def test_abort_before_open_sends_no_request(upstream: Upstream, transport: Transport) -> None:
    exchange = to(upstream, transport)
    exchange.abort()
    with closing(exchange), pytest.raises(Aborted):
        exchange.open()
    upstream.fake.wait(lambda counts: counts.open == 0)
    assert upstream.fake.requests == []


def test_abort_before_open_sends_no_request_on_a_pooled_connection(
    upstream: Upstream, transport: Transport
) -> None:
    upstream.fake.default(fp.answer("x"))
    fetch(to(upstream, transport))
    exchange = to(upstream, transport)
    exchange.abort()
    with closing(exchange), pytest.raises(Aborted):
        exchange.open()
    assert len(upstream.fake.requests) == 1


def test_abort_after_the_headers_makes_read_raise_aborted(
    upstream: Upstream, transport: Transport
) -> None:
    upstream.fake.script(SILENT)
    with closing(to(upstream, transport)) as exchange:
        assert exchange.open() == 200
        exchange.abort()
        with pytest.raises(Aborted):
            exchange.read()


def test_abort_may_be_repeated(upstream: Upstream, transport: Transport) -> None:
    upstream.fake.script(SILENT)
    reading = Reading(to(upstream, transport))
    upstream.fake.wait_requests()
    for _ in range(3):
        reading.exchange.abort()
    assert isinstance(reading.end(), Aborted)
    reading.exchange.abort()


@pytest.mark.parametrize("given_back", ["by_its_end", "by_close"])
def test_a_late_abort_spares_the_next_exchange_on_its_connection(
    upstream: Upstream, transport: Transport, given_back: str
) -> None:
    upstream.fake.script(fp.answer("first"))
    upstream.fake.script([fp.gate("on"), *fp.answer("second")])
    first = to(upstream, transport)
    first.open()
    first.read()
    if given_back == "by_close":
        first.close()
    second = Reading(to(upstream, transport))
    upstream.fake.wait_requests(2)
    first.abort()
    time.sleep(0.03)
    upstream.fake.open("on")
    assert second.end() is None
    assert second.body == b'"second"'
    assert [request.connection for request in upstream.fake.requests] == [1, 1]
    first.close()


# Connections


def test_connections_are_reused_after_responses_streams_and_errors(
    upstream: Upstream, transport: Transport
) -> None:
    upstream.fake.script(fp.answer("whole"))
    upstream.fake.script(fp.sse(["stream"]))
    upstream.fake.script(fp.error(500))
    upstream.fake.script(fp.answer("last"))
    for status in (200, 200, 500, 200):
        assert fetch(to(upstream, transport))[0] == status
    assert [request.connection for request in upstream.fake.requests] == [1, 1, 1, 1]


def test_close_waits_for_the_last_chunk_and_keeps_the_connection(
    upstream: Upstream, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dialect stops at [DONE]. The last chunk of the body arrives a moment later."""
    monkeypatch.setattr("providers.transport.exchange.LAST_BYTES_S", HANG_S)
    upstream.fake.default([*BEGUN, fp.sleep(0.01), fp.last_chunk()])
    for _ in range(2):
        with closing(to(upstream, transport)) as exchange:
            exchange.open()
            next(exchange.chunks())
    assert [request.connection for request in upstream.fake.requests] == [1, 1]


def test_an_unfinished_body_closes_the_connection(upstream: Upstream, transport: Transport) -> None:
    upstream.fake.script([*BEGUN, fp.repeat(EVENT.data, 0.01)])
    with closing(to(upstream, transport)) as exchange:
        exchange.open()
        next(exchange.chunks())
        before = time.monotonic()
    assert time.monotonic() - before < scaled(1)
    [request] = upstream.fake.wait_closed()
    assert (request.closed_by, request.outcome) == ("peer", "aborted")


@pytest.mark.parametrize("rest", [b"X-Sum: 1\r\n", b"x"])
def test_a_slow_trailer_cannot_hold_the_exchange(
    upstream: Upstream, transport: Transport, rest: bytes
) -> None:
    """One deadline holds for the whole trailer, and each byte doesn't extend it."""
    upstream.fake.script([*BEGUN, fp.send(b"0\r\n"), fp.repeat(rest, 0.02)])
    with closing(to(upstream, transport)) as exchange:
        exchange.open()
        next(exchange.chunks())
        before = time.monotonic()
    assert time.monotonic() - before < scaled(1)
    [request] = upstream.fake.wait_closed()
    assert (request.closed_by, request.outcome) == ("peer", "aborted")


@pytest.mark.parametrize("together", [True, False])
def test_the_rest_of_an_unread_body_never_reaches_the_next_call(
    upstream: Upstream, transport: Transport, together: bool
) -> None:
    """An error's body is read up to a limit, and the next call must not read the rest."""
    evil = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % (200_000 + len(evil))
    body = [fp.send(b"x" * 100_000), fp.sleep(0.2), fp.send(b"x" * 100_000 + evil)]
    start = [fp.send(head)] if together else [fp.send(head), fp.sleep(0.1)]
    upstream.fake.script([*start, *body])
    upstream.fake.default(fp.answer("own"))
    with closing(to(upstream, transport)) as exchange:
        assert exchange.open() == 400
        exchange.read_error()
    assert fetch(to(upstream, transport)) == (200, b'"own"')


def test_a_pooled_connection_that_was_closed_is_replaced(
    upstream: Upstream, transport: Transport
) -> None:
    upstream.fake.script([*fp.answer("one"), fp.sleep(0.05), fp.close()])
    upstream.fake.script(fp.answer("two"))
    fetch(to(upstream, transport))
    upstream.fake.wait_closed()
    assert fetch(to(upstream, transport)) == (200, b'"two"')
    assert [request.connection for request in upstream.fake.requests] == [1, 2]


def test_concurrent_exchanges_use_separate_connections(fake: FakeProvider) -> None:
    fake.default([fp.gate("on"), *fp.answer("x")])
    with closing(Transport(pool_size=20)) as transport:
        for first in (1, 2):  # the second time with connections from the pool
            readings = [Reading(make(transport, fake.origin)) for _ in range(20)]
            fake.wait_requests(20 * first)
            fake.open("on")
            assert [reading.end() for reading in readings] == [None] * 20
    assert fake.counts.received == 40


# Failures


def failure_of(exchange: Exchange) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        fetch(exchange)
    return caught.value


def test_a_refused_connection_is_reported_as_unreachable(transport: Transport) -> None:
    port = free_port()
    failure = failure_of(make(transport, f"http://user:secret@127.0.0.1:{port}"))
    assert not isinstance(failure, UpstreamTimeout)
    where = f"127.0.0.1:{port}"
    why = "could not be reached: the connection was refused."
    assert failure.message == f"The upstream {where} {why}"
    assert (failure.upstream_status, failure.host, failure.reason) == (None, where, "refused")


UNKNOWN_HOSTS = ["nowhere.invalid", f"{'x' * 64}.invalid", "x..invalid"]


@pytest.mark.parametrize("host", UNKNOWN_HOSTS)
def test_an_unknown_host_is_reported_as_unreachable(transport: Transport, host: str) -> None:
    failure = failure_of(make(transport, f"http://{host}"))
    assert failure.message.startswith(f"The upstream {host}:80 could not be reached: its name ")
    assert failure.reason == "name_not_found"


SHORT = Timeouts(connect=0.2, first_event=0.2, idle=0.2, grace=0)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_slow_connect_raises_a_connect_timeout(transport: Transport, scheme: str) -> None:
    with fp.blackhole() as origin:
        assert timeout_of(make(transport, origin.replace("http", scheme), SHORT)) == "connect"


def test_a_connect_timeout_names_the_host_and_the_proxy(transport: Transport) -> None:
    with fp.blackhole() as origin:
        request = UpstreamRequest("POST", "http://llm.invalid/v1/x", {}, b"{}")
        for exchange, names in (
            (make(transport, origin, SHORT), [origin.removeprefix("http://")]),
            (transport.exchange(request, SHORT, proxy=origin), ["llm.invalid:80", origin[7:]]),
        ):
            failure = failure_of(exchange)
            assert all(name in failure.message for name in names), failure.message
            assert failure.reason == "timed_out"


@pytest.mark.parametrize(
    ("script", "reason"),
    [([fp.send(b"220 smtp ready\r\n\r\n"), fp.close()], "not_http"), ([fp.close()], "closed")],
)
def test_a_host_that_sends_no_http_is_named(
    transport: Transport, fake: FakeProvider, script: Sequence[fp.Step], reason: str
) -> None:
    fake.script(script)
    failure = failure_of(make(transport, fake.origin))
    assert fake.origin.removeprefix("http://") in failure.message
    assert failure.reason == reason


def timeout_of(exchange: Exchange) -> str:
    """Run an exchange with short timeouts. Return the phase in which it timed out."""
    before = time.monotonic()
    failure = failure_of(exchange)
    assert 0.1 < time.monotonic() - before < scaled(2)
    assert isinstance(failure, UpstreamTimeout)
    return failure.phase


def test_a_slow_tls_handshake_raises_a_connect_timeout(transport: Transport) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        origin = f"https://127.0.0.1:{listener.getsockname()[1]}"
        assert timeout_of(make(transport, origin, SHORT)) == "connect"


@pytest.mark.parametrize("phase", ["before_headers", "within_headers"])
def test_slow_headers_raise_a_first_event_timeout(
    upstream: Upstream, transport: Transport, phase: str
) -> None:
    upstream.fake.script(PHASES[phase])
    assert timeout_of(to(upstream, transport, SHORT)) == "first_event"


@pytest.mark.parametrize("phase", ["silent", "silent_with_content_length", "silent_until_closed"])
def test_a_silent_body_raises_an_idle_timeout(
    upstream: Upstream, transport: Transport, phase: str
) -> None:
    upstream.fake.script(PHASES[phase])
    assert timeout_of(to(upstream, transport, SHORT)) == "idle"
    upstream.fake.wait_closed()


def test_the_longer_of_first_event_and_idle_timeout_holds_in_each_phase(fake: FakeProvider) -> None:
    """Only the relay can distinguish the two, because it knows what an event is."""
    fake.script(
        [fp.sleep(0.3), fp.head(200, {"Content-Length": "1"}), fp.sleep(0.3), fp.send(b"x")]
    )
    with closing(Transport()) as transport:
        longer = Timeouts(connect=0.2, first_event=0.2, idle=2)
        assert fetch(make(transport, fake.origin, longer)) == (200, b"x")


def test_an_untrusted_certificate_is_a_tls_error_before_any_request(
    transport: Transport, tls_fake: FakeProvider
) -> None:
    failure = failure_of(make(transport, tls_fake.origin))
    assert "its TLS certificate was rejected: unable to get local issuer" in failure.message
    assert failure.reason == "certificate"
    assert tls_fake.requests == []


def test_a_certificate_for_another_host_is_a_tls_error(
    transport: Transport, ca: trustme.CA, ca_bundle: str, tmp_path: Path
) -> None:
    certificate = ca.issue_cert("other.example").private_key_and_cert_chain_pem
    certificate.write_to_path(str(tmp_path / "other.pem"))
    with FakeProvider.start(tls=tmp_path / "other.pem") as other:
        failure = failure_of(make(transport, other.origin, ca_bundle=ca_bundle))
    assert "its TLS certificate was rejected: IP address mismatch" in failure.message


def test_https_to_a_host_without_tls_is_a_tls_error(
    transport: Transport, fake: FakeProvider
) -> None:
    failure = failure_of(make(transport, fake.origin.replace("http", "https")))
    assert "TLS" in failure.message


CUT_OFF = {
    "chunked": [*BEGUN, fp.close()],
    "within_a_chunk": [*BEGUN, fp.send(b"ff\r\nabc"), fp.close()],
    "content_length": [fp.head(200, {"Content-Length": "9"}), fp.send(b"abc"), fp.close()],
    "reset": [*BEGUN, fp.sleep(0.05), fp.reset()],
    "not_a_chunk": [*BEGUN, fp.send(b"zz\r\n"), fp.close()],
}


@pytest.mark.parametrize("how", CUT_OFF)
def test_a_body_that_breaks_off_raises_an_upstream_error(
    upstream: Upstream, transport: Transport, how: str
) -> None:
    upstream.fake.script(CUT_OFF[how])
    failure = failure_of(to(upstream, transport))
    assert failure.message == "The upstream broke off in the middle of its answer."


SPOILT = {
    "closed": [fp.close()],
    "no_http": [fp.send(b"SSH-2.0-OpenSSH_9.6\r\n"), fp.close()],
}


@pytest.mark.parametrize("how", SPOILT)
def test_missing_headers_raise_an_upstream_error_without_a_retry(
    upstream: Upstream, transport: Transport, how: str
) -> None:
    upstream.fake.script(SPOILT[how])
    with closing(to(upstream, transport)) as exchange, suppress(UpstreamError):
        exchange.open()
        pytest.fail("no error")
    assert upstream.fake.counts.received == 1, "a request that may have been served is not repeated"


def test_a_connection_reset_at_once_raises_an_upstream_error(
    fake: FakeProvider, transport: Transport
) -> None:
    fake.next_connection("reset")
    failure = failure_of(make(transport, fake.origin))
    assert not isinstance(failure, UpstreamTimeout)


def test_a_key_that_is_invalid_in_a_header_raises_and_is_not_shown(
    fake: FakeProvider, transport: Transport
) -> None:
    request = UpstreamRequest("POST", f"{fake.origin}/x", {"X-Key": "secret\r\nY: z"}, b"{}")
    failure = failure_of(transport.exchange(request, PATIENT))
    assert failure.message == "X-Key holds what no header can: is the key set right?"
    assert "secret" not in repr(failure.__cause__)
    assert fake.requests == []


# Bodies


def test_a_gzip_body_is_decompressed(upstream: Upstream, transport: Transport) -> None:
    upstream.fake.script(fp.answer(gzip.compress(b"hello"), headers={"Content-Encoding": "gzip"}))
    assert fetch(to(upstream, transport)) == (200, b"hello")
    assert upstream.fake.requests[0].headers["accept-encoding"] == "identity"


def test_a_broken_gzip_body_raises_an_upstream_error(
    upstream: Upstream, transport: Transport
) -> None:
    upstream.fake.script(fp.answer(b"no gzip at all", headers={"Content-Encoding": "gzip"}))
    assert "broke off" in failure_of(to(upstream, transport)).message


def test_a_gzip_bomb_is_stopped_at_the_size_limit(fake: FakeProvider, transport: Transport) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    fake.script(fp.answer(bomb, headers={"Content-Encoding": "gzip"}))
    with closing(make(transport, fake.origin)) as exchange:
        exchange.open()
        with pytest.raises(UpstreamError, match="larger than"):
            exchange.read(1_000_000)


def test_a_body_over_the_size_limit_raises_an_upstream_error(
    upstream: Upstream, transport: Transport
) -> None:
    upstream.fake.script([*BEGUN, fp.repeat(EVENT.data)])
    with closing(to(upstream, transport)) as exchange:
        exchange.open()
        with pytest.raises(UpstreamError, match="larger than"):
            exchange.read(10_000)
    upstream.fake.wait_closed()


def test_a_body_at_the_size_limit_is_read(fake: FakeProvider, transport: Transport) -> None:
    fake.script(fp.answer(b"x" * 100))
    with closing(make(transport, fake.origin)) as exchange:
        exchange.open()
        assert exchange.read(100) == b"x" * 100


@pytest.mark.parametrize(
    ("steps", "size"),
    [
        (fp.answer(b"x" * 1_000_000, 500), MAX_ERROR_BODY),
        ([fp.head(500), fp.repeat(b"x" * 1000)], MAX_ERROR_BODY),
        ([fp.head(500, {"Content-Length": "9"}), fp.send(b"abc"), fp.close()], 3),
        ([fp.head(500, {"Content-Length": "9"}), fp.send(b"abc"), fp.hold()], 3),
        (fp.answer(b"", 500), 0),
    ],
    ids=["large", "endless", "cut_off", "silent", "empty"],
)
def test_read_error_returns_what_arrived_up_to_the_size_limit(
    fake: FakeProvider, transport: Transport, steps: Sequence[fp.Step], size: int
) -> None:
    fake.script(steps)
    with closing(make(transport, fake.origin, SHORT)) as exchange:
        assert exchange.open() == 500
        assert len(exchange.read_error()) == size


def test_response_header_names_are_lower_case(fake: FakeProvider, transport: Transport) -> None:
    fake.script(fp.error(429, headers={"Retry-After": "7"}))
    with closing(make(transport, fake.origin)) as exchange:
        assert exchange.open() == 429
        assert exchange.headers["retry-after"] == "7"


# Features that are off


def test_redirects_are_not_followed(upstream: Upstream, transport: Transport) -> None:
    elsewhere = f"{upstream.fake.origin}/elsewhere"
    upstream.fake.default(fp.answer("moved", 307, {"Location": elsewhere}))
    assert fetch(to(upstream, transport)) == (307, b'"moved"')
    assert [request.path for request in upstream.fake.requests] == ["/v1/x"]


def test_proxy_variables_and_netrc_are_ignored(
    fake: FakeProvider, transport: Transport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    fake.script(fp.answer("direct"))
    assert fetch(make(transport, fake.origin)) == (200, b'"direct"')
    assert fake.requests[0].path == "/v1/x"
    assert "authorization" not in fake.requests[0].headers


def test_a_request_sends_the_body_of_the_call_and_only_basic_headers(
    fake: FakeProvider, transport: Transport
) -> None:
    fake.script(fp.answer("x"))
    fetch(make(transport, fake.origin))
    [request] = fake.requests
    assert (request.method, request.body) == ("POST", b"{}")
    assert set(request.headers) == {"host", "accept-encoding", "content-length", "user-agent"}


def test_upstream_timeout_is_a_sluice_error_and_aborted_is_not() -> None:
    assert issubclass(UpstreamTimeout, SluiceError)
    assert not issubclass(Aborted, SluiceError)
