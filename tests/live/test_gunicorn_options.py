"""Tests of gunicorn's options that Sluice supports or refuses."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import calls
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer
from tests.support.servers import Kind, Server, free_port, make_key, settings_files

pytestmark = pytest.mark.thorough

LOGGING = """
[loggers]
keys=root
[handlers]
keys=
[formatters]
keys=
[logger_root]
handlers=
"""
GUNICORN = [sys.executable, "-m", "gunicorn"]


def start_refused(
    directory: Path, args: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> str:
    """Start gunicorn, which must refuse, and return its only line."""
    (directory / "sluice.toml").touch()
    done = subprocess.run(
        [*GUNICORN, "-b", "127.0.0.1:0", *args, "wsgi:app"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **settings_files(directory), **(env or {})},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode != 0
    [line] = (done.stdout + done.stderr).splitlines()
    assert line.startswith("sluice: ")
    return line


@pytest.mark.parametrize("kind", ["gevent", "server.worker.Worker", "gthread"])
def test_preload_is_refused_for_every_worker_class(tmp_path: Path, kind: str) -> None:
    assert "--preload" in start_refused(tmp_path, ["--preload", "-k", kind])


def test_preload_from_the_environment_is_refused(tmp_path: Path) -> None:
    assert "--preload" in start_refused(tmp_path, env={"GUNICORN_CMD_ARGS": "--preload"})


def test_preload_with_several_workers_is_refused(tmp_path: Path, redis_server: RedisServer) -> None:
    env = {"REDIS_URL": redis_server.url}
    assert "--preload" in start_refused(tmp_path, ["--preload", "-w", "2"], env)


@pytest.mark.parametrize(
    "args", [["--log-config", "logs.ini"], ["--log-config-json", "x.json"], ["--log-syslog"]]
)
def test_log_options_that_would_bypass_redaction_are_refused(
    tmp_path: Path, args: list[str]
) -> None:
    (tmp_path / "logs.ini").write_text(LOGGING)
    args = [str(tmp_path / word) if word.endswith("ini") else word for word in args]
    assert args[0] in start_refused(tmp_path, args)


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
@pytest.mark.parametrize("how", ["arguments", "variable"])
def test_error_and_access_log_files_get_the_lines(tmp_path: Path, kind: Kind, how: str) -> None:
    errors, access = tmp_path / "errors.log", tmp_path / "access.log"
    options = ["--error-logfile", str(errors), "--access-logfile", str(access)]
    options += ["--access-logformat", "%(h)s %(r)s %(s)s %({authorization}i)s %(B)s"]
    if how == "arguments":
        server = Server(kind=kind, args=options)
    else:
        words = " ".join(f"'{word}'" for word in options)
        server = Server(kind=kind, env={"GUNICORN_CMD_ARGS": words})
    with server:
        secret = "sk-sluice-0123456789abcdef"
        assert calls.complete(server, model="local/pydoc", max_tokens=2)["provider"] == "local"
        calls.get(server, f"/v1/models?key={secret}")
        server.wait(lambda: "/v1/models" in access.read_text())
        assert server.output() == ""
    lines = [json.loads(line) for line in errors.read_text().splitlines()]
    assert {"gunicorn.error", "sluice.access"} <= {line["logger"] for line in lines}
    assert "Starting gunicorn" in lines[0]["message"]
    asked = [line for line in access.read_text().splitlines() if "/api/v1/completions" in line]
    assert [line.split(" - ")[0] for line in asked] == [
        "127.0.0.1 POST /api/v1/completions HTTP/1.1 200"
    ]
    written = errors.read_text() + access.read_text()
    assert server.key not in written
    assert secret not in written


def test_the_access_log_goes_to_standard_output(tmp_path: Path) -> None:
    with Server(args=("--access-logfile", "-"), directory=tmp_path) as server:
        server.wait(lambda: '"GET /ready HTTP/1.1" 200' in server.output())


def test_without_the_option_there_is_no_access_log_of_gunicorn() -> None:
    with Server() as server:
        calls.get(server, "/v1/models")
        assert "GET /v1/models HTTP/1.1" not in server.output()


def test_a_moved_error_log_file_is_opened_again_on_usr1(tmp_path: Path) -> None:
    log, moved = tmp_path / "log", tmp_path / "log.1"
    with Server(args=("--error-logfile", str(log))) as server:
        log.rename(moved)
        server.signal(signal.SIGUSR1)
        server.wait(log.exists)
        # The worker reopens the file a moment after the master.
        server.wait(
            lambda: bool(calls.get(server, "/v1/models")) and "/v1/models" in log.read_text()
        )


def test_a_reload_keeps_the_log_files(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Server(args=("--error-logfile", str(log))) as server:
        [old] = server.worker_pids()
        server.signal(signal.SIGHUP)
        server.wait(lambda: server.worker_pids() not in ([], [old]))
        server.wait(server.is_ready)
        server.wait(
            lambda: bool(calls.get(server, "/v1/models")) and "/v1/models" in log.read_text()
        )
        assert all(json.loads(line) for line in log.read_text().splitlines())
        assert server.output() == ""


def test_a_reload_of_an_invalid_configuration_is_refused_and_the_workers_keep_running() -> None:
    with Server() as server:
        workers = server.worker_pids()
        file = server.directory / "sluice.toml"
        file.write_text("[groups.team]\nbudget = 5\n")
        server.signal(signal.SIGHUP)
        server.wait(lambda: "the reload is refused" in server.output())
        [line] = [line for line in server.output().splitlines() if "is refused" in line]
        assert "groups.team" in json.loads(line)["message"]
        assert server.worker_pids() == workers
        assert calls.get(server, "/v1/models").status == 200
        file.write_text("[groups.team]\nbudget_usd = 5\n")
        server.signal(signal.SIGHUP)
        server.wait(lambda: server.worker_pids() not in ([], workers))
        server.wait(server.is_ready)


# Addresses


@contextmanager
def listening(directory: Path, *args: str, **env: str) -> Iterator[int]:
    """Start gunicorn as the image does, without -b, and yield its port."""
    port = free_port()
    (directory / "sluice.toml").touch()
    (directory / "keys.jsonl").write_text(make_key()[1])
    with (directory / "output").open("w") as output:
        process = subprocess.Popen(
            [*GUNICORN, *args, "wsgi:app"],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                **settings_files(directory),
                "PORT": str(port),
                **env,
            },
            stdout=output,
            stderr=output,
        )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(HANG_S)


def get(host: str, port: int, path: str, **headers: str) -> str:
    """Wait for the server to listen, and return a response's body; "" if it never listens."""
    for attempt in range(100):
        connection = http.client.HTTPConnection(host, port, timeout=HANG_S)
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().read().decode()
        except ConnectionRefusedError:
            if attempt == 99:
                return ""
            time.sleep(0.1)
        finally:
            connection.close()
    return ""


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
@pytest.mark.parametrize("kind", ["server.worker.Worker", "gthread"])
def test_with_port_set_the_server_is_reached_over_ipv4_and_ipv6(tmp_path: Path, kind: str) -> None:
    with listening(tmp_path, "-k", kind) as port:
        for host in ("127.0.0.1", "::1"):
            assert json.loads(get(host, port, "/health")) == {"status": "ok"}


@needs_ipv6
@pytest.mark.parametrize("kind", ["server.worker.Worker", "gthread"])
def test_a_proxy_that_is_trusted_by_its_ipv4_address_stays_trusted_on_a_dual_stack_socket(
    tmp_path: Path, kind: str
) -> None:
    log = tmp_path / "access.log"
    options = (
        "-k",
        kind,
        "--access-logfile",
        str(log),
        "--access-logformat",
        "%(h)s %({wsgi.url_scheme}e)s",
    )
    with listening(tmp_path, *options, FORWARDED_ALLOW_IPS="10.0.0.0/8,127.0.0.0/8") as port:
        get("127.0.0.1", port, "/health", **{"X-Forwarded-Proto": "https"})
        get("::1", port, "/health", **{"X-Forwarded-Proto": "https"})
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["https", "http"]


@needs_ipv6
def test_the_host_setting_limits_the_server_to_one_address(tmp_path: Path) -> None:
    with listening(tmp_path, SLUICE_HOST="::1") as port:
        assert get("::1", port, "/health")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=HANG_S)
