"""Redaction of credentials in messages, log lines and responses.

- A known credential is found by its pieces, because providers mask or cut the key that they quote.
- A known credential is also found if letter case, separators or percent-encoding differ.
- An unknown credential is found by its format.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Any
from urllib.parse import unquote

LEAST_PIECE = 8
"""The least number of consecutive characters of a secret that are redacted."""
LEAST_FLAT = 16
"""The least number of consecutive characters of a flat secret that count (see `flat`). A shorter
match may be chance."""
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

    def has_piece_in(self, text: str, least: int) -> bool:
        """Return True if a text has at least that many consecutive characters of the secret.

        The work is in proportion to the length of both, because callers may choose both. A piece
        covers at least one of the text's blocks of half its length, so only the surroundings of
        blocks that the secret has are compared.
        """
        secret = self._text
        size = min(least, len(secret))
        if not size or len(text) < size:
            return False
        block = (size + 1) // 2
        blocks: Container[str] = secret
        pieces: Container[str] = secret
        if len(text) * len(secret) > SMALL:
            blocks = {secret[at : at + block] for at in range(len(secret) - block + 1)}
            pieces = {secret[at : at + size] for at in range(len(secret) - size + 1)}
        for at in range(0, len(text) - block + 1, block):
            if text[at : at + block] in blocks:
                for start in range(max(0, at - size + block), min(at, len(text) - size) + 1):
                    if text[start : start + size] in pieces:
                        return True
        return False

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


SMALL = 100_000
"""The product of two lengths up to which searching is faster than building a set of pieces."""
SEPARATORS = re.compile("[^a-z0-9]+")
MOST_DECODED = 4
"""How many times percent-encoding may have been applied."""


def decoded(text: str) -> str:
    """Return a text without percent-encoding."""
    for _ in range(MOST_DECODED):
        if "%" not in text:
            break
        text = unquote(text)
    return text


def flat(text: str) -> str:
    """Return a text without percent-encoding, letter case and separators.

    Two spellings of a secret have one flat form.
    """
    return SEPARATORS.sub("", decoded(text).lower())


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


IN_ANY_CASE = re.compile(
    rf"(?<![a-z0-9])(?:(?:{'|'.join(PREFIXES)})[-_]|AIza|ABSK)([\w*.-]{{8,}})"
    r"|Bearer\s+[^\s'\"]{8,}",
    re.IGNORECASE,
)
"""KEY_LIKE in any letter case, also after an underscore. The group is what follows the prefix."""
SMALL_MARKS = tuple(map(str.lower, MARKS))
RUN = re.compile("[A-Za-z0-9]+")
CHANGE = re.compile("(?<=[a-z])[A-Z0-9]|(?<=[A-Z])[a-z0-9]|(?<=[0-9])[A-Za-z]")
"""A character of another class (small letters, capitals, digits) than the one before."""
LONGEST_WORD = 19
"""The most characters without a separator that a word in a name has."""
LONG_PREFIXES = (
    *("sk-sluice-", "sk-proj-", "sk-ant-", "sk-or-", "sk-svcacct-", "sk-admin-"),
    *("aiza", "absk"),
)
"""Prefixes that no name of a model has: what follows need not look random."""
RANDOM = ((16, 0.4), (32, 0.25))
"""Two rules, each a length and a share: text counts as random if it has at least so many characters
and CHANGE matches at least that share of them. A test checks the rules with generated keys of all
formats, and with the names of all models in genai-prices."""


def may_hold_any(text: str) -> bool:
    """Return False if no part of a text can match IN_ANY_CASE."""
    small = text.lower()
    for mark in SMALL_MARKS:  # noqa: SIM110 - any() would cost a call for each mark
        if mark in small:
            return True
    return False


def looks_generated(found: re.Match[str]) -> bool:
    """Return True if a match of IN_ANY_CASE looks random, unlike names such as pplx-embed-v1-4b."""
    if found[1] is None:  # a bearer token
        return True
    if len(found[1]) > LONGEST_WORD and found[0].lower().startswith(LONG_PREFIXES):
        return True
    runs = RUN.findall(found[1])
    size = sum(map(len, runs))
    changes = sum(len(CHANGE.findall(run)) for run in runs)
    return max(map(len, runs), default=0) > LONGEST_WORD or any(
        size >= least and changes >= share * size for least, share in RANDOM
    )


def holds_key(text: str) -> bool:
    """Return True if a text that a caller chose contains what looks like a generated key.

    KEY_LIKE alone also matches names of models.
    """
    text = decoded(text)
    if not may_hold_any(text):
        return False
    return any(map(looks_generated, IN_ANY_CASE.finditer(text)))


def hide_generated(text: str) -> str:
    """Return a text with MARK instead of each word that contains a generated key."""
    if not may_hold_any(decoded(text)):
        return text
    text = IN_ANY_CASE.sub(lambda found: MARK if looks_generated(found) else found[0], text)
    return WORD.sub(lambda found: MARK if holds_key(found[0]) else found[0], text)


def hide_known(text: str, secret: str, least: int) -> str:
    """Return a text without the pieces of a secret, however they are spelled.

    Words in another spelling go first, as a whole: hiding short pieces of them would leave the rest
    in pieces that can't be recognized.
    """
    plain, other = Secret(secret), Secret(flat(secret))

    def hidden(found: re.Match[str]) -> str:
        word = found[0]
        spelled = not plain.has_piece_in(word, LEAST_FLAT)
        return MARK if spelled and other.has_piece_in(flat(word), LEAST_FLAT) else word

    if len(text) < LEAST_FLAT or not other.has_piece_in(flat(text), LEAST_FLAT):
        return plain.hidden_in(text, least)
    text = plain.hidden_in(WORD.sub(hidden, text), least)
    text = WORD.sub(hidden, text)
    return MARK if other.has_piece_in(flat(text), LEAST_FLAT) else text


WORD = re.compile(r"[^\s'\"`,;()]{16,}")


def mask(text: str) -> str:
    """Return a text with MARK instead of everything that looks like a key."""
    return KEY_LIKE.sub(MARK, text) if may_hold_key(text) else text


def hide(value: Any, secrets: Iterable[str], least: int = LEAST_PIECE) -> Any:
    """Redact secrets in a text, or in all texts of a tree of dicts.

    These are the pieces of known secrets, other spellings of them, and what looks like another key.
    """
    if isinstance(value, str):
        # First, because the pieces of a secret may be the prefix by which another key is found.
        value = hide_generated(value)
        for secret in secrets:
            value = hide_known(value, secret, least)
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
