"""The deploy guides and their files agree with the code: what they name is there, the times of a
proxy and a service manager fit Sluice's own, and an upgrade goes as the guide says."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import trustme

from app import create_app
from config import VARIABLES, Settings
from providers.rows import BUILT_IN
from tests.support import calls
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.servers import Server, fake_rows, free_port

GUIDES = sorted((ROOT / "docs/deploy").glob("*.md"))
NGINX = ROOT / "deploy/nginx.conf"
UNIT = ROOT / "deploy/sluice.service"
FILES = [*GUIDES, *sorted(p for p in (ROOT / "deploy").rglob("*") if p.is_file())]
FILES += [ROOT / "Dockerfile", ROOT / "compose.yaml", ROOT / ".dockerignore"]
FAREWELL_S = 10
"""How much longer than SLUICE_DRAIN_S docs/operating.md asks others to wait."""
UNITS = {"": 1, "s": 1, "k": 1024, "m": 1024 * 1024}
BLOCK = re.compile(r"^ *(upstream \w+ \{\n.*?^ *\}$)", re.MULTILINE | re.DOTALL)
by_name = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def value(path: Path, name: str) -> int:
    """What a line of nginx's, systemd's or Compose's gives for a name, in seconds or bytes."""
    found = re.search(rf"^\s*{name}[ =:]+(\d+)([smk]?)\b", path.read_text(), re.MULTILINE)
    assert found, f"{path.name}: {name}"
    return int(found[1]) * UNITS[found[2]]


@by_name
def test_variables_named_in_deploy_files_exist(path: Path) -> None:
    ours = {variable.name for variable in VARIABLES}
    theirs = {name for row in BUILT_IN for name in re.findall(r"\w+_API_KEY", repr(row))}
    named = set(re.findall(r"\b(?:SLUICE_[A-Z_]+|[A-Z]+_URL|WEB_CONCURRENCY)\b", path.read_text()))
    assert named <= ours
    assert set(re.findall(r"\b[A-Z]+_API_KEY\b", path.read_text())) <= theirs


@by_name
def test_files_named_in_deploy_files_exist(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r"(?<![\w/.])((?:deploy|docs)/[\w./-]*\w|requirements\.txt)", text):
        assert (ROOT / name).exists(), name


def test_flask_commands_in_deploy_guides_exist_with_their_options() -> None:
    """Each `flask ...` of the guides is a command with these options."""
    context = click.Context(create_app(Settings()).cli)
    found = 0
    for path in GUIDES:
        for line in re.findall(
            r"flask ((?:keys|usage|ledger|providers)\b[^\n`;)|]*)", path.read_text()
        ):
            words = shlex.split(line)
            command: click.Command = create_app(Settings()).cli
            while isinstance(command, click.Group):
                known = command.get_command(context, words[0])
                assert known is not None, line
                command, words = known, words[1:]
            options = {option for param in command.params for option in param.opts}
            assert {word for word in words if word.startswith("--")} <= options, line
            found += 1
    assert found > 5


def test_procfile_systemd_unit_and_docker_image_run_one_command() -> None:
    procfile = (ROOT / "Procfile").read_text().removeprefix("web:").split()
    unit = re.search(r"^ExecStart=\S+/bin/(.+)$", UNIT.read_text(), re.MULTILINE)
    image = re.search(r"^CMD (\[.+\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert unit is not None
    assert image is not None
    assert unit[1].split() == procfile
    assert re.findall(r'"([^"]*)"', image[1]) == procfile


def test_stop_timeouts_of_systemd_and_docker_cover_the_drain_time() -> None:
    needed = Settings().drain + FAREWELL_S
    assert value(UNIT, "TimeoutStopSec") >= needed
    assert value(ROOT / "compose.yaml", "stop_grace_period") >= needed
    stop = re.search(r"--stop-timeout (\d+)", (ROOT / "docs/deploy/docker.md").read_text())
    assert stop is not None
    assert int(stop[1]) >= needed


def test_nginx_limits_fit_the_timeouts_and_body_limit_of_sluice() -> None:
    settings = Settings()
    assert value(NGINX, "proxy_read_timeout") > settings.timeouts.total
    assert value(NGINX, "client_max_body_size") > settings.max_body
    assert value(NGINX, "client_body_buffer_size") >= value(NGINX, "client_max_body_size")
    conf = (ROOT / "gunicorn.conf.py").read_text()
    keepalive = re.search(r"^keepalive = (\d+)", conf, re.MULTILINE)
    assert keepalive is not None
    assert value(NGINX, "keepalive_timeout") < int(keepalive[1])


def test_the_defaults_meet_the_rules_of_heroku() -> None:
    settings = Settings()
    assert settings.first_event_wait < 30
    assert settings.keepalive < 55
    assert settings.drain <= 25


def test_docker_image_holds_only_code_pages_and_requirements() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = {path.parent.name for path in ROOT.glob("[!.]*/__init__.py")} - {"tests", "bench"}
    pages = {name for name in ("static", "templates") if (ROOT / name).is_dir()}
    assert let_in == {"*.py", "requirements.txt"} | packages | pages


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze isn't here")
def test_systemd_accepts_the_unit_file(tmp_path: Path) -> None:
    # Its programs aren't where the guide puts them.
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE)
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert [line for line in done.stderr.splitlines() if UNIT.name in line] == []


def nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        pytest.skip("nginx isn't here")
    return found


def site(directory: Path, port: int, upstream: int) -> str:
    """deploy/nginx.conf on free ports, with a certificate of the tests' own."""
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
    """nginx's command for these blocks, with all of its files in one directory."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "\n".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    user = "user root;\n" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(
        f"{user}daemon off;\npid {directory}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}\n{http}\n}}\n"
    )
    return [nginx(), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr"]


@contextmanager
def proxy(server: Server) -> Iterator[http.client.HTTPSConnection]:
    """A connection through nginx, configured as the guide has it, to a server."""
    with tempfile.TemporaryDirectory(prefix="sluice-nginx-") as name:
        directory, port = Path(name), free_port()
        command = configure(directory, site(directory, port, server.port))
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        trust = ssl.create_default_context(cafile=directory / "ca.pem")
        trust.check_hostname = False  # it is made for the guide's name
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=trust, timeout=HANG_S)
        try:
            server.wait(lambda: process.poll() is not None or listens(connection), 10)
            yield connection
        finally:
            connection.close()
            process.terminate()
            process.communicate(timeout=HANG_S)


def listens(connection: http.client.HTTPSConnection) -> bool:
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


def test_events_come_through_nginx_one_by_one(fake: FakeProvider, server: Server) -> None:
    """The second is sent when the client has read the first."""
    rest = [*map(fp.event, fp.chunks(["b"])), fp.event("[DONE]"), fp.last_chunk()]
    fake.script([*calls.BEGUN, calls.EVENT, fp.gate("rest"), *rest])
    with proxy(server) as connection:
        answer = post(server, connection, '{"model": "fake/m", "prompt": "x", "stream": true}')
        assert answer.status == 200
        assert answer.readline().startswith(b"data: ")
        fake.open("rest")
        assert b"[DONE]" in answer.read()


def test_body_that_is_too_large_gets_its_413_from_sluice_behind_nginx(server: Server) -> None:
    prompt = "x" * (Settings().max_body + 1000)
    with proxy(server) as connection:
        answer = post(server, connection, f'{{"model": "fake/m", "prompt": "{prompt}"}}')
        assert (answer.status, answer.getheader("Content-Type")) == (413, "application/json")


def test_nginx_hides_the_metrics(server: Server) -> None:
    with proxy(server) as connection:
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 404


def test_nginx_accepts_the_blocks_of_the_scale_guide(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs/deploy/scale.md").read_text())
    assert len(blocks) == 2
    resolvable = (
        "\n".join(blocks).replace("a.internal", "127.0.0.2").replace("b.internal", "127.0.0.3")
    )
    command = configure(tmp_path, resolvable)
    done = subprocess.run(
        [*command, "-t"], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr


def test_reload_serves_new_code_while_an_old_stream_goes_on(
    fake: FakeProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New code, that of config.py too, serves after a HUP, and a stream of the old goes on."""
    skipped = shutil.ignore_patterns(".*", "tests", "docs", "__pycache__", "*.db*")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=skipped)
    monkeypatch.setattr("tests.support.servers.ROOT", tmp_path / "tree")
    rest = [*map(fp.event, fp.chunks(["b"])), fp.event("[DONE]"), fp.last_chunk()]
    fake.script([*calls.BEGUN, calls.EVENT, fp.gate("rest"), *rest])
    with Server(fake_rows(fake.base_url)) as server, server.client() as client:
        calls.begin_stream(client)
        old = server.worker_pids()
        append(tmp_path / "tree/config.py", "\nNOVELTY = 'new'\n")
        append(tmp_path / "tree/app.py", "\nfrom config import NOVELTY\nlog.warning(NOVELTY)\n")
        server.signal(signal.SIGHUP)
        server.wait(lambda: '"new"' in server.output())
        fake.open("rest")
        assert calls.kinds(list(client.frames()))[-1] == "DONE"
        server.wait(lambda: not set(old) & set(server.worker_pids()))
        assert server.is_ready()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
