"""Tests of the set-up, most of them in a folder that has no packages to install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import setup
from tests.support.pace import HANG_S
from tests.support.paths import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a space in its name, with the set-up and empty requirements."""
    folder = tmp_path / "a checkout"
    (folder / "cli").mkdir(parents=True)
    shutil.copy2(ROOT / "cli/setup.py", folder / "cli")
    shutil.copy2(ROOT / "sluice", folder)
    for names in setup.REQUIREMENTS.values():
        for name in names:
            (folder / name).touch()
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder, in which this process's own functions work."""
    monkeypatch.setattr(setup, "ROOT", folder)
    monkeypatch.setattr(setup, "VENV", folder / ".venv")
    return folder


def start(folder: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [folder / "sluice", "setup", *arguments],
        env={**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=HANG_S)[0]


@pytest.mark.thorough
def test_two_set_ups_at_once_install_once_and_the_second_says_that_it_waits(folder: Path) -> None:
    first = start(folder)
    assert first.stdout is not None
    while "Installing" not in first.stdout.readline():
        assert first.poll() is None
    second = start(folder)
    said, waited = output_of(first), output_of(second)
    assert (first.returncode, second.returncode) == (0, 0), said + waited
    assert (
        waited
        == f"Process {first.pid} is installing the packages here already; waiting for it ...\n"
    )
    flask = (folder / ".venv/bin/flask").read_text()
    assert f"exec '{folder}/sluice' flask" in flask
    python = folder / ".venv/bin/python"
    assert subprocess.run([python, "-m", "pip", "--version"], check=False).returncode == 0
    # What is up to date isn't installed again.
    again = start(folder)
    assert (
        output_of(again) == "Nothing is missing: the packages in requirements.txt are installed.\n"
    )
    assert output_of(start(folder, "--quiet")) == ""
    assert again.returncode == 0


@pytest.mark.thorough
def test_a_set_up_that_was_interrupted_is_begun_again(folder: Path) -> None:
    broken = folder / ".venv/bin"
    broken.mkdir(parents=True)
    (broken / "python").symlink_to("/nowhere/python3")
    (folder / ".venv/lib").symlink_to("/nowhere")
    process = start(folder)
    assert "Creating .venv" in output_of(process)
    assert process.returncode == 0


@pytest.mark.thorough
def test_a_package_that_cannot_be_installed_ends_the_set_up_with_a_sentence(folder: Path) -> None:
    (folder / "requirements.txt").write_text("no-such-package-of-sluice==1\n")
    process = start(folder)
    assert (
        output_of(process).splitlines()[-1].startswith("sluice: the packages couldn't be installed")
    )
    assert process.returncode == 1
    assert not (folder / ".venv/.requirements").exists()


HOLDER = """
import sys
from pathlib import Path
from cli import setup
setup.VENV = Path(sys.argv[1])
with setup.only_process():
    setup.succeeds(sys.executable, "-c", "import sys; print(1, flush=True); sys.stdin.read()")
"""


@pytest.mark.thorough
def test_the_lock_lasts_as_long_as_pip_even_if_the_set_up_is_killed(here: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, here / ".venv"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"1\n"
        holder.kill()
        holder.wait(HANG_S)
        waiting = start(here)
        assert waiting.stdout is not None
        assert f"Process {holder.pid} is installing" in waiting.stdout.readline()
        holder.stdin.close()  # this ends the process that stands for pip
        output_of(waiting)
    assert waiting.returncode == 0


def test_a_checkout_that_may_not_be_written_names_its_owner(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(setup.SetupError) as caught:
        setup.main([])
    message = str(caught.value)
    assert message.startswith(f"{here} can't be written (Permission denied); it belongs to ")
    assert "\n" not in message


@pytest.fixture
def old_python(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the newer Pythons that the set-up finds, which the test may add to."""
    found: list[str] = []
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in found else None)
    yield found
    monkeypatch.undo()


@pytest.mark.usefixtures("here")
def test_an_old_python_is_refused_with_the_way_to_name_another(old_python: list[str]) -> None:
    with pytest.raises(setup.SetupError, match=r"needs Python 3\.11 or newer, but .* is 3\.9"):
        setup.main([])


@pytest.mark.usefixtures("here")
def test_the_newest_python_of_the_machine_takes_over_from_an_old_one(
    old_python: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Replaced(Exception):
        pass

    def replace(path: str, words: list[str]) -> None:
        raise Replaced(path, words[1:])

    old_python += ["python3.11", "python3.13"]
    monkeypatch.setattr(os, "execv", replace)
    with pytest.raises(Replaced) as caught:
        setup.main(["--dev"])
    assert caught.value.args == ("/bin/python3.13", [setup.__file__, "--dev"])


@pytest.mark.usefixtures("here")
def test_a_python_without_venv_is_refused_with_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup, "find_spec", lambda name: None)
    with pytest.raises(setup.SetupError, match="python3-venv"):
        setup.main([])


def test_a_stamp_is_current_until_a_requirement_changes(here: Path) -> None:
    python = here / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert not setup.is_current(".requirements")
    (here / ".venv/.requirements").touch()
    assert setup.is_current(".requirements")
    later = time.time() + 10
    os.utime(here / "requirements-otel.txt", (later, later))
    assert setup.is_current(".requirements")
    os.utime(here / "requirements.txt", (later, later))
    assert not setup.is_current(".requirements")
    os.utime(here / ".venv/.requirements", (later + 1, later + 1))
    python.unlink()
    python.symlink_to("/nowhere/python3")
    assert not setup.is_current(".requirements")
