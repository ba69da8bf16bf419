"""The vocabulary of the fake provider: the steps of scripts, and the recorded requests.

- This module has only values, which are sent between the processes of the test and the fake.
- All times are time.monotonic(), which is one clock for all processes on Linux.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

LONGER_THAN_ANY_TEST_S = 3600.0

Fault: TypeAlias = Literal["reset", "mute"]
By: TypeAlias = Literal["peer", "us"]
Outcome: TypeAlias = Literal["active", "finished", "aborted"]


class Step(NamedTuple):
    kind: str
    data: bytes = b""
    seconds: float = 0.0
    """The duration, or the interval between two sends."""
    name: str = ""
    usage: tuple[int, int] | None = None
    """The prompt and completion tokens that the data reports."""


def send(data: bytes, usage: tuple[int, int] | None = None) -> Step:
    return Step("send", data, usage=usage)


def drip(data: bytes, every: float) -> Step:
    """Send byte by byte, `every` seconds."""
    return Step("drip", data, every)


def repeat(data: bytes, every: float = 0.0) -> Step:
    """Send the data repeatedly until the peer closes the connection."""
    return Step("repeat", data, every)


def sleep(seconds: float) -> Step:
    return Step("sleep", seconds=seconds)


def wait_closed(timeout: float) -> Step:
    """Wait until the peer closes, which ends the script. Continue after the timeout."""
    return Step("sleep", seconds=timeout)


def hold() -> Step:
    return Step("sleep", seconds=LONGER_THAN_ANY_TEST_S)


def gate(name: str) -> Step:
    """Wait until the test calls `fake.open(name)`."""
    return Step("gate", name=name)


def close() -> Step:
    """Close with a FIN."""
    return Step("close")


def reset() -> Step:
    """Close with a RST."""
    return Step("reset")


# Responses, which are lists of steps


def head(status: int = 200, headers: Mapping[str, str] | None = None) -> Step:
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return send("\r\n".join([*lines, "", ""]).encode("latin-1"))


def half_headers() -> list[Step]:
    """Return a response that stalls in the middle of its headers."""
    return [send(b"HTTP/1.1 200 OK\r\nContent-Ty"), hold()]


def answer(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> list[Step]:
    """Return a complete response. Content that isn't bytes is sent as JSON."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    base = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    return [head(status, base | dict(headers or {})), send(data, reported(content))]


def error(
    status: int, content: object = None, headers: Mapping[str, str] | None = None
) -> list[Step]:
    """Return an error response. The default content is an error in OpenAI's shape."""
    if content is None:
        content = {"error": {"message": f"fake {status}", "type": "fake", "code": "fake"}}
    return answer(content, status, headers)


def event(frame: object, *, chunked: bool = True) -> Step:
    """Return a step that sends an SSE frame.

    Args:
        frame: The whole frame as bytes, the text of its data line, or a value for JSON.
        chunked: True to send the frame as an HTTP chunk.
    """
    usage = reported(frame)
    if not isinstance(frame, bytes):
        text = frame if isinstance(frame, str) else json.dumps(frame, separators=(",", ":"))
        frame = f"data: {text}\n\n".encode()
    return send(b"%x\r\n%s\r\n" % (len(frame), frame) if chunked else frame, usage)


def reported(content: object) -> tuple[int, int] | None:
    """Return the prompt and completion tokens that JSON in OpenAI's shape reports."""
    usage = content.get("usage") if isinstance(content, dict) else None
    return usage and (usage["prompt_tokens"], usage["completion_tokens"])


def last_chunk() -> Step:
    return send(b"0\r\n\r\n")


def sse(
    frames: Iterable[object],
    *,
    interval: float = 0.0,
    done: bool = True,
    chunked: bool = True,
    complete: bool = True,
    headers: Mapping[str, str] | None = None,
) -> list[Step]:
    """Return the steps of a stream.

    Args:
        interval: The seconds between two frames.
        done: True to send [DONE].
        chunked: True for chunked encoding. False if the connection's end is the stream's end.
        complete: True to send the last HTTP chunk. False if more steps are to follow.
    """
    base = {"Content-Type": "text/event-stream"}
    base |= {"Transfer-Encoding": "chunked"} if chunked else {"Connection": "close"}
    steps = [head(200, base | dict(headers or {}))]
    for number, frame in enumerate(frames):
        if interval and number:
            steps.append(sleep(interval))
        steps.append(event(frame, chunked=chunked))
    if done:
        steps.append(event("[DONE]", chunked=chunked))
    return [*steps, last_chunk()] if chunked and complete else steps


def chunks(
    texts: Iterable[str],
    *,
    chat: bool = False,
    finish: str | None = "stop",
    usage: tuple[int, int] | None = None,
) -> list[dict[str, Any]]:
    """Return the frames of a stream.

    Args:
        chat: True for chat.completion.chunk, False for the legacy text_completion.
        finish: The finish_reason of the last chunk. None to leave this chunk out.
        usage: The prompt and completion tokens, which are sent in a separate chunk.
    """
    kind = "chat.completion.chunk" if chat else "text_completion"
    parts = [_choice({"delta": {"content": t}} if chat else {"text": t}, None) for t in texts]
    if finish is not None:
        parts.append(_choice({"delta": {}} if chat else {"text": ""}, finish))
    made = [_object(kind, [part], None) for part in parts]
    return [*made, _object(kind, [], usage)] if usage is not None else made


def body(
    text: str,
    *,
    chat: bool = False,
    finish: str = "stop",
    usage: tuple[int, int] | None = (3, 5),
) -> dict[str, Any]:
    """Return the JSON of a complete response, legacy or chat."""
    part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    kind = "chat.completion" if chat else "text_completion"
    return _object(kind, [_choice(part, finish)], usage)


def _choice(part: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, **part, "logprobs": None, "finish_reason": finish}


def _object(kind: str, choices: list[Any], usage: tuple[int, int] | None) -> dict[str, Any]:
    made = {"id": "cmpl-fake", "object": kind, "created": 1760000000, "model": "fake-1"}
    counted: dict[str, Any] = {}
    if usage is not None:
        names = ("prompt_tokens", "completion_tokens", "total_tokens")
        counted = {"usage": dict(zip(names, (*usage, sum(usage)), strict=True))}
    return {**made, "choices": choices, **counted}


# Records of the fake provider


@dataclass
class Request:
    """A recorded request.

    Attributes:
        closed_at: The end of the connection. Only the connection's last request has it.
        closed_by: The side that closed the connection. Only the connection's last request has it.
        outcome: "aborted" if the peer closed the connection before the end of the script.
        usage: The prompt and completion tokens that the fake last reported in the response.
    """

    connection: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    received_at: float
    first_byte_at: float | None = None
    finished_at: float | None = None
    closed_at: float | None = None
    closed_by: By | None = None
    outcome: Outcome = "active"
    bytes_sent: int = 0
    usage: tuple[int, int] | None = None

    @property
    def prompt(self) -> str:
        """The prompt of a completion, or the message of a chat; "" for any other request."""
        try:
            asked = self.json
            return str(asked["messages"][0]["content"] if "messages" in asked else asked["prompt"])
        except (ValueError, LookupError, TypeError):
            return ""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Counts(NamedTuple):
    connections: int
    """All accepted connections."""
    open: int
    received: int
    """All requests. The other fields also count requests, by outcome."""
    active: int
    finished: int
    aborted: int
    closed: int
