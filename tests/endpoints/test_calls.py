"""Tests of endpoints/calls.py: time limits, attempts, continuation and the queue, in both faces."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from completion import Delta, Finished, Usage, Used
from endpoints.calls import Template, frame, time_limits
from errors import InvalidRequest, UpstreamError
from streams.stream import Stream
from tests.endpoints.test_native import in_thread
from tests.gateway.test_gateway import Scripted, eventually, play, wait
from tests.support.pace import HANG_S
from tests.test_app import PROMPT, Site, hello, make_app, make_key

FACES = ["/api/v1/completions", "/v1/completions"]


def ask(site: Site, path: str = FACES[0], **headers: str) -> TestResponse:
    """Send a streaming request, and return the response with the whole stream."""
    sent = {"X-Stream-ID": headers.pop("stream_id", "s-1")}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return site.post(PROMPT | {"stream": True}, path, headers=sent, buffered=True)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("30", {"total": 30}),
        (" 2.5 ", {"total": 2.5}),
        ("connect=1, first_event = 2.5,idle=3,total=4",
         {"connect": 1, "first_event": 2.5, "idle": 3, "total": 4}),
        ("5,idle=1", {"total": 5, "idle": 1}),
    ],
)  # fmt: skip
def test_timeout_header_parses_into_time_limits(text: str, expected: dict[str, float]) -> None:
    assert time_limits(text) == expected


BAD = [
    *(
        "0",
        "-1",
        "nan",
        "inf",
        "1e3",
        "1_0",
        "x",
        "=5",
        ",",
        "5,",
        "5,6",
        "idle=1,idle=2",
        "\u0665",
    ),
    *("read=5", "idle", "idle=", "idle=1=2", "grace=5", "9" * 10, "sk-a-key-by-mistake"),
]


@pytest.mark.parametrize("text", BAD)
def test_invalid_timeout_header_is_rejected_and_never_echoed(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        time_limits(text)
    assert caught.value.param == "X-Sluice-Timeout"
    assert "sk-" not in caught.value.message


@pytest.mark.parametrize("path", FACES)
def test_invalid_timeout_header_answers_400_and_opens_no_stream(site: Site, path: str) -> None:
    answer = ask(site, path, X_Sluice_Timeout="soon")
    assert answer.status_code == 400
    assert len(site.gateway.streams) == 0


@pytest.mark.parametrize(
    ("text", "idle", "total"), [("7", 120, 7), ("idle=3", 3, 1800), ("9999", 120, 1800)]
)
def test_timeout_header_can_only_lower_the_timeouts_of_its_call(
    site: Site, monkeypatch: pytest.MonkeyPatch, text: str, idle: float, total: float
) -> None:
    attempt = Scripted(wait)
    play(monkeypatch, attempt)
    thread, _ = in_thread(lambda: ask(site, X_Sluice_Timeout=text))
    assert attempt.reached.wait(HANG_S)
    (stream,) = site.gateway.streams.of(site.gateway.streams._snapshot()[0].key_id)
    found = stream.deadlines.at(stream.target)
    stream.end("stopped")
    thread.join(HANG_S)
    assert (found.idle, found.total) == (idle, total)


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize("fails", [0, 1])
@pytest.mark.parametrize("stream", [True, False])
def test_answer_reports_its_number_of_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, fails: int, stream: bool
) -> None:
    site = make_app(tmp_path, monkeypatch, retries=1)
    monkeypatch.setattr("gateway.attempts.delay", lambda *_: 0.0)
    failing = [Scripted(UpstreamError("No.", upstream_status=500)) for _ in range(2)]
    play(monkeypatch, *failing[:fails], hello(), *failing)
    answer = site.post(PROMPT | {"stream": stream}, path, buffered=True)
    assert (answer.status_code, answer.headers["X-Sluice-Attempts"]) == (200, str(1 + fails))
    if stream and path == FACES[0]:
        assert f'"attempts":{1 + fails}' in answer.text
    refused = site.post(PROMPT | {"stream": stream}, path, buffered=True)
    assert (refused.status_code, refused.headers["X-Sluice-Attempts"]) == (502, "2")


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize(("header", "continued"), [("1", True), ("0", False)])
def test_continue_header_decides_whether_a_broken_stream_is_continued(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str, header: str, continued: bool
) -> None:
    rest: list[Any] = [Delta(0, "lo"), Finished(0, "stop"), Used(Usage(9, 1))]
    first = Scripted([Delta(0, "Hel")], UpstreamError("Broke."))
    play(monkeypatch, first, Scripted(rest))
    answer = ask(site, path, X_Sluice_Continue=header)
    assert ('"continued":true' in answer.text) is continued
    assert ("\n: the stream was interrupted" in answer.text) is continued
    assert answer.text.endswith("data: [DONE]\n\n") is continued
    assert ('"error"' in answer.text) is not continued


@pytest.mark.parametrize("path", FACES)
def test_stream_that_waits_too_long_in_the_queue_answers_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    site = make_app(tmp_path, monkeypatch, max_streams=1, queue=1, queue_time=0.05, per_key=9)
    first = Scripted(wait)
    asked = play(monkeypatch, first, hello())
    thread, _ = in_thread(lambda: ask(site))
    assert first.reached.wait(HANG_S)
    answer = ask(site, path, stream_id="s-2")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.headers["X-Sluice-Attempts"] == "0"
    assert len(asked) == 1
    site.post(path="/api/v1/completions/stop-stream/s-1")
    thread.join(HANG_S)
    assert ask(site, path).status_code == 200


def test_queued_call_can_be_stopped_and_starts_when_a_running_call_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_app(tmp_path, monkeypatch, max_streams=1, queue=2, queue_time=60, per_key=9)
    first = Scripted(wait)
    asked = play(monkeypatch, first, hello())
    threads = [in_thread(lambda: ask(site))]
    assert first.reached.wait(HANG_S)
    for number in (2, 3):
        threads.append(in_thread(lambda name=f"s-{number}": ask(site, stream_id=name)))
        assert eventually(lambda: len(site.gateway.streams._waiting) == number - 1)  # noqa: B023
    assert site.post(path="/v1/completions/stop-stream/s-2").status_code == 200
    threads[1][0].join(HANG_S)
    assert '"cancelled"' in threads[1][1][0].text
    assert len(asked) == 1
    site.post(path="/v1/completions/stop-stream/s-1")
    for thread, _ in threads:
        thread.join(HANG_S)
    assert '"Hello"' in threads[2][1][0].text
    assert len(site.gateway.streams._running) == 0


@pytest.mark.parametrize(("own", "status"), [(None, 200), (1, 429)])
def test_key_with_its_own_stream_limit_gets_429_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int | None, status: int
) -> None:
    line, secret = make_key("narrow", max_streams=own)
    site = make_app(tmp_path, monkeypatch, keys=line)
    site.secret = secret
    first = Scripted(wait)
    play(monkeypatch, first, hello())
    thread, _ = in_thread(lambda: ask(site))
    assert first.reached.wait(HANG_S)
    answer = ask(site, stream_id="s-2")
    assert answer.status_code == status
    if status == 429:
        assert answer.json is not None
        assert answer.json["details"]["limit_type"] == "concurrency"
        assert answer.headers["Retry-After"] == "1"
    site.post(path="/api/v1/completions/stop-stream/s-1")
    thread.join(HANG_S)


TEXTS = ["", "plain", 'a "quote", a \\ and a \n', "\0", "é 漢 🙂", "a\u2028b\u2029c\u0085d"]


@pytest.mark.parametrize("text", TEXTS)
def test_filled_template_equals_the_frame_for_any_text(text: str) -> None:
    def shape(text: str) -> Any:
        return {"id": 7, "text": text, "choices": [{"text": text, "of": "text 漢 \u2028"}]}

    template = Template(shape(Template.TEXT))
    assert template.filled(text) == frame(shape(text))
    assert not any(odd in template.filled(text).decode() for odd in "\u2028\u2029\u0085")


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["local/pydoc", "ollama/any", "nobody/any"])
def test_stream_of_an_ended_call_is_freed_without_garbage_collection(
    site: Site, path: str, stream: bool, model: str
) -> None:
    """Check failed calls too. The garbage collector runs rarely (see gunicorn.conf.py)."""

    def held() -> int:
        return sum(isinstance(found, Stream) for found in gc.get_objects())

    gc.collect()
    before = held()
    gc.disable()
    try:
        for _ in range(3):
            site.post(PROMPT | {"stream": stream, "model": model}, path, buffered=True)
        assert eventually(lambda: held() <= before)
    finally:
        gc.enable()


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize("model", [".", "..", "sim/..", "a/../b", "sim/%2e%2E", "sim/a\\..\\b"])
def test_a_model_named_with_dots_answers_400_and_opens_no_stream(
    site: Site, path: str, model: str
) -> None:
    for fields in (
        {"model": model},
        {"model": "sim/m", "fallbacks": [model]},
        {"model": model, "provider": "sim"},
    ):
        answer = site.post({"prompt": "Hi", **fields}, path)
        assert answer.status_code == 400
        assert answer.json is not None
        assert (answer.json.get("code") or answer.json["error"]["code"]) == "invalid_request"
    assert len(site.gateway.streams) == 0
