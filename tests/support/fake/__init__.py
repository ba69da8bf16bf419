"""A fake upstream provider that tests drive: `with FakeProvider.start() as fake: ...`

It runs in a process of its own, so that a busy test doesn't distort its times. A test writes
scripts, lists of steps; each request takes the next script that fits, and `fake.requests` tells
what became of each.
"""

from tests.support.fake.host import FakeProvider, blackhole
from tests.support.fake.steps import (
    Counts,
    Request,
    Step,
    answer,
    body,
    chunks,
    close,
    drip,
    error,
    event,
    gate,
    half_headers,
    head,
    hold,
    last_chunk,
    repeat,
    reset,
    send,
    sleep,
    sse,
    wait_closed,
)

__all__ = [
    "Counts",
    "FakeProvider",
    "Request",
    "Step",
    "answer",
    "blackhole",
    "body",
    "chunks",
    "close",
    "drip",
    "error",
    "event",
    "gate",
    "half_headers",
    "head",
    "hold",
    "last_chunk",
    "repeat",
    "reset",
    "send",
    "sleep",
    "sse",
    "wait_closed",
]
