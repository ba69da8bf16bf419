"""The commands of `flask providers`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import Result
from flask import Flask

import cli
from cli import providers as commands
from cli.providers import family_table, provider_table
from config import Settings
from gateway.model_catalog import ModelCatalog
from ledger.pricing import Prices
from providers.base import ListedModel, Target
from providers.checks import Check
from providers.hosts import BUILT_IN
from providers.model_fetch import Listing
from routing.model_discovery import ModelDiscovery
from routing.router import Router

GOOD_KEY, BAD_KEY = "sk-good-0123456789", "sk-bad-0123456789"


class Told:
    """A discovery in which the host of openai has listed two models."""

    waited: float | None = None

    def refresh(self, wait: float = 0.0) -> None:
        self.waited = wait

    def models(self, provider: str) -> Listing | None:
        models = (ListedModel("gpt-4o-mini"), ListedModel("mine", context_window=5))
        return Listing(models) if provider == "openai" and self.waited else None


class Run:
    """The commands, with scripted checks. `checked` has the targets that were checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checked: list[Target] = []
        self.catalog = ModelCatalog(Prices({}), cast(ModelDiscovery, Told()))
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
        gateway = SimpleNamespace(router=Router(settings), catalog=self.catalog)
        app.extensions["sluice"] = SimpleNamespace(settings=settings, gateway=gateway)
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
    assert header.split() == ["name", "enabled", "variables", "models", "answers", "base_url"]
    found = {line.split()[0]: line for line in lines}
    assert set(found) == {row.name for row in BUILT_IN}
    assert re.search(r" 2 +ok \(1 ms\)", found["openai"])
    assert re.search(r" - +rejected the API key", found["groq"])
    assert "not running" in found["ollama"]
    assert " no " in found["xai"]
    assert "xai" not in {target.provider.name for target in run.checked}


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"discover": False}, "not running"),
        ({"base_url": "http://127.0.0.1:8001/v1"}, "could not be reached"),
    ],
)
def test_an_engine_that_is_off_is_a_failure_only_if_a_row_says_where_it_is(
    run: Run, table: Mapping[str, Any], word: str
) -> None:
    run.rows = {"vllm": table}
    assert word in run.lines()["vllm"]
    assert run("check").exit_code == (word != "not running")


def test_the_lists_get_only_the_time_that_the_checks_have_left(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    now = [0.0]
    monkeypatch.setattr(commands, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(run.catalog, "refresh", lambda wait=0.0: waits.append(wait))

    def check_all(*_: object) -> list[Check]:
        now[0] += 4
        return []

    monkeypatch.setattr(commands, "check_all", check_all)
    run()
    assert waits == [0.0, commands.LIMIT_S - 4]


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
    assert found["openai"]["models"] == 2
    assert found["xai"]["check"] is found["xai"]["models"] is None
    assert (found["xai"]["enabled"], found["xai"]["variables"]) == (False, ["XAI_API_KEY"])


def test_the_models_of_a_provider_have_their_sizes_and_prices(run: Run) -> None:
    lines = run.lines("models", "openai", OPENAI_API_KEY=GOOD_KEY)
    assert lines["openai/gpt-4o-mini"].split() == ["openai/gpt-4o-mini", "128000", "0.15", "0.6"]
    assert lines["openai/mine"].split() == ["openai/mine", "5", "-", "-"]
    found = json.loads(run("models", "openai", "--json", OPENAI_API_KEY=GOOD_KEY).stdout)
    assert found[-1] == {
        "model": "openai/mine",
        "name": None,
        "context_window": 5,
        "input_per_mtok": None,
        "output_per_mtok": None,
    }


def test_the_models_of_all_enabled_providers_are_listed(run: Run) -> None:
    lines = run.lines("models", OPENAI_API_KEY=GOOD_KEY)
    assert {"local/pydoc", "openai/mine"} <= lines.keys()
    assert not any(name.startswith("xai/") for name in lines)


def test_a_named_provider_without_a_list_is_pointed_out(run: Run) -> None:
    result = run("models", "ollama")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "ollama sent no list of its models; ./sluice providers check ollama" in result.stderr
    result = run("models", "nobody")
    assert result.exit_code == 1
    assert "Provider 'nobody' was not found" in result.stderr


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


def test_each_replica_of_a_row_has_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_transport: object, target: Target, _limit: float, **_: Any) -> Check:
        ok = target.replica == "b:1"
        message = "ok (2 ms)" if ok else "a:1 could not be reached: the connection was refused"
        state = "ok" if ok else "refused"
        return Check(target.provider.name, ok, state, message, replica=target.replica)

    monkeypatch.setattr(commands, "check", check)
    urls = ["http://u:secret@a:1/v1", {"url": "http://b:1/v1", "weight": 2}]
    run.rows = {"engines": {"base_url": urls}}
    lines = run().stdout.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("engines"))
    assert "1 of 2 replicas answer" in lines[at]
    assert lines[at].endswith("2 replicas")
    assert lines[at + 1].split("  ")[-2:] != lines[at + 2].split("  ")[-2:]
    assert "could not be reached" in lines[at + 1]
    assert lines[at + 1].endswith("http://a:1/v1")
    assert lines[at + 2].endswith("http://b:1/v1 (weight 2)")
    assert "secret" not in "".join(lines)
    found = {row["name"]: row for row in json.loads(run("--json").stdout)}["engines"]
    assert [(one["name"], one["weight"], one["check"]["ok"]) for one in found["replicas"]] == [
        ("a:1", 1.0, False), ("b:1", 2.0, True),
    ]  # fmt: skip
    result = run("check", "engines")
    assert result.exit_code == 1
    assert "engines a:1" in result.stdout
    assert "engines b:1" in result.stdout
