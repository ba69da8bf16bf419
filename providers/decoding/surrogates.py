"""Joining of characters that a host has cut into two UTF-16 surrogates.

JSON escapes a character such as 🦊 as two surrogates, \\ud83e\\udd8a. Some hosts put them into two
pieces of text, or into two events.

- The module is pure.
"""

from __future__ import annotations

from completion import Batch, Delta

LONE = "\N{REPLACEMENT CHARACTER}"


class SplitPairs:
    """The halves of characters that wait for the rest of their pair, one for each choice."""

    __slots__ = ("held", "possible")

    def __init__(self) -> None:
        self.held: dict[int, str] = {}
        self.possible = False
        """True once the text may have surrogates. Until then, `join` need not be called: strict
        decoding of JSON rejects lone surrogates, so only lenient decoding sets this."""

    def join(self, index: int, text: str) -> str:
        """Return a choice's next text as valid Unicode, except half of a character at its end.

        That half is held for the next text. A half without its other half becomes U+FFFD.
        """
        if not text:
            return text
        text = self.held.pop(index, "") + text
        if "\ud800" <= text[-1] <= "\udbff":
            self.held[index] = text[-1]
            text = text[:-1]
        return replace_lone(text)

    def flush(self, batch: Batch) -> None:
        """Append U+FFFD for each half that is still held at the end of the completion."""
        batch.extend(Delta(index, LONE) for index in sorted(self.held))
        self.held.clear()


def replace_lone(text: str) -> str:
    """Join the surrogate pairs in a text, and replace each lone surrogate with U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
