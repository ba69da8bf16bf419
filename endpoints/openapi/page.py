"""The API's description: /openapi.json for machines, /docs for people. Neither needs a key.

- The document is built at the first request, then cached as bytes.
- The page loads nothing from other hosts, and runs only scripts from our own files.
"""

from __future__ import annotations

import msgspec
from flask import Blueprint, Response, current_app, request

from endpoints.pages import POLICY, page
from endpoints.prefix import base_of
from endpoints.services import (
    services,
)

bp = Blueprint("openapi", __name__)

DOCS_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""The policy of /docs. Swagger UI needs inline styles."""


@bp.get("/openapi.json")
def document() -> Response:
    found = document_bytes()
    if base := base_of(request.root_path):
        found = msgspec.json.encode(msgspec.json.decode(found) | {"servers": [{"url": base}]})
    return Response(found, mimetype="application/json")


@bp.get("/docs")
def docs() -> Response:
    response = page("docs.html")
    response.headers["Content-Security-Policy"] = DOCS_POLICY
    return response


def document_bytes() -> bytes:
    found: bytes | None = current_app.extensions.get("sluice.openapi")
    if found is None:
        from endpoints.openapi import document  # imported late, because most servers never need it

        names = sorted(services().gateway.router.providers)
        found = msgspec.json.encode(document.build(names))
        current_app.extensions["sluice.openapi"] = found
    return found
