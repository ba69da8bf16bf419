"""Tests of keys/redaction.py: secrets are redacted in all texts that others see."""

from __future__ import annotations

import secrets
import time

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


# Pieces of a secret


def hidden_by_pieces(secret: str, text: str, least: int) -> str:
    """Return the text without the secret's pieces, by comparing each piece with each place."""
    size = min(least, len(secret))
    pieces = {secret[at : at + size] for at in range(len(secret) - size + 1)}
    kept, at = "", 0
    while at < len(text):
        if text[at : at + size] not in pieces:
            kept, at = kept + text[at], at + 1
            continue
        while text[at : at + size] in pieces:
            at += 1
        kept, at = kept + redaction.MARK, at + size - 1
    return kept


@given(st.data(), st.text("ab0", min_size=1, max_size=40), st.integers(1, 16))
def test_every_piece_of_a_secret_is_hidden_and_nothing_else(
    data: st.DataObject, secret: str, least: int
) -> None:
    start = data.draw(st.integers(0, len(secret)))
    piece = secret[start : data.draw(st.integers(start, len(secret)))]
    text = data.draw(st.text("ab0x", max_size=30)) + piece + data.draw(st.text("ab0x", max_size=30))
    assert Secret(secret).hidden_in(text, least) == hidden_by_pieces(secret, text, least)


def test_a_long_secret_costs_hardly_more_than_a_short_one() -> None:
    text = "A valid API key is required: send it as 'Authorization: Bearer KEY'." * 3

    def cost(length: int) -> float:
        secret = Secret(secrets.token_urlsafe(length)[:length])
        rounds = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(20):
                assert secret.hidden_in(text) == text
            rounds.append(time.process_time() - began)
        return min(rounds)

    assert cost(8192) < 100 * cost(50)  # it was 226 times as much: each piece was looked for
