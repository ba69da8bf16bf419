"""Tests of keys/group.py: the groups of sluice.toml, and the keys that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app import create_app
from config import ConfigError, Settings
from config_file import TomlError
from keys.group import KeyGroup, group_of, read_groups
from keys.key import allows, new_row
from keys.key_errors import KeyFileError
from keys.limits import Limits
from keys.store import KeyStore

GROUPS = read_groups({"research": {"budget_usd": 5.0, "models": ["sim/*"]}, "ops": {}})


def test_a_table_without_fields_is_a_group_without_limits() -> None:
    assert read_groups({"ops": {}}) == {"ops": KeyGroup(name="ops")}
    assert GROUPS["ops"].limits == Limits()
    assert GROUPS["ops"].budget_nano is None


def test_each_field_of_a_table_is_read() -> None:
    table = {
        "budget_usd": 5,
        "budget_period": "month",
        "requests_per_minute": 60,
        "tokens_per_hour": 0,
        "models": ["openai/*", "fast"],
    }
    (found,) = read_groups({"research": table}).values()
    assert found.limits == Limits(60, 0)
    assert found.budget_nano == 5 * 10**9
    assert (found.budget_period, found.models) == ("month", ("openai/*", "fast"))


@pytest.mark.parametrize(
    ("name", "table", "says"),
    [
        ("a b", {}, "a group's name is"),
        ("x" * 65, {}, "a group's name is"),
        ("a", {"bugdet_usd": 5}, "did you mean budget_usd?"),
        ("a", {"name": "b"}, "name: there is no such field"),
        ("a", {"defined": False}, "defined: there is no such field"),
        ("a", {"budget_usd": -1}, "budget_usd must be US dollars"),
        ("a", {"budget_usd": "5"}, "budget_usd must be US dollars"),
        ("a", {"budget_usd": 5, "budget_period": "year"}, "budget_period must be total or day"),
        ("a", {"budget_period": "day"}, "budget_period needs budget_usd"),
        ("a", {"requests_per_minute": 1.5}, "requests_per_minute must be an integer"),
        ("a", {"tokens_per_hour": -1}, "tokens_per_hour must be an integer"),
        ("a", {"models": []}, "models must be a list"),
        ("a", {"models": [""]}, "models must be a list"),
        ("a", {"models": "sim/*"}, "models must be a list"),
    ],
)
def test_a_mistake_names_the_table_and_the_field(
    name: str, table: dict[str, Any], says: str
) -> None:
    with pytest.raises(TomlError) as caught:
        read_groups({name: table})
    assert says in str(caught.value)
    assert "[groups." in str(caught.value)


def test_a_mistake_in_a_group_keeps_the_server_from_starting_and_names_its_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "sluice.toml"
    path.write_text("[groups.research]\nbudget_usd = 5\nrequest_per_minute = 3\n")
    environ = {"SLUICE_CONFIG": str(path), "SLUICE_KEYS_FILE": str(tmp_path / "keys.jsonl")}
    with pytest.raises(ConfigError, match=r"line 3, \[groups\.research\]: request_per_minute"):
        create_app(Settings.from_env(environ))


@pytest.mark.parametrize(
    ("of_key", "of_group", "model", "may"),
    [
        (("*",), ("*",), "sim/m", True),
        (("*",), ("sim/*",), "sim/m", True),
        (("*",), ("sim/*",), "other/m", False),
        (("sim/*",), ("*",), "other/m", False),
        (("sim/a", "sim/b"), ("sim/b", "sim/c"), "sim/b", True),
        (("sim/a", "sim/b"), ("sim/b", "sim/c"), "sim/a", False),
        (("sim/a", "sim/b"), ("sim/b", "sim/c"), "sim/c", False),
        (("*",), (), "sim/m", False),
    ],
)
def test_a_model_must_fit_the_key_and_its_group(
    tmp_path: Path, of_key: tuple[str, ...], of_group: tuple[str, ...], model: str, may: bool
) -> None:
    store = KeyStore(tmp_path / "keys.jsonl", groups={"g": KeyGroup(name="g", models=of_group)})
    key, secret = store.create("a", models=of_key, group="g")
    found = store.find(secret)
    assert found == key
    assert found is not None
    assert allows(found, model) == may


def test_a_key_gets_the_group_that_it_names(tmp_path: Path) -> None:
    row, secret = new_row("fixed", {"group": "ops"})
    store = KeyStore(tmp_path / "keys.jsonl", json.dumps(row), GROUPS)
    found = store.find(secret)
    assert found is not None
    assert found.shared is GROUPS["ops"]
    assert store.create("a", group="research")[0].shared is GROUPS["research"]
    assert store.create("b")[0].shared is None
    assert store.update("a", group="ops").shared is GROUPS["ops"]
    assert store.update("a", group=None).shared is None
    assert [line.key.shared for line in store.view().lines] == [None, None, GROUPS["ops"]]


def test_a_key_can_only_join_a_group_of_sluice_toml(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.jsonl", groups=GROUPS)
    with pytest.raises(KeyFileError, match="its groups are research, ops") as caught:
        store.create("a", group="reserach")
    assert caught.value.field == "group"
    store.create("a")
    with pytest.raises(KeyFileError):
        store.update("a", group="reserach")
    with pytest.raises(KeyFileError, match="it has no groups"):
        KeyStore(tmp_path / "others.jsonl").create("a", group="research")


def test_a_key_whose_group_is_gone_may_use_no_model_and_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    _, secret = KeyStore(path, groups=GROUPS).create("a", group="research")
    store = KeyStore(path, groups={"ops": GROUPS["ops"]})
    found = store.find(secret)
    assert found is not None
    assert not allows(found, "sim/m")
    assert (
        found.shared
        == group_of("research", {})
        == KeyGroup(name="research", models=(), defined=False)
    )
    assert store.problems() == [
        f"{found.id} has a group that sluice.toml lacks, so it may use no model"
    ]


@pytest.mark.parametrize("group", ["a b", "", "x" * 65, 5, "é"])
def test_a_line_with_an_invalid_group_is_skipped(tmp_path: Path, group: Any) -> None:
    path = tmp_path / "keys.jsonl"
    row, secret = new_row("a", {})
    path.write_text(json.dumps(row | {"group": group}) + "\n")
    store = KeyStore(path, groups=GROUPS)
    assert store.find(secret) is None
    assert "'group' is invalid" in store.problems()[0]


def test_a_misspelt_group_does_not_lift_its_limits(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    row, secret = new_row("a", {})
    del row["group"]
    path.write_text(json.dumps(row | {"gruop": "research"}) + "\n")
    assert KeyStore(path, groups=GROUPS).find(secret) is None
