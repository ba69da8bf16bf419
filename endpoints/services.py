"""The parts of the application that the endpoints work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from auth import current_app
from cluster.redis_client import RedisClient
from config import Settings
from gateway.gateway import Gateway
from keys.store import KeyStore
from ledger.ledger import Ledger
from quota.quota import Quota
from telemetry.call_records import CallRecords
from telemetry.metrics import Metrics

if TYPE_CHECKING:
    from cluster.ownership import Cluster
    from telemetry.tracing import Tracing


class Services(NamedTuple):
    """What the endpoints work with; app.py puts it together."""

    settings: Settings
    keys: KeyStore
    gateway: Gateway
    quota: Quota
    ledger: Ledger
    metrics: Metrics
    records: CallRecords
    redis_client: RedisClient | None = None
    cluster: Cluster | None = None
    tracing: Tracing | None = None

    def starts(self) -> Iterator[tuple[Callable[[], None], bool]]:
        """What connects to the ledger and to Redis, and raises ConfigError; and whether a server
        that just begins can't do without."""
        yield self.ledger.start, self.settings.ledger_required
        if self.cluster is not None:
            yield self.cluster.start, True

    def close(self) -> None:
        """The process is about to end, and has no call left."""
        self.records.catch_up()
        self.ledger.close()
        if self.cluster is not None:
            self.cluster.close()
        if self.tracing is not None:
            self.tracing.close()


def services() -> Services:
    found: Services = current_app().extensions["sluice"]
    return found
