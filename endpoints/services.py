"""The services that app.py creates and the endpoints use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from auth import current_app
from cluster.redis_client import RedisClient
from config import Settings
from endpoints.held_bodies import HeldBodies
from gateway.gateway import Gateway
from keys.store import KeyStore
from ledger.ledger import Ledger
from quota.quota import Quota
from telemetry.call_records import CallRecords
from telemetry.metrics import Metrics

if TYPE_CHECKING:
    from cluster.ownership import Cluster
    from streams.replay_sharing import SharedReplays
    from telemetry.tracing import Tracing


class Services(NamedTuple):
    settings: Settings
    keys: KeyStore
    gateway: Gateway
    quota: Quota
    ledger: Ledger
    metrics: Metrics
    records: CallRecords
    bodies: HeldBodies
    redis_client: RedisClient | None = None
    cluster: Cluster | None = None
    shared_replays: SharedReplays | None = None
    tracing: Tracing | None = None

    def starts(self) -> Iterator[tuple[Callable[[], None], bool]]:
        """Yield the functions that connect to the ledger and to Redis, which raise ConfigError.

        Each comes with True if the server can't start without that connection.
        """
        yield self.ledger.start, self.settings.ledger_required
        if self.cluster is not None:
            yield self.cluster.start, True

    def close(self) -> None:
        """Flush what is pending and disconnect, once the process has no calls left."""
        self.records.catch_up()
        self.ledger.close()
        if self.shared_replays is not None:
            self.shared_replays.close()
        if self.cluster is not None:
            self.cluster.close()
        if self.tracing is not None:
            self.tracing.close()


def services() -> Services:
    found: Services = current_app().extensions["sluice"]
    return found
