"""Stop strings: a completion's text is sent up to the first stop string.

- All functions are pure, except that `_release` changes its list.
- A piece whose text could be the beginning of a stop string is held back.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import TypeAlias

from completion import Delta, Logprobs, join_logprobs

Piece: TypeAlias = tuple[str, Logprobs | None]
"""The text of a token, and its log probabilities if they are needed."""


def deltas(
    index: int, pieces: Iterator[Piece], stops: tuple[str, ...]
) -> Generator[Delta | None, None, bool]:
    """Yield the pieces as deltas, up to the first stop string.

    Yield None where a piece is held back. Return True if a stop string was found.
    """
    held: list[Piece] = []
    for piece in pieces:
        if not stops:
            yield Delta(index, *piece)
            continue
        held.append(piece)
        sendable, found = cut("".join(text for text, _ in held), stops)
        yield _release(index, held, sendable, part=found)
        if found:
            return True
    yield _release(index, held, sys.maxsize, part=False)
    return False


def cut(text: str, stops: tuple[str, ...]) -> tuple[int, bool]:
    """Return how many characters of a text can be sent, and True if a stop string follows them.

    If no stop string follows, the remaining characters could be the beginning of one.
    """
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        return min(found), True
    for at in range(len(text)):
        rest = text[at:]
        if any(stop.startswith(rest) for stop in stops):
            return at, False
    return len(text), False


def _release(index: int, held: list[Piece], length: int, *, part: bool) -> Delta | None:
    """Take the pieces that fit into `length` characters from `held` and return them as one delta.

    Args:
        part: True to also take the fitting part of the next piece.
    """
    texts: list[str] = []
    known: list[Logprobs] = []
    while held and length > 0 and (part or len(held[0][0]) <= length):
        text, logprobs = held.pop(0)
        texts.append(text[:length])
        length -= len(text)
        if logprobs is not None:
            known.append(logprobs)
    logprobs = join_logprobs(known) if known else None
    return Delta(index, "".join(texts), logprobs) if texts else None
