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

from typing import Any, Final

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
    BODY_FIELDS,
    CHUNK,
    DONE,
    KNOWN,
    MESSAGE_FIELDS,
    TEXT,
    Change,
    Chunk,
    Content,
    Counts,
    Message,
    Tokens,
)
from providers.decoding import lenient_json, sse
from providers.decoding.added_fields import append_added, decode_object, unknown
from providers.decoding.error_bodies import broken_off, decode_error, failure, refuse_error
from providers.decoding.finish_reasons import meaning_of, word_of
from providers.decoding.lenient_json import garbage
from providers.decoding.surrogates import SplitPairs
from providers.decoding.usage import believable

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("COMPLETE", "STOP_SEQUENCE", "TOOL_CALL"), "stop"),
    **dict.fromkeys(("MAX_TOKENS", "ERROR_LIMIT"), "length"),
    "ERROR_TOXIC": "content_filter",
}
"""The finish reason for each `finish_reason`. ERROR_LIMIT and ERROR_TOXIC are from API v1. An
unknown one becomes "stop", unless an error comes with it."""

FAILURES: Final[dict[str, int | None]] = {"ERROR": 500, "TIMEOUT": 504, "USER_CANCEL": None}
"""The values of `finish_reason` that report a failure, with the HTTP status for each."""


class CohereResponse:
    """The state of one response while it is decoded."""

    __slots__ = ("adds", "pairs", "text")

    def __init__(self, *, adds: bool = False) -> None:
        self.adds = adds
        """True if fields that Sluice doesn't know are passed on."""
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
            raise failure(frame.data, {})
        if frame.data.lstrip().startswith(DONE):  # valid only after message-end
            raise broken_off()
        chunk = lenient_json.decode(frame.data, CHUNK, self.pairs)
        kind = chunk.type or frame.event
        if kind in TEXT:
            if message := chunk.delta and chunk.delta.message:
                self.take(message, batch)
            if not chunk.error:
                return False
        if kind == "error" or (chunk.error and kind != "message-end"):
            raise failure(frame.data, {})
        return self.step(kind, chunk, frame, batch)

    def take(self, message: Message, batch: Batch) -> None:
        """Append the events of a piece of a message. A tool plan is reasoning."""
        content = message.content
        thinking = content.thinking if isinstance(content, Content) else None
        if thinking := thinking or message.tool_plan:
            self.text = True
            batch.append(Thought(utf8_size(thinking)))
        if text := text_of(message):
            if self.pairs.possible:
                text = self.pairs.join(0, text)
            if text:
                self.text = True
                batch.append(Delta(0, text))

    def step(self, kind: str, chunk: Chunk, frame: sse.Frame, batch: Batch) -> bool:
        """Append the events of a frame without text. Return True if it was the last one."""
        if kind == "message-start":
            batch.append(Started())
        elif kind == "message-end":
            change = chunk.delta or Change()
            change.error = change.error or chunk.error
            if self.adds:
                append_fields(decode_object(frame.data).get("delta"), batch)
            self.message_end(change, batch)
            return True
        elif chunk.type is None:
            refuse_error(frame.data, {})
        return False

    def message_end(self, change: Change, batch: Batch) -> None:
        """Append the usage and the finish reason.

        Raises:
            UpstreamError: The completion failed. The usage has been appended.
        """
        self.pairs.flush(batch)
        if change.usage and (found := usage_of(change.usage, text=self.text)):
            batch.append(Used(found))
        word = word_of(change.finish_reason).upper()
        if word in FAILURES or (change.error and word not in REASONS):
            raise UpstreamError(
                "The upstream reported a failed completion.",
                upstream_status=FAILURES.get(word),
                upstream_code=word or None,
                upstream_message=decode_error(change.error).message,
            )
        reason = REASONS.get(word) or meaning_of(change.finish_reason) or "stop"
        batch.append(Finished(0, reason))


def read_whole(body: bytes, batch: Batch, *, adds: bool = False) -> None:
    """Append the events of a JSON body. Raises UpstreamError if it isn't a completion."""
    response = CohereResponse()
    chunk = lenient_json.decode(body, CHUNK, response.pairs)
    if not isinstance(chunk.message, Message) or chunk.error:
        refuse_error(body, {})
        raise garbage("The upstream's response contains no message.", body)
    batch.append(Started())
    if adds:
        append_fields(decode_object(body), batch)
    text = text_of(chunk.message)
    if response.pairs.possible:
        text = response.pairs.join(0, text)
    if text:
        response.text = True
        batch.append(Delta(0, text))
    response.message_end(Change(finish_reason=chunk.finish_reason, usage=chunk.usage), batch)


def append_fields(body: Any, batch: Batch) -> None:
    """Append the fields of a body, or of its end, and of its message that Sluice doesn't know."""
    if isinstance(body, dict):
        fields = unknown(body.get("message"), MESSAGE_FIELDS) | unknown(body, BODY_FIELDS)
        append_added(fields, batch)


def text_of(message: Message) -> str:
    content = message.content
    if isinstance(content, Content):
        return (content.text or "") if content.type == "text" else ""
    if isinstance(content, list):
        return "".join(block.text or "" for block in content if block.type == "text")
    return content or ""


def usage_of(counts: Counts, *, text: bool = False) -> Usage | None:
    """Return the billed tokens, or None if there are no counts.

    `tokens` is only a fallback, because it also counts the text that Cohere puts around the prompt,
    which isn't billed.

    Args:
        text: True if there is text, so that billed units of 0 and 0 can't be true.
    """
    billed, all_of_them = counts.billed_units or Tokens(), counts.tokens or Tokens()
    if text and not billed.input_tokens and not billed.output_tokens:
        billed = Tokens()
    given = billed.input_tokens if billed.input_tokens is not None else all_of_them.input_tokens
    made = billed.output_tokens if billed.output_tokens is not None else all_of_them.output_tokens
    if given is None and made is None:
        return None
    found = Usage(
        input_tokens=int(given or 0),
        output_tokens=int(made or 0),
        # cached_tokens is a part of `tokens`. Cohere doesn't say how many of them are billed.
        cache_read_tokens=int(min(counts.cached_tokens or 0, given or 0)),
    )
    # Cohere may bill no input. But without output, or with no counts at all, 0 can't be true.
    return believable(found, text=text) if text and not found.output_tokens else found
