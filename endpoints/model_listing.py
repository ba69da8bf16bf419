"""Shared parts of the endpoints that list models: access to them, and a fresh catalog."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from flask import Response

from auth import auth, caller, current_request, presented_key
from concurrency.yielding import paced
from endpoints.services import services
from gateway.model_catalog import ModelCatalog
from keys.key import Key, allows
from ledger.pricing import ModelFacts
from providers.base import INSTANCE_HEADER, Provider

WAIT_S: Final = 1.5
"""How long a request for models waits for hosts that haven't been asked yet."""


def key_unless_public(view: Callable[..., Response]) -> Callable[..., Response]:
    """Return a view that needs a key, unless the settings make the list public.

    A key that is sent is always checked.
    """
    guarded = auth.login_required(view)

    def checked(**arguments: Any) -> Response:
        public = services().settings.public_models and presented_key() is None
        return (view if public else guarded)(**arguments)

    checked.__name__ = view.__name__
    return checked


def fresh_catalog() -> ModelCatalog:
    """Return the catalog, after a short wait if hosts are asked for the first time.

    A request that this Sluice sends to itself doesn't wait, because it would wait for itself.
    """
    catalog = services().gateway.catalog
    own = current_request().headers.get(INSTANCE_HEADER) == catalog.instance
    catalog.refresh(0.0 if own else WAIT_S)
    return catalog


def visible(catalog: ModelCatalog, row: Provider) -> list[ModelFacts]:
    """Return a provider's models that the caller may use; all, if there is no key."""
    key, models = caller(), catalog.models(row)
    if key is None or ("*" in key.models and key.shared is None):
        return models
    return [facts for facts in paced(models) if allows(key, f"{row.name}/{facts.id}")]


def visible_aliases() -> list[str]:
    """Return the aliases that the caller may use, by their own names or by their models'."""
    key, aliases = caller(), services().gateway.router.aliases
    return [
        name for name, models in aliases.items() if key is None or any_allowed(key, [name, *models])
    ]


def any_allowed(key: Key, names: list[str]) -> bool:
    return any(allows(key, name) for name in names)


def same_name(facts: ModelFacts, name: str) -> bool:
    """Return True if a name in a URL is that of a model.

    A local engine's model may be a path that begins with a slash, and URLs lose such a slash.
    """
    return facts.id.strip("/") == name.strip("/")
