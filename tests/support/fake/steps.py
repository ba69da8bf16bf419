"""What tests say to the fake provider, a script of steps, and what they hear from it: the requests
that it saw.

Rules that hold here: values only, which travel between the test's process and the fake's; all times
are time.monotonic(), which is one clock for all processes on Linux.
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
    """One thing that a script does. seconds: how long, or how long between. usage: the tokens,
    prompt and completion, that the data reports."""

    kind: str
    data: bytes = b""
    seconds: float = 0.0
    name: str = ""
    usage: tuple[int, int] | None = None


def send(data: bytes, usage: tuple[int, int] | None = None) -> Step:
    return Step("send", data, usage=usage)


def drip(data: bytes, every: float) -> Step:
    """Send byte by byte."""
    return Step("drip", data, every)


def repeat(data: bytes, every: float = 0.0) -> Step:
    """Send the same again and again, until the peer closes."""
    return Step("repeat", data, every)


def sleep(seconds: float) -> Step:
    return Step("sleep", seconds=seconds)


def wait_closed(timeout: float) -> Step:
    """Wait for the peer to close, which ends the script; else go on after the timeout."""
    return Step("sleep", seconds=timeout)


def hold() -> Step:
    """Never go on."""
    return Step("sleep", seconds=LONGER_THAN_ANY_TEST_S)


def gate(name: str) -> Step:
    """Go on when the test calls `fake.open(name)`."""
    return Step("gate", name=name)


def close() -> Step:
    """Close with a FIN."""
    return Step("close")


def reset() -> Step:
    """Close with a RST."""
    return Step("reset")


# Answers, which are lists of steps


def head(status: int = 200, headers: Mapping[str, str] | None = None) -> Step:
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return send("\r\n".join([*lines, "", ""]).encode("latin-1"))


def half_headers() -> list[Step]:
    """An answer that stops within its headers."""
    return [send(b"HTTP/1.1 200 OK\r\nContent-Ty"), hold()]


def answer(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> list[Step]:
    """A whole answer; content: bytes as they are, anything else as JSON."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    base = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    return [head(status, base | dict(headers or {})), send(data, reported(content))]


def error(
    status: int, content: object = None, headers: Mapping[str, str] | None = None
) -> list[Step]:
    """An error answer, in OpenAI's shape unless content is given."""
    if content is None:
        content = {"error": {"message": f"fake {status}", "type": "fake", "code": "fake"}}
    return answer(content, status, headers)


def event(frame: object, *, chunked: bool = True) -> Step:
    """One SSE frame. bytes: as they are; str: the data line's text; anything else: its JSON."""
    usage = reported(frame)
    if not isinstance(frame, bytes):
        text = frame if isinstance(frame, str) else json.dumps(frame, separators=(",", ":"))
        frame = f"data: {text}\n\n".encode()
    return send(b"%x\r\n%s\r\n" % (len(frame), frame) if chunked else frame, usage)


def reported(content: object) -> tuple[int, int] | None:
    """The tokens that a JSON in OpenAI's shape reports, prompt and completion."""
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
    """A stream. interval: seconds between frames. done: with [DONE]. chunked: else the end of the
    connection is its end. complete: with the last chunk; without it more steps may follow."""
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
    """A stream's frames, legacy text_completion or chat.completion.chunk. finish None: no last
    chunk with a finish_reason. usage: (prompt, completion) tokens, in a chunk of its own."""
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
    """A whole answer's JSON, legacy or chat."""
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


# What the fake saw


@dataclass
class Request:
    """closed_at, closed_by: the end of the connection, noted on the last request that it carried.
    outcome: aborted when the peer closed before the script's end. usage: the tokens, prompt and
    completion, that were reported to it last."""

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
        """What a completion or a chat of one message asks; empty where it is neither."""
        try:
            asked = self.json
            return str(asked["messages"][0]["content"] if "messages" in asked else asked["prompt"])
        except (ValueError, LookupError, TypeError):
            return ""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Counts(NamedTuple):
    """connections: accepted so far. open: of these, now. The others count requests."""

    connections: int
    open: int
    received: int
    active: int
    finished: int
    aborted: int
    closed: int
