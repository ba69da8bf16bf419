"""The active calls of all keys, for admin keys, and the stop of any of them.

- The list has the calls of all processes that share a Redis. The response says how many processes
  didn't answer.
"""

from __future__ import annotations

from typing import Any, Final

from flask import Blueprint, Response

from auth import admin_required
from completion import Summary
from endpoints import native
from endpoints.key_names import key_id_of, key_names
from endpoints.responses import json_response
from endpoints.services import services
from endpoints.usage import parameters, row_limit
from streams.registry import MOST_LISTED

bp = Blueprint("all_streams", __name__, url_prefix="/api/v1/streams")

SOME_LISTED: Final = 100
TAKES: Final = {
    "key": "the id or the name of a key",
    "limit": f"an integer from 1 to {MOST_LISTED}",
}


@bp.get("")
@admin_required
def show_streams() -> Response:
    asked = parameters("key", "limit")
    limit = row_limit(asked, SOME_LISTED, MOST_LISTED)
    found = services().gateway.streams.of_all_keys(key_id_of(asked.get("key")) or "")
    names = key_names()
    return json_response(
        {
            "data": [described(summary, names) for summary in found.oldest[:limit]],
            "total": found.calls,
            "processes": {"answered": found.processes, "missing": found.missing},
        }
    )


@bp.post("/<key_id>/<stream_id>/stop")
@admin_required
def stop_stream(key_id: str, stream_id: str) -> Response:
    services().gateway.streams.stop(key_id, stream_id)
    return json_response({"success": True})


def described(summary: Summary, names: dict[str, str]) -> dict[str, Any]:
    """Return a call as JSON. The name of a deleted key is None."""
    return {
        "key_id": summary.key_id,
        "key_name": names.get(summary.key_id),
        **native.listed(summary),
        "request_id": summary.request_id,
        "endpoint": summary.endpoint,
        "stream": summary.streamed,
        "state": summary.state,
    }
