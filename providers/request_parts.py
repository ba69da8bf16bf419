"""The parts of a request that several dialects share: headers, the URL, and a one-message body.

- All functions are pure, except that `merge` changes its argument.
- A body has only the parameters that the caller set. Sluice adds no defaults.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any, Final
from urllib.parse import unquote

from completion import CompletionRequest, named
from errors import InvalidRequest
from providers.base import Target

CHAT_UNSUPPORTED: Final = frozenset(
    {"suffix", "best_of", "token_ids", "echo", "echo_logprobs", "prompt_list"}
)

SINGLE_CHOICE_UNSUPPORTED: Final = CHAT_UNSUPPORTED | {
    *("n", "logprobs", "logit_bias", "openai_extra")
}
"""The parameters that a dialect lacks if it answers one message with one choice."""

RESERVED: Final = frozenset({"model", "messages", "stream"})
"""The fields of `message_body` that a request's `extra` can't set, even if the body lacks them."""


def headers(request: CompletionRequest, target: Target) -> dict[str, str]:
    found = {
        "Content-Type": "application/json",
        "Accept": "text/event-stream" if request.stream else "application/json",
        "Accept-Encoding": "identity",
        "User-Agent": "sluice",
    }
    if target.credential is not None:
        key = target.credential.reveal()
        row = target.provider
        name = (target.chat and row.chat_key_header) or row.key_header
        found[name] = f"Bearer {key}" if name.lower() == "authorization" else key
    return found


def url(target: Target, path: str) -> str:
    provider = target.provider
    address = provider.base_url.rstrip("/") + path
    return f"{address}?{provider.query}" if provider.query else address


def has_dot_segment(model: str) -> bool:
    """Return True if a part of a model's name is "." or "..", however it is encoded.

    Several dialects put the name into the path of the URL. Quoting doesn't change dots, so such a
    part would lead to another path of the host. Servers decode, so the quoted forms count too, and
    so do the separators that servers accept besides the slash.
    """
    while (decoded := unquote(model)) != model:
        model = decoded
    parts = re.split(r"[/\\;?#]", model)
    return any(re.sub(r"[\s\x00-\x20\x7f]", "", part) in (".", "..") for part in parts)


def message_body(
    request: CompletionRequest, target: Target, names: Mapping[str, str]
) -> dict[str, Any]:
    """Return a body that sends the prompt as one user message.

    Args:
        names: Sluice's names of parameters, mapped to the dialect's names.

    Raises:
        InvalidRequest: As `merge`.
        ValueError: The request doesn't have exactly one prompt.
    """
    (prompt,) = request.prompts
    found: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        **named(request, names, target.cannot),
    }
    if request.stream:
        found["stream"] = True
    merge(found, request.extra, RESERVED)
    return found


def merge(
    body: dict[str, Any], extra: Mapping[str, Any], reserved: Container[str] = frozenset()
) -> None:
    """Add the passed-on fields of `extra` to `body`. Objects are merged at every depth.

    A null counts as absent where `body` has the field.

    Raises:
        InvalidRequest: A field is reserved, has another value in `body`, or isn't an object where
            `body` has one.
    """
    for name, value in extra.items():
        if name in reserved:
            raise InvalidRequest(f"{name} can't be set: Sluice writes it.", param=name)
        existing = body.get(name)
        if name not in body:
            body[name] = value
        elif value == existing:
            continue
        elif isinstance(existing, dict):
            # A copy, because the object may be the caller's, or may be shared by requests.
            body[name] = merged = dict(existing)
            merge(merged, members(name, value))
        elif value is not None and value != plain(existing):
            raise InvalidRequest(f"{name} has two different values. Send it once.", param=name)


def members(name: str, value: Any) -> Mapping[str, Any]:
    """Return the value of a field that must be an object. Raises InvalidRequest."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name}: expected an object.", param=name)
    return value


def plain(value: Any) -> Any:
    """Return a value as a body's JSON would have it: with lists instead of tuples."""
    return list(value) if isinstance(value, tuple) else value
