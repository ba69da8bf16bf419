"""Tests of endpoints/request_fields.py: a field accepts a value, or the error names the field."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.exceptions import ClientDisconnected

from completion import (
    CompletionRequest,
)
from endpoints import native, passed_on, request_fields
from endpoints.flask_app import Request
from endpoints.request_fields import NAMES, NEVER_SHOWN, TAKES, Parameters, kind_of, shown
from errors import (
    InvalidRequest,
    RequestTimeout,
    RequestTooLarge,
    SluiceError,
    UnsupportedMediaType,
)
from keys.redaction import Secret

KEY_TEXT = st.text("abcdefgh0123456789", min_size=16, max_size=40).map("sk-".__add__)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=80)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NATIVE_FIELDS = st.sampled_from(native.FIELDS)

number = st.floats


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


TEXT = st.text(min_size=1, max_size=10)
VALID: dict[str, st.SearchStrategy[Any]] = {
    "model": TEXT,
    "provider": TEXT,
    "fallbacks": st.lists(TEXT, max_size=8),
    "byok_api_key": st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1),
    "stream_id": st.from_regex(r"\A[A-Za-z0-9_.:-]{1,128}\Z"),
    "stream": st.booleans(),
    "temperature": number(0, 2) | st.integers(0, 2),
    "max_tokens": st.integers(0, 2**31 - 1),
    "top_p": number(0, 1),
    "frequency_penalty": number(-2, 2) | st.integers(-2, 2),
    "presence_penalty": number(-2, 2),
    "stop": st.text(max_size=5) | st.lists(st.text(max_size=5), max_size=64),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "n": st.integers(1, 128),
    "logprobs": st.integers(0, 20),
    "echo": st.booleans(),
    "suffix": st.text(max_size=5),
    "logit_bias": st.dictionaries(TEXT, number(-100, 100), max_size=3),
    "user": st.text(max_size=5),
}
"""Valid values by field. best_of depends on n, so it has its own test."""


def read(data: dict[str, Any]) -> CompletionRequest:
    found, request = native.parse(data)
    request_fields.to_route(found)
    return request


def refusal(data: dict[str, Any]) -> InvalidRequest | None:
    """Return the error for a body; None if the body is valid."""
    try:
        read(data)
    except InvalidRequest as error:
        return error
    return None


# Any value of any field


@given(NATIVE_FIELDS, JSON)
def test_any_field_value_is_accepted_or_rejected_with_a_helpful_error(
    name: str, value: Any
) -> None:
    error = refusal({"prompt": "Hi", name: value})
    if error is None:
        return
    assert type(error) is InvalidRequest
    assert len(error.message) < 400
    if name == "additional_params" and isinstance(value, dict):
        assert error.param in value
    elif value is None:
        assert error.message == f"prompt is missing; expected {TAKES['prompt']}."
    else:
        assert error.param == name
        more = native.TAKES_LISTS if name == "prompt" and isinstance(value, list) and value else ""
        assert error.message == f"{name}: got {shown(name, value)}; expected {TAKES[name]}.{more}"


@given(st.sampled_from(sorted(NAMES)), JSON)
def test_a_field_in_additional_params_is_checked_as_in_the_body(name: str, value: Any) -> None:
    if name in request_fields.BEYOND_PARAMS or name not in native.FIELDS:
        return

    def outcome(data: dict[str, Any]) -> object:
        try:
            return native.parse({"prompt": "Hi"} | data)
        except InvalidRequest as error:
            return error.message

    assert outcome({"additional_params": {name: value}}) == outcome({name: value})


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=12) | NATIVE_FIELDS, JSON, max_size=5))
def test_any_json_object_is_a_valid_request_or_an_invalid_request_error(
    data: dict[str, Any],
) -> None:
    error = refusal(data)
    assert error is None or (error.message and error.param is not None)


@given(KEY_TEXT, st.sampled_from(["list", "object", "space", "accent", "number"]))
def test_an_invalid_byok_api_key_is_not_shown_in_the_error_message(secret: str, wrong: str) -> None:
    value: Any = {
        "list": [secret],
        "object": {secret: secret},
        "space": f"{secret} {secret}",
        "accent": f"{secret}\u00e9",
        "number": 10**30,
    }[wrong]
    with pytest.raises(InvalidRequest) as caught:
        read({"prompt": "Hi", "byok_api_key": value})
    assert caught.value.param == "byok_api_key"
    assert secret not in caught.value.message
    assert str(10**30) not in caught.value.message
    assert kind_of(value) in caught.value.message


@given(st.fixed_dictionaries({}, optional={name: optional(VALID[name]) for name in VALID}))
def test_valid_field_values_reach_the_request_and_the_route(fields: dict[str, Any]) -> None:
    """Send the values through JSON, and read them back from the request and the route."""
    data = json.loads(json.dumps(fields))
    found = request_fields.parameters({name: v for name, v in data.items() if v is not None})
    request, route = (
        request_fields.to_request(found, ("Hi",), {"top_k": 1}),
        request_fields.to_route(found),
    )
    there = {name: value for name, value in fields.items() if value is not None}
    no_op = {
        "top_p": 1, "n": 1, "frequency_penalty": 0, "presence_penalty": 0,
        "logit_bias": {}, "user": "", "echo": False, "stream": False,
    }  # fmt: skip
    for name in set(VALID) - {"model", "provider", "fallbacks", "byok_api_key", "stream_id"}:
        value = there.get(name)
        got = getattr(request, name)
        if value is None or (name in no_op and value == no_op[name]):
            assert got in (None, (), {}, False)
        elif name == "stop":
            assert got == tuple(filter(None, [value] if isinstance(value, str) else value))
        else:
            assert got == value
    assert (request.prompts, request.extra) == (("Hi",), {"top_k": 1})
    assert (route.model, route.provider) == (there.get("model"), there.get("provider"))
    assert route.fallbacks == tuple(there.get("fallbacks") or ())
    own = there.get("byok_api_key")
    assert route.byok_api_key == (Secret(own) if own else None)
    assert found.stream_id == there.get("stream_id")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("prompt", ["a", " ", "\u2028"], ["", 5, ["a"], {"a": 1}, True]),
        ("model", ["m"], ["", 5, ["m"]]),
        ("provider", ["p"], ["", 5]),
        ("fallbacks", [[], ["a"] * 8], ["a", ["a"] * 9, [""], [5], {}]),
        ("stream_id", ["a", "A-b_c.d:9", "a" * 128], ["", "a b", "a" * 129, "a\n", "\u00e9", 5]),
        ("stream", [True, False], ["true", 1, 0, []]),
        ("temperature", [0, 2, 0.5, -0.0], [-0.1, 2.1, "1", True, 10**400]),
        ("max_tokens", [0, 1, 2**31 - 1], [-1, 2**31, 1.0, "5", True, 10**30]),
        ("top_p", [0, 0.0, 1, 0.001, 1e-300], [1.1, -0.1, -1, "x"]),
        ("frequency_penalty", [-2, 2, 0], [-2.1, 2.1, "x", False]),
        ("presence_penalty", [-2, 2, 0], [-2.1, 2.1, [], {}]),
        ("additional_params", [{}, {"top_k": 1}], [[], "x", 5, True]),
        ("byok_api_key", ["sk-1", "a" * 300], ["", "a b", "\u00e9", "a\n", 5]),
    ],
)
def test_native_fields_accept_values_up_to_their_limits_and_reject_others(
    name: str, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        read({"prompt": "Hi"} | {name: value})
    for value in bad:
        with pytest.raises(InvalidRequest) as caught:
            read({"prompt": "Hi"} | {name: value})
        assert caught.value.param == name
        assert TAKES[name] in caught.value.message


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("stop", ["a", ["a"] * 64, [], "", [""], "a" * 1024], [["a"] * 65, ["a" * 1025], [5], 5]),
        ("seed", [0, -(2**63), 2**63 - 1], [2**63, -(2**63) - 1, 1.5, "1"]),
        ("n", [1, 128], [0, 129, 1.0]),
        ("best_of", [1, 128], [0, 129]),
        ("logprobs", [0, 20], [-1, 21, True]),
        ("echo", [True, False], [0, "yes"]),
        ("suffix", ["", "x"], [5]),
        ("logit_bias", [{}, {"50256": -100}], [{"5": 101}, {"5": "x"}, []]),
        ("user", ["", "u"], [5]),
    ],
)
def test_additional_params_accept_values_up_to_their_limits_and_reject_others(
    name: str, good: list[Any], bad: list[Any]
) -> None:
    for value in good:
        read({"prompt": "Hi", "additional_params": {name: value}})
    for value in bad:
        with pytest.raises(InvalidRequest) as caught:
            read({"prompt": "Hi", "additional_params": {name: value}})
        assert caught.value.param == name
        assert TAKES[name] in caught.value.message


@pytest.mark.parametrize(
    ("fields", "fine"),
    [
        ({"best_of": 2}, True),
        ({"best_of": 2, "n": 2}, True),
        ({"best_of": 1}, True),
        ({"best_of": 2, "n": 3}, False),
        ({"best_of": 1, "n": 2}, False),
    ],
)
def test_best_of_below_n_is_rejected(fields: dict[str, Any], fine: bool) -> None:
    if fine:
        assert request_fields.parameters(dict(fields)).best_of == fields["best_of"]
        return
    with pytest.raises(InvalidRequest) as caught:
        request_fields.parameters(dict(fields))
    assert caught.value.param == "best_of"


def test_the_first_invalid_field_is_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_fields.parameters({"n": 1, "temperature": "hot", "max_tokens": -1})
    assert caught.value.param == "temperature"


def test_every_field_has_a_description_of_its_valid_values() -> None:
    assert set(TAKES) >= NAMES | set(native.FIELDS)
    assert set(native.FIELDS) - {"prompt", "additional_params"} <= NAMES
    assert NEVER_SHOWN <= NAMES


# Names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("temprature", "Unknown field: temprature. Did you mean temperature?"),
        ("maxtokens", "Unknown field: maxtokens. Did you mean max_tokens?"),
        ("zzz", "Unknown field: zzz. Provider-specific fields belong in additional_params."),
        ("x" * 300, f"Unknown field: {'x' * 100}...."),
    ],
)
@pytest.mark.parametrize("value", [1, None])
def test_an_unknown_field_is_named_with_the_nearest_known_field(
    name: str, says: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        native.parse({"prompt": "Hi", name: value})
    assert caught.value.message.startswith(says)
    assert caught.value.param == (name if len(name) < 100 else "x" * 100 + "...")


@pytest.mark.parametrize("name", sorted(NAMES - set(native.FIELDS)))
def test_the_error_for_a_misplaced_field_mentions_additional_params(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        native.parse({"prompt": "Hi", name: 1})
    assert "additional_params" in caught.value.message


@pytest.mark.parametrize("name", sorted(request_fields.BEYOND_PARAMS))
@pytest.mark.parametrize("value", [1, None])
def test_additional_params_cannot_set_reserved_fields(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        native.parse({"prompt": "Hi", "additional_params": {name: value}})
    assert caught.value.message == f"additional_params can't set {name}."
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("fields", "params", "extra", "merged"),
    [
        ({}, {"top_k": 1, "x": None}, {"top_k": 1, "x": None}, {}),
        ({}, {"seed": 7}, {}, {"seed": 7}),
        ({}, {"seed": None}, {}, {}),
        ({"top_p": 0.5}, {"top_p": 0.5}, {}, {"top_p": 0.5}),
        ({"top_p": 0.5}, {"top_p": None}, {}, {"top_p": 0.5}),
        ({"n": 2}, {"n": 2.0, "y": []}, {"y": []}, {"n": 2}),
    ],
)
def test_known_additional_params_become_fields_and_the_rest_stay_unchanged(
    fields: dict[str, Any], params: dict[str, Any], extra: dict[str, Any], merged: dict[str, Any]
) -> None:
    given = fields | {"additional_params": params}
    assert passed_on.merge_params(given) == extra
    assert given == merged


def test_a_field_with_two_different_values_is_rejected() -> None:
    with pytest.raises(InvalidRequest) as caught:
        passed_on.merge_params({"top_p": 0.5, "additional_params": {"top_p": 0.6}})
    assert caught.value.param == "top_p"
    message = "top_p has different values in the body and in additional_params."
    assert caught.value.message == message


# Values in messages


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hot", '"hot"'),
        ("x" * 100, '"' + "x" * 59 + "... (a string of 100 characters)"),
        (5, "5"),
        (True, "true"),
        (None, "null"),
        ([], "[]"),
        ({}, "{}"),
        ([1, 2], "a list of length 2"),
        ({"a": 1}, "an object"),
        (1e300, "1e300"),
        (10**99, "1" + "0" * 59 + "... (a number)"),
    ],
)
def test_an_error_message_shows_a_value_in_short_form(value: Any, words: str) -> None:
    assert shown("temperature", value) == words


@given(JSON)
def test_every_json_value_can_be_shown_and_has_a_kind(value: Any) -> None:
    assert len(shown("x", value)) <= 60 + len("... (a string of 99999 characters)")
    assert kind_of(value)
    assert shown("byok_api_key", value) == kind_of(value)


# Bodies


def reading(flask: Flask, data: bytes, limit: int = 1000, **options: Any) -> Any:
    options = {"content_type": "application/json", **options}
    with flask.test_request_context(method="POST", data=data, **options):
        return request_fields.read_object(limit)


READER = Flask(__name__)
READER.request_class = Request


@pytest.fixture
def flask() -> Flask:
    return READER


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_a_json_object_body_is_read_unchanged(data: dict[str, Any]) -> None:
    text = json.dumps(data).encode()
    assert reading(READER, text, len(text)) == json.loads(text)


@pytest.mark.parametrize(
    "kind",
    ["application/json", "application/json; charset=utf-8", "Application/JSON", None, "",
     "application/vnd.api+json"],
)  # fmt: skip
def test_json_content_types_and_a_missing_content_type_are_accepted(
    flask: Flask, kind: str | None
) -> None:
    assert reading(flask, b"{}", content_type=kind) == {}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "a/b"])
def test_an_unsupported_content_type_is_rejected_and_named(flask: Flask, kind: str) -> None:
    with pytest.raises(UnsupportedMediaType) as caught:
        reading(flask, b"{}", content_type=kind)
    assert kind in caught.value.message


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "The body is empty; expected a JSON object."),
        (b" \n", "The body is empty;"),
        (b"{", "The body is not JSON: "),
        (b"{'a': 1}", "The body is not JSON: "),
        (b'{"a": NaN}', "The body is not JSON: "),
        (b'{"a": 1} x', "The body is not JSON: "),
        (b'{"a": "\xff"}', "The body is not UTF-8 at byte "),
        (b'{"a": "\xed\xa0\x80"}', "The body is not UTF-8 at byte "),
        (b'{"a": "\\ud800"}', "The body is not JSON: "),
        (b"[" * 900, "The body is "),
        (b"[]", "The body is a list of length 0; expected a JSON object."),
        (b"null", "The body is null;"),
        (b"5", "The body is a number;"),
        (b"true", "The body is true;"),
        (b'"prompt"', "The body is a string of 6 characters;"),
    ],
)
def test_the_error_for_a_body_that_is_not_a_json_object_gives_the_reason(
    flask: Flask, data: bytes, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        reading(flask, data)
    assert caught.value.message.startswith(says)


def test_deep_nesting_is_refused(flask: Flask) -> None:
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        reading(flask, b'{"a":' * 50_000, limit=10**6)


@pytest.mark.parametrize(("size", "fits"), [(999, True), (1000, True), (1001, False)])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_above_the_size_limit_is_rejected_and_read_to_its_end(
    flask: Flask, size: int, fits: bool, announced: bool
) -> None:
    data = b'{"a":"' + b"x" * (size - 8) + b'"}'
    options: dict[str, Any] = {"content_type": "application/json"}
    if not announced:
        options |= {"content_length": 0, "environ_overrides": {"wsgi.input_terminated": True}}
        options["headers"] = {"Transfer-Encoding": "chunked"}
    stream = io.BytesIO(data)
    with flask.test_request_context(method="POST", input_stream=stream, **options) as context:
        if announced:
            context.request.environ["CONTENT_LENGTH"] = str(size)
        else:
            context.request.environ.pop("CONTENT_LENGTH", None)
        if fits:
            assert len(request_fields.read_object(1000)["a"]) == size - 8
        else:
            with pytest.raises(RequestTooLarge, match="larger than 1000 bytes"):
                request_fields.read_object(1000)
    assert stream.read() == b"", "the rest of the body was not read"


class Feed:
    """A fake request stream: it returns chunks, raises, then returns `forever` endlessly."""

    def __init__(self, *items: bytes | Exception, forever: bytes = b"") -> None:
        self.items: Iterator[bytes | Exception] = iter(items)
        self.forever = forever
        self.taken = 0

    def read(self, size: int) -> bytes:
        item = next(self.items, self.forever)
        if isinstance(item, Exception):
            raise item
        self.taken += len(item)
        return item


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (TimeoutError("timed out"), RequestTimeout),
        (ConnectionResetError("reset"), InvalidRequest),
        (ClientDisconnected(), InvalidRequest),
    ],
)
def test_a_body_that_breaks_off_raises_a_timeout_or_invalid_request(
    flask: Flask, monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: type[SluiceError]
) -> None:
    with flask.test_request_context(method="POST", content_type="application/json") as context:
        monkeypatch.setattr(type(context.request), "stream", Feed(b"{", failure))
        with pytest.raises(kind):
            request_fields.read_object(1000)


def test_the_rest_of_a_too_large_body_is_read_up_to_a_bound(
    flask: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Feed(forever=b"x" * 1_000_000)
    gone = Feed(b"x" * 2000, ConnectionResetError("reset"))
    slow = Feed(forever=b"x" * 2000)
    for feed, most in ((endless, 18_000_000), (gone, 2000), (slow, 2000)):
        with flask.test_request_context(method="POST", content_type="application/json") as context:
            monkeypatch.setattr(type(context.request), "stream", feed)
            if feed is slow:
                monkeypatch.setattr("endpoints.read_body.DRAIN_S", -1.0)
            with pytest.raises(RequestTooLarge):
                request_fields.read_object(1000)
        assert feed.taken <= most


# Ids


@given(st.from_regex(request_fields.ID, fullmatch=True))
def test_a_stream_id_that_matches_the_pattern_is_accepted(text: str) -> None:
    assert request_fields.parameters({"stream_id": text}).stream_id == text


@given(st.text(max_size=20))
def test_a_valid_stream_id_is_safe_in_a_header_and_in_a_path(text: str) -> None:
    if request_fields.ID.fullmatch(text):
        assert text.isascii()
        assert not set(text) & set("/\\ \r\n%?#\"'")


def test_field_types_match_the_parameters_struct_and_allow_none() -> None:
    assert set(request_fields.FIELDS) == set(Parameters.__struct_fields__)
    for name, kind in request_fields.FIELDS.items():
        assert msgspec.convert(None, cast(Any, kind)) is None, name
