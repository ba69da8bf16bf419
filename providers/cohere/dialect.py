"""The Cohere dialect: requests to POST /chat of API v2, and decoding of their responses.

The public functions implement `base.Dialect`, which documents them.

- The functions are pure.
- A request has only the parameters that the caller set.
- Log probabilities are unsupported: Cohere's belong to pieces of text, which may have several
  tokens, and OpenAI's belong to single tokens.

Source: Cohere API reference v2, "Chat" and "Errors" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from completion import Batch, CompletionRequest
from errors import UpstreamError
from providers import request_parts
from providers.base import Target, UpstreamRequest
from providers.cohere.response import CohereResponse, read_whole
from providers.decoding import bodies, error_bodies, single_choice

NAMES: Final = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "p",
    "stop": "stop_sequences",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
UNSUPPORTED: Final = request_parts.SINGLE_CHOICE_UNSUPPORTED | {"user"}


def unsupported(target: Target) -> frozenset[str]:
    return UNSUPPORTED | target.cannot


def call(request: CompletionRequest, target: Target) -> UpstreamRequest:
    """Return the request to send. The prompt must be a single string."""
    data = msgspec.json.encode(body(request, target))
    address = request_parts.url(target, "/chat")
    return UpstreamRequest("POST", address, request_parts.headers(request, target), data)


def body(request: CompletionRequest, target: Target) -> dict[str, Any]:
    return request_parts.message_body(request, target, NAMES)


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    return single_choice.events(
        chunks, CohereResponse(adds=request.passes_on).read, partial(complete, request=request)
    )


def complete(body: bytes, request: CompletionRequest) -> Batch:
    return bodies.whole(
        body, partial(read_whole, body, adds=request.passes_on), partial(events, request=request)
    )


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    return error_bodies.refused_call(status, headers, body)
