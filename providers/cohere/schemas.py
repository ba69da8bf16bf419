"""The JSON of Cohere's chat API v2 as Structs, with the fields that matter.

Source: Cohere API reference v2, "Chat" and "Chat with Streaming" (read 2026-11).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

DONE: Final = b"[DONE]"
"""The data of an event that may follow message-end."""
TEXT: Final = frozenset({"content-delta", "content-start"})
KNOWN: Final = TEXT | {"message", "message-start", "message-end", "error"}
"""The names of events that are read; a server-sent event without a name is a "message"."""

Amount = Annotated[float, msgspec.Meta(ge=0, le=1 << 53)]
"""A number of tokens, which may be written as 34.0. A value that can't be one is dropped."""


class Tokens(msgspec.Struct):
    """`billed_units` and `tokens`."""

    input_tokens: Amount | None = None
    output_tokens: Amount | None = None


class Counts(msgspec.Struct):
    """`usage`."""

    billed_units: Tokens | None = None
    tokens: Tokens | None = None
    cached_tokens: Amount | None = None


class Content(msgspec.Struct):
    """A block of a message, or a piece of one, which has no type."""

    type: str = "text"
    text: str | None = None


class Message(msgspec.Struct):
    """`message`. In content-start and content-delta, the content is one block."""

    content: Content | list[Content] | str | None = None


class Change(msgspec.Struct):
    """`delta`."""

    message: Message | None = None
    finish_reason: str | None = None
    usage: Counts | None = None
    error: Any = None


class Chunk(msgspec.Struct):
    """An event of a stream, or a whole answer. A message that is a text belongs to an error."""

    type: str | None = None
    delta: Change | None = None
    message: Message | str | None = None
    finish_reason: str | None = None
    usage: Counts | None = None
    error: Any = None


CHUNK: Final = msgspec.json.Decoder(Chunk)
