"""create_app: the only place where the parts are wired together."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

from flask import Flask, Response
from flask_cors import CORS
from werkzeug.exceptions import HTTPException

import cli
import endpoints.metrics
from auth import caller
from cluster.redis_client import RedisClient
from completion import new_uuid
from config import ConfigError, Settings
from endpoints import (
    Answer,
    Services,
    body,
    health,
    json_response,
    models,
    native,
    openai,
    openapi,
    pages,
    request_secrets,
    services,
    usage,
)
from endpoints.inbound import App, Request, current
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
from gateway import Gateway
from keys.store import KeyStore
from ledger.database import database_url
from ledger.ledger import Ledger
from quota.quota import RATE_PARTS, Quota
from routing.circuit_breaker import CircuitBreakers
from server.read_deadline import read_deadlines
from telemetry import logs
from telemetry.call_records import CallRecords
from telemetry.metrics import LIMITS, Metrics

if TYPE_CHECKING:
    from telemetry.tracing import Tracing

After = Callable[[Response], Any]
log = logging.getLogger("sluice.app")
access = logging.getLogger("sluice.access")

EXPOSED = [
    *("X-Request-ID", "X-Stream-ID", "X-Sluice-Dropped", "X-Sluice-Attempts"),
    *("X-RateLimit-Bypass", "Retry-After"),
    "Content-Disposition",
    *(f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in RATE_PARTS),
]
NOT_METRICS = r"/(?!metrics/?$).*"
"""Pages of other origins may read anything but the metrics, which may need no key."""
HTTP_ERRORS: dict[int, type[SluiceError]] = {
    404: NotFound,
    405: MethodNotAllowed,
    413: RequestTooLarge,
    415: UnsupportedMediaType,
}


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI application. Raises ConfigError when its configuration can't be used."""
    settings = settings or Settings.from_env()
    logs.configure(settings.log_format, settings.log_level)
    for warning in settings.warnings:
        log.warning(warning)
    app = App(__name__, static_folder=None)
    app.url_map.strict_slashes = False
    app.extensions["sluice"] = wire(settings)
    app.extensions["read_deadlines"] = (
        read_deadlines  # for gunicorn.conf.py, which imports nothing of this
    )
    CORS(
        app,
        resources=[NOT_METRICS],
        origins=list(settings.cors_origins),
        expose_headers=EXPOSED,
        max_age=86400,
        always_send=False,
    )
    app.after_request_funcs[None] = [for_browsers(work) for work in app.after_request_funcs[None]]
    for module in (native, openai, models, usage, health, endpoints.metrics, pages, openapi):
        app.register_blueprint(module.bp)
    app.before_request(enter)
    app.after_request(leave)
    app.register_error_handler(SluiceError, error_response)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, unexpected)
    cli.register(app)
    return app


def for_browsers(after: After) -> After:
    """The work for a page's request alone: who is no browser pays nothing for CORS."""

    def done(response: Response) -> Response:
        return after(response) if "HTTP_ORIGIN" in current().environ else response

    return done


def wire(settings: Settings) -> Services:
    """The parts. Raises ConfigError."""
    redis_client = None
    if settings.redis_url:
        redis_client = RedisClient(settings.redis_url, verify=settings.redis_verify)
    metrics = Metrics(
        streams_active=lambda: len(gateway.streams),
        ledger_queue=lambda: ledger.queue,
        cooling=lambda: len(gateway.open_circuits()),
        redis_up=None if redis_client is None else lambda: redis_client.available,
    )
    ledger = Ledger(
        database_url(settings.database_url, settings.database),
        required=settings.ledger_required,
        failed=metrics.ledger_failed,
        unrecorded=metrics.unrecorded,
    )
    cluster = None
    if redis_client is not None:
        from cluster.ownership import Cluster  # late: who is alone has no use for redis-py

        cluster = Cluster(redis_client)
    tracing = traces(settings.otel_endpoint) if settings.otel_endpoint else None
    records = CallRecords(metrics, tracing, lambda: len(gateway.streams))
    quota = Quota(settings.reserve_tokens, redis_client, required=settings.limits_required)
    breakers = CircuitBreakers(enabled=settings.cooldown, redis_client=redis_client)
    gateway = Gateway(settings, quota, ledger, records.settled, breakers=breakers, cluster=cluster)
    if cluster is not None:
        cluster.attend(gateway.streams, quota.beat, breakers.exchange, metrics.refresh)
    aliased = chain.from_iterable(gateway.router.aliases.values())
    metrics.know([settings.default_model, *settings.prices, *aliased])
    keys = KeyStore(settings.keys_file, settings.keys)
    return Services(
        settings, keys, gateway, quota, ledger, metrics, records, redis_client, cluster, tracing
    )


def traces(endpoint: str) -> Tracing:
    """Raises ConfigError."""
    try:
        from telemetry.tracing import Tracing  # late: its packages are optional, and take memory
    except ImportError:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, and traces need packages that are not installed: "
            "pip install -r requirements-otel.txt"
        ) from None
    return Tracing(endpoint)


def enter() -> None:
    """A request comes in: name it, and bound how long its client may keep us waiting."""
    request = current()
    request.began = time.monotonic()
    sent = request.environ.get("HTTP_X_REQUEST_ID", "")
    good = sent and body.ID.fullmatch(sent) and request_secrets.without_secrets(sent) == sent
    request.id = sent if good else new_uuid()
    if (client := request.client) is not None:
        client.settimeout(services().settings.client_timeout)


def leave(response: Response) -> Response:
    """A response goes out. A call that was admitted is logged when it is settled."""
    request = current()
    found = {"X-Request-ID": request.id} | rate_headers(request)
    if request.call is not None:
        found["X-Sluice-Attempts"] = str(request.call.stream.attempts)
    if isinstance(response, Answer):
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
        endpoints.metrics.count(response)
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
