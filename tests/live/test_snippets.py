"""Tests that each code block in README.md and docs/ runs, is valid, or is listed as not run."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import create_app
from config import Settings
from keys.store import KeyStore
from providers.hosts import BUILT_IN
from tests.support import calls
from tests.support import fake as fp
from tests.support.checkouts import ADDRESS, Checkout
from tests.support.fake import FakeProvider
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.servers import Server
from tests.support.snippets import FENCE, JOURNEYS, NOT_RUN, PAGES, Snippet, snippets

pytestmark = pytest.mark.thorough

SERVES = re.compile(r"^(make run|\./sluice serve(?: --[\w-]+)*)\b.*\n", re.MULTILINE)
KEY = re.compile(r"sk-sluice-[\w-]{20,}")
TOO_LONG = re.compile(r"^make (test|soak)\b", re.MULTILINE)
"""Commands that `make -n` prints instead of running."""

OLD_KEY = "sk-their-old-key"
"""The key that a caller keeps in docs/guides/migrating.md."""
TYPED = re.compile(r"^\$ (.*\n)", re.MULTILINE)

FAILED = re.compile(r'"success":false|"type":"error"|\{"error":')
"""The output of curl for a failed call, for which its exit status is 0."""

ALL = snippets()
PROGRAMS = {
    "python": [sys.executable, "-W", "error", "-c"],
    "js": ["node", "--input-type=module", "-e"],
}


def test_every_snippet_is_run_or_read_or_listed_as_not_run() -> None:
    assert [snippet.place for snippet in ALL if snippet.how == "unknown"] == []


def test_every_code_fence_is_recognized() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *(?:```|~~~).*$", page.read_text(), re.MULTILINE)
        assert [fence for fence in fences if not FENCE.match(fence)] == [], page


def test_every_not_run_entry_names_an_existing_snippet() -> None:
    for (page, beginning), reason in NOT_RUN.items():
        found = [s for s in ALL if s.page == page and s.text.startswith(beginning)]
        assert len(found) == 1, (page, beginning)
        if reason.startswith("tests/"):
            path, _, name = reason.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(), reason


@pytest.mark.parametrize(
    "snippet", [s for s in ALL if s.how == "read"], ids=lambda snippet: snippet.place
)
def test_toml_env_json_and_yaml_snippets_can_be_read(snippet: Snippet, tmp_path: Path) -> None:
    match snippet.language:
        case "toml":
            create_app(Settings(database=tmp_path / "sluice.db", **tables(snippet)))
        case "env":
            env = dict(line.split("=", 1) for line in snippet.text.splitlines())
            Settings.from_env(env)
            keys = {name for row in BUILT_IN for name in re.findall(r"\w+_API_KEY", repr(row))}
            assert {name for name in env if name.endswith("_API_KEY")} <= keys
        case "json":
            json.loads(snippet.text)
        case "yaml":
            importlib.import_module("yaml").safe_load(snippet.text)


def tables(snippet: Snippet) -> dict[str, Any]:
    """Return the tables of a sluice.toml block, merged with the earlier blocks on its page."""
    found: dict[str, Any] = {}
    for other in ALL[: ALL.index(snippet) + 1]:
        if (other.page, other.language) == (snippet.page, "toml"):
            for kind, rows in tomllib.loads(other.text).items():
                known = found.setdefault(kind, {})
                for name, row in rows.items():
                    known[name] = known.get(name, {}) | row if isinstance(row, dict) else row
    return found


@pytest.mark.parametrize(
    "snippet",
    [s for s in ALL if s.language in ("shell", "sh") and s.how.startswith("not run")],
    ids=lambda snippet: snippet.place,
)
def test_shell_snippets_that_are_not_run_have_valid_syntax(snippet: Snippet) -> None:
    if "synopsis" in snippet.how:
        return
    done = subprocess.run(["bash", "-n", "-c", snippet.text], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def checkout(tmp_path: Path, fake: FakeProvider) -> Iterator[Checkout]:
    """Yield a checkout whose provider `openai` is the fake provider."""
    (tmp_path / "sluice.toml").write_text(f'[providers.openai]\nbase_url = "{fake.base_url}"\n')
    with Checkout(tmp_path) as checkout:
        yield checkout


@pytest.mark.parametrize("page", JOURNEYS)
def test_snippets_of_a_journey_page_run_in_order(
    page: str, checkout: Checkout, fake: FakeProvider
) -> None:
    fake.script(fp.answer(fp.body("Semicolons fall", chat=True)))
    env = {"SLUICE_URL": f"http://127.0.0.1:{checkout.port}"}
    for snippet in ALL:
        if snippet.page == page and snippet.how == "run":
            text = TOO_LONG.sub(r"make -n \1", snippet.text)
            if serves := SERVES.search(text):
                output = checkout.serve(serves[1])
                text = SERVES.sub("", text)
                if key := KEY.search(output):
                    env["SLUICE_KEY"] = key[0]
            run(snippet, text, checkout, env)


BY_PAGE = sorted({s.page for s in ALL if s.how == "run" and s.language == "shell"} - set(JOURNEYS))


@pytest.mark.parametrize("page", BY_PAGE)
def test_shell_commands_of_a_page_run_in_order(
    page: str, checkout: Checkout, server: Server
) -> None:
    (checkout.directory / "backups").mkdir()
    calls.complete(server, model="local/pydoc")
    database = server.directory / "sluice.db"
    made = checkout.bash(f"SLUICE_DATABASE={database} ./sluice ledger backup sluice.db")
    assert made.returncode == 0, made.stderr
    with (checkout.directory / "sluice.toml").open("a") as file:  # what the page's keys are in
        for snippet in ALL:
            if snippet.page == page and snippet.text.startswith("[groups."):
                file.write(snippet.text + "\n")
    if page != "docs/guides/keys.md":  # this page creates a key itself
        assert checkout.bash("./sluice keys create --name laptop").returncode == 0
    env = {"SLUICE_URL": server.url, "SLUICE_KEY": server.key}
    for snippet in ALL:
        if snippet.page == page and snippet.how == "run" and snippet.language == "shell":
            text = TOO_LONG.sub(r"make -n \1", snippet.text)
            text = text.replace("/backups/", "backups/")
            if transcript := TYPED.findall(text):
                text = "".join(transcript)
            run(snippet, text.replace(ADDRESS, server.url.removeprefix("http://")), checkout, env)
    if page == "docs/guides/migrating.md":
        found = KeyStore(checkout.directory / "keys.jsonl").find(OLD_KEY)
        assert found is not None
        assert found.name == "app"


def run(snippet: Snippet, text: str, checkout: Checkout, env: dict[str, str]) -> None:
    if snippet.language in PROGRAMS:
        command = PROGRAMS[snippet.language]
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} isn't installed")
        done = subprocess.run(
            [*command, checkout.ours(text)],
            env=checkout.env | env,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
    else:
        text = text.replace("SLUICE_KEY=sk-sluice-...", f"SLUICE_KEY={env['SLUICE_KEY']}")
        done = checkout.bash(text, **env)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{snippet.place}: {output}"
    assert FAILED.search(done.stdout) is None, f"{snippet.place}: {output}"
    if "stop-stream" in text:
        assert '{"success":true}' in done.stdout, output
        assert '"finish_reason":"cancelled"' in done.stdout, output


# Examples that take the server and the key from the environment

READERS = {
    "sh": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-W", "error", "-c"],
    "js": ["node", "--input-type=module", "-e"],
}


@pytest.fixture(scope="module")
def admin_key(module_server: Server) -> str:
    """Return an admin key that the server knows: a few examples need one."""
    key = module_server.add_key("examples", admin=True)
    module_server.wait(lambda: calls.get(module_server, "/api/v1/models", key).status == 200)
    return key


EXAMPLES = [s for s in ALL if s.language in READERS and s.page not in JOURNEYS]
"""Fenced blocks that take the server and the key from the environment."""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.place)
def test_each_example_of_the_documentation_runs(
    example: Snippet, server: Server, admin_key: str
) -> None:
    command = READERS[example.language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} isn't installed")
    done = subprocess.run(
        [*command, example.text],
        env={**os.environ, "SLUICE_URL": server.url, "SLUICE_KEY": admin_key},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


def test_there_are_examples_in_each_language() -> None:
    assert {example.language for example in EXAMPLES} == set(READERS)
