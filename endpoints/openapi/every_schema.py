"""All schemas of the OpenAPI document, with the meanings of their fields."""

from __future__ import annotations

from endpoints.openapi import (
    chats,
    editors,
    following,
    keys,
    meanings,
    operators,
    schemas,
    tokenizers,
)
from endpoints.openapi.operations import Part


def every() -> dict[str, Part]:
    found = schemas.every() | editors.bodies() | editors.answers() | tokenizers.schemas()
    found |= chats.every() | keys.schemas() | operators.schemas() | following.state_schema()
    return {
        name: meanings.explained(schema, meanings.EVERY.get(name, {}))
        for name, schema in found.items()
    }
