"""The Google dialect: the Gemini API's generateContent and streamGenerateContent.

Rules that hold here: pure functions, after the protocol in base.py. The key goes into a header,
never into the URL. There is no [DONE]: an answer is whole when the body ended and each candidate
asked for had a finishReason, or the prompt was blocked; anything else is an UpstreamError.

Of `extra`, what is a field of generationConfig goes there, generationConfig itself is merged in
depth, and the rest (safetySettings, systemInstruction, cachedContent, ...) stands at the top.

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
from providers.base import Call, Target
from providers.decoding import bodies, sse
from providers.decoding.lenient_json import NOT_JSON, garbage, sample
from providers.decoding.retry_after import retry_after
from providers.google.errors import bare, failure, reported
from providers.google.response import Answer
from providers.request_parts import fill

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
"""Our parameters, and what generationConfig calls them."""

LACKS: Final = frozenset(
    (
        *("suffix", "best_of", "logit_bias", "user", "openai_extra"),
        *("token_ids", "echo", "echo_logprobs", "prompt_list"),
    )
)

OURS: Final = frozenset(("model", "contents"))
"""What `extra` can't set, absent or not."""

IN_CONFIG: Final = frozenset(
    (
        *CONFIG.values(),
        *("topK", "logprobs", "responseLogprobs", "thinkingConfig", "mediaResolution"),
        *("responseMimeType", "responseSchema", "responseJsonSchema", "responseFormat"),
        *("responseModalities", "speechConfig", "imageConfig", "enableEnhancedCivicAnswers"),
    )
)
"""Fields of generationConfig, which `extra` may name at its top."""

COLLECTIONS: Final = ("models/", "tunedModels/")
"""What a model's name may begin with; without one it is of the first."""


def unsupported(target: Target) -> frozenset[str]:
    """What it can't be asked; see base.Dialect."""
    return target.cannot | LACKS


def call(request: CompletionRequest, target: Target) -> Call:
    """The request to make; it has exactly one prompt, a text."""
    body = msgspec.json.encode(_body(request, target))
    return Call(
        "POST", _url(target, stream=request.stream), request_parts.headers(request, target), body
    )


def _url(target: Target, *, stream: bool) -> str:
    collection = next((c for c in COLLECTIONS if target.model.startswith(c)), "")
    name = quote(target.model.removeprefix(collection), safe="")
    method = "streamGenerateContent" if stream else "generateContent"
    url = f"{target.provider.base_url.rstrip('/')}/{collection or COLLECTIONS[0]}{name}:{method}"
    query = [*(["alt=sse"] if stream else []), target.provider.query]
    return "?".join(filter(None, (url, "&".join(filter(None, query)))))


def _body(request: CompletionRequest, target: Target) -> dict[str, Any]:
    (prompt,) = request.prompts
    lacks = target.cannot
    config = named(request, CONFIG, lacks)
    if request.logprobs is not None and "logprobs" not in lacks:
        config["responseLogprobs"] = True
        if request.logprobs:
            config["logprobs"] = request.logprobs
    body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": prompt}]}]}
    for name, value in request.extra.items():
        theirs = _camel(name)
        if theirs == "generationConfig" and isinstance(value, Mapping):
            fill(config, {_camel(key): inner for key, inner in value.items()})
        elif theirs in IN_CONFIG:
            fill(config, {theirs: value})
        elif theirs not in OURS:
            fill(body, {name: value})
    if config:
        fill(body, {"generationConfig": config})
    return body


def _camel(name: str) -> str:
    """A field's name as JSON has it; the API takes snake case as well."""
    return re.sub("_([a-z])", lambda match: match[1].upper(), name)


def events(chunks: Iterable[bytes], request: CompletionRequest) -> Iterator[Batch]:
    """Decode a streamed body; see base.Dialect.

    A body that is one JSON value is decoded as such: a list of chunks is what a host gives that
    overlooks alt=sse.
    """
    first, chunks = bodies.peek(chunks)
    if first in (b"{", b"["):
        yield from bodies.batch_of(partial(_whole, bodies.join(chunks), request))
        return
    seen = bodies.Excerpt(end=True)
    answer = Answer(request)
    for frames in sse.decode(seen.watch(chunks)):
        yield from bodies.batch_of(partial(_read, answer, frames))
    yield from bodies.batch_of(partial(_end, answer, seen))


def _read(answer: Answer, frames: list[sse.Frame], batch: Batch) -> None:
    for frame in frames:
        answer.read(frame.data, batch)


def _end(answer: Answer, seen: bodies.Excerpt, batch: Batch) -> None:
    """What remains to be told when the body is at its end."""
    try:
        answer.end(batch, whole=False)
    except UpstreamError:
        if stray := bare(seen.end):
            raise reported(stray) from None
        if not answer.started:
            message = "The upstream ended the stream without an answer."
            raise garbage(message, seen.start) from None
        raise


def complete(body: bytes, request: CompletionRequest) -> Batch:
    """Decode a whole JSON body; see base.Dialect."""
    batch: Batch = []
    _whole(body, request, batch)
    return batch


def _whole(body: bytes, request: CompletionRequest, batch: Batch) -> None:
    """An answer in one piece of JSON, or in a list of them."""
    try:
        parts = msgspec.json.decode(body, type=list[msgspec.Raw])
    except NOT_JSON:
        parts = [msgspec.Raw(body)]
    answer = Answer(request)
    for part in parts:
        answer.read(bytes(part), batch)
    if not answer.texts and not answer.blocked:
        raise garbage("The upstream's answer holds no candidates.", body)
    answer.end(batch, whole=True)


def error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """What an answer other than 2xx means; header names are in lower case."""
    try:
        value = msgspec.json.decode(body)
    except NOT_JSON:
        value = None
    verb = "failed" if status >= 500 else "refused the call"
    found = failure(f"The upstream {verb} with status {status}.", value, status)
    if found.upstream_message is None:
        found.upstream_message = sample(body) or None
    if found.retry_after is None:
        found.retry_after = retry_after(headers)
    return found
