"""The provider's added fields in a stream: each waits for the next frame of its choice."""

from __future__ import annotations

from typing import Any

from completion import PIECE, Added, merge_fields


class AddedFields:
    """The fields that wait, of one stream."""

    def __init__(self) -> None:
        self._top: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._size = 0

    def add(self, event: Added) -> bool:
        """Let the fields wait. Return True if so many wait that they need a frame without text."""
        into = self._top if event.top else self._choices.setdefault(event.index, {})
        merge_fields(into, event.fields)
        self._size += event.size
        return self._size > PIECE

    def take(self, index: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the fields for a frame: those beside its choices, and those of a choice."""
        top, self._top, self._size = self._top, {}, 0
        return top, {} if index is None else self._choices.pop(index, {})
