"""Tests that the programs in examples/ run, and that they stop their streams."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import fake as fp
from tests.support.calls import BEGUN, EVENT, wait_active
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.servers import Server

EXAMPLES = sorted((ROOT / "examples").glob("*.*"))
COMMANDS = {".py": [sys.executable, "-W", "error"], ".mjs": ["node"]}
each = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)


def run(path: Path, server: Server, **env: str) -> subprocess.CompletedProcess[str]:
    command = COMMANDS[path.suffix]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} isn't installed")
    return subprocess.run(
        [*command, path, "The list type"],
        env={**os.environ, "SLUICE_URL": server.url, "SLUICE_KEY": server.key, **env},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


@each
def test_each_example_stops_a_stream(path: Path, server: Server, fake: FakeProvider) -> None:
    fake.script([*BEGUN, *[EVENT] * 10, fp.hold()])
    done = run(path, server, SLUICE_MODEL="fake/m", ENOUGH="40")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Hello" + "word " * 7)
    assert "finish_reason: cancelled" in done.stdout
    assert "output_tokens: " in done.stdout
    assert fake.wait_closed()[0].outcome == "aborted"
    wait_active(server, 0)


@each
def test_each_example_runs_with_the_built_in_model(path: Path, server: Server) -> None:
    done = run(path, server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finish_reason: " in done.stdout


@each
def test_each_example_reports_an_invalid_key(path: Path, server: Server) -> None:
    done = run(path, server, SLUICE_KEY="sk-sluice-unknown")
    assert done.returncode != 0
    assert "key" in done.stderr


def test_each_language_has_an_example() -> None:
    assert {path.suffix for path in EXAMPLES} == set(COMMANDS)
