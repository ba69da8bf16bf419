"""Decoding of server-sent event streams with a single choice and an explicit last event.

- The module is pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from completion import Batch
from providers.decoding import bodies, sse
from providers.decoding.error_bodies import broken_off
from providers.decoding.lenient_json import garbage


def events(
    chunks: Iterable[bytes],
    read: Callable[[sse.Frame, Batch], bool],
    complete: Callable[[bytes], Batch],
    finished: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Decode a streamed body, as `base.Dialect.events` does.

    Args:
        read: appends the events of a frame to a batch; see `sse.batches`.
        complete: decodes a whole body. Some hosts send a JSON object, with a completion or an
            error, instead of the requested stream.
        finished: returns True if the finish reason has arrived, so that the last event may be
            missing.
    """
    start, chunks = bodies.peek(chunks)
    if start in (b"{", b"["):
        yield complete(bodies.join(chunks))
        return
    excerpt = bodies.Excerpt()
    answered = False
    frames = sse.batches(excerpt.watch(chunks), read)
    while True:
        try:
            batch = next(frames)
        except StopIteration as stop:
            ended: bool = stop.value
            break
        answered = answered or bool(batch)
        yield batch
    if not answered:
        raise garbage("The upstream ended the stream without a completion.", excerpt.start)
    if not ended and not finished():
        raise broken_off()
