"""Decoding of responses from Bedrock's Converse and ConverseStream into events.

- The module is pure.
- Streams and whole JSON bodies share a few methods, so that they can't drift apart.
- A stream is complete when messageStop has arrived. Metadata with the usage should follow. If the
  metadata is missing, the text is still complete, and Sluice estimates the usage.
- Reasoning and tool use are not text.

Source: Amazon Bedrock API reference, ConverseResponse and ConverseStreamOutput (read 2026-11).
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
from providers.bedrock.errors import decode_value, refuse_error, reported
from providers.bedrock.schemas import (
    DELTA,
    EVENTS,
    FIELDS,
    METADATA,
    STOP,
    WHOLE,
    Block,
    PieceOrReasoning,
    Tokens,
)
from providers.decoding import lenient_json
from providers.decoding.added_fields import append_added, decode_object, unknown
from providers.decoding.error_bodies import broken_off
from providers.decoding.event_stream import BinaryFrame
from providers.decoding.finish_reasons import meaning_of, word_of
from providers.decoding.lenient_json import garbage
from providers.decoding.surrogates import SplitPairs
from providers.decoding.usage import believable, usage

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("max_tokens", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("guardrail_intervened", "content_filtered"), "content_filter"),
}
"""The finish reason for each of Bedrock's values of stopReason. Other words are in
finish_reasons.py."""

FAILURES: Final = frozenset(("malformed_model_output", "malformed_tool_use"))
"""The values of stopReason that report a failure."""


class BedrockResponse:
    """The state of one response while it is decoded. Converse sends one choice."""

    __slots__ = ("adds", "ended", "filtered", "finished", "pairs", "started", "text")

    def __init__(self, *, adds: bool = False) -> None:
        self.adds = adds
        """True if fields that Sluice doesn't know are passed on."""
        self.started = False
        self.finished = False
        self.filtered = False
        """True if a guardrail replaced the text, which then has no output tokens."""
        self.text = False
        """True if there is text or reasoning."""
        self.pairs = SplitPairs()
        self.ended = False
        """True if no more frames are expected."""

    def read(self, frame: BinaryFrame, batch: Batch) -> None:
        """Append the events of a frame.

        Raises:
            UpstreamError: The frame reports an error or a failure, or its payload isn't a JSON
                object.
        """
        headers = frame.headers
        kind = headers.get(":message-type")
        if kind == "exception":
            raise reported(decode_value(frame.payload), headers.get(":exception-type"))
        if kind == "error":
            text = headers.get(":error-message")
            raise reported({"message": text}, headers.get(":error-code"))
        event = headers.get(":event-type")
        if event not in EVENTS:
            return
        self.start(batch)
        if self.adds and event in ("messageStop", "metadata"):
            append_added(unknown(decode_object(frame.payload), FIELDS), batch)
        if event == "contentBlockDelta":
            self.take(lenient_json.decode(frame.payload, DELTA, self.pairs).delta, batch)
        elif event == "messageStop":
            self.finish(lenient_json.decode(frame.payload, STOP, self.pairs).stop_reason, batch)
        elif event == "metadata":
            self.use(lenient_json.decode(frame.payload, METADATA, self.pairs).usage, batch)
            self.ended = self.finished

    def take(self, delta: PieceOrReasoning | None, batch: Batch) -> None:
        text = delta.text if delta else None
        if text and self.pairs.possible:
            text = self.pairs.join(0, text)
        if text:
            self.text = True
            batch.append(Delta(0, text))
        elif delta and delta.reasoning_content and delta.reasoning_content.text:
            self.text = True
            batch.append(Thought(utf8_size(delta.reasoning_content.text)))

    def read_whole(self, body: bytes, batch: Batch) -> None:
        """Append the events of a JSON body. Raises UpstreamError if it isn't a completion."""
        answer = lenient_json.decode(body, WHOLE, self.pairs)
        if answer.error:
            raise reported(answer.error, None)
        if answer.output is None or answer.stop_reason is None:
            refuse_error(body)
            raise garbage("The upstream's response contains no output.", body)
        self.start(batch)
        if self.adds:
            append_added(unknown(decode_object(body), FIELDS), batch)
        blocks = (answer.output.message and answer.output.message.content) or ()
        text = "".join(map(text_of, blocks))
        if self.pairs.possible:
            text = self.pairs.join(0, text)
        if text:
            self.text = True
            batch.append(Delta(0, text))
        self.filtered = REASONS.get(word_of(answer.stop_reason)) == "content_filter"
        self.use(answer.usage, batch)
        self.finish(answer.stop_reason, batch)

    def start(self, batch: Batch) -> None:
        if not self.started:
            self.started = True
            batch.append(Started())

    def finish(self, word: Any, batch: Batch) -> None:
        """Append the finish. The last one counts, and more text may follow it."""
        reason = meaning_of(word, REASONS, FAILURES) or "stop"
        self.pairs.flush(batch)
        self.finished, self.filtered = True, reason == "content_filter"
        batch.append(Finished(0, reason))

    def use(self, tokens: Tokens | None, batch: Batch) -> None:
        if tokens and (found := usage_of(tokens)):
            batch.append(Used(believable(found, text=self.text and not self.filtered)))

    def break_off(self) -> None:
        """Handle the end of the body. Raises UpstreamError if messageStop hasn't arrived."""
        if not self.finished:
            raise broken_off()


def usage_of(tokens: Tokens) -> Usage | None:
    """Return the usage, or None if all counts are zero or missing."""
    read = tokens.cache_read_input_tokens or 0
    written = tokens.cache_write_input_tokens or 0
    given = (tokens.input_tokens or 0) + read + written
    long = sum(part.input_tokens or 0 for part in tokens.cache_details or () if part.ttl == "1h")
    return usage(given, tokens.output_tokens or 0, read=read, written=written, written_1h=long)


def text_of(block: Block) -> str:
    """Return the text of a block. In a block with citations, the text is in pieces."""
    cited = (block.citations_content and block.citations_content.content) or ()
    return (block.text or "") + "".join([part.text or "" for part in cited])
