"""Prometheus metrics of resumable streams in Redis, for a server whose processes share one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from streams.replay_counts import ReplayCounts

COUNTERS = {
    "appends": ("appends", "Entries of resumable streams that were written to Redis."),
    "append_seconds": ("append_seconds", "Seconds that writing resumable streams to Redis took."),
    "repeats": ("repeats", "How often Redis had lost a part of a resumable stream."),
    "given_up": ("given_up", "Resumable streams that are in their own process only."),
    "reads": ("reads", "Reads of other processes' resumable streams."),
}
"""The counters: their names and meanings, by the field of ReplayCounts."""


class ReplayMetrics:
    def __init__(self, registry: CollectorRegistry, counts: ReplayCounts) -> None:
        self._counts = counts
        self._counters = {
            field: Counter(f"sluice_replay_{name}_total", meaning, registry=registry)
            for field, (name, meaning) in COUNTERS.items()
        }
        self._counted = dict.fromkeys(COUNTERS, 0.0)
        self._bytes = Gauge(
            "sluice_replay_redis_bytes",
            "Bytes in Redis that are reserved for resumable streams.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._copies = Gauge(
            "sluice_replay_copies",
            "Copies of other processes' resumable streams.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def refresh(self) -> None:
        """Set the gauges, and add what was counted since the last refresh. The caller locks."""
        counts = self._counts
        self._bytes.set(counts.bytes)
        self._copies.set(counts.copies)
        for field, counter in self._counters.items():
            value = getattr(counts, field)
            counter.inc(value - self._counted[field])
            self._counted[field] = value
