"""The development server of `python wsgi.py`: Werkzeug's, which settles active calls at its end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from flask import Flask
from werkzeug.wsgi import ClosingIterator

from endpoints.services import Services

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

DRAIN_S: Final = 2.0
"""The time in which calls may still end by themselves. gunicorn.conf.py has it for Ctrl-C."""
FAREWELL_S: Final = 2.0
"""The time for the last events to reach their clients."""
WATCH_S: Final = 0.05


class OpenResponses:
    """A WSGI application that counts the responses whose last byte isn't written yet."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._open = 0

    def __len__(self) -> int:
        return self._open

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self._count(1)
        try:
            return ClosingIterator(self._app(environ, start_response), lambda: self._count(-1))
        except BaseException:
            self._count(-1)
            raise

    def _count(self, change: int) -> None:
        with self._lock:
            self._open += change


def serve(app: Flask, host: str, port: int) -> None:
    """Serve until Ctrl-C or TERM, and then end the active calls with an error event.

    The connections to the ledger and to Redis must have been made. They are closed.
    """
    services: Services = app.extensions["sluice"]
    responses = OpenResponses(app.wsgi_app)
    app.wsgi_app = responses  # type: ignore[method-assign]  # Flask's documented way
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            app.run(host=host, port=port, threaded=True)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one ends the process at once
            signal.signal(number, signal.SIG_DFL)
        drain(services, responses)
        services.close()


def drain(services: Services, responses: OpenResponses) -> None:
    """Wait for calls to end, then end the remaining ones, and wait for their last events.

    Connections that follow streams of other processes are cut at once, as in gunicorn.conf.py.
    """
    gateway = services.gateway
    gateway.draining = True
    patience = time.monotonic() + DRAIN_S
    while time.monotonic() < patience + FAREWELL_S:
        if services.shared_replays is not None:
            services.shared_replays.leave()  # again, because a request may just have begun
        if not (len(gateway.streams) or len(responses)):
            break
        if time.monotonic() > patience:
            gateway.streams.end_all()
        time.sleep(WATCH_S)
