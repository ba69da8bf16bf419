"""What decoders of bodies share: how one begins, all of it, what came of it, what it told.

Rules that hold here: pure; nothing depends on where the body was split; sizes are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

from completion import Batch
from errors import UpstreamError

MAX_BODY: Final = 4 << 20
"""Bytes of a whole answer that came where a stream was asked for."""
START: Final = 400
"""Bytes remembered of a body's start, to show what came."""
END: Final = 16 << 10
"""Bytes remembered of its end."""


def peek(chunks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first byte that isn't white space (none: empty), and the chunks, all of them."""
    source, taken = iter(chunks), []
    for chunk in source:
        taken.append(chunk)
        if first := chunk.lstrip()[:1]:
            return first, chain(taken, source)
    return b"", iter(taken)


def join(chunks: Iterable[bytes], most: int = MAX_BODY) -> bytes:
    """The whole body. Raises UpstreamError for one of more than `most` bytes."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > most:
            raise UpstreamError(f"The upstream sent a body of more than {most} bytes.")
    return bytes(body)


def beginning(chunks: Iterable[bytes]) -> bytes:
    """The first START bytes; the rest is not asked for."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) >= START:
            break
    return bytes(body[:START])


def told(read: Callable[[Batch], None]) -> Iterator[Batch]:
    """The batch that `read` fills, unless it stays empty. What came before an error that it raises
    is the caller's all the same."""
    batch: Batch = []
    try:
        read(batch)
    except UpstreamError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


class Seen:
    """What came of a body while it was decoded: its start, and if that was asked for its end."""

    __slots__ = ("_end", "_start")

    def __init__(self, *, end: bool = False) -> None:
        self._start = bytearray()
        self._end = bytearray() if end else None

    @property
    def start(self) -> bytes:
        return bytes(self._start[:START])

    @property
    def end(self) -> bytes:
        return bytes((self._end or b"")[-END:])

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks."""
        source, end = iter(chunks), self._end
        for chunk in source:
            if len(self._start) < START:
                self._start += chunk[:START]
            elif end is None:
                yield chunk
                break
            if end is not None:
                end += chunk
                if len(end) > 2 * END:
                    del end[:-END]
            yield chunk
        yield from source
