"""Structs for the JSON of OpenAI-compatible hosts, with only the fields that Sluice reads.

- The module is pure.
- JSON that matches the types is decoded once. Other JSON is decoded again leniently: a field with a
  value of the wrong type counts as absent.
- Only data that isn't a JSON object is an error.

Source: OpenAI API reference, "Completions" and "Chat", with their streaming objects; the xAI,
DeepSeek, Groq, Mistral, Perplexity and OpenRouter references for their additions (read 2026-11).
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from providers.decoding.error_bodies import decode_error, reported
from providers.decoding.lenient_json import NOT_JSON, Count, Text, garbage, salvage
from providers.decoding.surrogates import SplitPairs

DONE: Final = b"[DONE]"
"""The data of a stream's last event."""


class Details(msgspec.Struct, gc=False):
    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class Tokens(msgspec.Struct, gc=False):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_cache_hit_tokens: Count | None = None
    prompt_tokens_details: Details | None = None
    completion_tokens_details: Details | None = None
    # Perplexity's units, which its total doesn't include.
    reasoning_tokens: Count | None = None
    citation_tokens: Count | None = None
    num_search_queries: Count | None = None
    # Costs in USD: of OpenRouter, Perplexity (an object), DeepInfra and xAI.
    cost: Any = None
    is_byok: Any = None
    cost_details: Any = None
    estimated_cost: Any = None
    cost_in_usd_ticks: Any = None


class Message(msgspec.Struct, gc=False):
    """The `delta` of a chat chunk, or the `message` of a whole body. Reasoning is not text."""

    content: Text | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    error: Any = None


class Choice(msgspec.Struct, gc=False):
    """A choice in a chunk or a whole JSON body of either endpoint."""

    index: int = 0
    text: Text | None = None
    delta: Message | None = None
    message: Message | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    finish_reason: Any = None
    """A word or, from SGLang, an object."""
    native_finish_reason: Any = None
    """The word of the host behind OpenRouter."""
    logprobs: Any = None
    error: Any = None


HIDDEN: Final = frozenset({"role", "reasoning_details", *Message.__struct_fields__})
"""Fields of a message that aren't passed on: Sluice reads them, or they are reasoning."""


class Groq(msgspec.Struct, gc=False):
    usage: Tokens | None = None
    error: Any = None


class Chunk(msgspec.Struct, gc=False):
    """A chunk of a stream, or a whole JSON body."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: Tokens | None = None
    error: Any = None
    x_groq: Groq | None = None
    service_tier: Any = None
    # The fields of errors from MiniMax, Baidu, and hosts that put errors into a list.
    base_resp: Any = None
    error_code: Any = None
    error_msg: Any = None
    errors: Any = None


TOP: Final = frozenset({"id", "object", "created", *Chunk.__struct_fields__})
CHOICE: Final = frozenset(Choice.__struct_fields__)
"""The known fields of a chunk and of a choice. The others are passed on to who asked for them."""


class KnownMessage(Message, forbid_unknown_fields=True, gc=False):
    role: Any = None
    reasoning_details: Any = None


class KnownChoice(Choice, forbid_unknown_fields=True, gc=False):
    delta: KnownMessage | None = None
    message: KnownMessage | None = None
    # Fields that vLLM and SGLang add to each choice, mostly as null, which counts as absent.
    stop_reason: None = None
    matched_stop: None = None
    token_ids: None = None
    prompt_token_ids: None = None
    prompt_logprobs: None = None


class KnownChunk(Chunk, forbid_unknown_fields=True, gc=False):
    """A chunk without any field that would be passed on: all its fields are known, or null."""

    id: Any = None
    object: Any = None
    created: Any = None
    choices: list[KnownChoice] | None = None  # type: ignore[assignment]
    system_fingerprint: None = None


class PlainDelta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: str
    role: Any = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    reasoning_content: None = None
    reasoning: None = None


class PlainChoice(msgspec.Struct, gc=False):
    delta: PlainDelta
    finish_reason: None = None
    native_finish_reason: None = None
    error: None = None
    text: None = None
    message: None = None
    reasoning_content: None = None
    reasoning: None = None


class PlainChunk(msgspec.Struct, gc=False):
    """A chunk that has only text, and maybe a service tier. Data with anything else that Sluice
    reads isn't of this type."""

    choices: list[PlainChoice]
    service_tier: Any = None
    usage: None = None
    error: None = None
    x_groq: None = None
    base_resp: None = None
    error_code: None = None
    error_msg: None = None
    errors: None = None


_decoder = msgspec.json.Decoder(Chunk)
decode_plain: Final = msgspec.json.Decoder(PlainChunk).decode
_known_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(KnownChunk)
_typed = _decoder.decode


def decode(data: bytes, pairs: SplitPairs, *, adds: bool = False) -> Chunk:
    """Decode a chunk, or a whole body. Raises UpstreamError if it isn't a JSON object.

    Args:
        pairs: as in `lenient_json.decode`.
        adds: True to return a KnownChunk if the data has no other fields.
    """
    if adds:
        try:
            known: KnownChunk = _known_decoder.decode(data)
        except NOT_JSON:
            pass  # contextlib.suppress would cost as much as the decoding
        else:
            return known
    try:
        return _typed(data)
    except NOT_JSON:
        return decode_leniently(data, pairs)


def decode_many(data: list[bytes], *, adds: bool = False) -> list[Chunk]:
    """Decode many chunks at once.

    Return an empty list unless each chunk is one line of JSON that matches the types.

    Args:
        adds: True to return KnownChunks if none of the chunks has other fields.
    """
    lines = b"\n".join(data)
    if lines.count(b"\n") >= len(data):
        return []
    for decoder in (_known_decoder, _decoder) if adds else (_decoder,):
        try:
            found: list[Chunk] = decoder.decode_lines(lines)
        except NOT_JSON:
            continue
        if len(found) == len(data):
            return found
    return []


def decode_leniently(data: bytes, pairs: SplitPairs) -> Chunk:
    """Decode a chunk from JSON that doesn't match the types.

    NaN, lone surrogates and invalid UTF-8 are accepted. Empty data and null become an empty chunk.

    Raises:
        UpstreamError: The data isn't a JSON object.
    """
    if not data.strip():
        return Chunk()
    try:
        value = json.loads(data.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        raise garbage("The upstream sent data that is not JSON.", data) from None
    if value is None:
        return Chunk()
    if isinstance(value, list) and decode_error(value).message:
        raise reported(value)
    if not isinstance(value, dict):
        raise garbage("The upstream sent JSON that is not an object.", data)
    pairs.possible = True
    join_content(value)
    return salvage(value, Chunk)


def join_content(value: dict[str, Any]) -> None:
    """Replace each message's content that is a list of parts, which Mistral sends, by its text.

    Parts with reasoning go to `reasoning_content`.
    """
    choices = value.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        for name in ("delta", "message") if isinstance(choice, dict) else ():
            message = choice.get(name)
            if isinstance(message, dict) and isinstance(message.get("content"), list):
                parts = message["content"]
                message |= {"content": joined(parts), "reasoning_content": thinking_in(parts)}


def thinking_in(content: list[Any]) -> str:
    """Return the reasoning in a list of parts."""
    found = (part.get("thinking") for part in content if isinstance(part, dict))
    return "".join(joined(parts) for parts in found if isinstance(parts, list))


def joined(content: list[Any]) -> str:
    """Return the text of a list of parts."""
    parts = (part for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
