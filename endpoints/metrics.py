"""The metrics endpoint for Prometheus, and the count of requests that started no call."""

from __future__ import annotations

import hmac

from flask import Blueprint, Response, request

from endpoints.services import (
    services,
)
from errors import Unauthorized

bp = Blueprint("metrics", __name__)

UNCOUNTED = frozenset(("/health", "/ready", "/metrics"))
"""Routes that machines poll every few seconds; counting them would drown real traffic."""


@bp.get("/metrics")
def metrics() -> Response:
    check_token(services().settings.metrics_token)
    services().records.catch_up()
    text, content_type = services().metrics.render(request.headers.get("Accept", ""))
    return Response(text, content_type=content_type, headers={"Cache-Control": "no-store"})


def check_token(token: str) -> None:
    """Raise Unauthorized unless the current request carries the token. "" admits every request."""
    if not token:
        return
    scheme, _, sent = request.headers.get("Authorization", "").strip().partition(" ")
    good = hmac.compare_digest(sent.strip().encode(), token.encode())
    if scheme.lower() != "bearer" or not good:
        error = Unauthorized(key_sent=bool(sent))
        error.message = (
            "The metrics need their own token: send it as 'Authorization: Bearer TOKEN'."
        )
        raise error


def count(response: Response) -> None:
    """Count the current request, which started no call. OPTIONS and UNCOUNTED are skipped."""
    route = request.url_rule.rule if request.url_rule else None
    if route not in UNCOUNTED and request.method != "OPTIONS":
        services().metrics.answered(route, response.status_code)
