"""Decoding of responses from llama.cpp's /infill into events.

- The module is pure.
- Streams and whole JSON bodies take one code path, so that they can't drift apart.
"""

from __future__ import annotations

from typing import Final

from completion import Batch, Delta, Finished, FinishReason, Started, Usage, Used
from errors import UpstreamError
from providers.decoding import lenient_json, sse
from providers.decoding.added_fields import append_added, decode_object, unknown
from providers.decoding.error_bodies import failure, reported
from providers.decoding.finish_reasons import meaning_of
from providers.decoding.lenient_json import garbage
from providers.decoding.surrogates import SplitPairs
from providers.decoding.usage import believable
from providers.infill.schemas import KNOWN, PIECE, Piece

REASONS: Final[dict[str, FinishReason]] = {"limit": "length", "eos": "stop", "word": "stop"}
"""The finish reason for each of llama.cpp's values of `stop_type`. Other words are in
finish_reasons.py."""


class InfillResponse:
    """The state of one response while it is decoded."""

    __slots__ = ("adds", "pairs", "started", "text")

    def __init__(self, *, adds: bool = False) -> None:
        self.adds = adds
        """True if fields that Sluice doesn't know are passed on."""
        self.started = False
        self.text = False
        """True if there is text."""
        self.pairs = SplitPairs()

    def read(self, frame: sse.Frame, batch: Batch) -> bool:
        """Append the events of a frame. Return True if it was the last one.

        Raises:
            UpstreamError: The frame reports an error or is malformed. The text beside an error has
                been appended.
        """
        if frame.event == "error":
            raise failure(frame.data, {})
        if frame.event != "message":
            return False
        piece = self.decode(frame.data)
        if piece.content is None and frame.data.strip() in (b"", b"null"):
            return False
        self.take(piece, frame.data, batch)
        return bool(piece.stop)

    def read_whole(self, body: bytes, batch: Batch) -> None:
        """Append the events of a JSON body. Raises UpstreamError if it isn't a completion."""
        piece = self.decode(body)
        piece.stop = True
        self.take(piece, body, batch)

    def decode(self, data: bytes) -> Piece:
        try:
            return lenient_json.decode(data, PIECE, self.pairs)
        except UpstreamError:
            raise garbage("The upstream sent data in an unexpected format.", data) from None

    def take(self, piece: Piece, data: bytes, batch: Batch) -> None:
        """Append the events of a piece. Its token counts cover the response so far."""
        text = piece.content
        if text is None and not piece.error:
            raise garbage("The upstream sent data in an unexpected format.", data)
        if not self.started and not piece.error:
            self.started = True
            batch.append(Started(piece.model))
        if self.adds and not piece.error:
            append_added(unknown(decode_object(data), KNOWN), batch)
        if text and self.pairs.possible:
            text = self.pairs.join(0, text)
        if text:
            self.text = True
            batch.append(Delta(0, text))
        if piece.error:
            raise reported({"error": piece.error})
        if piece.stop:
            reason = meaning_of(piece.stop_type, REASONS)
            self.pairs.flush(batch)
            batch.append(Finished(0, reason or "stop"))
        given, made = piece.tokens_evaluated or 0, piece.tokens_predicted or 0
        if given and made:
            batch.append(Used(Usage(given, made)))
        elif given or made:
            batch.append(Used(believable(Usage(given, made), text=self.text)))
