"""The commands of `flask providers`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

import cli
from cli import providers as commands
from cli.providers import family_table, provider_table
from config import Settings
from providers.base import Target
from providers.checks import Check
from providers.hosts import BUILT_IN
from routing.router import Router

GOOD_KEY, BAD_KEY = "sk-good-0123456789", "sk-bad-0123456789"


class Run:
    """The commands, with scripted checks. `checked` has the targets that were checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checked: list[Target] = []
        monkeypatch.setattr(commands, "check", self._check)

    def _check(self, _transport: object, target: Target, _limit: float, **_: Any) -> Check:
        self.checked.append(target)
        name = target.provider.name
        if name == self.itself:
            return Check(name, ok=False, state="itself", message="is Sluice itself")
        if target.credential is None and target.dialect != "local":
            refused = "127.0.0.1:1 could not be reached: the connection was refused"
            return Check(name, ok=False, state="refused", message=refused)
        if target.credential is not None and target.credential.reveal() == BAD_KEY:
            return Check(name, ok=False, state="key_rejected", message="rejected the API key")
        return Check(name, ok=True, state="ok", message="ok (1 ms)", seconds=0.001)

    itself = ""
    """The provider whose address is Sluice's own."""
    rows: Mapping[str, Any] = MappingProxyType({})
    """The tables of sluice.toml."""

    def __call__(self, *arguments: str, **environ: str) -> Result:
        settings = Settings(environ=environ, providers=self.rows)
        app = Flask(__name__)
        app.extensions["sluice"] = SimpleNamespace(
            settings=settings, gateway=SimpleNamespace(router=Router(settings))
        )
        cli.register(app)
        return app.test_cli_runner().invoke(args=["providers", *arguments])

    def lines(self, *arguments: str, **environ: str) -> dict[str, str]:
        result = self(*arguments, **environ)
        assert result.stderr == ""
        return {line.split()[0]: line for line in result.stdout.splitlines()}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def test_the_list_shows_which_enabled_providers_answer(run: Run) -> None:
    result = run(OPENAI_API_KEY=GOOD_KEY, GROQ_API_KEY=BAD_KEY)
    header, *lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert header.split() == ["name", "enabled", "variables", "answers", "base_url"]
    found = {line.split()[0]: line for line in lines}
    assert set(found) == {row.name for row in BUILT_IN}
    assert "ok (1 ms)" in found["openai"]
    assert "rejected the API key" in found["groq"]
    assert "not running" in found["ollama"]
    assert " no " in found["xai"]
    assert "xai" not in {target.provider.name for target in run.checked}


def test_the_list_can_leave_the_checks_out(run: Run) -> None:
    header, *_ = run("--no-check").stdout.splitlines()
    assert header.split() == ["name", "enabled", "variables", "base_url"]
    assert run.checked == []


def test_the_markdown_table_needs_no_check(run: Run) -> None:
    assert run("--markdown").stdout == f"{provider_table(BUILT_IN)}\n\n{family_table()}\n"
    assert run.checked == []


def test_the_list_as_json_has_each_check(run: Run) -> None:
    found = {row["name"]: row for row in json.loads(run("--json", OPENAI_API_KEY=GOOD_KEY).stdout)}
    assert found["openai"]["check"] == {
        "name": "openai", "ok": True, "state": "ok", "message": "ok (1 ms)", "duration_ms": 1.0,
    }  # fmt: skip
    assert found["xai"]["check"] is None
    assert (found["xai"]["enabled"], found["xai"]["variables"]) == (False, ["XAI_API_KEY"])


def test_no_url_in_the_list_has_credentials(run: Run) -> None:
    run.rows = {"mine": {"base_url": "http://user:secret@127.0.0.1:1/v1"}}
    result = run()
    assert "http://127.0.0.1:1/v1" in result.stdout
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("arguments", "environ", "code"),
    [
        ((), {}, 0),
        ((), {"OPENAI_API_KEY": GOOD_KEY}, 0),
        ((), {"OPENAI_API_KEY": BAD_KEY}, 1),
        (("openai",), {"OPENAI_API_KEY": GOOD_KEY, "GROQ_API_KEY": BAD_KEY}, 0),
        (("openai", "groq"), {"OPENAI_API_KEY": GOOD_KEY, "GROQ_API_KEY": BAD_KEY}, 1),
        (("openai",), {}, 1),
        (("local",), {}, 0),
        (("ollama",), {}, 1),
    ],
)
def test_the_exit_status_of_a_check_is_for_scripts(
    run: Run, arguments: tuple[str, ...], environ: dict[str, str], code: int
) -> None:
    assert run("check", *arguments, **environ).exit_code == code


def test_a_check_names_the_variable_that_is_missing(run: Run) -> None:
    found = run.lines("check", "openai", "azure", AZURE_OPENAI_API_KEY=GOOD_KEY)
    assert found["openai"].endswith("is not enabled: OPENAI_API_KEY is not set")
    assert found["azure"].endswith("is not enabled: AZURE_OPENAI_ENDPOINT is not set")
    assert run.checked == []


@pytest.mark.parametrize("arguments", [(), ("--json",), ("check", "openai"), ("check",)])
def test_a_variable_that_looks_like_a_providers_key_is_named(
    run: Run, arguments: tuple[str, ...]
) -> None:
    result = run(*arguments, OPENAI_APIKEY=GOOD_KEY)
    assert result.stderr == (
        "Warning: OPENAI_APIKEY isn't used; did you mean OPENAI_API_KEY, for openai?\n"
    )


def test_a_check_of_an_unknown_provider_suggests_the_nearest(run: Run) -> None:
    result = run("check", "opneai")
    assert result.exit_code == 1
    assert result.stderr == "Error: Provider 'opneai' was not found. Did you mean openai?\n"


def test_all_keys_of_a_provider_are_checked(run: Run) -> None:
    result = run("check", "openai", "--json", OPENAI_API_KEY=f"{GOOD_KEY}, {BAD_KEY}")
    [found] = json.loads(result.stdout)
    assert (found["state"], result.exit_code) == ("key_rejected", 1)
    assert [target.key_number for target in run.checked] == [1, 2]


def test_a_local_engine_whose_address_is_that_of_sluice_is_a_mistake_everywhere(run: Run) -> None:
    run.itself = "vllm"
    for arguments in ((), ("check",), ("check", "vllm")):
        assert run.lines(*arguments)["vllm"].find("is Sluice itself") > 0, arguments
    assert run("check").exit_code == 1


def test_a_local_engine_that_was_configured_must_run(run: Run) -> None:
    assert run("check").exit_code == 0
    run.rows = {"ollama": {"base_url": "http://10.0.0.1:11434/v1"}}
    result = run("check")
    assert result.exit_code == 1
    assert "the connection was refused" in result.stdout
