"""Tests of a server whose calls to providers go through a forward proxy."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.support import calls
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.forward_proxy import ForwardProxy, refuse
from tests.support.pace import HANG_S, scaled
from tests.support.sampling import sampled
from tests.support.servers import UNTROUBLED, Kind, Server

PASSWORD = "s3cret-word-0123"
ROW = """[providers.corp]
base_url = "{}://llm.invalid:{}/v1"
completions = true
"""


def port_of(fake: FakeProvider) -> str:
    return fake.origin.rpartition(":")[2]


@pytest.mark.parametrize("where", sampled(["variable", "row", "row_variable"], "variable"))
@pytest.mark.parametrize("kind", sampled(["gevent", "gthread"], "gevent"))
def test_calls_go_through_the_proxy(fake: FakeProvider, kind: Kind, where: str) -> None:
    fake.default(fp.answer(fp.body("hi")))
    with ForwardProxy() as proxy:
        url, env = proxy.with_password("corp", PASSWORD), dict(UNTROUBLED)
        row = ROW.format("http", port_of(fake))
        if where == "variable":
            env["SLUICE_PROXY"] = url
        elif where == "row":
            row += f'proxy = "{url}"\n'
        else:
            row += 'proxy = "{CORP_PROXY}"\n'
            env["CORP_PROXY"] = url
        with Server(row, env=env, kind=kind) as server:
            assert calls.complete(server, model="corp/m", prompt="x")["data"] == "hi"
            assert PASSWORD not in server.output()
        assert [seen.method for seen in proxy.seen] == ["POST"]


def test_a_row_may_turn_the_proxy_off(fake: FakeProvider) -> None:
    fake.default(fp.answer(fp.body("hi")))
    row = f'[providers.near]\nbase_url = "{fake.origin}/v1"\ncompletions = true\nproxy = ""\n'
    with ForwardProxy() as proxy, Server(row, env={"SLUICE_PROXY": proxy.url}) as server:
        assert calls.complete(server, model="near/m", prompt="x")["data"] == "hi"
        assert proxy.seen == []


def test_a_refusal_of_the_proxy_is_explained_without_its_password() -> None:
    with ForwardProxy(refuse(407)) as proxy:
        env = UNTROUBLED | {"SLUICE_PROXY": proxy.with_password("corp", PASSWORD)}
        with Server(ROW.format("https", 443), env=env) as server, server.client() as client:
            calls.ask(client, model="corp/m", prompt="x")
            head = client.read_head()
            body = json.dumps(client.json())
            assert head.status == 502
            assert f"The proxy {proxy.name} rejected its user or password" in body
            assert PASSWORD not in body + server.output()


def test_a_stop_ends_a_call_that_waits_for_its_tunnel() -> None:
    with ForwardProxy(lambda _: None) as proxy:
        env = UNTROUBLED | {"SLUICE_PROXY": proxy.url}
        with Server(ROW.format("https", 443), env=env) as server, server.client() as client:
            calls.ask(client, model="corp/m", prompt="x", stream_id="mine")
            server.wait(lambda: len(proxy.seen) == 1)
            before = time.monotonic()
            assert calls.stop(server, "mine").json == {"success": True}
            assert proxy.closed.wait(HANG_S)
            assert time.monotonic() - before < scaled(0.5)
            client.read_head()
            assert client.json()["finish_reason"] == "cancelled"


def test_proxy_variables_of_the_environment_are_named_and_not_used(fake: FakeProvider) -> None:
    fake.default(fp.answer(fp.body("hi")))
    url = f"http://corp:{PASSWORD}@127.0.0.1:1"
    env = {"HTTP_PROXY": url, "https_proxy": url, "ALL_PROXY": url, "no_proxy": "x"}
    row = f'[providers.near]\nbase_url = "{fake.origin}/v1"\ncompletions = true\n'
    with Server(row, env=env) as server:
        assert calls.complete(server, model="near/m", prompt="x")["data"] == "hi"
        lines = [line["message"] for line in calls.log_lines(server) if "PROXY" in line["message"]]
        assert PASSWORD not in server.output()
    [line] = lines
    assert line.startswith("HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY: ")
    assert "SLUICE_PROXY" in line


@pytest.mark.parametrize("kind", sampled(["gevent", "python", "flask"], "gevent"))
def test_an_invalid_proxy_stops_the_start_with_one_line(tmp_path: Path, kind: Kind) -> None:
    env = {"SLUICE_PROXY": f"socks5://corp:{PASSWORD}@127.0.0.1"}
    server = Server(env=env, kind=kind, directory=tmp_path)
    with pytest.raises(RuntimeError) as raised:
        server.start()
    output = server.output()
    assert "sluice: SLUICE_PROXY must be http://" in output
    assert "Traceback" not in output
    assert PASSWORD not in str(raised.value)


def test_a_server_trusts_the_certificates_of_the_setting(
    tls_fake: FakeProvider, ca_bundle: str
) -> None:
    tls_fake.default(fp.answer(fp.body("hi")))
    row = f'[providers.near]\nbase_url = "{tls_fake.origin}/v1"\ncompletions = true\n'
    with Server(row, env={"SLUICE_CA_BUNDLE": ca_bundle}) as server:
        assert calls.complete(server, model="near/m", prompt="x")["data"] == "hi"
