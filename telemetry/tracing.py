"""Traces for OpenTelemetry: a span for each call, with a child for each attempt at a provider.

- This module is imported only if OTEL_EXPORTER_OTLP_ENDPOINT is set.
- Spans are made after the call has ended, from the data that its stream kept, so tracing costs an
  active call nothing. The SDK's own thread sends them in batches, and drops those it can't send.
- A span holds no key, and no text of a prompt or a completion. Of an error it holds only the code.
- The SDK reads its other variables itself (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS,
  OTEL_TRACES_SAMPLER, ...).

Source: OpenTelemetry semantic conventions, "HTTP spans" and "GenAI spans" (read 2026-11).
"""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from config import VERSION
from gateway.call import AttemptRecord, Outcome
from streams.stream import Attempt, Stream

NANO = 1_000_000_000
Attributes = dict[str, str | int | float | bool]


class Tracing:
    """The traces of one process."""

    def __init__(self, endpoint: str) -> None:
        """Send to a collector. endpoint: its base URL, such as http://127.0.0.1:4318."""
        resource = Resource.create()
        names = {"service.name": "sluice", "service.version": VERSION}
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource(names))
        self._provider = TracerProvider(resource=resource)
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("sluice", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, stream: Stream, outcome: Outcome) -> None:
        """Make the spans of a call that has ended."""

        def wall(moment: float) -> int:
            """Convert a moment of time.monotonic to nanoseconds since 1970."""
            return int((stream.opened_at + moment - stream.opened) * NANO)

        end = stream.opened + outcome.duration
        parent = self._propagator.extract({"traceparent": stream.traceparent})
        span = self._tracer.start_span(
            f"POST {stream.endpoint}",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=wall(stream.opened),
            attributes=of_call(stream, outcome),
        )
        if stream.first_visible is not None:
            span.add_event("first_event", timestamp=wall(stream.first_visible))
        if outcome.status >= 500 or outcome.error is not None:
            span.set_status(Status(StatusCode.ERROR))
        within = set_span_in_context(span)
        for attempt, record in zip(stream.attempts, outcome.attempts, strict=False):
            child = self._tracer.start_span(
                f"text_completion {record.model}",
                context=within,
                kind=SpanKind.CLIENT,
                start_time=wall(attempt.began),
                attributes=of_attempt(attempt, record),
            )
            if attempt.first_event is not None:
                child.add_event("first_event", timestamp=wall(attempt.first_event))
            if record.code is not None:
                child.set_status(Status(StatusCode.ERROR))
            child.end(wall(attempt.ended or end))
        span.end(wall(end))

    def close(self) -> None:
        """Send the spans that wait, and stop."""
        self._provider.shutdown()


def of_call(stream: Stream, outcome: Outcome) -> Attributes:
    attributes: Attributes = {
        "http.request.method": "POST",
        "http.route": stream.endpoint,
        "http.response.status_code": outcome.status,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.usage.input_tokens": outcome.usage.input_tokens,
        "gen_ai.usage.output_tokens": outcome.usage.output_tokens,
        "sluice.request_id": stream.request_id,
        "sluice.stream_id": stream.id,
        "sluice.key_id": stream.key_id,
        "sluice.streamed": stream.request.stream,
        "sluice.end_reason": outcome.reason,
    }
    if outcome.error is not None:
        attributes["error.type"] = outcome.error.code
    return attributes


def of_attempt(attempt: Attempt, record: AttemptRecord) -> Attributes:
    attributes: Attributes = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": record.provider,
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.input_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "sluice.key_number": record.key,
        "sluice.byok": attempt.target.byok,
    }
    if attempt.target.replica:
        attributes["sluice.replica"] = attempt.target.replica
    if record.status is not None:
        attributes["http.response.status_code"] = record.status
    if record.code is not None:
        attributes["error.type"] = record.code
    return attributes
