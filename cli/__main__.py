"""The entry point of ./sluice, which calls `python -m cli NAME FOLDER ARGUMENT...`.

NAME is the name by which ./sluice was called, and FOLDER the folder from which it was called. The
current folder is the checkout.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def missing_packages() -> list[str]:
    """Return the packages of requirements.txt that aren't installed."""
    missing = []
    for name in re.findall(r"^[\w.-]+", Path("requirements.txt").read_text("utf-8"), re.MULTILINE):
        try:
            distribution(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


def main() -> None:
    if missing := missing_packages():
        if os.access(".venv/bin/python", os.X_OK):
            problem = f"packages are missing in {Path.cwd()}/.venv ({', '.join(missing)})"
        elif os.path.lexists(".venv/bin/python"):
            problem = f"you can't use {Path.cwd()}/.venv, or its Python is gone"
        else:
            problem = f"Sluice isn't set up yet in {Path.cwd()}"
        sys.exit(f"sluice: {problem}: run make run there, or without make: ./sluice setup")
    # Imported here because it needs the packages.
    from cli.main import run

    name, folder, *arguments = sys.argv[1:]
    run(name, Path(folder), arguments)


if __name__ == "__main__":
    main()
