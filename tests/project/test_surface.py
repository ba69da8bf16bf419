"""Pins of the public surface: routes, error codes, variables, log fields and metrics.

Users depend on these names. A change of one must also change this file.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from flask import Flask

import config
import errors
from app import create_app
from config import Settings
from errors import SluiceError
from providers.hosts import BUILT_IN
from telemetry import logs
from tests.support.paths import ROOT
from tests.telemetry.test_metrics import families

ROUTES = {
    ("GET", "/"),
    ("GET", "/admin"),
    ("GET", "/api/v1/chat/completions/<stream_id>"),
    ("GET", "/api/v1/completions/<stream_id>"),
    ("GET", "/api/v1/completions/streams"),
    ("GET", "/api/v1/groups"),
    ("GET", "/api/v1/keys"),
    ("POST", "/api/v1/keys"),
    ("GET", "/api/v1/keys/<id_or_name>"),
    ("PATCH", "/api/v1/keys/<id_or_name>"),
    ("DELETE", "/api/v1/keys/<id_or_name>"),
    ("POST", "/api/v1/keys/<id_or_name>/rotate"),
    ("GET", "/api/v1/keys/log"),
    ("GET", "/api/v1/models"),
    ("GET", "/api/v1/models/<provider>"),
    ("GET", "/api/v1/models/<provider>/<path:model>"),
    ("GET", "/api/v1/models/<provider>/text_completions"),
    ("GET", "/api/v1/providers"),
    ("GET", "/api/v1/streams"),
    ("GET", "/api/v1/usage"),
    ("GET", "/api/v1/user/key"),
    ("GET", "/api/v1/user/requests"),
    ("GET", "/api/v1/user/usage"),
    ("GET", "/beta/completions/<stream_id>"),
    ("GET", "/completion/<stream_id>"),
    ("GET", "/completions/<stream_id>"),
    ("GET", "/docs"),
    ("GET", "/fim/completions/<stream_id>"),
    ("GET", "/health"),
    ("GET", "/infill/<stream_id>"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/ready"),
    ("GET", "/static/<path:name>"),
    ("GET", "/tokenizer_info"),
    ("GET", "/usage"),
    ("GET", "/v1/chat/completions/<stream_id>"),
    ("GET", "/v1/completions/<stream_id>"),
    ("GET", "/v1/fim/completions/<stream_id>"),
    ("GET", "/v1/infill/<stream_id>"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/<path:model>"),
    ("POST", "/api/v1/auth/api-key"),
    ("POST", "/api/v1/auth/token"),
    ("POST", "/api/v1/chat/completions"),
    ("POST", "/api/v1/chat/completions/stop-stream/<stream_id>"),
    ("POST", "/api/v1/completions"),
    ("POST", "/api/v1/completions/stop-stream/<stream_id>"),
    ("POST", "/api/v1/streams/<key_id>/<stream_id>/stop"),
    ("POST", "/beta/completions"),
    ("POST", "/completion"),
    ("POST", "/completions"),
    ("POST", "/detokenize"),
    ("POST", "/fim/completions"),
    ("POST", "/infill"),
    ("POST", "/tokenize"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/chat/completions/stop-stream/<stream_id>"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/completions/stop-stream/<stream_id>"),
    ("POST", "/v1/fim/completions"),
    ("POST", "/v1/infill"),
}

CODES = {
    "InvalidRequest": (400, "invalid_request"),
    "UnsupportedParameter": (400, "unsupported_parameter"),
    "Unauthorized": (401, "unauthorized"),
    "InsufficientCredits": (402, "insufficient_credits"),
    "ModelForbidden": (403, "model_forbidden"),
    "ByokRejected": (403, "byok_rejected"),
    "AdminRequired": (403, "admin_required"),
    "NotFound": (404, "not_found"),
    "ProviderNotFound": (404, "provider_not_found"),
    "ModelNotFound": (404, "model_not_found"),
    "StreamNotFound": (404, "stream_not_found"),
    "KeyNotFound": (404, "key_not_found"),
    "MethodNotAllowed": (405, "method_not_allowed"),
    "RequestTimeout": (408, "request_timeout"),
    "StreamExists": (409, "stream_exists"),
    "StreamInterrupted": (500, "interrupted"),
    "StreamTrimmed": (410, "stream_trimmed"),
    "KeyExists": (409, "key_exists"),
    "KeysReadOnly": (409, "keys_read_only"),
    "LastAdminKey": (409, "last_admin_key"),
    "KeyChanged": (412, "key_changed"),
    "RequestTooLarge": (413, "request_too_large"),
    "UnsupportedMediaType": (415, "unsupported_media_type"),
    "RateLimited": (429, "rate_limited"),
    "ClientGone": (499, "client_gone"),
    "SluiceError": (500, "internal_error"),
    "InternalError": (500, "internal_error"),
    "UpstreamError": (502, "provider_error"),
    "Unavailable": (503, "unavailable"),
    "UpstreamTimeout": (504, "provider_timeout"),
}

VARIABLES = {
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "DATABASE_URL",
    "PORT",
    "REDIS_URL",
    "SLUICE_BODIES_TOTAL",
    "SLUICE_CA_BUNDLE",
    "SLUICE_CLIENT_TIMEOUT_S",
    "SLUICE_CONFIG",
    "SLUICE_CONNECT_TIMEOUT_S",
    "SLUICE_CONTINUE",
    "SLUICE_COOLDOWN",
    "SLUICE_CORS_ORIGINS",
    "SLUICE_DATABASE",
    "SLUICE_DEFAULT_MODEL",
    "SLUICE_DISCONNECT",
    "SLUICE_DISCONNECT_S",
    "SLUICE_DISCONNECT_USD",
    "SLUICE_DISCOVERY_S",
    "SLUICE_DRAIN_S",
    "SLUICE_FIM_MODEL",
    "SLUICE_FIRST_EVENT_TIMEOUT_S",
    "SLUICE_FIRST_EVENT_WAIT_S",
    "SLUICE_HOST",
    "SLUICE_IDLE_TIMEOUT_S",
    "SLUICE_KEEPALIVE_S",
    "SLUICE_KEYS",
    "SLUICE_KEYS_FILE",
    "SLUICE_LEDGER_REQUIRED",
    "SLUICE_LIMITS_REQUIRED",
    "SLUICE_LOG_FORMAT",
    "SLUICE_LOG_LEVEL",
    "SLUICE_MAX_BODY",
    "SLUICE_MAX_CHAT_BODY",
    "SLUICE_MAX_STREAMS",
    "SLUICE_MAX_STREAMS_PER_KEY",
    "SLUICE_METRICS_KEYS",
    "SLUICE_METRICS_TOKEN",
    "SLUICE_ORPHAN_S",
    "SLUICE_PROXY",
    "SLUICE_PUBLIC_MODELS",
    "SLUICE_QUEUE",
    "SLUICE_QUEUE_S",
    "SLUICE_REDIS_VERIFY",
    "SLUICE_REPLAY_REDIS",
    "SLUICE_REPLAY_S",
    "SLUICE_REPLAY_TOTAL",
    "SLUICE_RESERVE_TOKENS",
    "SLUICE_RESUMABLE",
    "SLUICE_RETRIES",
    "SLUICE_STRICT",
    "SLUICE_TOKENIZE_MODEL",
    "SLUICE_TOTAL_TIMEOUT_S",
    "WEB_CONCURRENCY",
}

LOG_FIELDS = {
    "attempts",
    "code",
    "cost_usd",
    "duration_ms",
    "end_reason",
    "failures",
    "first_event_ms",
    "input_tokens",
    "key_id",
    "method",
    "model",
    "output_tokens",
    "path",
    "provider",
    "replica",
    "request_id",
    "status",
    "stream_id",
    "upstream_code",
    "upstream_status",
    "usage_source",
}

METRICS = {
    "sluice_attempts_total": ("provider",),
    "sluice_cooldown": (),
    "sluice_cost_dollars_total": (),
    "sluice_first_event_seconds": (),
    "sluice_key_cost_dollars_total": ("key", "group"),
    "sluice_key_refusals_total": ("key", "group", "reason"),
    "sluice_key_requests_total": ("key", "group", "status"),
    "sluice_key_tokens_total": ("key", "group", "direction"),
    "sluice_ledger_errors_total": (),
    "sluice_ledger_queue": (),
    "sluice_ledger_unrecorded_total": (),
    "sluice_overhead_seconds": (),
    "sluice_quota_rejections_total": ("limit",),
    "sluice_redis_up": (),
    "sluice_refusals_total": ("reason",),
    "sluice_replay_append_seconds_total": (),
    "sluice_replay_appends_total": (),
    "sluice_replay_copies": (),
    "sluice_replay_given_up_total": (),
    "sluice_replay_reads_total": (),
    "sluice_replay_redis_bytes": (),
    "sluice_replay_repeats_total": (),
    "sluice_replica_attempts_total": ("provider", "replica", "code"),
    "sluice_replica_calls": ("provider", "replica"),
    "sluice_request_duration_seconds": (),
    "sluice_requests_total": ("endpoint", "provider", "model", "status"),
    "sluice_retries_total": (),
    "sluice_stop_seconds": (),
    "sluice_streams_active": (),
    "sluice_streams_ended_total": ("reason",),
    "sluice_tokens_total": ("direction",),
    "sluice_upstream_errors_total": ("provider", "code"),
}


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    return create_app(Settings(keys_file=tmp_path / "keys.jsonl"))


def classes(root: type[SluiceError]) -> set[type[SluiceError]]:
    """Return a class and all its subclasses that errors.py defines."""
    below = (classes(kind) for kind in root.__subclasses__() if kind.__module__ == "errors")
    return {root}.union(*below)


def test_the_app_has_exactly_the_pinned_routes(app: Flask) -> None:
    found = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert found == ROUTES


def test_the_error_classes_have_exactly_the_pinned_codes() -> None:
    found = {kind.__name__: (kind.status, kind.code) for kind in classes(errors.SluiceError)}
    assert found == CODES


def test_the_environment_variables_are_exactly_the_pinned_names() -> None:
    assert {variable.name for variable in config.VARIABLES} == VARIABLES


def test_the_fields_of_a_log_line_are_exactly_the_pinned_fields() -> None:
    assert set(logs.FIELDS) == LOG_FIELDS
    assert len(logs.FIELDS) == len(LOG_FIELDS)


def test_the_metrics_are_exactly_the_pinned_names_and_labels() -> None:
    assert {name: labels for name, (_, labels) in families().items()} == METRICS


def test_the_configuration_reference_names_exactly_all_variables() -> None:
    text = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    documented = Counter(re.findall(r"^\| `([A-Z][A-Z0-9_]*)` \|", text, re.MULTILINE))
    keys = {row.api_key_env for row in BUILT_IN if row.api_key_env is not None}
    in_urls = {name for row in BUILT_IN for name in re.findall(r"\{([A-Z0-9_]+)\}", row.base_url)}
    assert set(documented) == VARIABLES | keys | in_urls
    assert set(documented.values()) == {1}
