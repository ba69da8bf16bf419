"""Structs for the JSON of OpenAI-compatible hosts, with only the fields that Sluice reads.

- The module is pure.
- JSON that matches the types is decoded once. Other JSON is decoded again leniently: a field with a
  value of the wrong type counts as absent.
- Only data that isn't a JSON object is an error.

Source: OpenAI API reference, "Completions" and "Chat", with their streaming objects; the xAI,
DeepSeek, Groq, Mistral and OpenRouter references for their additions (read 2026-11).
"""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

import msgspec

from providers.decoding.error_bodies import decode_error, reported
from providers.decoding.lenient_json import NOT_JSON, Count, garbage, replace_lone_surrogates

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


class Message(msgspec.Struct, gc=False):
    """The `delta` of a chat chunk, or the `message` of a whole body. Reasoning is not text."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct, gc=False):
    """A choice in a chunk or a whole JSON body of either endpoint."""

    index: int = 0
    text: str | None = None
    delta: Message | None = None
    message: Message | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None
    error: Any = None


class Groq(msgspec.Struct, gc=False):
    usage: Tokens | None = None


class Chunk(msgspec.Struct, gc=False):
    """A chunk of a stream, or a whole JSON body."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: Tokens | None = None
    error: Any = None
    x_groq: Groq | None = None


PARTS: Final[dict[str, type[msgspec.Struct]]] = {
    "delta": Message,
    "message": Message,
    "usage": Tokens,
    "prompt_tokens_details": Details,
    "completion_tokens_details": Details,
    "x_groq": Groq,
}
"""The fields that hold a nested object, with its type."""


_decoder = msgspec.json.Decoder(Chunk)
_typed = _decoder.decode
_Kind = TypeVar("_Kind", bound=msgspec.Struct)


def decode(data: bytes) -> Chunk:
    """Decode a chunk, or a whole body. Raises UpstreamError if it isn't a JSON object."""
    try:
        return _typed(data)
    except NOT_JSON:
        return decode_leniently(data)


def decode_many(data: list[bytes]) -> list[Chunk]:
    """Decode many chunks at once.

    Return an empty list unless each chunk is one line of JSON that matches the types.
    """
    lines = b"\n".join(data)
    if lines.count(b"\n") >= len(data):
        return []
    try:
        found = _decoder.decode_lines(lines)
    except NOT_JSON:
        return []
    return found if len(found) == len(data) else []


def decode_leniently(data: bytes) -> Chunk:
    """Decode a chunk from JSON that doesn't match the types.

    NaN, lone surrogates and invalid UTF-8 are accepted. Empty data becomes an empty chunk.

    Raises:
        UpstreamError: The data isn't a JSON object.
    """
    if not data.strip():
        return Chunk()
    try:
        value = json.loads(data.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        raise garbage("The upstream sent data that is not JSON.", data) from None
    if isinstance(value, list) and decode_error(value).message:
        raise reported(value)
    if not isinstance(value, dict):
        raise garbage("The upstream sent JSON that is not an object.", data)
    return salvage(value, Chunk)


def salvage(value: dict[str, Any], kind: type[_Kind]) -> _Kind:
    """Return a Struct with the values that match their types."""
    kept: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        found = value.get(field.name)
        if field.name in PARTS:
            if isinstance(found, dict):
                kept[field.name] = salvage(found, PARTS[field.name])
        elif field.name == "choices":
            if isinstance(found, list):
                kept["choices"] = [salvage(c, Choice) for c in found if isinstance(c, dict)]
        elif found is not None:
            if field.name == "content" and isinstance(found, list):
                kept["reasoning_content"] = thinking_in(found) or None
            try:
                found = replace_lone_surrogates(joined(found) if field.name == "content" else found)
                kept[field.name] = msgspec.convert(found, field.type, strict=False)
            except (msgspec.ValidationError, RecursionError):
                continue
    return kind(**kept)


def thinking_in(content: list[Any]) -> str:
    """Return the reasoning in a list of parts, which Mistral sends."""
    parts = (part for part in content if isinstance(part, dict))
    return "".join(joined(part.get("thinking")) or "" for part in parts if part.get("thinking"))


def joined(content: Any) -> Any:
    """Join the text of a list of parts, which Mistral sends. Return other content unchanged."""
    if not isinstance(content, list):
        return content
    parts = (part for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
