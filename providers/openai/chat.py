"""The chat dialect: a caller's chat is sent to the host unchanged, and the answer is passed on.

The public functions implement `base.Dialect`, which documents them.

- The functions are pure.
- A chat is never translated. The model is replaced, usage is requested, and fields for which the
  row has other names are renamed. All other fields keep their bytes and their order.
- A long body is sent in slices, which aren't copied.

Source: OpenAI API reference, "Chat" (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from completion import Batch, Chat, CompletionRequest, Opaque
from errors import UpstreamError
from providers import request_parts
from providers.base import Target, UpstreamRequest
from providers.decoding import bodies, sse
from providers.decoding.error_bodies import refused_call
from providers.openai import dialect
from providers.openai.chat_response import ChatResponse, as_chunk

SLICE: Final = 256 * 1024
"""The most bytes of a long body that are sent at once. A shorter body is sent in one piece."""
OUTPUT_LIMITS: Final = ("max_tokens", "max_completion_tokens")
"""OpenAI's names for the limit of the output. Many hosts know only one of them."""


# The request


def unsupported(target: Target) -> frozenset[str]:  # noqa: ARG001 - part of the protocol
    """Return no parameters: the host decides about the fields of a chat."""
    return frozenset()


def call(request: CompletionRequest, target: Target) -> UpstreamRequest:
    fields = body(request, target)
    headers = request_parts.headers(request, target)
    if request.chat is None or request.chat.size <= SLICE:
        return UpstreamRequest("POST", target.chat_url, headers, msgspec.json.encode(fields))
    first, *more = slices(fields)
    return UpstreamRequest("POST", target.chat_url, headers, bytes(first), tuple(more))


def body(request: CompletionRequest, target: Target) -> dict[str, Any]:
    chat = request.chat
    assert chat is not None  # noqa: S101 - only chats have this dialect
    found: dict[str, Any] = {"model": target.model} if "model" not in chat.fields else {}
    names = {name: target.names.get("max_tokens", "max_tokens") for name in OUTPUT_LIMITS}
    names = {**target.names, **names}
    for name, value in chat.fields.items():
        name = names.get(name, name)
        if name not in found or bytes(value) != b"null":
            found[name] = value
    found["model"] = target.model
    options = stream_options(chat, target) if request.stream else None
    if options:
        found["stream_options"] = options
    elif not target.provider.stream_options:
        found.pop("stream_options", None)
    return found


def stream_options(chat: Chat, target: Target) -> dict[str, Any]:
    """Return the row's options of a stream and the caller's others; {} if the host takes none."""
    own = target.provider.stream_options
    return {**chat.stream_options, **own} if own else {}


def slices(fields: Mapping[str, Any]) -> Iterator[memoryview]:
    """Yield a JSON object in slices of at most SLICE bytes, or a field's name."""
    start = b"{"
    for name, value in fields.items():
        yield memoryview(start + msgspec.json.encode(name) + b":")
        data = memoryview(value if isinstance(value, msgspec.Raw) else msgspec.json.encode(value))
        for at in range(0, data.nbytes, SLICE):
            yield data[at : at + SLICE]
        start = b","
    yield memoryview(b"}")


# The response


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    response = ChatResponse(request)
    whole, read_all = partial(_whole_as_chunk, request), partial(_read_all, response)
    return dialect.decoded(chunks, response, whole, read_all)


def _read_all(response: ChatResponse, frames: list[sse.Frame], batch: Batch) -> bool:
    """Append the events of several frames. Return True if one was [DONE]."""
    ascii_only = b"".join([frame.data for frame in frames]).isascii()
    plain = response.plain
    for frame in frames:
        if (plain and frame.event == "message") and response.take_plain(
            frame.data, batch, ascii_only=ascii_only
        ):
            continue
        if dialect.read(response, frame, batch):
            return True
        plain = response.plain
    return False


def _whole_as_chunk(request: CompletionRequest, body: bytes) -> Batch:
    """Decode the body of a host that doesn't stream."""
    batch = complete(body, request)
    return [
        msgspec.structs.replace(event, data=as_chunk(event.data))
        if isinstance(event, Opaque)
        else event
        for event in batch
    ]


def complete(body: bytes, request: CompletionRequest) -> Batch:
    response = ChatResponse(request, whole=True)
    read = partial(dialect.read_whole, body, response)
    return bodies.whole(body, read, partial(events, request=request))


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    return refused_call(status, headers, body)
