"""What happens at every request and response: ids, deadlines, headers, the log line, and errors.

- Each error has one handler, and its answer has the form of the face that was asked.
- Nothing that is shown or logged here holds a key of the request.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from flask import Flask, Response
from flask_cors import CORS
from werkzeug.exceptions import HTTPException

from auth import caller
from completion import new_uuid
from endpoints import metrics, native, openai, request_fields, request_secrets
from endpoints.flask_app import Request, current
from endpoints.responses import DirectResponse, json_response
from endpoints.services import services
from errors import (
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestTooLarge,
    SluiceError,
    UnsupportedMediaType,
    forget_frames,
)
from quota.quota import RATE_PARTS
from telemetry.metrics import LIMITS

After = Callable[[Response], Any]
log = logging.getLogger("sluice.app")
access = logging.getLogger("sluice.access")

EXPOSED = [
    *("X-Request-ID", "X-Stream-ID", "X-Sluice-Dropped", "X-Sluice-Attempts"),
    *("X-RateLimit-Bypass", "Retry-After"),
    "Content-Disposition",
    *(f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in RATE_PARTS),
]
"""Headers that a page of another origin may read."""
NOT_METRICS = r"/(?!metrics/?$).*"
"""Pages of other origins may read anything but the metrics, which may need no key."""
HTTP_ERRORS: dict[int, type[SluiceError]] = {
    404: NotFound,
    405: MethodNotAllowed,
    413: RequestTooLarge,
    415: UnsupportedMediaType,
}


def register(app: Flask, cors_origins: tuple[str, ...]) -> None:
    """Register the hooks and the error handlers of an app.

    Args:
        cors_origins: the origins whose pages may call it.
    """
    CORS(
        app,
        resources=[NOT_METRICS],
        origins=list(cors_origins),
        expose_headers=EXPOSED,
        max_age=86400,
        always_send=False,
    )
    app.after_request_funcs[None] = [for_browsers(work) for work in app.after_request_funcs[None]]
    app.before_request(enter)
    app.after_request(leave)
    app.register_error_handler(SluiceError, error_response)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, unexpected)


def for_browsers(after: After) -> After:
    """Return a hook that runs only for a page's request, so that others pay nothing for CORS."""

    def done(response: Response) -> Response:
        return after(response) if "HTTP_ORIGIN" in current().environ else response

    return done


def enter() -> None:
    """A request comes in: name it, and bound how long its client may keep us waiting."""
    request = current()
    request.began = time.monotonic()
    sent = request.environ.get("HTTP_X_REQUEST_ID", "")
    good = (
        sent and request_fields.ID.fullmatch(sent) and request_secrets.without_secrets(sent) == sent
    )
    request.id = sent if good else new_uuid()
    if (client := request.client) is not None:
        client.settimeout(services().settings.client_timeout)


def leave(response: Response) -> Response:
    """A response goes out. A call that was admitted is logged when it is settled."""
    request = current()
    found = {"X-Request-ID": request.id} | rate_headers(request)
    if request.call is not None:
        found["X-Sluice-Attempts"] = str(len(request.call.stream.attempts))
    if isinstance(response, DirectResponse):
        response.fields |= found
    else:
        response.headers.extend(found)
    if (client := request.client) is not None:

        def unbind() -> None:  # the server's own time-outs hold between requests
            with contextlib.suppress(OSError):
                client.settimeout(None)

        response.call_on_close(unbind)
    if request.call is None:
        log_request(request, response)
        metrics.count(response)
    return response


def rate_headers(request: Request) -> dict[str, str]:
    """What the caller's limits have left."""
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
        "path": request_secrets.without_secrets(request.path[:200]),
        "status": response.status_code,
        "duration_ms": round((time.monotonic() - request.began) * 1000, 1),
    }
    if request.error_code is not None:
        extra["code"] = request.error_code
    access.log(level, "request", extra=extra)


def error_response(error: SluiceError) -> Response:
    request = current()
    request.error_code = error.code
    limit = (error.details or {}).get("limit_type")
    if limit in LIMITS:
        services().metrics.rejected(limit)
    error.message = request_secrets.without_secrets(error.message)
    error.param = request_secrets.without_secrets(error.param)
    error.details = request_secrets.without_secrets(error.details)
    forget_frames(error)
    face = openai if request.path.startswith("/v1/") else native
    return json_response(face.error_body(error, request.id), error.status, error.headers)


def http_error(error: HTTPException) -> Response:
    """What Flask and werkzeug raise, as ours."""
    kind = HTTP_ERRORS.get(error.code or 500)
    if kind is None and (error.code or 500) >= 500:
        return unexpected(error)
    allowed = getattr(error, "valid_methods", None)
    headers = {"Allow": ", ".join(sorted(allowed))} if allowed else {}
    return error_response((kind or InvalidRequest)(http_message(error), headers=headers))


def http_message(error: HTTPException) -> str:
    if error.code == 404:
        return "Nothing is at this path."  # to name it could say "model" to the official client
    if error.code == 405:
        request = current()
        return f"{request.path[:200]} doesn't take {request.method}."
    return error.description or error.name


def unexpected(error: Exception) -> Response:
    """A defect of ours: the log has it, the client learns its id only."""
    request = current()
    path = request_secrets.without_secrets(request.path[:200])
    extra = {"request_id": request.id}
    log.error("%s %s failed", request.method, path, exc_info=error, extra=extra)
    return error_response(InternalError())
