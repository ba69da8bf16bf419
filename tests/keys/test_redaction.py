"""Tests of keys/redaction.py: secrets are redacted in all texts that others see."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keys import redaction
from keys.redaction import Secret


def test_secret_is_hidden_in_repr_and_str_and_shown_by_reveal() -> None:
    secret = Secret("sk-very-secret")
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r}", repr([secret])):
        assert "very-secret" not in text
    assert secret.reveal() == "sk-very-secret"


@given(st.from_regex(redaction.KEY_LIKE))
def test_text_that_looks_like_a_key_is_detected_and_masked(text: str) -> None:
    assert redaction.may_hold_key(text)
    assert redaction.mask(text) != text


def test_may_hold_key_is_false_for_a_usual_log_line() -> None:
    assert not redaction.may_hold_key("key_CC8A3EfCkouw\n550e8400-e29b-41d4\nopenai/gpt-4o-mini")


def test_secrets_are_equal_when_their_texts_are() -> None:
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
