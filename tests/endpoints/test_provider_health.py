"""Tests of endpoints/provider_health.py: the health of the providers, for admin keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from endpoints import provider_health
from errors import UpstreamError, UpstreamTimeout
from telemetry.provider_health import ErrorSeen, ProviderCounts
from tests.gateway.test_gateway import Scripted, play
from tests.test_app import PROMPT, hello, make_app, make_key

PROVIDERS = "/api/v1/providers"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    line, secret = make_key("operator", admin=True)
    found: Any = make_app(tmp_path, monkeypatch, keys=line)
    found.admin = {"Authorization": f"Bearer {secret}"}
    return found


def ask(site: Any) -> dict[str, Any]:
    answer = site.client.get(PROVIDERS, headers=site.admin)
    assert answer.status_code == 200, answer.data
    assert answer.json["window_s"] == 300
    assert answer.json["processes"] == {"answered": 1, "missing": 0}
    return {row["name"]: row for row in answer.json["data"]}


NONE = {"p50": None, "p90": None, "p99": None}


def test_a_provider_that_was_never_called_has_no_figures(site: Any) -> None:
    found = ask(site)
    assert found["sim"] == {
        "name": "sim",
        "enabled": True,
        "needs": [],
        "reachable": None,
        "reachable_at": None,
        "models": None,
        "breaker": {"state": "closed", "paused": [], "paused_total": 0},
        "calls": 0,
        "failures": 0,
        "error_rate": None,
        "latency_ms": NONE,
        "first_event_ms": NONE,
        "errors": [],
    }
    locked = found["locked"]
    assert (locked["enabled"], locked["needs"]) == (False, ["LOCKED_KEY"])


def test_calls_and_failures_are_counted_for_their_provider(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "sk-" + "a1B2" * 8
    failed = UpstreamError(f"no {secret}", upstream_status=503, upstream_message=secret)
    refused = UpstreamError("no", upstream_status=400)
    play(monkeypatch, hello(), Scripted(failed), Scripted(refused), hello())
    statuses = [site.post(PROMPT).status_code for _ in range(4)]
    assert (statuses[0], statuses[3]) == (200, 200)
    found = ask(site)["sim"]
    assert (found["calls"], found["failures"], found["error_rate"]) == (4, 1, 0.25)
    assert found["reachable"] is True
    assert {e["code"]: (e["calls"], e["model"]) for e in found["errors"]} == {
        "503": (1, "m"), "400": (1, "m"),
    }  # fmt: skip
    for times in (found["latency_ms"], found["first_event_ms"]):
        assert 0 < times["p50"] <= times["p90"] <= times["p99"]
    assert ask(site)["other"]["calls"] == 0
    assert secret not in str(found)


def test_a_provider_that_cannot_be_reached_is_shown_as_such_and_as_paused(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, *(Scripted(UpstreamTimeout("connect", 1)) for _ in range(5)))
    for _ in range(5):
        site.post(PROMPT)
    found = ask(site)["sim"]
    assert (found["reachable"], found["error_rate"]) == (False, 1.0)
    assert found["errors"][0]["code"] == "provider_timeout"
    breaker = found["breaker"]
    assert (breaker["state"], breaker["paused_total"]) == ("open", 1)
    [paused] = breaker["paused"]
    assert 0 < paused.pop("seconds") <= 10
    assert paused == {"model": "m", "key_number": 1, "replica": None, "state": "open"}


def test_a_call_with_the_callers_own_rejected_key_is_no_failure(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(UpstreamError("no", upstream_status=401)))
    assert site.post(PROMPT | {"byok_api_key": "theirs-1234"}).status_code == 403
    found = ask(site)["sim"]
    assert (found["calls"], found["failures"]) == (1, 0)


@pytest.mark.parametrize(
    ("listed", "answered", "unreached", "reached"),
    [
        (None, None, None, None),
        ((True, 5.0), None, None, True),
        ((False, 5.0), None, None, False),
        ((True, 1e9), None, 2e9, False),
        (None, 2.0, 1.0, True),
        (None, 1.0, 2.0, False),
    ],
)
def test_the_latest_news_say_whether_a_provider_is_reachable(
    listed: Any, answered: float | None, unreached: float | None, reached: bool | None
) -> None:
    counts = ProviderCounts(answered_at=answered, unreached_at=unreached)
    assert provider_health.reachable(listed, counts)[0] is reached


def test_errors_are_sorted_by_time() -> None:
    seen = {"429": ErrorSeen(2, 10.0, "m"), "503": ErrorSeen(0, 20.0, "n")}
    assert provider_health.errors(ProviderCounts(errors=seen)) == [
        {"code": "503", "calls": 0, "last_at": "1970-01-01T00:00:20Z", "model": "n"},
        {"code": "429", "calls": 2, "last_at": "1970-01-01T00:00:10Z", "model": "m"},
    ]


def test_other_keys_get_403(site: Any) -> None:
    assert site.get(PROVIDERS).status_code == 403
    assert site.client.get(PROVIDERS).status_code == 401
