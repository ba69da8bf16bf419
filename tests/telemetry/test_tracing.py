"""Tests of telemetry/tracing.py: the spans of a call, which hold neither texts nor keys."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk", reason="traces are optional: requirements-otel.txt")

from config import ConfigError, Settings
from errors import UpstreamError
from tests.gateway.test_gateway import Scripted, play
from tests.support.collector import Collector, Span
from tests.support.pace import HANG_S
from tests.support.paths import ROOT
from tests.test_app import PROMPT, Site, hello, make_app

PATH = "/api/v1/completions"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collector: Collector) -> Iterator[Site]:
    found = make_app(tmp_path, monkeypatch, otel_endpoint=collector.url)
    yield found
    found.app.extensions["sluice"].tracing.close()


def sent(site: Site, collector: Collector) -> tuple[Span, list[Span]]:
    """Return the call's span and its child spans, ordered by their start."""
    site.app.extensions["sluice"].tracing.close()
    [call] = [span for span in collector.spans if span.name.startswith("POST ")]
    below = [span for span in collector.spans if span is not call]
    assert all((s.parent, s.trace) == (call.id, call.trace) for s in below)
    return call, sorted(below, key=lambda span: span.start)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_attempt_are_sent_as_spans(
    site: Site, collector: Collector, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    play(monkeypatch, hello())
    before = time.time_ns()
    answer = site.post({**PROMPT, "stream": stream, "stream_id": "s-1"}, buffered=True)
    after = time.time_ns()
    call, [attempt] = sent(site, collector)
    assert (call.name, call.parent, call.failed, call.service) == (
        *(f"POST {PATH}", "", False),
        "sluice",
    )
    assert call.attributes["http.response.status_code"] == 200
    assert call.attributes["gen_ai.usage.input_tokens"] == 8
    assert call.attributes["sluice.request_id"] == answer.headers["X-Request-ID"]
    assert call.attributes["sluice.stream_id"] == "s-1"
    assert call.attributes["sluice.streamed"] is stream
    assert call.attributes["sluice.end_reason"] == "completed"
    assert attempt.name == "text_completion m"
    assert attempt.attributes["gen_ai.provider.name"] == "sim"
    assert [name for name, _ in call.events + attempt.events] == ["first_event"] * 2
    slack = 50_000_000  # the test and Sluice read different clocks
    assert before - slack <= call.start <= attempt.start <= attempt.end <= call.end <= after + slack
    assert call.start <= call.events[0][1] <= call.end


def test_every_attempt_has_a_span_and_a_failed_attempt_has_its_error(
    site: Site, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(UpstreamError("No.", upstream_status=500)), hello())
    site.post({**PROMPT, "fallbacks": ["sim/other"]})
    call, [first, second] = sent(site, collector)
    assert not call.failed
    assert (first.failed, second.failed) == (True, False)
    assert first.attributes["http.response.status_code"] == 500
    assert first.attributes["error.type"] == "provider_error"
    assert second.attributes["gen_ai.request.model"] == "other"


def test_the_span_of_a_failed_call_has_its_error_and_status(
    site: Site, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(UpstreamError("No.", upstream_status=500)))
    assert site.post(PROMPT).status_code == 502
    call, _ = sent(site, collector)
    assert call.failed
    assert call.attributes["error.type"] == "provider_error"
    assert call.attributes["http.response.status_code"] == 502


def test_a_call_continues_the_trace_of_its_caller(
    site: Site, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, hello())
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    site.post(PROMPT, headers={"traceparent": f"00-{trace}-{parent}-01"})
    call, _ = sent(site, collector)
    assert (call.trace, call.parent) == (trace, parent)


@pytest.mark.parametrize("odd", ["", "nonsense", "00-0-0-01", "ff-" + "a" * 500])
def test_an_invalid_traceparent_header_is_ignored(
    site: Site, collector: Collector, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    play(monkeypatch, hello())
    assert site.post(PROMPT, headers={"traceparent": odd}).status_code == 200
    call, _ = sent(site, collector)
    assert call.parent == ""


def test_no_text_or_key_is_sent_to_the_collector(
    site: Site, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Scripted(UpstreamError("Told-in-prose.", upstream_message="Quoted-prose"))
    play(monkeypatch, failed, hello(), hello())
    body = {**PROMPT, "prompt": "Secret-words", "fallbacks": ["sim/other"]}
    others = {"user": "Some-body", "odd": "Parameter-value"}
    assert site.post({**body, "additional_params": others}).status_code == 200
    assert site.post({**body, "byok_api_key": "sk-caller-0123456789"}).status_code == 200
    site.app.extensions["sluice"].tracing.close()
    assert len(collector.spans) > 2
    for text in ("Secret-words", "Hello", "Some-body", "Parameter-value", "prose", "sk-caller"):
        assert text.encode() not in collector.raw
    assert site.secret.encode() not in collector.raw


def test_an_unreachable_collector_does_not_fail_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # seconds in which it retries
    site = make_app(tmp_path, monkeypatch, otel_endpoint="http://127.0.0.1:9")
    play(monkeypatch, hello())
    assert site.post(PROMPT).status_code == 200
    site.app.extensions["sluice"].tracing.close()


def test_tracing_without_its_packages_stops_the_start_with_a_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "telemetry.tracing", None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements-otel\.txt"):
        make_app(tmp_path, monkeypatch, otel_endpoint="http://127.0.0.1:4318")


def test_no_opentelemetry_module_is_loaded_when_tracing_is_off() -> None:
    code = (
        "import sys; from app import create_app; from config import Settings; "
        "create_app(Settings()); "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=HANG_S)


def test_the_otlp_endpoint_variable_sets_the_tracing_endpoint() -> None:
    endpoint = "http://127.0.0.1:4318"
    assert Settings.from_env({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}).otel_endpoint == endpoint
    assert Settings.from_env({}).otel_endpoint == ""
