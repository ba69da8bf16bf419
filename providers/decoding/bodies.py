"""Helpers for reading response bodies: the first byte, the whole body, an excerpt, a batch.

- The module is pure: results never depend on where the body was split into chunks.
- `join` and `Excerpt` bound the bytes that they keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final, TypeAlias

from completion import Batch, Used
from errors import UpstreamError
from providers.decoding.sse import is_stream

Events: TypeAlias = Callable[[Iterable[bytes]], Iterator[Batch]]

MAX_BODY: Final = 4 << 20
"""The maximum size, in bytes, of a JSON body that a host sends instead of the requested stream."""
START: Final = 400
"""The number of bytes to keep from the start of a body, to show in an error."""
END: Final = 16 << 10
"""The number of bytes to keep from the end of a body."""


def peek(chunks: Iterable[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first byte that isn't whitespace, or b"", and an iterator over all chunks."""
    source, taken = iter(chunks), []
    for chunk in source:
        taken.append(chunk)
        if first := chunk.lstrip()[:1]:
            return first, chain(taken, source)
    return b"", iter(taken)


def join(chunks: Iterable[bytes], most: int = MAX_BODY) -> bytes:
    """Return the whole body. Raises UpstreamError if it is larger than `most` bytes."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > most:
            raise UpstreamError(f"The upstream sent a body larger than {most} bytes.")
    return bytes(body)


def beginning(chunks: Iterable[bytes]) -> bytes:
    """Return the first START bytes, without reading the rest of the body."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) >= START:
            break
    return bytes(body[:START])


def batch_of(read: Callable[[Batch], None]) -> Iterator[Batch]:
    """Yield the batch that `read` fills. It may stay empty.

    If `read` raises UpstreamError, the events that it appended before the error are yielded first.
    """
    batch: Batch = []
    try:
        read(batch)
    except UpstreamError:
        if batch:
            yield batch
        raise
    yield batch


def collected(batches: Iterable[Batch]) -> Batch:
    """Return all events in one batch.

    Raises:
        UpstreamError: Decoding failed. The error has the usage that was reported before it.
    """
    found: Batch = []
    try:
        for batch in batches:
            found += batch
    except UpstreamError as error:
        keep_usage(error, found)
        raise
    return found


def whole(
    body: bytes, read: Callable[[Batch], None], events: Events, *, stream: bool = False
) -> Batch:
    """Return the events of a whole body. Hosts that always stream send a stream here too.

    Args:
        read: appends the events of a JSON body to a batch.
        events: decodes a stream, as `base.Dialect.events` does.
        stream: True if the body is a stream, although not of server-sent events.

    Raises:
        UpstreamError: as in `collected`.
    """
    if body[:1] != b"{" and (stream or is_stream(body)):
        return collected(events([body]))
    batch: Batch = []
    try:
        read(batch)
    except UpstreamError as error:
        keep_usage(error, batch)
        raise
    return batch


def keep_usage(error: UpstreamError, batch: Batch) -> None:
    """Store the last usage in an error, because the events before the error are lost."""
    used = [event.usage for event in batch if isinstance(event, Used)]
    error.usage = used[-1] if used else error.usage


class Excerpt:
    """The first bytes of a body, and with `end` also the last, recorded while it is decoded."""

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
        """Return an iterator over the chunks, unchanged, that records the excerpt."""
        source = iter(chunks)
        watched = chain(self._watch_start(source), source)
        return watched if self._end is None else self._watch_end(watched, self._end)

    def _watch_start(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield chunks until the start is complete."""
        for chunk in chunks:
            self._start += chunk[:START]
            yield chunk
            if len(self._start) >= START:
                break

    @staticmethod
    def _watch_end(chunks: Iterator[bytes], end: bytearray) -> Iterator[bytes]:
        for chunk in chunks:
            end += chunk
            if len(end) > 2 * END:
                del end[:-END]
            yield chunk
