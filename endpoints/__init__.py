"""The HTTP faces, a blueprint a file. An endpoint knows no dialect, and a dialect no endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from flask import Response, current_app
from werkzeug.datastructures import Headers

from auth import KeyStore
from config import Settings
from gateway import Gateway
from ledger import Ledger
from metrics import Metrics
from quota import Quota
from records import Records
from shared import Shared

if TYPE_CHECKING:
    from fleet import Fleet
    from tracing import Tracing


class Services(NamedTuple):
    """What the endpoints work with; app.py puts it together."""

    settings: Settings
    keys: KeyStore
    gateway: Gateway
    quota: Quota
    ledger: Ledger
    metrics: Metrics
    records: Records
    shared: Shared | None = None
    fleet: Fleet | None = None
    tracing: Tracing | None = None

    def starts(self) -> Iterator[tuple[Callable[[], None], bool]]:
        """What connects to the ledger and to Redis, and raises ConfigError; and whether a server
        that just begins can't do without."""
        yield self.ledger.start, self.settings.ledger_required
        if self.fleet is not None:
            yield self.fleet.start, True

    def close(self) -> None:
        """The process is about to end, and has no call left."""
        self.records.catch_up()
        self.ledger.close()
        if self.fleet is not None:
            self.fleet.close()
        if self.tracing is not None:
            self.tracing.close()


def services() -> Services:
    found: Services = current_app.extensions["sluice"]
    return found


class Answer(Response):
    """Of a completion, or an error: nothing has to be added to its headers, and its body is
    bytes."""

    default_mimetype = "application/json"

    def get_wsgi_headers(self, environ: Any) -> Headers:  # noqa: ARG002
        """As they are. werkzeug looks through a copy for a Location that is not whole and a length
        that is missing, which takes as long as to make the answer."""
        return self.headers

    def iter_encoded(self) -> Iterator[bytes]:
        """What werkzeug does for text takes a step more for each event."""
        body: Any = self.response
        return iter(body)


def json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Answer(msgspec.json.encode(data), status, headers=headers)
