"""What Prometheus sees: counters and gauges of one app, and their text.

Where PROMETHEUS_MULTIPROC_DIR is set, as gunicorn.conf.py does for several workers, the text is
that of all processes that have that directory: prometheus_client keeps each one's values there.

Rules that hold here: the values of a label are bounded, whatever callers send. All but
`ledger_failed` take locks, so they are called in the server's own threads or greenlets, never in a
native thread: under gevent a lock that both share can hold every stream up for seconds. Trouble
with a shared directory costs counts, never a call.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeAlias

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    values,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from completion import Usage
from telemetry.multiprocess import Files, GaugeMerge

log = logging.getLogger("sluice.metrics")

Limit: TypeAlias = Literal["requests", "tokens", "budget"]

REASONS = ("completed", "stopped", "client_gone", "provider_error", "deadline", "shutdown")
LIMITS: tuple[Limit, ...] = ("requests", "tokens", "budget")
REQUESTS = ("requests", "Requests answered.", "endpoint", "provider", "model", "status")
ATTEMPTS = ("attempts", "Attempts at providers.", "provider")
UPSTREAM_ERRORS = ("upstream_errors", "Attempts that failed.", "provider", "code")
TIMES = {
    "request_duration": (
        "Seconds from a call's admission to its end.",
        (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    ),
    "first_event": (
        "Seconds from a call's admission to the first event of its answer.",
        (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    ),
    "overhead": (
        "Seconds of a call in which no attempt was under way: admission, queue, waits to retry.",
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
    ),
    "stop": (
        "Seconds from the stop of a call to its end.",
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
    ),
}
"""What is measured, and the upper bounds of its buckets, in seconds."""
MOST_MODELS = 200
"""Of one process."""
LONGEST_MODEL = 128
"""Characters of a model's name that a label may have."""
OTHER = "other"
NANO = 1_000_000_000
ODD_VERSION = re.compile(r"version=(?!\d{1,3}\.\d{1,3}\.\d{1,3}\s*([;,]|$))", re.ASCII)
"""What an Accept header may hold that the library fails on, or would repeat in its answer."""

# Else each counter is two series; when the process began is a metric already.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Labelled:
    """A counter with labels, whose series are made when they are first counted."""

    _making = threading.Lock()
    """One for all: their series share a file, whose room is looked at before one is made."""

    def __init__(self, registry: CollectorRegistry, files: Files | None, *about: str) -> None:
        """about: the name, the meaning, and the labels' names."""
        self._name, self._meaning, *self._names = about
        self._name = f"sluice_{self._name}"
        self._counter = Counter(
            f"{self._name}_total", self._meaning, self._names, registry=registry
        )
        self._files = files
        self._series: dict[tuple[str | int, ...], Counter] = {}

    def inc(self, *labels: str | int) -> None:
        counter = self._series.get(labels)
        if counter is None:  # `labels` takes several times as long as the rest
            with self._making:
                if not self._has_room(labels):
                    return
                counter = self._series[labels] = self._counter.labels(*labels)
        counter.inc()

    def _has_room(self, labels: tuple[str | int, ...]) -> bool:
        """Whether one more series can be kept."""
        if self._files is None:
            return True
        texts = [str(value) for value in labels]
        key = mmap_key(self._name, f"{self._name}_total", self._names, texts, self._meaning)
        return self._files.make_room(key)


class Metrics(Collector):
    """One app's metrics, in a registry of their own: beside those of the process, unless several
    processes share them."""

    def __init__(
        self,
        *,
        streams_active: Callable[[], int],
        ledger_queue: Callable[[], int],
        cooling: Callable[[], int],
        redis_up: Callable[[], bool] | None = None,
    ) -> None:
        """The functions are called at each refresh: they neither wait nor raise. redis_up: None
        where there is no Redis."""
        self.registry = self._shown = CollectorRegistry()
        self.registry.register(self)
        self._files: Files | None = None
        self._share()
        self._models: set[tuple[str, str]] = set()
        self._room = MOST_MODELS
        self._lock = threading.Lock()
        self._failures = self._told_failures = 0
        self._gauges: list[tuple[Gauge, Callable[[], int]]] = []
        self._requests = self._labelled(*REQUESTS)
        self._attempts = self._labelled(*ATTEMPTS)
        self._upstream_errors = self._labelled(*UPSTREAM_ERRORS)
        self._retries = self._counter("retries", "Attempts after a call's first one.")
        self._times = {name: self._histogram(name) for name in TIMES}
        self._gauge("streams_active", "Calls under way.", streams_active, "livesum")
        ended = self._counter("streams_ended", "Calls that have ended.", "reason")
        self._ended = {reason: ended.labels(reason) for reason in REASONS}
        tokens = self._counter("tokens", "Tokens of the calls that have ended.", "direction")
        self._input, self._output = tokens.labels("input"), tokens.labels("output")
        self._cost = self._counter("cost_dollars", "What the calls that have ended cost, in USD.")
        meaning = "Targets and keys that are left alone for a while."
        self._gauge("cooldown", meaning, cooling, "livemax")  # the processes tell each other
        self._gauge("ledger_queue", "Writes that wait for the ledger.", ledger_queue, "livesum")
        self._failed = self._counter("ledger_errors", "Commits to the ledger that failed.")
        rejected = self._counter("quota_rejections", "Requests that a quota refused.", "limit")
        self._rejected = {limit: rejected.labels(limit) for limit in LIMITS}
        self._unrecorded = self._counter("ledger_unrecorded", "Calls without a row in the ledger.")
        if redis_up is not None:
            # 1 until it is asked: of all processes' answers the least is shown.
            self._gauge("redis_up", "Whether Redis can be reached.", redis_up, "livemin", first=1)

    def know(self, models: Iterable[str]) -> None:
        """Names, provider/model, that have a label of their own before they were ever served; for
        the operator's own, as there is no bound on them."""
        for name in models:
            provider, _, model = name.partition("/")
            self._models.add((provider, model))

    def answered(self, endpoint: str | None, status: int) -> None:
        """A request that was no call, or was refused before it became one, has its answer.
        endpoint: the route's pattern, None where there is no route."""
        self._requests.inc(endpoint or OTHER, "", "", status)

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
        self._requests.inc(endpoint, provider, label, status)
        self._input.inc(usage.input_tokens)
        self._output.inc(usage.output_tokens)
        if cost:
            self._cost.inc(cost / NANO)

    def took(self, **times: float | None) -> None:
        """How long parts of a call that has ended took, in seconds, by the names of TIMES; None:
        it had no such part."""
        for name, seconds in times.items():
            if seconds is not None:
                self._times[name].observe(seconds)

    def attempted(self, provider: str, status: int | None, code: str | None) -> None:
        """An attempt has ended. code: our error's, None if it went well. status: what its provider
        answered, where that is what failed."""
        self._attempts.inc(provider)
        if code is not None:
            known = status is not None and 400 <= status < 600
            self._upstream_errors.inc(provider, str(status) if known else code)

    def retried(self, times: int) -> None:
        """A call has ended that made so many attempts after its first."""
        self._retries.inc(times)

    def rejected(self, limit: Limit) -> None:
        """A quota refused a request; its answer counts by itself."""
        self._rejected[limit].inc()

    def unrecorded(self) -> None:
        """A call goes on without a row, because the ledger is away and isn't required."""
        self._unrecorded.inc()

    def ledger_failed(self) -> None:
        """A commit failed. For the ledger's writer, in its native thread too, but in one alone."""
        self._failures += 1

    def refresh(self) -> None:
        """Bring up to date what isn't counted as it happens. Where several processes share their
        metrics, each does it every second; and each scrape does it for the process that it asks."""
        for gauge, value in self._gauges:
            gauge.set(value())
        with self._lock:
            failures = self._failures
            self._failed.inc(failures - self._told_failures)
            self._told_failures = failures

    def render(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that an Accept header asks for, and its content type."""
        encode, content_type = choose_encoder("" if ODD_VERSION.search(accept) else accept)
        return encode(self._shown), content_type

    def collect(self) -> Iterable[Metric]:
        """For a registry, which asks this before all others."""
        self.refresh()
        return ()

    def describe(self) -> Iterable[Metric]:
        """For a registry: there is nothing to show here itself."""
        return ()

    def _share(self) -> None:
        """Before any value is made: where are they kept, and which are shown?"""
        if values.ValueClass is values.MutexValue:
            for collector in (PROCESS_COLLECTOR, GC_COLLECTOR, PLATFORM_COLLECTOR):
                self.registry.register(collector)
            return
        try:
            everyone = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
            self._shown = CollectorRegistry()
            self._shown.register(self)
            self._shown.register(everyone)
            self._files = Files(Path(everyone._path))
        except (OSError, ValueError) as error:
            log.error("what this process counts will be missing in the metrics: %s", error)
            values.ValueClass = values.MutexValue

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"sluice_{name}_total", meaning, labels, registry=self.registry)

    def _histogram(self, name: str) -> Histogram:
        meaning, bounds = TIMES[name]
        full_name = f"sluice_{name}_seconds"
        return Histogram(full_name, meaning, buckets=bounds, registry=self.registry)

    def _labelled(self, *about: str) -> Labelled:
        return Labelled(self.registry, self._files, *about)

    def _gauge(
        self,
        name: str,
        meaning: str,
        value: Callable[[], int],
        merge: GaugeMerge,
        *,
        first: int = 0,
    ) -> None:
        """first: what it is until the first refresh."""
        gauge = Gauge(f"sluice_{name}", meaning, registry=self.registry, multiprocess_mode=merge)
        gauge.set(first)
        self._gauges.append((gauge, value))

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
