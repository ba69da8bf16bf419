"""What Cohere's chat API v2 answers, turned into events.

Rules that hold here: pure. Thinking, tool plans, tool calls and citations are not text, though
their tokens count as output. An answer is whole when message-end came. Events and fields that we
don't know mean nothing to us. Both modes end in the same step, so that they can't drift apart.

Source: Cohere API reference v2, "Chat" and "Chat with Streaming", and "How does Cohere's pricing
work?" (read 2026-11).
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from completion import Batch, Delta, Finished, FinishReason, Started, Usage, Used
from errors import UpstreamError
from providers.decoding import lenient_json, sse
from providers.decoding.error_bodies import broken_off, decode_error, failure, refuse_error
from providers.decoding.lenient_json import garbage

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("COMPLETE", "STOP_SEQUENCE", "TOOL_CALL"), "stop"),
    **dict.fromkeys(("MAX_TOKENS", "ERROR_LIMIT"), "length"),
    "ERROR_TOXIC": "content_filter",
}
"""`finish_reason`; ERROR_LIMIT and ERROR_TOXIC are v1's. One that is new to us means that the model
came to an end by itself, stop, unless an error stands beside it."""

FAILURES: Final[dict[str, int | None]] = {"ERROR": 500, "TIMEOUT": 504, "USER_CANCEL": None}
"""Words for an end that was none, and the HTTP status that they stand for."""

DONE: Final = b"[DONE]"
TEXT: Final = frozenset({"content-delta", "content-start"})
KNOWN: Final = TEXT | {"message", "message-start", "message-end", "error"}
"""Names of events to look into; "message" is what server-sent events without a name have."""

Amount = Annotated[float, msgspec.Meta(ge=0, le=1 << 53)]
"""A number of tokens, which may be written as 34.0; what can't be one is junk."""


class Tokens(msgspec.Struct):
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


class Words(msgspec.Struct):
    """`message`. In content-start and content-delta, the content is one block."""

    content: Content | list[Content] | str | None = None


class Change(msgspec.Struct):
    """`delta`."""

    message: Words | None = None
    finish_reason: str | None = None
    usage: Counts | None = None
    error: Any = None


class Chunk(msgspec.Struct):
    """An event of a stream, or a whole answer. A message that is a text is an error's."""

    type: str | None = None
    delta: Change | None = None
    message: Words | str | None = None
    finish_reason: str | None = None
    usage: Counts | None = None
    error: Any = None


_CHUNK: Final = msgspec.json.Decoder(Chunk)


def read(frame: sse.Frame, batch: Batch) -> bool:
    """Append what a frame of the stream brings; whether it was the last.

    Raises UpstreamError for an error that it holds, and for what is not the format.
    """
    if frame.event not in KNOWN:
        return False
    if frame.event == "error":
        raise failure(frame.data, {})
    if frame.data.lstrip().startswith(DONE):  # follows message-end, if it comes
        raise broken_off()
    chunk = lenient_json.decode(frame.data, _CHUNK)
    kind = chunk.type or frame.event
    if kind in TEXT:
        words = chunk.delta and chunk.delta.message
        if words and (text := text_of(words)):
            batch.append(Delta(0, text))
    elif kind == "message-start":
        batch.append(Started())
    elif kind == "message-end":
        end(chunk.delta or Change(), batch)
        return True
    elif kind == "error" or chunk.error:
        raise failure(frame.data, {})
    elif chunk.type is None:
        refuse_error(frame.data, {})
    return False


def whole(body: bytes) -> Batch:
    """The events of a whole answer. Raises UpstreamError for an error, and for what is none."""
    chunk = lenient_json.decode(body, _CHUNK)
    if not isinstance(chunk.message, Words) or chunk.error:
        refuse_error(body, {})
        raise garbage("The upstream's answer holds no message.", body)
    batch: Batch = [Started()]
    if text := text_of(chunk.message):
        batch.append(Delta(0, text))
    end(Change(finish_reason=chunk.finish_reason, usage=chunk.usage), batch)
    return batch


def text_of(words: Words) -> str:
    content = words.content
    if isinstance(content, Content):
        return (content.text or "") if content.type == "text" else ""
    if isinstance(content, list):
        return "".join(block.text or "" for block in content if block.type == "text")
    return content or ""


def end(change: Change, batch: Batch) -> None:
    """The answer's last words: what it used, and why it ended.

    Raises UpstreamError for an end that was none; what was used is in the batch by then.
    """
    if change.usage and (usage := usage_of(change.usage)):
        batch.append(Used(usage))
    word = (change.finish_reason or "").upper()
    if word in FAILURES or (change.error and word not in REASONS):
        raise UpstreamError(
            "The upstream gave up in the middle.",
            upstream_status=FAILURES.get(word),
            upstream_code=word or None,
            upstream_message=decode_error(change.error).message,
        )
    batch.append(Finished(0, REASONS.get(word, "stop")))


def usage_of(counts: Counts) -> Usage | None:
    """The tokens that are billed: `tokens` also has those of prompts that Cohere puts around ours,
    for which nobody pays. None where nothing is told."""
    billed, all_of_them = counts.billed_units or Tokens(), counts.tokens or Tokens()
    given = billed.input_tokens if billed.input_tokens is not None else all_of_them.input_tokens
    made = billed.output_tokens if billed.output_tokens is not None else all_of_them.output_tokens
    if given is None and made is None:
        return None
    given = given or 0
    return Usage(
        input_tokens=int(given),
        output_tokens=int(made or 0),
        # Counted among all tokens: how many of these are billed ones isn't told.
        cache_read_tokens=int(min(counts.cached_tokens or 0, given)),
    )
