"""Tests of config_file.py: the lines and tables that errors about sluice.toml name."""

from __future__ import annotations

from pathlib import Path

import pytest

from config_file import TomlError, did_you_mean, line_of

LINES = """\
# [providers.x] base_url
[providers.x]
base_url = "a" # models
headers = { name = "b" }
models = [
  "m",
]
text = \"\"\"
timeouts = 3
\"\"\"
timeouts.idle = 3

["prices"."a/b"]
input_per_mtok = 1
[[providers.y]]
"""


@pytest.mark.parametrize(
    ("at", "line"),
    [
        (("providers",), 2),
        (("providers", "x"), 2),
        (("providers", "x", "base_url"), 3),
        (("providers", "x", "headers", "name"), 4),
        (("providers", "x", "models"), 5),
        (("providers", "x", "timeouts"), 11),
        (("providers", "x", "timeouts", "idle"), 11),
        (("prices", "a/b"), 13),
        (("prices", "a/b", "input_per_mtok"), 14),
        (("providers", "y"), 15),
        (("providers", "x", "nothing"), None),
        (("aliases",), None),
    ],
)
def test_line_of_finds_the_line_that_sets_a_value(at: tuple[str, ...], line: int | None) -> None:
    assert line_of(LINES, at) == line


def test_a_mistake_without_a_line_of_its_own_names_the_line_of_its_table() -> None:
    error = TomlError("is wrong", "providers", "x", "nothing").located(Path("a.toml"), LINES)
    assert str(error) == "a.toml, line 2, [providers.x]: is wrong"
    error = TomlError("is wrong", "aliases", "fast").located(Path("a.toml"), LINES)
    assert str(error) == "a.toml, [aliases]: is wrong"


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [("porvider", ("provider", "model"), "; did you mean provider?"), ("zzz", ("provider",), "")],
)
def test_did_you_mean_suggests_the_nearest_known_name(
    name: str, known: tuple[str, ...], words: str
) -> None:
    assert did_you_mean(name, known) == words
