"""Fields of a provider's answer that Sluice doesn't know, for callers who asked for them.

- The module is pure.
- A field that is null counts as absent.
- Only requests that pass parameters on pay for this: their answers are decoded a second time.
"""

from __future__ import annotations

import json
from collections.abc import Container
from typing import Any, Final

import msgspec

from completion import Added, Batch
from providers.decoding.lenient_json import NOT_JSON, replace_lone_surrogates

DEEPEST: Final = 64
"""How deep a field's value may be nested. Deeper ones are left out: encoding them could fail."""


def decode_object(data: bytes) -> dict[str, Any]:
    """Decode a JSON object of any fields. Return {} for other data."""
    try:
        value = msgspec.json.decode(data)
    except NOT_JSON:
        try:
            value = replace_lone_surrogates(json.loads(data.decode("utf-8-sig", "replace")))
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, as lenient decoding does."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def unknown(value: Any, known: Container[str]) -> dict[str, Any]:
    """Return an object's fields that aren't known; {} if the value isn't an object."""
    if not isinstance(value, dict):
        return {}
    return {
        name: item
        for name, item in value.items()
        if name not in known and item is not None and not is_deep(item)
    }


def append_added(fields: dict[str, Any], batch: Batch, index: int = 0, *, top: bool = True) -> None:
    """Append an event with the fields, if there are any."""
    if fields:
        batch.append(Added(index, fields, len(msgspec.json.encode(fields)), top))


def is_deep(value: Any, left: int = DEEPEST) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return False
    return not left or any(
        is_deep(item, left - 1) for item in value if isinstance(item, dict | list)
    )
