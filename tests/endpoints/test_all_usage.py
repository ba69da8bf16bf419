"""Tests of endpoints/all_usage.py: the usage of all keys and the refused calls, for admin keys."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import update

from endpoints import all_usage
from ledger import refusals
from ledger.database import database_url
from ledger.schema import group_daily, requests
from tests.endpoints.test_usage import COMPLETIONS, fill, sums
from tests.gateway.test_gateway import Scripted, eventually, play, wait
from tests.support.pace import HANG_S
from tests.support.rows import connected
from tests.test_app import PROMPT, Site, make_app, make_key

USAGE = "/api/v1/usage"
ADA, BEN = "key_ada", "key_gone"
REQUESTS, BUDGET = "rate_limited:requests", "insufficient_credits:budget"


class Office(Site):
    """A site with an admin key."""

    admin: str


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    line, secret = make_key("operator", id="key_operator", admin=True)
    user, _ = make_key("ada", id=ADA)
    found = cast(Office, make_app(tmp_path, monkeypatch, keys=line + user))
    found.admin = secret
    return found


@pytest.fixture
def filled(site: Office) -> Office:
    fill(site, ("2026-01-30T12:00:00", (1, 2), 1_000), ("2026-01-31T12:00:00", (10, 20), 2_000),
         key_id=ADA)  # fmt: skip
    fill(site, ("2026-01-31T23:59:59", (100, 200), None), key_id=ADA, model="n/o")
    fill(site, ("2026-01-31T12:00:00", (1000, 2000), 9_000), key_id=BEN, endpoint="/v1/completions")
    with connected(database_url(None, site.app.extensions["sluice"].settings.database)) as found:
        counts = {(ADA, "2026-01-31", REQUESTS): 5, (BEN, "2026-01-30", BUDGET): 2}
        refusals.write(found, counts | {(ADA, "2026-01-30", "stream_exists"): 1})
    return site


def ask(site: Office, query: str = "", **headers: str) -> Any:
    bearer = {"Authorization": f"Bearer {site.admin}"}
    answer = site.client.get(USAGE + query, headers=bearer | headers)
    assert answer.status_code == 200, answer.data
    return answer.json if answer.is_json else answer.text


def names(report: Any) -> list[str]:
    return [row["name"] for row in report["data"]]


ALL = sums(4, 1.2e-05, (1111, 2222), unpriced_requests=1)


def test_usage_of_all_keys_is_by_key_with_the_highest_cost_first(filled: Office) -> None:
    assert ask(filled) == {
        "group_by": "key",
        "start_date": None,
        "end_date": None,
        "key_id": None,
        "group": None,
        "data": [
            {"name": BEN, "key_name": None} | sums(1, 9e-06, (1000, 2000)),
            {"name": ADA, "key_name": "ada"} | sums(3, 3e-06, (111, 222), unpriced_requests=1),
        ],
        "total": ALL,
        "groups": 2,
        "refused": {
            "calls": 8,
            "data": [
                {"key_id": ADA, "key_name": "ada", "code": "rate_limited", "limit": "requests",
                 "reason": REQUESTS, "calls": 5},
                {"key_id": BEN, "key_name": None, "code": "insufficient_credits",
                 "limit": "budget", "reason": BUDGET, "calls": 2},
                {"key_id": ADA, "key_name": "ada", "code": "stream_exists", "limit": None,
                 "reason": "stream_exists", "calls": 1},
            ],
        },
        "next_cursor": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("by", "found"),
    [
        ("day", ["2026-01-30", "2026-01-31"]),
        ("model", ["sim/m", "sim/n/o"]),
        ("provider", ["sim"]),
        ("endpoint", ["/v1/completions", "/api/v1/completions"]),
        ("end_reason&start_date=2026-01-01", ["completed"]),
    ],
)
def test_usage_of_all_keys_by_each_kind_of_group(filled: Office, by: str, found: Any) -> None:
    report = ask(filled, f"?group_by={by}")
    assert names(report) == found
    assert report["total"] == ALL
    assert report["groups"] == len(found)
    assert "key_name" not in report["data"][0]


def test_usage_of_all_keys_can_be_that_of_one_key_and_of_some_days(filled: Office) -> None:
    for key in (ADA, "ada"):
        report = ask(filled, f"?group_by=model&key={key}&start_date=2026-01-31")
        assert report["total"] == sums(2, 2e-06, (110, 220), unpriced_requests=1)
        assert report["key_id"] == ADA
        assert [row["reason"] for row in report["refused"]["data"]] == [REQUESTS]
    assert ask(filled, f"?key={BEN}&end_date=2026-01-30")["data"] == []


def test_end_reasons_of_a_day_equal_the_daily_sums(filled: Office) -> None:
    for day in ("2026-01-30", "2026-01-31"):
        query = f"start_date={day}&end_date={day}"
        reasons = ask(filled, f"?group_by=end_reason&{query}")
        assert reasons["total"] == ask(filled, f"?group_by=day&{query}")["total"]


def test_end_reasons_without_a_start_are_those_of_the_last_month(filled: Office) -> None:
    report = ask(filled, "?group_by=end_reason")
    today = datetime.now(UTC).date()
    assert report["start_date"] == (today - timedelta(days=30)).isoformat()
    report = ask(filled, "?group_by=end_reason&end_date=2026-03-01")
    assert (report["start_date"], report["total"]["requests"]) == ("2026-01-30", 4)
    assert ask(filled, "?group_by=end_reason&end_date=0001-01-02")["start_date"] == "0001-01-01"


@pytest.mark.parametrize("by", ["key", "model", "refusal"])
def test_pages_have_each_group_once_and_the_sums_of_all(filled: Office, by: str) -> None:
    whole = ask(filled, f"?group_by={by}")
    found, cursor = [], ""
    while True:
        page = ask(filled, f"?group_by={by}&limit=1&cursor={cursor}")
        assert len(page["data"]) == 1
        assert (page["total"], page["groups"]) == (whole["total"], whole["groups"])
        found += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == whole["data"]
    assert len(found) > 1


def test_a_page_after_the_last_one_is_empty_and_has_the_sums_of_all(filled: Office) -> None:
    beyond = "b2Zmc2V0OjUw"  # offset:50
    for by in ("key", "refusal"):
        report = ask(filled, f"?group_by={by}&cursor={beyond}")
        assert (report["data"], report["next_cursor"]) == ([], None)
        assert report["total"] == ask(filled, f"?group_by={by}")["total"]


def test_usage_can_be_that_of_a_group_of_keys(filled: Office) -> None:
    with connected(database_url(None, filled.app.extensions["sluice"].settings.database)) as found:
        found.execute(update(requests).where(requests.c.key_id == ADA).values(group_name="team"))
        counts = {"requests": 3, "input_tokens": 111, "output_tokens": 222, "cost_nano": 3_000}
        row = {"group_name": "team", "day": "2026-01-31", "unpriced": 1} | counts
        found.execute(group_daily.insert().values(row))
    team = sums(3, 3e-06, (111, 222), unpriced_requests=1)
    assert ask(filled, "?group_by=group")["data"] == [{"name": "team"} | team]
    report = ask(filled, "?group=team&group_by=day")
    assert (names(report), report["total"], report["start_date"]) == (["2026-01-31"], team, None)
    assert (report["group"], report["refused"]) == ("team", None)
    for query in ("group=team&group_by=key", "group=team", "key=ada&group_by=group"):
        report = ask(filled, f"?{query}&start_date=2026-01-01")
        assert report["total"] == team
        assert ask(filled, f"?{query}")["start_date"] > "2026-06-01"
    assert ask(filled, "?group=team&group_by=model&start_date=2026-01-31")["groups"] == 2
    assert ask(filled, "?group=nobody&group_by=day")["data"] == []


def test_refused_calls_are_a_report_of_their_own(filled: Office) -> None:
    report = ask(filled, "?group_by=refusal")
    assert report["data"] == ask(filled)["refused"]["data"]
    assert (report["total"], report["groups"]) == ({"calls": 8}, 3)
    assert ask(filled, "?group_by=refusal&key=ada&start_date=2026-01-31")["total"] == {"calls": 5}


def test_a_new_server_has_no_usage(site: Office) -> None:
    for by in all_usage.GROUPS:
        report = ask(site, f"?group_by={by}")
        assert (report["data"], report["groups"], report["next_cursor"]) == ([], 0, None)


def test_usage_of_all_keys_as_csv(filled: Office) -> None:
    head = "requests,cost_usd,input_tokens,output_tokens,total_tokens,unpriced_requests"
    assert ask(filled, "?format=csv").splitlines() == [
        f"key,name,{head}",
        f'"{BEN}","",1,0.000009000,1000,2000,3000,0',
        f'"{ADA}","ada",3,0.000003000,111,222,333,1',
    ]
    assert ask(filled, "?group_by=provider", Accept="text/csv").splitlines() == [
        f"provider,{head}",
        '"sim",4,0.000012000,1111,2222,3333,1',
    ]
    assert ask(filled, "?group_by=refusal&format=csv").splitlines() == [
        "key,name,code,limit,calls",
        f'"{ADA}","ada","rate_limited","requests",5',
        f'"{BEN}","","insufficient_credits","budget",2',
        f'"{ADA}","ada","stream_exists","",1',
    ]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("group_by=color", "group_by: got 'color'; expected day, model"),
        ("limit=0", "limit: got '0'; expected an integer from 1 to 1000"),
        ("limit=1001", "expected an integer from 1 to 1000"),
        ("cursor=x", "cursor: got 'x'"),
        ("cursor=MDY1MWQzZjdhMWIyYzQ5ZThmMWMyYjNhNGQ1ZTZm", "the next_cursor of a previous"),
        ("key=nobody", "key: there is no key"),
        ("key=ada&group=team", "group and key don't go together"),
        ("group_by=refusal&group=team", "group and group_by=refusal don't go together"),
        ("group=%00", "group: got '\\x00'; expected the name of a group"),
        ("start_date=2026-02-02&end_date=2026-02-01", "start_date is after end_date"),
        ("start_date=soon", "start_date: got 'soon'"),
        ("grup_by=key", "Did you mean group_by?"),
    ],
)
def test_an_invalid_parameter_is_refused_with_400(site: Office, query: str, says: str) -> None:
    bearer = {"Authorization": f"Bearer {site.admin}"}
    answer = site.client.get(f"{USAGE}?{query}", headers=bearer)
    assert answer.status_code == 400
    assert answer.json is not None
    assert says in answer.json["message"]


def test_a_secret_that_is_sent_as_a_key_is_not_repeated(site: Office) -> None:
    bearer = {"Authorization": f"Bearer {site.admin}"}
    answer = site.client.get(f"{USAGE}?key={site.secret}", headers=bearer)
    assert answer.status_code == 400
    assert site.secret not in answer.text


def test_other_keys_get_403_and_keep_their_own_usage(filled: Office) -> None:
    answer = filled.get(USAGE)
    assert answer.status_code == 403
    assert answer.json is not None
    assert answer.json["code"] == "admin_required"
    assert filled.client.get(USAGE).status_code == 401
    own = filled.get("/api/v1/user/usage").json
    assert own is not None
    assert own["total_requests"] == 0


def test_calls_that_are_refused_with_409_and_503_are_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "FLUSH_S", 0.0)
    monkeypatch.setattr("ledger.ledger.LOOK_S", 0.02)
    line, secret = make_key("operator", admin=True)
    site = cast(Office, make_app(tmp_path, monkeypatch, keys=line, max_streams=1, queue=0))
    site.admin = secret
    active = Scripted(wait)
    play(monkeypatch, active)
    body = PROMPT | {"stream_id": "s-1"}
    thread = threading.Thread(target=site.post, args=(body,), daemon=True)
    thread.start()
    assert active.reached.wait(HANG_S)
    bearer = {"Authorization": f"Bearer {secret}"}
    assert site.post(body).status_code == 409
    for name in ("s-1", "s-2"):
        fields = PROMPT | {"stream_id": name}
        assert site.client.post(COMPLETIONS, json=fields, headers=bearer).status_code == 503

    def counted() -> list[tuple[str, str, int]]:
        rows = ask(site)["refused"]["data"]
        return [(row["key_name"], row["reason"], row["calls"]) for row in rows]

    wanted = [("operator", "unavailable:capacity", 2), ("test", "stream_exists", 1)]
    assert eventually(lambda: counted() == wanted)
    site.gateway.streams.end_all()
    thread.join(HANG_S)
