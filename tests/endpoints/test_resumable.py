"""Tests of resumable calls in the test's process: frames, reconnects, states, bounds, opt-in."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from completion import Added, Batch, Delta, Finished, Logprobs, Started, Usage, Used
from errors import UpstreamError
from streams.replay_log import ReplayLog
from streams.replay_store import ReplayStore
from streams.stream import Stream
from tests.endpoints.test_native import in_thread
from tests.gateway.test_gateway import ROWS, Scripted, eventually, play, wait
from tests.support.pace import HANG_S
from tests.test_app import PROMPT, Site, hello, make_app, make_key

NATIVE, OPENAI = FACES = ["/api/v1/completions", "/v1/completions"]
ASKED = PROMPT | {"stream": True, "resumable": True, "stream_id": "s-1"}
SSE = {"Accept": "text/event-stream"}
WORDS = ["Hel", "lo, ", 'wor"ld\n', "\u00fc\u2028", "!"]


def piece(text: str) -> Batch:
    return [Delta(0, text)]


def words() -> Scripted:
    return Scripted(
        [Started("m-up", 8)],
        *[piece(word) for word in WORDS],
        [Finished(0, "length"), Used(Usage(8, 5))],
    )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return make_app(tmp_path, monkeypatch)


def blocks(text: str) -> list[str]:
    """Return the frames of a stream. No blank line may follow anything but data."""
    assert text.endswith("\n\n")
    found = text.removesuffix("\n\n").split("\n\n")
    for block in found:
        assert block.split("\n")[-1].startswith("data: "), block
    return found


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]


def datas(text: str) -> list[str]:
    return [line[6:] for line in text.split("\n") if line.startswith("data: ")]


def text_of(text: str) -> str:
    """Return the joined text of choice 0 in the frames of any of the faces."""
    joined = ""
    for data in datas(text):
        if data == "[DONE]":
            continue
        for choice in json.loads(data).get("choices", ()):
            joined += choice["text"] if "text" in choice else choice["delta"]["content"]
    return joined


def follow(site: Site, path: str, after: int | None = None, **headers: str) -> TestResponse:
    query = "" if after is None else f"?starting_after={after}"
    return site.client.get(f"{path}/s-1{query}", headers=site.bearer | SSE | headers, buffered=True)


def as_json(answer: TestResponse) -> Any:
    return answer.json


def state(site: Site, path: str, stream_id: str = "s-1") -> Any:
    answer = site.get(f"{path}/{stream_id}")
    assert answer.status_code == 200, answer.text
    return as_json(answer)


def ended(site: Site, path: str, stream_id: str = "s-1") -> Any:
    """Wait until a stream has ended. Return its state."""
    assert eventually(lambda: state(site, path, stream_id)["expires_at"] is not None)
    return state(site, path, stream_id)


# The first connection


@pytest.mark.parametrize("path", FACES)
def test_frames_are_those_of_a_plain_stream_with_ids_from_one(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    play(monkeypatch, words(), words())
    plain = site.post(PROMPT | {"stream": True}, path, buffered=True)
    answer = site.post(ASKED, path, buffered=True)
    assert (answer.status_code, answer.headers["X-Sluice-Resumable"]) == (200, "1")
    assert answer.headers["X-Stream-ID"] == "s-1"
    found = blocks(answer.text.removeprefix(":open\n"))
    assert [block.split("\n")[0] for block in found] == [
        f"id: {n}" for n in range(1, len(found) + 1)
    ]
    unvaried = r'"(latency_ms|id|request_id|stream_id|created)":("[^"]*"|[0-9.]+)'
    without_ids = [block.partition("\n")[2] for block in found]
    assert re.sub(unvaried, "", "\n\n".join(without_ids) + "\n\n") == re.sub(
        unvaried, "", plain.text
    )
    assert text_of(answer.text) == "".join(WORDS)
    assert "X-Sluice-Resumable" not in plain.headers


def test_the_chunks_and_the_whole_answer_of_a_stream_have_one_id(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, words())
    answer = site.post(ASKED, OPENAI, buffered=True)
    ids = {json.loads(data)["id"] for data in datas(answer.text)[:-1]}
    assert ids == {ended(site, OPENAI)["result"]["id"]}
    assert ids == {f"cmpl-{answer.headers['X-Request-ID']}"}


@pytest.mark.parametrize("path", FACES)
def test_a_unary_call_gets_the_answer_of_a_plain_one(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    play(monkeypatch, words(), words())
    plain = as_json(site.post(PROMPT, path))
    answer = site.post(ASKED | {"stream": False}, path)
    found = as_json(answer)
    varied = {"id", "request_id", "duration_ms", "created_at", "created", "usage"}
    assert {n: v for n, v in found.items() if n not in varied} == {
        n: v for n, v in plain.items() if n not in varied
    }
    assert (answer.headers["X-Stream-ID"], answer.headers["X-Sluice-Resumable"]) == ("s-1", "1")
    assert state(site, path)["result"] == found, "the same, byte for byte as JSON"


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_event_is_a_plain_error(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str, stream: bool
) -> None:
    play(monkeypatch, Scripted(UpstreamError("No.", upstream_status=500)))
    answer = site.post(ASKED | {"stream": stream}, path)
    assert answer.status_code == 502
    assert ended(site, path)["status"] == "failed"
    assert "error" in state(site, path)["result"]
    again = follow(site, path)
    assert again.status_code == 200
    assert "[DONE]" not in again.text
    assert "provider_error" in again.text


# Followers


@pytest.mark.parametrize("path", FACES)
@pytest.mark.parametrize("header", [True, False])
def test_a_reconnect_gets_what_it_missed_at_every_point(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str, header: bool
) -> None:
    play(monkeypatch, words())
    whole = site.post(ASKED, path, buffered=True).text
    last = numbers(whole)[-1]
    frames = blocks(whole.removeprefix(":open\n"))
    for seen in range(last):
        at = {"Last-Event-ID": str(seen)} if header else {}
        answer = follow(site, path, None if header else seen, **at)
        assert answer.status_code == 200
        assert answer.content_type == "text/event-stream; charset=utf-8"
        assert numbers(answer.text)[-1] == last
        before = "\n\n".join(frames[:seen]) + "\n\n"
        assert text_of(before) + text_of(answer.text) == "".join(WORDS)
    assert follow(site, path, last).status_code == 204
    assert follow(site, path, last).data == b""
    beyond = follow(site, path, last + 1)
    assert (beyond.status_code, "invalid_request" in beyond.text) == (400, True)


def test_the_query_wins_over_the_header(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, words())
    last = numbers(site.post(ASKED, NATIVE, buffered=True).text)[-1]
    answer = follow(site, NATIVE, last, **{"Last-Event-ID": "0"})
    assert answer.status_code == 204


@pytest.mark.parametrize("sent", ["x", "-1", "1.5", "\u0661", "9" * 16])
def test_an_invalid_event_id_is_a_400(
    site: Site, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    play(monkeypatch, words())
    site.post(ASKED, NATIVE, buffered=True)
    answer = site.client.get(
        f"{NATIVE}/s-1", query_string={"starting_after": sent}, headers=site.bearer | SSE
    )
    assert answer.status_code == 400


@pytest.mark.parametrize("path", FACES)
def test_missed_texts_of_a_choice_come_joined_with_the_highest_id(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    play(monkeypatch, words())
    whole = numbers(site.post(ASKED, path, buffered=True).text)
    answer = follow(site, path, whole[0])
    assert len(numbers(answer.text)) < len(whole) - 3
    assert text_of(answer.text).endswith("\u00fc\u2028!")
    assert answer.text.count("\u2028") == 0


@pytest.mark.parametrize("path", FACES)
def test_the_call_goes_on_when_its_connection_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    more = threading.Event()
    play(
        monkeypatch,
        Scripted(
            [Delta(0, "Hel")], lambda: more.wait(HANG_S), [Delta(0, "lo"), Finished(0, "stop")]
        ),
    )
    answer = site.post(ASKED, path)
    begun = b""
    for part in answer.iter_encoded():
        begun += part
        if b"Hel" in begun:
            break
    answer.close()
    assert state(site, path)["status"] == "in_progress"
    thread, found = in_thread(lambda: follow(site, path, numbers(begun.decode())[-1]))
    more.set()
    thread.join(HANG_S)
    assert text_of(begun.decode()) + text_of(found[0].text) == "Hello"
    assert ended(site, path)["status"] == "completed"


def test_a_stream_has_a_bounded_number_of_followers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted([Delta(0, "Hi")], wait))
    first = site.post(ASKED, NATIVE)
    others = [site.client.get(f"{NATIVE}/s-1", headers=site.bearer | SSE) for _ in range(15)]
    assert {other.status_code for other in others} == {200}
    refused = site.client.get(f"{NATIVE}/s-1", headers=site.bearer | SSE)
    assert (refused.status_code, as_json(refused)["details"]["limit_type"]) == (429, "followers")
    others.pop().close()
    assert site.client.get(f"{NATIVE}/s-1", headers=site.bearer | SSE).status_code == 200
    site.post(None, f"{NATIVE}/stop-stream/s-1")
    for other in (first, *others):
        assert b'"finish_reason":"cancelled"' in other.data


@pytest.mark.parametrize("path", FACES)
def test_stop_ends_a_stream_for_all_followers(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    play(monkeypatch, Scripted([Delta(0, "Hi")], wait))
    first = site.post(ASKED, path)
    second = site.client.get(f"{path}/s-1?stream=true", headers=site.bearer)
    assert site.post(None, f"{path}/stop-stream/s-1").status_code == 200
    texts = [each.data.decode().replace(":open\n", "") for each in (first, second)]
    assert texts[0] == texts[1]
    assert texts[0].endswith("data: [DONE]\n\n")
    assert "cancelled" in texts[0]
    found = ended(site, path)
    assert found["status"] == "stopped"
    assert "cancelled" in json.dumps(found["result"])


@pytest.mark.parametrize("path", FACES)
def test_a_stop_while_the_call_is_admitted_is_not_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    billing = site.gateway._billing
    admit = billing.open

    def stopped_meanwhile(key: Any, stream: Stream, chosen: Any, claim: Any) -> Any:
        reservation = admit(key, stream, chosen, claim)
        site.gateway.streams.stop(key.id, stream.id)
        return reservation

    monkeypatch.setattr(billing, "open", stopped_meanwhile)
    play(monkeypatch, words())
    answer = site.post(ASKED, path)
    assert (answer.status_code, text_of(answer.text)) == (200, "")
    assert "[DONE]" in answer.text
    assert ended(site, path)["status"] == "stopped"


def test_a_stream_that_fails_in_the_middle_shows_its_error_to_each_follower(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted([Delta(0, "Hi")], UpstreamError("No.", upstream_status=500)))
    first = site.post(ASKED, OPENAI, buffered=True)
    assert first.status_code == 200
    for answer in (first, follow(site, OPENAI, 1)):
        assert json.loads(datas(answer.text)[-1])["error"]["code"] == "provider_error"
    assert state(site, OPENAI)["result"]["error"]["code"] == "provider_error"


# States, faces and keys


def test_the_state_names_what_is_known(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, words())
    site.post(ASKED, NATIVE, headers={"X-Request-ID": "r-1"}, buffered=True)
    found = ended(site, NATIVE)
    assert list(found) == [
        *("stream_id", "request_id", "status", "provider", "model", "created_at"),
        *("last_event_id", "expires_at", "result"),
    ]
    assert (found["stream_id"], found["request_id"]) == ("s-1", "r-1")
    assert (found["status"], found["provider"], found["model"]) == ("completed", "sim", "m")
    assert found["result"]["data"] == "".join(WORDS)
    assert found["result"]["finish_reason"] == "length"


@pytest.mark.parametrize(("made", "other"), [FACES, FACES[::-1]])
def test_a_stream_is_followed_only_on_the_face_that_made_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, made: str, other: str
) -> None:
    play(monkeypatch, words())
    site.post(ASKED, made, buffered=True)
    assert site.get(f"{made}/s-1").status_code == 200
    answer = site.get(f"{other}/s-1")
    assert answer.status_code == 404
    assert "stream_not_found" in answer.text


def test_another_key_cannot_see_follow_or_evict_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, secret = make_key(name="other", id="key_other")
    site = make_app(tmp_path, monkeypatch, keys=line)
    play(monkeypatch, words(), words())
    site.post(ASKED, NATIVE, buffered=True)
    other = {"Authorization": f"Bearer {secret}"}
    assert site.client.get(f"{NATIVE}/s-1", headers=other).status_code == 404
    answer = site.client.post(NATIVE, json=ASKED, headers=other, buffered=True)
    assert answer.status_code == 200, "ids are per key"
    assert site.get(f"{NATIVE}/s-1").status_code == 200
    assert site.client.get(f"{NATIVE}/s-1").status_code == 401


def test_a_plain_stream_cannot_be_followed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, words())
    site.post(PROMPT | {"stream": True, "stream_id": "s-1"}, NATIVE, buffered=True)
    assert site.get(f"{NATIVE}/s-1").status_code == 404


@pytest.mark.parametrize("resumable", [True, False])
def test_an_id_is_taken_until_its_log_is_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch, resumable: bool
) -> None:
    play(monkeypatch, words(), words())
    site.post(ASKED, NATIVE, buffered=True)
    ended(site, NATIVE)
    again = ASKED | {"resumable": resumable}
    refused = site.post(again, NATIVE)
    assert (refused.status_code, as_json(refused)["code"]) == (409, "stream_exists")
    assert "is still kept" in as_json(refused)["message"]
    site.gateway.replays.keep = 0
    site.gateway.replays.sweep()
    assert site.get(f"{NATIVE}/s-1").status_code == 404
    assert site.post(again, NATIVE, buffered=True).status_code == 200


@pytest.mark.parametrize("header", [True, False])
def test_streams_cannot_be_the_id_of_a_resumable_stream(site: Site, header: bool) -> None:
    body = ASKED | {"stream_id": None if header else "streams"}
    headers = {"X-Stream-ID": "streams"} if header else {}
    answer = site.post(body, NATIVE, headers=headers)
    assert (answer.status_code, as_json(answer)["code"]) == (400, "invalid_request")
    assert len(site.gateway.streams) == 0


# Background


@pytest.mark.parametrize("path", FACES)
def test_a_background_call_answers_202_at_once_and_its_result_later(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    more = threading.Event()
    play(
        monkeypatch,
        Scripted(lambda: more.wait(HANG_S), [Delta(0, "Hello"), Finished(0, "stop")]),
    )
    answer = site.post(PROMPT | {"background": True, "stream_id": "s-1"}, path)
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"{path}/s-1"
    assert as_json(answer)["status"] in ("queued", "in_progress")
    assert "result" not in as_json(answer)
    more.set()
    found = ended(site, path)
    assert "Hello" in json.dumps(found["result"])
    assert text_of(follow(site, path).text) == "Hello"


def test_a_background_call_goes_on_without_followers_and_others_are_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted([Delta(0, "a")], wait), Scripted([Delta(0, "b")], wait))
    site.post(PROMPT | {"background": True, "stream_id": "back"}, NATIVE)
    first = site.post(ASKED, NATIVE)
    site.gateway.replays._orphan = 0
    site.gateway.replays.sweep()
    assert state(site, NATIVE)["status"] == "in_progress", "it has a follower"
    first.close()
    site.gateway.replays.sweep()
    found = ended(site, NATIVE)
    assert (found["status"], found["result"]["finish_reason"]) == ("stopped", "cancelled")
    assert state(site, NATIVE, "back")["status"] == "in_progress"
    site.post(None, f"{NATIVE}/stop-stream/back")
    assert ended(site, NATIVE, "back")["status"] == "stopped"


# Opt-in


@pytest.mark.parametrize(
    ("body", "header", "key", "server", "expected"),
    [
        (None, None, None, False, None),
        (True, None, None, False, "1"),
        (None, "1", None, False, "1"),
        (None, "0", True, True, None),
        (False, "1", True, True, None),
        (None, None, True, False, "1"),
        (None, None, False, True, None),
        (None, None, None, True, "1"),
    ],
)
def test_body_header_key_and_server_decide_in_this_order(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: bool | None,
    header: str | None,
    key: bool | None,
    server: bool,
    expected: str | None,
) -> None:
    line, secret = make_key(name="other", id="key_other", resumable=key)
    site = make_app(tmp_path, monkeypatch, resumable=server, keys=line)
    site.secret = secret
    play(monkeypatch, hello())
    sent = {} if header is None else {"X-Sluice-Resumable": header}
    answer = site.post(PROMPT | {"stream": True, "resumable": body}, headers=sent, buffered=True)
    assert answer.headers.get("X-Sluice-Resumable") == expected


def test_an_invalid_header_is_a_400(site: Site) -> None:
    assert site.post(PROMPT, headers={"X-Sluice-Resumable": "yes"}).status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_more_than_eight_choices_are_not_resumable(
    site: Site, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    finishes: Batch = [Finished(n, "stop") for n in range(9)]
    play(monkeypatch, Scripted([Delta(n, "x") for n in range(9)], finishes))
    answer = site.post(
        PROMPT | {"n": 9, "stream": stream, "resumable": True}, OPENAI, buffered=True
    )
    assert (answer.status_code, answer.headers["X-Sluice-Resumable"]) == (200, "0")
    if stream:
        assert answer.text.startswith(": not resumable: ")
        assert not numbers(answer.text)
    assert site.post(PROMPT | {"n": 9, "background": True}, OPENAI).status_code == 400


def test_without_room_a_call_is_not_resumable_and_a_background_call_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_app(tmp_path, monkeypatch, replay_total=0)
    play(monkeypatch, hello())
    answer = site.post(ASKED, buffered=True)
    assert (answer.status_code, answer.headers["X-Sluice-Resumable"]) == (200, "0")
    assert site.post(PROMPT | {"background": True}).status_code == 503


# Kinds of frames


@pytest.mark.parametrize("path", FACES)
def test_logprobs_fields_and_several_choices_survive_in_frames_and_result(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def several() -> Scripted:
        return Scripted(
            [Started("m-up", 8), Delta(0, "a"), Delta(1, "b")],
            [Added(0, {"ids": [1]}, 8), Delta(0, "c"), Added(1, {"top": [1]}, 8, top=True)],
            [Delta(1, "d", Logprobs(["d"], [-0.5], None, [1])), Added(0, {"ids": [2]}, 8)],
            [Finished(0, "stop"), Finished(1, "length"), Used(Usage(8, 4))],
        )

    play(monkeypatch, several(), several())
    params = {"n": 2, "logprobs": 0, "x_new": 1}
    body = PROMPT | (params if path == OPENAI else {"additional_params": params})
    plain = as_json(site.post(body, path))
    answer = as_json(site.post(body | {"resumable": True, "stream_id": "s-1"}, path))
    for name in ("choices", "data", "extra", "top"):
        assert answer.get(name) == plain.get(name), name
    assert "top" in json.dumps(plain)
    frames = follow(site, path).text
    assert '"ids":[1]' in frames
    assert '"token_logprobs":[-0.5]' in frames


def test_the_log_of_a_long_stream_is_trimmed_and_the_stream_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.replay_store.STREAM_BYTES", 64 << 10)
    monkeypatch.setattr("streams.replay_store.TRIM_BYTES", 16 << 10)
    play(monkeypatch, Scripted(*[piece("x" * 1000)] * 200, [Finished(0, "stop")]))
    site.post(PROMPT | {"background": True, "stream_id": "s-1"}, NATIVE)
    found = ended(site, NATIVE)
    assert (found["status"], found["result"]["code"]) == ("completed", "stream_trimmed")
    gone = follow(site, NATIVE, 1)
    assert (gone.status_code, as_json(gone)["code"]) == (410, "stream_trimmed")
    first = as_json(gone)["details"]["first"]
    assert first > 100
    left = follow(site, NATIVE, first - 1)
    assert left.status_code == 200
    assert numbers(left.text)[-1] == 203 + 1
    assert site.gateway.replays.size < 80 << 10


@pytest.mark.parametrize("path", FACES)
def test_the_text_of_an_ended_stream_is_in_memory_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    text = "\u00fc\u2028\u0085\n" * 1000
    play(monkeypatch, Scripted(*[piece(text)] * 20, [Finished(0, "stop")]))
    site.post(PROMPT | {"background": True, "stream_id": "s-1"}, path)
    result = ended(site, path)["result"]
    assert (result.get("data") or result["choices"][0]["text"]) == text * 20
    [replay] = site.gateway.replays.kept.values()
    assert replay.size < 1.2 * replay.log.size


def test_ended_streams_of_a_key_make_room_and_those_of_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, secret = make_key(name="other", id="key_other")
    site = make_app(tmp_path, monkeypatch, keys=line)
    monkeypatch.setattr("streams.replay_store.KEY_BYTES", 64 << 10)
    play(monkeypatch, *[Scripted(piece("x" * 20_000), [Finished(0, "stop")]) for _ in range(5)])
    other = {"Authorization": f"Bearer {secret}"}
    site.client.post(NATIVE, json=ASKED, headers=other, buffered=True)
    for number in range(4):
        site.post(ASKED | {"stream_id": f"n-{number}"}, NATIVE, buffered=True)
        ended(site, NATIVE, f"n-{number}")
    assert site.get(f"{NATIVE}/n-0").status_code == 404
    assert site.get(f"{NATIVE}/n-3").status_code == 200
    assert site.client.get(f"{NATIVE}/s-1", headers=other).status_code == 200


def test_a_whole_answer_is_not_trimmed_while_its_caller_waits(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.replay_store.STREAM_BYTES", 64 << 10)
    monkeypatch.setattr("streams.replay_store.KEY_BYTES", 96 << 10)
    play(monkeypatch, Scripted(*[piece("x" * 1000)] * 200, [Finished(0, "stop")]), words())
    answer = site.post(ASKED | {"stream": False}, NATIVE)
    assert (answer.status_code, as_json(answer)["data"]) == (200, "x" * 200_000)
    second = site.post(ASKED | {"stream_id": "s-2"}, NATIVE, buffered=True)
    assert second.headers["X-Sluice-Resumable"] == "1"
    assert site.get(f"{NATIVE}/s-1").status_code == 404, "it went to make room"


def test_a_stream_cannot_end_while_its_log_is_trimmed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[bool] = []
    trim = ReplayLog.trim

    def trim_locked(log: ReplayLog, size: int) -> None:
        [stream] = site.gateway.streams._snapshot()
        locked.append(stream.mailbox._lock.locked())
        trim(log, size)

    monkeypatch.setattr(ReplayLog, "trim", trim_locked)
    monkeypatch.setattr("streams.replay_store.STREAM_BYTES", 2048)
    play(monkeypatch, Scripted(*[piece("x" * 5000)] * 3, [Finished(0, "stop")]))
    site.post(ASKED, NATIVE, buffered=True)
    assert locked == [True] * 3, "else its last frames could go to the log that was replaced"


def test_nothing_of_a_call_outlives_it_except_its_log(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gc
    import weakref

    play(monkeypatch, words())
    streams: list[weakref.ref[Any]] = []
    add = ReplayStore.add

    def noted(store: ReplayStore, replay: Any) -> None:
        [stream] = site.gateway.streams._snapshot()
        streams.append(weakref.ref(stream))
        add(store, replay)

    monkeypatch.setattr(ReplayStore, "add", noted)
    site.post(ASKED, NATIVE, buffered=True)
    ended(site, NATIVE)

    def gone() -> bool:
        gc.collect()
        return streams[0]() is None

    assert eventually(gone)


def test_a_continued_stream_has_its_comment_in_the_next_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"sim": ROWS["sim"] | {"completions": True}}
    site = make_app(tmp_path, monkeypatch, continue_streams=True, providers=rows)
    broken = Scripted([Delta(0, "Hel")], UpstreamError("No.", upstream_status=500))
    play(monkeypatch, broken, Scripted([Delta(0, "lo"), Finished(0, "stop")]))
    answer = site.post(ASKED, OPENAI, buffered=True).text
    found = blocks(answer.removeprefix(":open\n"))
    assert found[1].startswith("id: 2\n: the stream was interrupted; another attempt continues")
    assert text_of(answer) == "Hello"
    assert text_of(follow(site, OPENAI, 1).text) == "lo"


def test_a_shutdown_ends_a_stream_with_its_error_and_it_is_interrupted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scripted([Delta(0, "Hi")], wait))
    first = site.post(ASKED, NATIVE)
    assert eventually(lambda: state(site, NATIVE)["last_event_id"] > 0)
    site.gateway.streams.end_all()
    assert json.loads(datas(first.text)[-1])["code"] == "unavailable"
    found = ended(site, NATIVE)
    assert (found["status"], found["result"]["code"]) == ("interrupted", "unavailable")


@pytest.mark.parametrize("path", FACES)
def test_the_status_line_is_released_before_the_first_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    site = make_app(tmp_path, monkeypatch, first_event_wait=0)
    play(monkeypatch, Scripted(wait))
    answer = site.post(ASKED, path)
    assert answer.status_code == 200
    site.post(None, f"{path}/stop-stream/s-1")
    assert numbers(answer.text)[0] == 1
    assert "cancelled" in answer.text
