"""The infill dialect: requests to POST /infill of llama.cpp, and decoding of their responses.

The public functions implement `base.Dialect`, which documents them.

- The functions are pure.
- A stream is complete when each choice has an object with "stop": true. A stream that ends earlier
  raises UpstreamError.
- A request that came in llama.cpp's own format is sent as it came, with the target's model, and its
  answer becomes Opaque events. Its response_fields aren't sent: they could remove the token counts.

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
NOT_SENT: Final = frozenset({"model", "stream", "response_fields"})
"""Fields of a caller's own body that are replaced or left out."""
UNSUPPORTED: Final = frozenset(
    {
        *("n", "best_of", "logprobs", "echo", "echo_logprobs", "logit_bias", "user"),
        *("token_ids", "prompt_list"),
    }
)
RESERVED: Final = frozenset({"model", "input_prefix", "input_suffix", "prompt", "stream"})
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


def body(request: CompletionRequest, target: Target) -> dict[str, Any]:
    if request.infill:
        kept = {name: value for name, value in request.infill.items() if name not in NOT_SENT}
        return kept | {"model": target.model, "stream": request.stream}
    (prompt,) = request.prompts
    found: dict[str, Any] = {
        "model": target.model,  # a server with several models needs it
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
    # A caller who wants a whole answer can't be shown the pieces of a stream.
    response = reader(request, opaque=request.stream)
    return single_choice.events(
        chunks,
        response.read,
        partial(complete, request=request),
        # Older servers answer with one choice, however many were asked for.
        finished=lambda: bool(response.finished),
    )


def complete(body: bytes, request: CompletionRequest) -> Batch:
    read = partial(reader(request).read_whole, body)
    return bodies.whole(body, read, partial(events, request=request))


def reader(request: CompletionRequest, *, opaque: bool = True) -> InfillResponse:
    own = bool(request.infill)
    return InfillResponse(
        adds=request.passes_on and not own, opaque=own and opaque, choices=request.choices
    )


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    return refused_call(status, headers, body)
