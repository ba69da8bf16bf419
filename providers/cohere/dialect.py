"""The functions of the Cohere dialect, POST /chat of API v2; see base.Dialect.

- They are pure. A request holds what was asked for and nothing else.
- There are no log probabilities: Cohere's are for pieces of text that may hold several tokens, and
  OpenAI's are for single tokens.

Source: Cohere API reference v2, "Chat" and "Errors" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Final

import msgspec

from completion import Batch, CompletionRequest
from errors import UpstreamError
from providers import request_parts
from providers.base import Target, UpstreamRequest
from providers.cohere.response import read, read_whole
from providers.decoding import error_bodies, single_choice

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
    """Return the parameters that the target lacks; see base.Dialect."""
    return UNSUPPORTED | target.cannot


def call(request: CompletionRequest, target: Target) -> UpstreamRequest:
    """Return the request to send. It takes exactly one prompt, a text."""
    body = msgspec.json.encode(request_parts.message_body(request, target, NAMES))
    address = request_parts.url(target, "/chat")
    return UpstreamRequest("POST", address, request_parts.headers(request, target), body)


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    """Decode a streamed body; see base.Dialect."""
    return single_choice.events(chunks, read, partial(complete, request=request))


def complete(body: bytes, request: CompletionRequest) -> Batch:  # noqa: ARG001
    """Decode a whole JSON body; see base.Dialect."""
    return read_whole(body)


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """Return the error for a response other than 2xx. Header names are in lower case."""
    return error_bodies.refused_call(status, headers, body)
