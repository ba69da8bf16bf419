"""Tests of static/common.js and static/panel.js: how figures are written."""

from __future__ import annotations

from tests.support.javascript import call_each, needs_node

pytestmark = needs_node


def test_an_unknown_cost_is_never_written_as_0() -> None:
    found = call_each("common.js", "money", (None,), (0,), (0.0000123,), (12.5,))
    assert found == ["unknown", "$0", "$0.0000123", "$12.50"]


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
    assert known == "8 tokens in \u00b7 1,200 tokens out \u00b7 cost $0"
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
