"""The answers of Anthropic's Messages API, translated into events.

- It is pure.
- Only text blocks are text. Thinking, tools and citations are not, though their tokens count as
  output.
- An answer is whole when message_stop arrived.
- Unknown events and fields are ignored, and so are pings.
- Streams and whole answers take the same steps, so that they can't drift apart.

Source: Anthropic API reference, "Messages", "Streaming", "Handling stop reasons" and "Errors"
(read 2026-11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from completion import Batch, Delta, Finished, FinishReason, Started, Usage, Used
from errors import UpstreamError
from providers.anthropic.schemas import (
    CHUNK,
    MESSAGE,
    STATUSES,
    Change,
    Chunk,
    Message,
    OutputDetails,
    Tokens,
)
from providers.decoding import lenient_json, sse
from providers.decoding.error_bodies import failure, refuse_error
from providers.decoding.lenient_json import garbage

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("end_turn", "stop_sequence", "tool_use", "pause_turn"), "stop"),
    **dict.fromkeys(("max_tokens", "model_context_window_exceeded"), "length"),
    "refusal": "content_filter",
}
"""Our finish reason for a `stop_reason`. A new one means that the model ended by itself: stop."""


def read_whole(body: bytes) -> Batch:
    """Return the events of a whole answer. Raises UpstreamError if it is not one."""
    message = lenient_json.decode(body, MESSAGE)
    if message.content is None or message.error:
        refuse_error(body, STATUSES)
        raise garbage("The upstream's answer holds no content.", body)
    response = AnthropicResponse()
    batch: Batch = []
    response.message_start(Chunk(message=message), batch)
    text = "".join(block.text or "" for block in message.content if block.type == "text")
    if text:
        batch.append(Delta(0, text))
    change = Change(stop_reason=message.stop_reason)
    response.message_delta(Chunk(delta=change, usage=message.usage), batch)
    response.message_stop(Chunk(), batch)
    return batch


class AnthropicResponse:
    """The state of one answer while it is read."""

    __slots__ = ("reason", "tokens")

    def __init__(self) -> None:
        self.reason: str | None = None
        self.tokens = Tokens()

    def read(self, frame: sse.Frame, batch: Batch) -> bool:
        """Append the events of a frame. Return True if it was the last.

        Raises UpstreamError if the frame holds an error, or doesn't have the format.
        """
        if frame.event not in KNOWN:
            return False
        if frame.event == "error":
            raise failure(frame.data, STATUSES)
        chunk = lenient_json.decode(frame.data, CHUNK)
        kind = chunk.type or frame.event
        if kind == "content_block_delta":
            if (delta := chunk.delta) and delta.text and delta.type == "text_delta":
                batch.append(Delta(0, delta.text))
            return False
        if kind == "error" or chunk.error:
            raise failure(frame.data, STATUSES)
        if step := STEPS.get(kind):
            step(self, chunk, batch)
        elif chunk.type is None:
            refuse_error(frame.data, STATUSES)
        return kind == "message_stop"

    def message_start(self, chunk: Chunk, batch: Batch) -> None:
        message = chunk.message or Message()
        self.tokens = message.usage or Tokens()
        # Hosts that don't know the input yet send 0, which no prompt has.
        batch.append(Started(message.model or None, input_of(self.tokens) or None))
        usage = usage_of(self.tokens)
        if usage and (usage.cache_read_tokens or usage.cache_write_tokens):
            # Cached tokens have prices of their own, also if the answer is stopped.
            batch.append(Used(msgspec.structs.replace(usage, output_tokens=0, source="estimate")))

    def content_block_start(self, chunk: Chunk, batch: Batch) -> None:
        """Append the text of a new block, which only other hosts than Anthropic send here."""
        if (block := chunk.content_block) and block.text and block.type == "text":
            batch.append(Delta(0, block.text))

    def message_delta(self, chunk: Chunk, batch: Batch) -> None:
        """Take the stop reason, and the counts so far: those of the input only if they changed."""
        if chunk.delta and chunk.delta.stop_reason:
            self.reason = chunk.delta.stop_reason
        if chunk.usage:
            self.tokens = merged(self.tokens, chunk.usage)
            if usage := usage_of(self.tokens):
                batch.append(Used(usage))

    def message_stop(self, chunk: Chunk, batch: Batch) -> None:  # noqa: ARG002
        if self.reason is None:
            raise UpstreamError("The upstream ended its answer without a reason.")
        batch.append(Finished(0, REASONS.get(self.reason, "stop")))


STEPS: Final[dict[str, Callable[[AnthropicResponse, Chunk, Batch], None]]] = {
    "message_start": AnthropicResponse.message_start,
    "content_block_start": AnthropicResponse.content_block_start,
    "message_delta": AnthropicResponse.message_delta,
    "message_stop": AnthropicResponse.message_stop,
}
KNOWN: Final = frozenset({"message", "content_block_delta", "error", *STEPS})
"""The names of events that are read; a server-sent event without a name is a "message"."""


def merged(before: Tokens, after: Tokens) -> Tokens:
    """Return the later counts, or the earlier ones where the later event leaves them out."""
    pairs = zip(msgspec.structs.astuple(before), msgspec.structs.astuple(after), strict=True)
    return Tokens(*(old if new is None else new for old, new in pairs))


def input_of(tokens: Tokens) -> int:
    """Return all input tokens, cached or not."""
    read, written = tokens.cache_read_input_tokens, tokens.cache_creation_input_tokens
    return (tokens.input_tokens or 0) + (read or 0) + (written or 0)


def usage_of(tokens: Tokens) -> Usage | None:
    """Return the usage, or None if all counts are zero or missing."""
    given, made = input_of(tokens), tokens.output_tokens or 0
    if not given and not made:
        return None
    details = tokens.output_tokens_details or OutputDetails()
    return Usage(
        input_tokens=given,
        output_tokens=made,
        cache_read_tokens=tokens.cache_read_input_tokens or 0,
        cache_write_tokens=tokens.cache_creation_input_tokens or 0,
        reasoning_tokens=details.thinking_tokens or 0,
    )
