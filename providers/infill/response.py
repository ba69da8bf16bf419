"""The answers of llama.cpp's /infill, translated into events.

- It is pure.
"""

from __future__ import annotations

from typing import Final

import msgspec

from completion import Batch, Delta, Finished, FinishReason, Usage, Used
from providers.decoding.error_bodies import reported
from providers.decoding.lenient_json import NOT_JSON, garbage
from providers.infill.schemas import Piece

REASONS: Final[dict[str | None, FinishReason]] = {"limit": "length"}
"""Our finish reason for a `stop_type`. Any other (eos, word, ...) means that the model ended by
itself."""


def decode(data: bytes) -> Piece:
    """Return a piece. Raises UpstreamError if the data is an error, or isn't a piece."""
    try:
        piece = msgspec.json.decode(data, type=Piece)
    except NOT_JSON:
        raise garbage("The upstream sent something that is not its format.", data) from None
    if piece.error:
        raise reported({"error": piece.error})
    if piece.content is None:
        raise garbage("The upstream sent something that is not its format.", data)
    return piece


def read(piece: Piece) -> Batch:
    """Return the events of one piece. Its counts are those so far."""
    batch: Batch = []
    if piece.content:
        batch.append(Delta(0, piece.content))
    if piece.stop:
        batch.append(Finished(0, REASONS.get(piece.stop_type, "stop")))
    if piece.tokens_evaluated or piece.tokens_predicted:
        batch.append(Used(Usage(piece.tokens_evaluated, piece.tokens_predicted)))
    return batch
