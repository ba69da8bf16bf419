"""The fields that go to a provider unchanged, and additional_params.

- Such a field can't replace a field that Sluice sets, and can't pass by a limit or a budget: hosts'
  other names for what these count become Sluice's own fields.
- Their number, their names and their nesting are bounded, wherever they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from endpoints.request_fields import (
    BEYOND_PARAMS,
    FIELDS,
    NAMES,
    TAKES,
    check,
    refuse_lookalike,
    shown,
    unknown,
)
from errors import InvalidRequest
from gateway import field_names

LONGEST_NAME = 256
MOST_PASSED_ON = 256
"""The most fields that are passed on to a provider, with those in WRAPPERS, and the most characters
of their names."""
DEEPEST = 4
"""How many objects with counted fields may be inside each other."""
CHOSEN_BY_SLUICE = frozenset(("model", "models", "prompt", "messages", "stream", "stream_options"))
"""Fields that no object of WRAPPERS may have."""


def merge_params(fields: dict[str, Any]) -> dict[str, Any]:
    """Replace additional_params in a body's fields by those of its fields that Sluice knows.

    Returns:
        The other fields of additional_params, which go to the provider unchanged.

    Raises:
        InvalidRequest: additional_params is not an object, sets a field of BEYOND_PARAMS, or
            contradicts the body. Otherwise as `pass_on`.
    """
    params = fields.pop("additional_params", None)
    if params is None:
        return {}
    check("additional_params", params, dict[str, Any])
    extra = {}
    for name, value in params.items():
        if name in BEYOND_PARAMS:
            raise InvalidRequest(f"additional_params can't set {name}.", param=name)
        if name not in NAMES:
            extra[name] = value
        elif value is not None and fields.setdefault(name, value) != value:
            raise two_values(name)
    return pass_on(extra, fields) if extra else extra


def two_values(name: str) -> InvalidRequest:
    message = f"{name} has different values in the body and in additional_params."
    return InvalidRequest(message, param=name)


def refuse_two_values(others: dict[str, Any], extra: dict[str, Any]) -> None:
    """Raise InvalidRequest if a field that is passed on has two values.

    Args:
        others: the fields from the top level of the body.
        extra: the fields from additional_params.
    """
    for name in others.keys() & extra.keys():
        if others[name] != extra[name]:
            raise two_values(name)


def pass_on(unknown_fields: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that go to the provider unchanged, of those that Sluice doesn't know.

    A host's other name for a field that limits and budgets count becomes that field in `fields`,
    also inside the objects in which hosts take it.

    Raises:
        InvalidRequest: there are too many fields, a name is too long or looks like a known one, or
            a counted field is invalid or has two different values.
    """
    total = 0
    for bag in bags(unknown_fields, DEEPEST):
        total += len(bag)
        refuse_many(total)
        for name in bag:
            if len(name) > LONGEST_NAME:
                hint = f" A field's name may have at most {LONGEST_NAME} characters."
                raise unknown(name, hint=hint)
    return settled(unknown_fields, fields, DEEPEST)


def bags(bag: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    """Yield an object, and the objects of WRAPPERS in it, `depth` levels deep."""
    yield bag
    for name, value in bag.items():
        if depth and name in field_names.WRAPPERS and isinstance(value, dict):
            yield from bags(value, depth - 1)


def refuse_many(count: int) -> None:
    """Raise InvalidRequest if that many unknown fields are too many."""
    if count > MOST_PASSED_ON:
        raise InvalidRequest(f"{count} unknown fields exceed the limit of {MOST_PASSED_ON}.")


def settled(bag: dict[str, Any], fields: dict[str, Any], depth: int) -> dict[str, Any]:
    """Return an object without the counted fields, which become fields of the request."""
    kept: dict[str, Any] = {}
    for name, value in bag.items():
        if (field := field_names.COUNTED.get(name)) is not None:
            if value is not None:
                count_as(field, name, value, fields)
            continue
        refuse_lookalike(name)
        if name in CHOSEN_BY_SLUICE and depth < DEEPEST:
            raise InvalidRequest(f"{name} can't be inside another field.", param=name)
        if name in field_names.WRAPPERS and isinstance(value, dict) and value:
            if not depth:
                raise InvalidRequest(f"{name} is nested too deeply.", param=name)
            rest = settled(value, fields, depth - 1)
            if rest:
                kept[name] = rest
        else:
            kept[name] = value
    return kept


def count_as(field: str, name: str, value: Any, fields: dict[str, Any]) -> None:
    """Set a field that was sent under another name. Raises InvalidRequest."""
    try:
        msgspec.convert(value, FIELDS[field])
    except msgspec.ValidationError:
        raise InvalidRequest(
            f"{name}: got {shown(name, value)}; expected {TAKES[field]} (as {field}).", param=name
        ) from None
    if fields.setdefault(field, value) != value:
        raise InvalidRequest(
            f"{name} and {field} have different values. Send only {field}."
            if name != field
            else f"{field} has different values in two places. Send it once.",
            param=name,
        )
