"""Tests of ./sluice in a checkout: its commands, and the checks and the start of its server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.support.checkouts import ADDRESS, Checkout
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.sampling import sampled
from tests.support.servers import free_port


@pytest.fixture(scope="module")
def module_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with Checkout(tmp_path_factory.mktemp("a checkout")) as checkout:
        yield checkout


@pytest.fixture
def checkout(module_checkout: Checkout) -> Iterator[Checkout]:
    """Yield a checkout without settings, keys and a ledger."""
    yield module_checkout
    for name in (".env", "sluice.toml", "keys.jsonl"):
        path = module_checkout.directory / name
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)


def call(
    checkout: Checkout,
    *words: str,
    program: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run ./sluice to its end."""
    return subprocess.run(
        [program or checkout.directory / "sluice", *words],
        cwd=cwd or checkout.directory,
        env={**checkout.env, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def refusal(checkout: Checkout, *words: str, **env: str) -> str:
    """Run ./sluice, which must fail with one line, and return the line."""
    done = call(checkout, *words, env=env)
    assert done.returncode != 0
    [line] = (done.stdout + done.stderr).splitlines()
    return line


# The commands


def test_a_command_works_from_any_folder_and_through_links(
    checkout: Checkout, tmp_path: Path
) -> None:
    first, second = tmp_path / "bin/sluice", tmp_path / "slu"
    first.parent.mkdir()
    first.symlink_to(os.path.relpath(checkout.directory / "sluice", first.parent))
    second.symlink_to("bin/sluice")
    (tmp_path / ".env").write_bytes(b"\xff")  # the caller's .env doesn't matter
    made = call(checkout, "keys", "create", "--name", "a", program=second, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (checkout.directory / "keys.jsonl").read_text().count('"name":"a"') == 1
    shown = call(
        checkout, "-c", "sluice keys list", program=Path("/bin/sh"), cwd=Path("/"),
        env={"PATH": f"{first.parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    assert " a " in shown.stdout, shown.stderr
    assert list(tmp_path.glob("*.jsonl")) == []


def test_a_file_in_an_argument_is_relative_to_the_folder_of_the_caller(
    checkout: Checkout, tmp_path: Path
) -> None:
    (checkout.directory / "sluice.db").touch()
    done = call(checkout, "ledger", "backup", "copy.db", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.db").exists()


def test_help_lists_each_command_even_if_the_configuration_is_invalid(checkout: Checkout) -> None:
    (checkout.directory / "sluice.toml").write_text("[nonsense]")
    done = call(checkout, "--help")
    assert done.returncode == 0
    for name in ("keys", "usage", "ledger", "providers", "quickstart", "serve", "setup", "flask"):
        assert re.search(rf"^  {name} +\S", done.stdout, re.MULTILINE), name
    assert call(checkout).returncode == 2


@pytest.mark.parametrize("command", sampled(["keys list", "serve", "flask keys list"], "serve"))
def test_a_dotenv_in_another_encoding_ends_each_command_with_one_line(
    checkout: Checkout, command: str
) -> None:
    path = checkout.directory / ".env"
    path.write_bytes(b"# Schl\xfcssel\nOPENAI_API_KEY=sk-a\n")
    assert refusal(checkout, *command.split()) == (
        f"sluice: {path} can't be read: save it as UTF-8 (see line 1)"
    )


def test_flask_reads_dotenv_files_from_the_folder_of_the_caller_upward(
    checkout: Checkout, tmp_path: Path
) -> None:
    (checkout.directory / ".env").write_bytes(b"\xff")
    (tmp_path / ".env").write_text(f"SLUICE_KEYS_FILE={tmp_path}/a\n", "utf-16")
    (tmp_path / ".flaskenv").write_text("SLUICE_KEYS_FILE=/nowhere/b\nSLUICE_RETRIES=0\n")
    (tmp_path / "below").mkdir()
    app = checkout.directory / "wsgi"
    words = ("flask", "--app", str(app), "keys", "create", "--name", "one")
    done = call(checkout, *words, cwd=tmp_path / "below", env={"FLASK_SKIP_DOTENV": ""})
    assert done.returncode == 0, done.stderr
    assert "one" in (tmp_path / "a").read_text()


def test_flask_finds_the_app_from_any_folder(checkout: Checkout, tmp_path: Path) -> None:
    done = call(checkout, "flask", "routes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "/api/v1/completions" in done.stdout


FOREIGN = {"WEB_CONCURRENCY": "", "PYTHONSAFEPATH": "1", "SLUICE_KEY": "x"}


@pytest.mark.parametrize("setting", sampled(FOREIGN, "PYTHONSAFEPATH"))
def test_a_variable_that_others_set_does_not_stop_a_command(
    checkout: Checkout, setting: str
) -> None:
    assert call(checkout, "keys", "list", env={setting: FOREIGN[setting]}).returncode == 0


def test_without_packages_a_line_says_what_to_run(tmp_path: Path) -> None:
    for name in ("sluice", "requirements.txt"):
        shutil.copy2(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "cli", tmp_path / "cli")
    python = tmp_path / "bin/python3"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nexec /usr/bin/env -u PYTHONPATH REAL -S -E "$@"\n'.replace(
        "REAL", os.path.realpath(shutil.which("python3") or "")
    ))  # fmt: skip
    python.chmod(0o755)

    def run(path: str) -> str:
        done = subprocess.run(
            [tmp_path / "sluice", "keys", "list"],
            env={"PATH": path},
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 1
        [line] = (done.stdout + done.stderr).splitlines()
        return line

    path = f"{python.parent}:/usr/bin:/bin"
    assert run(path) == (
        f"sluice: Sluice isn't set up yet in {tmp_path}: run make run there, "
        "or without make: ./sluice setup"
    )
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to("/nowhere")
    assert "its Python is gone" in run(path)
    (tmp_path / ".venv/bin/python").unlink()
    (tmp_path / ".venv/bin/python").symlink_to(python)
    assert re.search(r"packages are missing in .*/\.venv \(Flask, .*\): run make run", run(path))


# The server


class Started:
    """A server that ./sluice has started."""

    def __init__(self, checkout: Checkout, *words: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [checkout.directory / "sluice", "serve", *words],
            cwd=checkout.directory,
            env=checkout.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        assert self.process.stdout is not None
        self.output = ""
        while "Booting worker" not in self.output:
            line = self.process.stdout.readline()
            assert line, self.output
            self.output += line

    def stop(self) -> int:
        """Press Ctrl-C, and return the exit status."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.output += self.process.communicate(timeout=HANG_S)[0]
        return self.process.returncode


def ready(url: str) -> bool:
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        try:
            return bool(urllib.request.urlopen(f"{url}/ready", timeout=HANG_S).status == 200)
        except OSError:
            time.sleep(0.1)
    return False


def test_serve_announces_where_it_listens_and_ends_with_ctrl_c(checkout: Checkout) -> None:
    env = {"GUNICORN_CMD_ARGS": "", "PORT": str(checkout.port), "WEB_CONCURRENCY": ""}
    server = Started(checkout, "--first-key", **env)
    try:
        url = f"http://127.0.0.1:{checkout.port}"
        assert f"Sluice listens on 127.0.0.1:{checkout.port} (Ctrl-C stops it)." in server.output
        assert f"Playground: {url}/\n" in server.output
        assert f"\n  export SLUICE_URL={url}\n  export SLUICE_KEY=sk-sluice-" in server.output
        assert ready(url)
        [secret] = re.findall(r"export SLUICE_KEY=(\S+)", server.output)
        request = urllib.request.Request(
            f"{url}/v1/models", headers={"Authorization": f"Bearer {secret}"}
        )
        assert urllib.request.urlopen(request, timeout=HANG_S).status == 200
        with pytest.raises(OSError):  # loopback only, although PORT is set
            socket.create_connection(("127.0.0.2", checkout.port), timeout=HANG_S).close()

        taken = re.compile(
            rf"sluice: Sluice already runs at {re.escape(url)}; to start another one, "
            r"try PORT=(\d+) (.*)"
        )
        for words, command in ([], "./sluice serve"), (["--first-key"], "make run"):
            match = taken.fullmatch(refusal(checkout, "serve", *words, **env))
            assert match is not None
            assert int(match[1]) > checkout.port
            assert match[2] == command

        (checkout.directory / "keys.jsonl").chmod(0o644)
        more = {"PORT": str(free_port()), "OPENAI_APIKEY": "sk-x"}
        other = Started(checkout, "--first-key", **env | more)
        assert other.stop() == 0  # while its worker still loads Sluice
        assert "SIGKILL" not in other.output
        assert "Traceback" not in other.output
        warnings = other.output.partition("Sluice listens on ")[0]
        for text in (
            "another server uses ",
            "other users can read or write keys.jsonl",
            "OPENAI_APIKEY isn't used; did you mean OPENAI_API_KEY",
        ):
            assert f"Warning: {text}" in warnings
            assert other.output.count(text) == 1
        assert "Lost your key? ./sluice keys rotate first" in other.output
        assert "sk-sluice-" not in other.output
    finally:
        assert server.stop() == 0


@pytest.mark.thorough
def test_serve_passes_options_on_to_gunicorn(checkout: Checkout) -> None:
    port = free_port()
    server = Started(checkout, "-b", f"127.0.0.1:{port}", "--access-logfile", "-")
    try:
        assert f"Sluice will listen on 127.0.0.1:{port} " in server.output
        assert "There are no keys yet: ./sluice keys create --name NAME" in server.output
        assert ready(f"http://127.0.0.1:{port}")
    finally:
        assert server.stop() == 0
    assert '"GET /ready HTTP/1.1" 200' in server.output


UNWORKABLE: dict[str, tuple[dict[str, str], str]] = {
    "port": ({"PORT": "99999"}, "PORT is '99999'"),
    "address": (
        {"HOST": "192.0.2.1"},
        "can't listen on 192.0.2.1: this machine doesn't have that address",
    ),
    "host": ({"SLUICE_HOST": "no.such.host.invalid"}, "there is no such host or address"),
    "ledger": (
        {"SLUICE_DATABASE": "/nowhere/sluice.db"},
        "the folder of the ledger doesn't exist",
    ),
    "redis": ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "REDIS_URL"),
    "keys": (
        {"SLUICE_KEYS_FILE": "/dev/null"},
        "null can't be read: not a regular file (/dev/null)",
    ),
}


@pytest.mark.parametrize("what", sampled(UNWORKABLE, "port", "ledger"))
def test_serve_refuses_what_cannot_work_before_it_announces(checkout: Checkout, what: str) -> None:
    env, says = UNWORKABLE[what]
    line = refusal(checkout, "serve", "--first-key", **{"GUNICORN_CMD_ARGS": "", **env})
    assert line.startswith("sluice: ")
    assert says in line
    assert not (checkout.directory / "keys.jsonl").exists()


def test_two_workers_without_redis_are_refused_before_the_announcement(
    checkout: Checkout,
) -> None:
    line = refusal(checkout, "serve", "--first-key", "-w", "2")
    assert line.startswith("sluice: 2 workers need a Redis to share their streams")
    assert not (checkout.directory / "keys.jsonl").exists()


def test_an_option_that_gunicorn_does_not_know_ends_the_start(checkout: Checkout) -> None:
    done = call(checkout, "serve", "--nonsense")
    assert done.returncode == 2
    assert "unrecognized arguments: --nonsense" in done.stderr
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.thorough
def test_make_run_starts_the_server(checkout: Checkout) -> None:
    if shutil.which("make") is None:
        pytest.skip("make isn't installed")
    output = checkout.serve("make run")
    assert f"Sluice listens on 127.0.0.1:{checkout.port}" in output
    assert "export SLUICE_KEY=sk-sluice-" in output
    assert checkout.bash(f"curl -fsS http://{ADDRESS}/health").stdout.strip() == '{"status":"ok"}'
    checkout.stop()
