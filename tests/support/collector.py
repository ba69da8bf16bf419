"""A collector of traces on loopback, which decodes the data of an OpenTelemetry exporter."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.pace import HANG_S


class Span(NamedTuple):
    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, Any]
    events: list[tuple[str, int]]
    failed: bool
    service: str


class Collector:
    """A running collector: `with Collector() as collector: ...`

    Attributes:
        spans: The received spans.
        raw: The bodies and headers of all requests.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        spans, keep = self.spans, self._keep

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                keep(body + repr(self.headers.items()).encode())
                if self.path == "/v1/traces":
                    spans.extend(decoded(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def _keep(self, data: bytes) -> None:
        self.raw += data

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(HANG_S)


def decoded(body: bytes) -> list[Span]:
    found = []
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = plain(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                events = [(event.name, event.time_unix_nano) for event in span.events]
                read = Span(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    attributes=plain(span.attributes),
                    events=events,
                    failed=span.status.code == 2,
                    service=service,
                )
                found.append(read)
    return found


def plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}
