"""Tests that the programs in examples/ run, that they stop their streams, or survive cuts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import fake as fp
from tests.support.calls import BEGUN, EVENT, wait_active
from tests.support.cutting_proxy import CuttingProxy
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.sampling import sampled
from tests.support.servers import Server, free_port

EXAMPLES = sorted((ROOT / "examples").glob("*.*"))
COMMANDS = {".py": [sys.executable, "-W", "error"], ".mjs": ["node"]}
each = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
RESUMING = [path for path in EXAMPLES if path.stem == "resume"]
STOPPING = [path for path in EXAMPLES if path not in RESUMING]
each_stopping = pytest.mark.parametrize("path", STOPPING, ids=lambda path: path.name)
each_resuming = pytest.mark.parametrize("path", RESUMING, ids=lambda path: path.name)
shortest = ROOT / "examples/stream_and_stop.py"
one = pytest.mark.parametrize("path", sampled(EXAMPLES, shortest), ids=lambda path: path.name)


def run(path: Path, server: Server | None, **env: str) -> subprocess.CompletedProcess[str]:
    command = COMMANDS[path.suffix]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} isn't installed")
    address = {} if server is None else {"SLUICE_URL": server.url, "SLUICE_KEY": server.key}
    return subprocess.run(
        [*command, path, "The list type"],
        env={**os.environ, **address, **env},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


@each_stopping
def test_each_example_stops_a_stream(path: Path, server: Server, fake: FakeProvider) -> None:
    fake.script([*BEGUN, *[EVENT] * 10, fp.hold()])
    done = run(path, server, SLUICE_MODEL="fake/m", ENOUGH="40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Hello" + "word " * 7)
    assert "finish_reason: cancelled" in done.stdout
    assert "output_tokens: " in done.stdout
    assert fake.wait_closed()[0].outcome == "aborted"
    wait_active(server, 0)


@each_stopping
def test_each_example_stops_the_slow_built_in_model(path: Path, server: Server) -> None:
    done = run(path, server, ENOUGH="20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finish_reason: cancelled" in done.stdout


@one
def test_each_example_reports_an_invalid_key(path: Path, server: Server) -> None:
    done = run(path, server, SLUICE_KEY="sk-sluice-unknown")
    assert "A valid API key is required" in in_one_line(done)


def in_one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Check that an example failed in one line, and return it."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    [line] = done.stderr.splitlines()
    return line


@one
def test_each_example_says_in_one_line_that_the_key_is_missing(path: Path) -> None:
    assert "Set SLUICE_KEY" in in_one_line(run(path, None, SLUICE_KEY=""))


@one
def test_each_example_says_in_one_line_that_no_server_answers(path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run(path, None, SLUICE_KEY="sk-sluice-x", SLUICE_URL=url, TRIES="2")
    assert in_one_line(done).startswith(f"No server answers at {url}. Start one with 'make run'")


@one
def test_each_example_says_in_one_line_that_another_server_answers(
    path: Path, fake: FakeProvider
) -> None:
    fake.default(fp.answer(b"<html>Not here</html>", 404, {"Content-Type": "text/html"}))
    done = run(path, None, SLUICE_KEY="sk-sluice-x", SLUICE_URL=fake.origin)
    assert "404" in in_one_line(done)


@each_resuming
def test_each_example_of_resuming_survives_cut_connections(
    path: Path, server: Server, fake: FakeProvider
) -> None:
    words = [f"word-{n} " for n in range(60)]
    fake.script(fp.sse(fp.chunks(words, usage=(7, 60)), interval=0.01))
    with CuttingProxy(server.port, [0, 2500, 1500, 900]) as proxy:
        done = run(path, server, SLUICE_MODEL="fake/m", SLUICE_URL=proxy.url)
    assert done.returncode == 0, done.stdout + done.stderr
    text, _, rest = done.stdout.partition("\n\n")
    assert text == "".join(words)
    finish, usage, reconnects = rest.splitlines()
    assert finish == "finish_reason: stop"
    assert usage.startswith("output_tokens: 60")
    assert int(reconnects.removeprefix("reconnects: ")) >= proxy.made >= 3


def test_each_language_has_an_example_of_each_kind() -> None:
    for kind in (STOPPING, RESUMING):
        assert {path.suffix for path in kind} == set(COMMANDS)
