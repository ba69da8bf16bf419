"""The parts of a request that several dialects share: headers, the URL, and a one-message body.

- All functions are pure, except that `fill` changes its argument.
- A body has only the parameters that the caller set. Sluice adds no defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from completion import CompletionRequest, named
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
        name = target.provider.key_header
        found[name] = f"Bearer {key}" if name.lower() == "authorization" else key
    return found


def url(target: Target, path: str) -> str:
    provider = target.provider
    address = provider.base_url.rstrip("/") + path
    return f"{address}?{provider.query}" if provider.query else address


def message_body(
    request: CompletionRequest, target: Target, names: Mapping[str, str]
) -> dict[str, Any]:
    """Return a body that sends the prompt as one user message.

    Args:
        names: Sluice's names of parameters, mapped to the dialect's names.

    Raises:
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
    for name, value in request.extra.items():
        if name not in RESERVED:
            found.setdefault(name, value)
    return found


def fill(body: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Add the fields of `extra` that `body` lacks, at every depth. Existing values stay."""
    for name, value in extra.items():
        existing = body.get(name)
        if name not in body:
            body[name] = value
        elif isinstance(existing, dict) and isinstance(value, Mapping):
            body[name] = merged = dict(existing)
            fill(merged, value)
