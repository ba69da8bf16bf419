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
    CHUNK_FIELDS,
    MESSAGE,
    MESSAGE_FIELDS,
    STATUSES,
    CacheCreation,
    Change,
    Chunk,
    Message,
    OutputDetails,
    ServerTools,
    Tokens,
)
from providers.decoding import lenient_json, sse
from providers.decoding.added_fields import append_added, decode_object, unknown
from providers.decoding.error_bodies import failure, refuse_error, reported
from providers.decoding.finish_reasons import meaning_of
from providers.decoding.lenient_json import garbage
from providers.decoding.surrogates import SplitPairs
from providers.decoding.usage import believable, usage, word

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("end_turn", "stop_sequence", "tool_use", "pause_turn"), "stop"),
    **dict.fromkeys(("max_tokens", "model_context_window_exceeded"), "length"),
    "refusal": "content_filter",
}
"""The finish reason for each of Anthropic's values of `stop_reason`. Other hosts that speak this
format have words of their own; see finish_reasons.py."""


def read_whole(body: bytes, batch: Batch, *, adds: bool = False) -> None:
    """Append the events of a JSON body. Raises UpstreamError if it isn't a completion."""
    response = AnthropicResponse()
    message = lenient_json.decode(body, MESSAGE, response.pairs)
    if message.content is None or message.error:
        refuse_error(body, STATUSES)
        raise garbage("The upstream's response contains no content.", body)
    response.message_start(Chunk(message=message), batch)
    if adds:
        append_added(unknown(decode_object(body), MESSAGE_FIELDS), batch)
    response.append_text(
        "".join(block.text or "" for block in message.content if block.type == "text"), batch
    )
    change = Change(stop_reason=message.stop_reason)
    response.message_delta(Chunk(delta=change, usage=message.usage), batch)
    response.message_stop(Chunk(), batch)


class AnthropicResponse:
    """The state of one response while it is decoded."""

    __slots__ = ("adds", "pairs", "reason", "text", "tokens")

    def __init__(self, *, adds: bool = False) -> None:
        self.adds = adds
        """True if fields that Sluice doesn't know are passed on."""
        self.reason: FinishReason | None = None
        self.tokens = Tokens()
        self.pairs = SplitPairs()
        self.text = False
        """True if there is text or reasoning."""

    def read(self, frame: sse.Frame, batch: Batch) -> bool:
        """Append the events of a frame. Return True if it was the last one.

        Raises:
            UpstreamError: The frame reports an error or is malformed. The text beside an error has
                been appended.
        """
        if frame.event not in KNOWN:
            return False
        if frame.event == "error":
            raise failure(frame.data, STATUSES)
        chunk = lenient_json.decode(frame.data, CHUNK, self.pairs)
        kind = chunk.type or frame.event
        if kind == "content_block_delta":
            if (delta := chunk.delta) and delta.text and delta.type == "text_delta":
                if self.pairs.possible:
                    self.append_text(delta.text, batch)
                else:
                    self.text = True
                    batch.append(Delta(0, delta.text))
            else:
                self.append_thought(delta.thinking if delta else None, batch)
            if not chunk.error:
                return False
        if kind == "error" or chunk.error:
            self.append_usage(chunk, batch)
            raise failure(frame.data, STATUSES)
        if step := STEPS.get(kind):
            step(self, chunk, batch)
            self.append_fields(frame.data, batch)
        elif chunk.type is None:
            refuse_error(frame.data, STATUSES)
        return kind == "message_stop"

    def append_fields(self, data: bytes, batch: Batch) -> None:
        """Append the fields of an event that Sluice doesn't know: the message's and its end's."""
        event = decode_object(data) if self.adds else {}
        append_added(unknown(event.get("message"), MESSAGE_FIELDS), batch)
        if event.get("type") == "message_delta":
            fields = unknown(event, CHUNK_FIELDS) | unknown(event.get("delta"), MESSAGE_FIELDS)
            append_added(fields, batch)

    def append_text(self, text: str, batch: Batch) -> None:
        if self.pairs.possible:
            text = self.pairs.join(0, text)
        if text:
            self.text = True
            batch.append(Delta(0, text))

    def append_thought(self, text: str | None, batch: Batch) -> None:
        if text:
            self.text = True
            batch.append(Thought(utf8_size(text)))

    def message_start(self, chunk: Chunk, batch: Batch) -> None:
        message = chunk.message or Message()
        if message.error:
            raise failure(msgspec.json.encode({"error": message.error}), STATUSES)
        self.tokens = message.usage or Tokens()
        # Some hosts send 0 until they know the number. No prompt has 0 tokens.
        tier, speed = word(self.tokens.service_tier), word(self.tokens.speed)
        batch.append(Started(message.model or None, input_of(self.tokens) or None, tier, speed))
        found = usage_of(self.tokens)
        if found and (found.cache_read_tokens or found.cache_write_tokens):
            # Report cached tokens now, so that a stopped stream is billed at their prices too.
            batch.append(Used(msgspec.structs.replace(found, output_tokens=0, source="estimate")))

    def content_block_start(self, chunk: Chunk, batch: Batch) -> None:
        """Append the text of a new block. Anthropic sends none here, but other hosts do."""
        if (block := chunk.content_block) and block.text and block.type == "text":
            self.append_text(block.text, batch)
        elif block:
            self.append_thought(block.thinking, batch)

    def message_delta(self, chunk: Chunk, batch: Batch) -> None:
        """Append the usage so far, and the finish. More text may follow it.

        Raises:
            UpstreamError: The stop reason or the delta reports a failure.
        """
        self.append_usage(chunk, batch)
        if (delta := chunk.delta) and delta.error:
            raise reported({"error": delta.error})
        if delta and delta.stop_reason:
            self.finish(meaning_of(delta.stop_reason, REASONS), batch)

    def finish(self, reason: FinishReason | None, batch: Batch) -> None:
        if reason is not None:
            self.reason = reason
            self.pairs.flush(batch)
            batch.append(Finished(0, reason))

    def append_usage(self, chunk: Chunk, batch: Batch) -> None:
        """Append the usage so far, if the event has counts. Unchanged counts may be missing."""
        if chunk.usage:
            self.pairs.flush(batch)  # so that no text follows the usage
            self.tokens = merged(self.tokens, chunk.usage)
            if found := usage_of(self.tokens):
                batch.append(Used(believable(found, text=self.text)))

    def message_stop(self, chunk: Chunk, batch: Batch) -> None:  # noqa: ARG002
        if self.reason is None:
            raise UpstreamError("The upstream sent no stop reason.")
        self.pairs.flush(batch)


STEPS: Final[dict[str, Callable[[AnthropicResponse, Chunk, Batch], None]]] = {
    "message_start": AnthropicResponse.message_start,
    "content_block_start": AnthropicResponse.content_block_start,
    "message_delta": AnthropicResponse.message_delta,
    "message_stop": AnthropicResponse.message_stop,
}
KNOWN: Final = frozenset({"message", "content_block_delta", "error", *STEPS})
"""The names of the events to decode. A server-sent event without a name is a "message"."""


def merged(before: Tokens, after: Tokens) -> Tokens:
    """Return the later counts, with the earlier count where the later event has none.

    The input never decreases, so a later 0 says nothing about it. Some hosts send such zeros in
    message_delta. The output may decrease to 0, if the answer is refused.
    """
    made, details = after.output_tokens, after.output_tokens_details
    return Tokens(
        input_tokens=after.input_tokens or before.input_tokens,
        cache_read_input_tokens=after.cache_read_input_tokens or before.cache_read_input_tokens,
        cache_creation_input_tokens=(
            after.cache_creation_input_tokens or before.cache_creation_input_tokens
        ),
        output_tokens=before.output_tokens if made is None else made,
        output_tokens_details=before.output_tokens_details if details is None else details,
        cache_creation=after.cache_creation if cached_by(after) else before.cache_creation,
        server_tool_use=after.server_tool_use or before.server_tool_use,
        service_tier=after.service_tier or before.service_tier,
        speed=after.speed or before.speed,
    )


def cached_by(tokens: Tokens) -> tuple[int, int] | None:
    """Return the tokens written to the cache for 5 minutes and for 1 hour; None if unknown."""
    parts = tokens.cache_creation or CacheCreation()
    found = (parts.ephemeral_5m_input_tokens or 0, parts.ephemeral_1h_input_tokens or 0)
    return found if any(found) else None


def written_of(tokens: Tokens) -> int:
    """Return the number of tokens written to the cache. Some hosts send only its parts."""
    return tokens.cache_creation_input_tokens or sum(cached_by(tokens) or ())


def input_of(tokens: Tokens) -> int:
    """Return the number of all input tokens, cached or not."""
    read, written = tokens.cache_read_input_tokens, written_of(tokens)
    return (tokens.input_tokens or 0) + (read or 0) + written


def usage_of(tokens: Tokens) -> Usage | None:
    """Return the usage, or None if all counts are zero or missing."""
    details = tokens.output_tokens_details or OutputDetails()
    return usage(
        input_of(tokens),
        tokens.output_tokens or 0,
        read=tokens.cache_read_input_tokens or 0,
        written=written_of(tokens),
        written_1h=(cached_by(tokens) or (0, 0))[1],
        reasoning=details.thinking_tokens or 0,
        searches=(tokens.server_tool_use or ServerTools()).web_search_requests or 0,
        tier=word(tokens.service_tier),
        speed=word(tokens.speed),
    )
