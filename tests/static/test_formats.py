"""Tests of static/common.js, panel.js and outcomes.js: how figures and ends are written."""

from __future__ import annotations

import pytest

from config import Settings
from errors import ProviderNotFound
from routing.router import Route, Router
from tests.support.javascript import call_each, needs_node

pytestmark = needs_node


def test_an_unknown_cost_is_never_written_as_0() -> None:
    found = call_each("common.js", "money", (None,), (0,), (0.0000123,), (12.5,))
    assert found == ["unknown", "$0.00", "$0.0000123", "$12.50"]


def test_a_price_is_unknown_free_or_two_figures() -> None:
    unknown, free, both = call_each(
        "common.js",
        "prices",
        ({"input": None, "output": None},),
        ({"input": 0, "output": 0},),
        ({"input": 0.15, "output": 0.6},),
    )
    assert (unknown, free) == ("Price unknown", "Free")
    assert both == "$0.15 in, $0.60 out per million tokens"


def test_each_figure_of_a_usage_has_a_label() -> None:
    counts = {"input_tokens": 8, "output_tokens": 1200}
    known, estimated, none = call_each(
        "panel.js",
        "usageText",
        ({**counts, "cost_usd": 0},),
        ({**counts, "cost_usd": None, "source": "estimate"},),
        (None,),
    )
    assert known == "8 tokens in \u00b7 1,200 tokens out \u00b7 cost $0.00"
    assert estimated == "\u2248 8 tokens in \u00b7 \u2248 1,200 tokens out \u00b7 cost unknown"
    assert none == ""


def test_short_pieces_are_tokens_and_long_ones_are_estimated_by_their_text() -> None:
    cases = [(10, 55), (10, 400), (1, 4000), (0, 0)]
    assert call_each("panel.js", "estimated", *cases) == [10, 100, 1000, 0]


def test_a_failure_after_text_is_called_broken_off() -> None:
    ends = [
        {"problem": {}, "text": "Half"},
        {"problem": {}, "text": ""},
        {"problem": None, "text": "x", "reason": "cancelled"},
        {"problem": None, "text": "x", "reason": "stop", "continued": True},
    ]
    assert call_each("panel.js", "endingText", *((end,) for end in ends)) == [
        "Broken off",
        "Failed",
        "Stopped",
        "Finished, continued by another model",
    ]


def test_a_schema_is_written_in_words() -> None:
    root = {"components": {"schemas": {"Model": {"type": "object"}}}}
    schemas = [
        {"type": "string"},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        {"enum": ["a", "b"]},
    ]
    found = call_each("docs.js", "typeOf", *((schema, root) for schema in schemas))
    assert found == ["string", "integer or null", "list of Model", '"a" or "b"']


def test_only_a_known_price_of_0_is_free() -> None:
    prices = [{"input": 0, "output": 0}, {"input": 0, "output": 1}, {"input": None, "output": None}]
    assert call_each("common.js", "isFree", *((each,) for each in prices)) == [True, False, False]


def test_a_provider_without_a_key_is_explained_without_the_words_of_the_api() -> None:
    router = Router(Settings())
    problems = []
    for model in ("openai/gpt-4o-mini", "bedrock/m"):
        with pytest.raises(ProviderNotFound) as found:
            router.targets(Route(model=model))
        problems.append({"code": found.value.code, "message": found.value.message})
    told = call_each("panel.js", "forPeople", *((problem,) for problem in problems))
    for text, names in zip(told, (("openai", "OPENAI_API_KEY"), ("bedrock", "AWS")), strict=True):
        assert all(name in text for name in names), text
        assert "into .env" in text
        assert "byok" not in text
        assert "must set" not in text
    other = {"code": "provider_not_found", "message": "There is no provider named x."}
    assert call_each("panel.js", "forPeople", (other,)) == [other["message"]]


def test_a_client_that_hung_up_is_no_failure() -> None:
    ends: list[dict[str, object]] = [
        {"end_reason": "client_gone", "status": 499, "error_code": "client_gone"},
        {"end_reason": None, "status": None, "error_code": None},
        {"end_reason": "provider_error", "status": 502, "error_code": "provider_error"},
        {"end_reason": "deadline", "status": 200, "error_code": None, "first_event_ms": 5},
    ]
    rows = [{"stream": True, "first_event_ms": None} | end for end in ends]
    assert call_each("outcomes.js", "outcome", *((row,) for row in rows)) == [
        {"text": "client hung up", "mark": "client_gone", "hint": ""},
        {"text": "active", "mark": "active", "hint": ""},
        {"text": "provider_error", "mark": "bad", "hint": "502 provider_error"},
        {"text": "broken off", "mark": "bad", "hint": "200 deadline"},
    ]
