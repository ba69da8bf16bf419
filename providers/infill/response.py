"""Decoding of responses from llama.cpp's /infill into events.

- The module is pure.
- Streams and whole JSON bodies take one code path, so that they can't drift apart.
"""

from __future__ import annotations

from typing import Final

from completion import (
    Batch,
    Delta,
    Finished,
    FinishReason,
    Opaque,
    Started,
    Usage,
    Used,
    utf8_size,
)
from errors import UpstreamError
from providers.decoding import lenient_json, sse
from providers.decoding.added_fields import append_added, decode_object, unknown
from providers.decoding.error_bodies import failure, reported
from providers.decoding.finish_reasons import meaning_of
from providers.decoding.lenient_json import NOT_JSON, garbage, on_one_line
from providers.decoding.surrogates import SplitPairs
from providers.decoding.usage import believable
from providers.infill.schemas import KNOWN, PIECE, SEVERAL, Piece

REASONS: Final[dict[str, FinishReason]] = {"limit": "length", "eos": "stop", "word": "stop"}
"""The finish reason for each of llama.cpp's values of `stop_type`. Other words are in
finish_reasons.py."""


class InfillResponse:
    """The state of one response while it is decoded."""

    __slots__ = ("adds", "choices", "counts", "finished", "opaque", "pairs", "started", "text")

    def __init__(self, *, adds: bool = False, opaque: bool = False, choices: int = 1) -> None:
        self.adds = adds
        """True if fields that Sluice doesn't know are passed on."""
        self.opaque = opaque
        """True if the pieces are passed on as they are."""
        self.choices = choices
        self.finished: set[int] = set()
        self.counts: dict[int, tuple[int, int]] = {}
        """The tokens of input and output of each choice. All choices share the input."""
        self.started = False
        self.text = False
        """True if there is text."""
        self.pairs = SplitPairs()

    def read(self, frame: sse.Frame, batch: Batch) -> bool:
        """Append the events of a frame. Return True if each choice has ended.

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
        return len(self.finished) >= self.choices

    def read_whole(self, body: bytes, batch: Batch) -> None:
        """Append the events of a JSON body. Raises UpstreamError if it isn't a completion."""
        for data in self.parts(body):
            piece = self.decode(data)
            piece.stop = True
            self.take(piece, data, batch)

    def parts(self, body: bytes) -> list[bytes]:
        """Return the parts of a JSON body, one for each choice."""
        if not self.opaque or body.lstrip()[:1] != b"[":
            return [body]
        try:
            return [bytes(part) for part in SEVERAL.decode(body)] or [body]
        except NOT_JSON:
            return [body]

    def decode(self, data: bytes) -> Piece:
        try:
            return lenient_json.decode(data, PIECE, self.pairs)
        except UpstreamError:
            raise garbage("The upstream sent data in an unexpected format.", data) from None

    def take(self, piece: Piece, data: bytes, batch: Batch) -> None:
        """Append the events of a piece. Its token counts cover the response so far."""
        if piece.content is None and not piece.error:
            raise garbage("The upstream sent data in an unexpected format.", data)
        if not self.started and not piece.error:
            self.started = True
            batch.append(Started(piece.model))
        index = piece.index if self.opaque and (piece.index or 0) < self.choices else 0
        self.take_text(index or 0, piece, data, batch)
        if piece.error:
            raise reported({"error": piece.error})
        if piece.stop:
            self.finished.add(index or 0)
            reason = meaning_of(piece.stop_type, REASONS)
            self.pairs.flush(batch)
            batch.append(Finished(index or 0, reason or "stop"))
        self.take_counts(index or 0, piece, batch)

    def take_text(self, index: int, piece: Piece, data: bytes, batch: Batch) -> None:
        text = piece.content or ""
        if self.opaque:
            if not piece.error:
                shown = bool(text or piece.stop)
                size = utf8_size(text)
                ends = (index,) if piece.stop else ()
                batch.append(Opaque(on_one_line(data), index, size, shown, ends=ends))
        else:
            if self.adds and not piece.error:
                append_added(unknown(decode_object(data), KNOWN), batch)
            if text and self.pairs.possible:
                text = self.pairs.join(0, text)
            if text:
                batch.append(Delta(0, text))
        self.text = self.text or bool(text)

    def take_counts(self, index: int, piece: Piece, batch: Batch) -> None:
        self.counts[index] = (piece.tokens_evaluated or 0, piece.tokens_predicted or 0)
        given = max(counts[0] for counts in self.counts.values())
        made = sum(counts[1] for counts in self.counts.values())
        if given and made:
            batch.append(Used(Usage(given, made)))
        elif given or made:
            batch.append(Used(believable(Usage(given, made), text=self.text)))
