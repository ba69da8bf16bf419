"""The targets of a request that its key and the key's group may use."""

from __future__ import annotations

from functools import partial

from errors import ModelForbidden
from keys.key import Key, allows
from providers.base import Target
from routing.router import Route, Router


def permitted_targets(router: Router, route: Route, key: Key) -> list[Target]:
    """Return the targets to try, in order. Raises what Router.targets raises."""
    try:
        return router.targets(route, partial(allows, key))
    except ModelForbidden as error:
        error.message = with_group(error.message, key)
        raise


def with_group(message: str, key: Key) -> str:
    """Return a message about a forbidden model, which says if the key's group may be the reason."""
    group = key.shared
    if group is None:
        return message
    if not group.defined:
        return (
            f"This key's group {group.name!r} isn't defined, so the key may use no model. The "
            f"server's operator can add [groups.{group.name}] to sluice.toml."
        )
    who = "This key's group" if "*" in key.models else "This key or its group"
    return message.replace("This key", f"{who} {group.name!r}", 1)
