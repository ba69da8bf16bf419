"""The Cohere dialect: POST /chat of API v2.

Rules that hold here: pure functions, after the protocol in base.py. What is sent is what was asked
for and nothing else. What an answer means is in cohere_answer.py.

Source: Cohere API reference v2, "Chat" and "Errors" (read 2026-11). Its log probabilities come for
pieces of text that may hold several tokens, so OpenAI's, a token each, can't be had of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Final

import msgspec

from completion import Batch, CompletionRequest
from errors import UpstreamError
from providers import request_parts
from providers.base import Call, Target
from providers.cohere.response import read, whole
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
LACKS: Final = request_parts.SINGLE_CHOICE_UNSUPPORTED | {"user"}


def unsupported(target: Target) -> frozenset[str]:
    """What this target can't be asked; see base.Dialect."""
    return LACKS | target.cannot


def call(request: CompletionRequest, target: Target) -> Call:
    """The request to make: exactly one prompt, a text."""
    body = msgspec.json.encode(request_parts.message_body(request, target, NAMES))
    address = request_parts.url(target, "/chat")
    return Call("POST", address, request_parts.headers(request, target), body)


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    """Decode a streamed body; see base.Dialect."""
    return single_choice.events(chunks, read, partial(complete, request=request))


def complete(body: bytes, request: CompletionRequest) -> Batch:  # noqa: ARG001
    """Decode a whole JSON body; see base.Dialect."""
    return whole(body)


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """What an answer other than 2xx means; header names are in lower case."""
    return error_bodies.refused_call(status, headers, body)
