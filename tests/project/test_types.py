"""The check of the types. It runs beside the other tests, because it takes long without a cache."""

from __future__ import annotations

import subprocess
import sys

from tests.support.pace import HANG_S
from tests.support.paths import ROOT


def test_mypy_finds_no_error() -> None:
    command = [sys.executable, "-m", "mypy", "--no-error-summary"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=5 * HANG_S, check=False
    )
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0
