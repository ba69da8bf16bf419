"""JSON decoded into Structs leniently: a field that doesn't fit its type counts as absent.

- It is pure. Data that fits its types is decoded once, at full speed.
- Only data that isn't JSON, or isn't a JSON object, is an error.
"""

from __future__ import annotations

import json
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from errors import UpstreamError

NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""The exceptions that msgspec raises for bytes that don't fit."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""A number of tokens. A value that can't be one is dropped."""

UNIONS: Final = (Union, UnionType)
SAMPLE_BYTES: Final = 400
SAMPLE_CHARACTERS: Final = 80

_Kind = TypeVar("_Kind", bound=msgspec.Struct)


def decode(data: bytes, decoder: msgspec.json.Decoder[_Kind]) -> _Kind:
    """Return a Struct of the decoder's type, all of whose fields must have defaults.

    The JSON may have NaN, lone surrogates and bytes that are not UTF-8. Empty data is an empty
    object. Raises UpstreamError, which shows the start of the data, if it is not a JSON object.
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
    """Return a Struct of the fields that fit, also in the Structs and lists of Structs below it."""
    fields = (
        (f.name, fitted(value.get(f.encode_name), f.type)) for f in msgspec.structs.fields(kind)
    )
    return kind(**{name: found for name, found in fields if found is not None})


def fitted(value: Any, kind: Any) -> Any:
    """Return the value as that type, or None if it doesn't fit or is None."""
    for option in get_args(kind) if get_origin(kind) in UNIONS else (kind,):
        if isinstance(value, dict) and is_struct(option):
            return salvage(value, option)
        if isinstance(value, list) and get_origin(option) is list:
            (item,) = get_args(option)
            return [salvage(entry, item) for entry in value if isinstance(entry, dict)]
    try:
        return msgspec.convert(replace_lone_surrogates(value), kind, strict=False)
    except msgspec.ValidationError:
        return None


def is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def replace_lone_surrogates(value: Any) -> Any:
    """Return the value with U+FFFD for each lone surrogate, which UTF-8 can't express."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [replace_lone_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {
            replace_lone_surrogates(key): replace_lone_surrogates(item)
            for key, item in value.items()
        }
    return value


def garbage(message: str, data: bytes) -> UpstreamError:
    """Return an error that shows the start of the data."""
    return UpstreamError(message, upstream_message=sample(data) or None)


def sample(data: bytes) -> str:
    """Return the first 80 characters or so, on one line and printable."""
    text = " ".join(data[:SAMPLE_BYTES].decode("utf-8", "replace").split())
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"
