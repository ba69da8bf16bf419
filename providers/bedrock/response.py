"""What Bedrock's Converse answers, turned into events.

Rules that hold here: pure; a stream's events and a whole answer end in the same few methods. An
answer is whole when messageStop came; the metadata that should follow it holds the usage, which is
estimated where it is missing: the text is all there. Reasoning and tool use are not text. An error
is known by its type's name, wherever that stands: in a header, in __type, in a frame.

Source: Amazon Bedrock API reference, ConverseResponse, ConverseStreamOutput, TokenUsage and "Common
errors"; the user guide's "Prompt caching" (inputTokens leaves out what the cache gave or took;
read 2026-11).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from completion import Batch, Delta, Finished, FinishReason, Started, Usage, Used
from errors import UpstreamError
from providers.decoding import lenient_json
from providers.decoding.event_stream import BinaryFrame
from providers.decoding.lenient_json import NOT_JSON, Count, garbage

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("max_tokens", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("guardrail_intervened", "content_filtered"), "content_filter"),
}
"""A stopReason; any other (end_turn, stop_sequence, tool_use, a new one) means that the model came
to an end by itself."""

FAILURES: Final = frozenset(("malformed_model_output", "malformed_tool_use"))
"""Ends that were none."""

STATUSES: Final = {
    **dict.fromkeys(("validationexception", "serializationexception"), 400),
    **dict.fromkeys(
        (
            *("accessdeniedexception", "unrecognizedclientexception", "invalidsignatureexception"),
            *("expiredtokenexception", "invalidclienttokenid", "missingauthenticationtoken"),
            *("missingauthenticationtokenexception", "incompletesignatureexception"),
            *("incompletesignature", "notauthorized", "optinrequired", "requestexpired"),
        ),
        403,
    ),
    **dict.fromkeys(("resourcenotfoundexception", "unknownoperationexception"), 404),
    "modeltimeoutexception": 408,
    **dict.fromkeys(("modelerrorexception", "modelstreamerrorexception"), 424),
    **dict.fromkeys(
        ("throttlingexception", "servicequotaexceededexception", "modelnotreadyexception"), 429
    ),
    **dict.fromkeys(("internalserverexception", "internalfailure"), 500),
    **dict.fromkeys(("serviceunavailableexception", "serviceunavailable"), 503),
}
"""The HTTP status that a type of error (in lower case) stands for, whatever it came with."""


class Words(msgspec.Struct):
    """A piece of text, in a delta or a block."""

    text: str | None = None


class Cited(msgspec.Struct):
    content: list[Words] | None = None


class Block(msgspec.Struct, rename="camel"):
    text: str | None = None
    citations_content: Cited | None = None


class Message(msgspec.Struct):
    content: list[Block] | None = None


class Output(msgspec.Struct):
    message: Message | None = None


class Tokens(msgspec.Struct, rename="camel"):
    """`usage`. The three kinds of input don't overlap."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_write_input_tokens: Count | None = None


class Whole(msgspec.Struct, rename="camel"):
    output: Output | None = None
    stop_reason: str | None = None
    usage: Tokens | None = None


class BlockDelta(msgspec.Struct):
    delta: Words | None = None


class Stop(msgspec.Struct, rename="camel"):
    stop_reason: str | None = None


class Metadata(msgspec.Struct):
    usage: Tokens | None = None


_whole = msgspec.json.Decoder(Whole)
_delta = msgspec.json.Decoder(BlockDelta)
_stop = msgspec.json.Decoder(Stop)
_metadata = msgspec.json.Decoder(Metadata)

EVENTS: Final = frozenset(
    (
        *("messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop"),
        *("messageStop", "metadata"),
    )
)


class Answer:
    """One answer, as far as it has come. Converse gives one choice."""

    __slots__ = ("ended", "finished", "started")

    def __init__(self) -> None:
        self.started = False
        self.finished = False
        self.ended = False
        """Nothing more is to be expected."""

    def read(self, frame: BinaryFrame, batch: Batch) -> None:
        """Append a frame's events. Raises UpstreamError for an exception, an error, an end that
        was none, and a payload that is no JSON object."""
        headers = frame.headers
        kind = headers.get(":message-type")
        if kind == "exception":
            raise reported(_value(frame.payload), headers.get(":exception-type"))
        if kind == "error":
            text = headers.get(":error-message")
            raise reported({"message": text}, headers.get(":error-code"))
        event = headers.get(":event-type")
        if event not in EVENTS:
            return
        self.start(batch)
        if event == "contentBlockDelta":
            delta = lenient_json.decode(frame.payload, _delta).delta
            if delta and delta.text and not self.finished:
                batch.append(Delta(0, delta.text))
        elif event == "messageStop":
            self.finish(lenient_json.decode(frame.payload, _stop).stop_reason, batch)
        elif event == "metadata":
            self.use(lenient_json.decode(frame.payload, _metadata).usage, batch)
            self.ended = self.finished

    def read_whole(self, body: bytes, batch: Batch) -> None:
        """Append the events of a whole answer. Raises UpstreamError likewise."""
        answer = lenient_json.decode(body, _whole)
        if answer.output is None or answer.stop_reason is None:
            refuse_error(body)
            raise garbage("The upstream's answer holds no output.", body)
        self.start(batch)
        blocks = (answer.output.message and answer.output.message.content) or ()
        if text := "".join(map(_text, blocks)):
            batch.append(Delta(0, text))
        self.use(answer.usage, batch)
        self.finish(answer.stop_reason, batch)

    def start(self, batch: Batch) -> None:
        if not self.started:
            self.started = True
            batch.append(Started())

    def finish(self, word: str | None, batch: Batch) -> None:
        if word in FAILURES:
            raise UpstreamError("The upstream gave up in the middle.", upstream_code=word)
        if not self.finished:
            self.finished = True
            batch.append(Finished(0, REASONS.get(word or "", "stop")))

    def use(self, tokens: Tokens | None, batch: Batch) -> None:
        if tokens and (usage := usage_of(tokens)):
            batch.append(Used(usage))

    def break_off(self) -> None:
        """The body ended: all right only after messageStop."""
        if not self.finished:
            raise UpstreamError("The upstream's answer ended before its end.")


def usage_of(tokens: Tokens) -> Usage | None:
    """None where it tells nothing."""
    read = tokens.cache_read_input_tokens or 0
    written = tokens.cache_write_input_tokens or 0
    given = (tokens.input_tokens or 0) + read + written
    made = tokens.output_tokens or 0
    if not given and not made:
        return None
    return Usage(
        input_tokens=given,
        output_tokens=made,
        cache_read_tokens=read,
        cache_write_tokens=written,
    )


def reported(value: Any, kind: object) -> UpstreamError:
    """The error that came instead of an answer."""
    return failure("The upstream reported an error instead of an answer.", value, kind)


def failure(message: str, value: Any, kind: object, status: int | None = None) -> UpstreamError:
    """An error in our words with Amazon's. kind: its type, with a namespace before a # and a
    place after a colon, or neither; status: HTTP's, where it came with one."""
    body = value if isinstance(value, dict) else {}
    name = kind if isinstance(kind, str) and kind else _first(body, "__type", "code")
    name = name and name.partition(":")[0].rpartition("#")[2]
    original = body.get("originalStatusCode")
    if isinstance(original, int) and 400 <= original < 600:
        status = original
    else:
        status = STATUSES.get((name or "").lower(), status)
    return UpstreamError(
        message,
        upstream_status=status,
        upstream_code=name or None,
        upstream_message=_first(body, "message", "Message", "originalMessage"),
    )


def refuse_error(body: bytes) -> None:
    """Raise the error in an object that is no answer."""
    value = _value(body)
    if isinstance(value, dict) and isinstance(value.get("Output"), dict):
        value = value["Output"]  # what an unknown path gives
    if _first(value, "__type", "message", "Message"):
        raise reported(value, None)


def _first(value: Any, *names: str) -> str | None:
    """The first of some fields that is a text and not empty."""
    found = (value.get(name) for name in names) if isinstance(value, dict) else ()
    return next((text for text in found if isinstance(text, str) and text), None)


def _value(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except NOT_JSON:
        return None


def _text(block: Block) -> str:
    """A block's text; one with citations has it in pieces."""
    cited = (block.citations_content and block.citations_content.content) or ()
    return (block.text or "") + "".join([words.text or "" for words in cited])
