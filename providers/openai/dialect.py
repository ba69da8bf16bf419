"""The OpenAI dialect: requests to /completions and /chat/completions, and their responses.

The public functions implement `base.Dialect`, which documents them.

- The functions are pure.
- A request has only the parameters that the caller set, and the row's stream_options.
- A stream is complete when [DONE] has arrived, or when its body has ended and each requested choice
  has a finish_reason. Any other end raises UpstreamError.
- Either endpoint may send the other endpoint's response format; see response.py.

Source: OpenAI API reference, "Completions" and "Chat" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import msgspec

from completion import Batch, CompletionRequest, asked_for
from errors import UpstreamError
from providers import request_parts
from providers.base import Target, UpstreamRequest
from providers.decoding import bodies, sse
from providers.decoding.error_bodies import failure, refused_call
from providers.decoding.lenient_json import garbage
from providers.openai.response import OpenAIResponse
from providers.openai.schemas import DONE, decode_many

SAMPLING: Final = frozenset(
    (
        *("max_tokens", "temperature", "top_p", "n", "stop", "seed"),
        *("frequency_penalty", "presence_penalty", "logit_bias", "user"),
    )
)
"""Parameters that both endpoints have, with equal names and meanings."""

LEGACY_ONLY: Final = frozenset(("logprobs", "echo", "best_of", "suffix"))

ECHO_LOGPROBS: Final = frozenset(("echo_logprobs",))

RESERVED: Final = frozenset({"model", "prompt", "messages", "stream", "stream_options"})
"""Fields that `extra` can't set, even if the body lacks them."""

CHUNKS: Final = frozenset(
    ("message", "data", "chunk", "completion", "text_completion", "chat.completion.chunk")
)
"""The names of the events that hold chunks. A server-sent event without a name is a "message". Any
other event but "error" is skipped, whatever its data."""


# The request


def unsupported(target: Target) -> frozenset[str]:
    if not target.legacy:
        return target.cannot | request_parts.CHAT_UNSUPPORTED
    # Sluice can emulate echo, but not the log probabilities of the prompt.
    return target.cannot | ECHO_LOGPROBS if "echo" in target.cannot else target.cannot


def call(request: CompletionRequest, target: Target) -> UpstreamRequest:
    """Return the request to send. For a chat target, the prompt must be a single string."""
    data = msgspec.json.encode(body(request, target))
    return UpstreamRequest("POST", _url(target), request_parts.headers(request, target), data)


def _url(target: Target) -> str:
    provider, base = target.provider, target.provider.base_url.rstrip("/")
    if "{model}" in base:
        base = base.replace("{model}", quote(target.model, safe=""))
    path = "/completions" if target.legacy else "/chat/completions"
    if target.fim and target.fim.path:
        path = target.fim.path
    return f"{base}{path}?{provider.query}" if provider.query else base + path


def body(request: CompletionRequest, target: Target) -> dict[str, Any]:
    found: dict[str, Any] = {"model": target.model}
    if target.legacy:
        prompts = request.prompts
        found["prompt"] = prompts[0] if len(prompts) == 1 else prompts
        names = SAMPLING | LEGACY_ONLY
    else:
        (prompt,) = request.prompts
        found["messages"] = [{"role": "user", "content": prompt}]
        names = SAMPLING
    asked, theirs, lacks = asked_for(request), target.names, target.cannot
    for name, value in asked.items():
        if name in names and name not in lacks:
            found[theirs.get(name, name)] = value
    if not target.legacy and request.logprobs is not None:
        found["logprobs"] = True
        if request.logprobs:
            found["top_logprobs"] = request.logprobs
    if request.stream:
        found["stream"] = True
        if target.provider.stream_options:
            found["stream_options"] = target.provider.stream_options
    request_parts.merge(found, request.openai_extra, RESERVED)
    request_parts.merge(found, request.extra, RESERVED)
    return found


# The response


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    """Decode a streamed body.

    No chunk is read after [DONE]. A body that is a single JSON value (from a host that doesn't
    stream, or an error with status 200) is decoded as a whole body.
    """
    response = OpenAIResponse(request)
    whole, read_all = partial(complete, request=request), partial(_read_all, response)
    return decoded(chunks, response, whole, read_all)


def decoded(
    chunks: Iterable[bytes],
    response: OpenAIResponse,
    whole: Callable[[bytes], Batch],
    read_all: Callable[[list[sse.Frame], Batch], bool],
) -> Iterator[Batch]:
    """Decode a streamed body with a response's state, as `events` does.

    Args:
        whole: decodes a whole body.
        read_all: as in `sse.batches`.
    """
    start, chunks = bodies.peek(chunks)
    if start in (b"{", b"["):
        yield whole(bodies.join(chunks))
        return
    excerpt = bodies.Excerpt()
    ended = yield from sse.batches(excerpt.watch(chunks), partial(read, response), read_all)
    if not ended:
        if not response.started:
            raise garbage("The upstream ended the stream without a completion.", excerpt.start)
        rest: Batch = []
        response.break_off(rest)
        if rest:
            yield rest


def read(response: OpenAIResponse, frame: sse.Frame, batch: Batch) -> bool:
    """Append the events of a frame. Return True if it was [DONE]."""
    if not frame.data.startswith(b"{") and frame.data.lstrip().startswith(DONE):
        response.finish_all(batch)
        return True
    if frame.event == "error":
        raise failure(frame.data, {})
    if frame.event in CHUNKS:
        response.read(frame.data, batch)
    return False


def _read_all(response: OpenAIResponse, frames: list[sse.Frame], batch: Batch) -> bool:
    """Append the events of several frames. Return True if one was [DONE].

    This is a fast path: all frames but the last, which may be [DONE], are decoded at once.
    """
    *several, last = frames
    data = [frame.data for frame in several if frame.event == "message"]
    chunks = decode_many(data, adds=response.adds) if len(data) == len(several) else []
    if len(chunks) < len(several):
        return any(read(response, frame, batch) for frame in frames)
    for chunk, source in zip(chunks, data, strict=True):
        response.take(chunk, source, batch)
    return read(response, last, batch)


def complete(body: bytes, request: CompletionRequest) -> Batch:
    return bodies.whole(body, partial(_read_whole, body, request), partial(events, request=request))


def _read_whole(body: bytes, request: CompletionRequest, batch: Batch) -> None:
    read_whole(body, OpenAIResponse(request), batch)


def read_whole(body: bytes, response: OpenAIResponse, batch: Batch) -> None:
    """Append the events of a JSON body. Raises UpstreamError."""
    response.read(body, batch)
    if not response.texts:
        raise garbage("The upstream's response contains no choices.", body)
    response.finish_all(batch)


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    return refused_call(status, headers, body)
