"""Prometheus metrics of the providers' replicas, for a server that has any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge

if TYPE_CHECKING:
    from telemetry.metrics import Labelled


class ReplicaMetrics:
    """The attempts at replicas, and the calls in flight there."""

    def __init__(
        self,
        registry: CollectorRegistry,
        attempts: Labelled,
        calls: Callable[[], Mapping[tuple[str, str], int]],
    ) -> None:
        """Make the metrics.

        Args:
            calls: returns the calls in flight by provider and replica, always for all replicas.
        """
        self.attempts, self._calls = attempts, calls
        self._in_flight = Gauge(
            "sluice_replica_calls",
            "Calls in flight at a replica.",
            ("provider", "replica"),
            registry=registry,
            multiprocess_mode="livesum",
        )

    def refresh(self) -> None:
        for (provider, replica), calls in self._calls().items():
            self._in_flight.labels(provider, replica).set(calls)
