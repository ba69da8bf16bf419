"""The fault matrix's table: what a provider does wrong, and what has to come of it.

A fault has an outcome for whole answers and one for streams; `expected` turns an outcome into what
the client and the ledger see, with a fallback and without. What is expected follows from the rules
alone, never from a dialect, but for EXCEPTIONS. Rules that hold here: values only; no part of
Sluice is asked what it would do.
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
"""How long a provider may be silent, where a fault is silence."""
HEALTHY = "healthy"
HEALTHY_TEXT = "From the other one."
Script: TypeAlias = Sequence[fp.Step]
Json: TypeAlias = dict[str, Any]


class Dialect(NamedTuple):
    """stream, body: fixtures with the same answer. texts_after: how many of the stream's frames
    come until its first text is complete. error: what says of itself, in this format and with a
    status of 200, that the host failed; error_frame: the same as an event of a stream."""

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

    @property
    def streamed(self) -> bytes:
        [path] = (FIXTURES / self.stream).glob("stream.*")
        return path.read_bytes()

    @property
    def whole(self) -> bytes:
        return (FIXTURES / self.body / "body.json").read_bytes()

    def until_text(self) -> tuple[bytes, bytes]:
        """The stream, cut after its first text."""
        at = self.ends(self.streamed)[self.texts_after - 1]
        return self.streamed[:at], self.streamed[at:]


def data(value: object) -> bytes:
    """A frame of server-sent events."""
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
    FINE = "the right answer, at once"
    WELL_AGAIN = "the right answer, of the second attempt"
    BROKEN = "nothing came: tried again, then the fallback is asked"
    LATE = "nothing came in time: the fallback is asked"
    LIMITED = "it asked for a long wait: the fallback is asked"
    WAITED_FOR = "it asked for a short wait, which is waited for where there is no fallback"
    BROKE_OFF = "text came, and the client hears that there should have been more"
    FELL_SILENT = "text came and then nothing for too long, and the client hears of that"


class Expected(NamedTuple):
    """status: HTTP's, as the client sees it and the ledger has it. code: of the error, in the
    answer, the stream's last frame and the ledger. tries: the code of each attempt's failure, in
    order. by_fallback: whether the last one was the fallback's."""

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
"""Without a fallback. (A 429 is the provider's failure until the client is told of it.)"""


def expected(outcome: Outcome, *, fallback: bool) -> Expected:
    alone = ALONE[outcome]
    if not fallback or (alone.status == 200 and outcome is not Outcome.WAITED_FOR):
        return alone
    tries = alone.tries[:1] if outcome is Outcome.WAITED_FOR else alone.tries
    return Expected(200, None, "completed", (*tries, None), by_fallback=True)


Steps: TypeAlias = Callable[[Dialect, bool], list[Script]]


class Fault(NamedTuple):
    """scripts: what the provider does at the first attempt, at the second, ..., by dialect and
    mode; the last goes for all others. quick: whether the provider's row has short limits."""

    whole: Outcome
    stream: Outcome
    scripts: Steps
    quick: bool = False
    refused: bool = False
    """Nobody listens."""
    text: str = ""
    """What a whole answer's text is replaced by."""


# What a provider sends. Each is a list of scripts.


def fine(d: Dialect, stream: bool) -> list[Script]:
    """The right answer; what other answers are made of."""
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
    """An answer up to its first text, or to its middle, and what is to follow. Its end is that of
    the connection, so that anything may follow."""
    first, rest = d.until_text() if stream else (d.whole[:40], d.whole[40:])
    media = d.media if stream else "application/json"
    head = fp.head(200, {"Content-Type": media, "Connection": "close"})
    return [head, fp.send(first), fp.sleep(0.05)], rest


def breaking(*steps: fp.Step, more: int = 9) -> Steps:
    """An answer that goes on for some bytes into its next frame, and then so."""

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
    """Nonsense in the middle, and the proper end behind it."""
    start, rest = opened(d, stream)
    nonsense = data(b"\x00\xff{nope")
    if stream and d.ends is frames.ends:
        damaged = bytearray(rest[: d.ends(rest)[0]])
        damaged[-6] ^= 0xFF
        nonsense = bytes(damaged)
    return [[*start, fp.send(nonsense), fp.send(rest), fp.close()]]


def cut_short(d: Dialect, stream: bool) -> list[Script]:
    """As HTTP has it, it is whole."""
    content = d.until_text()[0] if stream else d.whole[:40]
    return [body(d, content, stream=stream)]


def mislabelled(d: Dialect, stream: bool) -> list[Script]:
    content = d.streamed if stream else d.whole
    return [body(d, content, stream=stream, media="text/html; charset=latin-1")]


def web_page(d: Dialect, stream: bool) -> list[Script]:
    return [body(d, b"<!doctype html><p>Please sign in.", stream=stream, media="text/html")]


def gzip_cut_short(d: Dialect, stream: bool) -> list[Script]:
    """Compressed so that the first text comes out, and cut off behind it."""
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
    """A stream's line, or frame, is larger than any should be; a whole answer is one line, and may
    be large."""
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
    """An error after text, and the proper end behind it."""
    if not stream:
        return error_inside(d, stream)
    start, rest = opened(d, stream)
    return [[*start, fp.send(d.error_frame or data(d.error)), fp.send(rest), fp.close()]]


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
    # Nothing in the format says that a stream is at its end: what comes is a part of it.
    ("google", "more_after_the_end", True): BROKE_OFF,
}
"""By dialect, fault, and whether it is a stream."""
