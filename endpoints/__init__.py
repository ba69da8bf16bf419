"""The HTTP faces, a blueprint a file. An endpoint knows no dialect, and a dialect no endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from flask import Response
from werkzeug.datastructures import Headers

from auth import current_app
from cluster.redis_client import RedisClient
from config import Settings
from gateway import Gateway
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


class Answer(Response):
    """Of a completion, or an error. Its body is bytes, and its fields are known: werkzeug would
    look through them once to take them in, and once more for what is missing."""

    def __init__(
        self,
        body: Iterable[bytes],
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        """body: its parts. headers: with values that are fit for one."""
        self.fields = {"Content-Type": content_type, **(headers or {})}
        self.headers = Headers()  # what others add
        self.status_code = status
        self.response = body
        self.direct_passthrough = False
        self._on_close = []

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "HEAD":
            self.response = ()
        start_response(self.status, [*self.fields.items(), *self.headers])
        return self

    def __iter__(self) -> Iterator[bytes]:
        body: Any = self.response
        return iter(body)


def json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = msgspec.json.encode(data)
    return Answer((body,), status, {"Content-Length": str(len(body)), **(headers or {})})
