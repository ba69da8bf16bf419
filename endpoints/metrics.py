"""The metrics for a Prometheus server, and which requests count among them."""

from __future__ import annotations

import hmac

from flask import Blueprint, Response, request

from endpoints.services import (
    services,
)
from errors import Unauthorized

bp = Blueprint("metrics", __name__)

UNCOUNTED = frozenset(("/health", "/ready", "/metrics"))
"""What machines ask every few seconds; it would drown what people do."""


@bp.get("/metrics")
def metrics() -> Response:
    """Raises Unauthorized."""
    check_token(services().settings.metrics_token)
    services().records.catch_up()
    text, content_type = services().metrics.render(request.headers.get("Accept", ""))
    return Response(text, content_type=content_type, headers={"Cache-Control": "no-store"})


def check_token(token: str) -> None:
    """Whether the current request has it, if there is one. Raises Unauthorized."""
    if not token:
        return
    scheme, _, sent = request.headers.get("Authorization", "").strip().partition(" ")
    good = hmac.compare_digest(sent.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not good:
        error = Unauthorized(key_sent=bool(sent))
        error.message = "The metrics need a token of their own: 'Authorization: Bearer TOKEN'."
        raise error


def count(response: Response) -> None:
    """The current request, which became no call, has its answer: count it, unless it is one of
    UNCOUNTED or a browser's preflight."""
    route = request.url_rule.rule if request.url_rule else None
    if route not in UNCOUNTED and request.method != "OPTIONS":
        services().metrics.answered(route, response.status_code)
