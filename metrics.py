"""What Prometheus sees: counters and gauges of one app, and their text.

Rules that hold here: the values of a label are bounded, whatever callers send. All but
`ledger_failed` take locks, so they are called in the server's own threads or greenlets, never in a
native thread: under gevent a lock that both share can hold every stream up for seconds.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from completion import Usage

Limit: TypeAlias = Literal["requests", "tokens", "budget"]

REASONS = ("completed", "stopped", "client_gone", "provider_error", "deadline", "shutdown")
LIMITS: tuple[Limit, ...] = ("requests", "tokens", "budget")
REQUEST_LABELS = ("endpoint", "provider", "model", "status")
MOST_MODELS = 200
LONGEST_MODEL = 128
"""Characters of a model's name that a label may have."""
OTHER = "other"
NANO = 1_000_000_000
ODD_VERSION = re.compile(r"version=(?!\d{1,3}\.\d{1,3}\.\d{1,3}\s*([;,]|$))", re.ASCII)
"""What an Accept header may hold that the library fails on, or would repeat in its answer."""

# Else each counter is two series; when the process began is a metric already.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics(Collector):
    """One app's metrics, in a registry of their own, beside those of the process."""

    def __init__(
        self,
        *,
        streams_active: Callable[[], int],
        ledger_queue: Callable[[], int],
        cooling: Callable[[], int],
    ) -> None:
        """The functions are called at each scrape: they neither wait nor raise."""
        self.registry = CollectorRegistry()
        self._models: set[tuple[str, str]] = set()
        self._room = MOST_MODELS
        self._lock = threading.Lock()
        self._ledger_errors = 0
        self._answers: dict[tuple[str, str, str, int], Counter] = {}
        self._requests = self._counter("requests", "Requests answered.", *REQUEST_LABELS)
        self._gauge("streams_active", "Calls under way.", streams_active)
        ended = self._counter("streams_ended", "Calls that have ended.", "reason")
        self._ended = {reason: ended.labels(reason) for reason in REASONS}
        tokens = self._counter("tokens", "Tokens of the calls that have ended.", "direction")
        self._input, self._output = tokens.labels("input"), tokens.labels("output")
        self._cost = self._counter("cost_dollars", "What the calls that have ended cost, in USD.")
        self._gauge("cooldown", "Targets and keys that are left alone for a while.", cooling)
        self._gauge("ledger_queue", "Writes that wait for the ledger.", ledger_queue)
        rejected = self._counter("quota_rejections", "Requests that a quota refused.", "limit")
        self._rejected = {limit: rejected.labels(limit) for limit in LIMITS}
        self._unrecorded = self._counter("ledger_unrecorded", "Calls without a row in the ledger.")
        for collector in (self, PROCESS_COLLECTOR, GC_COLLECTOR, PLATFORM_COLLECTOR):
            self.registry.register(collector)

    def know(self, models: Iterable[str]) -> None:
        """Names, provider/model, that have a label of their own before they were ever served; for
        the operator's own, as there is no bound on them."""
        for name in models:
            provider, _, model = name.partition("/")
            self._models.add((provider, model))

    def answered(self, endpoint: str | None, status: int) -> None:
        """A request that was no call, or was refused before it became one, has its answer.
        endpoint: the route's pattern, None where there is no route."""
        self._count(endpoint or OTHER, "", "", status)

    def ended(
        self,
        endpoint: str,
        provider: str,
        model: str,
        status: int,
        reason: str,
        usage: Usage,
        cost: int | None,
    ) -> None:
        """A call has ended. endpoint: its route's pattern. provider: a row's name. status: what
        the client saw. cost: nano-dollars, None where it isn't known. Raises KeyError for a reason
        that isn't one."""
        self._ended[reason].inc()
        label = self._label(provider, model, served=reason == "completed")
        self._count(endpoint, provider, label, status)
        self._input.inc(usage.input_tokens)
        self._output.inc(usage.output_tokens)
        if cost:
            self._cost.inc(cost / NANO)

    def rejected(self, limit: Limit) -> None:
        """A quota refused a request; its answer counts by itself."""
        self._rejected[limit].inc()

    def unrecorded(self) -> None:
        """A call goes on without a row, because the ledger is away and isn't required."""
        self._unrecorded.inc()

    def ledger_failed(self) -> None:
        """A commit failed. For the ledger's writer, in its native thread too, but in one alone."""
        self._ledger_errors += 1

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that an Accept header asks for, and its content type."""
        encode, content_type = choose_encoder("" if ODD_VERSION.search(accept) else accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[CounterMetricFamily]:
        """For the registry: what is counted without a lock."""
        yield CounterMetricFamily(
            "sluice_ledger_errors_total",
            "Commits to the ledger that failed.",
            value=self._ledger_errors,
        )

    describe = collect

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"sluice_{name}_total", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, value: Callable[[], int]) -> None:
        Gauge(f"sluice_{name}", meaning, registry=self.registry).set_function(value)

    def _count(self, endpoint: str, provider: str, model: str, status: int) -> None:
        labels = (endpoint, provider, model, status)
        counter = self._answers.get(labels)
        if counter is None:  # `labels` takes several times as long as the rest
            counter = self._answers[labels] = self._requests.labels(*labels)
        counter.inc()

    def _label(self, provider: str, model: str, *, served: bool) -> str:
        """The model, when it is known or among the first that were served; else "other". Callers
        write it, and a provider may take any name."""
        pair = (provider, model)
        if pair in self._models:
            return model
        if not served or len(model) > LONGEST_MODEL or not model.isprintable():
            return OTHER
        with self._lock:
            if pair not in self._models:
                if not self._room:
                    return OTHER
                self._room -= 1
                self._models.add(pair)
        return model
