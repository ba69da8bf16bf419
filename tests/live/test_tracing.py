"""Test of traces from a real server, whose threads are greenlets."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk", reason="traces are optional: requirements-otel.txt")

from tests.support.collector import Collector
from tests.support.servers import Server


def test_all_spans_are_sent_by_the_time_the_server_exits() -> None:
    with Collector() as collector:
        with Server(env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}) as server:
            ask = {"prompt": "A list is", "max_tokens": 5, "stream": True, "model": "local/pydoc"}
            for _ in range(3):
                with server.client() as client:
                    client.request("POST", "/v1/completions", ask)
                    assert client.read_head().status == 200
                    assert b"[DONE]" in client.body()
        names = [span.name for span in collector.spans]
    assert sorted(names) == ["POST /v1/completions"] * 3 + ["text_completion pydoc"] * 3
