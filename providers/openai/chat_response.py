"""Decoding of chats from hosts that speak OpenAI's format, whose answers are passed on.

- The module is pure.
- Each chunk, or a whole body, becomes one Opaque event. Errors, finish reasons and usage
  are read by response.py.
- A chunk with only text is decoded once, by a strict type. Any other chunk is decoded a second
  time, in full, to find out whether it shows anything.
"""

from __future__ import annotations

from typing import Any

import msgspec

from completion import (
    NO_CHOICE,
    Batch,
    CompletionRequest,
    Delta,
    Finished,
    Opaque,
    Started,
    Thought,
    utf8_size,
)
from errors import UpstreamError
from providers.decoding.added_fields import decode_object, objects
from providers.decoding.lenient_json import NOT_JSON, on_one_line
from providers.decoding.sse import LF
from providers.openai.response import OpenAIResponse
from providers.openai.schemas import Chunk, decode, decode_plain


class ChatResponse(OpenAIResponse):
    """The state of one response while it is decoded."""

    __slots__ = ("last", "whole")

    def __init__(self, request: CompletionRequest, *, whole: bool = False) -> None:
        super().__init__(request)
        self.adds = False
        self.whole = whole
        """True if the response is a single JSON body."""
        self.last = b""
        """The last chunk that had more than text."""

    @property
    def plain(self) -> bool:
        """Return True if chunks with only text may be decoded as PlainChunk."""
        return self.started and self.choices == 1 and not self.pairs.possible

    def read(self, data: bytes, batch: Batch) -> None:
        if not (self.plain and self.take_plain(data, batch, ascii_only=data.isascii())):
            self.take(decode(data, self.pairs), data, batch)

    def take_plain(self, data: bytes, batch: Batch, *, ascii_only: bool) -> bool:
        """Append the event of a chunk that has only text. Return False if the chunk has more."""
        try:
            chunk = decode_plain(data)
        except NOT_JSON:
            return False
        text = chunk.choices[0].delta.content if chunk.choices else ""
        if not text or (chunk.service_tier and chunk.service_tier != self.tier):
            return False
        if not ascii_only or LF in data:
            data = on_one_line(data)
        self.texts[0] = True
        batch.append(Opaque(data, 0, len(text) if text.isascii() else utf8_size(text)))
        return True

    def take(self, chunk: Chunk, data: bytes, batch: Batch) -> None:
        found: Batch = []
        try:
            super().take(chunk, data, found)
        except UpstreamError:
            # The chunk isn't passed on, because it shows the error, but its text was generated.
            batch += [Thought(size) if (size := size_of(event)) else event for event in found]
            raise
        if chunk.choices is not None or chunk.usage is not None:
            self.last = data
            batch += [event for event in found if isinstance(event, Started)]
            batch.append(self.opaque(chunk, data, found))
        batch += [e for e in found if not isinstance(e, Started | Delta | Thought)]

    def opaque(self, chunk: Chunk, data: bytes, found: Batch) -> Opaque:
        """Return a chunk's event. `found` has its events as those of a completion."""
        size = sum(map(size_of, found))
        ends = tuple(event.index for event in found if isinstance(event, Finished))
        shown = bool(size or ends)
        for raw in objects(decode_object(data).get("choices")) if chunk.choices else ():
            message = raw.get("delta") or raw.get("message")
            if isinstance(message, dict):
                size += size_beside_text(message)
                shown = shown or any(item for name, item in message.items() if name != "role")
        index = chunk.choices[0].index if chunk.choices and self.choices > 1 else 0
        if not chunk.choices and chunk.usage is not None:
            index = NO_CHOICE
        reports = chunk.usage is not None and index != NO_CHOICE
        return Opaque(on_one_line(data), index, size, shown, reports, ends)

    def finish_all(self, batch: Batch) -> None:
        finished, before = set(self.finished), len(batch)
        super().finish_all(batch)
        added = batch[before:]
        del batch[before:]
        for event in added:
            if isinstance(event, Finished) and event.index not in finished and not self.whole:
                ending = self.ending(event.index, event.reason)
                batch.append(Opaque(ending, event.index, ends=(event.index,)))
            if not isinstance(event, Delta):
                batch.append(event)

    def ending(self, index: int, reason: str) -> bytes:
        """Return a chunk that ends a choice, for a host that sends no finish reason."""
        head = decode_object(self.last)
        choice = {"index": index, "delta": {}, "finish_reason": reason}
        kept = {name: head[name] for name in ("id", "object", "created", "model") if name in head}
        return msgspec.json.encode(kept | {"choices": [choice]})


def size_of(event: Any) -> int:
    """Return the bytes of text or reasoning of an event; 0 for other events."""
    if isinstance(event, Delta):
        return utf8_size(event.text)
    return event.size if isinstance(event, Thought) else 0


def size_beside_text(message: dict[str, Any]) -> int:
    """Return the bytes that a model generated in a message besides its text and its reasoning."""
    texts = [message.get("refusal")]
    calls = objects(message.get("tool_calls"))
    for call in [message, *calls]:
        for name, part in (("function", "arguments"), ("custom", "input")):
            inner = call.get(name)
            texts.append(inner.get(part) if isinstance(inner, dict) else None)
    if isinstance(function := message.get("function_call"), dict):
        texts.append(function.get("arguments"))
    if isinstance(audio := message.get("audio"), dict):
        texts.append(audio.get("transcript"))
    return sum([utf8_size(text) for text in texts if isinstance(text, str)])


def as_chunk(data: bytes) -> bytes:
    """Return a whole body as the chunk of a stream."""
    fields = decode_object(data)
    for choice in objects(fields.get("choices")):
        if "message" in choice and "delta" not in choice:
            choice["delta"] = choice.pop("message")
    return msgspec.json.encode(fields | {"object": "chat.completion.chunk"})
