"""Tests of telemetry/call_records.py: the records of ended calls, and when they are written."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import TextIO, cast

import pytest

from gateway.call import Outcome
from streams.stream import Stream
from telemetry import call_records, logs
from telemetry.call_records import FEW_CALLS, CallRecords
from telemetry.metrics import Metrics
from tests.support.pace import HANG_S


class Recorded(CallRecords):
    """CallRecords that keeps its records."""

    def __init__(self, under_way: int) -> None:
        super().__init__(cast(Metrics, None), None, lambda: under_way)
        self.records: list[object] = []

    def _record(self, stream: object, outcome: object, ended_at: float) -> None:
        if outcome is None:
            raise RuntimeError("an odd one")
        assert abs(ended_at - time.time()) < HANG_S
        self.records.append(stream)

    def end(self, name: str, outcome: object = "") -> None:
        self.settled(cast(Stream, name), cast(Outcome, outcome))


def soon(met: Callable[[], bool]) -> None:
    until = time.monotonic() + HANG_S
    while not met():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_each_of_few_calls_is_reported_at_once() -> None:
    found = Recorded(under_way=FEW_CALLS)
    found.end("a")
    assert found.records == ["a"]


def test_many_calls_are_reported_a_moment_later_in_order() -> None:
    found = Recorded(under_way=FEW_CALLS + 1)
    names = [str(number) for number in range(100)]
    for name in names:
        found.end(name)
    soon(lambda: found.records == names)
    found.end("later")
    soon(lambda: found.records[-1] == "later")


def test_catch_up_reports_waiting_calls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_records, "GATHER_S", HANG_S)
    found = Recorded(under_way=FEW_CALLS + 1)
    found.end("a")
    assert found.records == []
    found.catch_up()
    assert found.records == ["a"]
    found.catch_up()
    assert found.records == ["a"]


def test_a_call_that_cannot_be_reported_does_not_lose_other_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = Recorded(under_way=FEW_CALLS + 1)
    found.end("odd", outcome=None)
    found.end("a")
    soon(lambda: bool(caplog.records))
    found.end("b")
    soon(lambda: found.records == ["a", "b"])
    assert "are lost" in caplog.text


# A call's line in the log


def lines_of(
    capsys: pytest.CaptureFixture[str], fields: dict[str, object], kind: str = "json"
) -> list[str]:
    root, ours = logging.getLogger(), logging.getLogger("sluice")
    before = (root.handlers, root.level, ours.level)
    try:
        logs.configure(kind, "info")
        call_records.log_call(call_records.access, "stream", fields, 1_775_563_200.25)
        call_records.access.info("stream", extra=fields)
    finally:
        root.handlers, root.level, ours.level = before
    return capsys.readouterr().err.splitlines()


FIELDS: dict[str, object] = {
    "request_id": "r\u2028\n1",
    "status": 200,
    "cost_usd": 0.1,
    "code": None,
}


@pytest.mark.parametrize("text", ["r\u2028\n1", "r-1", "\ud800"], ids=ascii)
def test_the_json_log_line_of_a_call_equals_that_of_logging(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    fields = FIELDS | {"request_id": text}
    lines = lines_of(capsys, fields)
    assert all(line.isascii() for line in lines)
    ours, theirs = map(json.loads, lines)
    assert ours.pop("time") == "2026-04-07T12:00:00.250Z"
    theirs.pop("time")
    assert ours == theirs
    assert ours == {"level": "info", "logger": "sluice.access", "message": "stream", **fields}


def test_a_key_in_the_log_line_of_a_call_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    key = "sk-" + "a1B2" * 8
    for line in lines_of(capsys, {"request_id": f"see {key}"}):
        assert key not in line
        assert "see" in line


def test_the_text_log_line_of_a_call_equals_that_of_logging(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = lines_of(capsys, FIELDS, kind="text")
    assert ours.split(" ", 1)[1] == theirs.split(" ", 1)[1]


def test_other_log_handlers_receive_the_log_line_of_a_call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[logging.LogRecord] = []
    other = logging.Handler()
    monkeypatch.setattr(other, "emit", received.append)
    configure = logs.configure

    def configured(kind: str, level: str) -> None:
        configure(kind, level)
        logging.getLogger().addHandler(other)

    monkeypatch.setattr(logs, "configure", configured)
    assert len(lines_of(capsys, FIELDS)) == 2
    assert [record.getMessage() for record in received] == ["stream", "stream"]


def test_no_log_line_is_written_below_the_log_level(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_records.access, "level", logging.WARNING)
    call_records.access.manager._clear_cache()  # type: ignore[attr-defined]
    assert lines_of(capsys, FIELDS) == []
    monkeypatch.undo()
    call_records.access.manager._clear_cache()  # type: ignore[attr-defined]


def test_logging_a_call_to_a_full_disk_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: str) -> None:
            raise OSError(28, "No space left on device")

    root = logging.getLogger()
    handler = logs.JsonLines(cast(TextIO, Full()))
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(call_records.access, "level", logging.INFO)
    call_records.access.manager._clear_cache()  # type: ignore[attr-defined]
    call_records.log_call(call_records.access, "stream", FIELDS, 0.0)
    call_records.access.manager._clear_cache()  # type: ignore[attr-defined]
