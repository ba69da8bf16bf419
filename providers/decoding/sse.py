"""Server-sent events: the bytes of a body in, events out.

- It is pure: the result depends on the bytes, never on where they were split.
- The sizes of a line and of an event are bounded.
- An event that is unfinished when the body ends is discarded. The dialect, which knows what the
  last event must be, decides whether the answer is whole.

Source: WHATWG HTML, section 9.2 "Server-sent events", "Interpreting an event stream"
(read 2026-11). `id` and `retry` are for reconnection, which a completion doesn't use.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

import msgspec

from completion import Batch
from errors import UpstreamError

MAX_LINE = 1 << 20
"""The most bytes of a line."""
MAX_EVENT = 4 << 20
"""The most bytes of an event's data."""

BOM = b"\xef\xbb\xbf"


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One server-sent event."""

    event: str
    data: bytes
    """The data as it arrived. The specification asks for U+FFFD in place of what is not UTF-8;
    the decoder of the data sees to that."""


def decode(chunks: Iterable[bytes]) -> Iterator[list[Frame]]:
    """Yield the events of a body: a list for each chunk that completes one or more.

    An event whose blank line never arrives is dropped. Raises UpstreamError for a line above
    MAX_LINE or an event above MAX_EVENT, after the events before it.
    """
    pending = _Pending()
    for text in _unix_lines(_without_bom(iter(chunks))):
        frames: list[Frame] = []
        try:
            pending.feed(text, frames)
        except UpstreamError:
            if frames:
                yield frames
            raise
        if frames:
            yield frames


class _Pending:
    """The unfinished event: its fields so far, and the pieces of its unfinished line."""

    __slots__ = ("data", "event", "pieces", "size", "unfinished")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.unfinished = 0
        self.forget()

    def forget(self) -> None:
        self.event = b""
        self.data: list[bytes] = []
        self.size = 0

    def feed(self, text: bytes, frames: list[Frame]) -> None:
        """Take more text, in which lines end with LF; append the events that it completes."""
        if b"\n" not in text:
            self.hold(text)
            return
        if self.pieces:
            text = b"".join((*self.pieces, text))
            self.pieces, self.unfinished = [], 0
        if self.data or self.event:  # the line end before this text counts towards a blank line
            text = b"\n" + text
        elif len(text) <= MAX_LINE:
            plain, text = _plain(text)
            frames += [Frame("message", data) for data in plain]
        *blocks, tail = text.split(b"\n\n")
        for block in blocks:
            self.take(block.split(b"\n"))
            self.dispatch(frames)
        if tail:
            *lines, rest = tail.split(b"\n")
            self.take(lines)
            self.hold(rest)

    def hold(self, piece: bytes) -> None:
        """Keep a piece of a line whose end hasn't arrived."""
        self.unfinished += len(piece)
        if self.unfinished > MAX_LINE:
            raise _too_long("line", MAX_LINE)
        self.pieces.append(piece)

    def take(self, lines: list[bytes]) -> None:
        """Take whole lines of the event. An empty line here is one before the event begins."""
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

    def dispatch(self, frames: list[Frame]) -> None:
        """End the event at its blank line. An event without data is dropped."""
        if self.data:
            name = self.event.decode("utf-8", "replace") or "message"
            frames.append(Frame(name, b"\n".join(self.data)))
        self.forget()


def _plain(text: bytes) -> tuple[list[bytes], bytes]:
    """Return the data of each event, if each is one line of data and nothing else, and the text
    after them; otherwise no data and all of the text. This is faster than reading line by line."""
    end = text.rfind(b"\n\n") + 2
    if end > 2 and text.startswith(b"data: "):
        found = text[6 : end - 2].split(b"\n\ndata: ")
        if text.count(b"\n", 0, end) == 2 * len(found):
            return found, text[end:]
    return [], text


def _without_bom(chunks: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    for chunk in chunks:
        start += chunk
        if not BOM.startswith(start):
            yield start.removeprefix(BOM)
            break
        if start == BOM:
            break
    else:
        yield start
    yield from chunks


def _unix_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the text with LF for each line end. A CR ends its line at once, without waiting for
    the next chunk; a LF that begins the next chunk belongs to that CR and is dropped."""
    after_cr = False
    for chunk in chunks:
        if after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            after_cr = False
        if b"\r" in chunk:
            after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if chunk:
            yield chunk


def _too_long(what: str, limit: int) -> UpstreamError:
    return UpstreamError(f"The upstream sent a stream {what} of more than {limit} bytes.")


def batches(
    chunks: Iterable[bytes],
    read: Callable[[Frame, Batch], bool],
    read_all: Callable[[list[Frame], Batch], bool] | None = None,
) -> Generator[Batch, None, bool]:
    """Yield a batch for each chunk that brings events; return True if the last event was read.

    Args:
        read: appends the events of a frame to a batch, and returns True if the frame was the last;
            nothing after it is asked for. If it raises UpstreamError, the events before the error
            are yielded first.
        read_all: does that for all frames of a chunk, in fewer steps.
    """

    def each(frames: list[Frame], batch: Batch) -> bool:
        return any(read(frame, batch) for frame in frames)

    read_all = read_all or each
    for frames in decode(chunks):
        batch: Batch = []
        try:
            ended = read_all(frames, batch) if len(frames) > 1 else read(frames[0], batch)
        except UpstreamError:
            if batch:
                yield batch
            raise
        if batch:
            yield batch
        if ended:
            return True
    return False
