"""Chats with the embedded model, which completes the text of the last user message."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from completion import Batch, CompletionRequest, Delta, Event, Finished, Opaque, utf8_size
from errors import InvalidRequest
from providers.base import Target
from providers.decoding.added_fields import objects
from providers.local.call import LocalCall

KINDS: Final[dict[str, Any]] = {
    "temperature": float,
    "top_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "seed": int,
    "stop": str | list[str],
}
"""The fields of a chat that the model knows, besides the messages, with their types."""
NOT_LACKING: Final = frozenset(
    (
        *KINDS,
        *("model", "messages", "stream", "stream_options", "n"),
        *("max_tokens", "max_completion_tokens", "user", "metadata", "store"),
    )
)
"""The fields of a chat that the model knows, or that wouldn't change its answer."""


def call_of(request: CompletionRequest, target: Target) -> LocalCall:
    """Return the call of a chat or of a completion. Raises InvalidRequest."""
    if request.chat is None:
        return LocalCall(request, target)
    return LocalChat(request, target)


class LocalChat(LocalCall):
    """A LocalCall whose text is passed on as the chunks of a chat."""

    def __init__(self, request: CompletionRequest, target: Target) -> None:
        """Make the call. Raises InvalidRequest."""
        super().__init__(as_completion(request), target)
        self._shape = {
            "id": f"chatcmpl-{secrets.token_hex(16)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": target.name,
        }
        self._begun: set[int] = set()
        """The choices whose role was sent."""

    def events(self) -> Iterator[Batch]:
        for batch in super().events():
            yield [each for event in batch for each in self._as_chat(event)]

    def _as_chat(self, event: Event) -> Batch:
        """Return the events of a chat for an event of a completion."""
        if isinstance(event, Delta):
            data = self._chunk(event.index, {"content": event.text}, None)
            return [Opaque(data, event.index, utf8_size(event.text))]
        if isinstance(event, Finished):
            data = self._chunk(event.index, {}, event.reason)
            return [Opaque(data, event.index, ends=(event.index,)), event]
        return [event]

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None) -> bytes:
        if index not in self._begun:
            self._begun.add(index)
            delta = {"role": "assistant", **delta}
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        return msgspec.json.encode(self._shape | {"choices": [choice]})


def as_completion(request: CompletionRequest) -> CompletionRequest:
    """Return the request that completes a chat's last user message. Raises InvalidRequest."""
    chat = request.chat
    assert chat is not None  # noqa: S101 - the caller has checked it
    found: dict[str, Any] = {}
    for name, kind in KINDS.items():
        if name in chat.fields:
            found[name] = value_of(name, chat.fields[name], kind)
    stops = found.pop("stop", None) or []
    return CompletionRequest(
        prompts=(last_text(msgspec.json.decode(chat.fields["messages"])),),
        max_tokens=request.max_tokens,
        n=request.n,
        stop=tuple(filter(None, [stops] if isinstance(stops, str) else stops)),
        stream=request.stream,
        **found,
    )


def value_of(name: str, data: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.convert(msgspec.json.decode(data), kind | None)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{name} is invalid: {error}.", param=name) from None


def last_text(messages: Any) -> str:
    """Return the text of the last message of the user, or "" if there is none."""
    contents = [one.get("content") for one in objects(messages) if one.get("role") == "user"]
    content = contents[-1] if contents else ""
    if isinstance(content, str):
        return content
    texts = (part.get("text") for part in objects(content))
    return "".join(text for text in texts if isinstance(text, str))
