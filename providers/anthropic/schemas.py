"""Structs for the JSON of Anthropic's Messages API, with only the fields that Sluice reads.

Source: Anthropic API reference, "Messages", "Streaming" and "Errors" (read 2026-11).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from providers.decoding.lenient_json import Count, Text

STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The HTTP status of each error type, for errors in a stream, whose response has status 200."""


class OutputDetails(msgspec.Struct):
    thinking_tokens: Count | None = None


class CacheCreation(msgspec.Struct):
    """The tokens written to the cache, by the time for which it keeps them."""

    ephemeral_5m_input_tokens: Count | None = None
    ephemeral_1h_input_tokens: Count | None = None


class ServerTools(msgspec.Struct):
    web_search_requests: Count | None = None


class Tokens(msgspec.Struct):
    """The `usage` object. input_tokens excludes tokens read from the cache or written to it."""

    input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    output_tokens: Count | None = None
    output_tokens_details: OutputDetails | None = None
    cache_creation: CacheCreation | None = None
    server_tool_use: ServerTools | None = None
    service_tier: Any = None
    speed: Any = None


class Block(msgspec.Struct):
    type: str | None = None
    text: Text | None = None
    thinking: str | None = None


class Message(msgspec.Struct):
    """A whole JSON body, the `message` of a stream's first event, or an error."""

    model: str | None = None
    content: list[Block] | None = None
    stop_reason: Any = None
    usage: Tokens | None = None
    error: Any = None


class Change(msgspec.Struct):
    type: str | None = None
    text: Text | None = None
    thinking: str | None = None
    stop_reason: Any = None
    error: Any = None


class Chunk(msgspec.Struct):
    """An event of a stream."""

    type: str | None = None
    delta: Change | None = None
    content_block: Block | None = None
    message: Message | None = None
    usage: Tokens | None = None
    error: Any = None


CHUNK: Final = msgspec.json.Decoder(Chunk)
MESSAGE: Final = msgspec.json.Decoder(Message)
MESSAGE_FIELDS: Final = frozenset({"id", "type", "role", *Message.__struct_fields__})
CHUNK_FIELDS: Final = frozenset({"index", *Chunk.__struct_fields__})
"""The known fields of a message and of an event. The others are passed on to who asked for them."""
