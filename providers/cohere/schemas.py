"""Structs for the JSON of Cohere's chat API v2, with only the fields that Sluice reads.

Source: Cohere API reference v2, "Chat" and "Chat with Streaming" (read 2026-11).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from providers.decoding.lenient_json import Text

DONE: Final = b"[DONE]"
"""The data of an event that may follow message-end."""
TEXT: Final = frozenset({"content-delta", "content-start", "tool-plan-delta"})
KNOWN: Final = TEXT | {"message", "message-start", "message-end", "error"}
"""The names of the events to decode. A server-sent event without a name is a "message"."""

Amount = Annotated[float, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
"""A number of tokens, which may be written as 34.0. Lenient decoding drops an invalid value. The
limit is that of `lenient_json.Count`."""


class Tokens(msgspec.Struct):
    input_tokens: Amount | None = None
    output_tokens: Amount | None = None


class Counts(msgspec.Struct):
    billed_units: Tokens | None = None
    tokens: Tokens | None = None
    cached_tokens: Amount | None = None


class Content(msgspec.Struct):
    """A block of a message, or a piece of a block, which has no type."""

    type: str = "text"
    text: Text | None = None
    thinking: str | None = None


class Message(msgspec.Struct):
    """The `message` object. In content-start and content-delta, the content is a single block."""

    content: Content | list[Content] | Text | None = None
    tool_plan: str | None = None


class Change(msgspec.Struct):
    message: Message | None = None
    finish_reason: Any = None
    usage: Counts | None = None
    error: Any = None


class Chunk(msgspec.Struct):
    """An event of a stream, or a whole body. A message that is a string belongs to an error."""

    type: str | None = None
    delta: Change | None = None
    message: Message | str | None = None
    finish_reason: Any = None
    usage: Counts | None = None
    error: Any = None


CHUNK: Final = msgspec.json.Decoder(Chunk)
BODY_FIELDS: Final = frozenset({"id", "index", *Chunk.__struct_fields__})
MESSAGE_FIELDS: Final = frozenset({"role", *Message.__struct_fields__})
"""The known fields of a body and of a message. The others are passed on to who asked for them."""
