"""The answers of chats: chunks and bodies in the host's own format, which are passed on.

- The model gets the gateway's name, and the usage gets the cost. Nothing else is changed.
- The chunks of a host that streams although no stream was requested are joined to a whole answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from completion import Completion
from providers.decoding.added_fields import decode_object, objects
from providers.decoding.lenient_json import NOT_JSON

LABELS: Final = frozenset(
    (
        *("channel", "detail", "encoding", "finish_reason", "format", "id", "mime_type", "model"),
        *("name", "object", "phase", "role", "status", "type"),
    )
)
"""The strings of a delta that aren't pieces of a text. A host that repeats one sends equal ones."""
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def fields_of(data: bytes) -> dict[str, Any]:
    """Return the fields of an answer. Their values are undecoded if the answer is strict JSON."""
    try:
        return _fields(data)
    except NOT_JSON:
        return decode_object(data)


def decoded_fields(data: bytes) -> dict[str, Any]:
    """Return the fields of an answer or of a chunk; {} if it is no JSON object."""
    return decode_object(data)


def value_of(fields: dict[str, Any], name: str) -> Any:
    """Return the value of a field that may be undecoded; None if it is absent."""
    value = fields.get(name)
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


def choices_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the choices of an answer or of a chunk."""
    return objects(value_of(fields, "choices"))


def whole(completion: Completion, choices: int) -> dict[str, Any]:
    """Return the fields of a whole answer to a request for a number of choices.

    They are {} if nothing has arrived.
    """
    if len(completion.opaque) == 1:
        fields = fields_of(completion.opaque[0])
        if any("message" in choice for choice in choices_of(fields)):
            return fields
    return joined(completion.opaque, several=choices > 1)


def joined(chunks: Iterable[bytes], *, several: bool = False) -> dict[str, Any]:
    """Return the whole answer that a stream's chunks make; {} if there are none.

    Args:
        several: True if several choices were requested. Otherwise all chunks are of one choice:
            some hosts count tokens in `index`.
    """
    top: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for data in chunks:
        chunk = decode_object(data)
        for choice in objects(chunk.pop("choices", None)):
            index = choice.pop("index", 0)
            index = index if several and isinstance(index, int) else 0
            whole = choices.setdefault(index, {"index": index, "message": {"role": "assistant"}})
            for message in objects([choice.pop("delta", None), choice.pop("message", None)]):
                merge(whole["message"], message)
            merge(whole, choice, joins=False)
        top |= {name: value for name, value in chunk.items() if value is not None}
    if not top and not choices:
        return {}
    found = [choices[index] for index in sorted(choices)]
    for choice in found:
        choice["message"].setdefault("content", None)
        for call in objects(choice["message"].get("tool_calls")):
            call.pop("index", None)
    return top | {"object": "chat.completion", "choices": found}


def merge(into: dict[str, Any], delta: dict[str, Any], *, joins: bool = True) -> None:
    """Add a delta to the values so far. Objects of a list with equal indexes are one object.

    Args:
        joins: True to join strings, which are pieces of a text. False if the last one counts.
    """
    for name, value in delta.items():
        before = into.get(name)
        if isinstance(before, str) and isinstance(value, str) and joins and name not in LABELS:
            into[name] = before + value
        elif isinstance(before, dict) and isinstance(value, dict):
            merge(before, value, joins=joins)
        elif isinstance(before, list) and isinstance(value, list):
            merge_lists(before, value)
        elif value is not None or name not in into:
            into[name] = value


def merge_lists(into: list[Any], items: list[Any]) -> None:
    for item in items:
        index = item.get("index") if isinstance(item, dict) else None
        same = [one for one in objects(into) if one.get("index") == index]
        if index is not None and same:
            merge(same[0], item)
        else:
            into.append(item)


def usage_of(chunk: dict[str, Any]) -> Any:
    """Return a chunk's usage. Groq's is in an object of its own."""
    found = chunk.get("usage")
    beside = chunk.get("x_groq")
    return found or (beside.get("usage") if isinstance(beside, dict) else None)


def text_of(choice: dict[str, Any]) -> str:
    """Return the text of a choice, or of a part of it."""
    message = choice.get("delta") or choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "".join([text for part in objects(content) if (text := part.get("text"))])
    return content if isinstance(content, str) else ""


class ShownDelta(msgspec.Struct, gc=False):
    content: msgspec.Raw


class ShownChoice(msgspec.Struct, gc=False):
    delta: ShownDelta
    finish_reason: None = None


class ShownChunk(msgspec.Struct, gc=False):
    """A chunk that ends no choice, with its text undecoded."""

    choices: list[ShownChoice]


class RawChoices(msgspec.Struct, gc=False):
    choices: msgspec.Raw


shown: Final = msgspec.json.Decoder(ShownChunk).decode
raw_choices: Final = msgspec.json.Decoder(RawChoices).decode


def without_usage(data: bytes) -> bytes:
    """Return a chunk without its usage."""
    fields = fields_of(data)
    fields.pop("usage", None)
    return msgspec.json.encode(fields)


class Renaming:
    """The replacement of the model's name in the chunks of one stream.

    All chunks of a stream share a beginning or an end, so the part with the model is searched for
    once, and then only compared.
    """

    def __init__(self, name: bytes) -> None:
        """Make the replacement. `name` is the new name in JSON."""
        self._name = name
        self.before, self.after, self.at = b"\0", b"", 1
        """The beginning of chunks, the model included; its replacement; and its length."""
        self._end, self._new_end = b"\0", b""

    def replaced(self, data: bytes) -> bytes:
        """Return a chunk with the model replaced."""
        if data.endswith(self._end):
            return data[: -len(self._end)] + self._new_end
        fields = fields_of(data)
        old = fields.get("model")
        if old is None:
            return data
        if isinstance(old, msgspec.Raw) and (found := self._learn(data, bytes(old))) is not None:
            return found
        return msgspec.json.encode(fields | {"model": msgspec.Raw(self._name)})

    def _learn(self, data: bytes, old: bytes) -> bytes | None:
        """Return a chunk with the model replaced; None if it can't be found by searching.

        Closed with a brace, the beginning up to the model (or the end from it) must be a JSON
        object. Otherwise the string is inside another value. The model must be a string, because
        only a string has a recognizable end: 1 is also the beginning of 12.
        """
        if not old.startswith(b'"'):
            return None
        at = data.find(old, data.find(b'"model"') + 7)
        end = at + len(old)
        if last_field(data[:end] + b"}") == old:
            self.before, self.after, self.at = data[:end], data[:at] + self._name, end
            return self.after + data[end:]
        start = data.rfind(b'"model"')
        at = data.find(old, start + 7)
        if start > 0 and last_field(b"{" + data[start:], first=True) == old:
            self._end = data[start:]
            self._new_end = data[start:at] + self._name + data[at + len(old) :]
            return data[:start] + self._new_end
        return None


def last_field(data: bytes, *, first: bool = False) -> bytes | None:
    """Return the value of an object's last (or first) field if that is its model, else None."""
    try:
        names = list(fields := _fields(data))
    except NOT_JSON:
        return None
    if not names or names[0 if first else -1] != "model":
        return None
    return bytes(fields["model"])
