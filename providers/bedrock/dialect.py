"""The functions of the Bedrock dialect, Converse and ConverseStream; see base.Dialect.

- They are pure.
- By default the key is a Bedrock API key, sent as a bearer token. sigv4.py signs with SigV4.
- Fields of `extra` that Converse has (guardrailConfig, performanceConfig, ...) go to the top;
  inferenceConfig and additionalModelRequestFields are merged at every depth; the others are the
  model's own and go into additionalModelRequestFields.

Source: Amazon Bedrock API reference, Converse, ConverseStream, their errors, and the service's
model (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import msgspec

from completion import Batch, CompletionRequest, named
from errors import UpstreamError
from providers import request_parts
from providers.base import Target, UpstreamRequest
from providers.bedrock.errors import decode_value, failure
from providers.bedrock.response import BedrockResponse
from providers.decoding import bodies, event_stream
from providers.decoding.error_bodies import refusal_message
from providers.decoding.lenient_json import garbage, sample
from providers.decoding.retry_after import retry_after

CONFIG: Final = {
    "max_tokens": "maxTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop": "stopSequences",
}
"""The names of our parameters in inferenceConfig."""

UNSUPPORTED: Final = request_parts.CHAT_UNSUPPORTED | frozenset(
    (
        *("n", "logprobs", "seed", "logit_bias", "user", "openai_extra"),
        *("frequency_penalty", "presence_penalty"),
    )
)

RESERVED: Final = frozenset(("messages", "modelId"))
"""Fields that `extra` can't set, absent or not."""

AT_TOP: Final = frozenset(
    (
        *("additionalModelResponseFieldPaths", "guardrailConfig", "outputConfig"),
        *("performanceConfig", "promptVariables", "requestMetadata", "serviceTier", "system"),
        *("toolConfig", "inferenceConfig", "additionalModelRequestFields"),
    )
)
"""The fields of a request to Converse, except the reserved ones."""

FRAMES: Final = "application/vnd.amazon.eventstream"


def unsupported(target: Target) -> frozenset[str]:
    """Return the parameters that the target lacks; see base.Dialect."""
    return target.cannot | UNSUPPORTED


def call(request: CompletionRequest, target: Target) -> UpstreamRequest:
    """Return the request to send. It takes exactly one prompt, a text."""
    headers = request_parts.headers(request, target)
    if request.stream:
        headers["Accept"] = FRAMES
    body = msgspec.json.encode(_body(request, target))
    return UpstreamRequest("POST", _url(target, stream=request.stream), headers, body)


def _url(target: Target, *, stream: bool) -> str:
    provider = target.provider
    path = "converse-stream" if stream else "converse"
    url = f"{provider.base_url.rstrip('/')}/model/{quote(target.model, safe='')}/{path}"
    return f"{url}?{provider.query}" if provider.query else url


def _body(request: CompletionRequest, target: Target) -> dict[str, Any]:
    (prompt,) = request.prompts
    body: dict[str, Any] = {"messages": [{"role": "user", "content": [{"text": prompt}]}]}
    config = named(request, CONFIG, target.cannot)
    if config:
        body["inferenceConfig"] = config
    for name, value in request.extra.items():
        if name in AT_TOP:
            request_parts.fill(body, {name: value})
        elif name not in RESERVED:
            request_parts.fill(body, {"additionalModelRequestFields": {name: value}})
    return body


def events(
    chunks: Iterable[bytes],
    request: CompletionRequest,  # noqa: ARG001
) -> Iterator[Batch]:
    """Decode a streamed body; see base.Dialect. Nothing after the metadata that follows messageStop
    is asked for.

    A body that is one JSON object (a host that doesn't stream, or an error with status 200) is
    decoded as a whole body.
    """
    first, chunks = bodies.peek(chunks)
    if first == b"{":
        yield from bodies.batch_of(partial(BedrockResponse().read_whole, bodies.join(chunks)))
        return
    if first != b"\0":  # the first byte of a length below 16 MiB
        start = bodies.beginning(chunks)
        raise garbage("The upstream ended the stream without an answer.", start)
    response = BedrockResponse()
    for frames in event_stream.decode(chunks):
        yield from bodies.batch_of(partial(_read, response, frames))
        if response.ended:
            return
    response.break_off()


def _read(response: BedrockResponse, frames: list[event_stream.BinaryFrame], batch: Batch) -> None:
    for frame in frames:
        response.read(frame, batch)
        if response.ended:
            break


def complete(body: bytes, request: CompletionRequest) -> Batch:  # noqa: ARG001
    """Decode a whole JSON body; see base.Dialect."""
    batch: Batch = []
    BedrockResponse().read_whole(body, batch)
    return batch


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """Return the error for a response other than 2xx. Header names are in lower case."""
    value = decode_value(body)
    found = failure(refusal_message(status), value, headers.get("x-amzn-errortype"), status)
    if found.upstream_message is None:
        found.upstream_message = sample(body) or None
    found.retry_after = retry_after(headers)
    return found
