"""Structs for the JSON of Converse and ConverseStream, with only the fields that Sluice reads.

Source: Amazon Bedrock API reference, ConverseResponse, ConverseStreamOutput and TokenUsage; the
user guide's "Prompt caching" (inputTokens excludes tokens read from the cache or written to it;
read 2026-11).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from providers.decoding.lenient_json import Count, Text


class Piece(msgspec.Struct):
    text: Text | None = None


class Cited(msgspec.Struct):
    content: list[Piece] | None = None


class Block(msgspec.Struct, rename="camel"):
    text: Text | None = None
    citations_content: Cited | None = None


class Message(msgspec.Struct):
    content: list[Block] | None = None


class Output(msgspec.Struct):
    message: Message | None = None


class CacheDetail(msgspec.Struct, rename="camel"):
    ttl: Any = None
    input_tokens: Count | None = None


class Tokens(msgspec.Struct, rename="camel"):
    """The `usage` object. The three kinds of input tokens don't overlap."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_write_input_tokens: Count | None = None
    cache_details: list[CacheDetail] | None = None
    """The tokens written to the cache, by the time for which it keeps them."""


class Whole(msgspec.Struct, rename="camel"):
    output: Output | None = None
    stop_reason: Any = None
    error: Any = None
    usage: Tokens | None = None


class PieceOrReasoning(msgspec.Struct, rename="camel"):
    text: Text | None = None
    reasoning_content: Piece | None = None


class BlockDelta(msgspec.Struct):
    delta: PieceOrReasoning | None = None


class Stop(msgspec.Struct, rename="camel"):
    stop_reason: Any = None


class Metadata(msgspec.Struct):
    usage: Tokens | None = None


WHOLE: Final = msgspec.json.Decoder(Whole)
DELTA: Final = msgspec.json.Decoder(BlockDelta)
STOP: Final = msgspec.json.Decoder(Stop)
METADATA: Final = msgspec.json.Decoder(Metadata)

EVENTS: Final = frozenset(
    (
        *("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop"),
        *("messageStop", "metadata"),
    )
)

FIELDS: Final = frozenset({"p", *(field.encode_name for field in msgspec.structs.fields(Whole))})
"""The known fields of a body, and of the last events. The others are passed on to who asked."""
