"""The keys that a request holds: none may come back in an answer or get into a log, wherever else
in the request it stands."""

from __future__ import annotations

from typing import Any

from auth import presented_key, x_api_key
from completion import LEAST_PIECE, Secret
from endpoints.inbound import current
from errors import InvalidRequest

SHORTEST_SECRET = 8
CHOSEN_PIECE = 16
"""Characters of a key that a name which the caller chose may share with it by chance, and one."""


def secrets() -> list[str]:
    """The keys in the current request, good or not."""
    request = current()
    found = (
        presented_key(),
        x_api_key(),
        request.environ.get("HTTP_X_PROVIDER_API_KEY"),
        request.byok_api_key,
    )
    return [text for text in found if isinstance(text, str) and len(text) >= SHORTEST_SECRET]


def without_secrets(value: Any, least: int = LEAST_PIECE) -> Any:
    """Text, or a tree of objects with text in it, with the request's keys masked, and pieces of
    them of `least` characters or more."""
    if isinstance(value, str):
        for secret in secrets():
            value = Secret(secret).hidden_in(value, least)
        return value
    if isinstance(value, dict):
        return {name: without_secrets(item, least) for name, item in value.items()}
    return value


def refuse_secrets(shown: dict[str, str]) -> None:
    """Raises InvalidRequest where a name that is shown and logged holds a key of this request."""
    names = "\n".join(shown.values())
    if len(names) < SHORTEST_SECRET:
        return
    for secret in map(Secret, secrets()):
        if secret.hidden_in(names, CHOSEN_PIECE) == names:
            continue
        for name, text in shown.items():  # a key that two names hold between them is none
            if secret.hidden_in(text, CHOSEN_PIECE) != text:
                raise InvalidRequest(f"{name} holds a key; it is shown and logged.")
