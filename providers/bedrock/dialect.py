"""The Bedrock dialect: Amazon Bedrock's Converse and ConverseStream.

Rules that hold here: pure functions, after the protocol in base.py. By default the key is a Bedrock
API key, sent as a bearer's; signing with SigV4 is sigv4.py's. What an answer means is in
bedrock_answer.py.

Of `extra`, what Converse knows (guardrailConfig, performanceConfig, ...) stands at the top,
inferenceConfig and additionalModelRequestFields are merged in depth, and the rest, being the
model's own, goes into additionalModelRequestFields.

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
from providers.base import Call, Target
from providers.bedrock.response import Answer, failure
from providers.decoding import bodies, event_stream
from providers.decoding.lenient_json import NOT_JSON, garbage, sample
from providers.decoding.retry_after import retry_after
from providers.request_parts import fill

CONFIG: Final = {
    "max_tokens": "maxTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop": "stopSequences",
}
"""Our parameters, and what inferenceConfig calls them."""

LACKS: Final = request_parts.CHAT_UNSUPPORTED | frozenset(
    (
        *("n", "logprobs", "seed", "logit_bias", "user", "openai_extra"),
        *("frequency_penalty", "presence_penalty"),
    )
)

OURS: Final = frozenset(("messages", "modelId"))
"""What `extra` can't set, absent or not."""

AT_TOP: Final = frozenset(
    (
        *("additionalModelResponseFieldPaths", "guardrailConfig", "outputConfig"),
        *("performanceConfig", "promptVariables", "requestMetadata", "serviceTier", "system"),
        *("toolConfig", "inferenceConfig", "additionalModelRequestFields"),
    )
)
"""The fields of a request to Converse, but for ours."""

FRAMES: Final = "application/vnd.amazon.eventstream"


def unsupported(target: Target) -> frozenset[str]:
    """What it can't be asked; see base.Dialect."""
    return target.cannot | LACKS


def call(request: CompletionRequest, target: Target) -> Call:
    """The request to make; it has exactly one prompt, a text."""
    headers = request_parts.headers(request, target)
    if request.stream:
        headers["Accept"] = FRAMES
    body = msgspec.json.encode(_body(request, target))
    return Call("POST", _url(target, stream=request.stream), headers, body)


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
            fill(body, {name: value})
        elif name not in OURS:
            fill(body, {"additionalModelRequestFields": {name: value}})
    return body


def events(
    chunks: Iterable[bytes],
    request: CompletionRequest,  # noqa: ARG001
) -> Iterator[Batch]:
    """Decode a streamed body; see base.Dialect. Ends at the metadata that follows messageStop
    without asking for what comes after it.

    A body that is one JSON object (a host that doesn't stream, or an error with status 200) is
    decoded as such.
    """
    first, chunks = bodies.peek(chunks)
    if first == b"{":
        yield from bodies.batch_of(partial(Answer().read_whole, bodies.join(chunks)))
        return
    if first != b"\0":  # of a length below 16 MiB
        start = bodies.beginning(chunks)
        raise garbage("The upstream ended the stream without an answer.", start)
    answer = Answer()
    for frames in event_stream.decode(chunks):
        yield from bodies.batch_of(partial(_read, answer, frames))
        if answer.ended:
            return
    answer.break_off()


def _read(answer: Answer, frames: list[event_stream.BinaryFrame], batch: Batch) -> None:
    for frame in frames:
        answer.read(frame, batch)
        if answer.ended:
            break


def complete(body: bytes, request: CompletionRequest) -> Batch:  # noqa: ARG001
    """Decode a whole JSON body; see base.Dialect."""
    batch: Batch = []
    Answer().read_whole(body, batch)
    return batch


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """What an answer other than 2xx means; header names are in lower case."""
    try:
        value = msgspec.json.decode(body)
    except NOT_JSON:
        value = None
    verb = "failed" if status >= 500 else "refused the call"
    message = f"The upstream {verb} with status {status}."
    found = failure(message, value, headers.get("x-amzn-errortype"), status)
    if found.upstream_message is None:
        found.upstream_message = sample(body) or None
    found.retry_after = retry_after(headers)
    return found
