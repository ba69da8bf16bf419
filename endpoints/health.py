"""Is it alive, and does it take work."""

from __future__ import annotations

from flask import Blueprint, Response

from endpoints import json_response, services

bp = Blueprint("health", __name__)


@bp.get("/health")
def health() -> Response:
    return json_response({"status": "ok"})


@bp.get("/ready")
def ready() -> Response:
    if services().gateway.draining:
        return json_response({"status": "draining"}, 503, {"Retry-After": "1"})
    if not services().ledger.available:
        return json_response({"status": "the ledger is away"}, 503, {"Retry-After": "1"})
    cooling = {name: round(seconds, 1) for name, seconds in services().gateway.cooling().items()}
    return json_response({"status": "ready"} | ({"cooling": cooling} if cooling else {}))
