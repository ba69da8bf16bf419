"""Tests of chats on both faces, against a fake host's raw bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from werkzeug.test import TestResponse

from endpoints import chat_fields
from errors import InvalidRequest
from tests.support import fake as fp
from tests.support.fake import FakeProvider
from tests.test_app import Site, make_app, make_key

OPENAI, NATIVE = "/v1/chat/completions", "/api/v1/chat/completions"
HEAD = '"id":"c1","object":"chat.completion.chunk","created":5,"model":'
MESSAGES = [{"role": "user", "content": "Hi"}]
REPLICAS = ("first", "second", "third")
BYOK = "pk-0123456789abcdef0123456789abcdef"


class ChatSite(Site):
    """A site with a fake host."""

    fake: FakeProvider
    place: Path
    """The ledger's file."""
    poor: str
    """A key with a small budget."""

    def ask(self, path: str = OPENAI, headers: Any = None, /, **fields: Any) -> TestResponse:
        body = {"model": "host/m", "messages": MESSAGES} | fields
        return self.client.post(
            path, json=body, headers={"X-API-Key": self.secret} | (headers or {})
        )

    @property
    def sent(self) -> dict[str, Any]:
        """The JSON of the last request to the host."""
        found: dict[str, Any] = json.loads(self.fake.requests[-1].body)
        return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeProvider) -> Iterator[ChatSite]:
    monkeypatch.setattr("tests.test_app.Site", ChatSite)
    row = {"base_url": fake.base_url}
    stats = {"include_usage": True, "continuous_usage_stats": True}
    rows = {
        "host": row,
        "other": row,
        "stats": row | {"stream_options": stats},
        "plain": row | {"stream_options": {}},
        "claude": {"dialect": "anthropic", "base_url": fake.base_url},
        "many": {"base_url": [f"{fake.origin}/{name}/v1" for name in REPLICAS]},
    }
    price = {"input_per_mtok": 1.0, "output_per_mtok": 2.0}
    prices = {f"{name}/m": price for name in rows}
    line, poor = make_key(budget_usd=0.005)
    found = make_app(
        *(tmp_path, monkeypatch),
        keys=line,
        providers=rows,
        prices=prices,
        retries=0,
        max_body=20_000,
        max_chat_body=400_000,
        bodies_total=900_000,
    )
    assert isinstance(found, ChatSite)
    found.fake, found.place, found.poor = fake, tmp_path / "sluice.db", poor
    yield found
    found.gateway.reader._transport.close()


def chunk(delta: str, reason: str = "null", more: str = "", model: str = "gpt-x") -> str:
    choices = f'[{{"index":0,"delta":{delta},"finish_reason":{reason}}}]'
    return f'{{{HEAD}"{model}","choices":{choices}{more}}}'


USAGE = '{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"audio_tokens":1}}'
CHUNKS = [
    chunk('{"role":"assistant","content":""}'),
    chunk('{"content":"Hel"}'),
    chunk('{"content":"lo","x":1.50}'),
    chunk('{"tool_calls":[{"index":0,"function":{"arguments":"{"}}]}'),
    chunk("{}", '"tool_calls"'),
]
USAGE_CHUNK = f'{{{HEAD}"gpt-x","choices":[],"usage":{USAGE}}}'
WHOLE = (
    '{"id": "c1","object":"chat.completion","model":"gpt-x","choices":[{"index":0,"message":'
    f'{{"role":"assistant","content":"Hello","x":1.50}},"finish_reason":"stop"}}],"usage":{USAGE}}}'
)


def serve(site: ChatSite, *chunks: str, done: bool = True) -> None:
    site.fake.script(fp.sse(chunks or [*CHUNKS, USAGE_CHUNK], done=done))


def data_of(text: str) -> list[str]:
    return [line[6:] for line in text.split("\n") if line.startswith("data: ")]


# The OpenAI face


def test_chunks_come_back_byte_by_byte_with_the_models_full_name(site: ChatSite) -> None:
    serve(site)
    answer = site.ask(stream=True)
    expected = [one.replace('"model":"gpt-x"', '"model":"host/m"') for one in CHUNKS]
    assert data_of(answer.text) == [*expected, "[DONE]"]
    assert answer.headers["X-Stream-ID"] == answer.headers["X-Request-ID"]
    assert site.sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("model", ["host", "plain", "stats"])
def test_usage_comes_to_who_asked_for_it_with_the_cost(site: ChatSite, model: str) -> None:
    serve(site)
    answer = site.ask(model=f"{model}/m", stream=True, stream_options={"include_usage": True})
    last = json.loads(data_of(answer.text)[-2])
    assert last["choices"] == []
    assert last["model"] == f"{model}/m"
    assert last["usage"] == json.loads(USAGE) | {"cost": 0.000017}
    assert ("stream_options" in site.sent) == (model != "plain")


def test_usage_on_each_chunk_is_shown_only_to_who_asked_for_it(site: ChatSite) -> None:
    chunks = [chunk('{"content":"a"}', more=f',"usage":{USAGE}'), chunk("{}", '"stop"')]
    serve(site, *chunks)
    assert "usage" not in site.ask(model="stats/m", stream=True).text
    both = {"include_usage": True, "continuous_usage_stats": True}
    serve(site, *chunks)
    first = data_of(site.ask(model="stats/m", stream=True, stream_options=both).text)[0]
    assert first == chunks[0].replace("gpt-x", "stats/m")


def test_usage_beside_a_choice_isnt_shown_twice(site: ChatSite) -> None:
    """Some clients add up the usage of all chunks."""
    serve(site, chunk('{"content":"a"}'), chunk("{}", '"stop"', f',"usage":{USAGE}'))
    found = data_of(site.ask(stream=True, stream_options={"include_usage": True}).text)
    reported = [one for one in map(json.loads, found[:-1]) if one.get("usage")]
    assert [(one["choices"], one["usage"]["prompt_tokens"]) for one in reported] == [([], 9)]
    assert json.loads(found[-3])["choices"][0]["finish_reason"] == "stop"


def test_usage_that_the_host_puts_beside_a_choice_is_passed_on(site: ChatSite) -> None:
    last = chunk("{}", '"stop"', f',"usage":{USAGE}')
    serve(site, chunk('{"content":"a"}'), last)
    assert last.replace("gpt-x", "plain/m") in site.ask(model="plain/m", stream=True).text


@pytest.mark.parametrize(
    "text",
    [
        '{"choices":[{"index":0,"delta":{"content":"\\"model\\":\\"gpt-x\\""}}],"model":"gpt-x"}',
        '{"model" : "gpt-x" ,"choices":[{"index":0,"delta":{"content":"a"}}]}',
        '{"x":{"model":"gpt-x"},"choices":[{"index":0,"delta":{"content":"a"}}],"model":"gpt-x"}',
        '{"choices":[{"index":0,"delta":{"content":"a","model":"gpt-x"}}],"model":"gpt-x","z":1}',
        '{"x":{"a":1,"model":"gpt-x"},"model":"gpt-x","choices":[{"delta":{"content":"a"}}]}',
        '{"choices":[{"index":0,"delta":{"content":"a"}}],"x":{"model":"gpt-x"}}',
        '{"choices":[{"index":0,"delta":{"content":"a"}}],"model":null}',
    ],
)
def test_only_the_model_at_the_top_is_replaced(site: ChatSite, text: str) -> None:
    end = '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"model":"gpt-x"}'
    serve(site, text, text, end)
    first, second, *_ = data_of(site.ask(stream=True).text)
    original, found = json.loads(text), json.loads(first)
    assert first == second
    if isinstance(original.get("model"), str):
        assert found == original | {"model": "host/m"}
    else:
        assert {**found, "model": None} == {**original, "model": None}


def test_a_model_that_isnt_a_string_is_replaced_too(site: ChatSite) -> None:
    texts = [
        f'{{"model":{number},"choices":[{{"index":0,"delta":{{"content":"a"}}}}]}}'
        for number in (1, 12, 1)
    ]
    serve(site, *texts, chunk("{}", '"stop"'))
    found = data_of(site.ask(stream=True).text)[:-1]
    assert {json.loads(one)["model"] for one in found} == {"host/m"}


def test_a_whole_answer_gains_the_cost_and_the_models_full_name(site: ChatSite) -> None:
    site.fake.script(fp.answer(WHOLE.encode()))
    answer = site.ask()
    expected = WHOLE.replace('"gpt-x"', '"host/m"').replace('"id": "c1"', '"id":"c1"')
    assert answer.text == expected[:-2] + ',"cost":0.000017}}'
    assert "X-Stream-ID" not in answer.headers


def test_an_answer_without_usage_gets_an_estimate(site: ChatSite) -> None:
    whole = json.loads(WHOLE)
    del whole["usage"]
    site.fake.script(fp.answer(whole))
    usage = site.ask().get_json()["usage"]
    assert usage["source"] == "estimate"
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (9, 2)
    serve(site, *CHUNKS)
    answer = site.ask(stream=True, stream_options={"include_usage": True})
    usage = json.loads(data_of(answer.text)[-2])["usage"]
    assert (usage["source"], usage["completion_tokens"]) == ("estimate", 3)


def test_a_stream_from_a_host_that_always_streams_becomes_a_whole_answer(site: ChatSite) -> None:
    fragments = [
        chunk('{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":"{"}}]}'),
        chunk('{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}'),
        chunk('{"tool_calls":[{"index":1,"id":"u","function":{"arguments":"2"}}]}'),
    ]
    serve(site, CHUNKS[0], CHUNKS[1], *fragments, CHUNKS[-1], USAGE_CHUNK)
    found = site.ask().get_json()
    assert (found["object"], found["model"], found["id"]) == ("chat.completion", "host/m", "c1")
    [choice] = found["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Hel",
        "tool_calls": [
            {"id": "t", "function": {"name": "f", "arguments": "{}"}},
            {"id": "u", "function": {"arguments": "2"}},
        ],
    }


@pytest.mark.parametrize("path", [OPENAI, NATIVE])
def test_odd_chunks_are_joined_to_a_whole_answer(site: ChatSite, path: str) -> None:
    """Some hosts count tokens in `index`, and some send it as a string."""
    texts = [
        '{"choices":[{"index":"0","delta":{"content":"a"}}]}',
        '{"choices":[{"index":1,"delta":{"content":"b"}}]}',
        '{"choices":[{"index":2,"delta":"x"}]}',
        '{"choices":[{"index":3,"delta":null,"finish_reason":"stop"}]}',
    ]
    serve(site, *texts)
    [choice] = site.ask(path).get_json()["choices"]
    expected = {"index": 0, "message": {"role": "assistant", "content": "ab"}}
    assert choice == expected | {"finish_reason": "stop"}


def test_sluices_own_fields_go_to_no_host(site: ChatSite) -> None:
    site.fake.script(fp.answer(WHOLE.encode()))
    own: dict[str, Any] = {"provider": "host", "byok_api_key": BYOK, "stream_id": "s1"}
    own |= {"fallbacks": ["other/m"], "background": False, "resumable": False}
    answer = site.ask(model="m", **own, additional_params={"top_k": 3}, vendor=None)
    assert answer.status_code == 200
    assert site.sent == {"model": "m", "messages": MESSAGES, "vendor": None, "top_k": 3}
    assert answer.get_json()["byok_api_key"] is True
    assert "X-Sluice-Dropped" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
def test_a_key_that_the_host_repeats_never_reaches_the_client(site: ChatSite, stream: bool) -> None:
    serve(site, chunk(f'{{"content":"{BYOK}"}}'), chunk(f'{{"content":"x {BYOK[8:]}"}}', '"stop"'))
    text = site.ask(OPENAI, stream=stream, byok_api_key=BYOK).text
    assert "choices" in text
    assert not any(BYOK[at : at + 16] in text for at in range(16))
    serve(site, chunk(f'{{"content":"{BYOK}"}}'), chunk("{}", '"stop"'))
    assert BYOK not in site.ask(NATIVE, stream=stream, byok_api_key=BYOK).text


@pytest.mark.parametrize(
    ("key", "text"),
    [("EMPTY", "EMPTY"), (f"sk-proj-{BYOK}", "sk-proj- and pk-0"), (BYOK, "pk-01234567")],
)
def test_text_that_only_resembles_the_key_keeps_its_bytes(
    site: ChatSite, key: str, text: str
) -> None:
    one = chunk(f'{{"content":"Not {text}.","x":1.50}}', '"stop"')
    serve(site, one)
    found = data_of(site.ask(stream=True, byok_api_key=key).text)[0]
    assert found == one.replace("gpt-x", "host/m")


def test_a_failure_before_the_first_visible_byte_goes_to_the_fallback(site: ChatSite) -> None:
    site.fake.script(fp.sse([CHUNKS[0], '{"error":{"message":"boom"}}'], done=False))
    serve(site)
    answer = site.ask(stream=True, fallbacks=["other/m"])
    expected = [one.replace('"gpt-x"', '"other/m"') for one in CHUNKS]
    assert data_of(answer.text) == [*expected, "[DONE]"]
    assert answer.headers["X-Sluice-Attempts"] == "2"
    assert len(site.fake.requests) == 2


@pytest.mark.parametrize("path", [OPENAI, NATIVE])
def test_a_failure_after_the_first_visible_byte_is_an_error_event(
    site: ChatSite, path: str
) -> None:
    serve(site, *CHUNKS[:3], done=False)
    answer = site.ask(path, stream=True, fallbacks=["other/m"])
    assert answer.status_code == 200
    assert "[DONE]" not in answer.text
    last = json.loads(data_of(answer.text)[-1])
    assert (last["error"]["code"] if path == OPENAI else last["code"]) == "provider_error"
    assert len(site.fake.requests) == 1


def test_a_host_without_chats_is_refused_by_name_or_skipped(site: ChatSite) -> None:
    answer = site.ask(model="claude/m")
    error = answer.get_json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["message"].startswith("claude/m can't chat here")
    site.fake.script(fp.answer(WHOLE.encode()))
    assert site.ask(model="claude/m", fallbacks=["host/m"]).get_json()["model"] == "host/m"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": None}, "messages is missing; expected a list of objects, each with a role."),
        ({"messages": []}, "messages: got []"),
        ({"messages": [{"content": "a"}]}, "messages: got a list of length 1"),
        ({"n": 0}, "n: got 0; expected an integer from 1 to 128."),
        ({"stream": "yes"}, "stream: got"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "has different values in two places"),
        ({"Model": "x"}, "Did you mean model?"),
        ({"stream_options": 1}, "stream_options: got 1"),
        ({"additional_params": {"messages": []}}, "additional_params can't set messages."),
        ({"top_k": 1, "additional_params": {"top_k": 2}}, "has different values"),
    ],
)
def test_an_invalid_body_is_refused_with_the_fields_name(
    site: ChatSite, fields: dict[str, Any], says: str
) -> None:
    answer = site.ask(**fields)
    assert answer.status_code == 400
    assert says in answer.get_json()["error"]["message"]
    assert site.app.extensions["sluice"].bodies.held == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"models": ["other/x"]}, "Unknown field: models."),
        ({"base_url": "x"}, "Unknown field: base_url."),
        ({"options": {"model": "x"}}, "model can't be inside another field."),
        ({"options": {"num_predict": 9}, "max_tokens": 5}, "have different values"),
        ({"parameters": {"N": 3}}, "Unknown field: N. Did you mean n?"),
        ({"additional_params": {"options": {"models": []}}}, "models can't be inside"),
    ],
)
def test_a_chat_cant_bypass_limits_and_allow_lists_by_other_fields(
    site: ChatSite, fields: dict[str, Any], says: str
) -> None:
    answer = site.ask(**fields)
    assert (answer.status_code, says in answer.text) == (400, True), answer.text


def test_limits_inside_a_field_are_counted_and_stay_there(site: ChatSite) -> None:
    site.fake.script(fp.answer(WHOLE.encode()))
    sent = {"options": {"num_predict": 90_000, "top_k": 3}}
    assert site.ask(**sent).status_code == 200
    assert site.sent == {"model": "m", "messages": MESSAGES} | sent
    raw = {"messages": MESSAGES, **sent}
    fields = {name: Raw(json.dumps(value).encode()) for name, value in raw.items()}
    _, wanted, _ = chat_fields.parse(fields, 1)
    assert wanted.max_tokens == 90_000


@pytest.mark.parametrize(
    "name",
    [
        *("n", "max_tokens", "stream", "stream_options", "model", "byok_api_key", "fallbacks"),
        *("additional_params", "service_tier", "resumable", "n_predict"),
    ],
)
@pytest.mark.parametrize("path", [OPENAI, NATIVE])
def test_a_number_that_is_too_large_is_refused(site: ChatSite, path: str, name: str) -> None:
    body = f'{{"messages":[{{"role":"user","content":"a"}}],"{name}":1e400}}'
    headers = {"X-API-Key": site.secret, "Content-Type": "application/json"}
    answer = site.client.post(path, data=body, headers=headers)
    assert answer.status_code == 400
    assert name in answer.text


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_body_that_isnt_utf_8_is_refused(site: ChatSite, size: int) -> None:
    body = b'{"model":"host/m","messages":[{"role":"user","content":"' + "\u00e9".encode() * size
    headers = {"X-API-Key": site.secret, "Content-Type": "application/json"}
    for bad in (b"\xff", b"\xc3", b"\xed\xa0\x80"):
        answer = site.client.post(OPENAI, data=body + bad + b'"}]}', headers=headers)
        assert answer.status_code == 400
        assert f"The body is not UTF-8 at byte {len(body)}." in answer.text
    site.fake.script(fp.answer(WHOLE.encode()))
    answer = site.client.post(OPENAI, data=body + b'"}]}', headers=headers)
    assert answer.status_code == 200


def test_a_body_that_isnt_an_object_is_refused(site: ChatSite) -> None:
    headers = {"X-API-Key": site.secret, "Content-Type": "application/json"}
    for body in ("[]", '"x"', '{"a":', "", "[" * 100_000):
        answer = site.client.post(OPENAI, data=body, headers=headers)
        assert answer.status_code == 400


# The native face


def test_a_native_answer_has_the_text_and_the_hosts_choices(site: ChatSite) -> None:
    site.fake.script(fp.answer(WHOLE.encode()))
    found = site.ask(NATIVE, temperature=0.5, max_tokens=None).get_json()
    assert (found["data"], found["finish_reason"], found["model"]) == ("Hello", "stop", "m")
    assert found["choices"] == json.loads(WHOLE)["choices"]
    assert found["usage"]["tokens_total"] == 13
    assert site.sent == {"model": "m", "messages": MESSAGES, "temperature": 0.5}


def test_a_native_stream_has_the_frames_of_a_completion(site: ChatSite) -> None:
    serve(site)
    answer = site.ask(NATIVE, stream=True)
    frames = [json.loads(one) for one in data_of(answer.text)[:-1]]
    kinds = ["usage_start", "content", "content", "content", "content", "finish", "usage_final"]
    assert [frame["type"] for frame in frames] == kinds
    assert [frame.get("data") for frame in frames[1:6]] == ["", "Hel", "lo", "", None]
    for frame, one in zip(frames[1:6], CHUNKS, strict=True):
        assert frame["choices"] == json.loads(one)["choices"]
    assert frames[5]["finish_reason"] == "tool_calls"
    assert (frames[6]["input_tokens"], frames[6]["cost_usd"]) == (9, 0.000017)
    assert data_of(answer.text)[-1] == "[DONE]"


@pytest.mark.parametrize("fields", [{"tools": []}, {"temperature": 3}, {"prompt": "x"}])
def test_the_native_face_takes_only_its_own_fields(site: ChatSite, fields: dict[str, Any]) -> None:
    answer = site.ask(NATIVE, **fields)
    assert answer.status_code == 400
    assert next(iter(fields)) in answer.get_json()["detail"]


# The embedded model


@pytest.mark.parametrize("path", [OPENAI, NATIVE])
@pytest.mark.parametrize("stream", [False, True])
def test_local_completes_the_last_message_of_the_user(
    site: ChatSite, path: str, stream: bool
) -> None:
    parts = [{"type": "text", "text": "The list type"}]
    messages = [*MESSAGES, {"role": "user", "content": parts}, {"role": "system", "content": "x"}]
    fields = {"messages": messages, "model": "local/pydoc", "max_tokens": 4, "stream": stream}
    answer = site.ask(path, **fields)
    assert answer.status_code == 200
    if stream:
        assert answer.text.count('"delta":{') == 5
        assert answer.text.endswith("[DONE]\n\n")
    elif path == OPENAI:
        [choice] = answer.get_json()["choices"]
        assert choice["finish_reason"] == "length"
        assert answer.get_json()["usage"]["completion_tokens"] == 4
        assert len(choice["message"]["content"]) > 4
    else:
        assert answer.get_json()["data"] == answer.get_json()["choices"][0]["message"]["content"]


def test_only_the_first_delta_of_each_choice_from_local_has_the_role(site: ChatSite) -> None:
    answer = site.ask(model="local/pydoc", max_tokens=3, n=2, stream=True)
    deltas: dict[int, list[Any]] = {0: [], 1: []}
    for data in data_of(answer.text)[:-1]:
        for choice in json.loads(data)["choices"]:
            deltas[choice["index"]].append(choice["delta"])
    for first, *others in deltas.values():
        assert first == {"role": "assistant", "content": first["content"]}
        assert [delta.keys() for delta in others] == [{"content"}, {"content"}, set()]


def test_local_names_the_fields_that_it_doesnt_know(site: ChatSite) -> None:
    answer = site.ask(model="local/pydoc", max_tokens=1, tools=[], temperature=0)
    assert answer.headers["X-Sluice-Dropped"] == "tools"
    strict = site.ask(OPENAI, {"X-Sluice-Strict": "1"}, model="local/pydoc", tools=[])
    assert strict.status_code == 400
    assert site.ask(model="local/pydoc", seed="x").status_code == 400


# The path of a call


@pytest.mark.parametrize("path", [OPENAI, NATIVE])
def test_a_chat_stays_with_a_replica_and_fails_over_to_another(site: ChatSite, path: str) -> None:
    def reached() -> list[str]:
        return [request.path.split("/")[1] for request in site.fake.requests]

    long = [{"role": "user", "content": "Hi " * 2000}]
    site.fake.placed({name: [fp.sse([*CHUNKS, USAGE_CHUNK])] for name in REPLICAS})
    for number in range(3):
        more = [{"role": "user", "content": f"more {number}"}]
        assert site.ask(path, model="many/m", messages=long + more, stream=True).status_code == 200
    [home] = set(reached())
    broken = fp.sse([CHUNKS[0]], done=False)
    well = [fp.sse([*CHUNKS, USAGE_CHUNK])]
    site.fake.placed({name: [broken] if name == home else well for name in REPLICAS})
    answer = site.ask(path, model="many/m", messages=long, stream=True)
    assert answer.text.endswith("[DONE]\n\n")
    assert answer.headers["X-Sluice-Attempts"] == "2"
    assert reached()[-2] == home != reached()[-1]


def test_failed_chats_open_the_circuit_breaker_of_their_host(site: ChatSite) -> None:
    site.fake.default(fp.error(503))
    for _ in range(12):
        last = site.ask()
    assert last.status_code in (502, 503)
    assert len(site.fake.requests) < 12
    site.fake.default(fp.answer(WHOLE.encode()))
    assert site.ask(fallbacks=["plain/m"]).get_json()["model"] == "plain/m"


def test_a_chat_that_could_exceed_the_budget_is_refused(site: ChatSite) -> None:
    """An image may cost 6,000 tokens, which is more than the key's budget; a text isn't."""
    body = {"model": "host/m", "messages": image(30), "max_completion_tokens": 1}
    headers = {"X-API-Key": site.poor}
    answer = site.client.post(OPENAI, json=body, headers=headers)
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (402, "insufficient_credits")
    assert site.fake.requests == []
    site.fake.script(fp.answer(WHOLE.encode()))
    body["messages"] = MESSAGES
    assert site.client.post(OPENAI, json=body, headers=headers).status_code == 200


# Bodies


def image(size: int) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + "A" * size
    parts = [{"type": "text", "text": "See:"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


def test_a_long_body_arrives_whole_and_is_released(site: ChatSite) -> None:
    site.fake.script(fp.answer(WHOLE.encode()))
    messages = image(380_000)
    assert site.ask(messages=messages).status_code == 200
    assert site.sent == {"model": "m", "messages": messages}
    assert site.app.extensions["sluice"].bodies.held == 0


def test_the_body_of_a_stream_is_released_at_its_first_visible_byte(site: ChatSite) -> None:
    begun = fp.sse(CHUNKS[:2], done=False, complete=False)
    site.fake.script([*begun, fp.gate("end"), fp.event(CHUNKS[-1]), fp.event("[DONE]")])
    body = {"model": "host/m", "messages": image(300_000), "stream": True}
    headers = {"X-API-Key": site.secret}
    with site.client.post(OPENAI, json=body, headers=headers, buffered=False) as answer:
        frames: Iterator[Any] = iter(answer.response)
        assert b"Hel" in next(frames)
        assert site.app.extensions["sluice"].bodies.held == 0
        site.fake.open("end")
        assert b"".join(frames).endswith(b"[DONE]\n\n")


def test_a_body_above_the_limits_is_refused(site: ChatSite) -> None:
    assert site.ask(messages=image(400_000)).status_code == 413
    beside = site.ask(vendor="x" * 21_000)
    assert beside.status_code == 413
    assert "besides functions, messages, response_format, tools" in beside.text
    bodies = site.app.extensions["sluice"].bodies
    others = bodies.take(890_000)
    busy = site.ask(messages=image(50_000))
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "1")
    others.release()
    others.release()
    assert bodies.held == 0


def test_a_body_of_unknown_length_is_counted_as_it_arrives(site: ChatSite) -> None:
    site.fake.script(fp.answer(WHOLE.encode()))
    bodies = site.app.extensions["sluice"].bodies
    body = json.dumps({"model": "host/m", "messages": MESSAGES}).encode()
    headers = {"X-API-Key": site.secret, "Content-Type": "application/json"}
    headers["Transfer-Encoding"] = "chunked"
    for room, status in ((len(body), 200), (len(body) - 1, 503)):
        others = bodies.take(bodies.most - room)
        answer = site.client.post(
            OPENAI,
            input_stream=BytesIO(body),
            headers=headers,
            environ_overrides={"wsgi.input_terminated": True},
        )
        assert answer.status_code == status, answer.text
        others.release()
        assert bodies.held == 0


def test_parts_that_arent_media_count_as_text(site: ChatSite) -> None:
    for kind, most in (("refusal", 40_000), ("thinking", 40_000), ("image_url", 7_000)):
        parts = [{"type": kind, kind: "a" * 40_000}]
        data = json.dumps([{"role": "assistant", "content": parts}]).encode()
        _, wanted, _ = chat_fields.parse({"messages": Raw(data)}, 1)
        assert wanted.chat is not None
        assert (wanted.chat.most_input > most) == (kind != "image_url")


def test_a_list_of_anything_but_messages_and_parts_isnt_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Millions of digits in a body would take hundreds of megabytes as objects."""
    monkeypatch.setattr(chat_fields, "_raws", None)
    for content in ("[1,2]", '[{"type":"text"},1]', "[{}]", '["a"]'):
        data = f'[{{"role":"user","content":{content}}}]'.encode()
        assert chat_fields.measure({"messages": Raw(data)}).text == len(data)
    long = b'[{"role":"u"}' + b",1" * 1_000 + b"]"
    with pytest.raises(InvalidRequest, match="messages: expected a list of objects"):
        chat_fields.measure({"messages": Raw(long)})


def test_a_body_of_too_many_messages_or_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_fields, "MOST_ITEMS", 3)
    message = b'{"role":"user","content":[{"type":"text","text":"\\"role\\""}]}'
    for count, refused in ((3, False), (4, True)):
        body = b'{"messages":[' + b",".join([message] * count) + b"]}"
        assert chat_fields.decode(body, len(body)).keys() == {"messages"}
        if refused:
            with pytest.raises(InvalidRequest, match="more than 3 messages or parts"):
                chat_fields.decode(body, len(body) - 1)
        else:
            chat_fields.decode(body, len(body) - 1)


def test_text_images_and_tools_are_reserved(site: ChatSite) -> None:
    site.fake.script(fp.error(400))
    site.ask(messages=image(40_000), tools=[{"a": "b" * 400}], max_completion_tokens=10)
    [row] = site.get("/api/v1/user/requests").get_json()["data"]
    assert (row["endpoint"], row["provider"]) == (OPENAI, "host")
    raw = {
        name: json.dumps(value, separators=(",", ":")).encode()
        for name, value in {"messages": image(40_000), "tools": [{"a": "b" * 400}]}.items()
    }
    fields = {name: Raw(data) for name, data in raw.items()}
    _, wanted, _ = chat_fields.parse(fields, 1)
    assert wanted.chat is not None
    assert 1_110 < wanted.chat.input_tokens < 1_150
    assert 6_400 < wanted.chat.most_input < 6_600


# Any body

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(
    (
        *("messages", "model", "stream", "stream_options", "n", "max_tokens", "n_predict"),
        *("additional_params", "service_tier", "provider", "fallbacks", "seed", "zz", "stop"),
    )
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": VALUES})
BODIES = st.dictionaries(NAMES, VALUES, max_size=4)


@pytest.mark.parametrize("path", [OPENAI, NATIVE])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=BODIES, messages=st.lists(MESSAGE, max_size=3), model=st.booleans())
def test_no_body_makes_the_server_fail(
    site: ChatSite, path: str, fields: dict[str, Any], messages: list[Any], model: bool
) -> None:
    name = {"model": "local/pydoc"} if model else {"model": "claude/m"}
    body = {"messages": messages, "max_tokens": 1} | fields | name
    assert site.ask(path, **body).status_code in (200, 400, 404)
    assert site.app.extensions["sluice"].bodies.held == 0
