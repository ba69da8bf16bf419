"""The endpoints that list providers and models, in the native format."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from auth import auth
from endpoints.model_listing import fresh_catalog, same_name, visible
from endpoints.responses import json_response
from endpoints.services import services
from errors import ModelNotFound
from gateway.model_catalog import ModelCatalog
from ledger.pricing import ModelFacts, per_mtok
from providers.base import Provider

bp = Blueprint("models", __name__, url_prefix="/api/v1/models")


@bp.get("")
@auth.login_required
def every_provider() -> Response:
    catalog = fresh_catalog()
    rows = services().gateway.router.providers.values()
    return json_response([listed(catalog, row) for row in rows])


@bp.get("/<provider>")
@auth.login_required
def one_provider(provider: str) -> Response:
    row = services().gateway.router.provider(provider)
    return json_response(listed(fresh_catalog(), row))


@bp.get("/<provider>/text_completions")
@auth.login_required
def models_of_provider(provider: str) -> Response:
    row = services().gateway.router.provider(provider)
    return json_response(listed(fresh_catalog(), row)["text_completions"])


@bp.get("/<provider>/<path:model>")
@auth.login_required
def one_model(provider: str, model: str) -> Response:
    row = services().gateway.router.provider(provider)
    for facts in visible(fresh_catalog(), row):
        if same_name(facts, model):
            return json_response(described(row, facts))
    raise ModelNotFound(f"Model {model[:100]!r} is not a known model of {row.name}.")


def listed(catalog: ModelCatalog, row: Provider) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": row.name,
        "enabled": services().gateway.router.enabled(row),
        "text_completions": [described(row, facts) for facts in visible(catalog, row)],
    }
    if row.replicas:  # only their number, because callers needn't know the operator's hosts
        reachable = services().gateway.reachable_replicas(row)
        found["replicas"] = {"total": len(row.replicas), "reachable": reachable}
    return found


def described(row: Provider, facts: ModelFacts) -> dict[str, Any]:
    """Return MODEL of the API reference. Prices are USD per million tokens, None if unknown."""
    price = facts.price
    pricing = {
        "input": per_mtok(price.input) if price else None,
        "output": per_mtok(price.output) if price else None,
        "unit": "per_million_tokens",
    }
    if facts.price_reported:
        pricing["source"] = "provider"
    return {
        "modelName": facts.id,
        "name": facts.name or facts.id,
        "provider": row.name,
        "pricing": pricing,
        "specs": {"context_window": facts.context_window},
        "capabilities": [],
        "byok": row.api_key_env is not None,
        "is_disabled": not services().gateway.router.enabled(row),
    }
