"""What is told of a call that has ended: its line in the log, its metrics, its trace.

Where many calls are under way, what is told of them is told of many at once, a moment after they
have ended: the second in a row takes a fraction of the first, and nobody waits for it. Rules that
hold here: no I/O but the log's; nothing of what was asked or answered, and no key.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from concurrency.threads import BackgroundThread
from concurrency.yielding import Yielder
from errors import ByokRejected
from gateway.call import Outcome
from ledger.pricing import dollars
from streams.stream import Stream
from telemetry import logs
from telemetry.metrics import Metrics

if TYPE_CHECKING:
    from telemetry.tracing import Tracing

KEY_REFUSED = (401, 403)

FEW_CALLS = 8
GATHER_S = 0.02

access = logging.getLogger("sluice.access")
log = logging.getLogger("sluice.records")


class CallRecords:
    """Of one process."""

    def __init__(
        self, metrics: Metrics, tracing: Tracing | None, under_way: Callable[[], int]
    ) -> None:
        """under_way: how many calls are."""
        self._metrics, self._tracing, self._under_way = metrics, tracing, under_way
        self._ended: deque[tuple[Stream, Outcome, float]] = deque()
        self._some = threading.Event()
        self._thread = BackgroundThread(self._run, "records")

    def settled(self, stream: Stream, outcome: Outcome) -> None:
        """A call has ended: tell of it, now or soon."""
        now = time.time()
        if self._under_way() <= FEW_CALLS:
            self._tell(stream, outcome, now)
            return
        self._ended.append((stream, outcome, now))
        self._thread.start()
        if not self._some.is_set():
            self._some.set()

    def catch_up(self) -> None:
        """Tell of all that have ended by now. One that can't be told costs the others nothing."""
        yielder = Yielder()
        while True:
            try:
                ended = self._ended.popleft()
            except IndexError:
                return
            try:
                self._tell(*ended)
            except Exception:
                log.exception("what is told of a call that has ended is lost")
            yielder.yield_if_due()

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(GATHER_S)
            self._some.clear()
            self.catch_up()

    def _tell(self, stream: Stream, outcome: Outcome, ended_at: float) -> None:
        count(self._metrics, stream, outcome)
        if self._tracing is not None:
            self._tracing.ended(stream, outcome)
        message = "stream" if stream.request.stream else "completion"
        logs.tell(access, message, told_of(stream, outcome), ended_at)


def told_of(stream: Stream, outcome: Outcome) -> dict[str, Any]:
    """What a call's line in the log says."""
    usage = outcome.usage
    told: dict[str, Any] = {
        "request_id": stream.request_id,
        "stream_id": stream.id,
        "key_id": stream.key_id,
        "status": outcome.status,
        "provider": stream.target.provider.name,
        "model": stream.target.model,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usage_source": usage.source,
        "cost_usd": dollars(outcome.cost),
        "duration_ms": round(outcome.duration * 1000, 1),
        "first_event_ms": outcome.first_event and round(outcome.first_event * 1000, 1),
        "attempts": len(stream.attempts),
        "end_reason": outcome.reason,
    }
    if outcome.error is not None:
        told["code"] = outcome.error.code
        details = outcome.error.details or {}
        told |= {name: details[name] for name in logs.UPSTREAM if details.get(name) is not None}
    return told


def count(metrics: Metrics, stream: Stream, outcome: Outcome) -> None:
    metrics.ended(
        stream.endpoint,
        stream.target.provider.name,
        stream.target.model,
        outcome.status,
        outcome.reason,
        outcome.usage,
        outcome.cost,
    )
    now = stream.opened + outcome.duration
    stopped = stream.stopped_at if outcome.reason == "stopped" else None
    metrics.took(
        request_duration=outcome.duration,
        first_event=outcome.first_event,
        overhead=overhead(stream, now),
        stop=None if stopped is None else max(0.0, now - stopped),
    )
    for attempt, record in zip(stream.attempts, outcome.attempts, strict=True):
        status, code = record.status, record.code
        if attempt.target.byok and status in KEY_REFUSED:  # the caller's doing, not the provider's
            status, code = None, ByokRejected.code
        metrics.attempted(record.provider, status, code)
    if len(outcome.attempts) > 1:
        metrics.retried(len(outcome.attempts) - 1)


def overhead(stream: Stream, now: float) -> float:
    """Seconds of a call, until now, in which no attempt was under way. now: as time.monotonic."""
    at_work = sum(min(attempt.ended or now, now) - attempt.began for attempt in stream.attempts)
    return max(0.0, now - stream.opened - at_work)
