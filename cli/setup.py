"""The set-up, which creates .venv and installs the packages. `./sluice setup` and `make` run it.

- It runs as a script under the system's Python, which may be too old for the rest of Sluice, and
  imports only the standard library.
- A lock lets only one process at a time install packages. pip inherits the lock, so that the lock
  lasts as long as pip does, even if this process is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
VENV = ROOT / ".venv"
NEWER = tuple(f"python3.{minor}" for minor in range(20, 10, -1))
REQUIREMENTS = {
    ".requirements": ("requirements.txt",),
    ".requirements-dev": (
        "requirements-dev.txt",
        "requirements.txt",
        "requirements-bedrock.txt",
        "requirements-otel.txt",
    ),
}
"""The stamps in .venv, and the files whose packages each of them stands for. The first file names
the others."""
FLASK = """\
#!/bin/sh
# Written by `./sluice setup`. Flask's own command would end with a traceback if it couldn't decode
# .env; ./sluice reads .env first, and then runs Flask's command.
exec {sluice} flask "$@"
"""


class SetupError(Exception):
    """The error for a set-up that can't go on. The message is one line that says what to do."""


def main(arguments: Sequence[str]) -> None:
    """Install what is missing. Raises SetupError."""
    parser = argparse.ArgumentParser(
        prog="sluice setup", description="Create .venv and install the packages that Sluice needs."
    )
    parser.add_argument("--dev", action="store_true", help="also install what the tests need")
    parser.add_argument("--quiet", action="store_true", help="say nothing if nothing is missing")
    chosen = parser.parse_args(arguments)
    stamp = ".requirements-dev" if chosen.dev else ".requirements"
    if is_current(stamp):
        if not chosen.quiet:
            say(f"Nothing is missing: the packages in {REQUIREMENTS[stamp][0]} are installed.")
        return
    require_python(arguments)
    with only_process():
        if not is_current(stamp):  # another process may have done it meanwhile
            create_venv()
            install(REQUIREMENTS[stamp][0])
            wrap_flask()
            for name in {stamp, ".requirements"}:
                (VENV / name).touch()


def is_current(stamp: str) -> bool:
    """Return True if .venv works and no requirement has changed since the stamp was made."""
    sources = [ROOT / name for name in REQUIREMENTS[stamp]]
    try:
        changed = max(path.stat().st_mtime for path in (*sources, Path(__file__)))
        return (VENV / stamp).stat().st_mtime >= changed and os.access(python(), os.X_OK)
    except FileNotFoundError:
        return False


def python() -> Path:
    return VENV / "bin/python"


def require_python(arguments: Sequence[str]) -> None:
    """Check this Python, and run the set-up with a newer one if it is too old."""
    if sys.version_info < (3, 11):  # noqa: UP036 - the system's Python may be older
        for found in filter(None, map(shutil.which, NEWER)):
            os.execv(found, [found, __file__, *arguments])  # noqa: S606 - no shell is needed
        mine = ".".join(map(str, sys.version_info[:2]))
        raise SetupError(
            f"Sluice needs Python 3.11 or newer, but {sys.executable} is {mine}: install a newer "
            "one, and if it isn't found, name it as in: PYTHON=/usr/local/bin/python3.13 make run"
        )
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        raise SetupError(
            "Python's venv module is missing: on Debian or Ubuntu, run: "
            "sudo apt install python3-venv"
        )


@contextlib.contextmanager
def only_process() -> Iterator[None]:
    """Wait until no other process installs packages into .venv, and keep others from it."""
    try:
        VENV.mkdir(exist_ok=True)
        lock = os.open(VENV / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SetupError(not_writable(error)) from None
    try:
        os.set_inheritable(lock, True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 20, 0).decode() or "?"
            say(f"Process {pid} is installing the packages here already; waiting for it ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)


def not_writable(error: OSError) -> str:
    """Return the message for a checkout in which .venv can't be created or changed."""
    found = VENV if VENV.exists() else ROOT
    owner = found.stat().st_uid
    with contextlib.suppress(KeyError):
        return (
            f"{found} can't be written ({error.strerror}); it belongs to {pwd.getpwuid(owner)[0]}: "
            "clone Sluice into a folder of your own, or run this as that user"
        )
    return f"{found} can't be written ({error.strerror}); it belongs to user {owner}"


def create_venv() -> None:
    """Create .venv unless its Python works. What an interrupted set-up left there is removed."""
    with contextlib.suppress(OSError):
        if succeeds(python(), "-c", "import sys; sys.exit(sys.version_info < (3, 11))"):
            return
    for path in VENV.iterdir():
        if path.name == ".lock":  # other processes wait for it
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    say("Creating .venv ...")
    if not succeeds(sys.executable, "-m", "venv", "--without-pip", VENV):
        raise SetupError(f"{VENV} couldn't be created; the reason is above")


def install(requirements: str) -> None:
    """Install the packages of a requirements file, and pip."""
    many = "about a minute" if "dev" in requirements else "about 15 seconds"
    say(f"Installing the packages in {requirements} into .venv (only once, takes {many}) ...")
    command = [*pip(), "--disable-pip-version-check", "-r", str(ROOT / requirements)]
    if "dev" not in requirements:
        command.append("--no-compile")
    if not succeeds(*command):
        raise SetupError(
            "the packages couldn't be installed; the reason is above. What is there is kept: run "
            "the command again to go on"
        )
    if "--no-compile" in command:
        compile_what_a_start_needs()


def compile_what_a_start_needs() -> None:
    """Import what a start imports, so that Python keeps the compiled modules.

    This takes 2 s, where pip would need 5 s to compile all modules. It can't be left to the first
    start, because with PYTHONDONTWRITEBYTECODE each start would compile them again.
    """
    modules = "app, cli.main, genai_prices.data_snapshot, gunicorn.app.wsgiapp, server.worker"
    code = f"import sys; sys.dont_write_bytecode = False; import {modules}"
    command = [str(python()), "-c", code]
    subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL, check=False)  # noqa: S603 - fixed


def pip() -> list[str]:
    """Return the beginning of a command that installs packages.

    In a new .venv, this is the pip that Python brings along as a wheel, and it installs itself
    together with the other packages. ensurepip would take 3 s to do that alone.
    """
    if any(VENV.glob("lib/python*/site-packages/pip/__main__.py")):
        return [str(python()), "-m", "pip", "install"]
    if wheel := bundled_pip():
        return [str(python()), f"{wheel}/pip", "install", str(wheel)]
    succeeds(python(), "-m", "ensurepip")
    return [str(python()), "-m", "pip", "install"]


def bundled_pip() -> Path | None:
    """Return the path of the wheel from which ensurepip would install pip, if it is found."""
    spec = find_spec("ensurepip")
    folders = [
        Path(place) / "_bundled" for place in (spec and spec.submodule_search_locations) or ()
    ]
    if elsewhere := sysconfig.get_config_var("WHEEL_PKG_DIR"):  # Debian, Fedora
        folders.append(Path(elsewhere))
    return max((wheel for folder in folders for wheel in folder.glob("pip-*.whl")), default=None)


def wrap_flask() -> None:
    """Replace the script `flask` of .venv by one that reads .env as ./sluice does."""
    script = VENV / "bin/flask"
    new = script.with_name(".flask.new")
    new.write_text(FLASK.format(sluice=shlex.quote(str(ROOT / "sluice"))), "utf-8")
    new.chmod(0o755)
    new.replace(script)


def succeeds(*command: str | Path) -> bool:
    """Run a command, which inherits the lock, and return True if its exit status is 0."""
    return not subprocess.run(command, close_fds=False, check=False).returncode  # noqa: S603


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SetupError as problem:
        sys.exit(f"sluice: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
