"""The error handlers, which turn each error into a response in the format of the requested face.

- No response or log line from here contains a key of the request.
- The details of a bug go to the log only. The client gets the request id.
"""

from __future__ import annotations

import logging

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from auth import caller
from endpoints import native, openai, request_secrets, unknown_paths
from endpoints.flask_app import current
from endpoints.responses import json_response
from endpoints.services import services
from errors import (
    OWN_NAME,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestTooLarge,
    SluiceError,
    Unauthorized,
    UnsupportedMediaType,
    forget_frames,
)
from ledger import refusals
from telemetry.metrics import LIMITS

log = logging.getLogger("sluice.app")

HTTP_ERRORS: dict[int, type[SluiceError]] = {
    404: NotFound,
    405: MethodNotAllowed,
    413: RequestTooLarge,
    415: UnsupportedMediaType,
}


def register(app: Flask) -> None:
    app.register_error_handler(SluiceError, error_response)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, unexpected)


def error_response(error: SluiceError) -> Response:
    request = current()
    request.error_code = error.code
    limit = (error.details or {}).get("limit_type")
    if limit in LIMITS:
        services().metrics.rejected(limit)
    if request.call is None:
        count_refusal(error)
    if not isinstance(error, Unauthorized):  # its text is fixed
        error.message = request_secrets.without_secrets(error.message)
        error.param = request_secrets.without_secrets(error.param)
        error.details = request_secrets.without_secrets(error.details)
    forget_frames(error)
    face = openai if unknown_paths.is_openai(request.path) else native
    return json_response(face.error_body(error, request.id), error.status, error.headers)


def count_refusal(error: SluiceError) -> None:
    """Count a call that was refused before it was admitted, if its reason is counted."""
    key, reason = caller(), refusals.reason_of(error)
    if key is not None and reason is not None:
        metrics = services().metrics
        metrics.refused(reason)
        if metrics.keys is not None:
            metrics.keys.refused(key.id, reason)
        services().ledger.refused(key.id, reason)


def http_error(error: HTTPException) -> Response:
    """Return the response for an error that Flask or werkzeug raised."""
    kind = HTTP_ERRORS.get(error.code or 500)
    if kind is None and (error.code or 500) >= 500:
        return unexpected(error)
    allowed = getattr(error, "valid_methods", None)
    headers = {"Allow": ", ".join(sorted(allowed))} if allowed else {}
    if error.code == 404:
        headers["Via"] = OWN_NAME  # so that a Sluice that calls itself notices
    return error_response((kind or InvalidRequest)(http_message(error), headers=headers))


def http_message(error: HTTPException) -> str:
    if error.code == 404:
        return unknown_paths.message(current().path)
    if error.code == 405:
        request = current()
        return f"{request.path[:200]} doesn't allow {request.method}."
    return error.description or error.name


def unexpected(error: Exception) -> Response:
    """Log a bug, and return a 500 that shows only the request id."""
    request = current()
    path = request_secrets.without_secrets(request.path[:200])
    extra = {"request_id": request.id}
    log.error("%s %s failed", request.method, path, exc_info=error, extra=extra)
    return error_response(InternalError())
