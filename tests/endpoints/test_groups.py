"""Tests of groups of keys over HTTP: their limits, GET /api/v1/groups and GET /api/v1/user/key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from keys.store import KeyStore
from ledger.database import database_url
from tests.gateway.test_gateway import play
from tests.support.ledgers import Outage
from tests.support.rows import connected, settled_row
from tests.test_app import PROMPT, Site, hello, make_app

GROUPS: dict[str, dict[str, Any]] = {
    "research": {"budget_usd": 0.001, "requests_per_minute": 2, "models": ["sim/*"]},
    "ops": {"budget_usd": 5.0, "budget_period": "month", "tokens_per_hour": 1000},
    "open": {},
}
COMPLETIONS = "/api/v1/completions"


class Team:
    """An app with groups. Each member is a key of a group."""

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.site = site
        self.monkeypatch = monkeypatch
        self.store: KeyStore = site.app.extensions["sluice"].keys
        self.secrets = {"admin": self.store.create("admin", admin=True)[1]}

    def add(self, name: str, group: str | None, **terms: Any) -> str:
        key, self.secrets[name] = self.store.create(name, group=group, **terms)
        return key.id

    def get(self, name: str, path: str) -> TestResponse:
        return self.site.client.get(path, headers={"X-API-Key": self.secrets[name]})

    def call(self, name: str, **more: Any) -> TestResponse:
        play(self.monkeypatch, hello())
        body = PROMPT | more
        headers = {"X-API-Key": self.secrets[name]}
        return self.site.client.post(COMPLETIONS, json=body, headers=headers)

    def spend(self, key_id: str, group: str, cost: int) -> None:
        settings = self.site.app.extensions["sluice"].settings
        with connected(database_url(None, settings.database)) as rows:
            settled_row(rows, "2026-01-31T12:00:00", cost=cost, key_id=key_id, group_name=group)


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    monkeypatch.setattr("keys.store.LOOK_EVERY_S", 0)
    return Team(make_app(tmp_path, monkeypatch, groups=GROUPS), monkeypatch)


def refusal(answer: TestResponse, status: int, code: str) -> dict[str, Any]:
    found: dict[str, Any] = answer.get_json()
    assert (answer.status_code, found["code"]) == (status, code), found
    return found


def test_the_requests_of_a_group_are_refused_in_its_name(team: Team) -> None:
    team.add("ann", "research")
    team.add("bob", "research")
    first = team.call("ann", max_tokens=1)
    assert first.status_code == 200, first.data
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert team.call("bob", max_tokens=1).headers["x-ratelimit-remaining-requests"] == "0"
    error = refusal(team.call("ann", max_tokens=1), 429, "rate_limited")
    assert "this key's group 'research'" in error["message"]
    assert error["details"]["group"] == "research"
    assert team.call("admin", max_tokens=1).status_code == 200


def test_the_budget_of_a_group_is_refused_in_its_name_and_counted_by_reason(team: Team) -> None:
    id_ = team.add("ann", "research", budget_usd=5.0)
    team.spend(id_, "research", 999_990)
    error = refusal(team.call("ann", max_tokens=100), 402, "insufficient_credits")
    assert "The budget of $0.001 of this key's group 'research'" in error["message"]
    assert error["details"]["group"] == "research"
    usage = team.site.app.extensions["sluice"].ledger
    usage.close()
    settings = team.site.app.extensions["sluice"].settings
    with connected(database_url(None, settings.database)) as rows:
        found = rows.exec_driver_sql("SELECT reason FROM refusals").scalars().all()
    assert found == ["insufficient_credits:budget:group"]


def test_a_model_that_the_group_forbids_is_refused_in_its_name_and_not_listed(team: Team) -> None:
    team.add("ann", "research")
    team.add("bob", "research", models=("local/*",))
    team.add("eve", None)
    error = refusal(team.call("ann", model="local/pydoc"), 403, "model_forbidden")
    assert error["message"] == "This key's group 'research' may not use local/pydoc."
    error = refusal(team.call("bob"), 403, "model_forbidden")
    assert error["message"] == "This key or its group 'research' may not use sim/m."
    listed = {
        name: {model["id"] for model in team.get(name, "/v1/models").get_json()["data"]}
        for name in ("ann", "eve")
    }
    assert "local/pydoc" in listed["eve"]
    assert "local/pydoc" not in listed["ann"]


def test_a_key_of_a_group_that_is_gone_may_use_nothing(team: Team) -> None:
    team.add("ann", "open")
    team.store.groups = {}
    team.store.update("ann", tier="free")
    error = refusal(team.call("ann"), 403, "model_forbidden")
    assert "This key's group 'open' isn't defined" in error["message"]
    assert "[groups.open]" in error["message"]


def test_a_call_of_a_group_has_its_name_in_the_ledger(team: Team) -> None:
    team.add("ann", "open")
    assert team.call("ann").status_code == 200
    settings = team.site.app.extensions["sluice"].settings
    with connected(database_url(None, settings.database)) as rows:
        found = rows.exec_driver_sql("SELECT group_name, requests FROM group_daily").all()
        names = rows.exec_driver_sql("SELECT group_name FROM requests").scalars().all()
    assert ([tuple(row) for row in found], names) == ([("open", 1)], ["open"])


def test_admins_see_each_group_with_its_keys_and_what_it_spent(team: Team) -> None:
    id_ = team.add("ann", "ops")
    team.add("bob", "ops")
    team.add("eve", "research")
    team.spend(id_, "research", 250_000)
    found = {
        group["name"]: group for group in team.get("admin", "/api/v1/groups").get_json()["data"]
    }
    assert list(found) == ["research", "ops", "open"]
    assert found["research"] == {
        "name": "research",
        "defined": True,
        "requests_per_minute": 2,
        "tokens_per_hour": None,
        "budget_usd": 0.001,
        "budget_period": "total",
        "models": ["sim/*"],
        "keys": 1,
        "used": {"spent_usd": 0.00025, "left_usd": 0.00075},
    }
    assert (found["ops"]["keys"], found["ops"]["used"]) == (2, {"spent_usd": 0.0, "left_usd": 5.0})
    assert found["open"]["used"] == {"spent_usd": 0.0, "left_usd": None}
    refusal(team.get("ann", "/api/v1/groups"), 403, "admin_required")
    error = refusal(team.get("admin", "/api/v1/groups?x=1"), 400, "invalid_request")
    assert "There are no parameters" in error["message"]
    outage = Outage(team.site.app.extensions["sluice"].ledger._reader)
    assert outage.on
    assert team.get("admin", "/api/v1/groups").get_json()["data"][0]["used"] is None


def test_a_group_that_keys_name_and_sluice_toml_lacks_is_listed_as_undefined(team: Team) -> None:
    team.add("ann", "open")
    team.store.groups = {"ops": team.store.groups["ops"]}
    team.store.update("admin", tier="unlimited")
    data = team.get("admin", "/api/v1/groups").get_json()["data"]
    assert [(group["name"], group["defined"], group["keys"]) for group in data] == [
        ("ops", True, 0),
        ("open", False, 1),
    ]


def test_a_caller_sees_what_its_own_key_may_and_its_group(team: Team) -> None:
    id_ = team.add("ann", "ops", tier="standard", budget_usd=1.0)
    team.spend(id_, "ops", 400_000_000)
    found = team.get("ann", "/api/v1/user/key").get_json()
    assert found == {
        "id": id_,
        "name": "ann",
        "created": found["created"],
        "expires": None,
        "tier": "standard",
        "requests_per_minute": None,
        "tokens_per_hour": None,
        "budget_usd": 1.0,
        "budget_period": "total",
        "max_streams": None,
        "resumable": None,
        "models": ["*"],
        "admin": False,
        "limits": {"requests_per_minute": 60, "tokens_per_hour": 100_000},
        "left_usd": 0.6,
        "group": {
            "name": "ops",
            "requests_per_minute": None,
            "tokens_per_hour": 1000,
            "budget_usd": 5.0,
            "budget_period": "month",
            "models": ["*"],
            "left_usd": found["group"]["left_usd"],
        },
    }
    assert found["group"]["left_usd"] in (4.6, 5.0)  # the call was in January
    alone = team.get("admin", "/api/v1/user/key").get_json()
    assert (alone["group"], alone["left_usd"], alone["admin"]) == (None, None, True)
    assert "hash" not in found
    assert team.site.client.get("/api/v1/user/key").status_code == 401


def test_the_list_of_keys_can_show_one_group(team: Team) -> None:
    team.add("ann", "ops")
    team.add("bob", None)
    found = team.get("admin", "/api/v1/keys?group=ops").get_json()
    assert [(key["name"], key["group"]) for key in found["data"]] == [("ann", "ops")]
