"""Decoding of responses from Cohere's chat API v2 into events.

- The module is pure.
- Thinking, tool plans, tool calls and citations are not text, though their tokens count as output.
- A stream is complete when message-end has arrived.
- Unknown events and fields are ignored.
- Streams and whole JSON bodies end in one function, so that they can't drift apart.

Source: Cohere API reference v2, "Chat" and "Chat with Streaming", and "How does Cohere's pricing
work?" (read 2026-11).
"""

from __future__ import annotations

from typing import Final

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
from providers.cohere.schemas import (
    CHUNK,
    DONE,
    KNOWN,
    TEXT,
    Change,
    Content,
    Counts,
    Message,
    Tokens,
)
from providers.decoding import lenient_json, sse
from providers.decoding.error_bodies import broken_off, decode_error, failure, refuse_error
from providers.decoding.lenient_json import garbage

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("COMPLETE", "STOP_SEQUENCE", "TOOL_CALL"), "stop"),
    **dict.fromkeys(("MAX_TOKENS", "ERROR_LIMIT"), "length"),
    "ERROR_TOXIC": "content_filter",
}
"""The finish reason for each `finish_reason`. ERROR_LIMIT and ERROR_TOXIC are from API v1. An
unknown one becomes "stop", unless an error comes with it."""

FAILURES: Final[dict[str, int | None]] = {"ERROR": 500, "TIMEOUT": 504, "USER_CANCEL": None}
"""The values of `finish_reason` that report a failure, with the HTTP status for each."""


def read(frame: sse.Frame, batch: Batch) -> bool:
    """Append the events of a frame. Return True if it was the last one.

    Raises:
        UpstreamError: The frame reports an error or is malformed.
    """
    if frame.event not in KNOWN:
        return False
    if frame.event == "error":
        raise failure(frame.data, {})
    if frame.data.lstrip().startswith(DONE):  # valid only after message-end
        raise broken_off()
    chunk = lenient_json.decode(frame.data, CHUNK)
    kind = chunk.type or frame.event
    if kind in TEXT:
        if message := chunk.delta and chunk.delta.message:
            read_message(message, batch)
    elif kind == "message-start":
        batch.append(Started())
    elif kind == "message-end":
        message_end(chunk.delta or Change(), batch)
        return True
    elif kind == "error" or chunk.error:
        raise failure(frame.data, {})
    elif chunk.type is None:
        refuse_error(frame.data, {})
    return False


def read_whole(body: bytes) -> Batch:
    """Return the events of a JSON body. Raises UpstreamError if it isn't a completion."""
    chunk = lenient_json.decode(body, CHUNK)
    if not isinstance(chunk.message, Message) or chunk.error:
        refuse_error(body, {})
        raise garbage("The upstream's response contains no message.", body)
    batch: Batch = [Started()]
    if text := text_of(chunk.message):
        batch.append(Delta(0, text))
    message_end(Change(finish_reason=chunk.finish_reason, usage=chunk.usage), batch)
    return batch


def read_message(message: Message, batch: Batch) -> None:
    """Append the events of a piece of a message. A tool plan is reasoning."""
    content = message.content
    thinking = (content.thinking if isinstance(content, Content) else None) or message.tool_plan
    if thinking:
        batch.append(Thought(utf8_size(thinking)))
    if text := text_of(message):
        batch.append(Delta(0, text))


def text_of(message: Message) -> str:
    content = message.content
    if isinstance(content, Content):
        return (content.text or "") if content.type == "text" else ""
    if isinstance(content, list):
        return "".join(block.text or "" for block in content if block.type == "text")
    return content or ""


def message_end(change: Change, batch: Batch) -> None:
    """Append the usage and the finish reason.

    Raises:
        UpstreamError: The completion failed. The usage has been appended.
    """
    if change.usage and (usage := usage_of(change.usage)):
        batch.append(Used(usage))
    word = (change.finish_reason or "").upper()
    if word in FAILURES or (change.error and word not in REASONS):
        raise UpstreamError(
            "The upstream reported a failed completion.",
            upstream_status=FAILURES.get(word),
            upstream_code=word or None,
            upstream_message=decode_error(change.error).message,
        )
    batch.append(Finished(0, REASONS.get(word, "stop")))


def usage_of(counts: Counts) -> Usage | None:
    """Return the billed tokens, or None if there are no counts.

    `tokens` is only a fallback, because it also counts the text that Cohere puts around the prompt,
    which isn't billed.
    """
    billed, all_of_them = counts.billed_units or Tokens(), counts.tokens or Tokens()
    given = billed.input_tokens if billed.input_tokens is not None else all_of_them.input_tokens
    made = billed.output_tokens if billed.output_tokens is not None else all_of_them.output_tokens
    if given is None and made is None:
        return None
    given = given or 0
    return Usage(
        input_tokens=int(given),
        output_tokens=int(made or 0),
        # cached_tokens is a part of `tokens`. Cohere doesn't say how many of them are billed.
        cache_read_tokens=int(min(counts.cached_tokens or 0, given)),
    )
