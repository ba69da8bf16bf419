"""The records of a call that has ended: its log line, its metrics, its trace.

- While many calls are active, the records of several calls are written together, a moment after the
  calls have ended, because this takes less CPU time (see docs/decisions/0012-the-worker.md).
- The module does no I/O, except for the log.
- No record holds a key, or text of a prompt or a completion.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from concurrency.threads import BackgroundThread
from concurrency.yielding import Yielder
from errors import ByokRejected, SluiceError, UpstreamError, UpstreamTimeout
from gateway.call import Outcome
from keys.redaction import may_hold_key
from ledger.pricing import dollars
from providers.base import Target
from streams.stream import Stream
from telemetry import logs
from telemetry.metrics import Metrics
from telemetry.provider_health import EndedAttempt, ProviderCounts, ProviderHealth

if TYPE_CHECKING:
    from telemetry.tracing import Tracing

KEY_REFUSED = (401, 403)

FEW_CALLS = 8
GATHER_S = 0.02

access = logging.getLogger("sluice.access")
log = logging.getLogger("sluice.records")


class CallRecords:
    """The records of one process's calls."""

    def __init__(
        self, metrics: Metrics, tracing: Tracing | None, under_way: Callable[[], int]
    ) -> None:
        """Write to `metrics` and `tracing`. `under_way` returns the number of active calls."""
        self._metrics, self._tracing, self._under_way = metrics, tracing, under_way
        self._health = ProviderHealth()
        self._ended: deque[tuple[Stream, Outcome, float]] = deque()
        self._some = threading.Event()
        self._thread = BackgroundThread(self._run, "records")

    def health(self) -> dict[str, ProviderCounts]:
        """Return the health of each provider that this process has called, by its name."""
        return self._health.counts()

    def settled(self, stream: Stream, outcome: Outcome) -> None:
        """Record a call that has ended, now or soon."""
        now = time.time()
        if self._under_way() <= FEW_CALLS:
            self._record(stream, outcome, now)
            return
        self._ended.append((stream, outcome, now))
        self._thread.start()
        if not self._some.is_set():
            self._some.set()

    def catch_up(self) -> None:
        """Record all calls that have ended. If one can't be recorded, the others still are."""
        yielder = Yielder()
        while True:
            try:
                ended = self._ended.popleft()
            except IndexError:
                return
            try:
                self._record(*ended)
            except Exception:
                log.exception("the records of a call are lost")
            yielder.yield_if_due()

    def _run(self) -> None:
        while True:
            self._some.wait()
            time.sleep(GATHER_S)
            self._some.clear()
            self.catch_up()

    def _record(self, stream: Stream, outcome: Outcome, ended_at: float) -> None:
        count(self._metrics, stream, outcome)
        note_health(self._health, stream, outcome, ended_at)
        if self._tracing is not None:
            self._tracing.ended(stream, outcome)
        message = "stream" if stream.request.stream else "completion"
        log_call(access, message, log_fields(stream, outcome), ended_at)


def log_call(logger: logging.Logger, message: str, fields: dict[str, Any], moment: float) -> None:
    """Log the line of a call, as `logger.info(message, extra=fields)` would.

    If the only handler writes JSON lines, this skips logging's record, locks and search for
    handlers, and Python's encoder (see docs/decisions/0012-the-worker.md for the gain).

    Args:
        fields: the line's fields, named in logs.FIELDS.
        moment: the line's time, in seconds since 1970.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    handlers = logging.root.handlers
    texts = "\n".join([value for value in fields.values() if isinstance(value, str)])
    if len(handlers) != 1 or type(handlers[0]) is not logs.JsonLines or may_hold_key(texts):
        logger.info(message, extra=fields)
        return
    line = logs.head(moment, "info", logger.name, message) | fields
    if texts.isascii():
        text = msgspec.json.format(msgspec.json.encode(line), indent=0).decode()
    else:  # msgspec doesn't escape other characters
        text = logs.encode(line)
    with contextlib.suppress(OSError, ValueError):  # a full disk must not fail a call
        handlers[0].stream.write(text + "\n")
        handlers[0].stream.flush()


def log_fields(stream: Stream, outcome: Outcome) -> dict[str, Any]:
    """Return the fields of a call's log line."""
    usage = outcome.usage
    fields: dict[str, Any] = {
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
    if stream.target.replica:
        fields["replica"] = stream.target.replica
    if outcome.failures:
        fields["failures"] = outcome.failures
    if outcome.error is not None:
        fields["code"] = outcome.error.code
        details = outcome.error.details or {}
        fields |= {name: details[name] for name in logs.UPSTREAM if details.get(name) is not None}
    return fields


def count(metrics: Metrics, stream: Stream, outcome: Outcome) -> None:
    """Count a call that has ended, and its attempts."""
    metrics.ended(
        stream.endpoint,
        stream.target.provider.name,
        stream.target.model,
        outcome.status,
        outcome.reason,
        outcome.usage,
        outcome.cost,
    )
    if metrics.keys is not None:
        metrics.keys.ended(stream.key_id, outcome.status, outcome.usage, outcome.cost)
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
        if attempt.target.byok and status in KEY_REFUSED:  # the caller's fault, not the provider's
            status, code = None, ByokRejected.code
        metrics.attempted(record.provider, status, code, attempt.target.replica)
    if len(outcome.attempts) > 1:
        metrics.retried(len(outcome.attempts) - 1)


def note_health(health: ProviderHealth, stream: Stream, outcome: Outcome, ended_at: float) -> None:
    """Note the attempts of a call that has ended. ended_at: the Unix time of its end."""
    for attempt in stream.attempts:
        began, failure = attempt.began, attempt.failure
        duration = None
        if outcome.reason == "completed" and failure is None:
            duration = (attempt.ended or stream.opened + outcome.duration) - began
        health.ended(
            EndedAttempt(
                attempt.target.provider.name,
                attempt.target.model,
                ended_at,
                failure,
                failure is not None and is_callers_own(stream, attempt.target, failure),
                duration,
                attempt.first_event and attempt.first_event - began,
            )
        )


def is_callers_own(stream: Stream, target: Target, failure: SluiceError) -> bool:
    """Return True if the caller's own provider key or own time limit made an attempt fail."""
    if isinstance(failure, UpstreamTimeout):
        return stream.deadlines.is_callers_own(failure, target)
    status = failure.upstream_status if isinstance(failure, UpstreamError) else None
    return target.byok and status in KEY_REFUSED


def overhead(stream: Stream, now: float) -> float:
    """Return the seconds of a call, until `now`, in which no attempt was active.

    now: a moment of time.monotonic.
    """
    at_work = sum(min(attempt.ended or now, now) - attempt.began for attempt in stream.attempts)
    return max(0.0, now - stream.opened - at_work)
