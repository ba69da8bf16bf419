"""Tests of endpoints/keys.py: managing the keys over HTTP, for admin keys only."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from endpoints import key_fields
from endpoints import keys as module
from keys.key import Key
from keys.store import KeyStore
from ledger import key_changes
from ledger.database import database_url
from tests.support.ledgers import Outage
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.support.rows import connected, settled_row
from tests.test_app import PROMPT, Site, make_app, make_key

GROUPS = {"research": {"budget_usd": 5.0, "budget_period": "month", "requests_per_minute": 60}}
KEYS, LOG = "/api/v1/keys", "/api/v1/keys/log"


class Desk:
    """An app whose key file has an admin key and an ordinary key, and a client for each."""

    def __init__(self, site: Site, path: Path) -> None:
        self.site = site
        self.path = path
        self.store: KeyStore = site.app.extensions["sluice"].keys
        self.admin, secret = self.store.create("operator", admin=True)
        self.plain, self.plain_secret = self.store.create("laptop")
        self.bearer = {"Authorization": f"Bearer {secret}"}

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> TestResponse:
        sent = self.bearer | (headers or {})
        return self.site.client.open(path, method=method, json=body, headers=sent)

    def ok(
        self,
        method: str,
        path: str,
        body: Any = None,
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> Any:
        answer = self(method, path, body, headers)
        assert answer.status_code == status, answer.data
        return answer.get_json()

    def refused(
        self, status: int, code: str, method: str, path: str, body: Any = None, **headers: str
    ) -> str:
        """Check that a request is refused, and return the message."""
        answer = self(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        found = answer.get_json()
        assert (answer.status_code, found["code"]) == (status, code), found
        message: str = found["message"]
        return message

    def accepts(self, secret: str) -> bool:
        answer = self.site.client.get("/v1/models", headers={"X-API-Key": secret})
        return answer.status_code == 200


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr("keys.store.LOOK_EVERY_S", 0)
    path = tmp_path / "keys.jsonl"
    return Desk(make_app(tmp_path, monkeypatch, keys_file=path, keys="\n", groups=GROUPS), path)


def row_of(desk: Desk, id_: str) -> dict[str, Any]:
    rows = [json.loads(line) for line in desk.path.read_text().splitlines()]
    found: dict[str, Any] = next(row for row in rows if row["id"] == id_)
    return found


# Who may


def test_each_endpoint_needs_an_admin_key(desk: Desk) -> None:
    before = desk.path.read_bytes()
    for method, path in (
        ("GET", KEYS), ("POST", KEYS), ("GET", LOG), ("GET", f"{KEYS}/laptop"),
        ("PATCH", f"{KEYS}/laptop"), ("DELETE", f"{KEYS}/laptop"),
        ("POST", f"{KEYS}/laptop/rotate"),
    ):  # fmt: skip
        for headers, status, code in (
            ({"X-API-Key": desk.plain_secret}, 403, "admin_required"),
            ({"X-API-Key": "sk-sluice-unknown"}, 401, "unauthorized"),
            ({}, 401, "unauthorized"),
        ):
            answer = desk.site.client.open(path, method=method, json={}, headers=headers)
            assert (answer.status_code, answer.get_json()["code"]) == (status, code)
    assert desk.path.read_bytes() == before


# Creating


def test_a_created_key_works_and_its_secret_is_shown_once(desk: Desk) -> None:
    terms = {
        "name": "ci",
        "tier": "free",
        "budget_usd": 5,
        "budget_period": "month",
        "models": ["sim/*"],
        "expires": "2100-01-31",
        "max_streams": 2,
        "resumable": True,
        "requests_per_minute": 3,
        "admin": False,
    }
    answer = desk("POST", KEYS, terms)
    made = answer.get_json()
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    assert list(made)[:3] == ["id", "name", "key"]
    assert desk.accepts(made["key"])
    assert {name: made[name] for name in terms} == terms | {"expires": "2100-01-31T00:00:00Z"}
    shown = desk.ok("GET", f"{KEYS}/{made['id']}")
    assert shown == {name: value for name, value in made.items() if name != "key"}
    assert answer.headers["ETag"] == shown["etag"]
    everything = desk("GET", KEYS).text + desk("GET", LOG).text + json.dumps(shown)
    assert made["key"] not in everything
    assert "sha256" not in everything
    assert "hash" not in everything


def test_the_fields_of_a_key_are_those_of_the_command(desk: Desk) -> None:
    row = row_of(desk, desk.plain.id)
    shown = desk.ok("GET", f"{KEYS}/{desk.plain.id}")
    del row["hash"], shown["previous_until"]
    for name, value in row.items():
        assert shown.pop(name) == value
    assert shown == {
        "limits": {"requests_per_minute": None, "tokens_per_hour": None},
        "status": "active",
        "source": "file",
        "used": {"spent_usd": 0.0, "left_usd": None},
        "last_used_at": None,
        "etag": shown["etag"],
    }


def test_a_name_that_exists_is_a_conflict(desk: Desk) -> None:
    assert "'laptop'" in desk.refused(409, "key_exists", "POST", KEYS, {"name": "laptop"})


def test_a_model_that_allows_nothing_is_a_warning(desk: Desk) -> None:
    found = desk.ok("POST", KEYS, {"name": "a", "models": ["gpt-4o"]}, 201)
    (warning,) = found["warnings"]
    assert "'gpt-4o' is neither an alias" in warning
    assert "warnings" not in desk.ok("PATCH", f"{KEYS}/a", {"models": ["openai/gpt-4o"]})


INVALID: list[tuple[dict[str, Any], str]] = [
    ({}, "name"),
    ({"name": ""}, "name"),
    ({"name": "x" * 101}, "name"),
    ({"name": "key_a"}, "name"),
    ({"name": " a"}, "name"),
    ({"name": "a\nb"}, "name"),
    ({"name": 5}, "name"),
    ({"name": "a", "tier": "gold"}, "tier"),
    ({"name": "a", "tier": None}, "tier"),
    ({"name": "a", "requests_per_minute": -1}, "requests_per_minute"),
    ({"name": "a", "requests_per_minute": 1.5}, "requests_per_minute"),
    ({"name": "a", "tokens_per_hour": "9"}, "tokens_per_hour"),
    ({"name": "a", "tokens_per_hour": 10**13}, "tokens_per_hour"),
    ({"name": "a", "budget_usd": -0.01}, "budget_usd"),
    ({"name": "a", "budget_usd": 10**10}, "budget_usd"),
    ({"name": "a", "budget_period": "day"}, "budget_period"),
    ({"name": "a", "budget_usd": 1, "budget_period": "year"}, "budget_period"),
    ({"name": "a", "max_streams": 0}, "max_streams"),
    ({"name": "a", "models": []}, "models"),
    ({"name": "a", "models": [""]}, "models"),
    ({"name": "a", "models": ["a\nb"]}, "models"),
    ({"name": "a", "models": "sim/*"}, "models"),
    ({"name": "a", "expires": "soon"}, "expires"),
    ({"name": "a", "expires": "2020-01-01"}, "expires"),
    ({"name": "a", "expires": 5}, "expires"),
    ({"name": "a", "admin": "yes"}, "admin"),
    ({"name": "a", "admin": None}, "admin"),
    ({"name": "a", "disabled": 1}, "disabled"),
    ({"name": "a", "bugdet_usd": 5}, "bugdet_usd"),
    ({"name": "a", "hash": "sha256:" + "0" * 64}, "hash"),
    ({"name": "a", "id": "key_mine"}, "id"),
    ({"name": "a", "group": "nobody"}, "group"),
    ({"name": "a", "group": 5}, "group"),
]


def test_an_invalid_field_is_named_and_nothing_is_created(desk: Desk) -> None:
    before = desk.path.read_bytes()
    for body, field in INVALID:
        message = desk.refused(400, "invalid_request", "POST", KEYS, body)
        assert field in message, body
    assert desk.path.read_bytes() == before


def test_an_unknown_field_has_a_suggestion(desk: Desk) -> None:
    message = desk.refused(400, "invalid_request", "PATCH", f"{KEYS}/laptop", {"bugdet_usd": 5})
    assert message == "Unknown field: bugdet_usd. Did you mean budget_usd?"


def test_a_name_must_not_be_a_key(desk: Desk) -> None:
    for body in ({"name": f"x {desk.plain_secret}"}, {"name": "a", "models": [desk.plain_secret]}):
        message = desk.refused(400, "invalid_request", "POST", KEYS, body)
        assert "would be shown and logged" in message
        assert desk.plain_secret not in message


# Changing


CHANGES: list[dict[str, Any]] = [
    {"expires": "2100-01-01T10:00:00Z"},
    {"disabled": True},
    {"tier": "enterprise"},
    {"requests_per_minute": 7},
    {"tokens_per_hour": 0},
    {"budget_usd": 0.25, "budget_period": "day"},
    {"max_streams": 3},
    {"resumable": True},
    {"models": ["sim/*", "fast"]},
    {"admin": True},
    {"group": "research"},
]


def test_each_field_of_the_commands_can_be_changed_by_itself(desk: Desk) -> None:
    for change in CHANGES:
        before = row_of(desk, desk.plain.id)
        shown = desk.ok("PATCH", f"{KEYS}/{desk.plain.id}", change)
        assert {name: shown[name] for name in change} == change
        assert row_of(desk, desk.plain.id) == before | change
    assert {name for change in CHANGES for name in change} == set(key_fields.TERMS)
    zoned = {"expires": "2100-01-01T12:00:00+02:00"}
    shown = desk.ok("PATCH", f"{KEYS}/{desk.plain.id}", zoned)
    assert shown["expires"] == "2100-01-01T10:00:00Z"


def test_null_takes_a_limit_away(desk: Desk) -> None:
    desk.store.update("laptop", budget_usd=5.0, max_streams=2, expires=timedelta(days=1))
    shown = desk.ok("PATCH", f"{KEYS}/laptop", {"budget_usd": None, "expires": None})
    assert (shown["budget_usd"], shown["expires"], shown["max_streams"]) == (None, None, 2)


def test_a_disabled_key_is_refused_until_it_is_enabled(desk: Desk) -> None:
    desk.ok("PATCH", f"{KEYS}/laptop", {"disabled": True})
    assert not desk.accepts(desk.plain_secret)
    assert desk.ok("PATCH", f"{KEYS}/laptop", {"disabled": False})["status"] == "active"
    assert desk.accepts(desk.plain_secret)


def test_a_deleted_key_is_gone(desk: Desk) -> None:
    assert desk.ok("DELETE", f"{KEYS}/{desk.plain.id}") == {"success": True}
    assert not desk.accepts(desk.plain_secret)
    for method, body in (("GET", None), ("DELETE", None), ("PATCH", {"admin": True})):
        desk.refused(404, "key_not_found", method, f"{KEYS}/{desk.plain.id}", body)
    desk.refused(404, "key_not_found", "POST", f"{KEYS}/{desk.plain.id}/rotate")


def test_rotate_gives_a_new_secret_and_keeps_the_old_one_for_the_overlap(desk: Desk) -> None:
    made = desk.ok("POST", f"{KEYS}/laptop/rotate", {"overlap_s": 3600})
    assert desk.accepts(made["key"])
    assert desk.accepts(desk.plain_secret)
    until = datetime.fromisoformat(made["previous_until"])
    assert timedelta(minutes=59) < until - datetime.now(UTC) <= timedelta(hours=1)
    again = desk.ok("POST", f"{KEYS}/laptop/rotate", {"overlap_s": 0})
    assert desk.accepts(again["key"])
    assert not desk.accepts(made["key"])
    assert not desk.accepts(desk.plain_secret)


def test_rotate_without_a_body_keeps_the_old_secret_for_a_day(desk: Desk) -> None:
    answer = desk.site.client.post(f"{KEYS}/laptop/rotate", headers=desk.bearer)
    until = datetime.fromisoformat(answer.get_json()["previous_until"])
    assert timedelta(hours=23) < until - datetime.now(UTC) <= timedelta(days=1)


def test_what_rotate_and_change_do_not_take_is_named(desk: Desk) -> None:
    for overlap in (-1, 90 * 86_400 + 1, "1h", None, 1.5):
        body = {"overlap_s": overlap}
        message = desk.refused(400, "invalid_request", "POST", f"{KEYS}/laptop/rotate", body)
        assert message.startswith("overlap_s: got ")
    for fixed in ({"name": "other"}, {"id": "key_x"}, {"created": "2026-01-01"}):
        message = desk.refused(400, "invalid_request", "PATCH", f"{KEYS}/laptop", fixed)
        assert message == f"{next(iter(fixed))} can't be changed."


def test_an_empty_change_is_refused(desk: Desk) -> None:
    message = desk.refused(400, "invalid_request", "PATCH", f"{KEYS}/laptop", {})
    assert "budget_usd" in message


# Two people at once


def test_if_match_refuses_a_change_of_a_key_that_has_changed(desk: Desk) -> None:
    path = f"{KEYS}/laptop"
    first = desk("GET", path).headers["ETag"]
    second = desk("PATCH", path, {"tier": "free"}, {"If-Match": first}).headers["ETag"]
    assert first != second
    before = desk.path.read_bytes()
    for method, where, body in (
        ("PATCH", path, {"tier": "standard"}),
        ("DELETE", path, None),
        ("POST", f"{path}/rotate", {}),
    ):
        message = desk.refused(412, "key_changed", method, where, body, If_Match=first)
        assert "Read it again" in message
    assert desk.path.read_bytes() == before
    desk.ok("PATCH", path, {"tier": "standard"}, headers={"If-Match": f'"other", {second}'})
    desk.ok("PATCH", path, {"tier": "free"}, headers={"If-Match": "*"})


def test_a_command_between_reading_and_changing_is_noticed(desk: Desk) -> None:
    seen = desk.ok("GET", f"{KEYS}/laptop")["etag"]
    KeyStore(desk.path).update("laptop", budget_usd=1.0)
    desk.refused(412, "key_changed", "PATCH", f"{KEYS}/laptop", {"tier": "free"}, If_Match=seen)
    assert desk.ok("GET", f"{KEYS}/laptop")["budget_usd"] == 1.0


COMMANDS = """
import sys
from pathlib import Path
from keys.store import KeyStore
store = KeyStore(Path(sys.argv[1]))
for number in range(20):
    store.create(f"command {number}")
    store.update("laptop", tokens_per_hour=number)
"""


def test_changes_by_http_and_by_a_command_at_once_lose_nothing(desk: Desk) -> None:
    command = subprocess.Popen([sys.executable, "-c", COMMANDS, str(desk.path)], cwd=ROOT)
    failures: list[object] = []

    def create(worker: int) -> None:
        for number in range(10):
            answer = desk("POST", KEYS, {"name": f"http {worker}.{number}"})
            if answer.status_code != 201:
                failures.append(answer.data)

    threads = [threading.Thread(target=create, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert command.wait(HANG_S) == 0
    assert failures == []
    names = {key.name for key in KeyStore(desk.path).all()}
    assert len([name for name in names if name.startswith("http ")]) == 20
    assert len([name for name in names if name.startswith("command ")]) == 20
    assert desk.ok("GET", f"{KEYS}/laptop")["tokens_per_hour"] == 19


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", KEYS, {"name": "successor", "admin": True}),
        ("PATCH", f"{KEYS}/laptop", {"admin": True}),
        ("POST", f"{KEYS}/laptop/rotate", None),
        ("DELETE", f"{KEYS}/laptop", None),
    ],
)
@pytest.mark.parametrize("loss", ["disabled", "demoted", "rotated", "deleted"])
def test_a_key_that_is_revoked_elsewhere_changes_nothing_even_before_this_worker_knows_it(
    desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: Any,
    loss: str,
) -> None:
    monkeypatch.setattr("keys.store.LOOK_EVERY_S", 3600)
    elsewhere = KeyStore(desk.path)
    match loss:
        case "disabled":
            elsewhere.update("operator", disabled=True)
        case "demoted":
            elsewhere.update("operator", admin=False)
        case "rotated":
            elsewhere.rotate("operator", timedelta())
        case "deleted":
            elsewhere.delete("operator")
    before = desk.path.read_bytes()
    monkeypatch.setattr("endpoints.keys.store", lambda: desk.store)  # it would check the file
    error = (403, "admin_required") if loss == "demoted" else (401, "unauthorized")
    desk.refused(*error, method, path, body)
    assert desk.path.read_bytes() == before


# The last admin key


def test_the_last_admin_key_that_works_stays(desk: Desk) -> None:
    path = f"{KEYS}/{desk.admin.id}"
    desk.store.create("asleep", admin=True)
    desk.store.update("asleep", disabled=True)
    soon = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    ways: list[tuple[str, Any]] = [
        *(("PATCH", body) for body in ({"disabled": True}, {"admin": False}, {"expires": soon})),
        ("DELETE", None),
    ]
    for method, body in ways:
        message = desk.refused(409, "last_admin_key", method, path, body)
        assert "./sluice keys" in message
    desk.ok("PATCH", path, {"tier": "free"})
    desk.ok("DELETE", f"{KEYS}/asleep")
    desk.ok("POST", KEYS, {"name": "second", "admin": True}, 201)
    desk.ok("PATCH", path, {"tier": "unlimited", "admin": False})
    assert desk("GET", KEYS).status_code == 403


def test_the_last_admin_key_may_expire_later_but_not_earlier(desk: Desk) -> None:
    path = f"{KEYS}/{desk.admin.id}"
    hours = [(datetime.now(UTC) + timedelta(hours=h)).isoformat() for h in (1, 2, 3)]
    desk.store.update("operator", expires=datetime.fromisoformat(hours[1]))
    desk.refused(409, "last_admin_key", "PATCH", path, {"expires": hours[0]})
    desk.ok("PATCH", path, {"expires": hours[2]})
    desk.ok("PATCH", path, {"expires": None})


def test_the_commands_may_take_the_last_admin_key(desk: Desk) -> None:
    desk.store.delete("operator")
    assert desk("GET", KEYS).status_code == 401


# Keys that can't be changed


def test_a_key_of_the_variable_is_shown_and_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keys.store.LOOK_EVERY_S", 0)
    line, secret = make_key("root", admin=True)
    site = make_app(tmp_path, monkeypatch, keys=line)
    headers = {"X-API-Key": secret}

    def call(method: str, path: str, body: Any = None) -> tuple[int, Any]:
        answer = site.client.open(path, method=method, json=body, headers=headers)
        return answer.status_code, answer.get_json()

    status, shown = call("GET", f"{KEYS}/root")
    assert (status, shown["source"]) == (200, "environment")
    for method, path, body in (
        ("PATCH", f"{KEYS}/root", {"tier": "free"}),
        ("DELETE", f"{KEYS}/root", None),
        ("POST", f"{KEYS}/root/rotate", {}),
    ):
        status, error = call(method, path, body)
        assert (status, error["code"]) == (409, "keys_read_only")
        assert "SLUICE_KEYS" in error["message"]
        assert "restart" in error["message"]
    status, error = call("POST", KEYS, {"name": "a"})
    assert (status, error["code"]) == (409, "keys_read_only")
    assert "./sluice keys show NAME --line" in error["message"]
    assert not (tmp_path / "keys.jsonl").exists()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "right to write"),
        (errno.EROFS, "right to write"),
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EIO, "Repair or restore"),
    ],
)
def test_a_file_that_cannot_be_written_is_a_conflict_that_says_what_to_do(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("keys.store.replace", fail)
        message = desk.refused(409, "keys_read_only", "POST", KEYS, {"name": "a"})
    assert os.strerror(number) in message
    assert advice in message
    assert desk.ok("GET", LOG)["data"] == []


def test_a_file_that_is_damaged_or_gone_is_not_changed(desk: Desk) -> None:
    whole = desk.path.read_bytes()
    for damage in (lambda: desk.path.write_bytes(whole[:-20]), desk.path.unlink):
        damage()
        message = desk.refused(409, "keys_read_only", "POST", KEYS, {"name": "a"})
        assert "Repair or restore" in message
        desk.path.write_bytes(whole)
    assert desk.path.read_bytes() == whole


def test_problems_of_the_file_are_listed_without_its_content(desk: Desk) -> None:
    with desk.path.open("a") as file:
        file.write("rubbish\n")
    problems = desk.ok("GET", KEYS)["problems"]
    assert problems
    assert "rubbish" not in str(problems)


# The list


def names(found: dict[str, Any]) -> list[str]:
    """Return the names of a page, without the key of the variable that each test app has."""
    return [key["name"] for key in found["data"] if key["source"] == "file"]


def test_the_list_has_filters(desk: Desk) -> None:
    desk.store.create("desktop")
    desk.store.update("desktop", disabled=True)
    assert set(names(desk.ok("GET", KEYS))) == {"operator", "laptop", "desktop"}
    assert names(desk.ok("GET", f"{KEYS}?search=TOP&status=active")) == ["laptop"]
    assert names(desk.ok("GET", f"{KEYS}?status=disabled")) == ["desktop"]
    assert names(desk.ok("GET", f"{KEYS}?admin=true")) == ["operator"]
    assert names(desk.ok("GET", f"{KEYS}?search={desk.plain.id}")) == ["laptop"]
    assert desk.ok("GET", f"{KEYS}?search=nobody")["data"] == []


def test_an_invalid_filter_is_named(desk: Desk) -> None:
    for query in ("status=asleep", "admin=yes", "limit=0", "limit=101", "cursor=x", "stauts=on"):
        message = desk.refused(400, "invalid_request", "GET", f"{KEYS}?{query}")
        assert query.partition("=")[0] in message


def test_the_pages_of_the_list_have_every_key_once(desk: Desk) -> None:
    for number in range(5):
        desk.store.create(f"k{number}")
    first = desk.ok("GET", f"{KEYS}?limit=3")
    assert (first["total"], len(first["data"])) == (8, 3)
    gone = first["data"][-1]
    if gone["source"] == "file" and not gone["admin"]:
        desk.store.delete(gone["id"])  # the next page begins behind a key that is gone
    pages, cursor = [first], first["next_cursor"]
    while cursor is not None:
        pages.append(desk.ok("GET", f"{KEYS}?limit=3&cursor={cursor}"))
        cursor = pages[-1]["next_cursor"]
    assert [len(page["data"]) for page in pages] == [3, 3, 2]
    assert len({key["id"] for page in pages for key in page["data"]}) == 8


def test_the_list_has_what_was_spent_and_works_without_the_ledger(desk: Desk) -> None:
    desk.store.update("laptop", budget_usd=5.0)
    settings = desk.site.app.extensions["sluice"].settings
    with connected(database_url(None, settings.database)) as rows:
        settled_row(rows, "2026-01-31T12:00:00", cost=1_250_000_000, key_id=desk.plain.id)
    found = {key["name"]: key for key in desk.ok("GET", KEYS)["data"]}
    assert found["laptop"]["used"] == {"spent_usd": 1.25, "left_usd": 3.75}
    assert found["laptop"]["last_used_at"] == "2026-01-31T12:00:00Z"
    assert found["operator"]["last_used_at"] is None
    ledger = desk.site.app.extensions["sluice"].ledger
    with_outage = Outage(ledger._reader)
    assert with_outage.on
    found = {key["name"]: key for key in desk.ok("GET", KEYS)["data"]}
    assert (found["laptop"]["used"], found["laptop"]["last_used_at"]) == (None, None)


# The audit


def test_the_log_says_who_changed_what_newest_first(desk: Desk) -> None:
    made = desk.ok("POST", KEYS, {"name": "ci", "budget_usd": 5}, 201)
    path = f"{KEYS}/{made['id']}"
    desk.ok("PATCH", path, {"budget_usd": 10, "tier": "unlimited"}, headers={"X-Request-ID": "r-1"})
    desk.ok("PATCH", path, {"disabled": True})
    desk.ok("PATCH", path, {"disabled": False})
    rotated = desk.ok("POST", f"{path}/rotate", {"overlap_s": 0})
    desk.ok("DELETE", path)
    found = desk.ok("GET", LOG)
    assert [change["action"] for change in found["data"]] == [
        "delete", "rotate", "enable", "disable", "change", "create",
    ]  # fmt: skip
    change = found["data"][4]
    assert datetime.now(UTC) - datetime.fromisoformat(change.pop("at")) < timedelta(seconds=HANG_S)
    assert change == {
        "action": "change",
        "key_id": made["id"],
        "key_name": "ci",
        "changes": {"budget_usd": {"from": 5.0, "to": 10.0}},
        "via": "http",
        "by": {"key_id": desk.admin.id, "name": "operator"},
        "request_id": "r-1",
    }
    assert found["data"][5]["changes"] == {"budget_usd": 5.0}
    assert found["data"][1]["changes"] == {"overlap_s": 0}
    for secret in (made["key"], rotated["key"], "sha256"):
        assert secret not in json.dumps(found)


def test_the_log_has_pages_and_can_show_one_key(desk: Desk) -> None:
    for number in range(3):
        desk.ok("PATCH", f"{KEYS}/laptop", {"tokens_per_hour": number})
    desk.ok("PATCH", f"{KEYS}/operator", {"tier": "free"})
    first = desk.ok("GET", f"{LOG}?limit=3")
    second = desk.ok("GET", f"{LOG}?limit=3&cursor={first['next_cursor']}")
    assert [len(page["data"]) for page in (first, second)] == [3, 1]
    assert second["next_cursor"] is None
    for key in ("laptop", desk.plain.id):
        one = desk.ok("GET", f"{LOG}?key={key}")
        assert [change["key_name"] for change in one["data"]] == ["laptop"] * 3
    for nobody in ("nobody", "key_", "key_%00"):
        desk.refused(404, "key_not_found", "GET", f"{LOG}?key={nobody}")
    assert desk.ok("GET", f"{LOG}?key=key_deleted")["data"] == []
    desk.refused(400, "invalid_request", "GET", f"{LOG}?cursor=x")


def test_a_change_that_changes_nothing_is_not_in_the_log(desk: Desk) -> None:
    desk.ok("PATCH", f"{KEYS}/laptop", {"disabled": False, "budget_usd": None, "models": ["*"]})
    assert desk.ok("GET", LOG)["data"] == []


def test_a_change_counts_while_the_ledger_is_away_and_is_then_in_the_log_only(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.ledger.RETRY_S", 0.05)
    caplog.set_level("INFO", logger="sluice.keys")
    ledger = desk.site.app.extensions["sluice"].ledger
    outage = Outage(ledger._writer)
    desk.ok("PATCH", f"{KEYS}/laptop", {"budget_usd": 5})
    desk.ok("PATCH", f"{KEYS}/laptop", {"disabled": True})
    assert not desk.accepts(desk.plain_secret)
    outage.on = False
    lines = [record.getMessage() for record in caplog.records if record.name == "sluice.keys"]
    change = '{"budget_usd": {"from": null, "to": 5.0}}'
    said = f"key {desk.plain.id} (laptop): change by operator ({desk.admin.id}): {change}"
    assert said in lines
    assert any("the ledger is unavailable" in line for line in lines)


def test_a_change_that_is_written_twice_is_recorded_once(tmp_path: Path) -> None:
    change = key_changes.KeyChange(
        id="a" * 30, at_us=1, via="cli", actor_id=None, actor_name="root", request_id=None,
        action="create", key_id="key_a", key_name="a", changes="{}",
    )  # fmt: skip
    with connected(database_url(None, tmp_path / "sluice.db")) as rows:
        for _ in range(2):
            key_changes.write(rows, [change])
        assert key_changes.latest(rows, None, 10) == [change]


def test_an_etag_does_not_depend_on_the_usage(desk: Desk) -> None:
    before = desk.ok("GET", f"{KEYS}/laptop")["etag"]
    key: Key = desk.plain
    settings = desk.site.app.extensions["sluice"].settings
    with connected(database_url(None, settings.database)) as rows:
        settled_row(rows, "2026-01-31T12:00:00", key_id=key.id)
    assert desk.ok("GET", f"{KEYS}/laptop")["etag"] == before
    assert module.etag(desk.store.view().pick("laptop")) == before


def test_an_admin_key_completes_like_any_other(desk: Desk) -> None:
    answer = desk.site.client.post("/api/v1/completions", json=PROMPT, headers=desk.bearer)
    assert answer.status_code != 403
