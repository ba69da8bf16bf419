"""The API, described: /openapi.json for machines, /docs for people. Neither needs a key.

Rules that hold here: the document is put together when it is first asked for, and its bytes are
kept; the page asks no other host for anything, and runs no script but its own files.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from flask import Blueprint, Response, current_app

from endpoints import services
from errors import NotFound

bp = Blueprint("openapi", __name__)

VENDOR = Path(__file__).parent.parent / "static" / "vendor" / "swagger-ui"
KEPT = {"Cache-Control": "public, max-age=86400"}
SECURITY = {
    # The renderer sets styles on elements, and shows icons that are data: URLs in its CSS.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sluice: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
</head>
<body>
<main id="api"><noscript>This page needs JavaScript. The document is at
<a href="/openapi.json">/openapi.json</a>.</noscript></main>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/assets/begin.js"></script>
</body>
</html>
"""
BEGIN = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
  persistAuthorization: false,
});
"""


@bp.get("/openapi.json")
def document() -> Response:
    return Response(document_bytes(), mimetype="application/json")


@bp.get("/docs")
def docs() -> Response:
    return Response(PAGE, mimetype="text/html", headers=SECURITY)


@bp.get("/docs/assets/<name>")
def asset(name: str) -> Response:
    """Raises NotFound."""
    if name == "begin.js":
        return Response(BEGIN, mimetype="text/javascript", headers=SECURITY | KEPT)
    if name not in FILES:
        raise NotFound("Nothing is at this path.")
    found = (VENDOR / name).read_bytes()
    return Response(found, mimetype=FILES[name], headers=SECURITY | KEPT)


def document_bytes() -> bytes:
    found: bytes | None = current_app.extensions.get("sluice.openapi")
    if found is None:
        from endpoints import openapi_document  # late: most servers are never asked

        names = sorted(services().gateway.router.providers)
        found = msgspec.json.encode(openapi_document.build(names))
        current_app.extensions["sluice.openapi"] = found
    return found
