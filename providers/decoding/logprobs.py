"""Conversion of log probabilities, in either of OpenAI's shapes, to the legacy shape.

The chat shape is {"content": [{"token", "bytes", "logprob", "top_logprobs": [...]}]}; the legacy
shape has four parallel lists.

- The module is pure.
- The data itself shows its shape, not the endpoint, because hosts mix the shapes up: llama.cpp
  sends the chat shape from /completions.
- Malformed parts are left out, because text without log probabilities is better than an error.
- A token that isn't valid UTF-8 gets the name that OpenAI's legacy endpoint gives it: "bytes:" and
  the bytes, with those beyond ASCII as \\xNN.
- Tokens that share a character all have that character's offset.

Source: OpenAI API reference, "Completions" and "Chat", logprobs; responses of
gpt-3.5-turbo-instruct for the bytes and offsets (read 2026-11).
"""

from __future__ import annotations

import codecs
import math
from typing import Any

from completion import Logprobs

VERY_UNLIKELY = -9999.0
"""The value that OpenAI sends when a log probability is too small to state."""


class LogprobsReader:
    """A converter of the log probabilities of one choice, which arrive in parts."""

    __slots__ = ("base", "decoder", "offset", "top")

    def __init__(self, top: int) -> None:
        """Set the requested number of alternatives. With 0, the chat shape has no top_logprobs."""
        self.top = top
        self.offset = 0
        self.base: int | None = None
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, raw: Any) -> Logprobs | None:
        """Convert a part in either shape. Return None if it has no tokens."""
        if not isinstance(raw, dict):
            return None
        if isinstance(raw.get("content"), list):
            return self.chat([entry for entry in raw["content"] if _is_token(entry)])
        if isinstance(raw.get("tokens"), list):
            return self.legacy([t for t in raw["tokens"] if isinstance(t, str)], raw)
        return None

    def chat(self, entries: list[dict[str, Any]]) -> Logprobs | None:
        if not entries:
            return None
        return Logprobs(
            tokens=[_name(entry) for entry in entries],
            token_logprobs=[_number(entry.get("logprob")) for entry in entries],
            top_logprobs=[_alternatives(entry) for entry in entries] if self.top else None,
            text_offset=[self.advance(_bytes(entry)) for entry in entries],
        )

    def legacy(self, tokens: list[str], raw: dict[str, Any]) -> Logprobs | None:
        if not tokens:
            return None
        count = len(tokens)
        values = _list(raw, "token_logprobs", count)
        top = _list(raw, "top_logprobs", count)
        offsets = _list(raw, "text_offset", count)
        return Logprobs(
            tokens=tokens,
            token_logprobs=[_number(value) for value in values or [None] * count],
            top_logprobs=[_numbers(entry) for entry in top] if top else None,
            text_offset=(
                self.rebase(offsets)
                if offsets and all(type(offset) is int for offset in offsets)
                else [self.advance(token.encode("utf-8", "replace")) for token in tokens]
            ),
        )

    def advance(self, token: bytes) -> int:
        """Consume a token. Return its offset: the number of complete characters before it."""
        offset = self.offset
        self.offset += len(self.decoder.decode(token))
        return offset

    def rebase(self, offsets: list[int]) -> list[int]:
        """Return offsets from the start of the choice's text. OpenAI counts from the prompt."""
        if self.base is None:
            self.base = offsets[0]
        return [offset - self.base for offset in offsets]


def _is_token(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("token"), str)


def _bytes(entry: dict[str, Any]) -> bytes:
    """Return the bytes of a token, or its encoded name if the entry has no valid bytes."""
    try:
        return bytes(entry["bytes"])
    except (KeyError, TypeError, ValueError):
        return str(entry["token"]).encode("utf-8", "replace")


def _name(entry: dict[str, Any]) -> str:
    data = _bytes(entry)
    try:
        data.decode()
    except UnicodeDecodeError:
        return bytes_name(data)
    return str(entry["token"])


def bytes_name(token: bytes) -> str:
    """Return the name of a token that isn't valid UTF-8."""
    return "bytes:" + token.decode("ascii", "backslashreplace")


def _alternatives(entry: dict[str, Any]) -> dict[str, float]:
    """Return the alternatives, likeliest first. Of two with equal names, keep the likelier."""
    found: dict[str, float] = {}
    for other in entry.get("top_logprobs") or ():
        if _is_token(other) and (value := _number(other.get("logprob"))) is not None:
            found.setdefault(_name(other), value)
    return found


def _number(value: Any) -> float | None:
    """Return a log probability, or None. Some hosts send -Infinity and NaN, which JSON lacks."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value) if math.isfinite(value) else VERY_UNLIKELY


def _numbers(entry: Any) -> dict[str, float] | None:
    if not isinstance(entry, dict):
        return None
    return {name: number for name, raw in entry.items() if (number := _number(raw)) is not None}


def _list(raw: dict[str, Any], name: str, count: int) -> list[Any] | None:
    """Return the list in a field if it is parallel to the tokens, else None."""
    value = raw.get(name)
    return value if isinstance(value, list) and len(value) == count else None
