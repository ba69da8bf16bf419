"""Tests of telemetry/logs.py: the fields of a log line, as JSON and as text."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from telemetry import logs
from telemetry.logs import JsonFormatter, TextFormatter


def a_record(message: str = "request", **extra: Any) -> logging.LogRecord:
    record = logging.LogRecord("sluice.test", logging.INFO, __file__, 1, message, None, None)
    record.created, record.msecs = 1_775_563_200.25, 250.0
    record.__dict__.update(extra)
    return record


def a_failure() -> logging.LogRecord:
    try:
        raise ValueError("the inside")
    except ValueError:
        record = a_record("it broke")
        record.exc_info = sys.exc_info()
        return record


@pytest.fixture
def restored() -> Iterator[None]:
    """Restore the logging configuration of the process after the test."""
    ours, root = logging.getLogger("sluice"), logging.getLogger()
    before = (ours.level, root.level, root.handlers)
    yield
    ours.level, root.level, root.handlers = before
    logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]


def test_json_log_line_has_only_the_known_fields() -> None:
    line = JsonFormatter().format(a_record(status=200, path="/a b", authorization="Bearer x"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-04-07T12:00:00.250Z",
        "level": "info",
        "logger": "sluice.test",
        "message": "request",
        "path": "/a b",
        "status": 200,
    }


def test_json_log_line_with_a_traceback_stays_on_one_line() -> None:
    line = JsonFormatter().format(a_failure())
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: the inside")


def test_value_that_json_cannot_encode_is_logged_as_text() -> None:
    assert json.loads(JsonFormatter().format(a_record(model=b"m")))["model"] == "b'm'"


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_line_has_no_colours_of_a_terminal(formatter: logging.Formatter) -> None:
    line = formatter.format(a_record("\x1b[31m\x1b[1mWARNING: a\x1b[0m b"))
    assert "WARNING: a b" in line


def test_text_log_line_shows_present_fields_in_a_fixed_order() -> None:
    record = a_record(status=200, method="POST", code=None, request_id="r-1", key_id="key_1")
    time, rest = TextFormatter().format(record).split(" ", 1)
    assert len(time) == len("12:00:00")
    assert rest == "info request method=POST status=200 request_id=r-1"


def test_text_log_line_shows_input_plus_output_tokens() -> None:
    line = TextFormatter().format(a_record("stream", input_tokens=3, output_tokens=0))
    assert line.endswith("info stream tokens=3+0")
    assert TextFormatter().format(a_record("x", output_tokens=4)).endswith("tokens=0+4")


def test_text_log_line_of_a_failure_is_followed_by_its_traceback() -> None:
    first, *rest = TextFormatter().format(a_failure()).splitlines()
    assert first.endswith("info it broke")
    assert rest[-1] == "ValueError: the inside"


@pytest.mark.parametrize("odd", ["a\nb", "a\rb", "a\x1b[2Jb", "a\u2028b", "a\x85b", "\x00"])
@pytest.mark.parametrize("kind", ["text", "json"])
def test_control_characters_cannot_break_a_log_line_or_control_a_terminal(
    kind: str, odd: str
) -> None:
    line = logs.formatter(kind).format(a_record(f"got {odd}", path=odd, model=odd))
    assert line.isprintable()
    assert len(line.splitlines()) == 1


def test_text_log_line_keeps_letters_of_any_language() -> None:
    assert "model=m\u00f6del \u6a21" in TextFormatter().format(a_record(model="m\u00f6del \u6a21"))


@pytest.mark.parametrize(
    ("kind", "terminal", "made"),
    [
        ("json", True, JsonFormatter),
        ("text", False, TextFormatter),
        ("auto", True, TextFormatter),
        ("auto", False, JsonFormatter),
    ],
)
def test_auto_log_format_is_text_on_a_terminal_and_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch, kind: str, terminal: bool, made: type
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert type(logs.formatter(kind)) is made


@pytest.mark.usefixtures("restored")
def test_log_level_applies_to_sluice_and_other_loggers_start_at_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("json", "info")
    logs.configure("json", "info")  # a second call must not duplicate the lines
    for name, level in (("sluice.x", "debug"), ("sluice.x", "info"), ("other", "info"),
                        ("other", "warning")):  # fmt: skip
        logging.getLogger(name).log(getattr(logging, level.upper()), "%s %s", name, level)
    lines = [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["sluice.x info", "other warning"]


def test_fields_shown_in_text_logs_are_known_log_fields() -> None:
    assert set(logs.SHOWN) <= set(logs.FIELDS)
