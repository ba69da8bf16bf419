"""The API's description: /openapi.json for machines, /docs for people. Neither needs a key.

- The document is built at the first request, then cached as bytes.
- It names only what is enabled on this server.
"""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response, current_app, request

from endpoints.pages import page
from endpoints.prefix import base_of
from endpoints.services import (
    services,
)

bp = Blueprint("openapi", __name__)


@bp.get("/openapi.json")
def document() -> Response:
    found = document_bytes()
    if base := base_of(request.root_path):
        found = msgspec.json.encode(msgspec.json.decode(found) | {"servers": [{"url": base}]})
    return Response(found, mimetype="application/json")


@bp.get("/docs")
def docs() -> Response:
    return page("docs.html")


def document_bytes() -> bytes:
    found: bytes | None = current_app.extensions.get("sluice.openapi")
    if found is None:
        from endpoints.openapi import document  # imported late, because most servers never need it

        router = services().gateway.router
        rows = [row for row in router.providers.values() if router.enabled(row)]
        names = sorted(row.name for row in rows)
        engines = sorted(row.name for row in rows if router.may_be_off(row))
        token = bool(services().settings.metrics_token)
        found = msgspec.json.encode(document.build(names, engines=engines, metrics_token=token))
        current_app.extensions["sluice.openapi"] = found
    return found
