"""The Bedrock dialect: Converse and ConverseStream.

The public functions implement `base.Dialect`, which documents them.

- The functions are pure.
- By default the key is a Bedrock API key, sent as a bearer token. Alternatively, sigv4.py signs
  requests with AWS credentials.
- Fields of `extra` that Converse defines (guardrailConfig, performanceConfig, ...) go to the top
  level. inferenceConfig and additionalModelRequestFields must be objects and are merged at every
  depth. Other fields are parameters of the model, and go into additionalModelRequestFields.

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
"""The names in inferenceConfig of Sluice's parameters."""

UNSUPPORTED: Final = request_parts.CHAT_UNSUPPORTED | frozenset(
    (
        *("n", "logprobs", "seed", "logit_bias", "user", "openai_extra"),
        *("frequency_penalty", "presence_penalty"),
    )
)

RESERVED: Final = frozenset(("messages", "modelId"))
"""Fields that `extra` can't set, even if the body lacks them."""

AT_TOP: Final = frozenset(
    (
        *("additionalModelResponseFieldPaths", "guardrailConfig", "outputConfig"),
        *("performanceConfig", "promptVariables", "requestMetadata", "serviceTier", "system"),
        *("toolConfig", "inferenceConfig", "additionalModelRequestFields"),
    )
)
"""The fields of a request to Converse, except the reserved ones."""

OBJECTS: Final = ("inferenceConfig", "additionalModelRequestFields")

FRAMES: Final = "application/vnd.amazon.eventstream"


def unsupported(target: Target) -> frozenset[str]:
    return target.cannot | UNSUPPORTED


def call(request: CompletionRequest, target: Target) -> UpstreamRequest:
    """Return the request to send. The prompt must be a single string."""
    headers = request_parts.headers(request, target)
    if request.stream:
        headers["Accept"] = FRAMES
    data = msgspec.json.encode(body(request, target))
    return UpstreamRequest("POST", _url(target, stream=request.stream), headers, data)


def _url(target: Target, *, stream: bool) -> str:
    provider = target.provider
    path = "converse-stream" if stream else "converse"
    url = f"{provider.base_url.rstrip('/')}/model/{quote(target.model, safe='')}/{path}"
    return f"{url}?{provider.query}" if provider.query else url


def body(request: CompletionRequest, target: Target) -> dict[str, Any]:
    (prompt,) = request.prompts
    found: dict[str, Any] = {"messages": [{"role": "user", "content": [{"text": prompt}]}]}
    config = named(request, CONFIG, target.cannot)
    if config:
        found["inferenceConfig"] = config
    of_converse, of_model = {}, {}
    for name, value in request.extra.items():
        if name in AT_TOP or name in RESERVED:
            of_converse[name] = request_parts.members(name, value) if name in OBJECTS else value
        else:
            of_model[name] = value
    request_parts.merge(found, of_converse, RESERVED)
    if of_model:
        request_parts.merge(found, {"additionalModelRequestFields": of_model})
    return found


def events(
    chunks: Iterable[bytes],
    request: CompletionRequest,
) -> Iterator[Batch]:
    """Decode a streamed body.

    No chunk is read after the metadata that follows messageStop. A body that is a JSON object (from
    a host that doesn't stream, or an error with status 200) is decoded as a whole body.
    """
    first, chunks = bodies.peek(chunks)
    if first == b"{":
        yield from bodies.batch_of(
            partial(BedrockResponse(adds=request.passes_on).read_whole, bodies.join(chunks))
        )
        return
    if first != b"\0":  # the first byte of a frame's length, which is below 16 MiB
        start = bodies.beginning(chunks)
        raise garbage("The upstream ended the stream without a completion.", start)
    response = BedrockResponse(adds=request.passes_on)
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


def complete(body: bytes, request: CompletionRequest) -> Batch:
    read = partial(BedrockResponse(adds=request.passes_on).read_whole, body)
    return bodies.whole(body, read, partial(events, request=request), stream=body[:1] == b"\0")


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    value = decode_value(body)
    found = failure(refusal_message(status), value, headers.get("x-amzn-errortype"), status)
    if found.upstream_message is None:
        found.upstream_message = sample(body) or None
    found.retry_after = retry_after(headers)
    return found
