"""The documentation is true: its examples run, and its tables name what there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from cli.providers import provider_table
from providers.base import Provider
from providers.rows import BUILT_IN
from tests.live import Server

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(sh|python|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = {
    "sh": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-W", "error", "-c"],
    "js": ["node", "--input-type=module", "-e"],
}


class Example(NamedTuple):
    place: str
    language: str
    text: str


def examples() -> list[Example]:
    """Every fenced block of the docs in a language that runs."""
    found = []
    for path in sorted(ROOT.glob("docs/**/*.md")):
        text = path.read_text()
        for match in FENCE.finditer(text):
            line = text[: match.start()].count("\n") + 1
            found.append(Example(f"{path.name}:{line}", match[1], match[2]))
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.place)
def test_an_example_runs(example: Example, server: Server) -> None:
    command = COMMANDS[example.language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} isn't installed here")
    done = subprocess.run(
        [*command, example.text],
        env={**os.environ, "SLUICE_URL": server.url, "SLUICE_KEY": server.key},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_there_are_examples_in_each_language() -> None:
    assert {example.language for example in examples()} == set(COMMANDS)


def test_every_link_leads_somewhere() -> None:
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_table_of_providers_is_the_rows() -> None:
    assert provider_table(BUILT_IN) in (ROOT / "docs/providers.md").read_text()


def test_every_field_of_a_row_is_documented() -> None:
    text = (ROOT / "docs/providers.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \| [^`|]*[a-z]", text, re.MULTILINE))
    assert set(Provider.__struct_fields__) - {"name"} <= documented
