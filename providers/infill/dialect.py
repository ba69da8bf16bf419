"""llama.cpp's /infill: fill in the middle, in that server's own format.

Rules that hold here: pure functions, after the protocol in base.py. The answer is whole when an
object with "stop": true came; a body that ends before it is an UpstreamError.

Source: llama.cpp, tools/server/README.md, "POST /infill" and "POST /completion" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    Finished,
    FinishReason,
    Started,
    Usage,
    Used,
    named,
)
from errors import UpstreamError
from providers import request_parts
from providers.base import Call, Target
from providers.decoding import error_bodies, sse
from providers.decoding.error_bodies import reported
from providers.decoding.lenient_json import NOT_JSON, Count, garbage

NAMES: Final = {
    "max_tokens": "n_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop",
    "seed": "seed",
}
LACKS: Final = frozenset(
    {
        *("n", "best_of", "logprobs", "echo", "echo_logprobs", "logit_bias", "user"),
        *("token_ids", "prompt_list"),
    }
)
REASONS: Final[dict[str | None, FinishReason]] = {"limit": "length"}
"""What `stop_type` says; eos, word and anything else: the model came to an end."""


class Piece(msgspec.Struct):
    """A piece of a stream, or a whole answer."""

    content: str | None = None
    stop: bool | None = None
    stop_type: str | None = None
    model: str | None = None
    tokens_evaluated: Count = 0
    tokens_predicted: Count = 0
    error: Any = None


def unsupported(target: Target) -> frozenset[str]:
    return LACKS | target.cannot


def call(request: CompletionRequest, target: Target) -> Call:
    """The endpoint is beside the OpenAI-compatible ones' /v1, and takes their key."""
    (prompt,) = request.prompts
    body: dict[str, Any] = {
        "input_prefix": prompt,
        "input_suffix": request.suffix or "",
        "prompt": "",
        "stream": request.stream,
    }
    body |= named(request, NAMES)
    body |= {
        name: value
        for name, value in (request.openai_extra | request.extra).items()
        if name not in body
    }
    root = target.provider.base_url.rstrip("/").removesuffix("/v1")
    path = target.fim.path if target.fim else "/infill"
    headers = request_parts.headers(request, target)
    return Call("POST", root + path, headers, msgspec.json.encode(body))


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:  # noqa: ARG001
    """Decode a streamed body; see base.Dialect."""
    started = False

    def read_frame(frame: sse.Frame, batch: Batch) -> bool:
        nonlocal started
        piece = decode(frame.data)
        if not started:
            started = True
            batch.append(Started(piece.model))
        batch += read(piece)
        return bool(piece.stop)

    if not (yield from sse.batches(chunks, read_frame)):
        raise UpstreamError("The upstream's answer ended before its end.")


def complete(body: bytes, request: CompletionRequest) -> Batch:  # noqa: ARG001
    """Decode a whole JSON body; see base.Dialect."""
    piece = decode(body)
    return [Started(piece.model), *read(msgspec.structs.replace(piece, stop=True))]


def read(piece: Piece) -> Batch:
    """The events of one piece; its counts are those so far."""
    batch: Batch = []
    if piece.content:
        batch.append(Delta(0, piece.content))
    if piece.stop:
        batch.append(Finished(0, REASONS.get(piece.stop_type, "stop")))
    if piece.tokens_evaluated or piece.tokens_predicted:
        batch.append(Used(Usage(piece.tokens_evaluated, piece.tokens_predicted)))
    return batch


def decode(data: bytes) -> Piece:
    """Raises UpstreamError for an error, and for what is not a piece."""
    try:
        piece = msgspec.json.decode(data, type=Piece)
    except NOT_JSON:
        raise garbage("The upstream sent something that is not its format.", data) from None
    if piece.error:
        raise reported({"error": piece.error})
    if piece.content is None:
        raise garbage("The upstream sent something that is not its format.", data)
    return piece


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """What an answer other than 2xx means; header names are in lower case."""
    return error_bodies.refused_call(status, headers, body)
