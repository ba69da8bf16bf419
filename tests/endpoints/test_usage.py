"""Tests of endpoints/usage.py: the usage of the caller's key, and of no other key."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from errors import Unavailable, UpstreamError
from ledger import refusals
from ledger.database import database_url
from tests.gateway.test_gateway import Scripted, eventually, play
from tests.support.rows import connected, entry, settle, settled_row
from tests.test_app import PROMPT, Site, hello, make_app, make_key

COMPLETIONS = "/api/v1/completions"
USAGE, REQUESTS = "/api/v1/user/usage", "/api/v1/user/requests"
OTHER = "/v1/completions"
EMPTY: dict[str, Any] = {
    "total_requests": 0,
    "total_cost": 0.0,
    "remaining_credits": None,
    "total_tokens": {"input": 0, "output": 0, "total": 0},
    "endpoints": {},
    "providers": {},
    "models": {},
    "daily_usage": [],
    "refused": {},
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


def key_id(site: Site) -> str:
    found: str = site.app.extensions["sluice"].keys.find(site.secret).id
    return found


def fill(site: Site, *rows: tuple[Any, ...], **fields: Any) -> None:
    """Add settled rows of the site's key to the ledger."""
    with connected(database_url(None, site.app.extensions["sluice"].settings.database)) as found:
        for row in rows:
            settled_row(found, *row, **{"key_id": key_id(site), **fields})


@pytest.fixture
def filled(site: Site) -> Site:
    fill(site, ("2026-01-30T12:00:00", (1, 2), 1_000), ("2026-01-31T12:00:00", (10, 20), 2_000))
    fill(site, ("2026-01-31T23:59:59", (100, 200), None), model="n/o", endpoint=OTHER)
    fill(site, ("2026-01-31T12:00:00", (1000, 2000), 9_000), key_id="key_of_others")
    return site


def ok(site: Site, path: str, **headers: str) -> Any:
    answer = site.get(path, **headers)
    assert answer.status_code == 200, answer.data
    return answer.json


def refused(site: Site, path: str) -> str:
    """Check that a GET is refused with 400, and return the error's message."""
    answer = site.get(path)
    assert (answer.status_code, answer.mimetype) == (400, "application/json"), answer.data
    assert answer.json is not None
    assert answer.json["code"] == "invalid_request"
    message: str = answer.json["message"]
    return message


# Sums


@pytest.mark.parametrize("slash", ["", "/"])
def test_usage_of_a_new_key_is_all_zero(site: Site, slash: str) -> None:
    found = ok(site, USAGE + slash)
    assert found == EMPTY
    assert list(found) == list(EMPTY)


def sums(requests: int, cost: float, tokens: tuple[int, int], **more: int) -> dict[str, Any]:
    counts = {"input": tokens[0], "output": tokens[1], "total": sum(tokens)}
    return {"requests": requests, "cost": cost, "tokens": counts} | more


def test_usage_sums_only_the_requests_of_the_caller(filled: Site) -> None:
    assert ok(filled, USAGE) == {
        "total_requests": 3,
        "total_cost": 3e-06,
        "remaining_credits": None,
        "total_tokens": {"input": 111, "output": 222, "total": 333},
        "unpriced_requests": 1,
        "endpoints": {
            "/api/v1/completions": sums(2, 3e-06, (11, 22)),
            OTHER: sums(1, 0, (100, 200), unpriced_requests=1),
        },
        "providers": {"sim": sums(3, 3e-06, (111, 222), unpriced_requests=1)},
        "models": {
            "sim/m": sums(2, 3e-06, (11, 22)),
            "sim/n/o": sums(1, 0, (100, 200), unpriced_requests=1),
        },
        "daily_usage": [
            {"date": "2026-01-30"} | sums(1, 1e-06, (1, 2)),
            {"date": "2026-01-31"} | sums(2, 2e-06, (110, 220), unpriced_requests=1),
        ],
        "refused": {},
    }


@pytest.mark.parametrize(
    ("query", "requests"),
    [
        ("start_date=2026-01-31", 2),
        ("end_date=2026-01-30", 1),
        ("end_date=2026-01-31", 3),
        ("start_date=2026-01-31&end_date=2026-01-31", 2),
        ("start_date=2026-01-30&end_date=2026-01-31", 3),
        ("start_date=2026-02-01", 0),
        ("start_date=&end_date=", 3),
        ("start_date=2026-01-31T23:59:59.999Z&end_date=2026-01-31T00:00:00Z", 2),
        ("start_date=2026-01-31T01:00:00%2B02:00", 3),
        ("end_date=2026-01-30T23:00:00-02:00", 3),
        ("end_date=2026-01-30T23:59:59", 1),
    ],
)
def test_a_date_range_covers_whole_utc_days_and_includes_both_ends(
    filled: Site, query: str, requests: int
) -> None:
    assert ok(filled, f"{USAGE}?{query}")["total_requests"] == requests


@pytest.mark.parametrize("name", ["start_date", "end_date"])
@pytest.mark.parametrize(
    "text", ["tomorrow", "2026-02-30", "2026-13-01", "1e9", "0001-01-01T00:00:00%2B14:00", "%00"]
)
def test_an_invalid_date_is_refused_with_400(site: Site, name: str, text: str) -> None:
    message = refused(site, f"{USAGE}?{name}={text}")
    assert message.startswith(f"{name}: got ")
    assert "2026-01-31" in message


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (f"{USAGE}?start_date=2026-02-01&end_date=2026-01-31", "start_date is after end_date"),
        (
            f"{USAGE}?x=1",
            "Unknown parameter: x. Known parameters: start_date, end_date, group_by, format.",
        ),
        (f"{USAGE}?strat_date=1", "Unknown parameter: strat_date. Did you mean start_date?"),
        (f"{USAGE}?model=m", "Unknown parameter: model."),
        (f"{USAGE}?start_date=2026-01-01&start_date=2026-01-02", "start_date appears 2 times"),
        (f"{USAGE}?group_by=key", "expected day, model, provider or endpoint"),
        (f"{USAGE}?format=xml", "format: got 'xml'; expected json or csv"),
        (f"{USAGE}?{'x' * 500}=1", "..."),
        (f"{USAGE}?group_by={'x' * 500}", "..."),
        (f"{REQUESTS}?limits=1", "Did you mean limit?"),
        (f"{REQUESTS}?limit=0", "limit: got '0'; expected an integer from 1 to 100"),
        (f"{REQUESTS}?limit=101", "expected an integer from 1 to 100"),
        (f"{REQUESTS}?limit=1.5", "expected"),
        (f"{REQUESTS}?limit=%D9%A3", "expected"),
        (
            f"{REQUESTS}?cursor=1",
            "cursor: got '1'; expected the next_cursor of a previous response",
        ),
        (f"{REQUESTS}?cursor=%C3%A9%C3%A9", "expected the next_cursor"),
        (f"{REQUESTS}?cursor=//8=", "expected the next_cursor"),
        (f"{REQUESTS}?cursor={base64.b64encode(b'0' * 29).decode()}", "expected the next_cursor"),
    ],
)
def test_an_invalid_query_parameter_is_refused_with_a_short_message(
    site: Site, path: str, says: str
) -> None:
    message = refused(site, path)
    assert says in message
    assert len(message) < 300


@pytest.mark.parametrize("path", [USAGE, REQUESTS])
def test_usage_endpoints_need_a_key_and_refuse_post(site: Site, path: str) -> None:
    assert site.client.get(path).status_code == 401
    assert site.post({}, path).status_code == 405


# Refused calls


def test_refused_calls_are_counted_by_reason_for_their_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "FLUSH_S", 0.0)
    rows: dict[str, dict[str, Any]] = {
        "limited": {"requests_per_minute": 0},
        "poor": {"budget_usd": 0.0},
        "narrow": {"models": ["other/*"]},
    }
    made = {name: make_key(name, **fields) for name, fields in rows.items()}
    site = make_app(tmp_path, monkeypatch, keys="".join(line for line, _ in made.values()))
    reasons = {
        "limited": ("rate_limited:requests", 429),
        "poor": ("insufficient_credits:budget", 402),
        "narrow": ("model_forbidden", 403),
    }
    for name, (_, secret) in made.items():
        reason, status = reasons[name]
        headers = {"Authorization": f"Bearer {secret}"}
        for path in (COMPLETIONS, OTHER, COMPLETIONS):
            answer = site.client.post(path, json=PROMPT, headers=headers)
            assert answer.status_code == status
        assert eventually(partial(lambda h, r: refused_of(site, h) == {r: 3}, headers, reason))
    text = site.client.get("/metrics").text
    for reason, _ in reasons.values():
        assert f'sluice_refusals_total{{reason="{reason}"}} 3.0' in text
    assert ok(site, USAGE)["refused"] == {}


def refused_of(site: Site, headers: dict[str, str]) -> dict[str, int]:
    answer = site.client.get(USAGE, headers=headers)
    assert answer.json is not None
    found: dict[str, int] = answer.json["refused"]
    return found


def test_the_providers_refusals_and_invalid_requests_are_not_counted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[tuple[str, str]] = []
    ledger = site.app.extensions["sluice"].ledger
    monkeypatch.setattr(ledger, "refused", lambda *call: counted.append(call))
    limited = UpstreamError("No.", upstream_status=429, retry_after=60)
    play(monkeypatch, Scripted(limited))
    assert site.post(PROMPT).status_code == 429
    assert site.post({"prompt": ""}).status_code == 400
    assert site.client.post(COMPLETIONS, json=PROMPT).status_code == 401
    assert counted == []


def test_a_call_is_counted_once_it_has_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, hello())
    assert site.post(PROMPT).status_code == 200
    today = datetime.now(UTC).date().isoformat()
    found = ok(site, f"{USAGE}?start_date={today}")
    assert (found["total_requests"], found["total_cost"]) == (1, 1e-05)
    assert found["total_tokens"] == {"input": 8, "output": 1, "total": 9}
    assert [day["date"] for day in found["daily_usage"]] == [today]
    (row,) = ok(site, REQUESTS)["data"]
    assert (row["endpoint"], row["model"], row["end_reason"]) == (
        "/api/v1/completions",
        "m",
        "completed",
    )


# The budget


def credits_left(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *rows: tuple[Any, ...], **fields: Any
) -> float | None:
    line, secret = make_key("spender", **fields)
    site = make_app(directory, monkeypatch, keys=line)
    site.secret = secret
    fill(site, *rows)
    found: float | None = ok(site, USAGE + "?start_date=2000-01-01&end_date=2000-01-01")[
        "remaining_credits"
    ]
    return found


OLD = ("2026-01-31T12:00:00", (1, 1), 300_000_000)


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"budget_usd": 1}, 0.7),
        ({"budget_usd": 0.3}, 0.0),
        ({"budget_usd": 0.1}, 0.0),
        ({"budget_usd": 0}, 0.0),
        ({"budget_usd": 1, "budget_period": "total"}, 0.7),
        ({"budget_usd": 1, "budget_period": "month"}, 1.0),
        ({"budget_usd": 1, "budget_period": "day"}, 1.0),
        ({"budget_usd": None}, None),
    ],
)
def test_remaining_credits_are_what_is_left_of_the_budget_in_its_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], left: float | None
) -> None:
    assert credits_left(tmp_path, monkeypatch, OLD, **fields) == left


# Groups and tables


def test_group_by_model_lists_the_most_expensive_first_and_a_total(filled: Site) -> None:
    assert ok(filled, f"{USAGE}?group_by=model") == {
        "group_by": "model",
        "data": [
            {"name": "sim/m"} | sums(2, 3e-06, (11, 22)),
            {"name": "sim/n/o"} | sums(1, 0, (100, 200), unpriced_requests=1),
        ],
        "total": sums(3, 3e-06, (111, 222), unpriced_requests=1),
    }


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("day", ["2026-01-30", "2026-01-31"]),
        ("provider", ["sim"]),
        ("endpoint", ["/api/v1/completions", OTHER]),
    ],
)
def test_group_by_day_provider_or_endpoint_lists_the_names_and_a_total(
    filled: Site, by: str, names: list[str]
) -> None:
    found = ok(filled, f"{USAGE}?group_by={by}&format=json")
    assert [row["name"] for row in found["data"]] == names
    range_ = f"{USAGE}?group_by={by}&start_date=2026-01-31"
    assert ok(filled, range_)["total"]["requests"] == 2


TABLE = (
    "day,requests,cost_usd,input_tokens,output_tokens,total_tokens,unpriced_requests\r\n"
    '"2026-01-30",1,0.000001000,1,2,3,0\r\n'
    '"2026-01-31",2,0.000002000,110,220,330,1\r\n'
)


def is_table(answer: TestResponse, by: str) -> bool:
    assert answer.status_code == 200
    kind, attachment = answer.headers["Content-Type"], answer.headers.get("Content-Disposition")
    assert (kind == "text/csv; charset=utf-8") == (attachment is not None)
    assert "Accept" in answer.vary
    return attachment == f'attachment; filename="usage-by-{by}.csv"'


@pytest.mark.parametrize(
    ("query", "accept", "by"),
    [
        ("", "text/csv", "day"),
        ("", "text/csv, */*;q=0.1", "day"),
        ("", "application/json;q=0.5, text/csv", "day"),
        ("?format=csv", "application/json", "day"),
        ("?format=csv&group_by=day", "*/*", "day"),
        ("?group_by=model", "text/csv", "model"),
        ("", "*/*", None),
        ("", "text/html, */*;q=0.1", None),
        ("", "application/json", None),
        ("", "image/png", None),
        ("?format=json", "text/csv", None),
        ("?format=json&group_by=model", "text/csv", None),
    ],
)
def test_usage_is_csv_only_if_format_or_the_accept_header_asks_for_csv(
    filled: Site, query: str, accept: str, by: str | None
) -> None:
    answer = filled.get(USAGE + query, Accept=accept)
    assert is_table(answer, by or "") == (by is not None)
    if by == "day":
        assert answer.get_data(as_text=True) == TABLE
    assert answer.is_json == (by is None)


def test_a_csv_cell_of_the_usage_is_never_a_formula(site: Site) -> None:
    fill(site, ("2026-01-30T12:00:00",), endpoint='=HYPERLINK("x")')
    text = site.get(f"{USAGE}?group_by=endpoint&format=csv").get_data(as_text=True)
    assert text.splitlines()[1].startswith('"\'=HYPERLINK(""x"")",1,')


def test_a_csv_without_rows_is_its_header_line(site: Site) -> None:
    assert len(site.get(f"{USAGE}?format=csv").data.splitlines()) == 1


# The request list


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_request_list_of_a_new_key_is_empty(site: Site, slash: str) -> None:
    assert ok(site, REQUESTS + slash) == {"data": [], "next_cursor": None}


def test_a_listed_request_shows_all_fields_of_its_ledger_row(site: Site) -> None:
    ledger = site.app.extensions["sluice"].ledger
    made = entry("2026-01-30T12:00:00.25", key_id=key_id(site), streamed=True)
    ledger.open(made)
    opened = {
        "id": made.id,
        "request_id": "r-1",
        "stream_id": "s-1",
        "started_at": "2026-01-30T12:00:00.250Z",
        "ended_at": None,
        "endpoint": "/api/v1/completions",
        "provider": "sim",
        "model": "m",
        "stream": True,
        "byok": False,
        "status": None,
        "end_reason": None,
        "error_code": None,
        "tokens": {"input": 5, "output": 0, "total": 5},
        "usage_source": "estimate",
        "cost": 5e-08,
        "attempts": 0,
        "duration_ms": None,
        "latency_ms": None,
        "first_event_ms": None,
    }
    (row,) = ok(site, REQUESTS)["data"]
    assert row == opened
    assert list(row) == list(opened)
    usage = {"status": 502, "end_reason": "provider_error", "error_code": "provider_error"}
    ledger.write(lambda connection: settle(connection, made, cost_nano=None, **usage))
    assert ok(site, REQUESTS)["data"] == [
        opened
        | usage
        | {
            "ended_at": "2026-01-30T12:00:00.750Z",
            "tokens": {"input": 8, "output": 2, "total": 10},
            "usage_source": "provider",
            "cost": None,
            "attempts": 1,
            "duration_ms": 500.0,
            "latency_ms": 450.0,
            "first_event_ms": 100.0,
        }
    ]


def test_the_request_list_pages_only_requests_of_the_caller_newest_first(site: Site) -> None:
    fill(site, *((f"2026-01-{day:02}T12:00:00",) for day in range(1, 26)))
    fill(site, ("2026-01-31T12:00:00",), key_id="key_of_others")
    seen, path = [], REQUESTS
    pages = []
    while path:
        page = ok(site, path)
        pages.append(len(page["data"]))
        seen += [row["started_at"] for row in page["data"]]
        path = page["next_cursor"] and f"{REQUESTS}?cursor={page['next_cursor']}"
    assert pages == [20, 5]
    assert seen == [f"2026-01-{day:02}T12:00:00.000Z" for day in range(25, 0, -1)]
    assert ok(site, f"{REQUESTS}?limit=25")["next_cursor"] is None
    assert ok(site, f"{REQUESTS}?limit=24")["next_cursor"] is not None


def test_usage_endpoints_answer_503_while_the_ledger_is_unavailable(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise Unavailable("The ledger can't be read now. Try again.")

    monkeypatch.setattr(site.app.extensions["sluice"].ledger, "read", away)
    for path in (USAGE, f"{USAGE}?format=csv", REQUESTS):
        answer = site.get(path)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
