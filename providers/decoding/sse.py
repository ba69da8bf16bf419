"""Decoding of server-sent events: the bytes of a body in, events out.

- The module is pure: the result depends on the bytes, never on where they were split.
- The sizes of a line and of an event are bounded.
- An event that is unfinished when the body ends is discarded, unless it is an error. The dialect
  decides whether the response is complete, because only the dialect knows the last event.
- A host's error that isn't an event still becomes one, with the name "error": llama.cpp writes it
  as a field ("error: {...}"), and other servers write it as JSON without a field.

Source: WHATWG HTML, section 9.2 "Server-sent events", "Interpreting an event stream"
(read 2026-11), and llama.cpp's issue 16109 for the field `error`. `id` and `retry` are ignored:
they serve reconnection, which completions don't use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain

import msgspec

from completion import Batch
from errors import UpstreamError
from providers.decoding.lenient_json import NOT_JSON

MAX_EVENT = 4 << 20
"""The maximum size of an event's data in bytes."""
MAX_LINE = MAX_EVENT
"""The maximum length of a line in bytes. An event may be a single line."""
MAX_STRAY = 16 << 10
"""The maximum size in bytes of JSON outside of any field that is searched for an error."""

ERRORS = frozenset(("exception", "failure", "fatal"))
"""The names of events that count as "error"."""

BOM = b"\xef\xbb\xbf"
CR, LF = b"\r\n"
"""The two bytes as numbers: searching bytes for a number takes an eighth of the time."""
FIELD = re.compile(rb"\s*(?:(?:data|event|id|retry|error) *:|:)")
"""The start of a body of server-sent events."""


class Frame(msgspec.Struct, frozen=True, gc=False):
    data: bytes
    """The raw data. The specification replaces invalid UTF-8 with U+FFFD; here, the decoder of the
    data does so."""
    event: str = "message"


def decode(chunks: Iterable[bytes]) -> Iterator[list[Frame]]:
    """Yield the events of a body, as one list for each chunk that completes an event or a comment.

    The list is empty if the chunk has only comments, events without data or blank lines: the host
    is alive. An event whose final blank line never arrives is dropped.

    Raises:
        UpstreamError: A line is longer than MAX_LINE, or an event larger than MAX_EVENT. The events
            before the error have been yielded.
    """
    pending = _Pending()
    for chunk in _without_bom(iter(chunks)):
        frames: list[Frame] = []
        try:
            alive = pending.feed(chunk, frames)
        except UpstreamError:
            if frames:
                yield frames
            raise
        if frames or alive:
            yield frames
    if frames := pending.last_error():
        yield frames


def is_stream(body: bytes) -> bool:
    """Return True if a whole body consists of server-sent events, judged by its start."""
    return FIELD.match(body.removeprefix(BOM)[:400]) is not None


class _Pending:
    """The unfinished event: the fields so far, and the pieces of the unfinished line."""

    __slots__ = (
        *("after_cr", "data", "errors", "event", "is_empty", "pieces", "size"),
        *("stray", "stray_size", "unfinished"),
    )

    def __init__(self) -> None:
        self.is_empty = True
        """True if the next chunk continues neither an event nor a line, nor the CR of a CRLF."""
        self.after_cr = False
        """True if the last chunk ended with a CR."""
        self.pieces: list[bytes] = []
        self.unfinished = 0
        self.forget()

    def forget(self) -> None:
        self.event = b""
        self.data: list[bytes] = []
        self.errors: list[bytes] = []
        """The values of the field `error`."""
        self.stray: list[bytes] = []
        """The lines from the first that looks like JSON outside of any field."""
        self.stray_size = 0
        self.size = 0

    def feed(self, chunk: bytes, frames: list[Frame]) -> bool:
        """Add a chunk, and append the events that it completes to `frames`.

        Return True if it completes anything other than a field of an unfinished event.
        """
        if self.is_empty and CR not in chunk and (plain := _plain(chunk)):
            frames += map(Frame, plain)
            return True
        if self.after_cr or CR in chunk:
            chunk = self.unix_lines(chunk)
        alive = self.feed_lines(chunk, frames)
        self.is_empty = not (
            (self.pieces or self.data or self.event or self.errors or self.stray) or self.after_cr
        )
        return alive

    def feed_lines(self, text: bytes, frames: list[Frame]) -> bool:
        """Add text whose lines end with LF, as `feed` does."""
        if LF not in text:
            self.hold(text)
            return False
        if self.pieces:
            text = b"".join((*self.pieces, text))
            self.pieces, self.unfinished = [], 0
        if self.data or self.event or self.errors or self.stray:
            # The LF before this text may be half of a blank line.
            text = b"\n" + text
        elif text == b"\n":
            return True
        else:
            end = text.rfind(b"\n\n") + 2
            if plain := _plain(text[:end]):
                frames += map(Frame, plain)
                text = text[end:]
                if not text:
                    return True
        *blocks, tail = text.split(b"\n\n")
        commented = False
        for block in blocks:
            self.take(block.split(b"\n"))
            self.dispatch(frames)
        if tail:
            *lines, rest = tail.split(b"\n")
            self.take(lines)
            commented = any(line.startswith(b":") for line in lines)
            self.hold(rest)
        return bool(blocks) or commented

    def unix_lines(self, chunk: bytes) -> bytes:
        """Convert all line ends to LF.

        A CR at the end of a chunk ends its line at once, without waiting for the next chunk. If
        that chunk starts with LF, the LF belongs to the CR and is dropped.
        """
        if chunk and self.after_cr:
            chunk = chunk.removeprefix(b"\n")
            self.after_cr = False
        if chunk.endswith(b"\r"):
            self.after_cr = True
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def hold(self, piece: bytes) -> None:
        self.unfinished += len(piece)
        if self.unfinished > MAX_LINE:
            raise _too_long("line", MAX_LINE)
        self.pieces.append(piece)

    def take(self, lines: list[bytes]) -> None:
        """Add complete lines to the event. Empty lines have no effect."""
        for line in lines:
            if len(line) > MAX_LINE:
                raise _too_long("line", MAX_LINE)
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                self.size += len(value) + 1
                if self.size > MAX_EVENT:
                    raise _too_long("event", MAX_EVENT)
                self.data.append(value)
            elif name == b"event":
                self.event = value
            elif name == b"error":
                self.size += len(value) + 1
                if self.size > MAX_EVENT:
                    raise _too_long("event", MAX_EVENT)
                if value:
                    self.errors.append(value)
            elif line and (self.stray or line[:1] in (b"{", b"[")):
                self.keep(line)

    def keep(self, line: bytes) -> None:
        """Keep a line outside of any field if it may belong to JSON with an error."""
        self.stray_size += len(line) + 1
        if self.stray_size <= MAX_STRAY:
            self.stray.append(line)

    def dispatch(self, frames: list[Frame]) -> None:
        """End the event at its blank line, and append it unless it has no data.

        The data beside an error is dropped, because it may be the last event's.
        """
        if self.errors:
            frames.append(Frame(b"\n".join(self.errors), "error"))
        elif self.data:
            name = self.event.decode("utf-8", "replace") or "message"
            name = "error" if name in ERRORS else name
            frames.append(Frame(b"\n".join(self.data), name))
        if self.stray and (error := _error_in(self.stray)):
            frames.append(Frame(error, "error"))
        self.forget()

    def last_error(self) -> list[Frame]:
        """Return the error that the body ends with, if any, although its event is unfinished.

        A host that fails may close the connection without the blank line.
        """
        frames: list[Frame] = []
        rest = b"".join(self.pieces)
        if rest.partition(b":")[0] == b"error" or (self.event == b"error" and rest[:4] == b"data"):
            self.take([rest])
        elif rest and (self.stray or rest[:1] in (b"{", b"[")):
            self.keep(rest)
        if self.event != b"error":
            self.data = []
        self.dispatch(frames)
        return frames


def _error_in(lines: list[bytes]) -> bytes | None:
    """Return the JSON in some lines if it is an object with an "error", or a list of one."""
    text = b"\n".join(lines)
    try:
        value = msgspec.json.decode(text)
    except NOT_JSON:
        return None
    if isinstance(value, list) and value:
        value = value[0]
    return text if isinstance(value, dict) and value.get("error") else None


def _plain(text: bytes) -> list[bytes]:
    """Return the data of the events in some text, if each is a single line of data.

    This is a fast path that avoids decoding line by line. Return an empty list for any other text.
    """
    if len(text) <= MAX_LINE and text.startswith(b"data: ") and text.endswith(b"\n\n"):
        found = text[6:-2].split(b"\n\ndata: ")
        if text.count(b"\n") == 2 * len(found):
            return found
    return []


def _without_bom(chunks: Iterator[bytes]) -> Iterator[bytes]:
    return chain(_start(chunks), chunks)


def _start(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the start of a body, without its byte order mark."""
    start = b""
    for chunk in chunks:
        start += chunk
        if start == BOM or not BOM.startswith(start):
            break
    yield start.removeprefix(BOM)


def _too_long(what: str, limit: int) -> UpstreamError:
    return UpstreamError(f"The upstream sent a stream {what} larger than {limit} bytes.")


def batches(
    chunks: Iterable[bytes],
    read: Callable[[Frame, Batch], bool],
    read_all: Callable[[list[Frame], Batch], bool] | None = None,
) -> Generator[Batch, None, bool]:
    """Yield a batch for each chunk that completes events. Return True if the last event was read.

    A batch is empty if the chunk has only comments or events without a meaning.

    Args:
        read: appends the events of a frame to a batch, and returns True if the frame was the last
            one. No chunk is read after the last frame. If `read` raises UpstreamError, the events
            before the error are yielded first.
        read_all: a faster `read` for all frames of one chunk. By default, `read` is called for each
            frame.
    """

    def each(frames: list[Frame], batch: Batch) -> bool:
        return any(read(frame, batch) for frame in frames)

    read_all = read_all or each
    for frames in decode(chunks):
        batch: Batch = []
        if not frames:
            yield batch
            continue
        try:
            ended = read_all(frames, batch) if len(frames) > 1 else read(frames[0], batch)
        except UpstreamError:
            if batch:
                yield batch
            raise
        yield batch
        if ended:
            return True
    return False
