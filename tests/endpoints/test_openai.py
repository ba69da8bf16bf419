"""Tests of the OpenAI face as clients see it: bodies and streams to the byte.

- A scripted provider replaces the upstream call of each attempt; everything else is real.
- Ids and times vary, so they are replaced before a comparison.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app
from completion import (
    Batch,
    CompletionRequest,
    Delta,
    Event,
    Finished,
    FinishReason,
    Logprobs,
    Started,
    Usage,
    Used,
)
from config import Settings
from endpoints.services import (
    Services,
)
from errors import (
    ByokRejected,
    ClientGone,
    InsufficientCredits,
    InternalError,
    InvalidRequest,
    ModelForbidden,
    ModelNotFound,
    RateLimited,
    RequestTimeout,
    RequestTooLarge,
    SluiceError,
    StreamExists,
    Unavailable,
    UnsupportedMediaType,
    UnsupportedParameter,
    UpstreamError,
    UpstreamTimeout,
)
from gateway.attempts import Reader
from gateway.gateway import Gateway
from providers.base import Target
from streams.mailbox import Nudge
from tests.support.pace import HANG_S
from tests.support.servers import UNASKED, make_key, settings_files

PATH = "/v1/completions"
STOP = "/v1/completions/stop-stream/mine"
CONFIG = """
[providers.fake]
base_url = "http://127.0.0.1:1/v1"
completions = true

[providers.fakechat]
base_url = "http://127.0.0.1:1/v1"
models = ["listed", "maker/listed"]

[providers.dull]
base_url = "http://127.0.0.1:1/v1"
completions = true
cannot = ["seed", "user"]

[providers.keyed]
base_url = "http://127.0.0.1:1/v1"
api_key_env = "KEYED_API_KEY"
models = ["hidden", "secret"]

[aliases]
fast = ["fake/m", "fakechat/m"]
"team/best" = "fake/m"
"keyed/hidden" = "fake/m"
"fakechat/listed" = "fake/m"

[prices."fake/m"]
input_per_mtok = 1.0
output_per_mtok = 2.0
"""

Line: TypeAlias = Batch | SluiceError | Callable[[], object] | None
"""The next step of an attempt: yield events, raise, call a function, or wait for abort (None)."""


class Attempt:
    """An UpstreamCall of providers.base that plays a script."""

    def __init__(self, script: Sequence[Line]) -> None:
        self._script = script
        self._aborted = threading.Event()

    def events(self) -> Iterator[Batch]:
        for line in self._script:
            if isinstance(line, SluiceError):
                raise line
            if line is None:
                assert self._aborted.wait(HANG_S)
            elif isinstance(line, list):
                yield line
            else:
                line()
            if self._aborted.is_set():
                return

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None:
        pass


class Upstream:
    """A fake for all providers. Each attempt takes the next script; the last one is reused."""

    def __init__(self) -> None:
        self.scripts: list[Sequence[Line]] = [answer("Hello")]
        self.requests: list[CompletionRequest] = []
        self.targets: list[Target] = []
        self._lock = threading.Lock()

    def play(self, *script: Line) -> None:
        self.scripts = [script]

    def make(self, request: CompletionRequest, target: Target) -> Attempt:
        with self._lock:
            self.requests.append(request)
            self.targets.append(target)
            return Attempt(self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0])

    @property
    def request(self) -> CompletionRequest:
        """The request, of which there must be exactly one."""
        [request] = self.requests
        return request


def answer(*texts: str, reason: FinishReason = "stop", usage: Usage | None = None) -> list[Line]:
    """Return a script: a choice's text in pieces, its end, and its usage."""
    used = Used(usage or Usage(input_tokens=3, output_tokens=5))
    deltas: list[Line] = [[Delta(0, text)] for text in texts]
    return [[Started()], *deltas, [Finished(0, reason), used]]


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Upstream:
    upstream = Upstream()
    monkeypatch.setattr(
        Reader, "_make", lambda _reader, request, target, timeouts: upstream.make(request, target)
    )
    return upstream


@pytest.fixture
def app(tmp_path: Path, new_key: tuple[str, str]) -> Flask:
    (tmp_path / "sluice.toml").write_text(CONFIG)
    (tmp_path / "keys.jsonl").touch(mode=0o600)
    (tmp_path / "keys.jsonl").write_text(new_key[1])
    return create_app(
        Settings.from_env(
            {**settings_files(tmp_path), "SLUICE_MAX_BODY": "20000", "SLUICE_RETRIES": "0"}
            | UNASKED
        )
    )


@pytest.fixture
def face(app: Flask, key: str, upstream: Upstream) -> Face:
    return Face(app, key)


class Face:
    """The OpenAI face of one server, for one key."""

    def __init__(self, app: Flask, key: str) -> None:
        self.app = app
        self.headers = {"Authorization": f"Bearer {key}"}

    @property
    def gateway(self) -> Gateway:
        services: Services = self.app.extensions["sluice"]
        return services.gateway

    def ask(self, headers: dict[str, str] | None = None, /, **fields: Any) -> TestResponse:
        body = {"model": "fake/m", "prompt": "Say it"} | fields
        client: FlaskClient = self.app.test_client()
        return client.post(PATH, json=body, headers=self.headers | (headers or {}))

    def get(self, path: str) -> TestResponse:
        return self.app.test_client().get(path, headers=self.headers)

    def stream(self, headers: dict[str, str] | None = None, /, **fields: Any) -> str:
        """Return a stream's text, with its id and time replaced. Its status must be 200."""
        answer = self.ask(headers, stream=True, **fields)
        assert answer.status_code == 200, answer.text
        return plain(answer.text)

    def stop(self) -> None:
        """Stop the call `mine`."""
        answer = self.app.test_client().post(STOP, headers=self.headers)
        assert (answer.status_code, answer.json) == (200, {"success": True})

    def release(self) -> None:
        """Release the stream's status line, as the sweeper does after the first-event wait."""
        [stream] = self.gateway.streams._snapshot()
        stream.mailbox.nudge(Nudge.RELEASE)
        deadline = time.monotonic() + HANG_S
        while stream.mailbox._messages and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.03)  # the writer has taken the message; let it make the headers


def plain(text: str) -> str:
    """Replace the ids and times in a text."""
    text = re.sub(r'"id":"cmpl-[^"]+"', '"id":"ID"', text)
    return re.sub(r'"created":\d{10}\b', '"created":0', text)


def chunk(text: str, finish: str = "null", index: int = 0, more: str = "", model: str = "m") -> str:
    choice = f'{{"text":"{text}","index":{index},"logprobs":null,"finish_reason":{finish}{more}}}'
    return shape(f"[{choice}]", model=model)


def shape(choices: str, more: str = "", model: str = "m") -> str:
    head = f'"id":"ID","object":"text_completion","created":0,"model":"fake/{model}"'
    return f'data: {{{head},"choices":{choices}{more}}}\n\n'


END = '"stop"'
CANCELLED = ',"native_finish_reason":"cancelled"'
DONE = "data: [DONE]\n\n"
USED = '"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,"cost":0.000013'


def chunks(text: str) -> list[Any]:
    """Return the JSON of a stream's data lines, without [DONE]."""
    data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(item) for item in data if item != "[DONE]"]


# Whole answers


def test_whole_answer_matches_the_expected_bytes_and_headers(face: Face) -> None:
    answer = face.ask()
    assert plain(answer.text) == (
        '{"id":"ID","object":"text_completion","created":0,"model":"fake/m","choices":[{"text":'
        '"Hello","index":0,"logprobs":null,"finish_reason":"stop"}],"usage":{' + USED + "}}"
    )
    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["X-Request-ID"])
    assert not {"X-Stream-ID", "X-Sluice-Dropped", "X-RateLimit-Bypass"} & {*answer.headers.keys()}


def test_usage_includes_cached_and_reasoning_tokens(face: Face, upstream: Upstream) -> None:
    usage = Usage(9, 5, cache_read_tokens=4, cache_write_tokens=2, reasoning_tokens=3)
    upstream.play(*answer("a", usage=usage))
    reported = face.ask(model="fakechat/m").get_json()["usage"]
    assert reported == {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "cost": None,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }


def test_usage_missing_from_the_provider_is_marked_as_an_estimate(
    face: Face, upstream: Upstream
) -> None:
    upstream.play([Started()], [Delta(0, "12345678"), Finished(0, "stop")])
    reported = face.ask(prompt="123456789").get_json()["usage"]
    assert reported["source"] == "estimate"
    assert (reported["prompt_tokens"], reported["completion_tokens"]) == (3, 2)


def test_choices_are_ordered_by_index_with_their_own_finish_reasons(
    face: Face, upstream: Upstream
) -> None:
    events: Batch = [Started(), Delta(1, "b"), Delta(0, "a"), Finished(1, "length")]
    upstream.play(events, [Finished(0, "content_filter")])
    choices = face.ask(n=2).get_json()["choices"]
    assert [(c["index"], c["text"], c["finish_reason"]) for c in choices] == [
        (0, "a", "content_filter"),
        (1, "b", "length"),
    ]


def test_logprobs_have_the_openai_shape(face: Face, upstream: Upstream) -> None:
    reported = Logprobs(["a"], [-0.5], [{"a": -0.5, "b": -1.5}], [0])
    upstream.play([Started(), Delta(0, "a", reported), Finished(0, "stop")])
    expected = {
        "tokens": ["a"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"a": -0.5, "b": -1.5}],
        "text_offset": [0],
    }
    assert face.ask(logprobs=2).get_json()["choices"][0]["logprobs"] == expected
    assert chunks(face.stream(logprobs=2))[0]["choices"][0]["logprobs"] == expected
    assert upstream.requests[0].logprobs == 2


def test_stopped_whole_answer_holds_the_text_so_far_and_is_cancelled(
    face: Face, upstream: Upstream
) -> None:
    upstream.play([Started(), Delta(0, "Half")], face.stop, None)
    answer = face.ask(stream_id="mine", n=2)
    assert answer.status_code == 200
    cancelled = {"finish_reason": "stop", "native_finish_reason": "cancelled", "logprobs": None}
    assert answer.get_json()["choices"] == [
        {"text": "Half", "index": 0, **cancelled},
        {"text": "", "index": 1, **cancelled},
    ]
    assert answer.get_json()["usage"]["source"] == "estimate"


def test_caller_key_is_used_and_makes_the_cost_0(face: Face, upstream: Upstream) -> None:
    in_body = face.ask(byok_api_key="my-own")
    in_header = face.ask({"X-Provider-API-Key": "my-own"})
    both = face.ask({"X-Provider-API-Key": "other"}, byok_api_key="my-own")
    for reply, target in zip((in_body, in_header, both), upstream.targets, strict=True):
        assert reply.headers["X-RateLimit-Bypass"] == "BYOK API key used"
        assert reply.get_json()["byok_api_key"] is True
        assert reply.get_json()["usage"]["cost"] == 0
        assert target.credential is not None
        assert target.credential.reveal() == "my-own"
        assert "my-own" not in reply.text


def test_caller_key_opens_a_provider_that_is_not_enabled(face: Face) -> None:
    assert face.ask(model="keyed/x").status_code == 404
    assert face.ask(model="keyed/x", byok_api_key="my-own").status_code == 200


# Prompts

PROMPTS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "string": ("Say it", ("Say it",)),
    "empty": ("", ("",)),
    "list_of_one": (["Say it"], ("Say it",)),
    "list": (["a", "b"], ("a", "b")),
    "token_ids": ([1, 0, 50256], ((1, 0, 50256),)),
    "list_of_token_ids": ([[1, 2], [3]], ((1, 2), (3,))),
    "list_of_one_list": ([[1]], ((1,),)),
}


@pytest.mark.parametrize(("prompt", "prompts"), PROMPTS.values(), ids=PROMPTS.keys())
def test_every_prompt_shape_is_accepted(
    face: Face, upstream: Upstream, prompt: Any, prompts: tuple[Any, ...]
) -> None:
    assert face.ask(prompt=prompt).status_code == 200
    assert upstream.request.prompts == prompts


NO_PROMPTS = [
    *(
        [],
        [[]],
        ["a", 1],
        [1, "a"],
        [[1], "a"],
        [[1], []],
        [[1], 2],
        [1.5],
        [-1],
        [True],
        [[False]],
    ),
    *(5, True, {}, {"text": "a"}, [None], [["a"]], [[1.0]], ["a"] * 2049),
]


@pytest.mark.parametrize("prompt", NO_PROMPTS, ids=lambda prompt: str(prompt)[:20])
def test_invalid_prompt_answers_400_with_the_accepted_shapes(
    face: Face, upstream: Upstream, prompt: Any
) -> None:
    answer = face.ask(prompt=prompt)
    error = answer.get_json()["error"]
    assert answer.status_code == 400
    assert (error["param"], error["code"]) == ("prompt", "invalid_request")
    assert error["message"].startswith("prompt: got ")
    assert "a string, a list of strings, a list of token ids" in error["message"]
    assert upstream.requests == []


@pytest.mark.parametrize("body", [{"model": "fake/m"}, {"model": "fake/m", "prompt": None}])
def test_a_missing_prompt_answers_400(face: Face, body: dict[str, Any]) -> None:
    answer = face.app.test_client().post(PATH, json=body, headers=face.headers)
    error = answer.get_json()["error"]
    assert (answer.status_code, error["param"]) == (400, "prompt")
    assert error["message"].startswith("prompt is missing")


def test_two_prompts_with_n_2_give_choices_0_to_3(face: Face, upstream: Upstream) -> None:
    upstream.play(
        [Started(), *(Delta(index, f"t{index}") for index in range(4))],
        [Finished(index, "stop") for index in range(4)],
    )
    choices = face.ask(prompt=["a", "b"], n=2).get_json()["choices"]
    assert [(c["index"], c["text"]) for c in choices] == [(i, f"t{i}") for i in range(4)]
    assert upstream.request.choices == 4


def test_prompt_list_is_split_into_calls_for_a_target_without_lists(
    face: Face, upstream: Upstream
) -> None:
    upstream.play([Started(), Delta(0, "x"), Delta(1, "y")], *both_end())
    body = face.ask(model="fakechat/m", prompt=["a", "b"], n=2).get_json()
    assert [(c["index"], c["text"]) for c in body["choices"]] == [*enumerate("xyxy")]
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 10
    assert sorted(request.prompts for request in upstream.requests) == [("a",), ("b",)]


def both_end() -> list[Line]:
    ends: list[Event] = [Finished(0, "stop"), Finished(1, "stop"), Used(Usage(3, 5))]
    return [ends]


def test_gateway_echoes_a_prompt_list_when_the_target_cannot_echo(
    face: Face, upstream: Upstream
) -> None:
    body = face.ask(model="fakechat/m", prompt=["Say it. ", "Now. "], echo=True).get_json()
    assert [c["text"] for c in body["choices"]] == ["Say it. Hello", "Now. Hello"]
    assert not any(request.echo for request in upstream.requests)


def test_token_id_prompt_answers_400_if_the_target_cannot_take_token_ids(face: Face) -> None:
    answer = face.ask(model="fakechat/m", prompt=[1, 2])
    error = answer.get_json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["message"] == "fakechat/m doesn't support a prompt of token ids."


# Parameters

ALL = {
    "best_of": 3,
    "echo": True,
    "frequency_penalty": 0.5,
    "logit_bias": {"50256": -100},
    "logprobs": 0,
    "max_tokens": 7,
    "n": 2,
    "presence_penalty": -0.5,
    "seed": 0,
    "suffix": "end",
    "temperature": 0,
    "top_p": 0.5,
    "user": "somebody",
}


def test_every_parameter_reaches_the_provider(face: Face, upstream: Upstream) -> None:
    assert face.ask(**ALL, stop=["a", "b"]).status_code == 200
    found = upstream.request
    assert {name: getattr(found, name) for name in ALL} == ALL
    assert found.stop == ("a", "b")
    assert found.extra == {}
    assert not found.stream


NO_OPS: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "top_p": 1,
    "echo": False,
    "logit_bias": {},
    "stop": [],
    "user": "",
    "stream": False,
}


@pytest.mark.parametrize("name", [*NO_OPS, "all"])
def test_parameter_value_without_effect_counts_as_absent(
    face: Face, upstream: Upstream, name: str
) -> None:
    fields = NO_OPS if name == "all" else {name: NO_OPS[name]}
    answer = face.ask({"X-Sluice-Strict": "1"}, model="fakechat/m", **fields)
    assert answer.status_code == 200, answer.text
    assert upstream.request == CompletionRequest(prompts=("Say it",))


@pytest.mark.parametrize("stop", ["", [], ["", ""]])
def test_empty_stop_sequences_count_as_absent(face: Face, upstream: Upstream, stop: Any) -> None:
    assert face.ask({"X-Sluice-Strict": "1"}, model="fakechat/m", stop=stop).status_code == 200
    assert upstream.request == CompletionRequest(prompts=("Say it",))


ZEROS: dict[str, Any] = {
    "max_tokens": 0,
    "top_p": 0,
    "temperature": 0,
    "logprobs": 0,
    "seed": 0,
    "suffix": "",
}


@pytest.mark.parametrize("place", ["body", "additional_params"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ZEROS)
def test_zero_and_the_empty_suffix_reach_the_provider(
    face: Face, upstream: Upstream, name: str, stream: bool, place: str
) -> None:
    fields = {name: ZEROS[name]}
    answer = face.ask(stream=stream, **(fields if place == "body" else {place: fields}))
    assert answer.status_code == 200, answer.text
    assert getattr(upstream.request, name) == ZEROS[name]


def test_an_empty_suffix_is_refused_by_a_chat_model(face: Face, upstream: Upstream) -> None:
    answer = face.ask(model="fakechat/m", suffix="")
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, "suffix")
    assert upstream.requests == []


def test_up_to_64_stop_sequences_reach_the_provider(face: Face, upstream: Upstream) -> None:
    stops = [f"{number}" for number in range(64)]
    assert face.ask(stop=["", *stops[1:]]).status_code == 200
    assert upstream.request.stop == tuple(stops[1:])


def test_null_counts_as_absent(face: Face, upstream: Upstream) -> None:
    names = [*ALL, "stop", "stream", "stream_options", "provider", "byok_api_key", "stream_id"]
    nulls: dict[str, Any] = dict.fromkeys([*names, "fallbacks", "additional_params", "top_k"])
    assert face.ask(**nulls).status_code == 200
    assert upstream.request == CompletionRequest(prompts=("Say it",))


def test_langchain_default_parameters_are_accepted(face: Face, upstream: Upstream) -> None:
    text = face.stream(
        model="fakechat/m", prompt=["Say it"], temperature=0.7, top_p=1, n=1, best_of=1,
        frequency_penalty=0, presence_penalty=0, logit_bias=None, logprobs=None, seed=None,
        max_tokens=256,
    )  # fmt: skip
    assert "".join(c["choices"][0]["text"] for c in chunks(text)) == "Hello"
    assert upstream.request == CompletionRequest(
        prompts=("Say it",), temperature=0.7, max_tokens=256, stream=True
    )


@pytest.mark.parametrize("stop", ["\n", ["\n"], ["a", "b", "c", "d"]])
def test_stop_parameter_takes_a_string_or_up_to_four_strings(
    face: Face, upstream: Upstream, stop: str | list[str]
) -> None:
    assert face.ask(stop=stop).status_code == 200
    assert upstream.request.stop == tuple(stop)


WRONG: dict[str, Any] = {
    "best_of": 0,
    "byok_api_key": "two words",
    "echo": "yes",
    "fallbacks": "fake/m",
    "frequency_penalty": 2.1,
    "logit_bias": {"1": 101},
    "logprobs": -1,
    "max_tokens": -1,
    "model": 7,
    "n": 129,
    "presence_penalty": "high",
    "provider": "",
    "seed": 1.5,
    "stop": ["a"] * 65,
    "stream": 1,
    "stream_id": "a b",
    "stream_options": True,
    "suffix": ["end"],
    "temperature": 2.1,
    "top_p": -0.1,
    "user": 5,
    "additional_params": [],
}


@pytest.mark.parametrize("name", WRONG)
def test_invalid_parameter_value_answers_400_naming_the_parameter(
    face: Face, upstream: Upstream, name: str
) -> None:
    answer = face.ask(**{name: WRONG[name]})
    error = answer.get_json()["error"]
    assert answer.status_code == 400
    assert (error["param"], error["type"]) == (name, "invalid_request_error")
    assert error["message"].startswith(f"{name}: got ")
    assert "two words" not in answer.text
    assert upstream.requests == []


def test_include_usage_must_be_true_or_false(face: Face) -> None:
    answer = face.ask(stream=True, stream_options={"include_usage": "yes"})
    assert answer.status_code == 400
    assert answer.get_json()["error"]["param"] == "include_usage"


def test_best_of_must_be_at_least_n(face: Face) -> None:
    assert face.ask(n=3, best_of=2).get_json()["error"]["param"] == "best_of"


def test_unknown_fields_go_to_the_provider(face: Face, upstream: Upstream) -> None:
    params = {"guided_regex": "a+", "seed": 7, "stop": "x"}
    fields: dict[str, Any] = {"top_k": 40, "ignore_eos": True, "additional_params": params}
    assert face.ask(**fields).status_code == 200
    sent = upstream.request
    assert (sent.openai_extra, sent.extra) == (
        {"top_k": 40, "ignore_eos": True},
        {"guided_regex": "a+"},
    )
    assert (upstream.request.seed, upstream.request.stop) == (7, ("x",))


TRANSPORT = ["messages", "api_key", "headers", "base_url", "url", "timeout", "extra_body"]


@pytest.mark.parametrize("name", [*TRANSPORT, "extra_headers", "extra_query"])
def test_field_that_would_steer_the_transport_answers_400(
    face: Face, upstream: Upstream, name: str
) -> None:
    for fields in ({name: "x"}, {"additional_params": {name: "x"}}):
        answer = face.ask(**fields)
        assert answer.status_code == 400
        assert answer.get_json()["error"]["param"] == name
    assert upstream.requests == []


def test_field_with_conflicting_values_in_body_and_params_answers_400(face: Face) -> None:
    assert face.ask(seed=1, additional_params={"seed": 1}).status_code == 200
    answer = face.ask(seed=1, additional_params={"seed": 2})
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, "seed")


def test_provider_and_fallbacks_fields_choose_the_targets(face: Face, upstream: Upstream) -> None:
    down = UpstreamError("down", upstream_status=503)
    upstream.scripts = [[down], answer("there")]
    body = face.ask(model="fakechat/m", provider="fakechat", fallbacks=["fake/other"]).get_json()
    assert (body["model"], body["choices"][0]["text"]) == ("fake/other", "there")
    assert [target.name for target in upstream.targets] == ["fakechat/m", "fake/other"]


# Streams


def test_stream_matches_the_expected_bytes_and_headers(face: Face, upstream: Upstream) -> None:
    upstream.play(*answer("Hel", "lo"))
    reply = face.ask(stream=True, stream_id="mine")
    assert plain(reply.text) == chunk("Hel") + chunk("lo") + chunk("", END) + DONE
    assert reply.content_type == "text/event-stream; charset=utf-8"
    assert reply.headers["Cache-Control"] == "no-cache"
    assert reply.headers["X-Accel-Buffering"] == "no"
    assert reply.headers["X-Stream-ID"] == "mine"
    assert len({c["id"] for c in chunks(reply.text)}) == 1


def test_stream_with_include_usage_ends_with_a_usage_chunk(face: Face) -> None:
    usage = shape("[]", ',"usage":{' + USED + "}")
    text = face.stream(stream_options={"include_usage": True})
    assert text == chunk("Hello") + chunk("", END) + usage + DONE
    assert "usage" not in face.stream(stream_options={"include_usage": False})


def test_line_separators_are_escaped(face: Face, upstream: Upstream) -> None:
    upstream.play(*answer("a\u2028b\u2029c\u0085d\u00e9"))
    text = face.stream()
    assert "a\\u2028b\\u2029c\\u0085d\u00e9" in text
    assert chunks(text)[0]["choices"][0]["text"] == "a\u2028b\u2029c\u0085d\u00e9"


def test_choices_of_a_stream_are_numbered(face: Face, upstream: Upstream) -> None:
    upstream.play([Started(), Delta(1, "b"), Delta(0, "a")], [Finished(0, "stop")])
    text = face.stream(n=2)
    expected = [chunk("b", index=1), chunk("a"), chunk("", END), chunk("", END, index=1), DONE]
    assert text == "".join(expected)


def test_stream_chunks_carry_the_index_of_their_prompt(face: Face, upstream: Upstream) -> None:
    text = face.stream(
        model="fakechat/m", prompt=["a", "b", "c"], stream_options={"include_usage": True}
    )
    *parts, last = chunks(text)
    for index in range(3):
        mine = [c for part in parts for c in part["choices"] if c["index"] == index]
        assert [(c["text"], c["finish_reason"]) for c in mine] == [("Hello", None), ("", "stop")]
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (9, 15)


def test_stream_stopped_before_its_first_text_reports_estimated_usage(
    face: Face, upstream: Upstream
) -> None:
    upstream.play(face.stop, None)
    usage = '"prompt_tokens":2,"completion_tokens":0,"total_tokens":2,"cost":2e-6'
    text = face.stream(stream_id="mine", stream_options={"include_usage": True})
    assert text == (
        chunk("", END, more=CANCELLED)
        + shape("[]", f',"usage":{{{usage},"source":"estimate"}}')
        + DONE
    )


def test_stream_stopped_before_its_first_text_ends_every_choice(
    face: Face, upstream: Upstream
) -> None:
    upstream.play(face.stop, None)
    ends = [chunk("", END, index=index, more=CANCELLED) for index in range(4)]
    assert face.stream(stream_id="mine", n=2, prompt=["a", "b"]) == "".join(ends) + DONE


def test_stream_stopped_after_some_text_ends_cancelled(face: Face, upstream: Upstream) -> None:
    upstream.play([Started(), Delta(0, "Half")], face.stop, None)
    text = face.stream(stream_id="mine")
    assert text == chunk("Half") + chunk("", END, more=CANCELLED) + DONE


def test_stop_cancels_only_the_unfinished_choice_of_a_stream(
    face: Face, upstream: Upstream
) -> None:
    upstream.play([Started(), Delta(0, "a"), Finished(0, "length")], face.stop, None)
    text = face.stream(stream_id="mine", n=2)
    ends = chunk("", '"length"') + chunk("", END, index=1, more=CANCELLED)
    assert text == chunk("a") + ends + DONE


def test_stop_cancels_the_choices_of_all_prompts_of_a_stream(
    face: Face, upstream: Upstream
) -> None:
    upstream.scripts = [[[Started(), Delta(0, "a")], face.stop, None], [None]]
    text = face.stream(stream_id="mine", model="fakechat/m", prompt=["x", "y", "z"])
    last = {c["choices"][0]["index"]: c["choices"][0] for c in chunks(text)}
    assert [last[index]["native_finish_reason"] for index in range(3)] == ["cancelled"] * 3
    assert text.endswith(DONE)


def test_a_failure_before_a_stream_is_an_http_error(face: Face, upstream: Upstream) -> None:
    upstream.play(InvalidRequest("No.", param="prompt"))
    reply = face.ask({"X-Request-ID": "r-1"}, stream=True)
    assert (reply.status_code, reply.content_type) == (400, "application/json")
    assert reply.get_json() == {"error": error("No.", "invalid_request", param="prompt")}


def test_a_failure_during_a_stream_is_its_last_frame(face: Face, upstream: Upstream) -> None:
    upstream.play([Started(), Delta(0, "Half")], Unavailable("Later."))
    text = face.stream({"X-Request-ID": "r-1"}, stream_options={"include_usage": True})
    reported = '"type":"server_error","param":null,"code":"unavailable","request_id":"r-1"'
    assert text == chunk("Half") + f'data: {{"error":{{"message":"Later.",{reported}}}}}\n\n'


def test_a_failure_after_the_status_line_is_the_only_frame(face: Face, upstream: Upstream) -> None:
    upstream.play(face.release, Unavailable("Later."))
    text = face.stream()
    assert [*chunks(text)[0]] == ["error"]
    assert "[DONE]" not in text
    assert '"choices"' not in text


def error(message: str, code: str, kind: str = "invalid_request_error", **more: Any) -> Any:
    base = {"message": message, "type": kind, "param": None, "code": code, "request_id": "r-1"}
    return base | more


# Dropped and unsupported parameters


def test_dropped_parameters_are_named_in_a_header(face: Face, upstream: Upstream) -> None:
    for stream in (False, True):
        reply = face.ask(model="dull/m", seed=7, user="me", temperature=0.5, stream=stream)
        assert reply.status_code == 200
        assert reply.headers["X-Sluice-Dropped"] == "seed, user"
        assert ": X-Sluice" not in reply.text
    for request in upstream.requests:
        assert (request.seed, request.user, request.temperature) == (None, None, 0.5)


def test_strict_header_rejects_a_parameter_that_would_be_dropped(
    face: Face, upstream: Upstream
) -> None:
    reply = face.ask({"X-Sluice-Strict": "1"}, model="dull/m", seed=7, user="me")
    reported = reply.get_json()["error"]
    assert (reply.status_code, reported["code"], reported["param"]) == (
        400,
        "unsupported_parameter",
        "seed",
    )
    assert reported["message"] == "dull/m doesn't support seed."
    assert reported["details"] == {"parameter": "seed", "target": "dull/m"}
    assert upstream.requests == []
    assert face.ask({"X-Sluice-Strict": "0"}, model="dull/m", seed=7).status_code == 200


def test_parameter_dropped_after_the_headers_is_named_in_a_comment(
    face: Face, upstream: Upstream
) -> None:
    down = UpstreamError("down", upstream_status=503)
    upstream.scripts = [[face.release, down], answer("Hello")]
    reply = face.ask(model="fake/m", fallbacks=["dull/m"], seed=7, stream=True)
    begin, comment, *rest = reply.text.split("\n\n")
    assert begin.startswith(": ")
    assert comment == ": X-Sluice-Dropped: seed"
    assert [line[:6] for line in rest] == ["data: "] * 3 + [""]
    assert {c["model"] for c in chunks(reply.text)} == {"dull/m"}
    assert "X-Sluice-Dropped" not in reply.headers


def test_stopped_stream_names_a_parameter_dropped_after_the_headers(
    face: Face, upstream: Upstream
) -> None:
    down = UpstreamError("down", upstream_status=503)
    upstream.scripts = [[face.release, down], [face.stop, None]]
    reply = face.ask(stream_id="mine", fallbacks=["dull/m"], seed=7, stream=True)
    _, comment, end, done, _ = reply.text.split("\n\n")
    assert comment == ": X-Sluice-Dropped: seed"
    assert '"native_finish_reason":"cancelled"' in end
    assert done == "data: [DONE]"


ODD_NAMES = ["snow\u2603", "caf\u00e9", "a\r\nX-Odd: 1", 'a\n\ndata: {"odd":1}', "a" * 5000]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name)[:12])
def test_odd_parameter_name_cannot_break_the_dropped_header(
    face: Face, name: str, *, stream: bool
) -> None:
    reply = face.ask(model="local/pydoc", max_tokens=1, stream=stream, **{name: 1})
    assert reply.status_code in (200, 400)
    dropped = reply.headers.get("X-Sluice-Dropped", "")
    assert dropped.isascii()
    assert dropped.isprintable()
    assert len(dropped) < 2000
    assert "X-Odd" not in reply.headers
    assert len(face.gateway.streams) == 0


def test_odd_parameter_name_cannot_inject_a_frame(face: Face, upstream: Upstream) -> None:
    upstream.scripts = [[face.release, UpstreamError("down", upstream_status=503)], answer("a")]
    reply = face.ask(stream=True, fallbacks=["local/pydoc"], **{'a\n\ndata: {"odd":1}': 1})
    assert '\ndata: {"odd"' not in reply.text


def test_stream_has_no_dropped_comment_when_nothing_is_dropped(
    face: Face, upstream: Upstream
) -> None:
    upstream.play(face.release, *answer("Hello"))
    begin, *rest = face.stream().split("\n\n")
    assert begin.startswith(": ")
    assert not any(line.startswith(":") for line in rest)


def test_unsupported_parameter_that_changes_the_result_answers_400(face: Face) -> None:
    for fields in ({"suffix": "x"}, {"best_of": 2}, {"echo": True, "logprobs": 1}):
        reply = face.ask(model="fakechat/m", **fields)
        assert reply.status_code == 400
        assert reply.get_json()["error"]["code"] == "unsupported_parameter"
    fitting = face.ask(model="fakechat/m", suffix="x", fallbacks=["fake/m"])
    assert fitting.get_json()["model"] == "fake/m"


# Errors

INVALID, SERVER = "invalid_request_error", "server_error"
FAILURES: dict[str, tuple[SluiceError, int, str, dict[str, str]]] = {
    "invalid": (InvalidRequest("m", param="n"), 400, INVALID, {}),
    "unsupported": (UnsupportedParameter("m"), 400, INVALID, {}),
    "credits": (InsufficientCredits("m"), 402, "insufficient_quota", {}),
    "forbidden": (ModelForbidden("m"), 403, "permission_error", {}),
    "byok": (ByokRejected("m"), 403, "permission_error", {}),
    "model": (ModelNotFound("m"), 404, INVALID, {}),
    "timeout": (RequestTimeout("m"), 408, INVALID, {}),
    "exists": (StreamExists("s"), 409, INVALID, {"x-should-retry": "false"}),
    "large": (RequestTooLarge("m"), 413, INVALID, {}),
    "media": (UnsupportedMediaType("m"), 415, INVALID, {}),
    "rate": (RateLimited("m", retry_after=2.2), 429, "rate_limit_error", {"Retry-After": "3"}),
    "gone": (ClientGone(), 499, INVALID, {}),
    "internal": (InternalError(), 500, SERVER, {}),
    "upstream": (UpstreamError("m"), 502, SERVER, {}),
    "unavailable": (Unavailable("m"), 503, SERVER, {"Retry-After": "1"}),
    "idle": (UpstreamTimeout("idle", 5), 504, SERVER, {}),
    "total": (UpstreamTimeout("total", 5), 504, SERVER, {"x-should-retry": "false"}),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_error_has_its_status_headers_and_body(
    face: Face, upstream: Upstream, name: str
) -> None:
    failure, status, kind, headers = FAILURES[name]
    upstream.play(failure)
    reply = face.ask({"X-Request-ID": "r-1"})
    found = reply.get_json()["error"]
    assert reply.status_code == status
    assert reply.headers["X-Request-ID"] == "r-1"
    assert {key: reply.headers.get(key) for key in headers} == headers
    more = {"details": found["details"]} if "details" in found else {}
    assert found == error(failure.message, failure.code, kind, param=failure.param, **more)


@pytest.mark.parametrize("name", FAILURES)
def test_error_frame_in_a_stream_has_its_type_code_and_request_id(
    face: Face, upstream: Upstream, name: str
) -> None:
    failure, _, kind, _ = FAILURES[name]
    upstream.play([Started(), Delta(0, "a")], failure)
    text = face.stream({"X-Request-ID": "r-1"})
    found = chunks(text)[-1]["error"]
    assert (found["type"], found["code"], found["request_id"]) == (kind, failure.code, "r-1")
    assert "[DONE]" not in text


def test_missing_or_invalid_key_answers_401_and_calls_no_provider(
    face: Face, upstream: Upstream
) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "wrong"}):
        for method, path in (("POST", PATH), ("POST", STOP), ("GET", "/v1/models/fast")):
            reply = face.app.test_client().open(path, method=method, json={}, headers=headers)
            found = reply.get_json()["error"]
            assert (reply.status_code, found["type"]) == (401, "authentication_error")
            assert (found["code"], found["param"]) == ("unauthorized", None)
            sent = ', error="invalid_token"' if headers else ""
            assert reply.headers["WWW-Authenticate"] == f'Bearer realm="sluice"{sent}'
    assert upstream.requests == []


def test_a_key_may_be_limited_to_models(app: Flask, upstream: Upstream, tmp_path: Path) -> None:
    key, line = make_key(models=["fake/*"])
    (tmp_path / "keys.jsonl").write_text(line)
    app.extensions["sluice"].keys._look()
    face = Face(app, key)
    reply = face.ask(model="fakechat/m")
    assert (reply.status_code, reply.get_json()["error"]["type"]) == (403, "permission_error")
    assert reply.get_json()["error"]["param"] == "model"
    assert face.ask(model="fakechat/m", fallbacks=["fake/m"]).get_json()["model"] == "fake/m"


def test_a_key_may_be_limited_to_an_alias(app: Flask, upstream: Upstream, tmp_path: Path) -> None:
    key, line = make_key(models=["fast"])
    (tmp_path / "keys.jsonl").write_text(line)
    app.extensions["sluice"].keys._look()
    face = Face(app, key)
    target = app.extensions["sluice"].gateway.router.aliases["fast"][0]
    reply = face.ask(model="fast")
    assert (reply.status_code, reply.get_json()["model"]) == (200, target), (
        "the alias hides nothing"
    )
    refused = face.ask(model=target)
    assert refused.status_code == 403
    assert refused.get_json()["error"]["message"] == f"This key may not use {target}."
    assert face.ask(model=target, fallbacks=["fast"]).status_code == 200
    listed = app.test_client().get("/v1/models", headers=face.headers).get_json()["data"]
    assert "fast" in [model["id"] for model in listed]


def test_unknown_model_or_provider_answers_404(face: Face) -> None:
    for model, code in (
        ("nobody/m", "provider_not_found"),
        ("bare", "model_not_found"),
        ("keyed/secret", "provider_not_found"),
    ):
        reply = face.ask(model=model)
        found = reply.get_json()["error"]
        assert (reply.status_code, found["type"], found["code"]) == (404, INVALID, code)


def test_errors_under_v1_have_the_openai_shape(face: Face) -> None:
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", PATH, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/v1/completions/stop-stream/unknown", 404, "stream_not_found"),
    ):
        reply = face.app.test_client().open(path, method=method, headers=face.headers)
        found = reply.get_json()["error"]
        assert (reply.status_code, found["type"], found["code"]) == (status, INVALID, code)
        assert ("Allow" in reply.headers) == (status == 405)


BODIES: dict[str, tuple[bytes, str, int]] = {
    "empty": (b"", "application/json", 400),
    "broken": (b'{"prompt": ', "application/json", 400),
    "a_list": (b"[]", "application/json", 400),
    "not_utf8": (b'{"prompt": "\xff"}', "application/json", 400),
    "too_deep": (b'{"a":' + b"[" * 5000, "application/json", 400),
    "too_large": (b'{"prompt": "' + b"a" * 20000 + b'"}', "application/json", 413),
    "text": (b'{"prompt": "a"}', "text/plain", 415),
}


@pytest.mark.parametrize("name", BODIES)
def test_unreadable_body_answers_400_413_or_415(face: Face, name: str) -> None:
    data, kind, status = BODIES[name]
    reply = face.app.test_client().post(PATH, data=data, content_type=kind, headers=face.headers)
    assert (reply.status_code, reply.get_json()["error"]["type"]) == (status, INVALID)


def test_stream_id_already_in_use_answers_409(face: Face, upstream: Upstream) -> None:
    replies: list[TestResponse] = []
    upstream.play(lambda: replies.append(face.ask(stream_id="mine")), *answer("a"))
    assert face.ask(stream_id="mine").status_code == 200
    [second] = replies
    assert (second.status_code, second.headers["x-should-retry"]) == (409, "false")
    assert second.get_json()["error"]["param"] == "stream_id"


# Models


def test_model_list_has_aliases_and_models_of_enabled_providers(face: Face) -> None:
    reply = face.get("/v1/models").get_json()
    assert reply["object"] == "list"
    found = {model["id"]: model for model in reply["data"]}
    assert found["fast"] == model("fast", "sluice")
    assert found["local/pydoc"] == model("local/pydoc", "local")
    assert found["fakechat/maker/listed"] == model("fakechat/maker/listed", "fakechat")
    assert found["keyed/hidden"] == model("keyed/hidden", "sluice")
    assert found["fakechat/listed"] == model("fakechat/listed", "sluice")
    assert "keyed/secret" not in found
    assert len(found) == len(reply["data"])


def model(name: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


def test_each_listed_model_can_be_looked_up(face: Face) -> None:
    for listed in face.get("/v1/models").get_json()["data"]:
        for path in (f"/v1/models/{listed['id']}", f"/v1/models/{listed['id']}/"):
            reply = face.get(path)
            assert (reply.status_code, reply.get_json()) == (200, listed), path


@pytest.mark.parametrize("name", ["nobody", "fake", "fakechat/other", "nobody/m", "fast/m"])
def test_a_model_that_is_not_listed_is_not_found(face: Face, name: str) -> None:
    reply = face.get(f"/v1/models/{name}")
    found = reply.get_json()["error"]
    assert (reply.status_code, found["code"], found["param"]) == (404, "model_not_found", "model")


def test_an_alias_serves_a_model_whose_provider_is_not_enabled(
    face: Face, upstream: Upstream
) -> None:
    assert face.ask(model="keyed/hidden").get_json()["model"] == "fake/m"
    refused = face.ask(model="hidden", provider="keyed")
    assert refused.get_json()["error"]["code"] == "provider_not_found"


def test_an_alias_that_hides_an_enabled_model_is_reported_at_the_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sluice.toml").write_text(CONFIG)
    create_app(Settings.from_env(settings_files(tmp_path)))
    [line] = [line for line in capfd.readouterr().err.splitlines() if "hides" in line]
    assert "fakechat/listed" in line
    assert "hides that model of fakechat, which is enabled. Calls to it go to fake/m." in line


def test_alias_used_as_a_model_falls_back_through_its_targets(
    face: Face, upstream: Upstream
) -> None:
    upstream.scripts = [[UpstreamError("down", upstream_status=503)], answer("there")]
    assert face.ask(model="fast").get_json()["model"] == "fakechat/m"


def test_endpoints_accept_a_trailing_slash(face: Face, upstream: Upstream) -> None:
    body = {"model": "fake/m", "prompt": "a", "stream_id": "mine"}
    upstream.play([Started(), Delta(0, "a")], lambda: slash(face), None)
    reply = face.app.test_client().post(f"{PATH}/", json=body, headers=face.headers)
    assert reply.get_json()["choices"][0]["native_finish_reason"] == "cancelled"
    assert face.get("/v1/models/").status_code == 200


def slash(face: Face) -> None:
    assert face.app.test_client().post(f"{STOP}/", headers=face.headers).status_code == 200
