"""The endpoints that list models in OpenAI's format.

- A response names this Sluice, so that one that asks itself for models notices it.

Source: OpenAI API reference, "Models" (read 2026-11). `context_length` has OpenRouter's name.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from endpoints.model_listing import (
    fresh_catalog,
    key_unless_public,
    same_name,
    visible,
    visible_aliases,
)
from endpoints.responses import json_response
from endpoints.services import services
from errors import ModelNotFound
from ledger.pricing import ModelFacts
from providers.base import INSTANCE_HEADER, Provider

bp = Blueprint("openai_models", __name__, url_prefix="/v1")


@bp.get("/models")
@key_unless_public
def models() -> Response:
    router, catalog = services().gateway.router, fresh_catalog()
    found = {name: described(name, "sluice") for name in visible_aliases()}
    for row in router.providers.values():
        for facts in visible(catalog, row) if router.enabled(row) else ():
            name = f"{row.name}/{facts.id}"
            if name not in router.aliases:  # an alias may have the name of a provider's model
                found[name] = described_model(row, facts)
    return response({"object": "list", "data": [*found.values()]})


@bp.get("/models/<path:model>")
@key_unless_public
def model(model: str) -> Response:
    wanted, router = model.rstrip("/"), services().gateway.router
    if wanted in visible_aliases():
        return response(described(wanted, "sluice"))
    name, _, rest = wanted.partition("/")
    row = None if wanted in router.aliases else router.providers.get(name)
    for facts in visible(fresh_catalog(), row) if row is not None else ():
        if row is not None and same_name(facts, rest):
            return response(described_model(row, facts))
    raise ModelNotFound(f"Model {wanted[:100]!r} was not found.", param="model")


def described_model(row: Provider, facts: ModelFacts) -> dict[str, Any]:
    found = described(f"{row.name}/{facts.id}", row.name, facts.created or 0)
    if facts.context_window is not None:
        found["context_length"] = facts.context_window
    return found


def described(name: str, owner: str, created: int = 0) -> dict[str, Any]:
    """Return a model in OpenAI's format. A creation time of 0 means that it is unknown.

    An owner of "llamacpp" would make editors ask for more of llama.cpp's own endpoints.
    """
    owner = "llama.cpp" if owner == "llamacpp" else owner
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def response(data: dict[str, Any]) -> Response:
    """Return a response that names this Sluice, and those whose models it lists."""
    names = ", ".join(services().gateway.catalog.instances)
    return json_response(data, headers={INSTANCE_HEADER: names})
