"""Decoding of the frames that a face's encoder wrote: the inverse of the encoders.

The provider's own fields in a frame become Added events. Sluice's fields take precedence over the
provider's, as in a whole answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from completion import Added, Delta, Event, Finished, Logprobs

CHOICE: Final = frozenset(
    ("index", "text", "delta", "logprobs", "finish_reason", "native_finish_reason", "continued")
)
"""A choice's own fields in a frame."""
TOP: Final = frozenset(("id", "object", "created", "model", "choices", "usage"))
"""The own fields of OpenAI's chunks."""


def data_of(frame: bytes) -> Any:
    """Return the JSON data of a frame, or None if it has none."""
    for line in frame.split(b"\n"):
        if line.startswith(b"data: {"):
            return msgspec.json.decode(line[6:])
    return None


def events_in(frame: bytes) -> Iterator[Event]:
    """Yield the events of a frame of the native face, or of OpenAI's or Mistral's completions."""
    data = data_of(frame)
    if not isinstance(data, dict) or "choices" not in data:
        return
    top = data.get("extra") if "type" in data else rest(data, TOP)
    if top and not data["choices"]:
        yield Added(0, top, top=True)
    for choice in data["choices"]:
        index = choice["index"]
        if top:
            yield Added(index, top, top=True)
        if added := rest(choice, CHOICE):
            yield Added(index, added)
        text = choice.get("text")
        if text is None:
            text = choice["delta"].get("content", "")
        logprobs = choice.get("logprobs")
        if text or logprobs is not None:
            found = None if logprobs is None else msgspec.convert(logprobs, Logprobs)
            yield Delta(index, text, found)
        if choice.get("finish_reason") is not None:
            yield Finished(index, choice["finish_reason"])


def rest(fields: dict[str, Any], own: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in own}
