"""Tests of the plugin that reports the failure of a shared fixture only once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pace import HANG_S
from tests.support.paths import ROOT

MANY = """
import pytest

@pytest.fixture(scope="module")
def server():
    {setup}

@pytest.mark.parametrize("number", range(50))
def test_uses_the_server(server, number):
    {test}
"""


def run_tests(directory: Path, setup: str, test: str) -> str:
    """Return the last line that pytest prints for fifty tests that share a fixture."""
    (directory / "test_many.py").write_text(MANY.format(setup=setup, test=test))
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-p", "tests.support.reporting", "--rootdir", str(directory), str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("setup", "test", "summary"),
    [
        ("raise RuntimeError('the server never became ready')", "pass", "49 skipped, 1 error in"),
        pytest.param(
            *("pytest.fail('the server took too long')", "pass", "49 skipped, 1 error in"),
            marks=pytest.mark.thorough,
        ),
        ("return 1", "assert number < 48", "2 failed, 48 passed in"),
    ],
    ids=["an error", "a timeout", "tests that fail by themselves"],
)
def test_a_shared_fixture_that_fails_is_reported_once(
    tmp_path: Path, setup: str, test: str, summary: str
) -> None:
    assert run_tests(tmp_path, setup, test).startswith(summary)
