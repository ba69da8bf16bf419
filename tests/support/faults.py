"""The table of the fault matrix: the faults of a provider, and their expected outcomes.

- A fault has an outcome for unary calls and another for streams. `expected` turns an outcome into
  what the client and the ledger see, with and without a fallback.
- Outcomes don't depend on the dialect, except for EXCEPTIONS.
- Expectations are plain values. They are never computed by Sluice's code.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from tests.providers.test_dialects import blank_lines
from tests.support import fake as fp
from tests.support import frames
from tests.support.pace import scaled
from tests.support.paths import FIXTURES

RETRIES = 2
LIMIT_S = round(scaled(1), 1)
"""The timeout in seconds of providers whose fault is silence."""
HEALTHY = "healthy"
HEALTHY_TEXT = "From the other one."
Script: TypeAlias = Sequence[fp.Step]
Json: TypeAlias = dict[str, Any]


class Dialect(NamedTuple):
    """A wire format, with examples of its responses.

    Attributes:
        dialect: The name of the dialect.
        stream: A fixture with a stream.
        body: A fixture with a response that has the text of the stream.
        texts_after: The number of the stream's frames up to the end of its first text.
        error: A body that reports a failure of the host with status 200.
        error_frame: A frame that reports a failure in a stream. Empty if it is `error` as an event.
        text: The first text of the stream, and the whole text.
        completions: True if the provider's row has legacy completions.
        ends: A function that returns the offsets at which the frames of a stream end.
        media: The Content-Type of a stream.
        passes: True for chats, which are passed through.
    """

    dialect: str
    stream: str
    body: str
    texts_after: int
    error: Json
    error_frame: bytes = b""
    text: tuple[str, str] = ("Hello", "Hello, world")
    completions: bool = True
    ends: Callable[[bytes], list[int]] = blank_lines
    media: str = "text/event-stream"
    passes: bool = False

    @property
    def streamed(self) -> bytes:
        [path] = (FIXTURES / self.stream).glob("stream.*")
        return path.read_bytes()

    @property
    def whole(self) -> bytes:
        return (FIXTURES / self.body / "body.json").read_bytes()

    def until_start(self) -> bytes:
        """Return the stream up to its first text, or a comment if it begins with text."""
        if self.texts_after == 1:
            return b": ping\n\n"
        return self.streamed[: self.ends(self.streamed)[self.texts_after - 2]]

    def until_text(self) -> tuple[bytes, bytes]:
        """Return the stream up to the end of its first text, and the rest."""
        at = self.ends(self.streamed)[self.texts_after - 1]
        return self.streamed[:at], self.streamed[at:]


def data(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


OPENAI_ERROR = {"error": {"message": "It broke.", "type": "server_error", "code": None}}
ANTHROPIC_ERROR = {"type": "error", "error": {"type": "api_error", "message": "It broke."}}
GOOGLE_ERROR = {"error": {"code": 500, "message": "It broke.", "status": "INTERNAL"}}
COHERE_ERROR = {
    "id": "1",
    "message": {"role": "assistant", "content": []},
    "finish_reason": "ERROR",
}
COHERE_END = {"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "It broke."}}
BEDROCK_ERROR = {"__type": "InternalServerException", "message": "It broke."}
INFILL_ERROR = {"error": {"code": 500, "message": "It broke.", "type": "server_error"}}

DIALECTS = {
    "completions": Dialect("openai", "openai/legacy", "openai/legacy", 1, OPENAI_ERROR),
    "chat": Dialect("openai", "openai/chat", "openai/chat", 2, OPENAI_ERROR, completions=False),
    "passed": Dialect(
        *("openai", "openai/chat", "openai/chat", 2, OPENAI_ERROR), completions=False, passes=True
    ),
    "anthropic": Dialect(
        *("anthropic", "anthropic/plain", "anthropic/plain", 4, ANTHROPIC_ERROR),
        error_frame=b"event: error\n" + data(ANTHROPIC_ERROR),
    ),
    "google": Dialect("google", "google/plain", "google/plain", 1, GOOGLE_ERROR),
    "cohere": Dialect(
        *("cohere", "cohere/plain", "cohere/plain", 3, COHERE_ERROR),
        error_frame=b"event: message-end\n" + data(COHERE_END),
    ),
    "bedrock": Dialect(
        *("bedrock", "bedrock/plain", "bedrock/plain", 2, BEDROCK_ERROR),
        error_frame=frames.exception("internalServerException", {"message": "It broke."}),
        ends=frames.ends,
        media="application/vnd.amazon.eventstream",
    ),
    "infill": Dialect(
        *("infill", "infill/plain", "infill/whole", 1, INFILL_ERROR), text=("c = ", "c = a + b")
    ),
}


class Outcome(Enum):
    FINE = "the first attempt succeeds"
    WELL_AGAIN = "the second attempt succeeds"
    BROKEN = "no text arrives: retry, then use the fallback"
    LATE = "no text arrives in time: use the fallback"
    LIMITED = "the provider requests a long wait: use the fallback"
    WAITED_FOR = "the provider requests a short wait: wait unless there is a fallback"
    BROKE_OFF = "the response breaks off after some text: report an error to the client"
    FELL_SILENT = "the response stalls after some text: report a timeout to the client"


class Expected(NamedTuple):
    """The expected result of a call, for the client and in the ledger.

    Attributes:
        status: The HTTP status.
        code: The error's code in the response or the stream's last frame. None without an error.
        reason: The end_reason of the row.
        tries: The error code of each attempt, in order. None for a success.
        by_fallback: True if the fallback served the last attempt.
    """

    status: int
    code: str | None
    reason: str
    tries: tuple[str | None, ...]
    by_fallback: bool = False


BAD, SLOW, LIMIT = "provider_error", "provider_timeout", "rate_limited"
ALONE = {
    Outcome.FINE: Expected(200, None, "completed", (None,)),
    Outcome.WELL_AGAIN: Expected(200, None, "completed", (BAD, None)),
    Outcome.BROKEN: Expected(502, BAD, "provider_error", (BAD,) * (1 + RETRIES)),
    Outcome.LATE: Expected(504, SLOW, "deadline", (SLOW,)),
    Outcome.LIMITED: Expected(429, LIMIT, "provider_error", (BAD,)),
    Outcome.WAITED_FOR: Expected(200, None, "completed", (BAD, None)),
    Outcome.BROKE_OFF: Expected(200, BAD, "provider_error", (BAD,)),
    Outcome.FELL_SILENT: Expected(200, SLOW, "deadline", (SLOW,)),
}
"""The expected results without a fallback. An attempt that gets a 429 counts as a provider_error;
only the client's response has rate_limited."""


def expected(outcome: Outcome, *, fallback: bool) -> Expected:
    alone = ALONE[outcome]
    if not fallback or (alone.status == 200 and outcome is not Outcome.WAITED_FOR):
        return alone
    tries = alone.tries[:1] if outcome is Outcome.WAITED_FOR else alone.tries
    return Expected(200, None, "completed", (*tries, None), by_fallback=True)


Steps: TypeAlias = Callable[[Dialect, bool], list[Script]]


class Fault(NamedTuple):
    whole: Outcome
    stream: Outcome
    scripts: Steps
    """A function that returns a script for each attempt, by dialect and mode. The last script is
    repeated."""
    quick: bool = False
    """True if the provider's row has short timeouts."""
    refused: bool = False
    """True if nothing listens on the provider's port."""
    started: bool = False
    """True if a stream starts, which may cost something, but shows the client nothing."""
    text: str = ""
    """A text that replaces the text of a unary response."""


# The responses of a provider: a list of scripts for each fault


def fine(d: Dialect, stream: bool) -> list[Script]:
    return [body(d, d.streamed, stream=True) if stream else body(d, d.whole)]


def body(
    d: Dialect, content: bytes, *, stream: bool = False, media: str = "", **more: str
) -> list[fp.Step]:
    media = media or (d.media if stream else "application/json")
    names = {name.replace("_", "-"): value for name, value in more.items()}
    length = str(len(content))
    head = fp.head(200, {"Content-Type": media, "Content-Length": length, **names})
    return [head, fp.send(content)] if content else [head]


def opened(d: Dialect, stream: bool) -> tuple[list[fp.Step], bytes]:
    """Return the first part of a response, and its rest.

    A stream is cut after its first text, a unary response after 40 bytes. The response has no
    length and ends with the connection, so that anything may follow the first part.
    """
    first, rest = d.until_text() if stream else (d.whole[:40], d.whole[40:])
    media = d.media if stream else "application/json"
    head = fp.head(200, {"Content-Type": media, "Connection": "close"})
    return [head, fp.send(first), fp.sleep(0.05)], rest


def breaking(*steps: fp.Step, more: int = 9) -> Steps:
    """Play steps after the first part of a response and `more` bytes of the next frame."""

    def scripts(d: Dialect, stream: bool) -> list[Script]:
        start, rest = opened(d, stream)
        return [[*start, *([fp.send(rest[:more])] if more else []), *steps]]

    return scripts


def same(*steps: fp.Step) -> Steps:
    return lambda d, stream: [steps]


def then_fine(*steps: fp.Step) -> Steps:
    return lambda d, stream: [steps, *fine(d, stream)]


def in_first_frame(d: Dialect, stream: bool) -> list[Script]:
    start = (d.streamed if stream else d.whole)[:20]
    head = fp.head(200, {"Content-Type": d.media, "Content-Length": "5000"})
    return [[head, fp.send(start), fp.sleep(0.05), fp.reset()]]


def dripping(every: float) -> Steps:
    def scripts(d: Dialect, stream: bool) -> list[Script]:
        [[head, content]] = fine(d, stream)
        return [[head, fp.drip(content.data, every)]]

    return scripts


def dripping_on(d: Dialect, stream: bool) -> list[Script]:
    start, rest = opened(d, stream)
    return [[*start, fp.drip(rest, 0.2)]]


def garbled(d: Dialect, stream: bool) -> list[Script]:
    """Return a response with garbage in the middle and a correct end."""
    start, rest = opened(d, stream)
    nonsense = data(b"\x00\xff{nope")
    if stream and d.ends is frames.ends:
        damaged = bytearray(rest[: d.ends(rest)[0]])
        damaged[-6] ^= 0xFF
        nonsense = bytes(damaged)
    return [[*start, fp.send(nonsense), fp.send(rest), fp.close()]]


def cut_short(d: Dialect, stream: bool) -> list[Script]:
    """Return a response that is cut off, although its Content-Length is correct."""
    content = d.until_text()[0] if stream else d.whole[:40]
    return [body(d, content, stream=stream)]


def mislabelled(d: Dialect, stream: bool) -> list[Script]:
    content = d.streamed if stream else d.whole
    return [body(d, content, stream=stream, media="text/html; charset=latin-1")]


def web_page(d: Dialect, stream: bool) -> list[Script]:
    return [body(d, b"<!doctype html><p>Please sign in.", stream=stream, media="text/html")]


def gzip_cut_short(d: Dialect, stream: bool) -> list[Script]:
    """Return a compressed response that is cut off after its first text."""
    packer = zlib.compressobj(wbits=31)
    first, rest = d.until_text() if stream else (d.whole[:40], d.whole[40:])
    content = packer.compress(first) + packer.flush(zlib.Z_SYNC_FLUSH)
    content += (packer.compress(rest) + packer.flush())[:2]
    return [body(d, content, stream=stream, Content_Encoding="gzip")]


def compressed(d: Dialect, stream: bool) -> list[Script]:
    """Compressed, although uncompressed data was requested. A stream is refused."""
    content = gzip.compress(d.streamed if stream else d.whole)
    return [body(d, content, stream=stream, Content_Encoding="gzip")]


def no_gzip(d: Dialect, stream: bool) -> list[Script]:
    content = d.streamed if stream else d.whole
    return [body(d, content, stream=stream, Content_Encoding="gzip")]


HUGE = "x" * (5 << 20)


def huge_line(d: Dialect, stream: bool) -> list[Script]:
    """Return a response with a line or a frame of 5 MiB.

    In a stream this is an error. A unary response may have that size.
    """
    start, rest = opened(d, stream)
    if not stream:
        return [body(d, d.whole.replace(d.text[1].encode(), HUGE.encode()))]
    line = frames.event("contentBlockDelta", {"delta": {"text": HUGE}})
    if d.ends is not frames.ends:
        line = data({"choices": [], "content": HUGE})
    return [[*start, fp.send(line), fp.send(rest), fp.close()]]


def error_inside(d: Dialect, stream: bool) -> list[Script]:
    frame = d.error_frame or data(d.error)
    return [body(d, frame, stream=True) if stream else body(d, json.dumps(d.error).encode())]


def error_later(d: Dialect, stream: bool) -> list[Script]:
    """Return a stream that has an error after some text, and then a correct end."""
    if not stream:
        return error_inside(d, stream)
    start, rest = opened(d, stream)
    return [[*start, fp.send(d.error_frame or data(d.error)), fp.send(rest), fp.close()]]


def begun(*steps: fp.Step) -> Steps:
    """Play steps after a start that shows the client nothing. A unary response has none."""

    def scripts(d: Dialect, stream: bool) -> list[Script]:
        if not stream:
            return [steps]
        head = fp.head(200, {"Content-Type": d.media, "Connection": "close"})
        return [[head, fp.send(d.until_start()), fp.sleep(0.05), *steps]]

    return scripts


def error_after_the_start(d: Dialect, stream: bool) -> list[Script]:
    if not stream:
        return error_inside(d, stream)
    return begun(fp.send(d.error_frame or data(d.error)), fp.close())(d, stream)


def unclosed(*steps: fp.Step) -> Steps:
    """Play a whole response without its end: its last frame if that only ends it, and a length."""

    def scripts(d: Dialect, stream: bool) -> list[Script]:
        content = d.streamed if stream else d.whole
        for last in (
            b"data: [DONE]\n\n",
            b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        ):
            content = content.removesuffix(last)
        media = d.media if stream else "application/json"
        head = fp.head(200, {"Content-Type": media, "Connection": "close"})
        return [[head, fp.send(content), fp.sleep(0.05), *steps]]

    return scripts


def going_on(d: Dialect, stream: bool) -> list[Script]:
    content = (d.streamed if stream else d.whole) + data(b"{nope") + b"\0" * 40
    return [body(d, content, stream=stream)]


def empty(d: Dialect, stream: bool) -> list[Script]:
    return [body(d, b"", stream=stream)]


BROKEN, LATE, FINE = Outcome.BROKEN, Outcome.LATE, Outcome.FINE
BROKE_OFF, FELL_SILENT = Outcome.BROKE_OFF, Outcome.FELL_SILENT
SHORT_WAIT, LONG_WAIT = ({"Retry-After": seconds} for seconds in ("1", "30"))

FAULTS = {
    "none": Fault(FINE, FINE, fine),
    "refused": Fault(BROKEN, BROKEN, same(), refused=True),
    "reset_before_headers": Fault(BROKEN, BROKEN, same(fp.reset())),
    "closed_before_headers": Fault(BROKEN, BROKEN, same(fp.close())),
    "reset_in_the_first_frame": Fault(BROKEN, BROKEN, in_first_frame),
    "reset_mid_frame": Fault(BROKEN, BROKE_OFF, breaking(fp.reset())),
    "closed_mid_frame": Fault(BROKEN, BROKE_OFF, breaking(fp.close())),
    "closed_between_frames": Fault(BROKEN, BROKE_OFF, breaking(fp.close(), more=0)),
    "cut_short": Fault(BROKEN, BROKE_OFF, cut_short),
    "empty": Fault(BROKEN, BROKEN, empty),
    "stall_before_headers": Fault(LATE, LATE, same(fp.hold()), quick=True),
    "stall_in_headers": Fault(LATE, LATE, same(*fp.half_headers()), quick=True),
    "stall_mid_stream": Fault(LATE, FELL_SILENT, breaking(fp.hold()), quick=True),
    "slow_drip": Fault(FINE, FINE, dripping(0.002)),
    "drip_without_end": Fault(LATE, FELL_SILENT, dripping_on, quick=True),
    "garbage": Fault(BROKEN, BROKEN, lambda d, s: [body(d, bytes(range(1, 256)), stream=s)]),
    "garbage_later": Fault(BROKEN, BROKE_OFF, garbled),
    "wrong_content_type": Fault(FINE, FINE, mislabelled),
    "web_page": Fault(BROKEN, BROKEN, web_page),
    "compressed": Fault(FINE, BROKEN, compressed),
    "truncated_gzip": Fault(BROKEN, BROKEN, gzip_cut_short),
    "no_gzip": Fault(BROKEN, BROKEN, no_gzip),
    "huge_line": Fault(FINE, BROKE_OFF, huge_line, text=HUGE),
    "error_after_the_start": Fault(BROKEN, BROKEN, error_after_the_start, started=True),
    "closed_after_the_start": Fault(BROKEN, BROKEN, begun(fp.close()), started=True),
    "stall_after_the_start": Fault(LATE, LATE, begun(fp.hold()), quick=True, started=True),
    "finished_then_open": Fault(FINE, FINE, unclosed(fp.hold())),
    "finished_then_reset": Fault(FINE, FINE, unclosed(fp.reset())),
    "error_inside_a_200": Fault(BROKEN, BROKEN, error_inside),
    "error_later": Fault(BROKEN, BROKE_OFF, error_later),
    "more_after_the_end": Fault(BROKEN, FINE, going_on),
    "429_with_a_long_wait": Fault(
        Outcome.LIMITED, Outcome.LIMITED, same(*fp.error(429, headers=LONG_WAIT))
    ),
    "429_with_a_short_wait": Fault(
        Outcome.WAITED_FOR, Outcome.WAITED_FOR, then_fine(*fp.error(429, headers=SHORT_WAIT))
    ),
    "500": Fault(BROKEN, BROKEN, same(*fp.error(500))),
    "500_then_fine": Fault(Outcome.WELL_AGAIN, Outcome.WELL_AGAIN, then_fine(*fp.error(500))),
}

EXCEPTIONS = {
    # The format has no end marker, so everything that arrives is part of the stream.
    ("google", "more_after_the_end", True): BROKE_OFF,
}
"""Outcomes of particular dialects, by dialect, fault, and True for a stream."""
