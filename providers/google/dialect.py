"""The Google dialect: generateContent and streamGenerateContent of the Gemini API.

The public functions implement `base.Dialect`, which documents them.

- The functions are pure.
- The key goes into a header, never into the URL.
- There is no [DONE]. A stream is complete when its body has ended, and either each requested
  candidate has a finishReason or the prompt was blocked. Any other end raises UpstreamError.
- Fields of `extra` that belong to generationConfig are moved there. generationConfig itself must be
  an object and is merged at every depth. Other fields (safetySettings, systemInstruction,
  cachedContent, ...) go to the top level.

Source: the types and converters of Google's own SDK, python-genai of 2026-08, and its issue threads
(read 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import msgspec

from completion import Batch, CompletionRequest, named
from errors import UpstreamError
from providers import request_parts
from providers.base import Target, UpstreamRequest
from providers.decoding import bodies, sse
from providers.decoding.error_bodies import refusal_message
from providers.decoding.lenient_json import NOT_JSON, garbage, sample
from providers.decoding.retry_after import retry_after
from providers.google.errors import bare, failure, reported, reported_in
from providers.google.response import GoogleResponse

CONFIG: Final = {
    "max_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "n": "candidateCount",
    "stop": "stopSequences",
    "seed": "seed",
    "frequency_penalty": "frequencyPenalty",
    "presence_penalty": "presencePenalty",
}
"""The names in generationConfig of Sluice's parameters."""

UNSUPPORTED: Final = frozenset(
    (
        *("suffix", "best_of", "logit_bias", "user", "openai_extra"),
        *("token_ids", "echo", "echo_logprobs", "prompt_list"),
    )
)

RESERVED: Final = frozenset(("model", "contents"))
"""Fields that `extra` can't set, even if the body lacks them."""

IN_CONFIG: Final = frozenset(
    (
        *CONFIG.values(),
        *("topK", "logprobs", "responseLogprobs", "thinkingConfig", "mediaResolution"),
        *("responseMimeType", "responseSchema", "responseJsonSchema", "responseFormat"),
        *("responseModalities", "speechConfig", "imageConfig", "enableEnhancedCivicAnswers"),
    )
)
"""Fields of generationConfig, which `extra` may have at its top level."""

CHUNKS: Final = frozenset(("message", "data"))
"""The names of the events that hold chunks. A server-sent event without a name is a "message"."""
SNAKE: Final = re.compile("_([a-z])")

COLLECTIONS: Final = ("models/", "tunedModels/")
"""The prefixes that a model's name may have. The first is the default."""


def unsupported(target: Target) -> frozenset[str]:
    return target.cannot | UNSUPPORTED


def call(request: CompletionRequest, target: Target) -> UpstreamRequest:
    """Return the request to send. The prompt must be a single string."""
    data = msgspec.json.encode(body(request, target))
    url = _url(target, stream=request.stream)
    return UpstreamRequest("POST", url, request_parts.headers(request, target), data)


def _url(target: Target, *, stream: bool) -> str:
    collection = next((c for c in COLLECTIONS if target.model.startswith(c)), "")
    name = quote(target.model.removeprefix(collection), safe="")
    method = "streamGenerateContent" if stream else "generateContent"
    url = f"{target.provider.base_url.rstrip('/')}/{collection or COLLECTIONS[0]}{name}:{method}"
    query = [*(["alt=sse"] if stream else []), target.provider.query]
    return "?".join(filter(None, (url, "&".join(filter(None, query)))))


def body(request: CompletionRequest, target: Target) -> dict[str, Any]:
    (prompt,) = request.prompts
    lacks = target.cannot
    config = named(request, CONFIG, lacks)
    if request.logprobs is not None and "logprobs" not in lacks:
        config["responseLogprobs"] = True
        if request.logprobs:
            config["logprobs"] = request.logprobs
    found: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
    for name, value in request.extra.items():
        theirs = camel_case(name)
        if theirs == "generationConfig":
            for key, inner in request_parts.members(name, value).items():
                request_parts.merge(config, {camel_case(key): inner})
        elif theirs in IN_CONFIG:
            request_parts.merge(config, {theirs: value})
        else:
            request_parts.merge(found, {name: value}, RESERVED)
    if config:
        found["generationConfig"] = config
    return found


def camel_case(name: str) -> str:
    """Return a field's name in camel case. The API accepts snake case too."""
    return SNAKE.sub(lambda match: match[1].upper(), name) if "_" in name else name


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    """Decode a streamed body.

    A body that is a single JSON value is decoded as a whole body, because a host that ignores
    alt=sse sends a list of chunks.
    """
    first, chunks = bodies.peek(chunks)
    if first in (b"{", b"["):
        yield from bodies.batch_of(partial(_whole, bodies.join(chunks), request))
        return
    excerpt = bodies.Excerpt(end=True)
    response = GoogleResponse(request)
    yield from sse.batches(excerpt.watch(chunks), partial(_read, response))
    for batch in bodies.batch_of(partial(_end, response, excerpt)):
        if batch:
            yield batch


def _read(response: GoogleResponse, frame: sse.Frame, batch: Batch) -> bool:
    """Append the events of a frame. No frame says that it is the last one."""
    if frame.event == "error":
        raise reported_in(frame.data)
    if frame.event in CHUNKS:
        response.read(frame.data, batch)
    return False


def _end(response: GoogleResponse, excerpt: bodies.Excerpt, batch: Batch) -> None:
    try:
        response.finish_all(batch, whole=False)
    except UpstreamError:
        if stray := bare(excerpt.end):
            raise reported(stray) from None
        if not response.started:
            message = "The upstream ended the stream without a completion."
            raise garbage(message, excerpt.start) from None
        raise


def complete(body: bytes, request: CompletionRequest) -> Batch:
    return bodies.whole(body, partial(_whole, body, request), partial(events, request=request))


def _whole(body: bytes, request: CompletionRequest, batch: Batch) -> None:
    """Append the events of a whole body, which is a JSON object or a list of them."""
    try:
        parts = msgspec.json.decode(body, type=list[msgspec.Raw])
    except NOT_JSON:
        parts = [msgspec.Raw(body)]
    response = GoogleResponse(request)
    for part in parts:
        response.read(bytes(part), batch)
    if not response.texts and not response.blocked:
        raise garbage("The upstream's response contains no candidates.", body)
    response.finish_all(batch, whole=True)


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    try:
        value = msgspec.json.decode(body)
    except NOT_JSON:
        value = None
    found = failure(refusal_message(status), value, status)
    if found.upstream_message is None:
        found.upstream_message = sample(body) or None
    if found.retry_after is None:
        found.retry_after = retry_after(headers)
    return found
