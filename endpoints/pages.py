"""The root path, the pages for people (playground, usage and admin), and their static files.

- A page contains no user's data. It fetches what it shows from the API, with the key that its
  reader typed in.
- A page loads nothing from other hosts, and has no inline scripts or styles.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from flask import Blueprint, Response, render_template, request, send_from_directory

from config import VERSION
from endpoints.prefix import base_of
from endpoints.responses import (
    json_response,
)
from endpoints.services import (
    services,
)

bp = Blueprint("pages", __name__)

STATIC = Path(__file__).resolve().parent.parent / "static"
YEAR_S = 365 * 24 * 3600

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Range(NamedTuple):
    """A number field of the playground's form. step: "any" permits fractions."""

    name: str
    label: str
    least: float
    most: float
    step: str
    hint: str


RANGES = (
    Range("max_tokens", "Max tokens", 0, 2**31 - 1, "1", "0 or more"),
    Range("temperature", "Temperature", 0, 2, "any", "0 to 2"),
    Range("top_p", "Top p", 0, 1, "any", "0 to 1"),
    Range("frequency_penalty", "Frequency penalty", -2, 2, "any", "\N{MINUS SIGN}2 to 2"),
    Range("presence_penalty", "Presence penalty", -2, 2, "any", "\N{MINUS SIGN}2 to 2"),
    Range("seed", "Seed", -(2**53) + 1, 2**53 - 1, "1", "a whole number"),
)


@bp.get("/")
def index() -> Response:
    """Return the playground to a browser, and a JSON object to any other client."""
    if wants_html():
        response = page("playground.html", ranges=RANGES, default_model=first_model())
    else:
        response = json_response(
            {"name": "sluice", "version": VERSION, "docs": "docs/reference/api.md"}
        )
    response.vary.add("Accept")
    return response


def first_model() -> str:
    """Return the model of a first visit: the server's default, or its toy at a pace to watch."""
    model = services().settings.default_model
    return "local/slow" if model == "local/pydoc" else model


@bp.get("/usage")
def usage() -> Response:
    return page("usage.html")


@bp.get("/admin")
def admin() -> Response:
    return page("admin.html")


@bp.get("/static/<path:name>")
def static(name: str) -> Response:
    """Return a static file, cached for a year under a versioned path and revalidated elsewhere."""
    base, _, rest = name.partition("/")
    if kept := base == version():
        name = rest
    response = send_from_directory(STATIC, name, max_age=YEAR_S if kept else None)
    response.headers.update(HEADERS)
    if kept:
        response.cache_control.public = True
        response.cache_control.immutable = True
    return response


def wants_html() -> bool:
    """Return True if the client prefers HTML to JSON; `*/*` prefers neither."""
    kinds = ("application/json", "text/html")
    return request.accept_mimetypes.best_match(kinds) == "text/html"


def page(template: str, **values: object) -> Response:
    base = base_of(request.root_path)
    values |= {"base": base, "static": f"{base}/static/{version()}"}
    text = render_template(template, release=VERSION, path=request.path, **values)
    headers = HEADERS | {"Cache-Control": "no-cache"}
    return Response(text, headers=headers, mimetype="text/html")


@cache
def version() -> str:
    """Return a hash of all static files. They import each other, so they share one version."""
    found = hashlib.sha256()
    for path in sorted(path for path in STATIC.rglob("*") if path.is_file()):
        found.update(path.relative_to(STATIC).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
