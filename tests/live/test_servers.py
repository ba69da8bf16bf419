"""Tests of each way to start Sluice.

Basic calls work on each kind of server, and each refuses to start with an invalid configuration, in
one clear line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import product
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from tests.support import calls
from tests.support import fake as fp
from tests.support.calls import (
    BEGUN,
    EVENT,
    ask,
    begin_stream,
    closed_after,
    complete,
    kinds,
    settled,
)
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S, scaled
from tests.support.paths import ROOT
from tests.support.raw_client import RawClient
from tests.support.sampling import sampled
from tests.support.servers import UNTROUBLED, Kind, Server, fake_rows, settings_files

KINDS: tuple[Kind, ...] = get_args(Kind)
GONE_WITHIN_S = scaled(1.5)
HELD = [*BEGUN, fp.hold()]


@pytest.fixture(scope="module")
def every(fake_process: FakeProvider) -> Iterator[dict[Kind, Server]]:
    with ExitStack() as stack:
        rows = fake_rows(fake_process.base_url)
        env = {"SLUICE_CLIENT_TIMEOUT_S": "2"}
        servers = {
            kind: stack.enter_context(Server(rows, kind=kind, env=UNTROUBLED | env))
            for kind in KINDS
        }
        yield servers
        # Werkzeug's server logs a traceback for a client that doesn't read.
        assert "Traceback" not in servers["gevent"].output() + servers["gthread"].output()


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, every: dict[Kind, Server], fake: FakeProvider) -> Server:
    return every[request.param]


def test_each_server_kind_serves_unary_calls(server: Server, fake: FakeProvider) -> None:
    fake.script(fp.answer(fp.body("hi")))
    answer = complete(server)
    assert (answer["data"], answer["provider"], answer["finish_reason"]) == ("hi", "fake", "stop")
    own = complete(server, model="local/pydoc", max_tokens=3, temperature=0)
    assert own["usage"]["tokens_completion"] == 3


def test_each_server_kind_sends_stream_events_as_they_arrive(
    server: Server, fake: FakeProvider
) -> None:
    rest = [*map(fp.event, fp.chunks(["b"])), fp.event("[DONE]"), fp.last_chunk()]
    fake.script([*BEGUN, fp.gate("on"), *rest])
    with server.client() as client:
        ask(client, stream=True)
        client.read_head()
        frames = [client.frame(), client.frame()]  # before the provider sends more
        fake.open("on")
        frames += list(client.frames())
    assert kinds(frames) == ["usage_start", "content", "content", "finish", "usage_final", "DONE"]


def test_stop_ends_streaming_and_unary_calls_and_closes_their_upstreams(
    server: Server, fake: FakeProvider
) -> None:
    fake.script(HELD)
    fake.script([fp.hold()])
    with server.client() as stream, server.client() as unary:
        stream_id = begin_stream(stream)
        ask(unary, stream_id="unary")
        fake.wait_requests(2)
        before = time.monotonic()
        assert calls.stop(server, stream_id).json == {"success": True}
        assert calls.stop(server, "unary").json == {"success": True}
        assert kinds(list(stream.frames())) == ["finish", "usage_final", "DONE"]
        unary.read_head()
        assert unary.json()["finish_reason"] == "cancelled"
    assert max(closed_after(request, before) for request in fake.wait_closed(2)) < scaled(1)


def test_each_server_kind_stops_the_slow_model_in_its_pause(server: Server) -> None:
    with server.client() as client:
        stream_id = begin_stream(client, model="local/slow")
        assert calls.stop(server, stream_id).json == {"success": True}
        frames = list(client.frames())
    assert kinds(frames)[-3:] == ["finish", "usage_final", "DONE"]
    assert 1 <= frames[-2].json["output_tokens"] < 100
    assert settled(server, stream_id)["end_reason"] == "stopped"


PLANS: dict[str, tuple[bool, Sequence[fp.Step]]] = {
    "flowing": (True, [*BEGUN, fp.repeat(EVENT.data, 0.05)]),
    "silent": (True, HELD),
    "unary": (False, [fp.hold()]),
}


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
def test_clients_that_hang_up_end_their_upstream_requests(
    every: dict[Kind, Server], fake: FakeProvider, how: str
) -> None:
    with ExitStack() as stack:
        clients = []
        for server, (name, (stream, steps)) in product(every.values(), PLANS.items()):
            clients.append(stack.enter_context(server.client()))
            fake.script(steps)
            ask(clients[-1], stream=stream, stream_id=f"{how}-{name}")
            fake.wait_requests(len(clients))
        before = time.monotonic()
        for client in clients:
            getattr(RawClient, how)(client)
        requests = fake.wait_closed(len(clients))
    assert max(closed_after(request, before) for request in requests) < GONE_WITHIN_S
    for server, name in product(every.values(), PLANS):
        assert settled(server, f"{how}-{name}")["end_reason"] == "client_gone"


def test_clients_that_do_not_read_are_disconnected(
    every: dict[Kind, Server], fake: FakeProvider
) -> None:
    fake.default([*BEGUN, fp.repeat(EVENT.data * 100)])
    with ExitStack() as stack:
        ids = {}
        for kind, server in every.items():
            client = stack.enter_context(server.client(rcvbuf=4096))
            ids[kind] = begin_stream(client)
        requests = fake.wait_closed(len(every), timeout=HANG_S)
        assert {request.closed_by for request in requests} == {"peer"}
        for kind, server in every.items():
            assert settled(server, ids[kind])["end_reason"] == "client_gone"


def test_a_body_that_does_not_arrive_is_answered_with_408(every: dict[Kind, Server]) -> None:
    with ExitStack() as stack:
        clients = {kind: stack.enter_context(server.client()) for kind, server in every.items()}
        for client in clients.values():
            client.request("POST", calls.COMPLETIONS, None, {"Content-Length": "9"})
        found = {kind: client.read_head().status for kind, client in clients.items()}
    assert found == {"gevent": 408, "gthread": 408, "python": 408, "flask": 408}


def test_a_kept_connection_serves_a_second_stream(server: Server, fake: FakeProvider) -> None:
    fake.default(fp.sse(fp.chunks(["a"])))
    with server.client() as client:
        ask(client, stream=True)
        head = client.read_head()
        list(client.frames())
        if head.headers.get("connection") == "close":
            assert client.ended()
            return
        ask(client, stream=True)
        assert client.read_head().status == 200
        assert len(list(client.frames())) == 5


@pytest.mark.parametrize("sent", sampled(["", "POST /v1/completions HTTP/1.1\r\nHost: "], ""))
def test_an_idle_connection_is_closed_after_the_keep_alive_time(
    fake: FakeProvider, sent: str
) -> None:
    # The connection is idle, or its client sends a head byte by byte and never completes it.
    rest = [*map(fp.event, fp.chunks(["!"])), fp.last_chunk()]
    fake.default([*BEGUN, fp.gate("end"), *rest])
    with (
        Server(fake_rows(fake.base_url), args=("--keep-alive", "1")) as server,
        server.client() as busy,
        server.client() as client,
    ):
        begin_stream(busy)
        client.request("GET", "/health")
        assert client.read_head().status == 200
        assert client.json() == {"status": "ok"}
        begun = time.monotonic()
        client.send(sent.encode())
        with suppress(ConnectionError):
            while not client.readable(0.1):
                assert time.monotonic() < begun + HANG_S
                client.send(b"x" if sent else b"")
        assert 0.9 < time.monotonic() - begun < scaled(3)
        fake.open("end")
        assert kinds(list(busy.frames()))[-1] == "DONE"


def test_the_gevent_option_of_gunicorn_starts_the_worker_of_sluice() -> None:
    with Server(args=("-k", "gevent")) as server:
        assert "Using worker: server.worker.Worker" in server.output()
        server.signal(signal.SIGHUP)
        server.wait(lambda: server.output().count("Booting worker") == 2)
        server.wait(server.is_ready)


# Start-up


class Start(NamedTuple):
    status: int | None
    output: str


COMMANDS: dict[str, list[str]] = {
    "gevent": ["-m", "gunicorn", "-b", "127.0.0.1:0", "wsgi:app"],
    "gthread": ["-m", "gunicorn", "-b", "127.0.0.1:0", "-k", "gthread", "wsgi:app"],
    "python": ["wsgi.py"],
    "flask": ["-m", "flask", "--app", "wsgi", "run", "--port", "0"],
}
BAD_ROW = '[providers.x]\nbase_url = "http://127.0.0.1"\nbase_uri = "y"\n'
REFUSED: dict[str, tuple[Mapping[str, str], str, str]] = {
    "an_unknown_name": ({"SLUICE_DRIAN_S": "3"}, "", "SLUICE_DRIAN_S is not a setting"),
    "a_malformed_value": ({"SLUICE_DRAIN_S": "soon"}, "", "SLUICE_DRAIN_S is 'soon'"),
    "a_bad_row": ({}, BAD_ROW, "[providers.x]"),
    "no_toml": ({}, "[providers", "can't be read"),
}


@pytest.mark.parametrize("reason", sampled(REFUSED, "an_unknown_name"))
def test_an_invalid_configuration_stops_the_start_with_one_line(
    tmp_path_factory: pytest.TempPathFactory, reason: str
) -> None:
    env, config, message = REFUSED[reason]
    running = {}
    for kind, command in COMMANDS.items():
        directory = tmp_path_factory.mktemp(kind)
        (directory / "sluice.toml").write_text(config)
        running[kind] = launch(command, settings_files(directory) | dict(env))
    for kind, process in running.items():
        output, _ = process.communicate(timeout=HANG_S)
        assert process.returncode not in (0, None), kind
        assert "Traceback" not in output, (kind, output)
        [line] = [line for line in output.splitlines() if message in line]
        assert line.startswith("sluice: "), (kind, line)


def launch(command: list[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "FLASK_SKIP_DOTENV": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_two_workers_without_redis_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "sluice.toml").touch()
    process = launch([*COMMANDS[kind], "-w", "2"], settings_files(tmp_path))
    output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode != 0
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if line.startswith("sluice: ")]
    assert "2 workers" in line
    assert "use one worker" in line


REDIS_URLS = ["redis://:s3cretword@127.0.0.1:1/0", "redis:s3cretword"]


@pytest.mark.parametrize("kind", sampled(["gevent", "python"], "gevent"))
@pytest.mark.parametrize("url", sampled(REDIS_URLS, REDIS_URLS[0]))
def test_an_unusable_redis_url_stops_the_start_without_showing_its_password(
    kind: Kind, url: str
) -> None:
    server = Server(kind=kind, env={"REDIS_URL": url})
    with pytest.raises(RuntimeError) as raised:
        server.start()
    output = str(raised.value)
    assert server.returncode() != 0
    assert "REDIS_URL" in output
    assert "Traceback" not in output
    assert "s3cretword" not in output


def test_a_start_warns_of_ignored_workers_and_a_missing_database(fake: FakeProvider) -> None:
    env = {"WEB_CONCURRENCY": "2", "DYNO": "web.1"}
    with Server(fake_rows(fake.base_url), env=env) as server:
        assert len(server.worker_pids()) == 1
        warnings = [line for line in calls.log_lines(server) if line["level"] == "warning"]
    texts = [line["message"] for line in warnings]
    assert len([text for text in texts if "WEB_CONCURRENCY=2 is ignored" in text]) == 1
    assert len([text for text in texts if "DYNO" in text and "DATABASE_URL" in text]) == 1


def test_a_start_without_problems_logs_no_warnings(every: dict[Kind, Server]) -> None:
    own = [line for line in calls.log_lines(every["gevent"]) if line["logger"].startswith("sluice")]
    assert {line["level"] for line in own} <= {"info"}


LOAD = """
import json, runpy, sys
before = set(sys.modules)
conf = runpy.run_path("gunicorn.conf.py")
print(json.dumps([conf["bind"], sorted(set(sys.modules) - before)]))
"""


def load_conf(env: Mapping[str, str]) -> tuple[str, set[str]]:
    """Return the address that gunicorn.conf.py binds, and the modules that it imports."""
    process = launch(["-c", LOAD], env)
    output, _ = process.communicate(timeout=HANG_S)
    bind, modules = json.loads(output)
    return bind, {name.partition(".")[0] for name in modules}


def test_loading_gunicorn_conf_imports_only_config_and_the_stdlib() -> None:
    _, modules = load_conf({})
    assert modules - set(sys.stdlib_module_names) <= {"config", "config_file"}
    assert "ssl" not in modules


@pytest.mark.parametrize(
    ("env", "bind"),
    [
        ({}, "127.0.0.1:8000"),
        ({"PORT": "8123"}, "[::]:8123"),
        ({"SLUICE_HOST": "::1"}, "[::1]:8000"),
        ({"SLUICE_HOST": "[::1]", "PORT": "8123"}, "[::1]:8123"),
        ({"SLUICE_HOST": "10.0.0.7", "PORT": "8123"}, "10.0.0.7:8123"),
        ({"SLUICE_HOST": "localhost", "PORT": "8123"}, "localhost:8123"),
    ],
)
def test_the_port_variable_binds_all_interfaces(env: dict[str, str], bind: str) -> None:
    # A platform that sets PORT routes requests from outside. Without PORT, only loopback is bound.
    assert load_conf(env)[0] == bind


NO_IPV6 = """
import socket
class Socket(socket.socket):
    def __init__(self, family=-1, *more, **named):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        super().__init__(family, *more, **named)
socket.socket = Socket
"""
ONLY_IPV6 = """
import socket
class Socket(socket.socket):
    def getsockopt(self, *_):
        return 1
socket.socket = Socket
"""


@pytest.mark.parametrize(
    ("machine", "bind"), [(NO_IPV6, "0.0.0.0:8123"), (ONLY_IPV6, "0.0.0.0:8123,[::]:8123")]
)
def test_the_port_is_bound_on_machines_without_dual_stack(machine: str, bind: str) -> None:
    process = launch(["-c", machine + LOAD], {"PORT": "8123"})
    output, _ = process.communicate(timeout=HANG_S)
    assert json.loads(output)[0] == bind
