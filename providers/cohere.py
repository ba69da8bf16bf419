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
from providers import openai
from providers.base import Call, Target
from providers.cohere_answer import read, whole
from providers.decoding import single_choice

NAMES: Final = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "p",
    "stop": "stop_sequences",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
LACKS: Final = single_choice.LACKS | {"user"}


def unsupported(target: Target) -> frozenset[str]:
    """What this target can't be asked; see base.Dialect."""
    return LACKS | target.cannot


def call(request: CompletionRequest, target: Target) -> Call:
    """The request to make: exactly one prompt, a text."""
    body = msgspec.json.encode(single_choice.body(request, target, NAMES))
    address = single_choice.url(target, "/chat")
    return Call("POST", address, openai.headers(request, target), body)


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    """Decode a streamed body; see base.Dialect."""
    return single_choice.events(chunks, read, partial(complete, request=request))


def complete(body: bytes, request: CompletionRequest) -> Batch:  # noqa: ARG001
    """Decode a whole JSON body; see base.Dialect."""
    return whole(body)


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """What an answer other than 2xx means; header names are in lower case."""
    return openai.error(status, headers, body)
