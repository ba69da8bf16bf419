"""Redaction of the current request's keys.

- No key may appear in a response or in a log, even if the client also put it elsewhere in the
  request, such as in a path or a model's name.
"""

from __future__ import annotations

from typing import Any

from auth import presented_key, x_api_key
from endpoints.flask_app import current
from errors import InvalidRequest
from keys.redaction import LEAST_PIECE, Secret, hide

SHORTEST_SECRET = 8
CHOSEN_PIECE = 16
"""A name that a caller chose is refused if it shares this many characters with a key. A shorter
match may be chance."""


def secrets() -> list[str]:
    """Return the keys in the current request, valid or not."""
    request = current()
    found = (
        presented_key(),
        x_api_key(),
        request.environ.get("HTTP_X_PROVIDER_API_KEY"),
        request.byok_api_key,
    )
    return [text for text in found if isinstance(text, str) and len(text) >= SHORTEST_SECRET]


def without_secrets(value: Any, least: int = LEAST_PIECE) -> Any:
    """Return a text, or a tree of dicts with texts, without the current request's keys.

    Args:
        least: how many characters of a key must match.
    """
    return hide(value, secrets(), least)


def refuse_secrets(shown: dict[str, str]) -> None:
    """Raise InvalidRequest if a name that is shown and logged contains a key of this request.

    Args:
        shown: the names, by the words that the message uses for them.
    """
    names = "\n".join(shown.values())
    if len(names) < SHORTEST_SECRET:
        return
    for secret in map(Secret, secrets()):
        if secret.hidden_in(names, CHOSEN_PIECE) == names:
            continue
        for name, text in shown.items():  # the match may span two names, only because of the join
            if secret.hidden_in(text, CHOSEN_PIECE) != text:
                raise InvalidRequest(f"Don't send a key as {name}: it would be shown and logged.")
