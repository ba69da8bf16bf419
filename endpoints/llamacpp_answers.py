"""Answers in llama.cpp's format: pieces of streams, whole answers, and the fields of both."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from completion import Delta, Event, Opaque, merge_fields
from endpoints.frame_events import data_of


def piece(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "content": text, "stop": False}


PIECE_FIELDS: Final = piece(0, "").keys()


def joined(pieces: Iterable[bytes], fields: list[str] | None) -> list[dict[str, Any]]:
    """Return the whole answers to which llama.cpp's pieces add up, one for each choice.

    The last piece of each has been cut to the fields already.
    """
    found: dict[int, dict[str, Any]] = {}
    texts: dict[int, list[str]] = {}
    for data in map(decoded, pieces):
        index = data.get("index", 0)
        last = data if fields and data.get("stop") is not False else {}
        merge_fields(found.setdefault(index, {}), last or data)
        if fields and last:
            found[index] = last
        texts.setdefault(index, []).append(data.get("content") or "")
    for index, answer in found.items():
        if not fields or "content" in fields:
            answer["content"] = "".join(texts[index])
    return [found[index] for index in sorted(found)]


def events_in(frame: bytes) -> Iterator[Event]:
    """Yield the event of a frame that LlamaCppEncoder wrote."""
    data = data_of(frame)
    if data is None:
        return
    if data.keys() == PIECE_FIELDS:
        yield Delta(data["index"], data["content"])
    else:
        yield Opaque(msgspec.json.encode(data), data.get("index", 0))


def cut(data: Any, fields: list[str] | None) -> Any:
    """Return the answer's fields at some paths, such as timings/prompt_n, under these paths.

    Args:
        data: a dict, or an undecoded JSON object.
        fields: the paths; None for the whole answer.
    """
    if not fields:
        return msgspec.Raw(data) if isinstance(data, bytes) else data
    if isinstance(data, bytes):
        data = decoded(data)
    found = {}
    for path in fields:
        value = data
        for name in path.split("/"):
            value = value.get(name, NOTHING) if isinstance(value, dict) else NOTHING
        if value is not NOTHING:
            found[path] = value
    return found


NOTHING: Final = object()
LAST: Final = re.compile(rb'"stop"\s*:\s*true').search
"""Find the field of the last piece. In a text, its quotation marks would be escaped."""


def decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
