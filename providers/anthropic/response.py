"""Decoding of responses from Anthropic's Messages API into events.

- The module is pure.
- Only text blocks become text. Thinking, tool use and citations don't, though their tokens count as
  output.
- A stream is complete when message_stop has arrived, or when its body has ended after a
  stop_reason.
- Pings, unknown events and unknown fields are ignored.
- Streams and whole JSON bodies take one code path, so that they can't drift apart.

Source: Anthropic API reference, "Messages", "Streaming", "Handling stop reasons" and "Errors"
(read 2026-11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from completion import (
    Batch,
    Delta,
    Finished,
    FinishReason,
    Started,
    Thought,
    Usage,
    Used,
    utf8_size,
)
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
"""The finish reason for each `stop_reason`. An unknown one becomes "stop"."""


def read_whole(body: bytes) -> Batch:
    """Return the events of a JSON body. Raises UpstreamError if it isn't a completion."""
    message = lenient_json.decode(body, MESSAGE)
    if message.content is None or message.error:
        refuse_error(body, STATUSES)
        raise garbage("The upstream's response contains no content.", body)
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
    """The state of one response while it is decoded."""

    __slots__ = ("reason", "tokens")

    def __init__(self) -> None:
        self.reason: str | None = None
        self.tokens = Tokens()

    def read(self, frame: sse.Frame, batch: Batch) -> bool:
        """Append the events of a frame. Return True if it was the last one.

        Raises:
            UpstreamError: The frame reports an error or is malformed.
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
            elif delta and delta.thinking:
                batch.append(Thought(utf8_size(delta.thinking)))
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
        # Some hosts send 0 until they know the number. No prompt has 0 tokens.
        batch.append(Started(message.model or None, input_of(self.tokens) or None))
        usage = usage_of(self.tokens)
        if usage and (usage.cache_read_tokens or usage.cache_write_tokens):
            # Report cached tokens now, so that a stopped stream is billed at their prices too.
            batch.append(Used(msgspec.structs.replace(usage, output_tokens=0, source="estimate")))

    def content_block_start(self, chunk: Chunk, batch: Batch) -> None:
        """Append the text of a new block. Anthropic sends none here, but other hosts do."""
        if (block := chunk.content_block) and block.text and block.type == "text":
            batch.append(Delta(0, block.text))
        elif block and block.thinking:
            batch.append(Thought(utf8_size(block.thinking)))

    def message_delta(self, chunk: Chunk, batch: Batch) -> None:
        """Append the usage so far and the finish. Unchanged counts may be missing."""
        if chunk.usage:
            self.tokens = merged(self.tokens, chunk.usage)
            if usage := usage_of(self.tokens):
                batch.append(Used(usage))
        if chunk.delta and chunk.delta.stop_reason:
            self.reason = chunk.delta.stop_reason
            batch.append(Finished(0, REASONS.get(self.reason, "stop")))

    def message_stop(self, chunk: Chunk, batch: Batch) -> None:  # noqa: ARG002
        if self.reason is None:
            raise UpstreamError("The upstream sent no stop reason.")


STEPS: Final[dict[str, Callable[[AnthropicResponse, Chunk, Batch], None]]] = {
    "message_start": AnthropicResponse.message_start,
    "content_block_start": AnthropicResponse.content_block_start,
    "message_delta": AnthropicResponse.message_delta,
    "message_stop": AnthropicResponse.message_stop,
}
KNOWN: Final = frozenset({"message", "content_block_delta", "error", *STEPS})
"""The names of the events to decode. A server-sent event without a name is a "message"."""


def merged(before: Tokens, after: Tokens) -> Tokens:
    """Return the later counts, with the earlier count where the later event has none."""
    pairs = zip(msgspec.structs.astuple(before), msgspec.structs.astuple(after), strict=True)
    return Tokens(*(old if new is None else new for old, new in pairs))


def input_of(tokens: Tokens) -> int:
    """Return the number of all input tokens, cached or not."""
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
