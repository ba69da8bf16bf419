"""The secrets that the current request holds. None may come back in an answer or get into a log,
wherever else in the request it stands."""

from __future__ import annotations

from typing import Any

from auth import presented_key, x_api_key
from endpoints.flask_app import current
from errors import InvalidRequest
from keys.redaction import LEAST_PIECE, Secret, hide

SHORTEST_SECRET = 8
CHOSEN_PIECE = 16
"""Characters of a key that a name may share with it. A caller chooses the name, so that a shorter
piece may be chance."""


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
    """Return a text, or a tree of dicts with texts in it, without the current request's keys."""
    return hide(value, secrets(), least)


def refuse_secrets(shown: dict[str, str]) -> None:
    """Raise InvalidRequest if a name that is shown and logged holds a key of this request."""
    names = "\n".join(shown.values())
    if len(names) < SHORTEST_SECRET:
        return
    for secret in map(Secret, secrets()):
        if secret.hidden_in(names, CHOSEN_PIECE) == names:
            continue
        for name, text in shown.items():  # the match may be of two names, joined by chance
            if secret.hidden_in(text, CHOSEN_PIECE) != text:
                raise InvalidRequest(f"{name} holds a key; it is shown and logged.")
