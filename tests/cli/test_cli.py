"""Tests of the commands `./sluice keys` and `./sluice quickstart`."""

from __future__ import annotations

import json
import os
import pwd
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from flask import Flask

import cli
import cli.keys
from cli.formats import cell, parse_duration
from cli.quickstart import url_of
from config import Settings
from gateway.model_catalog import ModelCatalog
from keys.group import read_groups
from keys.key import LIMITS, as_text
from keys.key_file import View
from keys.store import KeyStore
from ledger.database import database_url
from ledger.ledger import Ledger
from ledger.pricing import Prices
from providers.model_fetch import Listing
from routing.model_discovery import ModelDiscovery
from routing.router import Router
from tests.support.commands import Commands
from tests.support.rows import connected, settled_row


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeyStore:
    monkeypatch.setattr("keys.store.LOOK_EVERY_S", 0)
    return KeyStore(tmp_path / "keys.jsonl")


class Runner(Commands):
    def __init__(self, store: KeyStore) -> None:
        self.app = Flask(__name__)
        router, nothing = Router(Settings()), ModelDiscovery({}, lambda _: Listing(), interval=0)
        catalog = ModelCatalog(Prices({}), nothing)
        self.database = store.path.with_name("sluice.db")
        self.url = database_url(None, self.database)
        self.app.extensions["sluice"] = SimpleNamespace(
            keys=store,
            settings=Settings(database=self.database),
            gateway=SimpleNamespace(router=router, catalog=catalog),
        )
        cli.register(self.app)

    def __call__(self, *arguments: str, text: str | None = None) -> Result:
        return self.plain("keys", *arguments, text=text)

    def plain(self, *arguments: str, text: str | None = None) -> Result:
        """Run a command of any group, with a new ledger."""
        sluice: Any = self.app.extensions["sluice"]
        sluice.ledger = Ledger(self.url)
        return self.app.test_cli_runner().invoke(args=arguments, input=text)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))


@pytest.fixture
def run(store: KeyStore) -> Runner:
    return Runner(store)


def test_create_prints_only_the_secret_on_stdout(run: Runner, store: KeyStore) -> None:
    result = run("create", "--name", "laptop")
    key = store.find(result.stdout.strip())
    assert key is not None
    assert key.name == "laptop"
    assert "can't be shown again" in result.stderr
    assert len(result.output.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "terms"),
    [
        ((), "no rate limits, no budget, all models, never expires."),
        (
            ("--tier=standard", "--budget=5", "--budget-period=month", "--models=openai/*,fast"),
            (
                "60 requests per minute, 100,000 tokens per hour, a budget of $5 per month, "
                "the models openai/*,fast, never expires."
            ),
        ),
        (
            ("--budget=0.25", "--max-streams=2", "--expires=2100-01-31"),
            "2 calls at once, a budget of $0.25 in all, all models, expires 2100-01-31T00:00:00Z.",
        ),
        (("--admin",), "an admin key, no rate limits, no budget, all models, never expires."),
    ],
)
def test_create_echoes_the_terms_of_the_key(
    run: Runner, store: KeyStore, arguments: tuple[str, ...], terms: str
) -> None:
    result = run("create", "--name", "a", *arguments)
    assert result.stderr.splitlines()[0] == f"Key 'a' ({store.get('a').id}): {terms}"


def test_create_with_json_prints_all_fields_of_the_key(run: Runner, store: KeyStore) -> None:
    made = run.json(
        "create", "--name", "ci", "--expires", "30d", "--models", "openai/*, local/*",
        "--tier", "standard",
    )  # fmt: skip
    key = store.find(made["key"])
    assert key is not None
    assert made == {
        "id": key.id,
        "name": "ci",
        "key": made["key"],
        "created": made["created"],
        "expires": made["expires"],
        "disabled": False,
        "tier": "standard",
        "requests_per_minute": None,
        "tokens_per_hour": None,
        "budget_usd": None,
        "budget_period": "total",
        "max_streams": None,
        "resumable": None,
        "models": ["openai/*", "local/*"],
        "admin": False,
        "group": None,
        "previous_until": None,
    }
    assert list(made)[:3] == ["id", "name", "key"]
    assert key.expires == key.created + timedelta(days=30)
    assert made["expires"].endswith("Z")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("30d", timedelta(days=30)),
        ("2w", timedelta(weeks=2)),
        ("2100-01-31", datetime(2100, 1, 31, tzinfo=UTC)),
        ("2100-01-31T12:30:00", datetime(2100, 1, 31, 12, 30, tzinfo=UTC)),
        ("2100-01-31T12:30:00Z", datetime(2100, 1, 31, 12, 30, tzinfo=UTC)),
        ("2100-01-31T12:30:00+02:00", datetime(2100, 1, 31, 10, 30, tzinfo=UTC)),
    ],
)
def test_expires_takes_a_duration_or_a_date(
    run: Runner, text: str, expected: timedelta | datetime
) -> None:
    assert cli.keys.parse_expires(text) == expected
    run.ok("create", "--name", "a", "--expires", text)


@pytest.mark.parametrize("text", ["", "30", "30y", "d", "-1d", "1.5d", "٣d", "1d1h", "tomorrow",
                                  "2100-02-30", "9999999d"])  # fmt: skip
def test_create_refuses_an_invalid_expiry(run: Runner, store: KeyStore, text: str) -> None:
    assert "30d" in run.error("create", "--name", "a", f"--expires={text}")
    assert store.all() == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--expires", "0d"], "future"),
        (["--expires", "2020-01-01"], "future"),
        (["--expires", "999999w"], "too far"),
        (["--tier", "gold"], "enterprise"),
        (["--models", ""], "openai/*"),
        (["--models", "a,,b"], "openai/*"),
        *(
            ([option, text], word)
            for option in ("--requests-per-minute", "--tokens-per-hour")
            for text, word in (
                ("-1", "whole number"),
                ("1.5", "whole number"),
                ("nan", "whole number"),
                ("1e3", "whole number"),
                ("٣", "whole number"),
                ("", "whole number"),
                ("none", "whole number"),
                ("9" * 5000, "whole number"),
                ("9" * 20, "from 0 to"),
            )
        ),
        *(
            (["--budget", text], "US dollars")
            for text in (
                "-1",
                "nan",
                "inf",
                "1e400",
                "9" * 400,
                "$5",
                "1,5",
                "",
                "tier",
                "0.0000000001",
                "1000000000.01",
            )
        ),
        (["--budget", "1", "--budget-period", "week"], "month"),
        (["--budget-period", "day"], "needs a budget"),
    ],
)
def test_create_refuses_invalid_options(
    run: Runner, store: KeyStore, arguments: list[str], word: str
) -> None:
    assert word in run.error("create", "--name", "a", *arguments)
    assert store.all() == []


def test_create_stores_the_limits_and_the_budget(run: Runner, store: KeyStore) -> None:
    made = run.json(
        "create", "--name", "a", "--tier", "free", "--requests-per-minute", "0",
        "--tokens-per-hour", "5000", "--budget", "0.1", "--budget-period", "month",
        "--max-streams", "7",
    )  # fmt: skip
    key = store.get("a")
    assert (made["requests_per_minute"], made["tokens_per_hour"]) == tuple(key.limits) == (0, 5000)
    assert (made["budget_usd"], made["budget_period"]) == (0.1, "month")
    assert made["max_streams"] == key.max_streams == 7
    assert key.budget_nano == 100_000_000


def test_change_updates_only_the_given_fields_of_a_key(run: Runner, store: KeyStore) -> None:
    before, _ = store.create("a", tier="free", models=("local/*",), requests_per_minute=3)
    store.create("b")
    other = store.path.read_text().splitlines()[1]
    assert run.ok("change", "a", "--budget", "5", "--budget-period", "day") == (
        f"Key 'a' ({before.id}) is changed.\n"
    )
    assert run.ok("change", before.id, "--tier", "standard", "--models", "x/*,y/*")
    assert run.ok("change", "a", "--expires", "2100-01-31")
    key = store.get("a")
    assert (key.budget_nano, key.budget_period) == (5_000_000_000, "day")
    assert (tuple(key.limits), key.models) == ((3, 100_000), ("x/*", "y/*"))
    assert (key.expires, key.created) == (datetime(2100, 1, 31, tzinfo=UTC), before.created)
    run.ok("change", "a", "--max-streams", "3")
    assert store.get("a").max_streams == 3
    run.ok("change", "a", "--max-streams", "share")
    assert store.get("a").max_streams is None
    for word, value in (("yes", True), ("no", False), ("server", None)):
        run.ok("change", "a", "--resumable", word)
        assert store.get("a").resumable is value
    run.ok("change", "a", "--requests-per-minute", "tier", "--budget", "none", "--expires", "none")
    key = store.get("a")
    assert (key.limits, key.budget_nano, key.expires) == (LIMITS["standard"], None, None)
    assert store.path.read_text().splitlines()[1] == other


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "Nothing to change"),
        (["--budget", "nan"], "US dollars"),
        (["--budget", "1e400"], "US dollars"),
        (["--requests-per-minute", "-5"], "whole number"),
        (["--tier", "gold"], "enterprise"),
        (["--budget-period", "day"], "needs a budget"),
        (["--expires", "2020-01-01"], "future"),
        (["--models", ""], "openai/*"),
    ],
)
def test_change_refuses_invalid_options(
    run: Runner, store: KeyStore, arguments: list[str], word: str
) -> None:
    store.create("a")
    before = store.path.read_bytes()
    assert word in run.error("change", "a", *arguments)
    assert store.path.read_bytes() == before


def test_create_refuses_a_name_that_exists(run: Runner) -> None:
    run.ok("create", "--name", "a")
    assert "already" in run.error("create", "--name", "a")


def test_list_shows_each_key_in_columns_without_its_secret(run: Runner, store: KeyStore) -> None:
    one, secret = store.create("laptop", models=("openai/*", "local/*"))
    two, _ = store.create("a-longer-name", expires=timedelta(days=1))
    store.update(two.id, disabled=True)
    header, *lines = run.ok("list").splitlines()
    assert header.split() == [
        "id", "name", "budget", "spent", "left", "models", "expires", "last", "used", "status",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines] == [one.id, two.id]
    assert lines[0].split()[-3:] == ["-", "never", "active"]
    assert lines[1].split()[-1] == "disabled"
    for column in header.replace("last used", "last").split():
        at = header.index(f" {column}") if column != "id" else 0
        assert all(at == 0 or line[at] == " " != line[at + 1] for line in lines)
    rows = run.json("list")
    assert [(row["id"], row["status"], row["source"]) for row in rows] == [
        (one.id, "active", "file"),
        (two.id, "disabled", "file"),
    ]
    everything = run("list").output + run("list", "--json").output
    assert secret not in everything
    assert "sha256" not in everything


def test_list_shows_the_effective_limits_within_100_columns(run: Runner, store: KeyStore) -> None:
    expires = datetime(2100, 1, 31, 12, tzinfo=UTC)
    store.create("free", tier="free", budget_usd=0.25, budget_period="month", expires=expires)
    store.create("own", tier="standard", requests_per_minute=0, budget_usd=5.0)
    store.create("n" * 100, models=("m" * 100,), budget_usd=1e9)
    store.create("nano", budget_usd=1e-9)
    _, *lines = run.ok("list").splitlines()
    assert [line.split()[2:7] for line in lines] == [
        ["$0.25/month", "$0.00", "$0.25", "*", "2100-01-31"],
        ["$5", "$0.00", "$5.00", "*", "-"],
        ["$1000000000", "$0.00", "$1000000000.00", "m" * 21 + "...", "-"],
        ["$0.000000001", "$0.00", "<$0.01", "*", "-"],
    ]
    _, *limits = run.ok("list", "--limits").splitlines()
    assert [line.split()[2:6] for line in limits] == [
        ["free", "10", "10000", "-"],
        ["standard", "0", "100000", "-"],
        ["unlimited", "-", "-", "-"],
        ["unlimited", "-", "-", "-"],
    ]
    store.delete("n" * 100)
    for output in (run.ok("list"), run.ok("list", "--limits")):
        assert max(map(len, output.splitlines())) <= 100


def spend(run: Runner, store: KeyStore) -> None:
    """Let the key "a" spend $1.25 today, of a budget of $5."""
    key, _ = store.create("a", budget_usd=5.0, budget_period="day")
    store.create("b")
    with connected(run.url) as connection:
        when = datetime.now(UTC).replace(microsecond=0, tzinfo=None).isoformat()
        settled_row(connection, when, cost=1_250_000_000, key_id=key.id)


def test_list_and_show_have_what_was_spent_what_is_left_and_the_last_use(
    run: Runner, store: KeyStore
) -> None:
    spend(run, store)
    today = datetime.now(UTC).date().isoformat()
    _, first, second = run.ok("list").splitlines()
    assert first.split()[2:5] == ["$5/day", "$1.25", "$3.75"]
    assert first.split()[-2] == today
    assert second.split()[2:5] == ["-", "$0.00", "-"]
    shown = dict(re.split(r"\s{2,}", line) for line in run.ok("show", "a").splitlines())
    assert (shown["spent"], shown["left"]) == ("$1.25", "$3.75")
    assert shown["last used"].startswith(f"{today}T")
    one, other = run.json("list")
    assert one["used"] == {"spent_usd": 1.25, "left_usd": 3.75}
    assert one["last_used_at"].startswith(f"{today}T")
    assert (other["used"], other["last_used_at"]) == ({"spent_usd": 0.0, "left_usd": None}, None)
    assert run.json("show", "a")["used"] == one["used"]


@pytest.mark.parametrize("command", [("list",), ("show", "a")])
def test_without_the_ledger_the_usage_is_unknown(
    run: Runner, store: KeyStore, command: tuple[str, ...]
) -> None:
    spend(run, store)
    run.database.write_bytes(b"no database" * 500)
    result = run(*command)
    assert result.exit_code == 0
    assert result.stdout.count("unknown") == (3 if command == ("show", "a") else 6)
    assert "Warning: the ledger can't be read" in result.stderr
    found = run(*command, "--json")
    rows = json.loads(found.stdout)
    one = rows if command == ("show", "a") else rows[0]
    assert (one["used"], one["last_used_at"]) == (None, None)


def test_listing_keys_creates_no_ledger(run: Runner, store: KeyStore) -> None:
    store.create("a")
    assert "never" in run.ok("list")
    assert not run.database.exists()


def test_rotate_prints_only_the_new_secret_on_stdout(run: Runner, store: KeyStore) -> None:
    key, old = store.create("a")
    result = run("rotate", "a", "--overlap", "2h")
    new = result.stdout.strip()
    assert store.find(new) == store.find(old)
    assert f"Key 'a' ({key.id}) has a new secret; the old one works until 2" in result.stderr
    assert "can't be shown again" in result.stderr
    shown = run.json("show", "a")
    assert (shown["id"], "previous_hash" in shown) == (key.id, False)
    assert shown["previous_until"].endswith("Z")
    ended = run("rotate", "a", "--overlap", "0")
    assert "the old one no longer works" in ended.stderr
    assert store.find(new) is store.find(old) is None


def test_rotate_keeps_the_old_secret_for_a_day_by_default(run: Runner, store: KeyStore) -> None:
    key, old = store.create("a")
    made = run.json("rotate", "a")
    found = store.find(made["key"])
    assert found is not None
    assert (found.id, found) == (key.id, store.find(old))
    assert found.previous_until is not None
    assert timedelta(hours=23) < found.previous_until - datetime.now(UTC) <= timedelta(days=1)


def test_rotate_says_that_the_secrets_of_a_disabled_key_do_not_work(
    run: Runner, store: KeyStore
) -> None:
    store.create("a")
    store.update("a", disabled=True)
    result = run("rotate", "a")
    assert "the old one works until 20" in result.stderr
    assert "Warning: the key is disabled, so neither secret works." in result.stderr


def test_rotate_names_the_end_of_the_key_if_it_comes_before_that_of_the_overlap(
    run: Runner, store: KeyStore
) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    store.create("a", expires=end)
    assert f"the old one works until {as_text(end)}." in run("rotate", "a").stderr


@pytest.mark.parametrize("overlap", ["soon", "-1h", "99999w", "91d"])
def test_rotate_refuses_an_invalid_overlap(run: Runner, store: KeyStore, overlap: str) -> None:
    store.create("a")
    assert "overlap must be" in run.error("rotate", "a", f"--overlap={overlap}")


def test_list_without_keys_prints_a_hint_on_stderr(run: Runner) -> None:
    result = run("list")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "sluice keys create" in result.stderr
    assert run.json("list") == []


def test_list_warns_of_invalid_lines_in_the_keys_file(run: Runner, store: KeyStore) -> None:
    store.create("a")
    store.path.write_text(store.path.read_text() + "{secret nonsense\n")
    result = run("list", "--json")
    assert len(json.loads(result.stdout)) == 1
    assert result.stderr == "Warning: keys.jsonl: skipped line 2: not JSON\n"


def test_show_prints_a_key_without_its_secret(run: Runner, store: KeyStore) -> None:
    key, secret = store.create("a", models=("openai/*", "local/*"))
    lines = dict(line.split(None, 1) for line in run.ok("show", "a").splitlines())
    assert lines["id"] == key.id
    assert lines["models"] == "openai/*,local/*"
    assert lines["expires"] == "-"
    assert lines["disabled"] == "no"
    assert lines["status"] == "active"
    shown = run.json("show", key.id)
    assert shown["name"] == "a"
    for output in (run.ok("show", "a"), run.ok("show", "a", "--json")):
        assert secret not in output
        assert "sha256" not in output


def test_show_marks_the_limits_that_come_from_the_tier(run: Runner, store: KeyStore) -> None:
    store.create("a", tier="free", requests_per_minute=0)
    lines = dict(line.split(None, 1) for line in run.ok("show", "a").splitlines())
    assert lines["requests_per_minute"] == "0"
    assert lines["tokens_per_hour"] == "10000 (the tier's)"
    assert (lines["budget_usd"], lines["budget_period"]) == ("-", "total")
    shown = run.json("show", "a")
    assert shown["limits"] == {"requests_per_minute": 0, "tokens_per_hour": 10_000}
    assert shown["tokens_per_hour"] is None
    store.update("a", tier="unlimited", requests_per_minute=None)
    assert run.ok("show", "a").count("(the tier's)") == 0


@pytest.mark.parametrize("command", ["create", "change"])
def test_help_of_create_and_change_lists_each_option(run: Runner, command: str) -> None:
    text = run.ok(command, "--help")
    for option in ("expires", "models", "tier", "requests-per-minute", "tokens-per-hour",
                   "budget", "budget-period"):  # fmt: skip
        assert f"  --{option} " in text
    assert "not enforced" not in text


def test_show_line_prints_a_line_that_the_keys_variable_accepts(
    run: Runner, store: KeyStore, tmp_path: Path
) -> None:
    key, secret = store.create("a")
    line = run.ok("show", "a", "--line")
    assert secret not in line
    assert line == store.path.read_text()
    assert KeyStore(tmp_path / "none", line).find(secret) == key
    assert "not both" in run.error("show", "a", "--line", "--json")


def test_disable_and_enable_switch_a_key_off_and_on(run: Runner, store: KeyStore) -> None:
    key, secret = store.create("a")
    assert run.ok("disable", "a") == f"Key 'a' ({key.id}) is disabled.\n"
    assert store.find(secret) is None
    assert run.ok("enable", key.id) == f"Key 'a' ({key.id}) is enabled.\n"
    assert store.find(secret) == key


def test_enable_reports_that_the_key_is_expired(run: Runner, store: KeyStore) -> None:
    store.create("a")
    row = json.loads(store.path.read_text()) | {"expires": "2026-01-01T00:00:00Z"}
    store.path.write_text(json.dumps(row))
    assert run.json("show", "a")["status"] == "expired"
    assert run.ok("enable", "a").endswith("is enabled, but expired.\n")


def test_delete_needs_the_yes_option_without_a_terminal(run: Runner, store: KeyStore) -> None:
    key, _ = store.create("a")
    assert "--yes" in run.error("delete", "a")
    assert store.all() == [key]
    assert run.ok("delete", "a", "--yes") == f"Key 'a' ({key.id}) is deleted.\n"
    assert store.all() == []


@pytest.mark.parametrize(("answer", "left"), [("n\n", 1), ("", 1), ("y\n", 0)])
def test_delete_asks_in_a_terminal(
    run: Runner, store: KeyStore, monkeypatch: pytest.MonkeyPatch, answer: str, left: int
) -> None:
    store.create("a")
    monkeypatch.setattr(
        cli.keys, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    )
    result = run("delete", "a", text=answer)
    assert result.exit_code == left
    assert "Permanently delete key 'a' (key_" in result.stderr
    assert len(store.all()) == left


def test_keys_of_the_environment_variable_are_shown_but_not_changed(
    tmp_path: Path, store: KeyStore
) -> None:
    store.create("fixed")
    run = Runner(KeyStore(tmp_path / "other.jsonl", store.line("fixed")))
    run.ok("create", "--name", "own")
    header, own, fixed = run.ok("list").splitlines()
    assert header.split()[-1] == "source"
    assert own.split()[-1] == "file"
    assert fixed.split()[-1] == "environment"
    assert run.json("show", "fixed")["source"] == "environment"
    for command in (["disable"], ["rotate"], ["change", "--tier=free"], ["delete", "--yes"]):
        assert "SLUICE_KEYS" in run.error(*command, "fixed")


@pytest.mark.parametrize(
    "command",
    [["show"], ["rotate"], ["disable"], ["enable"], ["change", "--tier=free"], ["delete", "--yes"]],
)
def test_an_unknown_key_name_is_not_repeated_in_the_error(
    run: Runner, store: KeyStore, command: list[str]
) -> None:
    _, secret = store.create("a")
    assert secret not in run.error(*command, secret)


def test_an_unwritable_keys_file_is_reported_in_one_line(tmp_path: Path) -> None:
    run = Runner(KeyStore(tmp_path / "none" / "keys.jsonl"))
    assert "No such file" in run.error("create", "--name", "a")


def test_cell_shows_an_empty_list_or_none_as_a_dash() -> None:
    values: list[object] = [[], True, None, 2.5]
    assert [cell(value) for value in values] == ["-", "yes", "-", "2.5"]


@pytest.mark.parametrize("text", ["", "1", "d", "1.5d", "-1d", "1y", "1234567d", "2030-01-01"])
def test_parse_duration_refuses_invalid_text(text: str) -> None:
    assert parse_duration("90m") == timedelta(minutes=90)
    with pytest.raises(ValueError):
        parse_duration(text)


def test_a_model_without_a_provider_that_is_no_alias_is_a_warning(
    run: Runner, store: KeyStore
) -> None:
    made = run("create", "--name", "a", "--models", "gpt-4o,openai/*,*,f?st")
    says = "Warning: 'gpt-4o' is neither an alias nor a model's full name (provider/model), so it"
    assert made.exit_code == 0
    assert made.stderr.count("Warning: ") == 1
    assert says in made.stderr
    assert store.find(made.stdout.strip()) is not None
    assert says in run("change", "a", "--models", "gpt-4o").stderr
    assert "Warning" not in run("change", "a", "--models", "openai/gpt-4o").stderr


def test_a_key_becomes_an_admin_key_and_an_ordinary_one_again(run: Runner, store: KeyStore) -> None:
    run("create", "--name", "a")
    assert not store.get("a").admin
    run("change", "a", "--admin")
    assert store.get("a").admin
    run("change", "a", "--budget", "5")
    assert store.get("a").admin
    run("change", "a", "--no-admin")
    assert not store.get("a").admin


# Groups


def test_groups_are_listed_with_their_keys_and_what_they_spent(
    run: Runner, store: KeyStore
) -> None:
    assert "There are no groups" in run("groups").stderr
    table = {"budget_usd": 5.0, "budget_period": "month", "models": ["sim/*"]}
    store.groups = read_groups({"research": table, "ops": {"requests_per_minute": 60}})
    made = run("create", "--name", "a", "--group", "research")
    assert ": the group research, no rate limits, no budget" in made.stderr
    run.ok("create", "--name", "b", "--group", "ops")
    run.ok("change", "b", "--group", "research")
    with connected(run.url) as rows:
        now = datetime.now(UTC).replace(microsecond=0, tzinfo=None).isoformat()
        settled_row(rows, now, cost=1_250_000_000, group_name="research")
    head, first, second = run.ok("groups").splitlines()
    assert head.split() == [
        "group", "keys", "req/min", "tokens/h", "budget", "spent", "left", "models",
    ]  # fmt: skip
    assert first.split() == ["research", "2", "-", "-", "$5/month", "$1.25", "$3.75", "sim/*"]
    assert second.split() == ["ops", "0", "60", "-", "-", "$0.00", "-", "*"]
    assert run.json("groups")[0]["used"] == {"spent_usd": 1.25, "left_usd": 3.75}
    assert "group" in run.ok("list").splitlines()[0].split()
    run.ok("change", "a", "--group", "none")
    run.ok("change", "b", "--group", "none")
    assert "group" not in run.ok("list").splitlines()[0].split()
    wrong = run("change", "a", "--group", "reserach")
    assert wrong.exit_code == 1
    assert "sluice.toml has no such group: its groups are research, ops." in wrong.stderr
    assert store.get("a").group is None


def test_the_list_of_keys_warns_of_a_group_that_is_gone(run: Runner, store: KeyStore) -> None:
    store.groups = read_groups({"ops": {}})
    key, _ = store.create("a", group="ops")
    store.groups = {}
    store.update("a", tier="free")
    assert f"Warning: {key.id} has a group that sluice.toml lacks" in run("list").stderr
    assert "ops (not in sluice.toml)" in run.ok("groups")


# Who changed what


def test_the_log_has_each_change_with_its_user_and_no_secret(run: Runner, store: KeyStore) -> None:
    made = run.json("create", "--name", "a", "--budget", "5")
    run.ok("change", "a", "--budget", "10", "--models", "openai/*,fast")
    run.ok("disable", "a")
    run.ok("enable", "a")
    rotated = run.json("rotate", "a", "--overlap", "0")
    run.ok("delete", "a", "--yes")
    found = run.json("log")
    assert [change["action"] for change in found] == [
        "delete", "rotate", "enable", "disable", "change", "create",
    ]  # fmt: skip
    assert found[4]["changes"] == {
        "budget_usd": {"from": 5.0, "to": 10.0},
        "models": {"from": ["*"], "to": ["openai/*", "fast"]},
    }
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {(one["via"], one["by"]["name"], one["key_id"]) for one in found} == {
        ("cli", user, made["id"])
    }
    head, *lines = run.ok("log").splitlines()
    assert head.split() == ["time", "action", "key", "id", "by", "changes"]
    assert lines[4].endswith("budget_usd: 5.0 -> 10.0, models: * -> openai/*,fast")
    everything = run.ok("log") + json.dumps(found)
    for secret in (made["key"], rotated["key"], "sha256"):
        assert secret not in everything
    assert len(run.json("log", "--limit", "2")) == 2
    run.ok("create", "--name", "b")
    assert len(run.json("log", "--key", made["id"])) == 6
    assert [one["key_name"] for one in run.json("log", "--key", "b")] == ["b"]


def test_without_a_change_the_log_says_so(run: Runner, store: KeyStore) -> None:
    result = run("log")
    assert result.exit_code == 1
    assert "Nothing has been recorded yet" in result.stderr
    with connected(run.url):
        pass
    assert "No change has been recorded yet." in run("log").stderr


def test_a_change_counts_although_the_ledger_cannot_be_written(
    run: Runner, store: KeyStore
) -> None:
    run.database.write_bytes(b"no database" * 500)
    result = run("create", "--name", "a")
    assert result.exit_code == 0
    assert store.find(result.stdout.strip()) == store.get("a")
    assert "Warning: the ledger can't be written" in result.stderr


def test_a_command_creates_no_ledger_in_the_folder_of_another_user(
    run: Runner, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.open_ledger.owns", lambda _folder: False)
    result = run("create", "--name", "a")
    assert result.exit_code == 0
    assert "Warning: the ledger can't be written" in result.stderr
    assert not run.database.exists()


def test_quickstart_records_the_first_key(run: Runner) -> None:
    run.plain("quickstart")
    (made,) = run.json("log")
    assert (made["action"], made["key_name"], made["changes"]) == (
        "create",
        "first",
        {"admin": True},
    )


# flask quickstart


def test_quickstart_creates_only_one_key(run: Runner, store: KeyStore) -> None:
    first = run.plain("quickstart")
    (secret,) = set(re.findall(r"sk-sluice-[\w-]+", first.stdout))
    assert store.find(secret) == store.get("first")
    assert store.get("first").admin
    assert "It is an admin key" in first.stdout
    assert f"export SLUICE_KEY={secret}\n" in first.stdout
    again = run.plain("quickstart")
    assert f"export SLUICE_URL=http://127.0.0.1:8000\n  export SLUICE_KEY={secret}" in first.stdout
    assert "Lost your key? ./sluice keys rotate first gives it a new secret" in again.stdout
    store.create("second")
    assert "Lost your key? ./sluice keys rotate NAME " in run.plain("quickstart").stdout
    store.delete("second")
    for output in (first.stdout, again.stdout):
        assert "http://127.0.0.1:8000/api/v1/completions" in output
        assert "Bearer $SLUICE_KEY" in output
    assert len(store.all()) == 1


def test_quickstart_accepts_a_first_key_that_another_process_creates_meanwhile(
    run: Runner, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    KeyStore(store.path).create("first")
    monkeypatch.setattr(KeyStore, "_fresh", lambda store: View())
    monkeypatch.setattr("cli.quickstart.KeyStore", lambda path: SimpleNamespace(all=lambda: [1]))
    result = run.plain("quickstart")
    assert result.exit_code == 0
    assert "sk-sluice-" not in result.stdout
    assert "Another process has just created the first key, and has printed it." in result.stdout


@pytest.mark.parametrize(
    ("host", "more", "url"),
    [
        ("", {}, "http://127.0.0.1:8000"),
        ("0.0.0.0", {}, "http://127.0.0.1:8000"),
        ("::", {}, "http://127.0.0.1:8000"),
        ("::1", {}, "http://[::1]:8000"),
        ("10.0.0.7", {}, "http://10.0.0.7:8000"),
        ("localhost", {"scheme": "https", "prefix": "/llm/"}, "https://localhost:8000/llm"),
    ],
)
def test_url_of_leads_from_this_machine_to_the_server(
    host: str, more: dict[str, str], url: str
) -> None:
    assert url_of(host, 8000, **more) == url


@pytest.mark.parametrize(
    "command",
    [
        ["keys", "list"],
        ["keys", "list", "--json"],
        ["keys", "create", "--name", "a"],
        ["keys", "show", "a"],
        ["quickstart"],
    ],
)
def test_a_key_file_that_cannot_be_read_is_never_taken_for_an_empty_one(
    tmp_path: Path, command: list[str]
) -> None:
    path = tmp_path / "keys.jsonl"
    path.mkdir()
    result = Runner(KeyStore(path)).plain(*command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (f"Error: keys.jsonl can't be read: not a regular file ({path}).\n")


def test_a_key_file_of_another_user_names_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.jsonl"
    KeyStore(path).create("a")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    monkeypatch.setattr(Path, "owner", lambda path: "ada")
    assert cli.keys.belongs_to(path) == ", which belongs to ada"


def test_quickstart_fails_with_a_message_if_no_key_can_be_written(tmp_path: Path) -> None:
    result = Runner(KeyStore(tmp_path / "none" / "keys.jsonl")).plain("quickstart")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "No such file" in result.stderr
