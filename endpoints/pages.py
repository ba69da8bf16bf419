"""What is at the root."""

from __future__ import annotations

from flask import Blueprint, Response

from config import VERSION
from endpoints import json_response

bp = Blueprint("pages", __name__)


@bp.get("/")
def index() -> Response:
    return json_response({"name": "sluice", "version": VERSION, "docs": "docs/api.md"})
