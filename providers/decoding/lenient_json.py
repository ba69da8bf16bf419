"""Lenient decoding of JSON into Structs: a field with a value of the wrong type counts as absent.

- The module is pure.
- Data that matches its types is decoded once, at full speed.
- Only data that isn't a JSON object is an error.
"""

from __future__ import annotations

import json
import math
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import msgspec

from errors import UpstreamError
from providers.decoding.surrogates import SplitPairs, replace_lone

NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""The exceptions that msgspec raises for bytes that aren't JSON or don't match the type."""

Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
"""A number of tokens. Lenient decoding rounds a fraction down and drops an invalid value. The limit
is far above any context, and keeps the ledger's sums and costs within 64 bits."""
Text = Annotated[str, msgspec.Meta(title="text")]
"""Text of the completion. Lenient decoding keeps its lone surrogates: the other half of the pair
may come in the next event (see surrogates.py)."""

UNIONS: Final = (Union, UnionType)
SAMPLE_BYTES: Final = 400
SAMPLE_CHARACTERS: Final = 80

_Kind = TypeVar("_Kind", bound=msgspec.Struct)


def decode(data: bytes, decoder: msgspec.json.Decoder[_Kind], pairs: SplitPairs) -> _Kind:
    """Decode JSON into a Struct of the decoder's type, whose fields must all have defaults.

    NaN, lone surrogates and invalid UTF-8 are accepted. Empty data and null count as an empty
    object: llama.cpp begins some streams with null.

    Args:
        pairs: the halves of characters, which the caller must join if lone surrogates are possible.

    Raises:
        UpstreamError: The data isn't a JSON object. The error shows the start of the data.
    """
    try:
        return decoder.decode(data)
    except NOT_JSON:
        if not data.strip():
            return decoder.type()
    try:
        value = json.loads(data.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        raise garbage("The upstream sent data that is not JSON.", data) from None
    if value is None:
        return decoder.type()
    if not isinstance(value, dict):
        raise garbage("The upstream sent JSON that is not an object.", data)
    pairs.possible = True
    return salvage(value, decoder.type)


def salvage(value: dict[str, Any], kind: type[_Kind]) -> _Kind:
    """Return a Struct with the values that match their types, at every depth."""
    fields = (
        (f.name, fitted(value.get(f.encode_name), f.type)) for f in msgspec.structs.fields(kind)
    )
    return kind(**{name: found for name, found in fields if found is not None})


def fitted(value: Any, kind: Any) -> Any:
    """Return the value converted to the type, or None if it is None or can't be converted."""
    options = get_args(kind) if get_origin(kind) in UNIONS else (kind,)
    for option in options:
        if isinstance(value, dict) and is_struct(option):
            return salvage(value, option)
        if isinstance(value, list) and get_origin(option) is list:
            (item,) = get_args(option)
            return [salvage(entry, item) for entry in value if isinstance(entry, dict)]
    if isinstance(value, str) and Text in options:
        return value
    if isinstance(value, float) and Count in options and math.isfinite(value):
        value = math.floor(value)
    try:
        return msgspec.convert(replace_lone_surrogates(value), kind, strict=False)
    except msgspec.ValidationError:
        return None


def is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def replace_lone_surrogates(value: Any) -> Any:
    """Replace each lone surrogate, which UTF-8 can't encode, with U+FFFD, at every depth."""
    if isinstance(value, str):
        return replace_lone(value)
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
    """Return the start of the data as one printable line of about 80 characters."""
    text = " ".join(data[:SAMPLE_BYTES].decode("utf-8", "replace").split())
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"


def on_one_line(data: bytes) -> bytes:
    """Return JSON without line ends, which are white space between its values, in valid UTF-8."""
    if not data.isascii():
        data = data.decode("utf-8", "replace").encode()
    return data.strip().replace(b"\r", b" ").replace(b"\n", b" ")
