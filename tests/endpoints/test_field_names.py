"""Tests of the names of fields: letter case, and hosts' other names for what limits count.

- A name that a host could read as a known field is refused.
- Another name for max_tokens, n or best_of counts as that field, wherever a host takes it.
"""

from __future__ import annotations

import itertools
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from completion import CompletionRequest
from endpoints import native, openai, request_fields
from errors import InvalidRequest
from gateway import field_names
from gateway.capabilities import fit
from gateway.field_names import AMBIGUOUS, COUNTED, KNOWN, OTHER_NAMES, WRAPPERS, fold, meant
from keys.redaction import Secret
from providers import registry
from providers.base import Family, Fim, Provider, Target
from providers.hosts import BUILT_IN
from quota.demand import demand_of
from tests.gateway.test_gateway import play
from tests.test_app import Site, hello, make_app, make_key

KELVIN, LONG_S = "\N{KELVIN SIGN}", "\N{LATIN SMALL LETTER LONG S}"
WHERE = ("native", "native params", "openai", "openai params", "options", "generationConfig")


def parse(where: str, name: str, value: Any, **more: Any) -> CompletionRequest:
    """Return the request of a body with this field at one of the places of WHERE."""
    body = {"prompt": "Hi", **more}
    if where in WRAPPERS:
        body[where] = {name: value}
        return openai.parse(body)[1]
    face, _, params = where.partition(" ")
    body |= {"additional_params": {name: value}} if params else {name: value}
    return native.parse(body)[1] if face == "native" else openai.parse(body)[1]


def refused(where: str, name: str, value: Any = 1, **more: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(where, name, value, **more)
    return caught.value


def other_cases(name: str) -> list[str]:
    found = [name.upper(), name.capitalize(), name[:-1] + name[-1].upper(), name.swapcase()]
    found += [name.replace("k", KELVIN, 1), name.replace("s", LONG_S, 1)]
    found += [name.replace("i", "\u0131", 1), name.replace("i", "\u0130", 1)]
    return [each for each in dict.fromkeys(found) if each not in KNOWN]


# Letter case


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_known_name_in_other_letter_case_is_refused(name: str) -> None:
    assert other_cases(name)
    for where, other in itertools.product(WHERE, other_cases(name)):
        error = refused(where, other)
        right = COUNTED.get(name) or AMBIGUOUS.get(name, name)
        same = [right, *(COUNTED.get(known, known) for known in KNOWN if fold(known) == fold(name))]
        assert error.message in [f"Unknown field: {other}. Did you mean {it}?" for it in same]
        assert error.param == other


@pytest.mark.parametrize("value", [None, 1, "x", {}])
@pytest.mark.parametrize("other", ["Model", "PROMPT", "model\u017f", f"to{KELVIN}en_ids", "Stream"])
def test_letter_case_is_refused_whatever_the_value(other: str, value: Any) -> None:
    if meant(other) is None:
        return
    for where in ("native", "native params", "openai", "openai params"):
        assert refused(where, other, value).param == other


@pytest.mark.parametrize("other", ["Include_Usage", "INCLUDE_USAGE", f"include_u{LONG_S}age"])
def test_the_members_of_stream_options_have_their_letter_case_too(other: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        openai.parse({"prompt": "Hi", "stream": True, "stream_options": {other: True}})
    assert caught.value.message == f"Unknown field: {other}. Did you mean include_usage?"


@pytest.mark.parametrize("name", ["top_k", "ignore_eos", "topK", "do_sample", "thinking", "min_p"])
@pytest.mark.parametrize("where", WHERE[1:])
def test_other_fields_are_passed_on_unchanged(where: str, name: str) -> None:
    if where == "native":
        return
    request = parse(where, name, 3)
    bag = request.extra or request.openai_extra
    assert bag == ({where: {name: 3}} if where in WRAPPERS else {name: 3})


@given(st.text(max_size=80))
def test_only_a_name_that_folds_like_a_known_one_is_refused(name: str) -> None:
    right = meant(name)
    assert right is None or right in KNOWN
    assert meant(name + "q" * 70) is None


# The names that the dialects write

FULL = CompletionRequest(
    prompts=("Hi",), max_tokens=5, temperature=0.5, top_p=0.5, frequency_penalty=0.5,
    presence_penalty=0.5, stop=("x",), seed=1, n=2, best_of=3, logprobs=2, echo=True, suffix="y",
    logit_bias={"1": 1.0}, user="u", stream=True,
)  # fmt: skip


def targets() -> list[Target]:
    found = []
    for row in BUILT_IN:
        if row.dialect == "local":
            continue
        free = msgspec.structs.replace(row, cannot=(), families=(), completions=False)
        legacy = msgspec.structs.replace(free, completions=True)
        found += [Target(free, "m", Secret("k")), Target(legacy, "m", Secret("k"))]
        found += [Target(free, "m", Secret("k"), fim=rule) for rule in row.fim if rule.path]
    return found


@pytest.mark.parametrize("target", targets(), ids=lambda t: f"{t.provider.name}-{t.dialect}")
def test_every_name_that_a_dialect_writes_is_known(target: Target) -> None:
    dialect = registry.dialect(target.dialect)
    body = json.loads(dialect.call(FULL, target).body)
    inner = [body[name] for name in (*WRAPPERS, "stream_options") if name in body]
    names = {name for part in (body, *inner) for name in part}
    assert names <= KNOWN


def test_every_field_of_a_request_is_known() -> None:
    names = request_fields.NAMES | request_fields.BEYOND_PARAMS | {*native.FIELDS}
    assert names <= KNOWN
    assert max(map(len, KNOWN)) <= field_names.LONGEST_KNOWN


# Other names of what limits and budgets count

ALIASES = sorted(COUNTED.keys() - request_fields.NAMES)
NESTED = [
    ("options", "num_predict", "max_tokens"),
    ("parameters", "max_new_tokens", "max_tokens"),
    ("parameters", "num_return_sequences", "n"),
    ("parameters", "best_of", "best_of"),
    ("generationConfig", "maxOutputTokens", "max_tokens"),
    ("generation_config", "max_output_tokens", "max_tokens"),
    ("generationConfig", "candidateCount", "n"),
    ("inferenceConfig", "maxTokens", "max_tokens"),
    ("sampling_params", "max_tokens", "max_tokens"),
    ("sampling_params", "n", "n"),
    ("additionalModelRequestFields", "max_tokens", "max_tokens"),
    ("additionalModelRequestFields", "maxTokenCount", "max_tokens"),
]


@pytest.mark.parametrize("where", WHERE[1:])
@pytest.mark.parametrize("name", ALIASES)
def test_another_name_counts_as_the_field(where: str, name: str) -> None:
    field = COUNTED[name]
    request = parse(where, name, 7)
    assert getattr(request, field) == 7
    assert (request.extra, request.openai_extra) == ({}, {})
    own = openai.parse({"prompt": "Hi", field: 7})[1]
    assert demand_of(request) == demand_of(own)


@pytest.mark.parametrize("name", ALIASES)
def test_the_native_face_refuses_another_name_and_says_which_to_use(name: str) -> None:
    assert (
        refused("native", name).message == f"Unknown field: {name}. Did you mean {COUNTED[name]}?"
    )


@pytest.mark.parametrize(("wrapper", "name", "field"), NESTED)
@pytest.mark.parametrize("params", [False, True])
def test_a_counted_field_inside_an_object_counts_as_the_field(
    wrapper: str, name: str, field: str, params: bool
) -> None:
    inside = {wrapper: {name: 7, "top_k": 3}}
    twice = {"additionalModelRequestFields": inside}
    for sent in (inside, twice):
        body = {"prompt": "Hi", **({"additional_params": sent} if params else sent)}
        request = openai.parse(body)[1]
        assert getattr(request, field) == 7
        assert "7" not in json.dumps([request.extra, request.openai_extra])
        assert '"top_k": 3' in json.dumps([request.extra, request.openai_extra])


def test_an_object_without_counted_fields_is_passed_on_unchanged() -> None:
    schema = {"type": "object", "properties": {"n": {}, "max_tokens": {}, "Model": {}}}
    sent = {
        "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        "options": {"num_ctx": 4096, "mirostat": 1},
        "parameters": {},
        "reasoning": {"max_tokens": 100},
    }
    assert openai.parse({"prompt": "Hi", **sent})[1].openai_extra == sent
    assert native.parse({"prompt": "Hi", "additional_params": sent})[1].extra == sent


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize("where", ["openai", "openai params", "options"])
def test_another_name_with_another_value_is_refused_beside_the_field(where: str, name: str) -> None:
    field = COUNTED[name]
    beside = {field: 5} | ({"n": 1} if field == "best_of" else {})
    error = refused(where, name, 6, **beside)
    assert error.message == f"{name} and {field} have different values. Send only {field}."
    assert getattr(parse(where, name, 5, **beside), field) == 5


@pytest.mark.parametrize("name", ALIASES)
def test_another_name_takes_only_values_of_the_field(name: str) -> None:
    field = COUNTED[name]
    bad: list[Any] = [-1, -2, True, "7", 1.5, 2**31, [7], {"x": 1}]
    if field != "max_tokens":
        bad.append(0)
    for where, value in itertools.product(("openai", "native params", "parameters"), bad):
        error = refused(where, name, value)
        assert error.message.startswith(f"{name}: got ")
        assert f"as {field}" in error.message


def test_a_field_inside_an_object_must_agree_with_the_field() -> None:
    for where in ("options", "generationConfig"):
        error = refused(where, "max_tokens", 6, max_tokens=5)
        assert error.message == "max_tokens has different values in two places. Send it once."


def test_two_other_names_must_agree() -> None:
    body = {"prompt": "Hi", "max_completion_tokens": 5, "additional_params": {"n_predict": 6}}
    with pytest.raises(InvalidRequest):
        openai.parse(body)
    body["additional_params"] = {"options": {"num_predict": 5}}
    assert openai.parse(body)[1].max_tokens == 5


def test_another_name_that_is_null_counts_as_absent() -> None:
    body = {"prompt": "Hi", "max_completion_tokens": None, "options": {"num_predict": None}}
    request = openai.parse(body | {"additional_params": {"n_predict": None}})[1]
    assert (request.max_tokens, request.extra, request.openai_extra) == (None, {}, {})


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    "name", ["max_length", "maxLength", "Max_Length", "max-tokens", "maxNew_Tokens", "MAXTOKENS"]
)
def test_an_ambiguous_or_misspelt_other_name_is_refused(where: str, name: str) -> None:
    assert refused(where, name).message == f"Unknown field: {name}. Did you mean max_tokens?"


def test_objects_nested_too_deeply_are_refused() -> None:
    value: Any = {"n": 9}
    for _ in range(300):
        value = {"options": value}
    assert refused("openai", "parameters", value).message == "options is nested too deeply."


@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
@pytest.mark.parametrize("name", ["model", "models", "prompt", "messages", "stream"])
def test_an_object_cannot_set_what_sluice_chooses(wrapper: str, name: str) -> None:
    for sent in ({wrapper: {name: "x"}}, {"options": {wrapper: {name: "x"}}}):
        for body in (sent, {"additional_params": sent}):
            with pytest.raises(InvalidRequest) as caught:
                openai.parse({"prompt": "Hi", **body})
            assert caught.value.message == f"{name} can't be inside another field."
        with pytest.raises(InvalidRequest):
            native.parse({"prompt": "Hi", "additional_params": sent})


@pytest.mark.parametrize("target", targets(), ids=lambda t: f"{t.provider.name}-{t.dialect}")
def test_the_host_gets_the_number_once_and_under_its_own_name(target: Target) -> None:
    names = [name for name, field in COUNTED.items() if field == "max_tokens"]
    places = ("openai", "native params", "options", "inferenceConfig")
    for name, where in itertools.product(names, places):
        sent = registry.dialect(target.dialect).call(parse(where, name, 77), target).body
        own = registry.dialect(target.dialect).call(parse("openai", "max_tokens", 77), target).body
        assert sent == own
        assert sent.count(b"77") == 1


# Names that only a row knows

ROW = Provider(
    name="odd",
    base_url="http://127.0.0.1:1",
    chat_names={"max_tokens": "most_words", "seed": "chance"},
    families=(Family(models=("big*",), chat_names={"n": "ways"}),),
    fim=(Fim(path="/fim", names={"max_tokens": "longest"}),),
)


@pytest.mark.parametrize(
    ("model", "suffix", "name", "right"),
    [
        ("m", None, "most_words", "max_tokens"),
        ("m", None, "Most_Words", "max_tokens"),
        ("m", None, "Chance", "seed"),
        ("big-1", None, "ways", "n"),
        ("m", "end", "longest", "max_tokens"),
    ],
)
def test_a_rows_own_name_for_a_counted_field_is_refused(
    model: str, suffix: str | None, name: str, right: str
) -> None:
    asked = CompletionRequest(prompts=("Hi",), suffix=suffix)
    for request in (
        msgspec.structs.replace(asked, extra={name: 9}),
        msgspec.structs.replace(asked, openai_extra={name: 9}),
    ):
        with pytest.raises(InvalidRequest) as caught:
            fit(request, Target(ROW, model), strict=False)
        assert caught.value.message == f"Unknown field: {name}. Did you mean {right}?"


def test_a_rows_own_name_for_another_field_is_passed_on() -> None:
    request = CompletionRequest(prompts=("Hi",), extra={"chance": 4})
    assert fit(request, Target(ROW, "m"), strict=False).request.extra == {"chance": 4}


# Limits and budgets

TOKENS = 200


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    line, secret = make_key("limited", tokens_per_hour=TOKENS)
    site = make_app(tmp_path, monkeypatch, keys=line)
    site.secret = secret
    play(monkeypatch, *[hello() for _ in range(9)])
    return site


def ask(site: Site, path: str, **fields: Any) -> TestResponse:
    headers = {"X-API-Key": site.secret}
    return site.client.post(path, json={"prompt": "Hi", "model": "sim/m"} | fields, headers=headers)


@pytest.mark.parametrize("name", ALIASES)
def test_no_other_name_passes_a_limit_of_tokens(limited: Site, name: str) -> None:
    field = COUNTED[name]
    value = 100 if field != "max_tokens" else 10_000
    beside = {"max_tokens": 10} if field != "max_tokens" else {}
    for path, sent in (
        ("/v1/completions", {name: value}),
        ("/v1/completions", {"options": {name: value}}),
        ("/v1/completions", {"additional_params": {name: value}}),
        ("/api/v1/completions", {"additional_params": {"generationConfig": {name: value}}}),
    ):
        for stream in (False, True):
            answer = ask(limited, path, **sent, **beside, stream=stream)
            assert answer.status_code == 429, answer.text


# Bounded names


@pytest.mark.parametrize("where", ["native", "native params", "openai", "openai params"])
def test_a_long_name_is_refused_with_a_short_message(where: str) -> None:
    for length in (257, 1_000_000):
        error = refused(where, "x" * length)
        assert len(error.message) < 300
        assert error.param == "x" * 100 + "..."


def test_too_many_fields_are_refused() -> None:
    many = {f"f{number}": 1 for number in range(257)}
    for where in ("openai", "native params"):
        body = {"prompt": "Hi", **(many if where == "openai" else {"additional_params": many})}
        with pytest.raises(InvalidRequest, match="257 unknown fields exceed the limit of 256"):
            openai.parse(body)
    del many["f0"]
    assert openai.parse({"prompt": "Hi", **many})[1].openai_extra == many


@pytest.mark.parametrize("where", ["native", "native params", "openai", "openai params", "options"])
def test_a_long_name_costs_no_more_than_its_length(where: str) -> None:
    """Compare with the time of the JSON, which is in proportion to the length."""
    name = "temperature" * 90_000
    began = time.process_time()
    for _ in range(20):
        json.dumps(name)
    reference = time.process_time() - began
    began = time.process_time()
    for _ in range(20):
        with suppress(InvalidRequest):
            parse(where, name, 1)
    assert time.process_time() - began < 2 * reference + 0.02


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 27}, {"max_tokens": 3, "n": 9}, {"max_tokens": 3, "best_of": 9}]
)
def test_a_reservation_uses_every_counted_field(fields: dict[str, int]) -> None:
    assert {name for name in fields if name in OTHER_NAMES} == fields.keys()
    assert demand_of(openai.parse({"prompt": "Hi", **fields})[1]).output == 27
