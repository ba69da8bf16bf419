"""JSON as Structs, with patience: what fits its type is kept, what doesn't counts as absent.

Rules that hold here: pure; data that fits is decoded once, at full speed; only what isn't JSON, or
isn't an object, is an error.
"""

from __future__ import annotations

import json
from types import UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from providers.openai_chunk import NOT_JSON, garbage, whole

UNIONS: Final = (Union, UnionType)

_Kind = TypeVar("_Kind", bound=msgspec.Struct)


def decode(data: bytes, decoder: msgspec.json.Decoder[_Kind]) -> _Kind:
    """A Struct of the decoder's kind, all of whose fields have defaults.

    The JSON may have NaN, lone surrogates and bytes that are not UTF-8; no data at all is an empty
    object. Raises UpstreamError, which shows what came, for what is not a JSON object.
    """
    try:
        return decoder.decode(data)
    except NOT_JSON:
        if not data.strip():
            return decoder.type()
    try:
        value = json.loads(data.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        raise garbage("The upstream sent something that is not JSON.", data) from None
    if not isinstance(value, dict):
        raise garbage("The upstream sent JSON that is not an object.", data)
    return salvage(value, decoder.type)


def salvage(value: dict[str, Any], kind: type[_Kind]) -> _Kind:
    """A Struct of the fields that fit, in it and in the Structs and lists of Structs below it."""
    fields = (
        (f.name, fitted(value.get(f.encode_name), f.type)) for f in msgspec.structs.fields(kind)
    )
    return kind(**{name: found for name, found in fields if found is not None})


def fitted(value: Any, kind: Any) -> Any:
    """The value as that type; None for one that doesn't fit, and for none."""
    for option in get_args(kind) if get_origin(kind) in UNIONS else (kind,):
        if isinstance(value, dict) and is_struct(option):
            return salvage(value, option)
        if isinstance(value, list) and get_origin(option) is list:
            (item,) = get_args(option)
            return [salvage(entry, item) for entry in value if isinstance(entry, dict)]
    try:
        return msgspec.convert(whole(value), kind, strict=False)
    except msgspec.ValidationError:
        return None


def is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
