"""Packages that only a few thorough tests need, installed outside the tests' own environment.

- They are pinned in tests/support/programs/: requirements.txt for Python, package.json for Node.js.
- They are installed once, into .cache/, and again when their pins change.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.daemons import CantRunError
from tests.support.paths import ROOT, TESTS

PROGRAMS = TESTS / "support" / "programs"
CACHE = ROOT / ".cache" / "clients"
INSTALL_S = 600


def python() -> Path:
    """Return a Python with the packages of requirements.txt. Raises CantRunError."""
    pins = PROGRAMS / "requirements.txt"
    folder = place("python", pins)
    found = folder / "bin" / "python"
    make = [sys.executable, "-m", "venv", str(folder)]
    install(folder, make, [str(found), "-m", "pip", "install", "--quiet", "-r", str(pins)])
    return found


def node() -> Path:
    """Return a folder with programs and the packages of package.json. Raises CantRunError."""
    if shutil.which("npm") is None:
        raise CantRunError("npm is not installed")
    pins = PROGRAMS / "package.json"
    folder = place("node", pins)
    npm = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"]
    install(folder, ["cp", str(pins), str(folder)], npm)
    for program in PROGRAMS.glob("*.mjs"):
        shutil.copy(program, folder)
    return folder


def place(kind: str, pins: Path) -> Path:
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    return CACHE / f"{kind}-{digest}"


def install(folder: Path, *commands: Iterable[str]) -> None:
    """Run commands that fill a folder, unless they have. Other processes wait meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.with_suffix(".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "installed").exists():
            return
        for command in commands:
            done = subprocess.run(
                list(command), capture_output=True, text=True, timeout=INSTALL_S, check=False
            )
            if done.returncode:
                raise CantRunError(f"the packages can't be installed: {done.stderr[-300:]}")
        (folder / "installed").touch()
