"""Redaction of the current request's keys.

- No key may appear in a response or in a log, even if the client also put it elsewhere in the
  request, such as in a path or a model's name, in other letter case or percent-encoded.
- A name that looks like another key is refused too.
- The search costs little, however long the texts are that are sent as keys: only as many characters
  of each are searched for as a key can have.
"""

from __future__ import annotations

from typing import Any

from auth import presented_key, x_api_key
from endpoints.flask_app import current
from endpoints.request_fields import LONGEST_PROVIDER_KEY
from errors import InvalidRequest
from keys.redaction import LEAST_PIECE, Secret, flat, hide, holds_key
from keys.store import MAX_SECRET

SHORTEST_SECRET = 8
CHOSEN_PIECE = 16
"""A name that a caller chose is refused if it shares this many characters with a key. A shorter
match may be chance."""


def secrets() -> list[str]:
    """Return the keys in the current request, valid or not, cut to the length of a key."""
    request = current()
    found = (
        (presented_key(), MAX_SECRET),
        (x_api_key(), MAX_SECRET),
        (request.environ.get("HTTP_X_PROVIDER_API_KEY"), LONGEST_PROVIDER_KEY),
        (request.byok_api_key, LONGEST_PROVIDER_KEY),
    )
    return [
        text[:most]
        for text, most in found
        if isinstance(text, str) and len(text) >= SHORTEST_SECRET
    ]


def key_is_too_long() -> bool:
    """Return True if the presented key is longer than any valid key."""
    return len(presented_key() or "") > MAX_SECRET


def without_secrets(value: Any, least: int = LEAST_PIECE) -> Any:
    """Return a text, or a tree of dicts with texts, without the current request's keys.

    Args:
        least: how many characters of a key must match.
    """
    return hide(value, secrets(), least)


def refuse_secrets(shown: dict[str, str]) -> None:
    """Raise InvalidRequest if a name that is shown and logged contains a key.

    That is a key of this request, in any spelling, or what looks like another key.

    Args:
        shown: the names, by the words that the message uses for them.
    """
    names = "\n".join(shown.values())
    if len(names) < SHORTEST_SECRET:
        return
    suspects = [*map(Secret, secrets())]
    if not holds_secret(names, suspects):
        return
    for name, text in shown.items():  # the match may span two names, only because of the join
        if holds_secret(text, suspects):
            raise key_as(name)


def holds_secret(text: str, suspects: list[Secret]) -> bool:
    """Return True if a text contains one of the secrets, or what looks like another key."""
    flat_text = flat(text)
    for secret in suspects:
        if secret.has_piece_in(text, CHOSEN_PIECE) or is_spelling(secret, flat_text):
            return True
    return holds_key(text)


def is_spelling(secret: Secret, flat_text: str) -> bool:
    """Return True if a flat text has a piece of the secret, however the piece was spelled."""
    if len(flat_text) < CHOSEN_PIECE:
        return False
    return Secret(flat(secret.reveal())).has_piece_in(flat_text, CHOSEN_PIECE)


def key_as(name: str) -> InvalidRequest:
    return InvalidRequest(f"Don't send a key as {name}: it would be shown and logged.")
