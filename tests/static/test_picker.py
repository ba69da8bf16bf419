"""Tests of static/picker.js: the search."""

from __future__ import annotations

from tests.support.javascript import call_each, needs_node

pytestmark = needs_node

GROUPS = [
    {"name": "Aliases", "items": [{"id": "fast"}]},
    {"name": "openai", "items": [{"id": "openai/gpt-4o"}, {"id": "openai/gpt-4o-mini"}]},
]


def test_the_search_keeps_items_with_all_words_in_any_case() -> None:
    texts = ["", "4O mini", "mini 4o", "fa", "nothing"]
    found = call_each("picker.js", "matching", *((GROUPS, text) for text in texts))
    ids = [[item["id"] for group in groups for item in group["items"]] for groups in found]
    mini = ["openai/gpt-4o-mini"]
    assert ids == [["fast", "openai/gpt-4o", *mini], mini, mini, ["fast"], []]
