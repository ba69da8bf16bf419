"""Decoding of responses from llama.cpp's /infill into events.

- The module is pure.
"""

from __future__ import annotations

from typing import Final

import msgspec

from completion import Batch, Delta, Finished, FinishReason, Usage, Used
from providers.decoding.error_bodies import reported
from providers.decoding.lenient_json import NOT_JSON, garbage
from providers.infill.schemas import Piece

REASONS: Final[dict[str | None, FinishReason]] = {"limit": "length"}
"""The finish reason for each `stop_type`. Any other value (eos, word, ...) becomes "stop"."""


def decode(data: bytes) -> Piece:
    """Decode a piece. Raises UpstreamError if the data reports an error or is malformed."""
    try:
        piece = msgspec.json.decode(data, type=Piece)
    except NOT_JSON:
        raise garbage("The upstream sent data in an unexpected format.", data) from None
    if piece.error:
        raise reported({"error": piece.error})
    if piece.content is None:
        raise garbage("The upstream sent data in an unexpected format.", data)
    return piece


def read(piece: Piece) -> Batch:
    """Return the events of a piece. Its token counts cover the response so far."""
    batch: Batch = []
    if piece.content:
        batch.append(Delta(0, piece.content))
    if piece.stop:
        batch.append(Finished(0, REASONS.get(piece.stop_type, "stop")))
    if piece.tokens_evaluated or piece.tokens_predicted:
        batch.append(Used(Usage(piece.tokens_evaluated, piece.tokens_predicted)))
    return batch
