"""What Anthropic's Messages API answers, turned into events.

Rules that hold here: pure. Only text blocks are text: thinking, tools and citations are not, though
their tokens count as output. An answer is whole when message_stop came. Events and fields that we
don't know, pings among them, mean nothing to us. Both modes take the same steps, so that they can't
drift apart.

Source: Anthropic API reference, "Messages", "Streaming", "Handling stop reasons" and "Errors"
(read 2026-11).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from completion import Batch, Delta, Finished, FinishReason, Started, Usage, Used
from errors import UpstreamError
from providers.decoding import lenient_json, sse
from providers.decoding.error_bodies import failure, refuse_error
from providers.decoding.lenient_json import Count, garbage

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("end_turn", "stop_sequence", "tool_use", "pause_turn"), "stop"),
    **dict.fromkeys(("max_tokens", "model_context_window_exceeded"), "length"),
    "refusal": "content_filter",
}
"""`stop_reason`; one that is new to us means that the model came to an end by itself: stop."""

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
"""The HTTP status that an error has by its type when it comes in a stream, whose own is 200."""


class OutputDetails(msgspec.Struct):
    thinking_tokens: Count | None = None


class Tokens(msgspec.Struct):
    """`usage`. input_tokens counts what was neither read from the cache nor written to it."""

    input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    output_tokens: Count | None = None
    output_tokens_details: OutputDetails | None = None


class Block(msgspec.Struct):
    type: str | None = None
    text: str | None = None


class Message(msgspec.Struct):
    """A whole answer, and what a stream begins with; or an error."""

    model: str | None = None
    content: list[Block] | None = None
    stop_reason: str | None = None
    usage: Tokens | None = None
    error: Any = None


class Change(msgspec.Struct):
    """`delta`, of a block or of the message."""

    type: str | None = None
    text: str | None = None
    stop_reason: str | None = None


class Chunk(msgspec.Struct):
    """An event of a stream."""

    type: str | None = None
    delta: Change | None = None
    content_block: Block | None = None
    message: Message | None = None
    usage: Tokens | None = None
    error: Any = None


_CHUNK: Final = msgspec.json.Decoder(Chunk)
_MESSAGE: Final = msgspec.json.Decoder(Message)


def whole(body: bytes) -> Batch:
    """The events of a whole answer. Raises UpstreamError for an error, and for what is none."""
    message = lenient_json.decode(body, _MESSAGE)
    if message.content is None or message.error:
        refuse_error(body, STATUSES)
        raise garbage("The upstream's answer holds no content.", body)
    answer = Answer()
    batch: Batch = []
    answer.start(Chunk(message=message), batch)
    text = "".join(block.text or "" for block in message.content if block.type == "text")
    if text:
        batch.append(Delta(0, text))
    answer.change(Chunk(delta=Change(stop_reason=message.stop_reason), usage=message.usage), batch)
    answer.end(Chunk(), batch)
    return batch


class Answer:
    """One answer, as far as it has come."""

    __slots__ = ("reason", "tokens")

    def __init__(self) -> None:
        self.reason: str | None = None
        self.tokens = Tokens()

    def read(self, frame: sse.Frame, batch: Batch) -> bool:
        """Append what a frame of the stream brings; whether it was the last.

        Raises UpstreamError for an error that it holds, and for what is not the format.
        """
        if frame.event not in KNOWN:
            return False
        if frame.event == "error":
            raise failure(frame.data, STATUSES)
        chunk = lenient_json.decode(frame.data, _CHUNK)
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

    def start(self, chunk: Chunk, batch: Batch) -> None:
        message = chunk.message or Message()
        self.tokens = message.usage or Tokens()
        # Those who don't know yet say 0, which no prompt has.
        batch.append(Started(message.model or None, input_of(self.tokens) or None))
        usage = usage_of(self.tokens)
        if usage and (usage.cache_read_tokens or usage.cache_write_tokens):
            # They have prices of their own, also in an answer that is stopped.
            batch.append(Used(msgspec.structs.replace(usage, output_tokens=0, source="estimate")))

    def begin_block(self, chunk: Chunk, batch: Batch) -> None:
        """Text begins empty at Anthropic's own; at other hosts it need not."""
        if (block := chunk.content_block) and block.text and block.type == "text":
            batch.append(Delta(0, block.text))

    def change(self, chunk: Chunk, batch: Batch) -> None:
        """The end is near: why, and the counts so far, those of the input only if they changed."""
        if chunk.delta and chunk.delta.stop_reason:
            self.reason = chunk.delta.stop_reason
        if chunk.usage:
            self.tokens = merged(self.tokens, chunk.usage)
            if usage := usage_of(self.tokens):
                batch.append(Used(usage))

    def end(self, chunk: Chunk, batch: Batch) -> None:  # noqa: ARG002
        if self.reason is None:
            raise UpstreamError("The upstream ended its answer without a reason.")
        batch.append(Finished(0, REASONS.get(self.reason, "stop")))


STEPS: Final[dict[str, Callable[[Answer, Chunk, Batch], None]]] = {
    "message_start": Answer.start,
    "content_block_start": Answer.begin_block,
    "message_delta": Answer.change,
    "message_stop": Answer.end,
}
KNOWN: Final = frozenset({"message", "content_block_delta", "error", *STEPS})
"""Names of events to look into; "message" is what server-sent events without a name have."""


def merged(before: Tokens, after: Tokens) -> Tokens:
    """The counts of two events: each is the whole so far, and may be left out."""
    pairs = zip(msgspec.structs.astuple(before), msgspec.structs.astuple(after), strict=True)
    return Tokens(*(old if new is None else new for old, new in pairs))


def input_of(tokens: Tokens) -> int:
    """All of the input, cached or not."""
    read, written = tokens.cache_read_input_tokens, tokens.cache_creation_input_tokens
    return (tokens.input_tokens or 0) + (read or 0) + (written or 0)


def usage_of(tokens: Tokens) -> Usage | None:
    """None where it tells nothing."""
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
