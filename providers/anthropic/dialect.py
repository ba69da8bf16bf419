"""The Anthropic dialect: requests to POST /messages, and decoding of their responses.

The public functions implement `base.Dialect`, which documents them.

- The functions are pure.
- A request has only the parameters that the caller set, and max_tokens, which the API requires.
- Thinking counts towards max_tokens, and newer models think by default.

Source: Anthropic API reference, "Messages" and "Errors" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from completion import Batch, CompletionRequest
from errors import UpstreamError
from providers import request_parts
from providers.anthropic.response import AnthropicResponse, read_whole
from providers.base import Target, UpstreamRequest
from providers.decoding import bodies, error_bodies, single_choice

VERSION: Final = "2023-06-01"
MAX_TOKENS: Final = 4096
"""The max_tokens to send if the caller set none."""

NAMES: Final = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "stop": "stop_sequences",
}
UNSUPPORTED: Final = request_parts.SINGLE_CHOICE_UNSUPPORTED | {
    "seed",
    "frequency_penalty",
    "presence_penalty",
}


def unsupported(target: Target) -> frozenset[str]:
    return UNSUPPORTED | target.cannot


def call(request: CompletionRequest, target: Target) -> UpstreamRequest:
    """Return the request to send. The prompt must be a single string."""
    data = msgspec.json.encode(body(request, target))
    address = request_parts.url(target, "/messages")
    return UpstreamRequest("POST", address, _headers(request, target), data)


def body(request: CompletionRequest, target: Target) -> dict[str, Any]:
    found = request_parts.message_body(request, target, NAMES)
    found.setdefault("max_tokens", MAX_TOKENS)
    if request.user is not None and "user" not in target.cannot:
        request_parts.merge(found, {"metadata": {"user_id": request.user}})
    return found


def _headers(request: CompletionRequest, target: Target) -> dict[str, str]:
    """Return the headers. The key goes into x-api-key, unless the row sets another key_header."""
    headers = request_parts.headers(request, target) | {"anthropic-version": VERSION}
    bearer = headers.pop("Authorization", None)
    if bearer:
        headers["x-api-key"] = bearer.removeprefix("Bearer ")
    return headers


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    response = AnthropicResponse(adds=request.passes_on)
    return single_choice.events(
        chunks,
        response.read,
        partial(complete, request=request),
        finished=lambda: response.reason is not None,
    )


def complete(body: bytes, request: CompletionRequest) -> Batch:
    return bodies.whole(
        body, partial(read_whole, body, adds=request.passes_on), partial(events, request=request)
    )


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    return error_bodies.refused_call(status, headers, body)
