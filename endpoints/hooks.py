"""The hooks of every request and response: ids, client timeouts, headers, CORS, the access log.

- No header or log line from here contains a key of the request.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from flask import Flask, Response
from flask_cors import CORS

from auth import caller
from endpoints import metrics, request_fields, request_secrets
from endpoints.flask_app import Request, current
from endpoints.responses import DirectResponse
from endpoints.services import services
from quota.quota import RATE_PARTS

After = Callable[[Response], Any]
access = logging.getLogger("sluice.access")

EXPOSED = [
    *("X-Request-ID", "X-Stream-ID", "X-Sluice-Dropped", "X-Sluice-Attempts"),
    *("X-Sluice-Resumable", "Location", "ETag"),
    *("X-RateLimit-Bypass", "Retry-After"),
    "Content-Disposition",
    *(f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in RATE_PARTS),
]
"""Response headers that pages of other origins may read."""
NOT_METRICS = r"/(?!/*metrics/*$).*"
"""The paths that pages of other origins may read: all but the metrics, which may need no key.

/metrics/ and //metrics lead to the metrics too, and doubled slashes may redirect there."""


def register(app: Flask, cors_origins: tuple[str, ...]) -> None:
    """Register the hooks. Pages of `cors_origins` may call the API."""
    CORS(
        app,
        resources=[NOT_METRICS],
        origins=[origin_pattern(origin) for origin in cors_origins],
        expose_headers=EXPOSED,
        max_age=86400,
        always_send=False,
    )
    app.after_request_funcs[None] = [for_browsers(work) for work in app.after_request_funcs[None]]
    app.before_request(enter)
    app.after_request(leave)


def origin_pattern(origin: str) -> re.Pattern[str]:
    """Return a pattern of the origins that an item of SLUICE_CORS_ORIGINS allows.

    Flask-CORS would take a text with a star or a bracket for a pattern.
    """
    subdomains = r"://(?:[a-z0-9_-]+\.)+"
    text = ".*" if origin == "*" else re.escape(origin).replace(r"://\*\.", subdomains)
    return re.compile(rf"{text}\Z", re.ASCII | re.IGNORECASE)


def for_browsers(after: After) -> After:
    """Return a hook that runs only for requests with an Origin, so that others skip CORS."""

    def done(response: Response) -> Response:
        return after(response) if "HTTP_ORIGIN" in current().environ else response

    return done


def enter() -> None:
    """Give the request its id, and the client's socket a timeout."""
    request = current()
    request.began = time.monotonic()
    sent = request.environ.get("HTTP_X_REQUEST_ID", "")
    good = (
        sent
        and request_fields.ID.fullmatch(sent)
        and not request_secrets.key_is_too_long()
        and request_secrets.without_secrets(sent) == sent
    )
    request.id = sent if good else str(uuid.uuid4())
    if (client := request.client) is not None:
        client.settimeout(services().settings.client_timeout)


def leave(response: Response) -> Response:
    """Add headers to the response, and log and count it.

    An admitted call is logged and counted at its settlement instead.
    """
    request = current()
    found = {"X-Request-ID": request.id} | rate_headers(request)
    if request.call is not None:
        found["X-Sluice-Attempts"] = str(len(request.call.stream.attempts))
    if isinstance(response, DirectResponse):
        response.fields |= found
    else:
        response.headers.extend(found)
    if (client := request.client) is not None:

        def unbind() -> None:  # between requests the server's own timeouts apply
            with contextlib.suppress(OSError):
                client.settimeout(None)

        response.call_on_close(unbind)
    if request.call is None:
        log_request(request, response)
        metrics.count(response)
    return response


def rate_headers(request: Request) -> dict[str, str]:
    """Return the headers that report the caller's rate limits, or that BYOK bypassed them."""
    key, call = caller(), request.call
    if key is None:
        return {}
    if call is None:
        return services().quota.headers(key)
    if call.stream.target.byok:
        return {"X-RateLimit-Bypass": "BYOK API key used"}
    return services().quota.headers(key, call.hold, call.held)


def log_request(request: Request, response: Response) -> None:
    level = logging.DEBUG if request.path in ("/health", "/ready") else logging.INFO
    extra = {
        "request_id": request.id,
        "method": request.method,
        "path": safe_path(request),
        "status": response.status_code,
        "duration_ms": round((time.monotonic() - request.began) * 1000, 1),
    }
    if request.error_code is not None:
        extra["code"] = request.error_code
    access.log(level, "request", extra=extra)


def safe_path(request: Request) -> str:
    """Return the start of the request's path, without keys."""
    path = request.path[:200]
    fixed = request.url_rule is not None and not request.view_args
    return path if fixed else str(request_secrets.without_secrets(path))
