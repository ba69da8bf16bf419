"""Redaction of credentials in messages, log lines and responses.

- A known credential is found by its pieces, because providers mask or cut the key that they quote.
- An unknown credential is found by its format.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

LEAST_PIECE = 8
"""The least number of consecutive characters of a secret that are redacted."""
MARK = "[key]"
MAX_MESSAGE = 1000
"""The maximum number of characters of a provider's message that a client may see."""


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
        """Return a text with MARK instead of each piece of the secret.

        Args:
            text: the text to redact.
            least: the least number of characters of a piece.
        """
        secret = self._text
        size = min(least, len(secret))
        if not size or len(text) < size or not self._may_be_in(text, size):
            return text
        kept, at = [], 0
        while at < len(text):
            if text[at : at + size] not in secret or len(text) - at < size:
                kept.append(text[at])
                at += 1
                continue
            while len(text) - at >= size and text[at : at + size] in secret:
                at += 1
            kept.append(MARK)
            at += size - 1
        return "".join(kept)

    def _may_be_in(self, text: str, size: int) -> bool:
        """Return False if the text has no piece of `size` characters of the secret.

        A piece covers at least one of the text's blocks of half that length, so it is enough to
        look for the blocks. The work depends on the text, which is short, and hardly on the secret,
        which can have thousands of characters.
        """
        block = (size + 1) // 2
        for at in range(0, len(text) - block + 1, block):
            if text[at : at + block] in self._text:
                return True
        return False


PREFIXES = ("sk", "pk", "rk", "xai", "gsk", "hf", "nvapi", "fw", "csk", "pplx")
KEY_LIKE = re.compile(
    rf"\b(?:(?:{'|'.join(PREFIXES)})[-_]|AIza|ABSK)[\w*.-]{{8,}}"
    r"|\bBearer\s+[^\s'\"]+"
)
"""The format of a key of Sluice or of a provider, or of the masked key that a provider shows."""
MARKS = (*(prefix + last for prefix in PREFIXES for last in "-_"), "AIza", "ABSK", "Bearer")
"""Strings of which every match of KEY_LIKE contains one. Searching for them is much faster."""


def may_hold_key(text: str) -> bool:
    """Return False if no part of a text can match KEY_LIKE."""
    for mark in MARKS:  # noqa: SIM110 - any() would cost a call for each mark
        if mark in text:
            return True
    return False


def mask(text: str) -> str:
    """Return a text with MARK instead of everything that looks like a key."""
    return KEY_LIKE.sub(MARK, text) if may_hold_key(text) else text


def hide(value: Any, secrets: Iterable[str], least: int = LEAST_PIECE) -> Any:
    """Redact the pieces of secrets in a text, or in all texts of a tree of dicts."""
    if isinstance(value, str):
        for secret in secrets:
            value = Secret(secret).hidden_in(value, least)
        return value
    if isinstance(value, dict):
        secrets = list(secrets)
        return {name: hide(item, secrets, least) for name, item in value.items()}
    return value


def shown(text: str | None, credential: Secret | None) -> str | None:
    """Return the part of a provider's message that a client may see.

    The credential that was sent and everything that looks like a key are redacted, and the message
    is cut to MAX_MESSAGE characters.
    """
    if text is None:
        return None
    text = text[: 4 * MAX_MESSAGE]  # cut before the search, because a message can have megabytes
    if credential is not None:
        text = credential.hidden_in(text)
    return mask(text[:MAX_MESSAGE])
