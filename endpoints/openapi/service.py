"""The endpoints of the server itself in the OpenAPI document: health, metrics, pages."""

from __future__ import annotations

from typing import Any

import errors as e
from endpoints.openapi import examples
from endpoints.openapi.errors import responses
from endpoints.openapi.operations import Part, ok, operation
from endpoints.openapi.schemas import ref


def answer(name: str, *headers: str) -> Part:
    return ok(ref(name), examples.ANSWERS[name], *headers)


def open_get(id_: str, summary: str, found: Part, *kinds: Any, **more: Any) -> Part:
    """Return a GET operation that needs no key."""
    answers = {"200": found} | responses("native", *kinds)
    return operation(id_, "Operation", summary, answers, **{"security": []} | more)


def paths() -> dict[str, Part]:
    ready = open_get("ready", "Whether the server accepts calls", answer("Ready"))
    away = answer("Ready", "Retry-After")
    away["content"]["application/json"]["example"] = {"status": "draining"}
    ready["responses"]["503"] = away | {"description": "Shutting down, or without its ledger."}
    text = ok({"type": "string"}, examples.METRICS, media="text/plain")
    text["content"]["application/openmetrics-text"] = {"example": examples.METRICS}
    name = {"name": "name", "in": "path", "required": True, "example": "style.css"}
    name["schema"] = {"type": "string", "minLength": 1}
    asset = ok(None, "", media="text/css")
    asset["content"] |= {kind: {"example": ""} for kind in ("text/javascript", "image/svg+xml")}
    service = answer("Service")
    service["content"]["text/html"] = {"example": "<!doctype html>..."}
    page = ok({"type": "string"}, "<!doctype html>...", media="text/html")
    return {
        "/health": open_get("health", "Whether the server is alive", answer("Health")),
        "/ready": ready,
        "/metrics": open_get(
            *("metrics", "Metrics for Prometheus", text, e.Unauthorized),
            security=[{}, {"metricsToken": []}],
        ),
        "/": open_get("index", "The server's name and version, or the playground", service),
        "/usage": open_get("usagePage", "The usage page", page),
        "/admin": open_get("adminPage", "The page for admin keys", page),
        "/openapi.json": open_get(
            *("openapi", "This document"),
            ok({"type": "object"}, {"openapi": "3.1.0"}),
        ),
        "/docs": open_get("docs", "This document as a page", page),
        "/static/{name}": open_get(
            *("static", "A file of the pages", asset, e.NotFound),
            parameters=[name],
        ),
    }
