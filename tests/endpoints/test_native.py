"""Tests of endpoints/native.py with Flask's test client and a fake provider, to the byte."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from completion import (
    Batch,
    Delta,
    Finished,
    Logprobs,
    Started,
    Usage,
    Used,
)
from endpoints import (
    calls,
    native,
)
from errors import (
    InvalidRequest,
    ModelNotFound,
    SluiceError,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.call import Outcome
from keys.redaction import Secret
from tests.gateway.test_gateway import Scripted, play, wait
from tests.support.pace import HANG_S
from tests.test_app import PROMPT, UUID, Site, hello, make_app, make_key

COMPLETIONS = "/api/v1/completions"
INSTANT = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"
ERROR_KEYS = [
    "success", "request_id", "error", "code", "message", "status_code", "details", "detail", "data",
]  # fmt: skip


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


def body_of(answer: TestResponse) -> dict[str, Any]:
    found = json.loads(answer.data)
    assert isinstance(found, dict)
    return found


def assert_error(answer: TestResponse, status: int, code: str, says: str = "") -> dict[str, Any]:
    """Check that a response is this error, in exactly the documented format."""
    assert (answer.status_code, answer.mimetype) == (status, "application/json"), answer.data
    found = body_of(answer)
    assert list(found) == ERROR_KEYS
    assert (found["success"], found["data"], found["status_code"]) == (False, "", status)
    assert found["error"] == found["code"] == code
    assert found["request_id"] == answer.headers["X-Request-ID"]
    assert found["detail"] == f"{found['message']} (request_id {found['request_id']})"
    assert found["details"] is None or isinstance(found["details"], dict)
    assert says in found["message"]
    assert_right_words(found["detail"], status, code)
    return found


def assert_right_words(detail: str, status: int, code: str) -> None:
    """Check the words by which the official client chooses its exception."""
    words = detail.lower()
    if code == "model_not_found":
        assert "Model" in detail
        assert "provider" not in words
    elif code == "provider_not_found":
        assert "Provider" in detail
        assert "model" not in words
    elif code in ("stream_not_found", "not_found"):
        assert "model" not in words
        assert "provider" not in words
    if status == 400:
        assert "validation" not in words
    if status == 429:
        assert re.search(r"in \d+ s", detail)


# Whole answers


def test_answer_has_exactly_the_documented_fields(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, hello())
    answer = site.post(PROMPT)
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    found = body_of(answer)
    assert found.pop("request_id") == answer.headers["X-Request-ID"]
    assert re.fullmatch(INSTANT, found.pop("created_at"))
    duration = found.pop("duration_ms")
    assert 0 <= found["usage"].pop("latency") <= duration
    assert found == {
        "provider": "sim",
        "model": "m",
        "success": True,
        "message": "",
        "data": "Hello",
        "finish_reason": "stop",
        "usage": {"tokens_prompt": 8, "tokens_completion": 1, "tokens_total": 9, "cost": 1e-05},
    }
    order = list(body_of(answer))
    assert order == [
        "request_id", "created_at", "duration_ms", "provider", "model", "success", "message",
        "data", "finish_reason", "usage",
    ]  # fmt: skip
    assert "X-Stream-ID" not in answer.headers
    assert re.fullmatch(UUID, answer.headers["X-Request-ID"])


@pytest.mark.parametrize(
    ("model", "byok", "cost"),
    [
        ("sim/m", None, 1e-05),
        ("sim/other", None, None),
        ("sim/other", "sk-own", 0),
        ("sim/m", "sk-own", 0),
    ],
)
@pytest.mark.parametrize("in_header", [True, False])
def test_cost_is_null_without_a_price_and_0_with_a_caller_key(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    byok: str | None,
    cost: float | None,
    in_header: bool,
) -> None:
    asked = play(monkeypatch, hello())
    in_body = {} if in_header else {"byok_api_key": byok}
    headers = {"X-Provider-API-Key": byok} if in_header and byok else {}
    answer = site.post({"prompt": "Hi", "model": model, **in_body}, headers=headers)
    found = body_of(answer)
    assert found["usage"]["cost"] == cost
    assert found.get("byok_api_key") == (True if byok else None)
    assert answer.headers.get("X-RateLimit-Bypass") == ("BYOK API key used" if byok else None)
    assert asked[0].target.credential == (Secret(byok) if byok else None)
    assert b"sk-own" not in answer.data


def test_answer_reports_cached_tokens_warnings_and_dropped_parameters(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Usage(10, 4, cache_read_tokens=3, cache_write_tokens=2, reasoning_tokens=1)
    play(monkeypatch, Scripted([Delta(0, "x"), Finished(0, "length"), Used(usage)]))
    answer = site.post(PROMPT | {"model": "poor/m", "additional_params": {"seed": 7}})
    found = body_of(answer)
    assert found["finish_reason"] == "length"
    assert found["warnings"] == ["poor/m ignores seed."]
    assert answer.headers["X-Sluice-Dropped"] == "seed"
    del found["usage"]["latency"]
    assert found["usage"] == {
        "tokens_prompt": 10, "tokens_completion": 4, "tokens_total": 14, "cost": None,
        "cache_read_tokens": 3, "cache_write_tokens": 2, "reasoning_tokens": 1,
    }  # fmt: skip


def test_estimated_usage_is_marked_as_an_estimate(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted([Delta(0, "abcde")]))
    found = body_of(site.post(PROMPT))
    assert found["usage"]["source"] == "estimate"
    assert (found["usage"]["tokens_prompt"], found["usage"]["tokens_completion"]) == (1, 2)
    assert found["finish_reason"] == "stop"


LOGPROBS = Logprobs(["a"], [-1.0], [{"a": -1.0}], [0])


@pytest.mark.parametrize(
    ("params", "batch", "choices"),
    [
        ({}, [Delta(0, "a"), Finished(0, "stop")], None),
        ({"n": 1}, [Delta(0, "a"), Finished(0, "stop")], None),
        ({"logprobs": 1}, [Delta(0, "a", LOGPROBS), Finished(0, "stop")],
         [{"text": "a", "index": 0, "finish_reason": "stop",
           "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}],
                        "text_offset": [0]}}]),
        ({"n": 2}, [Delta(0, "a"), Delta(1, "b"), Finished(0, "stop"), Finished(1, "length")],
         [{"text": "a", "index": 0, "finish_reason": "stop", "logprobs": None},
          {"text": "b", "index": 1, "finish_reason": "length", "logprobs": None}]),
    ],
)  # fmt: skip
def test_choices_field_appears_only_for_several_choices_or_logprobs(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    params: dict[str, Any],
    batch: Batch,
    choices: list[dict[str, Any]] | None,
) -> None:
    play(monkeypatch, Scripted(batch))
    found = body_of(site.post(PROMPT | {"additional_params": params}))
    assert found.get("choices") == choices
    assert found["data"] == "a"


def test_answer_without_a_choice_has_empty_data_and_finish_reason_stop(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted([Started("m")]))
    found = body_of(site.post(PROMPT))
    assert (found["data"], found["finish_reason"]) == ("", "stop")


def in_thread(work: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    return thread, found


def test_stopped_answer_holds_the_text_so_far_and_is_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Scripted([Started("m", 3), Delta(0, "Hel")], wait)
    play(monkeypatch, attempt)
    thread, found = in_thread(lambda: site.post(PROMPT | {"stream_id": "s-1"}))
    assert attempt.reached.wait(HANG_S)
    for slash in ("", "/"):
        stopped = site.post(path=f"{COMPLETIONS}/stop-stream/s-1{slash}")
        assert (stopped.status_code, body_of(stopped)) == (200, {"success": True})
    thread.join(HANG_S)
    answer = body_of(found[0])
    assert (answer["data"], answer["finish_reason"]) == ("Hel", "cancelled")
    assert attempt.aborts >= 1


# Requests to providers


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0.5, "max_tokens": 9}, {"temperature": 0.5, "max_tokens": 9}),
        ({"additional_params": {"stop": "a", "seed": 7, "n": 2, "logprobs": 3}},
         {"stop": ("a",), "seed": 7, "n": 2, "logprobs": 3}),
        ({"additional_params": {"stop": ["a", "b"]}}, {"stop": ("a", "b")}),
        ({"additional_params": {"top_k": 5, "odd": None}}, {"extra": {"top_k": 5, "odd": None}}),
        ({"top_p": 0.5, "additional_params": {"top_p": 0.5}}, {"top_p": 0.5}),
        ({"top_p": 1, "frequency_penalty": 0, "presence_penalty": 0.0}, {}),
        ({"additional_params": None}, {}),
        ({name: None for name in native.FIELDS if name not in ("prompt", "model")}, {}),
    ],
)  # fmt: skip
def test_body_fields_are_mapped_to_the_completion_request(
    site: Site, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    asked = play(monkeypatch, hello())
    assert site.post(PROMPT | fields).status_code == 200
    request = asked[0].request
    assert request.prompts == ("Hi",)
    different = {
        name: getattr(request, name)
        for name in request.__struct_fields__
        if getattr(request, name) != getattr(type(request)(prompts=("Hi",)), name)
    }
    assert different == expected


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({}, "local/pydoc"),
        ({"model": "sim/m"}, "sim/m"),
        ({"model": "m", "provider": "sim"}, "sim/m"),
        ({"model": "sim/m", "provider": "sim"}, "sim/m"),
        ({"model": "m", "additional_params": {"provider": "sim"}}, "sim/m"),
        ({"model": "locked/m", "fallbacks": ["sim/m"]}, "sim/m"),
    ],
)
def test_the_model_may_be_named_in_several_ways(
    site: Site, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], target: str
) -> None:
    asked = play(monkeypatch, hello())
    found = body_of(site.post({"prompt": "Hi", **fields}))
    assert asked[0].target.name == target
    assert f"{found['provider']}/{found['model']}" == target


@pytest.mark.parametrize("path", [COMPLETIONS, COMPLETIONS + "/"])
def test_failed_target_falls_back_to_the_next_target(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    play(monkeypatch, Scripted(UpstreamError("It broke.", upstream_status=500)), hello())
    answer = site.post(PROMPT | {"model": "other/m", "fallbacks": ["sim/m"]}, path)
    assert body_of(answer)["provider"] == "sim"


# Streams


def frame(data: dict[str, Any] | str, event: str | None = None) -> str:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    text = text.replace("1e-05", "0.00001")  # json and msgspec format it differently
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"


def usage_start(**more: Any) -> str:
    fields = {
        "type": "usage_start", "request_id": "r-1", "stream_id": "s-1", "provider": "sim",
        "model": "m", "input_tokens": 8,
    }  # fmt: skip
    return frame(fields | more, "usage_start")


def content(text: str, index: int = 0) -> str:
    choice = {"text": text, "delta": {"content": text}, "index": index, "finish_reason": None}
    return frame({"type": "content", "data": text, "provider": "sim", "choices": [choice]})


def finish(reason: str, index: int = 0) -> str:
    choice = {"text": "", "delta": {}, "index": index, "finish_reason": reason}
    fields = {"type": "finish", "provider": "sim", "finish_reason": reason, "choices": [choice]}
    return frame(fields)


def usage_final(output: int = 1, cost: float | None = 1e-05, **more: Any) -> str:
    fields = {
        "type": "usage_final", "input_tokens": 8, "output_tokens": output, "cost_usd": cost,
        "latency_ms": "MS", "attempts": 1,
    }  # fmt: skip
    return frame(fields | more, "usage_final").replace('"MS"', "MS")


DONE = "data: [DONE]\n\n"


def text_of(answer: TestResponse) -> str:
    """Return a stream's text, with the latency replaced by MS."""
    return re.sub(r'("latency_ms":)[0-9.]+', r"\1MS", answer.get_data(as_text=True))


def stream(site: Site, **fields: Any) -> TestResponse:
    headers = {"X-Request-ID": "r-1", "X-Stream-ID": "s-1"}
    return site.post(PROMPT | {"stream": True} | fields, headers=headers, buffered=True)


def test_stream_matches_the_expected_bytes_and_headers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, hello())
    answer = stream(site)
    expected = usage_start() + content("Hello") + finish("stop") + usage_final() + DONE
    assert text_of(answer) == expected
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["X-Stream-ID"] == "s-1"
    assert answer.headers["X-Request-ID"] == "r-1"


@pytest.mark.parametrize(
    ("batches", "fields", "expected"),
    [
        ([], {"model": "sim/x"}, [usage_start(model="x", input_tokens=0), finish("stop"),
                                  usage_final(0, None, input_tokens=1, source="estimate"), DONE]),
        ([[Started("m", 8)], [Delta(0, "a")], [Finished(0, "length")]], {},
         [usage_start(), content("a"), finish("length"), usage_final(source="estimate"), DONE]),
        ([[Started("m", 8), Delta(1, "b"), Finished(1, "length"), Delta(0, "a")],
          [Used(Usage(8, 1))]], {"additional_params": {"n": 2}},
         [usage_start(), content("b", 1), finish("length", 1), content("a"), finish("stop"),
          usage_final(), DONE]),
    ],
)  # fmt: skip
def test_frames_come_in_the_order_of_their_events(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    batches: list[Batch],
    fields: dict[str, Any],
    expected: list[str],
) -> None:
    play(monkeypatch, Scripted(*batches))
    assert text_of(stream(site, **fields)) == "".join(expected)


def test_input_tokens_are_0_at_the_start_when_the_provider_reports_late(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    tell: Batch = [Used(Usage(8, 1, reasoning_tokens=1))]
    play(monkeypatch, Scripted([Delta(0, "a")], lambda: go_on.wait(HANG_S), tell))
    sent, headers = PROMPT | {"stream": True, "stream_id": "s-1"}, {"X-Request-ID": "r-1"}
    answer = site.client.post(COMPLETIONS, json=sent, headers=site.bearer | headers, buffered=False)
    frames = iter(answer.response)
    first = next(frames)
    go_on.set()
    assert first == (usage_start(input_tokens=0) + content("a")).encode()
    rest = b"".join(frames).decode()  # type: ignore[arg-type]
    assert rest.startswith(finish("stop"))
    assert '"input_tokens":8,"output_tokens":1,' in rest
    assert '"reasoning_tokens":1' in rest


def test_first_and_last_usage_frames_carry_warnings_and_the_byok_flag(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, hello())
    answer = stream(site, model="poor/m", additional_params={"seed": 7}, byok_api_key="sk-own")
    found = text_of(answer)
    remarks = {"byok_api_key": True, "warnings": ["poor/m ignores seed."]}
    assert found.startswith(usage_start(provider="poor", **remarks))
    assert found.endswith(usage_final(1, 0.0, **remarks) + DONE)
    assert answer.headers["X-RateLimit-Bypass"] == "BYOK API key used"
    assert "sk-own" not in found


def test_stream_choice_carries_its_logprobs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Scripted([Delta(0, "a", LOGPROBS), Finished(0, "stop")]))
    frames = text_of(stream(site, additional_params={"logprobs": 1})).split("\n\n")
    (choice,) = json.loads(frames[1].removeprefix("data: "))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0}], "text_offset": [0]
    }  # fmt: skip


@pytest.mark.parametrize("begun", [True, False])
def test_stopped_stream_ends_with_finish_reason_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    events: Batch = [Started("m", 8), Delta(0, "Hel")]
    attempt = Scripted(events, wait) if begun else Scripted(wait)
    play(monkeypatch, attempt)
    thread, found = in_thread(lambda: stream(site))
    assert attempt.reached.wait(HANG_S)
    assert site.post(path=f"{COMPLETIONS}/stop-stream/s-1").status_code == 200
    thread.join(HANG_S)
    answer = text_of(found[0])
    if begun:
        expected = usage_start() + content("Hel") + finish("cancelled")
        assert answer == expected + usage_final(source="estimate") + DONE
    else:
        assert answer.startswith(usage_start(input_tokens=0) + finish("cancelled"))
        assert answer.endswith(DONE)
    assert found[0].status_code == 200


def test_a_failure_in_a_stream_is_its_last_frame(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = UpstreamError("It broke.", upstream_status=500)
    play(monkeypatch, Scripted([Started("m", 8), Delta(0, "Hel")], broken))
    answer = stream(site)
    assert answer.status_code == 200
    details = {
        "provider": "sim", "model": "m", "upstream_status": 500, "upstream_code": None,
        "upstream_message": None,
    }  # fmt: skip
    error = {
        "type": "error", "error": "It broke. (request_id r-1)", "code": "provider_error",
        "message": "It broke.", "status_code": 502, "details": details, "request_id": "r-1",
    }  # fmt: skip
    expected = usage_start() + content("Hel") + usage_final(source="estimate")
    assert text_of(answer) == expected + frame(error, "error")


def test_failure_before_the_first_event_is_an_http_error(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(UpstreamError("It broke.", upstream_status=500)))
    assert_error(stream(site), 502, "provider_error", "It broke.")


@given(st.lists(st.text(max_size=10), max_size=5))
def test_frames_never_have_empty_choices_or_a_stray_error_key(texts: list[str]) -> None:
    """Check also that no other line separator ends a line early."""
    encoder = native.NativeEncoder(a_stream())
    events: Batch = [Delta(0, text) for text in texts]
    outcome = Outcome("completed", None, Usage(), 0, 0, 0, None, 200)
    found = (encoder.events(events) + encoder.last_frames(outcome)).decode()
    frames = found.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    read = []
    for one in frames[:-2]:
        *head, data = one.split("\n")
        assert len(head) <= 1
        fields = json.loads(data.removeprefix("data: "))
        assert "error" not in fields
        assert fields.get("choices", ["none"]) != []
        read += [fields["data"]] if fields["type"] == "content" else []
    assert read == texts
    assert len(found.splitlines()) == len(found.split("\n")) - 1


def a_stream() -> Any:
    from tests.streams.test_registry import a_stream as make

    return make()


@given(st.text() | st.text("\u2028\u2029\u0085\u20ac\x0b\x0c\r\n", max_size=9))
def test_frame_keeps_any_text_in_a_single_data_line(text: str) -> None:
    found = calls.frame({"data": text}, "content").decode()
    head, data, *rest = found.splitlines()
    assert (head, rest) == ("event: content", [""])
    assert json.loads(data.removeprefix("data: ")) == {"data": text}
    assert not set("\u2028\u2029\u0085") & set(found)
    assert found.endswith("\n\n")


def test_unread_stream_is_aborted_when_its_response_closes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Scripted([Delta(0, "a")], wait)
    play(monkeypatch, attempt)
    with site.client.post(COMPLETIONS, json=PROMPT | {"stream": True}, headers=site.bearer,
                          buffered=False):  # fmt: skip
        assert len(site.gateway.streams) == 1
    assert len(site.gateway.streams) == 0
    assert attempt.aborts == 1


def test_active_streams_are_listed_and_stopped_only_by_their_own_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, foreign = make_key("other")
    site = make_app(tmp_path, monkeypatch, keys=line)
    attempt = Scripted([Started("m", 8), Delta(0, "abcdefgh")], wait)
    play(monkeypatch, attempt)
    thread, _ = in_thread(lambda: stream(site))
    assert attempt.reached.wait(HANG_S)
    path = f"{COMPLETIONS}/streams"
    for slash in ("", "/"):
        (found,) = json.loads(site.get(path + slash).data)
        assert re.fullmatch(INSTANT, found.pop("started_at"))
        assert found == {
            "stream_id": "s-1", "provider": "sim", "model": "m", "input_tokens": 8,
            "output_tokens": 2, "resumable": False,
        }  # fmt: skip
    other = {"Authorization": f"Bearer {foreign}"}
    assert site.client.get(path, headers=other).json == []
    stop = f"{COMPLETIONS}/stop-stream/s-1"
    assert_error(site.client.post(stop, headers=other), 404, "stream_not_found")
    assert site.post(path=stop).status_code == 200
    thread.join(HANG_S)
    assert json.loads(site.get(path).data) == []


# Ids


@pytest.mark.parametrize(
    ("fields", "headers", "expected"),
    [
        ({"stream_id": "mine"}, {}, "mine"),
        ({}, {"X-Stream-ID": "theirs"}, "theirs"),
        ({"stream_id": "mine"}, {"X-Stream-ID": "theirs"}, "mine"),
        ({"additional_params": {"stream_id": "there"}}, {}, "there"),
        ({}, {}, None),
    ],
)
def test_stream_id_comes_from_the_caller_or_is_a_new_uuid(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    headers: dict[str, str],
    expected: str | None,
) -> None:
    play(monkeypatch, hello())
    answer = site.post(PROMPT | {"stream": True} | fields, headers=headers)
    found = answer.headers["X-Stream-ID"]
    assert found == expected or (expected is None and re.fullmatch(UUID, found))
    assert f'"stream_id":"{found}"' in text_of(answer)


def test_stream_id_is_the_request_id_unless_the_caller_chose_that(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for headers in ({}, {"X-Request-ID": "not good"}):
        play(monkeypatch, hello())
        answer = site.post(PROMPT | {"stream": True}, headers=headers)
        assert answer.headers["X-Stream-ID"] == answer.headers["X-Request-ID"]
    for _ in range(2):  # several calls may share a request id
        play(monkeypatch, hello())
        answer = site.post(PROMPT | {"stream": True}, headers={"X-Request-ID": "mine"})
        assert answer.headers["X-Request-ID"] == "mine"
        assert re.fullmatch(UUID, answer.headers["X-Stream-ID"])


@pytest.mark.parametrize("prefix", [COMPLETIONS, "/v1/completions"])
def test_a_request_id_stops_its_call_for_its_own_key_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    line, foreign = make_key("other")
    site = make_app(tmp_path, monkeypatch, keys=line)
    attempt = Scripted([Started("m", 8), Delta(0, "a")], wait)
    play(monkeypatch, attempt)
    thread, _ = in_thread(lambda: site.post(PROMPT, headers={"X-Request-ID": "r-1"}))
    assert attempt.reached.wait(HANG_S)
    stop = f"{prefix}/stop-stream/r-1"
    other = {"Authorization": f"Bearer {foreign}"}
    assert site.client.post(stop, headers=other).status_code == 404
    assert site.post(path=stop).status_code == 200
    thread.join(HANG_S)
    assert attempt.aborts == 1
    assert site.post(path=stop).status_code == 200, "a repeated stop"
    assert site.client.post(stop, headers=other).status_code == 404


@pytest.mark.parametrize("sent", ["a b", "a" * 129, "a/b"])
def test_invalid_stream_id_header_answers_400(site: Site, sent: str) -> None:
    answer = site.post(PROMPT, headers={"X-Stream-ID": sent})
    assert_error(answer, 400, "invalid_request", "stream_id: got")


def test_stream_id_already_in_use_answers_409(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = Scripted(wait)
    play(monkeypatch, attempt)
    thread, _ = in_thread(lambda: stream(site))
    assert attempt.reached.wait(HANG_S)
    answer = stream(site)
    assert_error(answer, 409, "stream_exists", "'s-1'")
    assert answer.headers["x-should-retry"] == "false"
    site.post(path=f"{COMPLETIONS}/stop-stream/s-1")
    thread.join(HANG_S)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", None),
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"x=1", "application/x-www-form-urlencoded"),
        (b"\xff", "text/plain"),
    ],
)
def test_stop_needs_no_body_and_ignores_any_body(site: Site, data: bytes, kind: str | None) -> None:
    path = f"{COMPLETIONS}/stop-stream/unknown"
    answer = site.client.post(path, data=data, content_type=kind, headers=site.bearer)
    assert_error(answer, 404, "stream_not_found")


# Errors


@pytest.mark.parametrize(
    ("sent", "status", "code", "says"),
    [
        ({"prompt": ""}, 400, "invalid_request", 'prompt: got ""; expected a non-empty string'),
        ({}, 400, "invalid_request", "prompt is missing"),
        ({"prompt": None}, 400, "invalid_request", "prompt is missing"),
        ({"prompt": ["a"]}, 400, "invalid_request", "prompt: got a list of length 1"),
        ({"prompt": "Hi", "temprature": 1}, 400, "invalid_request", "Did you mean temperature?"),
        ({"prompt": "Hi", "zzz": None}, 400, "invalid_request", "Unknown field: zzz."),
        ({"prompt": "Hi", "temperature": 3}, 400, "invalid_request", "temperature: got 3"),
        ({"prompt": "Hi", "additional_params": {"messages": []}}, 400, "invalid_request",
         "additional_params can't set messages."),
        ({"prompt": "Hi", "top_p": 0.1, "additional_params": {"top_p": 0.2}}, 400,
         "invalid_request", "top_p has different values"),
        ({"prompt": "Hi", "model": "poor/m", "additional_params": {"suffix": "s"}}, 400,
         "unsupported_parameter", "poor/m doesn't support suffix."),
        ({"prompt": "Hi", "model": "gpt-4o"}, 404, "model_not_found", "Model 'gpt-4o' was not"),
        ({"prompt": "Hi", "model": "nobody/m"}, 404, "provider_not_found", "Provider 'nobody'"),
        ({"prompt": "Hi", "model": "locked/m"}, 404, "provider_not_found", "LOCKED_KEY"),
    ],
)  # fmt: skip
def test_invalid_request_answers_an_error_that_says_what_is_wrong(
    site: Site, sent: dict[str, Any], status: int, code: str, says: str
) -> None:
    assert_error(site.post(sent), status, code, says)


@pytest.mark.parametrize(
    ("data", "kind", "status", "code", "says"),
    [
        (b"", "application/json", 400, "invalid_request", "The body is empty;"),
        (b"{", "application/json", 400, "invalid_request", "The body is not JSON"),
        (b'{"prompt":"\xff"}', "application/json", 400, "invalid_request", "not UTF-8 at byte"),
        (b"[" * 5000, "application/json", 400, "invalid_request", "nested too deeply"),
        (b"[]", "application/json", 400, "invalid_request", "The body is a list of length 0;"),
        (b"{}", "text/plain", 415, "unsupported_media_type", "text/plain"),
        (b"x" * 10_001, "application/json", 413, "request_too_large", "10000 bytes"),
    ],
)
def test_unreadable_body_answers_an_error_that_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    kind: str,
    status: int,
    code: str,
    says: str,
) -> None:
    site = make_app(tmp_path, monkeypatch, max_body=10_000)
    headers = site.bearer
    answer = site.client.post(COMPLETIONS, data=data, content_type=kind, headers=headers)
    assert_error(answer, status, code, says)


@pytest.mark.parametrize(
    ("failure", "status", "code", "headers"),
    [
        (UpstreamError("It broke.", upstream_status=500), 502, "provider_error", {}),
        (UpstreamError("No.", upstream_status=401), 502, "provider_error",
         {"x-should-retry": "false"}),
        (UpstreamError("No.", upstream_status=400, upstream_message="validation failed"), 400,
         "invalid_request", {}),
        (UpstreamError("No.", upstream_status=413), 413, "request_too_large", {}),
        (UpstreamError("No.", upstream_status=404, upstream_message="provider"), 404,
         "model_not_found", {}),
        (UpstreamError("Slow.", upstream_status=429, retry_after=90), 429, "rate_limited",
         {"Retry-After": "90", "x-should-retry": "false"}),
        (UpstreamTimeout("idle", 5), 504, "provider_timeout", {}),
        (UpstreamTimeout("total", 5), 504, "provider_timeout", {"x-should-retry": "false"}),
        (ModelNotFound("Model 'x' was not found."), 404, "model_not_found", {}),
        (RuntimeError("the inside"), 500, "internal_error", {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [True, False])
def test_provider_failure_maps_to_an_http_status(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    status: int,
    code: str,
    headers: dict[str, str],
    streamed: bool,
) -> None:
    play(monkeypatch, Scripted(failure))
    answer = site.post(PROMPT | {"stream": streamed})
    found = assert_error(answer, status, code)
    assert headers.items() <= dict(answer.headers).items()
    assert "the inside" not in found["detail"]


def test_rejected_caller_key_answers_403_and_not_401(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted(UpstreamError("No.", upstream_status=401)))
    assert_error(site.post(PROMPT | {"byok_api_key": "sk-own"}), 403, "byok_rejected")


def test_a_model_that_the_key_may_not_use_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, secret = make_key("narrow", models=("other/*",))
    site = make_app(tmp_path, monkeypatch, keys=line)
    headers = {"Authorization": f"Bearer {secret}"}
    answer = site.client.post(COMPLETIONS, json=PROMPT, headers=headers)
    assert_error(answer, 403, "model_forbidden", "sim/m")


def test_call_above_max_streams_answers_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_app(tmp_path, monkeypatch, max_streams=1, queue=0)
    attempt = Scripted(wait)
    play(monkeypatch, attempt)
    thread, _ = in_thread(lambda: stream(site))
    assert attempt.reached.wait(HANG_S)
    answer = site.post(PROMPT)
    assert_error(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == "1"
    site.post(path=f"{COMPLETIONS}/stop-stream/s-1")
    thread.join(HANG_S)


@pytest.mark.parametrize("value", ["1", "0", ""])
def test_strict_header_turns_a_dropped_parameter_into_a_400(
    site: Site, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    play(monkeypatch, hello())
    sent = PROMPT | {"model": "poor/m", "additional_params": {"seed": 7}}
    answer = site.post(sent, headers={"X-Sluice-Strict": value})
    if value == "1":
        assert_error(answer, 400, "unsupported_parameter", "poor/m doesn't support seed.")
    else:
        assert answer.status_code == 200


def test_unknown_path_error_does_not_mislead_the_official_client(site: Site) -> None:
    assert_error(site.client.get("/api/v1/model"), 404, "not_found")


def test_invalid_value_error_does_not_mislead_the_official_client(site: Site) -> None:
    assert_error(site.post({"prompt": "Hi", "temperature": "validation"}), 400, "invalid_request")


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (InvalidRequest("No."), "No. (request_id r-9)"),
        (UpstreamError("It broke."), "It broke. (request_id r-9)"),
    ],
)
def test_error_body_and_error_frame_report_equal_fields(error: SluiceError, detail: str) -> None:
    before, within = native.error_body(error, "r-9"), native.error_frame(error, "r-9")
    assert before["detail"] == within["error"] == detail
    for name in ("code", "message", "status_code", "details", "request_id"):
        assert before[name] == within[name]
    assert list(within) == [
        "type", "error", "code", "message", "status_code", "details", "request_id",
    ]  # fmt: skip


# Keys

PATHS = [
    ("POST", COMPLETIONS),
    ("POST", f"{COMPLETIONS}/stop-stream/s-1"),
    ("GET", f"{COMPLETIONS}/streams"),
    ("GET", "/api/v1/models"),
    ("GET", "/api/v1/models/local"),
    ("GET", "/api/v1/models/local/pydoc"),
]


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, str]]:
    """Return lines of a key file, and the text of invalid keys by the reason."""
    monkeypatch.setattr("keys.store.LOOK_EVERY_S", 0)
    disabled, first = make_key("disabled", disabled=True)
    expired, second = make_key("expired")
    expired = json.dumps(json.loads(expired) | {"expires": "2026-01-02T00:00:00Z"}) + "\n"
    bad = {"unknown": "sk-sluice-unknown", "disabled": first, "expired": second, "odd": "\u00e9"}
    return disabled + expired, bad


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("slash", ["", "/"])
def test_every_invalid_key_gets_an_identical_401(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    secrets: tuple[str, dict[str, str]],
    method: str,
    path: str,
    slash: str,
) -> None:
    lines, bad = secrets
    site = make_app(tmp_path, monkeypatch, keys=lines)
    tries = [{"Authorization": f"Bearer {secret}"} for secret in bad.values()]
    tries += [{"X-API-Key": secret} for secret in bad.values()]
    tries += [{}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}]
    seen = set()
    for headers in tries:
        headers = headers | {"X-Request-ID": "r-1"}
        answer = site.client.open(path + slash, method=method, headers=headers)
        assert_error(answer, 401, "unauthorized", "A valid API key is required")
        sent = any(secret in value for secret in bad.values() for value in headers.values())
        challenge = 'Bearer realm="sluice"' + (', error="invalid_token"' if sent else "")
        assert answer.headers["WWW-Authenticate"] == challenge
        seen.add(answer.data)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "header",
    [
        ("Authorization", "Bearer {}"),
        ("Authorization", "bearer {}"),
        ("Authorization", "BEARER  {} "),
        ("X-API-Key", "{}"),
        ("X-API-Key", " {} "),
    ],
)
def test_valid_key_is_accepted_as_bearer_or_x_api_key_header(
    site: Site, header: tuple[str, str]
) -> None:
    name, value = header
    answer = site.client.get(f"{COMPLETIONS}/streams", headers={name: value.format(site.secret)})
    assert (answer.status_code, answer.json) == (200, [])


@pytest.mark.parametrize("slash", ["", "/"])
def test_auth_api_key_endpoint_returns_the_sent_key_as_access_token(site: Site, slash: str) -> None:
    path = "/api/v1/auth/api-key" + slash
    answer = site.client.post(path, headers={"X-API-Key": site.secret})
    assert answer.status_code == 200
    assert answer.json == {"access_token": site.secret, "token_type": "bearer"}
    bearer = {"Authorization": f"Bearer {site.secret}"}
    for headers, challenge in (
        ({"X-API-Key": "sk-bad"}, 'Bearer realm="sluice", error="invalid_token"'),
        ({}, 'Bearer realm="sluice"'),
        (bearer, 'Bearer realm="sluice"'),
    ):
        refused = site.client.post(path, headers=headers)
        assert_error(refused, 401, "unauthorized")
        assert refused.headers["WWW-Authenticate"] == challenge


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("data", [b"", b"username=x&password=y", b"\xff" * 2_000_000])
def test_auth_token_endpoint_answers_401_whatever_the_body(
    site: Site, data: bytes, slash: str
) -> None:
    answer = site.client.post("/api/v1/auth/token" + slash, data=data, headers=site.bearer)
    assert_error(answer, 401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize(("method", "path"), [*PATHS, ("POST", "/api/v1/auth/token")])
def test_options_requests_need_no_key(site: Site, method: str, path: str) -> None:
    answer = site.client.options(path)
    assert answer.status_code == 200
    assert method in answer.headers["Allow"]


# OpenAI's SDK and fields


@pytest.mark.parametrize(
    "agent", ["OpenAI/Python 1.99.0", "AsyncOpenAI/Python 2.0.0", "OpenAI/JS 5"]
)
def test_the_openai_sdk_learns_its_base_url(site: Site, agent: str) -> None:
    answer = site.client.post(COMPLETIONS, json=PROMPT, headers=site.bearer | {"User-Agent": agent})
    assert_error(
        answer, 400, "invalid_request", "base_url to this server's address followed by /v1"
    )


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"n": 2}, "n belongs in additional_params here. POST /v1/completions"),
        ({"stop": ["a"]}, "stop belongs in additional_params here. POST /v1/completions"),
        ({"stream_options": {"include_usage": True}}, "POST /v1/completions"),
        ({"messages": []}, "send the text as prompt"),
        ({"prompt": ["a", "b"]}, "POST /v1/completions, which is OpenAI's API, takes lists."),
    ],
)
def test_a_field_of_the_openai_api_says_where_it_belongs(
    site: Site, more: dict[str, Any], says: str
) -> None:
    assert_error(site.post(PROMPT | more), 400, "invalid_request", says)
