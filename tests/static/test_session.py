"""Tests of static/session.js: what people paste instead of a key."""

from __future__ import annotations

from tests.support.javascript import call_each, needs_node

pytestmark = needs_node

KEY = "sk-sluice-abc_DEF-123"


def test_what_stood_around_a_key_is_removed() -> None:
    pasted = [
        f"  {KEY}\n",
        f"Bearer {KEY}",
        f"Authorization: Bearer {KEY}",
        f"SLUICE_KEY={KEY}",
        f"export SLUICE_KEY='{KEY}'",
        f'"{KEY}"',
    ]
    assert call_each("session.js", "cleaned", *((text,) for text in pasted)) == [KEY] * len(pasted)


def test_texts_that_cannot_be_keys_get_a_reason() -> None:
    texts = [KEY, "two words", "sk-sluice-ab...", "\u043a\u043b\u044e\u0447"]
    good, *bad = call_each("session.js", "unusable", *((text,) for text in texts))
    assert good == ""
    assert all(bad)


def test_a_key_of_a_provider_is_recognized() -> None:
    texts = ["sk-ant-x", "sk-proj-x", "AIzaSyX", "gsk_x", KEY]
    found = call_each("session.js", "advice", *((text,) for text in texts))
    for name, advice in zip(("Anthropic", "OpenAI", "Google", "Groq"), found, strict=False):
        assert f"a key of {name}" in advice
    assert "ask for a new one" in found[-1]
