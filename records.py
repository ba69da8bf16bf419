"""What is told of a call that has ended: its line in the log, its metrics, its trace.

Rules that hold here: no I/O but the log's; nothing of what was asked or answered, and no key.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import logs
from call import Outcome
from errors import ByokRejected
from metrics import Metrics
from pricing import dollars
from stream import Stream

if TYPE_CHECKING:
    from tracing import Tracing

KEY_REFUSED = (401, 403)

access = logging.getLogger("sluice.access")


def settled(metrics: Metrics, tracing: Tracing | None, stream: Stream, outcome: Outcome) -> None:
    """A call has ended."""
    count(metrics, stream, outcome)
    if tracing is not None:
        tracing.ended(stream, outcome)
    usage = outcome.usage
    extra: dict[str, Any] = {
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
        "attempts": stream.attempts,
        "end_reason": outcome.reason,
    }
    if outcome.error is not None:
        extra["code"] = outcome.error.code
        details = outcome.error.details or {}
        extra |= {name: details[name] for name in logs.UPSTREAM if details.get(name) is not None}
    access.info("stream" if stream.request.stream else "completion", extra=extra)


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
    for leg, attempt in zip(stream.legs, outcome.tries, strict=True):
        status, code = attempt.status, attempt.code
        if leg.target.byok and status in KEY_REFUSED:  # the caller's doing, not the provider's
            status, code = None, ByokRejected.code
        metrics.attempted(attempt.provider, status, code)
    if len(outcome.tries) > 1:
        metrics.retried(len(outcome.tries) - 1)


def overhead(stream: Stream, now: float) -> float:
    """Seconds of a call, until now, in which no attempt was under way. now: as time.monotonic."""
    at_work = sum(min(leg.ended or now, now) - leg.began for leg in stream.legs)
    return max(0.0, now - stream.opened - at_work)
