"""Tests of app.py and wsgi.py: wiring, common response headers, error handlers, the access log.

The tests of the endpoints use `make_app` too.
"""

from __future__ import annotations

import json
import logging
import re
import runpy
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import flask
import pytest
from flask import Flask, abort
from flask.testing import FlaskClient
from werkzeug.exceptions import BadGateway, ImATeapot
from werkzeug.test import TestResponse

from app import create_app
from completion import Delta, Finished, Started, Usage, Used
from config import Settings
from config import origins as parse_origins
from endpoints.hooks import EXPOSED, access
from errors import UpstreamError
from gateway.gateway import Gateway
from keys.key import new_row
from telemetry import logs
from tests.gateway.test_gateway import ROWS, Scripted, play
from tests.support.paths import ROOT

UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
PRICES = {"sim/m": {"input_per_mtok": 1, "output_per_mtok": 2}}


def make_key(name: str = "test", **fields: Any) -> tuple[str, str]:
    """Return a key's line for the key file, and the key's text."""
    models, expires = fields.pop("models", ("*",)), fields.pop("expires", None)
    row, secret = new_row(name, {"models": models, "expires": expires})
    return json.dumps(row | fields) + "\n", secret


class Site:
    """An app in the test's process, with a key, a test client and a temporary ledger."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        line, self.secret = make_key()
        fields = {
            "keys_file": directory / "keys.jsonl",
            "database": directory / "sluice.db",
            "keys": line,
            "providers": {**ROWS, "locked": {**ROWS["sim"], "api_key_env": "LOCKED_KEY"}},
            "prices": PRICES,
            "retries": 0,
            "discovery": 0,
            **settings,
        }
        if fields["keys"] != line:
            fields["keys"] = line + fields["keys"]
        self.app = create_app(Settings(**fields))
        self.client: FlaskClient = self.app.test_client()

    @property
    def gateway(self) -> Gateway:
        found: Gateway = self.app.extensions["sluice"].gateway
        return found

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.client.get(path, headers=self.bearer | headers)

    def post(
        self, body: Any = None, path: str = "/api/v1/completions", **options: Any
    ) -> TestResponse:
        headers = self.bearer | options.pop("headers", {})
        return self.client.post(path, json=body, headers=headers, **options)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


def make_app(directory: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Site:
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    return Site(directory, **settings)


def hello() -> Scripted:
    return Scripted([Started("m-up", 8), Delta(0, "Hello"), Finished(0, "stop"), Used(Usage(8, 1))])


PROMPT = {"prompt": "Hi", "model": "sim/m"}

# Request ids


@pytest.mark.parametrize("sent", ["r-1", "a" * 128, "A.b_c:d-9"])
def test_a_valid_request_id_header_is_kept(site: Site, sent: str) -> None:
    for path in ("/", "/nothing", "/api/v1/models"):
        answer = site.client.get(path, headers={"X-Request-ID": sent})
        assert answer.headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", [None, "", "a b", "a" * 129, "\u00e9", "a/b", "a;b"])
def test_a_missing_or_invalid_request_id_is_replaced(site: Site, sent: str | None) -> None:
    headers = {} if sent is None else {"X-Request-ID": sent}
    first, second = (site.client.get("/", headers=headers).headers["X-Request-ID"] for _ in "ab")
    assert first != second
    assert re.fullmatch(UUID, first)


def test_the_body_and_header_of_an_error_name_the_same_request(site: Site) -> None:
    answer = site.client.get("/nothing")
    assert answer.json is not None
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]
    assert answer.json["request_id"] in answer.json["detail"]


# Error handlers


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/nothing", 404, "not_found", None),
        ("POST", "/api/v1/nothing", 404, "not_found", None),
        ("GET", "/api/v1/completions", 405, "method_not_allowed", {"POST", "OPTIONS"}),
        ("DELETE", "/health", 405, "method_not_allowed", {"GET", "HEAD", "OPTIONS"}),
        ("PUT", "/v1/completions", 405, "method_not_allowed", {"POST", "OPTIONS"}),
    ],
)
def test_unknown_paths_and_wrong_methods_are_answered_with_a_json_error(
    site: Site, method: str, path: str, status: int, code: str, allow: set[str] | None
) -> None:
    answer = site.client.open(path, method=method)
    body = answer.json
    assert (answer.status_code, answer.mimetype) == (status, "application/json")
    assert body is not None
    found = body["error"] if path.startswith("/v1/") else body
    assert found["code"] == code
    assert (path in found["message"]) == (status == 405)  # in a 404 it could contain "model"
    allowed = answer.headers.get("Allow")
    assert (set(allowed.split(", ")) if allowed else None) == allow


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/nothing", "/v1/models/none/such"])
def test_errors_on_openai_paths_have_the_openai_shape(site: Site, path: str) -> None:
    answer = site.get(path)
    assert answer.json is not None
    assert set(answer.json) == {"error"}
    assert answer.json["error"]["type"] == "invalid_request_error"


def test_a_long_path_is_not_repeated_in_full(site: Site) -> None:
    answer = site.client.get("/" + "x" * 5000)
    assert len(answer.data) < 1000


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (ZeroDivisionError("the inside"), 500, "internal_error"),
        (BadGateway("the inside"), 500, "internal_error"),
        (ImATeapot(), 400, "invalid_request"),
        (UpstreamError("It broke."), 502, "provider_error"),
    ],
)
def test_an_exception_in_an_endpoint_becomes_an_error_without_its_details(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
    status: int,
    code: str,
) -> None:
    def fail() -> str:
        raise failure

    site.app.add_url_rule("/fail", view_func=fail)
    answer = site.client.get("/fail", headers={"X-Request-ID": "r-1"})
    assert answer.status_code == status
    assert answer.json is not None
    assert answer.json["code"] == code
    assert b"the inside" not in answer.data
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == (1 if status == 500 else 0)
    for record in logged:
        assert record.getMessage() == "GET /fail failed"
        assert record.__dict__["request_id"] == "r-1"
        assert record.exc_info is not None


def test_an_http_error_without_a_description_gives_its_name(site: Site) -> None:
    site.app.add_url_rule("/fail", view_func=lambda: abort(400, description=""))
    answer = site.client.get("/fail")
    assert answer.json is not None
    assert answer.json["message"] == "Bad Request"


# The log


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lines() -> Iterator[list[logging.LogRecord]]:
    """Yield the records of the access log."""
    handler, level = Kept(), access.level
    access.addHandler(handler)
    access.setLevel(logging.DEBUG)
    yield handler.records
    access.removeHandler(handler)
    access.setLevel(level)


def carried(record: logging.LogRecord) -> dict[str, Any]:
    return logs.fields(record)


@pytest.mark.parametrize(
    ("path", "level", "status", "code"),
    [
        ("/", "INFO", 200, None),
        ("/health", "DEBUG", 200, None),
        ("/ready", "DEBUG", 200, None),
        ("/nothing", "INFO", 404, "not_found"),
        ("/api/v1/models", "INFO", 401, "unauthorized"),
    ],
)
def test_each_request_is_one_line_of_the_access_log(
    site: Site, lines: list[logging.LogRecord], path: str, level: str, status: int, code: str | None
) -> None:
    site.client.get(path, headers={"X-Request-ID": "r-1"})
    (line,) = lines
    found = carried(line)
    assert (line.levelname, line.getMessage()) == (level, "request")
    assert found.pop("duration_ms") >= 0
    expected = {"request_id": "r-1", "method": "GET", "path": path, "status": status}
    assert found == expected | ({"code": code} if code else {})


@pytest.mark.parametrize("stream", [True, False])
def test_each_call_is_one_line_of_the_access_log_with_its_usage(
    site: Site, lines: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    play(monkeypatch, hello())
    headers = {"X-Request-ID": "r-1", "X-Stream-ID": "s-1"}
    site.post({**PROMPT, "stream": stream}, headers=headers)
    (line,) = lines
    assert line.getMessage() == ("stream" if stream else "completion")
    found = carried(line)
    assert found.pop("key_id").startswith("key_")
    for name in ("duration_ms", "first_event_ms"):
        assert found.pop(name) >= 0
    assert found == {
        "request_id": "r-1",
        "stream_id": "s-1",
        "status": 200,
        "provider": "sim",
        "model": "m",
        "input_tokens": 8,
        "output_tokens": 1,
        "usage_source": "provider",
        "cost_usd": 1e-05,
        "attempts": 1,
        "end_reason": "completed",
    }


def test_the_log_line_of_a_failed_call_has_its_code_and_end_reason(
    site: Site, lines: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(UpstreamError("It broke.", upstream_status=500)))
    assert site.post(PROMPT).status_code == 502
    (line,) = lines
    found = carried(line)
    reported = (found["status"], found["code"], found["end_reason"], found["first_event_ms"])
    assert reported == (502, "provider_error", "provider_error", None)


def test_a_call_with_an_invalid_body_is_logged_as_a_plain_request(
    site: Site, lines: list[logging.LogRecord]
) -> None:
    site.post({"prompt": ""})
    (line,) = lines
    assert (line.getMessage(), carried(line)["code"]) == ("request", "invalid_request")


def test_logs_contain_no_key_prompt_or_completion(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, hello(), Scripted(RuntimeError("inside")))
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            site.post({**PROMPT, "prompt": "my words", "byok_api_key": "sk-own-key"})
        site.post({"prompt": 5, "byok_api_key": "sk-own-key"})
    text = "\n".join(logs.JsonFormatter().format(record) for record in caplog.records)
    assert "completion" in text
    for secret in (site.secret, "sk-own-key", "my words", "Hello"):
        assert secret not in text


# Sockets and settings


def test_the_client_socket_has_a_timeout_only_during_a_request(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = socket.socketpair()
    seen: list[float | None] = []

    def note() -> str:
        seen.append(server.gettimeout())
        return ""

    site.app.add_url_rule("/seen", view_func=note)
    with server, client:
        for name in ("gunicorn.socket", "werkzeug.socket"):
            server.settimeout(7)
            answer = site.client.get("/seen", environ_overrides={name: server})
            answer.close()
            assert server.gettimeout() is None
    assert seen == [30, 30]
    answer = site.client.get("/health", environ_overrides={"gunicorn.socket": None})
    assert answer.status_code == 200


def test_a_client_socket_closed_before_the_answer_causes_no_error(site: Site) -> None:
    server, client = socket.socketpair()

    def lose() -> str:
        server.close()
        return ""

    site.app.add_url_rule("/gone", view_func=lose)
    with client:
        answer = site.client.get("/gone", environ_overrides={"gunicorn.socket": server})
        answer.close()
        assert answer.status_code == 200


def test_configuration_warnings_are_logged_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_app(tmp_path, monkeypatch, warnings=("Mind the gap.",))
    assert "Mind the gap." in [record.getMessage() for record in caplog.records]


def test_logging_is_configured_from_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(logs, "configure", lambda *what: asked.append(what))
    create_app(Settings(keys_file=tmp_path / "keys", log_format="text", log_level="error"))
    assert asked == [("text", "error")]


def test_create_app_without_settings_reads_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {"SLUICE_DEFAULT_MODEL": "local/other"})
    settings = create_app().extensions["sluice"].settings
    assert settings.default_model == "local/other"


def test_the_keys_and_quickstart_commands_are_registered(site: Site) -> None:
    assert {"keys", "quickstart"} <= set(site.app.cli.commands)


def test_the_root_path_answers_with_name_version_and_docs(site: Site) -> None:
    answer = site.client.get("/")
    assert answer.json == {"name": "sluice", "version": "0.1.0", "docs": "docs/reference/api.md"}


def test_make_key_sets_the_expires_and_disabled_fields() -> None:
    line, _ = make_key(expires=datetime(2099, 1, 1, tzinfo=UTC))
    assert json.loads(line)["expires"] == "2099-01-01T00:00:00Z"
    line, _ = make_key(expires=timedelta(days=1), disabled=True)
    assert json.loads(line)["disabled"] is True


# CORS

ORIGIN = "https://app.example"


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [
        (("*",), ORIGIN),
        ((ORIGIN,), ORIGIN),
        (("https://other.example", ORIGIN), ORIGIN),
        (("https://other.example",), None),
        (("https://appXexample",), None),
        ((), None),
        (("https://*.example",), ORIGIN),
        (("https://*.app.example",), None),
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/completions", "/v1/completions", "/nothing"])
def test_cors_headers_are_sent_to_allowed_origins_only(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    origins: tuple[str, ...],
    allowed: str | None,
    path: str,
) -> None:
    site = make_app(tmp_path, monkeypatch, cors_origins=origins)
    answer = site.client.post(path, headers={"Origin": ORIGIN})
    assert answer.status_code in (401, 404)
    assert answer.headers.get("Access-Control-Allow-Origin") == allowed
    if allowed is not None:
        assert "Origin" in answer.headers["Vary"]
        exposed = answer.headers["Access-Control-Expose-Headers"]
        assert sorted(exposed.split(", ")) == sorted({*EXPOSED})
        assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    ("setting", "allowed", "refused"),
    [
        ("https://a.com", ["https://a.com", "https://A.com", "HTTPS://a.com"],
         ["https://axcom", "https://a.com.evil", "https://a.com:8443", "http://a.com",
          "https://b.a.com", "https://xa.com", "https://a.com/", "null", "a.com"]),
        ("https://A.com:443/", ["https://a.com"], ["https://a.com:444", "https://a.com.evil"]),
        ("http://localhost:3000", ["http://localhost:3000"],
         ["http://localhost", "http://localhost:30001", "http://localhost:300"]),
        ("http://[::1]:3000", ["http://[::1]:3000"], ["http://:3000", "http://1:3000"]),
        ("http://[0:0:0:0:0:0:0:1]", ["http://[::1]"], ["http://[::1]:81"]),
        ("https://*.example.com",
         ["https://app.example.com", "https://a.b.example.com", "https://App.Example.com"],
         ["https://example.com", "https://xexample.com", "https://.example.com",
          "https://app.example.com.evil", "https://app.examplexcom", "https://app.example.com:444",
          "http://app.example.com", "https://evil.com/.example.com", "https://a..example.com",
          "https://evil.com?.example.com", "https://evil.com#.example.com",
          "https://u@a.example.com", "https://\xdf.example.com"]),
        ("https://*.example.com:8443", ["https://a.example.com:8443"], ["https://a.example.com"]),
        ("https://strasse.com", ["https://strasse.com"], ["https://stra\xdfe.com"]),
        ("capacitor://localhost", ["capacitor://localhost"], ["http://localhost"]),
        ("https://a.com, *", ["https://b.com", "null"], []),
    ],
)  # fmt: skip
def test_an_origin_matches_exactly_and_a_star_means_subdomains(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    allowed: list[str],
    refused: list[str],
) -> None:
    origins = parse_origins("SLUICE_CORS_ORIGINS", setting)
    site = make_app(tmp_path, monkeypatch, cors_origins=origins)
    for origin in (*allowed, *refused):
        headers = site.client.get("/health", headers={"Origin": origin}).headers
        expected = origin if origin in allowed else None
        assert headers.get("Access-Control-Allow-Origin") == expected, origin


def test_a_preflight_needs_no_key(site: Site) -> None:
    answer = site.client.options(
        "/api/v1/completions",
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stream-id",
        },
    )
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    for name in ("authorization", "content-type", "x-stream-id"):
        assert name in answer.headers["Access-Control-Allow-Headers"].lower()
    assert answer.headers["Access-Control-Max-Age"] == "86400"


# wsgi.py


@pytest.fixture
def from_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set up a process without environment variables, in an empty folder."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.environ", {})
    return monkeypatch


@pytest.mark.usefixtures("from_the_start")
def test_wsgi_py_has_a_flask_app() -> None:
    assert isinstance(runpy.run_path(str(ROOT / "wsgi.py"))["app"], Flask)


def test_wsgi_py_exits_with_status_4_and_one_line_on_an_invalid_setting(
    from_the_start: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from_the_start.setattr("os.environ", {"PORT": "high"})
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "wsgi.py"))
    assert caught.value.code == 4
    assert capsys.readouterr().err == "sluice: PORT is 'high', but must be a whole number\n"


@pytest.mark.parametrize(("environ", "port"), [({}, 8000), ({"PORT": "8123"}, 8123)])
def test_wsgi_py_serves_on_the_loopback_address_when_run_directly(
    from_the_start: pytest.MonkeyPatch, environ: dict[str, str], port: int
) -> None:
    asked: list[dict[str, Any]] = []
    from_the_start.setattr("os.environ", environ)
    from_the_start.setattr(Flask, "run", lambda _self, **options: asked.append(options))
    runpy.run_path(str(ROOT / "wsgi.py"), run_name="__main__")
    assert asked == [{"host": "127.0.0.1", "port": port, "threaded": True}]


# Features of Flask that the app leaves out (endpoints/flask_app.py)


def test_flask_has_no_request_hooks_but_those_of_the_app(site: Site) -> None:
    """Check this because App.full_dispatch_request runs no other hooks."""
    app = site.app
    assert set(app.before_request_funcs) | set(app.after_request_funcs) == {None}
    assert not app.teardown_request_funcs
    assert not app.teardown_appcontext_funcs
    assert not app.url_value_preprocessors
    for signal in (flask.request_started, flask.request_finished, flask.request_tearing_down,
                   flask.appcontext_tearing_down):  # fmt: skip
        assert not signal.receivers


@pytest.mark.parametrize("path", ["/health", "/ready", "/nothing-here"])
def test_head_is_get_without_a_body(site: Site, path: str) -> None:
    whole = site.client.get(path)
    head = site.client.head(path)
    assert head.data == b""
    assert len(whole.data) > 0
    for answer in (whole, head):
        answer.headers.pop("X-Request-ID")
    assert (head.status, sorted(head.headers)) == (whole.status, sorted(whole.headers))


# Providers that can't be reached

NOWHERE = "127.0.0.1:1 could not be reached: the connection was refused"


@pytest.mark.parametrize("path", ["/api/v1/completions", "/v1/completions"])
@pytest.mark.parametrize("how", ["whole", "stream", "released stream"])
def test_both_faces_name_each_target_that_cannot_be_reached_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, how: str
) -> None:
    settings = {"first_event_wait": 0.0} if how == "released stream" else {}
    site = make_app(tmp_path, monkeypatch, retries=0, **settings)
    body = PROMPT | {"fallbacks": ["other/m"], "stream": how != "whole"}
    answer = site.post(body, path, buffered=True)
    text = answer.get_data(as_text=True)
    expected = f"The upstream {NOWHERE}. Tried: sim/m ({NOWHERE}); other/m ({NOWHERE})."
    assert expected in text
    assert '"host":"127.0.0.1:1","reason":"refused"' in text
    assert '"target":"other/m"' in text
    if answer.status_code == 200:
        assert how == "released stream"
        assert "[DONE]" not in text
    else:
        assert answer.status_code == 502
