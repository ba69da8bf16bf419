"""Tests of calls through a forward proxy: what the proxy sees, refusals, aborts and timeouts."""

from __future__ import annotations

import base64
import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import certifi
import pytest

from config import ConfigError, Timeouts
from errors import UpstreamError, UpstreamTimeout
from providers import registry
from providers.base import UpstreamRequest
from providers.transport import proxy as proxies
from providers.transport.abort import Aborted
from providers.transport.exchange import Exchange, Transport
from tests.providers.transport.test_exchange import PATIENT, Reading, fetch
from tests.support import fake as fp
from tests.support.calls import best_of
from tests.support.fake import FakeProvider
from tests.support.forward_proxy import Behave, ForwardProxy, pump, refuse, reply
from tests.support.pace import HANG_S, scaled
from tests.support.servers import free_port

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")

WITHIN_S, TRIES = scaled(0.05), 5
USER, PASSWORD = "corp", "s3cret p@ss:word"
QUOTED = "s3cret%20p%40ss%3Aword"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture
def transport() -> Iterator[Transport]:
    with closing(Transport()) as made:
        yield made
    gc.collect()


def make(
    transport: Transport,
    origin: str,
    proxy: str | None,
    ca_bundle: str | None = None,
    timeouts: Timeouts = PATIENT,
) -> Exchange:
    headers = {"Accept-Encoding": "identity", "Authorization": "Bearer provider-key"}
    request = UpstreamRequest("POST", f"{origin}/v1/x?a=b", headers, b"{}")
    return transport.exchange(request, timeouts, ca_bundle, proxy)


# The ways to a host


def test_a_plain_call_sends_the_whole_url_and_the_proxys_password(
    fake: FakeProvider, transport: Transport
) -> None:
    fake.script(fp.answer("hi"))
    with ForwardProxy() as proxy:
        url = proxy.with_password(USER, QUOTED)
        assert fetch(make(transport, fake.origin, url)) == (200, b'"hi"')
    [seen] = proxy.seen
    assert (seen.method, seen.target) == ("POST", f"{fake.origin}/v1/x?a=b")
    assert seen.headers["host"] == fake.origin.removeprefix("http://")
    assert seen.headers["proxy-authorization"] == BASIC
    assert seen.headers["authorization"] == "Bearer provider-key"
    assert "proxy-authorization" not in fake.requests[0].headers


def test_an_encrypted_call_goes_through_a_tunnel_in_which_the_proxy_sees_only_the_host(
    tls_fake: FakeProvider, transport: Transport, ca_bundle: str
) -> None:
    tls_fake.script(fp.answer("hi"))
    with ForwardProxy() as proxy:
        url = proxy.with_password(USER, QUOTED)
        assert fetch(make(transport, tls_fake.origin, url, ca_bundle)) == (200, b'"hi"')
    [seen] = proxy.seen
    host = tls_fake.origin.removeprefix("https://")
    assert (seen.method, seen.target) == ("CONNECT", host)
    assert seen.headers == {"host": host, "proxy-authorization": BASIC}
    [request] = tls_fake.requests
    assert (request.path, request.headers["host"]) == ("/v1/x?a=b", host)
    assert "proxy-authorization" not in request.headers


def test_a_proxy_without_a_user_gets_no_password(fake: FakeProvider, transport: Transport) -> None:
    fake.script(fp.answer("hi"))
    with ForwardProxy() as proxy:
        fetch(make(transport, fake.origin, proxy.url))
    assert "proxy-authorization" not in proxy.seen[0].headers


def test_the_certificate_in_the_tunnel_is_verified(
    tls_fake: FakeProvider, transport: Transport
) -> None:
    with ForwardProxy() as proxy, pytest.raises(UpstreamError, match="TLS certificate"):
        fetch(make(transport, tls_fake.origin, proxy.url))
    assert tls_fake.requests == []


@pytest.mark.parametrize("tls", [False, True])
def test_connections_are_kept_for_one_host_and_one_proxy(
    request: pytest.FixtureRequest, transport: Transport, ca_bundle: str, tls: bool
) -> None:
    fake: FakeProvider = request.getfixturevalue("tls_fake" if tls else "fake")
    trusted = ca_bundle if tls else None
    fake.default(fp.answer("hi"))
    with ForwardProxy() as first, ForwardProxy() as second:
        others = (first.with_password("a", "b"), second.url, "off")
        for url in (first.url, first.url, *others, first.url):
            assert fetch(make(transport, fake.origin, url, trusted))[0] == 200
        connections = [seen.connection for seen in first.seen]
        assert set(connections) == {1, 2}
        assert len(second.seen) == 1
    assert [request.connection for request in fake.requests] == [1, 1, 2, 3, 4, 1]


def test_a_server_wide_proxy_leads_to_all_hosts_but_this_machine(fake: FakeProvider) -> None:
    fake.default(fp.answer("hi"))
    port = fake.origin.rpartition(":")[2]
    with ForwardProxy() as proxy, closing(Transport(proxy=proxy.url)) as transport:
        for host in ("127.0.0.1", "localhost"):
            assert fetch(make(transport, f"http://{host}:{port}", None))[0] == 200
        assert proxy.seen == []
        for host in ("llm.corp.invalid", "10.1.2.3"):
            assert fetch(make(transport, f"http://{host}:{port}", None))[0] == 200
        assert len(proxy.seen) == 2
        for off in ("", "off", "none"):
            assert fetch(make(transport, fake.origin, off))[0] == 200
        assert len(proxy.seen) == 2
        with ForwardProxy() as own:
            assert fetch(make(transport, f"http://a.invalid:{port}", own.url))[0] == 200
            assert fetch(make(transport, fake.origin, own.url))[0] == 200
            assert len(own.seen) == 2


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("LLM.localhost", True),
        ("10.0.0.1", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_local_hosts(host: str, local: bool) -> None:
    assert proxies.is_local(host) is local


# Refusals

REFUSALS = {
    "407": (refuse(407, "Proxy-Authenticate: Basic"), "requires a password (status 407)"),
    "403": (refuse(403), "with status 403"),
    "502": (refuse(502), "with status 502"),
    "503": (refuse(503), "with status 503"),
    "squid": (refuse(400, "X-Squid-Error: ERR_DNS_FAIL 0"), "with status 400"),
    "status": (refuse(500, "Proxy-Status: corp; error=dns_timeout"), "with status 500"),
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_names_the_proxy(transport: Transport, refusal: str, scheme: str) -> None:
    behave, text = REFUSALS[refusal]
    with ForwardProxy(behave) as proxy, pytest.raises(UpstreamError) as raised:
        fetch(make(transport, f"{scheme}://llm.invalid", proxy.url))
    message = str(raised.value)
    assert message.startswith(f"The proxy {proxy.name} ")
    assert text in message
    assert raised.value.upstream_status is None


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_wrong_password_is_reported_without_it(transport: Transport, scheme: str) -> None:
    with ForwardProxy(refuse(407)) as proxy, pytest.raises(UpstreamError) as raised:
        fetch(make(transport, f"{scheme}://llm.invalid", proxy.with_password(USER, QUOTED)))
    message = repr(raised.value)
    assert f"{proxy.name} rejected its user or password" in message
    for secret in (USER + ":", PASSWORD, QUOTED, BASIC.split()[1]):
        assert secret not in message


BROKEN: dict[str, tuple[Behave, str]] = {
    "closed": (lambda client: client.shutdown(socket.SHUT_RDWR), "closed the connection"),
    "garbage": (reply(b"SSH-2.0-x\r\n\r\n"), "invalid response"),
    "too_long": (reply(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 40_000), "invalid response"),
    "early_bytes": (reply(b"HTTP/1.1 200 OK\r\n\r\nhello"), "invalid response"),
    "switching": (reply(b"HTTP/1.1 101 Switching\r\n\r\n"), "invalid response"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_tunnel_names_the_proxy(transport: Transport, fault: str) -> None:
    behave, text = BROKEN[fault]
    with ForwardProxy(behave) as proxy, pytest.raises(UpstreamError) as raised:
        fetch(make(transport, "https://llm.invalid", proxy.url))
    assert f"The proxy {proxy.name} " in str(raised.value)
    assert text in str(raised.value)


def test_a_200_with_framing_headers_opens_the_tunnel(
    tls_fake: FakeProvider, transport: Transport, ca_bundle: str
) -> None:
    tls_fake.script(fp.answer("hi"))
    port = int(tls_fake.origin.rpartition(":")[2])

    def behave(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nVia: 1.1 x\r\n\r\n")
        upstream = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=pump, args=(upstream, client), daemon=True).start()
        pump(client, upstream)
        upstream.close()

    with ForwardProxy(behave) as proxy:
        assert fetch(make(transport, tls_fake.origin, proxy.url, ca_bundle)) == (200, b'"hi"')


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_unreachable_proxy_is_named(transport: Transport, scheme: str, host: str) -> None:
    name = f"{host}:{free_port()}"
    with pytest.raises(UpstreamError, match=f"The proxy {name} could not be reached"):
        fetch(make(transport, f"{scheme}://llm.invalid", f"http://a:b@{name}"))


def test_an_error_of_the_provider_stays_the_providers(
    fake: FakeProvider, transport: Transport
) -> None:
    fake.script(fp.error(403))
    with ForwardProxy() as proxy:
        status, _ = fetch(make(transport, fake.origin, proxy.url))
    assert status == 403


# Aborts and timeouts

PHASES: dict[str, Behave] = {
    "connect_silent": lambda _: None,
    "connect_half_head": reply(b"HTTP/1.1 200 Conn"),
    "handshake_silent": reply(b"HTTP/1.1 200 OK\r\n\r\n"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_an_abort_ends_a_tunnel_in_each_phase(transport: Transport, phase: str) -> None:
    def once() -> float:
        with ForwardProxy(PHASES[phase]) as proxy:
            reading = Reading(make(transport, "https://llm.invalid", proxy.url))
            until = time.monotonic() + HANG_S
            while not proxy.seen and time.monotonic() < until:
                time.sleep(0.005)
            time.sleep(0.03)
            before = time.monotonic()
            reading.exchange.abort()
            assert isinstance(reading.end(), Aborted)
            assert proxy.closed.wait(HANG_S)
            return max(reading.ended_at, time.monotonic()) - before

    assert best_of(TRIES, WITHIN_S, once) < WITHIN_S


@pytest.mark.parametrize("tls", [False, True])
def test_an_abort_ends_an_answer_through_a_proxy(
    request: pytest.FixtureRequest, transport: Transport, ca_bundle: str, tls: bool
) -> None:
    fake: FakeProvider = request.getfixturevalue("tls_fake" if tls else "fake")
    fake.script([fp.hold()])
    with ForwardProxy() as proxy:
        reading = Reading(make(transport, fake.origin, proxy.url, ca_bundle if tls else None))
        fake.wait_requests()
        before = time.monotonic()
        reading.exchange.abort()
        assert isinstance(reading.end(), Aborted)
        assert reading.ended_at - before < scaled(1)
        fake.wait_closed()


@pytest.mark.parametrize("phase", [*PHASES, "dripping"])
def test_the_connect_timeout_holds_in_each_phase(transport: Transport, phase: str) -> None:
    def slowly(client: socket.socket) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100:
            client.sendall(bytes([byte]))
            time.sleep(0.05)

    behave = PHASES.get(phase, slowly)
    before = time.monotonic()
    with ForwardProxy(behave) as proxy, pytest.raises(UpstreamTimeout) as raised:
        fetch(make(transport, "https://llm.invalid", proxy.url, timeouts=Timeouts(connect=0.3)))
    assert 0.25 < time.monotonic() - before < scaled(2)
    assert raised.value.phase == "connect"


# Settings


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("http://proxy.corp:3128", "proxy.corp", 3128),
        (" http://proxy.corp/ ", "proxy.corp", 80),
        ("HTTP://[fd00::1]:8080", "fd00::1", 8080),
        ("http://u:p@10.0.0.1:8080", "10.0.0.1", 8080),
    ],
)
def test_a_proxy_url_is_parsed(text: str, host: str, port: int) -> None:
    found = proxies.parse("SLUICE_PROXY", text)
    assert found is not None
    assert (found.host, found.port) == (host, port)
    assert "Basic" not in repr(found)


@pytest.mark.parametrize(
    "text",
    [
        "proxy.corp:3128",
        "u:hunter2@proxy.corp:3128",
        "socks5://u:hunter2@proxy.corp",
        "https://u:hunter2@proxy.corp",
        "http://u:hunter2@proxy.corp:port",
        "http://u:hunter2@",
        "http://u:hunter2@[::1",
        "http://u:hunter2@proxy.corp/path",
        "http://u:hunter2@a b",
        "http://",
    ],
)
def test_an_invalid_proxy_url_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(ConfigError, match="SLUICE_PROXY") as raised:
        Transport(proxy=text)
    assert "hunter2" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is None
    with pytest.raises(ConfigError, match=r"\[providers.x\]: proxy") as raised:
        registry.rows({"x": {"base_url": "http://a", "proxy": text}})
    assert "hunter2" not in str(raised.value)


def test_a_row_may_take_its_proxy_from_a_variable() -> None:
    table = {"x": {"base_url": "http://a", "proxy": "{CORP_PROXY}"}}
    row = registry.rows(table, {"CORP_PROXY": "http://u:hunter2@p:1"})["x"]
    assert row.proxy == "http://u:hunter2@p:1"
    assert "hunter2" not in repr(row)
    assert registry.missing(registry.rows(table)["x"], {}) == ["CORP_PROXY"]


def test_the_servers_certificates_are_trusted_unless_the_row_has_its_own(
    tls_fake: FakeProvider, ca_bundle: str
) -> None:
    tls_fake.default(fp.answer("hi"))
    with closing(Transport(ca_bundle=Path(ca_bundle))) as transport:
        assert fetch(make(transport, tls_fake.origin, None))[0] == 200
        with pytest.raises(UpstreamError, match="TLS certificate"):
            fetch(make(transport, tls_fake.origin, None, certifi.where()))
    gc.collect()


def test_a_file_without_certificates_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.pem"
    path.write_text("nothing")
    with pytest.raises(ConfigError, match="SLUICE_CA_BUNDLE"):
        Transport(ca_bundle=path)
