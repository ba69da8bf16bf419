"""What must not show of a secret: credentials in messages, log lines and answers.

- A credential that is known is found by its pieces, because others mask or cut what they quote.
- A credential that isn't known is found by how it looks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

LEAST_PIECE = 8
"""Characters of a secret that must not show in a row."""
MARK = "[key]"
MOST_WORDS = 1000
"""Characters of a provider's message that are shown."""


class Secret:
    """A credential that can't be printed by accident: only `reveal()` gives the text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def hidden_in(self, text: str, least: int = LEAST_PIECE) -> str:
        """Return a text with MARK in the place of each piece of the secret.

        Args:
            least: characters that a piece has at least.
        """
        size = min(least, len(self._text))
        if len(text) < size:
            return text
        pieces = {self._text[at : at + size] for at in range(len(self._text) - size + 1)}
        if not any(piece in text for piece in pieces):
            return text
        kept, at = [], 0
        while at < len(text):
            if text[at : at + size] not in pieces:
                kept.append(text[at])
                at += 1
                continue
            while text[at : at + size] in pieces:
                at += 1
            kept.append(MARK)
            at += size - 1
        return "".join(kept)


PREFIXES = ("sk", "pk", "rk", "xai", "gsk", "hf", "nvapi", "fw", "csk", "pplx")
KEY_LIKE = re.compile(
    rf"\b(?:(?:{'|'.join(PREFIXES)})[-_]|AIza|ABSK)[\w*.-]{{8,}}"
    r"|\bBearer\s+[^\s'\"]+"
)
"""What looks like a key, one of Sluice or of a provider, or like the part that providers show."""
MARKS = (*(prefix + last for prefix in PREFIXES for last in "-_"), "AIza", "ABSK", "Bearer")
"""Each text that KEY_LIKE matches has one of these in it, and they are found ten times faster."""


def may_hold_key(text: str) -> bool:
    """Return True if a text may hold what looks like a key."""
    for mark in MARKS:  # noqa: SIM110 - any() would cost a call each
        if mark in text:
            return True
    return False


def mask(text: str) -> str:
    """Return the text with MARK in the place of what looks like a key."""
    return KEY_LIKE.sub(MARK, text) if may_hold_key(text) else text


def hide(value: Any, secrets: Iterable[str], least: int = LEAST_PIECE) -> Any:
    """Return a text, or a tree of dicts with texts in it, without the pieces of some secrets."""
    if isinstance(value, str):
        for secret in secrets:
            value = Secret(secret).hidden_in(value, least)
        return value
    if isinstance(value, dict):
        secrets = list(secrets)
        return {name: hide(item, secrets, least) for name, item in value.items()}
    return value


def shown(text: str | None, credential: Secret | None) -> str | None:
    """Return a provider's message as a client may see it: without the credential that was sent,
    without what looks like a key, and not longer than MOST_WORDS characters."""
    if text is None:
        return None
    text = text[: 4 * MOST_WORDS]  # before the search: a message can have megabytes
    if credential is not None:
        text = credential.hidden_in(text)
    return mask(text[:MOST_WORDS])
