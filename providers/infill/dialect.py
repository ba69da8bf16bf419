"""The infill dialect: requests to POST /infill of llama.cpp, and decoding of their responses.

The public functions implement `base.Dialect`, which documents them.

- The functions are pure.
- A stream is complete when an object with "stop": true has arrived. A stream that ends earlier
  raises UpstreamError.

Source: llama.cpp, tools/server/README.md, "POST /infill" and "POST /completion" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from completion import Batch, CompletionRequest, named
from errors import UpstreamError
from providers import request_parts
from providers.base import Target, UpstreamRequest
from providers.decoding import bodies, single_choice
from providers.decoding.error_bodies import refused_call
from providers.infill.response import InfillResponse

NAMES: Final = {
    "max_tokens": "n_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop",
    "seed": "seed",
}
UNSUPPORTED: Final = frozenset(
    {
        *("n", "best_of", "logprobs", "echo", "echo_logprobs", "logit_bias", "user"),
        *("token_ids", "prompt_list"),
    }
)
RESERVED: Final = frozenset({"input_prefix", "input_suffix", "prompt", "stream"})
"""Fields that `extra` can't set."""


def unsupported(target: Target) -> frozenset[str]:
    return UNSUPPORTED | target.cannot


def call(request: CompletionRequest, target: Target) -> UpstreamRequest:
    """Return the request to send.

    The endpoint is not under /v1, as the OpenAI-compatible ones are, but takes the same key.
    """
    root = target.provider.base_url.rstrip("/").removesuffix("/v1")
    path = target.fim.path if target.fim else "/infill"
    headers = request_parts.headers(request, target)
    return UpstreamRequest("POST", root + path, headers, msgspec.json.encode(body(request, target)))


def body(request: CompletionRequest, target: Target) -> dict[str, Any]:  # noqa: ARG001
    (prompt,) = request.prompts
    found: dict[str, Any] = {
        "input_prefix": prompt,
        "input_suffix": request.suffix or "",
        "prompt": "",
        "stream": request.stream,
    }
    found |= named(request, NAMES)
    request_parts.merge(found, request.openai_extra, RESERVED)
    request_parts.merge(found, request.extra, RESERVED)
    return found


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    return single_choice.events(
        chunks, InfillResponse(adds=request.passes_on).read, partial(complete, request=request)
    )


def complete(body: bytes, request: CompletionRequest) -> Batch:
    read = partial(InfillResponse(adds=request.passes_on).read_whole, body)
    return bodies.whole(body, read, partial(events, request=request))


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    return refused_call(status, headers, body)
