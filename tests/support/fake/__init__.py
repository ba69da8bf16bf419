"""A fake provider that tests control: `with FakeProvider.start() as fake: ...`

- It runs in a separate process, so that a busy test doesn't distort its timing.
- Tests write scripts, which are lists of steps. Each request gets the next script that fits.
- `fake.requests` has the requests and their outcomes.
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
