"""Tests that no call makes the server do much more than its size suggests."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from completion import CompletionRequest, Delta, Finished, Started, Usage, Used
from concurrency.yielding import Yielder
from endpoints import openai
from endpoints.responses import encoded_in_pieces
from errors import SluiceError
from gateway.attempts import Reader
from gateway.capabilities import fit
from gateway.stop_automaton import StopAutomaton
from keys.redaction import Secret
from providers import registry
from providers.base import Target, UpstreamCall
from providers.hosts import BUILT_IN
from providers.local.call import LocalCall
from tests.gateway.test_gateway import Scripted
from tests.routing.test_router import ROWS
from tests.support.pace import scaled_cpu
from tests.test_app import Site, make_app, make_key

NATIVE, OPENAI = "/api/v1/completions", "/v1/completions"
PROVIDERS = {
    **ROWS,
    "chat": {"base_url": "http://127.0.0.1:1/v1"},
    "lists": {"base_url": "http://127.0.0.1:1/v1", "completions": True},
    "gemini": {"base_url": "http://127.0.0.1:1", "dialect": "google"},
    "silent": {"base_url": "http://127.0.0.1:1/v1", "completions": True, "cannot": ["echo"]},
    "few": {"base_url": "http://127.0.0.1:1/v1", "limits": {"stop": 4}},
}


class Echoing(Scripted):
    """A call to a fake host that returns the length of each prompt, for each choice."""

    def __init__(self, request: CompletionRequest) -> None:
        n = request.n or 1
        texts = [str(len(prompt)) for prompt in request.prompts for _ in range(n)]
        deltas = [Delta(index, text) for index, text in enumerate(texts)]
        ends = [Finished(index, "stop") for index in range(len(texts))]
        super().__init__([Started("m", 1), *deltas, *ends, Used(Usage(1, 1))])


class Bounded(Site):
    made: list[CompletionRequest]

    def ask(self, path: str = OPENAI, **fields: Any) -> TestResponse:
        body = {"prompt": "Hi", "model": "chat/m"} | fields
        return self.client.post(path, json=body, headers={"X-API-Key": self.secret})


def site_of(directory: Path, monkeypatch: pytest.MonkeyPatch, **limits: Any) -> Bounded:
    line, secret = make_key("limited", **limits)
    monkeypatch.setattr("tests.test_app.Site", Bounded)
    site = make_app(directory, monkeypatch, keys=line, providers=PROVIDERS, max_body=64 << 20)
    assert isinstance(site, Bounded)
    site.secret = secret
    made = site.made = []

    def make(
        _: Reader, request: CompletionRequest, target: Target, *_more: Any, **_named: Any
    ) -> UpstreamCall:
        made.append(request)
        return LocalCall(request, target) if target.dialect == "local" else Echoing(request)

    monkeypatch.setattr(Reader, "_make", make)
    return site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bounded:
    return site_of(tmp_path, monkeypatch)


# Lists of prompts and the limit of requests


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bounded:
    return site_of(tmp_path, monkeypatch, requests_per_minute=10, tokens_per_hour=100_000)


def left(answer: TestResponse) -> int:
    return int(answer.headers["x-ratelimit-remaining-requests"])


@pytest.mark.parametrize("stream", [False, True])
def test_each_prompt_of_a_split_list_counts_as_a_request(limited: Bounded, stream: bool) -> None:
    prompts = ["a", "b", "c", "d"]
    assert left(limited.ask(prompt=prompts, max_tokens=1, stream=stream)) == 6
    assert left(limited.ask(prompt=prompts, max_tokens=1, stream=stream, n=2)) == 2
    assert len(limited.made) == 8
    before = limited.ask(prompt=["a", "b", "c"], max_tokens=1, stream=stream)
    assert before.status_code == 429
    assert before.json is not None
    assert before.json["error"]["details"]["limit_type"] == "requests"
    assert before.json["error"]["message"].startswith("This key's limit of 10 requests per minute")
    assert 58 <= int(before.headers["Retry-After"]) <= 60
    assert left(before) == 2
    assert len(limited.made) == 8
    assert left(limited.ask(prompt=["a", "b"], max_tokens=1, stream=stream)) == 0
    assert limited.ask(prompt="a", max_tokens=1, stream=stream).status_code == 429


def test_a_list_that_a_host_takes_in_one_call_counts_as_one_request(limited: Bounded) -> None:
    for expected in range(9, 5, -1):
        answer = limited.ask(model="lists/m", prompt=["a", "b", "c", "d"], max_tokens=1)
        assert left(answer) == expected
    assert len(limited.made) == 4


def test_a_list_counts_as_split_if_one_of_the_fallbacks_splits_it(limited: Bounded) -> None:
    answer = limited.ask(model="lists/m", fallbacks=["chat/m"], prompt=["a", "b"], max_tokens=1)
    assert left(answer) == 8


def test_a_call_above_the_limit_never_prepares_its_stop_sequences(
    limited: Bounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    prepare = StopAutomaton.__init__

    def count(automaton: StopAutomaton, stops: tuple[str, ...]) -> None:
        made.append(len(stops))
        prepare(automaton, stops)

    monkeypatch.setattr(StopAutomaton, "__init__", count)
    for number in range(12):
        stops = [f"{number}/{one}".ljust(1024, "x") for one in range(64)]
        answer = limited.ask(model="few/m", stop=stops, max_tokens=1)
        assert answer.status_code == (200 if number < 10 else 429)
    assert made == [64] * 10


def test_a_list_longer_than_the_limit_is_refused_and_takes_nothing(limited: Bounded) -> None:
    answer = limited.ask(prompt=["a"] * 11, max_tokens=1)
    assert (answer.status_code, left(answer)) == (429, 10)
    assert answer.json is not None
    assert answer.json["error"]["message"] == (
        "This call counts as 11 requests; this key's limit is 10 a minute."
    )
    assert (limited.made, answer.headers["x-should-retry"]) == ([], "false")
    assert left(limited.ask(prompt=["a"] * 10, max_tokens=1)) == 0


# Echo

MIB = 1 << 20
ECHOES = [
    pytest.param({"prompt": "x" * (MIB // 4)}, 16, id="one prompt"),
    pytest.param({"prompt": ["x" * 4096] * 64}, 16, id="a list"),
    pytest.param({"prompt": "é" * (MIB // 8)}, 16, id="bytes and not characters"),
    pytest.param({"prompt": "x" * (4 * MIB)}, 1, id="one choice"),
]


@pytest.mark.parametrize(("fields", "most"), ECHOES)
@pytest.mark.parametrize("model", ["chat/m", "lists/m", "silent/m", "local/pydoc"])
def test_an_echo_above_the_limit_is_refused(
    site: Bounded, model: str, fields: dict[str, Any], most: int
) -> None:
    for stream in (False, True):
        answer = site.ask(**fields, model=model, echo=True, n=most + 1, stream=stream)
        assert answer.status_code == 400
        assert answer.json is not None
        assert answer.json["error"]["param"] == "echo"
        assert "the limit is 4 MiB" in answer.json["error"]["message"]
    assert site.made == []


@pytest.mark.parametrize("params", [{"echo": True, "n": 17}, {"echo": True, "candidate_count": 17}])
def test_the_native_face_has_the_same_limit_of_an_echo(
    site: Bounded, params: dict[str, Any]
) -> None:
    prompt = "x" * (MIB // 4)
    for stream in (False, True):
        answer = site.ask(NATIVE, prompt=prompt, additional_params=params, stream=stream)
        assert answer.status_code == 400
        assert "the limit is 4 MiB" in answer.text
    params["echo"] = False
    assert site.ask(NATIVE, prompt=prompt, additional_params=params).status_code == 200


def test_token_ids_count_for_the_limit_of_an_echo(site: Bounded) -> None:
    answer = site.ask(model="lists/m", prompt=[[7] * 10_000], echo=True, n=110)
    assert answer.status_code == 400
    assert site.ask(model="lists/m", prompt=[[7] * 10_000], echo=True, n=100).status_code == 200


@pytest.mark.parametrize(("fields", "most"), ECHOES)
def test_an_emulated_echo_up_to_the_limit_is_complete(
    site: Bounded, fields: dict[str, Any], most: int
) -> None:
    prompts = [fields["prompt"]] if isinstance(fields["prompt"], str) else fields["prompt"]
    expected = [prompt + str(len(prompt)) for prompt in prompts for _ in range(most)]
    whole = site.ask(**fields, model="silent/m", echo=True, n=most, max_tokens=1)
    assert whole.json is not None
    assert [choice["text"] for choice in whole.json["choices"]] == expected
    stream = site.ask(**fields, model="silent/m", echo=True, n=most, max_tokens=1, stream=True)
    texts = [""] * len(expected)
    for line in stream.text.split("\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                texts[choice["index"]] += choice["text"]
    assert texts == expected


@pytest.mark.parametrize("model", ["silent/m", "local/pydoc"])
def test_a_long_echo_is_sent_in_pieces(site: Bounded, model: str) -> None:
    prompt = "word " * (MIB // 10)
    stream = site.ask(prompt=prompt, model=model, echo=True, n=2, max_tokens=1, stream=True)
    lines = [line for line in stream.text.split("\n") if line.startswith("data: {")]
    texts: dict[int, str] = {0: "", 1: ""}
    for line in lines:
        assert len(line) < 70_000
        for choice in json.loads(line[6:])["choices"]:
            texts[choice["index"]] += choice["text"]
    assert all(text.startswith(prompt) for text in texts.values())
    assert len(lines) > 2 * len(prompt) / 65536


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@given(TREES, st.integers(1, 5))
def test_json_encoded_in_pieces_equals_json_encoded_at_once(tree: Any, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("completion.PIECE", size)
        found = msgspec.json.encode(encoded_in_pieces(tree))
    assert found == msgspec.json.encode(tree)


@pytest.mark.parametrize("path", [NATIVE, OPENAI])
def test_an_echo_of_characters_that_need_escapes_is_complete(site: Bounded, path: str) -> None:
    prompt = '\x01\u2028é"' * 30_000
    params: dict[str, Any] = {"echo": True, "n": 3, "max_tokens": 1}
    fields = params if path == OPENAI else {"additional_params": params}
    answer = site.ask(path, model="silent/m", prompt=prompt, **fields)
    assert answer.json is not None
    texts = [choice["text"] for choice in answer.json["choices"]]
    assert texts == [prompt + str(len(prompt))] * 3


# Fields that go with each prompt of a list


def test_fields_that_are_sent_with_each_prompt_are_limited(site: Bounded) -> None:
    for fields in ({"user": "u" * 100_000}, {"grammar": "g" * 100_000}):
        answer = site.ask(prompt=["a"] * 200, max_tokens=1, **fields)
        assert answer.status_code == 400
        assert "200 calls with 100" in answer.text
        assert "exceed the limit of 16 MiB" in answer.text
        assert site.made == []
        together = site.ask(model="lists/m", prompt=["a"] * 200, max_tokens=1, **fields)
        assert together.status_code == 200
        site.made.clear()
        assert site.ask(prompt=["a"] * 100, max_tokens=1, **fields).status_code == 200
        site.made.clear()


# Fields, whose number is bounded wherever they are

MANY = {f"x{number}": 1 for number in range(60_000)}
LONG = {f"{'_a' * 124}{number:05}": 1 for number in range(256)}
WIDE = {name: dict(list(LONG.items())[:60]) for name in ("options", "generationConfig")}


@pytest.mark.parametrize("wrapper", ["additionalModelRequestFields", "generationConfig", "options"])
@pytest.mark.parametrize("path", [NATIVE, OPENAI])
def test_members_of_objects_count_as_unknown_fields(site: Bounded, path: str, wrapper: str) -> None:
    few = dict(list(MANY.items())[:255])
    for params in ({wrapper: few | {"y": 1}}, {wrapper: {"options": few}, "z": 1}):
        answer = site.ask(path, additional_params=params)
        assert answer.status_code == 400
        assert "unknown fields exceed the limit of 256" in answer.text
    answer = site.ask(path, additional_params={wrapper: {"k" * 257: 1}})
    assert answer.status_code == 400
    assert "may have at most 256 characters" in answer.text
    assert site.ask(path, additional_params={wrapper: few}).status_code == 200


def test_members_of_stream_options_are_limited(site: Bounded) -> None:
    answer = site.ask(stream_options=MANY)
    assert answer.status_code == 400
    assert "60000 unknown fields exceed the limit of 256" in answer.text


HEAVY: dict[str, dict[str, Any]] = {
    "many fields": {"additional_params": MANY},
    "many fields at the top": MANY,
    "many members": {"additional_params": {"additionalModelRequestFields": MANY}},
    "many members of two objects": {
        "additional_params": {"generationConfig": MANY, "generation_config": MANY}
    },
    "a long member": {"additional_params": {"generationConfig": {"_a" * 400_000: 1}}},
    "the longest fields that are allowed": {"additional_params": LONG},
    "the widest objects that are allowed": {"additional_params": WIDE},
    "many members of stream_options": {"stream_options": MANY},
    "many short lists": {"prompt": [[1]] * 200_000},
    "a long flat list": {"prompt": [1] * 400_000},
    "a long flat list with a wrong end": {"prompt": [1] * 400_000 + ["x"]},
    "a long list inside a list": {"prompt": [[1] * 400_000]},
    "many prompts of ids": {"prompt": [[1] * 200] * 2048},
}
ROWS_TO_BUILD = ("bedrock", "google", "cohere", "anthropic", "openai", "llamacpp")


@pytest.mark.parametrize("name", HEAVY)
def test_a_request_up_to_the_limits_is_parsed_and_built_quickly(name: str) -> None:
    """All six dialects together take less than a single one may hold up other requests."""
    rows = {row.name: row for row in BUILT_IN}
    body = {"prompt": "Hi", "max_tokens": 5, **HEAVY[name]}

    def build() -> None:
        with suppress(SluiceError):
            request = openai.parse(dict(body))[1]
            for row in ROWS_TO_BUILD:
                with suppress(SluiceError):
                    chosen = fit(request, Target(rows[row], "m", Secret("k")), strict=False)
                    registry.dialect(chosen.target.dialect).call(chosen.request, chosen.target)

    rounds = []
    for _ in range(4):
        began = time.process_time()
        build()
        rounds.append(time.process_time() - began)
    assert min(rounds) < scaled_cpu(0.05)


# Lists of token ids


@pytest.mark.parametrize("count", [2049, 100_000])
def test_a_flat_list_of_token_ids_is_one_prompt_of_any_length(site: Bounded, count: int) -> None:
    answer = site.ask(model="lists/m", prompt=[7] * count, max_tokens=1)
    assert answer.status_code == 200
    assert site.made[0].prompts == ((7,) * count,)
    refused = site.ask(model="lists/m", prompt=[[7]] * (count if count < 3000 else 2049))
    assert refused.status_code == 400


@pytest.mark.parametrize(
    "prompt",
    [[1, True], [True], [1, -1], [1, 1.0], [1, "a"], ["a", 1], [[1], "a"], [[1], []], [[]], [],
     [[1, True]], [[[1]]], [{}], [None], ["a", ["b"]], [1, [2]], [1.0]],
)  # fmt: skip
def test_a_list_of_mixed_prompts_is_refused(site: Bounded, prompt: Any) -> None:
    answer = site.ask(model="lists/m", prompt=prompt)
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["error"]["message"].startswith("prompt: got ")


# The names of ignored fields


@pytest.mark.parametrize("letter", ["x", "é", "\N{GRINNING FACE}"])
def test_the_header_of_ignored_fields_is_bounded(site: Bounded, letter: str) -> None:
    params: dict[str, Any] = {f"{number:03}" + letter * 253: 1 for number in range(256)}
    for stream in (False, True):
        answer = site.ask(model="local/pydoc", max_tokens=1, stream=stream, **params)
        assert answer.status_code == 200
        names = answer.headers["X-Sluice-Dropped"]
        assert 0 < len(names) <= 1024
        assert unquote(names.split(", ")[0]) == "000" + letter * 61


def test_a_contradiction_is_refused_before_any_call_and_in_no_row(site: Bounded) -> None:
    for path in (NATIVE, OPENAI):
        values: list[Any] = [None, [], "x", 7]
        for value in values:
            params = {"generationConfig": value}
            answer = site.ask(path, model="gemini/m", max_tokens=5, additional_params=params)
            assert answer.status_code == 400
            assert "generationConfig: expected an object." in answer.text
    assert site.made == []
    assert site.get("/api/v1/user/requests").json == {"data": [], "next_cursor": None}


# Deep and repeated objects


@pytest.mark.parametrize("model", ["gemini/m", "chat/m", "lists/m", "local/pydoc"])
@pytest.mark.parametrize("name", ["zz", "generationConfig", "options"])
def test_an_object_of_any_depth_is_sent_or_refused(site: Bounded, model: str, name: str) -> None:
    """Python's recursion limit must not end a call with a 500."""
    statuses = []
    for depth in [*range(100, 800, 100), *range(800, 1000, 4)]:
        value = '{"a":' * depth + "{}" + "}" * depth
        second = f', "generation_config": {value}' if name != "zz" else ""
        params = f'{{"{name}": {value}{second}}}'
        sent = f'"model": "{model}", "prompt": "Hi", "max_tokens": 1'
        body = f'{{{sent}, "additional_params": {params}}}'
        headers = {"X-API-Key": site.secret, "Content-Type": "application/json"}
        answer = site.client.post(OPENAI, data=body, headers=headers)
        statuses.append(answer.status_code)
        if answer.status_code == 400:
            assert "nested too deeply" in answer.text
    assert set(statuses) == {200, 400}
    assert statuses == sorted(statuses)


def test_a_field_with_two_values_is_refused(site: Bounded) -> None:
    answer = site.ask(top_k=1, additional_params={"top_k": 2})
    assert answer.status_code == 400
    assert "top_k has different values in the body and in additional_params." in answer.text
    assert site.ask(top_k=1, additional_params={"top_k": 1}).status_code == 200


def test_many_fallbacks_with_long_fields_are_checked_in_steps(
    site: Bounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    yields: list[bool] = []

    class Counted(Yielder):
        def yield_if_due(self, waited: float = 0.0) -> None:
            yields.append(True)

    monkeypatch.setattr("gateway.capabilities.Yielder", Counted)
    names = [f"gemini/{number}" for number in range(8)]
    answer = site.ask(model="gemini/m", fallbacks=names, additional_params={"zz": list(range(9))})
    assert answer.status_code == 200
    assert len(yields) == 9
