"""The health endpoints: whether the process is alive, and whether it accepts calls."""

from __future__ import annotations

from flask import Blueprint, Response

from endpoints.responses import (
    json_response,
)
from endpoints.services import (
    services,
)

MOST_COOLING, MOST_OF_A_NAME = 100, 128

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
    found = sorted(services().gateway.open_circuits().items())[:MOST_COOLING]
    cooling = {name[:MOST_OF_A_NAME]: round(seconds, 1) for name, seconds in found}
    shared = services().redis_client
    remarks: dict[str, object] = {"cooling": cooling} if cooling else {}
    if shared is not None and not shared.available:  # no 503, because calls continue without Redis
        remarks |= {"redis": "away"}
    return json_response({"status": "ready"} | remarks)
