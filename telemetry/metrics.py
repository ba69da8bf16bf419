"""Prometheus metrics: the counters, gauges and histograms of one app, and their text.

- If PROMETHEUS_MULTIPROC_DIR is set, the text covers all processes that share that directory, where
  prometheus_client keeps their values. gunicorn.conf.py sets it for several workers.
- A label has a bounded number of values, whatever callers send.
- Every method but `ledger_failed` takes a lock, so none may be called in a native thread: under
  gevent a lock that a native thread shares with greenlets can block every stream for seconds.
- A failing shared directory costs counts, never a call.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
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
from ledger import refusals
from streams.replay_counts import ReplayCounts
from telemetry.key_metrics import KeyLabels, KeyMetrics
from telemetry.multiprocess import Files, GaugeMerge
from telemetry.replay_metrics import ReplayMetrics
from telemetry.replica_metrics import ReplicaMetrics

log = logging.getLogger("sluice.metrics")

Limit: TypeAlias = Literal["requests", "tokens", "budget"]

REASONS = ("completed", "stopped", "client_gone", "provider_error", "deadline", "shutdown")
LIMITS: tuple[Limit, ...] = ("requests", "tokens", "budget")
REFUSALS = refusals.REASONS
REQUESTS = ("requests", "Requests answered.", "endpoint", "provider", "model", "status")
ATTEMPTS = ("attempts", "Attempts at providers.", "provider")
UPSTREAM_ERRORS = ("upstream_errors", "Attempts that failed.", "provider", "code")
REPLICA_ATTEMPTS = (
    *("replica_attempts", "Attempts at replicas, with the code of a failure."),
    *("provider", "replica", "code"),
)
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
        "Seconds of a call in which no attempt was active: admission, queue, waits to retry.",
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
    ),
    "stop": (
        "Seconds from the stop of a call to its end.",
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
    ),
}
"""The durations that are measured: their meanings, and the upper bounds of their buckets in
seconds."""
MOST_MODELS = 200
"""The most models of one process that have a label, beside those that the operator names."""
LONGEST_MODEL = 128
"""The longest model name, in characters, that may be a label."""
OTHER = "other"
NANO = 1_000_000_000
ODD_VERSION = re.compile(r"version=(?!\d{1,3}\.\d{1,3}\.\d{1,3}\s*([;,]|$))", re.ASCII)
"""A version in an Accept header on which prometheus_client fails, or which it would repeat."""

# Without this each counter has a second series; the process' start time is a metric anyway.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Labelled:
    """A counter with labels. Each series is made when it is first counted, and kept."""

    _making = threading.Lock()
    """A lock that all counters share, because their series share a file: it must not fill up
    between the check for room and the making of a series."""

    def __init__(self, registry: CollectorRegistry, files: Files | None, *about: str) -> None:
        """Make a counter. about: its name, its meaning, and the names of its labels."""
        self._name, self._meaning, *self._names = about
        self._name = f"sluice_{self._name}"
        self._counter = Counter(
            f"{self._name}_total", self._meaning, self._names, registry=registry
        )
        self._files = files
        self._series: dict[tuple[str | int, ...], Counter] = {}

    def inc(self, *labels: str | int, amount: float = 1) -> None:
        counter = self._series.get(labels)
        if counter is None:
            with self._making:
                if not self._has_room(labels):
                    return
                counter = self._series[labels] = self._counter.labels(*labels)
        counter.inc(amount)

    def _has_room(self, labels: tuple[str | int, ...]) -> bool:
        """Return True if one more series can be kept."""
        if self._files is None:
            return True
        texts = [str(value) for value in labels]
        key = mmap_key(self._name, f"{self._name}_total", self._names, texts, self._meaning)
        return self._files.make_room(key)


class Metrics(Collector):
    """The metrics of one app, in a registry of its own.

    The registry has the process' own metrics too, unless several processes share theirs.
    """

    keys: KeyMetrics | None = None
    """The metrics by key, if the operator has enabled them."""
    _replicas: ReplicaMetrics | None = None
    _replays: ReplayMetrics | None = None

    def __init__(
        self,
        *,
        streams_active: Callable[[], int],
        ledger_queue: Callable[[], int],
        cooling: Callable[[], int],
        redis_up: Callable[[], bool] | None = None,
    ) -> None:
        """Make the metrics. The functions are called at each refresh; they don't wait or raise.

        Args:
            redis_up: None if there is no Redis.
        """
        self.registry = self._shown = CollectorRegistry()
        self.registry.register(self)
        self._files: Files | None = None
        self._share()
        self._models: set[tuple[str, str]] = set()
        self._room = MOST_MODELS
        self._lock = threading.Lock()
        self._failures = self._counted_failures = 0
        self._gauges: list[tuple[Gauge, Callable[[], int]]] = []
        self._requests = self._labelled(*REQUESTS)
        self._attempts = self._labelled(*ATTEMPTS)
        self._upstream_errors = self._labelled(*UPSTREAM_ERRORS)
        self._retries = self._counter("retries", "Attempts after a call's first one.")
        self._times = {name: self._histogram(name) for name in TIMES}
        self._gauge("streams_active", "Active calls.", streams_active, "livesum")
        ended = self._counter("streams_ended", "Calls that have ended.", "reason")
        self._ended = {reason: ended.labels(reason) for reason in REASONS}
        tokens = self._counter("tokens", "Tokens of the calls that have ended.", "direction")
        self._input, self._output = tokens.labels("input"), tokens.labels("output")
        self._cost = self._counter("cost_dollars", "What the calls that have ended cost, in USD.")
        meaning = "Targets and keys that are left alone for a while."
        self._gauge("cooldown", meaning, cooling, "livemax")  # processes share their cool-downs
        self._gauge("ledger_queue", "Writes that wait for the ledger.", ledger_queue, "livesum")
        self._failed = self._counter("ledger_errors", "Commits to the ledger that failed.")
        rejected = self._counter("quota_rejections", "Requests that a quota refused.", "limit")
        self._rejected = {limit: rejected.labels(limit) for limit in LIMITS}
        refused = self._counter("refusals", "Calls that a key was refused.", "reason")
        self._refusals = {reason: refused.labels(reason) for reason in REFUSALS}
        self._unrecorded = self._counter("ledger_unrecorded", "Calls without a row in the ledger.")
        if redis_up is not None:
            # 1 until the first refresh, because the least of all processes' values is shown.
            self._gauge("redis_up", "Whether Redis can be reached.", redis_up, "livemin", first=1)

    def know(self, models: Iterable[str]) -> None:
        """Give models a label before they have ever been served, without a bound on their number.

        models: the operator's models, as provider/model.
        """
        for name in models:
            provider, _, model = name.partition("/")
            self._models.add((provider, model))

    def watch_replicas(self, calls: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Add the metrics of replicas. calls: as in ReplicaMetrics."""
        attempts = self._labelled(*REPLICA_ATTEMPTS)
        self._replicas = ReplicaMetrics(self.registry, attempts, calls)

    def watch_replays(self, counts: ReplayCounts) -> None:
        """Add the metrics of resumable streams in Redis."""
        self._replays = ReplayMetrics(self.registry, counts)

    def watch_keys(self, labels_of: Callable[[str], KeyLabels]) -> None:
        """Add the metrics by key. labels_of: as in KeyMetrics."""
        self.keys = KeyMetrics(self._labelled, labels_of)

    def answered(self, endpoint: str | None, status: int) -> None:
        """Count the response to a request that was no call, or was refused before it became one.

        endpoint: the route's pattern; None if no route matched.
        """
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
        """Count a call that has ended.

        Args:
            endpoint: the route's pattern.
            provider: the name of a row.
            status: the HTTP status that the client received.
            reason: one of REASONS; KeyError is raised for any other.
            cost: nano-dollars; None if the cost is unknown.
        """
        self._ended[reason].inc()
        label = self._label(provider, model, served=reason == "completed")
        self._requests.inc(endpoint, provider, label, status)
        self._input.inc(usage.input_tokens)
        self._output.inc(usage.output_tokens)
        if cost:
            self._cost.inc(cost / NANO)

    def took(self, **times: float | None) -> None:
        """Observe the durations of a call that has ended.

        times: seconds by a name in TIMES; None if the call had no such part.
        """
        for name, seconds in times.items():
            if seconds is not None:
                self._times[name].observe(seconds)

    def attempted(
        self, provider: str, status: int | None, code: str | None, replica: str = ""
    ) -> None:
        """Count an attempt that has ended.

        Args:
            status: the HTTP status of the provider's error response, if there was one.
            code: the code of Sluice's error; None if the attempt succeeded.
            replica: the name of the provider's replica; empty if it has none.
        """
        self._attempts.inc(provider)
        reason = ""
        if code is not None:
            known = status is not None and 400 <= status < 600
            reason = str(status) if known else code
            self._upstream_errors.inc(provider, reason)
        if replica and self._replicas is not None:
            self._replicas.attempts.inc(provider, replica, reason)

    def retried(self, times: int) -> None:
        """Count the attempts that a call made after its first."""
        self._retries.inc(times)

    def rejected(self, limit: Limit) -> None:
        """Count a request that a quota refused. Its response is counted separately."""
        self._rejected[limit].inc()

    def refused(self, reason: str) -> None:
        """Count a call that was refused before it was admitted. reason: one of REFUSALS."""
        self._refusals[reason].inc()

    def unrecorded(self) -> None:
        """Count a call without a row in the ledger, which is unavailable and not required."""
        self._unrecorded.inc()

    def ledger_failed(self) -> None:
        """Count a failed commit. Takes no lock: only the ledger's writer thread may call this."""
        self._failures += 1

    def refresh(self) -> None:
        """Set the gauges, and add the failed commits since the last refresh.

        A scrape refreshes the process that serves it. Processes that share their metrics refresh
        every second too.
        """
        for gauge, value in self._gauges:
            gauge.set(value())
        if self._replicas is not None:
            self._replicas.refresh()
        with self._lock:
            if self._replays is not None:
                self._replays.refresh()
            failures = self._failures
            self._failed.inc(failures - self._counted_failures)
            self._counted_failures = failures

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that an Accept header requests, and its content type."""
        encode, content_type = choose_encoder("" if ODD_VERSION.search(accept) else accept)
        return encode(self._shown), content_type

    def collect(self) -> Iterable[Metric]:
        """Refresh. The registry calls this before it collects the other metrics."""
        self.refresh()
        return ()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: this collector has no metrics of its own."""
        return ()

    def _share(self) -> None:
        """Choose where values are kept and which are shown, before any value is made."""
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
        """Add a gauge. first: its value until the first refresh."""
        gauge = Gauge(f"sluice_{name}", meaning, registry=self.registry, multiprocess_mode=merge)
        gauge.set(first)
        self._gauges.append((gauge, value))

    def _label(self, provider: str, model: str, *, served: bool) -> str:
        """Return the model's label: its name if it is known or among the first that were served,
        else "other". Callers choose names freely, and a provider may accept any."""
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
