"""Decoding of server-sent events: the bytes of a body in, events out.

- The module is pure: the result depends on the bytes, never on where they were split.
- The sizes of a line and of an event are bounded.
- An event that is unfinished when the body ends is discarded. The dialect decides whether the
  response is complete, because only the dialect knows the last event.

Source: WHATWG HTML, section 9.2 "Server-sent events", "Interpreting an event stream"
(read 2026-11). `id` and `retry` are ignored: they serve reconnection, which completions don't use.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

import msgspec

from completion import Batch
from errors import UpstreamError

MAX_LINE = 1 << 20
"""The maximum length of a line in bytes."""
MAX_EVENT = 4 << 20
"""The maximum size of an event's data in bytes."""

BOM = b"\xef\xbb\xbf"


class Frame(msgspec.Struct, frozen=True, gc=False):
    event: str
    data: bytes
    """The raw data. The specification replaces invalid UTF-8 with U+FFFD; here, the decoder of the
    data does so."""


def decode(chunks: Iterable[bytes]) -> Iterator[list[Frame]]:
    """Yield the events of a body, as one list for each chunk that completes an event or a comment.

    The list is empty if the chunk has only comments, events without data or blank lines: the host
    is alive. An event whose final blank line never arrives is dropped.

    Raises:
        UpstreamError: A line is longer than MAX_LINE, or an event larger than MAX_EVENT. The events
            before the error have been yielded.
    """
    pending = _Pending()
    for text in _unix_lines(_without_bom(iter(chunks))):
        frames: list[Frame] = []
        try:
            alive = pending.feed(text, frames)
        except UpstreamError:
            if frames:
                yield frames
            raise
        if frames or alive:
            yield frames


class _Pending:
    """The unfinished event: the fields so far, and the pieces of the unfinished line."""

    __slots__ = ("data", "event", "pieces", "size", "unfinished")

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.unfinished = 0
        self.forget()

    def forget(self) -> None:
        self.event = b""
        self.data: list[bytes] = []
        self.size = 0

    def feed(self, text: bytes, frames: list[Frame]) -> bool:
        """Add text whose lines end with LF, and append the events that it completes to `frames`.

        Return True if it completes anything else than a field of an unfinished event.
        """
        if b"\n" not in text:
            self.hold(text)
            return False
        if self.pieces:
            text = b"".join((*self.pieces, text))
            self.pieces, self.unfinished = [], 0
        if self.data or self.event:  # the LF before this text may be half of a blank line
            text = b"\n" + text
        elif text == b"\n":
            return True
        elif len(text) <= MAX_LINE:
            plain, text = _plain(text)
            frames += [Frame("message", data) for data in plain]
        *blocks, tail = text.split(b"\n\n")
        commented = False
        for block in blocks:
            self.take(block.split(b"\n"))
            self.dispatch(frames)
        if tail:
            *lines, rest = tail.split(b"\n")
            commented = self.take(lines)
            self.hold(rest)
        return bool(blocks) or commented

    def hold(self, piece: bytes) -> None:
        self.unfinished += len(piece)
        if self.unfinished > MAX_LINE:
            raise _too_long("line", MAX_LINE)
        self.pieces.append(piece)

    def take(self, lines: list[bytes]) -> bool:
        """Add complete lines to the event. Return True if one of them is a comment.

        Empty lines have no effect.
        """
        commented = False
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
            elif line and not name:
                commented = True
        return commented

    def dispatch(self, frames: list[Frame]) -> None:
        """End the event at its blank line, and append it unless it has no data."""
        if self.data:
            name = self.event.decode("utf-8", "replace") or "message"
            frames.append(Frame(name, b"\n".join(self.data)))
        self.forget()


def _plain(text: bytes) -> tuple[list[bytes], bytes]:
    """Decode the complete events in some text, if each is a single line of data.

    This is a fast path that avoids decoding line by line. Return the data of each event, and the
    text after the events. If an event has other lines, return no data and the whole text.
    """
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
    """Convert all line ends to LF.

    A CR at the end of a chunk ends its line at once, without waiting for the next chunk. If that
    chunk starts with LF, the LF belongs to the CR and is dropped.
    """
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
    return UpstreamError(f"The upstream sent a stream {what} larger than {limit} bytes.")


def batches(
    chunks: Iterable[bytes],
    read: Callable[[Frame, Batch], bool],
    read_all: Callable[[list[Frame], Batch], bool] | None = None,
) -> Generator[Batch, None, bool]:
    """Yield a batch for each chunk that completes events. Return True if the last event was read.

    A batch is empty if the chunk has comments or events that mean nothing.

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
