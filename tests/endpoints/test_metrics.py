"""Tests of endpoints/metrics.py: access, formats, and which requests are counted."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from werkzeug.test import TestResponse

from completion import Delta, Started
from errors import UpstreamError
from telemetry.metrics import OTHER, REASONS
from tests.gateway.test_gateway import Scripted, eventually, play, wait
from tests.support.path_variants import variants_of
from tests.test_app import PROMPT, Site, hello, make_app, make_key

TOKEN = "a-token-for-the-scraper"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch, metrics_token=TOKEN)


def scrape(site: Site, **headers: str) -> TestResponse:
    return site.client.get("/metrics", headers=headers)


def requests(site: Site) -> list[tuple[str, str, str, str, float]]:
    """Return endpoint, provider, model, status and count of each sluice_requests_total series."""
    names = ("endpoint", "provider", "model", "status")
    return [
        (*(sample.labels[name] for name in names), sample.value)
        for metric in site.app.extensions["sluice"].metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "sluice_requests_total"
    ]


def value(site: Site, name: str, **labels: str) -> Any:
    return site.app.extensions["sluice"].metrics.registry.get_sample_value(name, labels)


# Access


def test_metrics_need_no_key_when_no_token_is_set(site: Site) -> None:
    answer = scrape(site)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert b"\nsluice_streams_active 0.0\n" in answer.data


def test_accept_header_selects_the_openmetrics_format(site: Site) -> None:
    answer = scrape(site, Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.data.endswith(b"# EOF\n")


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer  "])
def test_metrics_token_as_bearer_grants_access_to_metrics(closed: Site, scheme: str) -> None:
    assert scrape(closed, Authorization=scheme + TOKEN).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer \u00e9\u00ff"},
        {"X-API-Key": TOKEN},
    ],
)
def test_metrics_answer_401_without_the_right_bearer_token(
    closed: Site, headers: dict[str, str]
) -> None:
    answer = scrape(closed, **headers)
    assert answer.status_code == 401
    assert answer.json is not None
    assert answer.json["code"] == "unauthorized"
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert b"sluice_" not in answer.data


def test_api_key_does_not_grant_access_to_metrics(closed: Site) -> None:
    assert closed.get("/metrics").status_code == 401


def test_the_metrics_token_appears_in_no_log_or_response(
    closed: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        answers = [
            scrape(closed, Authorization=f"Bearer {TOKEN}", **{"X-Request-ID": TOKEN}),
            scrape(closed, Authorization=f"Basic {TOKEN}"),
            closed.client.get("/metrics", query_string={"token": TOKEN}),
        ]
    assert TOKEN not in "".join(str(record.__dict__) for record in caplog.records)
    assert TOKEN not in "".join(str(answer.headers) + answer.text for answer in answers)
    assert TOKEN not in repr(closed.app.extensions["sluice"].settings)


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
def test_metrics_answers_carry_no_cors_headers(site: Site, path: str) -> None:
    """Metrics may be open within a network; a page from outside must not read them there."""
    for method in ("GET", "OPTIONS"):
        headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
        answer = site.client.open(path, method=method, headers=headers)
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize("path", [path for path in variants_of("/metrics") if path[0] == "/"])
def test_no_spelling_of_the_path_shows_metrics_to_other_origins(site: Site, path: str) -> None:
    plain = unquote(path.partition("?")[0].partition("#")[0], "latin-1")
    headers = {"Origin": "https://app.example"}
    answer = site.client.get("/", headers=headers, environ_overrides={"PATH_INFO": plain})
    shared = [name for name, _ in answer.headers if name.startswith("Access-Control")]
    hidden = b"sluice_streams_active" not in answer.data and answer.status_code != 308
    assert hidden or shared == []


# Counts


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_counts_once_when_it_has_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    play(monkeypatch, hello())
    site.post({**PROMPT, "stream": stream}).get_data()
    assert requests(site) == [("/api/v1/completions", "sim", "m", "200", 1)]
    assert value(site, "sluice_streams_ended_total", reason="completed") == 1
    assert value(site, "sluice_tokens_total", direction="input") == 8
    assert value(site, "sluice_tokens_total", direction="output") == 1
    assert value(site, "sluice_cost_dollars_total") == 1e-05
    assert value(site, "sluice_streams_active") == 0


def test_openai_call_counts_under_its_path_without_a_trailing_slash(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, hello())
    site.post(PROMPT, "/v1/completions/")
    assert requests(site) == [("/v1/completions", "sim", "m", "200", 1)]


def test_running_call_counts_as_active_stream_and_closed_call_as_request(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted([Started("m"), Delta(0, "Hello")], wait))
    answer = site.post({**PROMPT, "stream": True}, buffered=False)
    chunks = iter(answer.response)
    next(chunks)
    assert value(site, "sluice_streams_active") == 1
    assert requests(site) == []
    answer.close()
    assert value(site, "sluice_streams_active") == 0
    assert requests(site) == [("/api/v1/completions", "sim", "m", "499", 1)]
    assert value(site, "sluice_streams_ended_total", reason="client_gone") == 1


def test_unknown_model_of_a_provider_counts_under_the_label_other(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, *(Scripted(UpstreamError("No.", upstream_status=404)) for _ in range(3)))
    for number in range(3):
        answer = site.post({"prompt": "Hi", "model": f"sim/made-up-{number}"})
        assert answer.status_code == 404
    assert requests(site) == [("/api/v1/completions", "sim", OTHER, "404", 3)]


def test_priced_model_counts_under_its_own_label_even_when_its_call_fails(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(UpstreamError("It broke.", upstream_status=500)))
    site.post(PROMPT)
    assert requests(site) == [("/api/v1/completions", "sim", "m", "502", 1)]


def test_request_that_starts_no_call_counts_under_its_route(site: Site) -> None:
    site.post({"prompt": ""})
    site.post({"prompt": "Hi", "model": "nowhere/m"})
    site.get("/api/v1/models/sim")
    site.get("/api/v1/models/none")
    site.client.get("/v1/models")
    for path in ("/nothing", "/nor/this"):
        site.get(path)
    site.client.delete("/v1/completions")
    assert requests(site) == [
        ("/api/v1/completions", "", "", "400", 1),
        ("/api/v1/completions", "", "", "404", 1),
        ("/api/v1/models/<provider>", "", "", "200", 1),
        ("/api/v1/models/<provider>", "", "", "404", 1),
        ("/v1/models", "", "", "401", 1),
        (OTHER, "", "", "404", 2),
        (OTHER, "", "", "405", 1),
    ]
    assert [value(site, "sluice_streams_ended_total", reason=r) for r in REASONS] == [0] * 6


def test_health_checks_scrapes_and_preflights_are_not_counted(site: Site) -> None:
    for path in ("/health", "/ready", "/ready/", "/metrics"):
        site.client.get(path)
    site.client.options(
        "/v1/completions",
        headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"},
    )
    assert requests(site) == []


def test_quota_rejection_counts_under_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, secret = make_key("slow", requests_per_minute=1)
    site = make_app(tmp_path, monkeypatch, keys=line)
    play(monkeypatch, hello())
    headers = {"Authorization": f"Bearer {secret}"}
    assert [site.post(PROMPT, headers=headers).status_code for _ in range(2)] == [200, 429]
    assert value(site, "sluice_quota_rejections_total", limit="requests") == 1
    assert ("/api/v1/completions", "", "", "429", 1) in requests(site)


def test_upstream_errors_retries_and_durations_of_a_call_are_measured(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow() -> None:
        time.sleep(0.05)

    failed = Scripted(slow, UpstreamError("No.", upstream_status=500))
    play(monkeypatch, failed, hello())
    assert site.post({**PROMPT, "fallbacks": ["sim/other"]}).status_code == 200
    assert value(site, "sluice_upstream_errors_total", provider="sim", code="500") == 1
    assert value(site, "sluice_retries_total") == 1
    for name in ("request_duration", "first_event", "overhead"):
        assert value(site, f"sluice_{name}_seconds_count") == 1
    whole = value(site, "sluice_request_duration_seconds_sum") or 0
    assert whole > 0.05
    assert 0 < (value(site, "sluice_overhead_seconds_sum") or 0) <= whole - 0.05
    assert value(site, "sluice_stop_seconds_count") == 0


def test_the_duration_of_a_stop_is_measured(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Scripted([Started("m"), Delta(0, "Hello")], wait))
    sent = {**PROMPT, "stream": True, "stream_id": "s-1"}
    answer = site.post(sent, buffered=False)
    chunks = iter(answer.response)
    next(chunks)
    assert site.post({}, "/api/v1/completions/stop-stream/s-1").status_code == 200
    for _ in chunks:
        pass
    answer.close()
    assert value(site, "sluice_stop_seconds_count") == 1
    assert 0 <= (value(site, "sluice_stop_seconds_sum") or 0) < 10


def test_failed_over_attempt_counts_under_the_provider_that_failed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the request count too: a request counts under the provider that served it."""
    play(monkeypatch, Scripted(UpstreamError("No.", upstream_status=503)), hello())
    site.post({**PROMPT, "model": "ollama/any", "fallbacks": ["sim/m"]})
    assert [provider for _, provider, *_ in requests(site)] == ["sim"]
    assert value(site, "sluice_attempts_total", provider="ollama") == 1
    assert value(site, "sluice_upstream_errors_total", provider="ollama", code="503") == 1
    assert value(site, "sluice_attempts_total", provider="sim") == 1


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("own", [True, False])
def test_upstream_errors_count_a_rejected_caller_key_as_byok_rejected(
    site: Site, monkeypatch: pytest.MonkeyPatch, status: int, own: bool
) -> None:
    play(monkeypatch, Scripted(UpstreamError("No.", upstream_status=status)))
    site.post({**PROMPT, **({"byok_api_key": "sk-of-the-caller"} if own else {})})
    code = "byok_rejected" if own else str(status)
    assert value(site, "sluice_upstream_errors_total", provider="sim", code=code) == 1


def test_keys_have_metrics_only_if_the_operator_enables_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, enabled in enumerate((False, True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        site = make_app(folder, monkeypatch, metrics_keys=enabled)
        play(monkeypatch, hello())
        assert site.post(PROMPT).status_code == 200
        labels = {"key": "test", "group": ""}
        wanted = (1, 8, 1) if enabled else (None, None, None)
        assert wanted == (
            value(site, "sluice_key_requests_total", **labels, status="200"),
            value(site, "sluice_key_tokens_total", **labels, direction="input"),
            value(site, "sluice_key_tokens_total", **labels, direction="output"),
        )
        assert site.secret not in scrape(site).text


def test_a_refused_call_counts_for_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_app(tmp_path, monkeypatch, metrics_keys=True)
    line, secret = make_key("ada", models=("sim/other",))
    site.app.extensions["sluice"].keys.path.write_text(line)
    bearer = {"Authorization": f"Bearer {secret}"}
    assert eventually(lambda: site.client.get("/api/v1/models", headers=bearer).status_code == 200)
    assert site.client.post("/api/v1/completions", json=PROMPT, headers=bearer).status_code == 403
    labels = {"key": "ada", "group": "", "reason": "model_forbidden"}
    assert value(site, "sluice_key_refusals_total", **labels) == 1
