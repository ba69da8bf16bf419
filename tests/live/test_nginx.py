"""Tests of deploy/nginx.conf and of the guides' nginx blocks in a real nginx."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from config import Settings
from tests.support import calls
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.path_variants import HOST, variants_of
from tests.support.paths import ROOT
from tests.support.servers import Server, free_port

NGINX = ROOT / "deploy/nginx.conf"
BLOCK = re.compile(r"^ *(upstream \w+ \{\n.*?^ *\}$)", re.MULTILINE | re.DOTALL)


def nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        pytest.skip("nginx isn't installed")
    return found


def site(directory: Path, port: int, upstream: int) -> str:
    """Return deploy/nginx.conf with free ports and with a test certificate."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    issued = authority.issue_cert("llm.example.com")
    issued.private_key_and_cert_chain_pem.write_to_path(directory / "cert.pem")
    text = re.sub(r"/etc/letsencrypt/\S+\.pem", str(directory / "cert.pem"), NGINX.read_text())
    text = re.sub(r"^ *listen (80|\[).*\n", "", text, flags=re.MULTILINE)
    text = text.replace(
        "location /.well-known", f"listen 127.0.0.1:{free_port()}; location /.well-known"
    )
    assert "listen 443 " in text
    assert "server 127.0.0.1:8000;" in text
    text = text.replace("listen 443 ", f"listen 127.0.0.1:{port} ")
    return text.replace("127.0.0.1:8000;", f"127.0.0.1:{upstream};")


def configure(directory: Path, http: str) -> list[str]:
    """Write a configuration with these blocks. Return nginx's command.

    All of nginx's files are in `directory`.
    """
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "\n".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    user = "user root;\n" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(
        f"{user}daemon off;\npid {directory}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}\n{http}\n}}\n"
    )
    return [nginx(), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]


@contextmanager
def proxy(server: Server, rules: str = "") -> Iterator[http.client.HTTPSConnection]:
    """Yield a connection to a server through an nginx that is configured as in the guide.

    Args:
        rules: additional lines of its `server` block.
    """
    with tempfile.TemporaryDirectory(prefix="sluice-nginx-") as name:
        directory, port = Path(name), free_port()
        text = site(directory, port, server.port)
        assert text.count("location ^~ /metrics") == 1
        text = text.replace("location ^~ /metrics", f"{rules}\nlocation ^~ /metrics")
        command = configure(directory, text)
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        trust = ssl.create_default_context(cafile=directory / "ca.pem")
        trust.check_hostname = False  # the certificate is for the domain name in the guide
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=HANG_S)
        try:
            server.wait(lambda: process.poll() is not None or listens(connection))
            yield connection
        finally:
            connection.close()
            process.terminate()
            process.communicate(timeout=HANG_S)


def listens(connection: http.client.HTTPConnection) -> bool:
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    return True


def post(
    server: Server, connection: http.client.HTTPSConnection, body: str
) -> http.client.HTTPResponse:
    headers = {"Authorization": f"Bearer {server.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", body, headers)
    return connection.getresponse()


def test_events_pass_through_nginx_one_by_one(fake: FakeProvider, server: Server) -> None:
    # The provider sends the second event after the client has read the first one.
    rest = [*map(fp.event, fp.chunks(["b"])), fp.event("[DONE]"), fp.last_chunk()]
    fake.script([*calls.BEGUN, calls.EVENT, fp.gate("rest"), *rest])
    with proxy(server) as connection:
        answer = post(server, connection, '{"model": "fake/m", "prompt": "x", "stream": true}')
        assert answer.status == 200
        assert answer.readline().startswith(b"data: ")
        fake.open("rest")
        assert b"[DONE]" in answer.read()


def test_sluice_behind_nginx_answers_413_to_a_too_large_body(server: Server) -> None:
    prompt = "x" * (Settings().max_body + 1000)
    with proxy(server) as connection:
        answer = post(server, connection, f'{{"model": "fake/m", "prompt": "{prompt}"}}')
        assert (answer.status, answer.getheader("Content-Type")) == (413, "application/json")


def send(connection: http.client.HTTPSConnection, target: str, *headers: str) -> bytes:
    """Send a GET on a new connection, and return the whole response.

    http.client would refuse or change some of these targets.
    """
    plain = socket.create_connection((connection.host, connection.port), HANG_S)
    with connection._context.wrap_socket(plain) as sock:  # type: ignore[attr-defined]
        lines = (f"GET {target} HTTP/1.1", f"Host: {HOST}", *headers, "Connection: close", "", "")
        sock.sendall("\r\n".join(lines).encode())
        return b"".join(iter(lambda: sock.recv(65536), b""))


def shows(response: bytes, what: bytes) -> bool:
    """Return True if a response shows something, or redirects to another spelling of its path."""
    assert response.startswith(b"HTTP/1.1 ")
    return what in response or response[9:10] == b"3"


HIDDEN = {
    "/metrics": ("/metrics", b"sluice_streams_active"),
    "/ready": ("/ready", b'"status":"ready"'),
    "/health": ("/health", b'"status":"ok"'),
    "/usage": ("/usage", b"<script"),
    "/docs": ("/docs", b"<script"),
    "/openapi.json": ("/openapi.json", b'"openapi"'),
    "/static/": ("/static/usage.js", b"signIn(begin)"),
}
"""For each prefix that an operator may want to hide: a path, and what its response contains."""


def test_nginx_hides_the_metrics_however_their_path_is_written(server: Server) -> None:
    path, text = HIDDEN["/metrics"]
    assert text in urllib.request.urlopen(server.url + path).read()
    with proxy(server) as connection:
        shown = [target for target in variants_of(path) if shows(send(connection, target), text)]
        assert shown == []
        assert send(connection, path).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    "header",
    ["SCRIPT_NAME: /x", "Script-Name: /x", "PATH_INFO: /metrics", "X-Original-URL: /metrics"],
)
def test_nginx_hides_the_metrics_from_headers_that_change_the_path(
    server: Server, header: str
) -> None:
    with proxy(server) as connection:
        for target in ("/x/metrics", "/x", "/"):
            assert not shows(send(connection, target, header), HIDDEN["/metrics"][1])


def test_the_guides_rule_hides_other_paths_however_they_are_written(server: Server) -> None:
    guide = (ROOT / "docs/guides/deploy/vm.md").read_text()
    rule = "location ^~ /ready { return 404; }"
    assert rule in guide
    rules = "\n".join(rule.replace("/ready", prefix) for prefix in HIDDEN if prefix != "/metrics")
    for path, text in HIDDEN.values():
        assert text in urllib.request.urlopen(server.url + path).read()
    with proxy(server, rules) as connection:
        shown = [
            target
            for path, text in HIDDEN.values()
            for target in variants_of(path)
            if shows(send(connection, target), text)
        ]
        assert shown == []
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {server.key}"})
        assert connection.getresponse().status == 200


def test_nginx_accepts_the_blocks_of_the_scale_guide(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs/guides/deploy/scale.md").read_text())
    assert len(blocks) == 2
    resolvable = (
        "\n".join(blocks).replace("a.internal", "127.0.0.2").replace("b.internal", "127.0.0.3")
    )
    command = configure(tmp_path, resolvable)
    done = subprocess.run(
        [*command, "-t"], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr
