"""The pieces of a stream in each dialect: its start, reasoning, text, a finish, usage and an end.

Tests combine them into the responses of hosts.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.support import frames


class Pieces(NamedTuple):
    """A dialect's pieces. A piece that the dialect lacks is empty.

    Attributes:
        start: The frames before reasoning and text.
        ping: A sign of life without content.
        thought: Reasoning of 12 bytes.
        first, second: The text "Hello", and the text ", world".
        finish: A finish reason, without text.
        usage: Usage of 7 tokens of input and 5 of output.
        end: The end of the stream.
        error: An error that may be temporary.
        with_text: Text together with a finish reason.
        partial: The first bytes of `second`.
    """

    dialect: str
    start: bytes
    ping: bytes
    thought: bytes
    first: bytes
    second: bytes
    finish: bytes
    usage: bytes
    end: bytes
    error: bytes
    with_text: bytes = b""
    chat: bool = True
    media: str = "text/event-stream"

    @property
    def partial(self) -> bytes:
        return self.second[:12]

    @property
    def whole(self) -> bytes:
        return self.start + self.first + self.second + self.finish + self.usage + self.end


def data(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chat(finish: str | None = None, **delta: Any) -> bytes:
    return data({"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def legacy(text: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish, **more}
    return data({"model": "m", "choices": [choice]})


def named(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + data({"type": kind, **fields})


def block(**delta: Any) -> bytes:
    return named("content_block_delta", index=0, delta=delta)


def gemini(*parts: Any, finish: str | None = None, **more: Any) -> bytes:
    candidate: dict[str, Any] = {"index": 0}
    if parts:
        candidate["content"] = {"parts": list(parts), "role": "model"}
    if finish:
        candidate["finishReason"] = finish
    return data({"candidates": [candidate], "modelVersion": "m", **more})


def cohere(kind: str, **content: Any) -> bytes:
    return named(kind, index=0, delta={"message": {"content": content}})


def converse(**delta: Any) -> bytes:
    return frames.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta})


OPENAI_USAGE = data(
    {
        "model": "m",
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }
)
OPENAI_ERROR = data({"error": {"message": "Overloaded", "code": 503, "type": "server_error"}})
THOUGHT = "Let me see. "
COMMENT = b": ping\n\n"

PIECES = {
    "completions": Pieces(
        dialect="openai",
        start=legacy(""),
        ping=COMMENT,
        thought=legacy("", reasoning=THOUGHT),
        first=legacy("Hello"),
        second=legacy(", world"),
        finish=legacy("", "stop"),
        usage=OPENAI_USAGE,
        end=b"data: [DONE]\n\n",
        error=OPENAI_ERROR,
        with_text=legacy(", world", "stop"),
        chat=False,
    ),
    "chat": Pieces(
        dialect="openai",
        start=chat(role="assistant", content=""),
        ping=COMMENT,
        thought=chat(reasoning_content=THOUGHT),
        first=chat(content="Hello"),
        second=chat(content=", world"),
        finish=chat("stop"),
        usage=OPENAI_USAGE,
        end=b"data: [DONE]\n\n",
        error=OPENAI_ERROR,
        with_text=chat("stop", content=", world"),
    ),
    "anthropic": Pieces(
        dialect="anthropic",
        start=named("message_start", message={"model": "m", "usage": {"input_tokens": 7}})
        + named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        ping=named("ping"),
        thought=block(type="thinking_delta", thinking=THOUGHT),
        first=block(type="text_delta", text="Hello"),
        second=block(type="text_delta", text=", world"),
        finish=named("message_delta", delta={"stop_reason": "end_turn"}),
        usage=named("message_delta", delta={}, usage={"output_tokens": 5}),
        end=named("message_stop"),
        error=named("error", error={"type": "overloaded_error", "message": "Overloaded"}),
    ),
    "google": Pieces(
        dialect="google",
        start=data({"usageMetadata": {"promptTokenCount": 7}, "modelVersion": "m"}),
        ping=COMMENT,
        thought=gemini({"text": THOUGHT, "thought": True}),
        first=gemini({"text": "Hello"}),
        second=gemini({"text": ", world"}),
        finish=gemini(finish="STOP"),
        usage=data({"usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 5}}),
        end=b"",
        error=data({"error": {"code": 503, "status": "UNAVAILABLE", "message": "Overloaded"}}),
        with_text=gemini({"text": ", world"}, finish="STOP"),
    ),
    "cohere": Pieces(
        dialect="cohere",
        start=named("message-start", delta={"message": {"role": "assistant"}}),
        ping=COMMENT,
        thought=cohere("content-delta", thinking=THOUGHT),
        first=cohere("content-delta", text="Hello"),
        second=cohere("content-delta", text=", world"),
        finish=b"",
        usage=b"",
        end=named(
            "message-end",
            delta={
                "finish_reason": "COMPLETE",
                "usage": {"tokens": {"input_tokens": 7, "output_tokens": 5}},
            },
        ),
        error=named("message-end", delta={"finish_reason": "ERROR", "error": "Overloaded"}),
    ),
    "bedrock": Pieces(
        dialect="bedrock",
        start=frames.event("messageStart", {"role": "assistant"}),
        ping=frames.event("contentBlockStop", {"contentBlockIndex": 0}),
        thought=converse(reasoningContent={"text": THOUGHT}),
        first=converse(text="Hello"),
        second=converse(text=", world"),
        finish=frames.event("messageStop", {"stopReason": "end_turn"}),
        usage=frames.event("metadata", {"usage": {"inputTokens": 7, "outputTokens": 5}}),
        end=b"",
        error=frames.exception("serviceUnavailableException", {"message": "Overloaded"}),
        media="application/vnd.amazon.eventstream",
    ),
    "infill": Pieces(
        dialect="infill",
        start=data({"content": "", "model": "m"}),
        ping=COMMENT,
        thought=b"",
        first=data({"content": "Hello"}),
        second=data({"content": ", world"}),
        finish=b"",
        usage=b"",
        end=data({"content": "", "stop": True, "tokens_evaluated": 7, "tokens_predicted": 5}),
        error=data({"error": {"code": 503, "message": "Overloaded", "type": "server_error"}}),
    ),
}
