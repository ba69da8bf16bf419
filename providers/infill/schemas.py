"""A Struct for the JSON of llama.cpp's /infill.

Source: llama.cpp, tools/server/README.md, "POST /infill" and "POST /completion" (read 2026-11).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from providers.decoding.lenient_json import Count, Text


class Piece(msgspec.Struct):
    """A piece of a stream, or a whole JSON body."""

    index: Count | None = None
    content: Text | None = None
    stop: bool | None = None
    stop_type: Any = None
    model: str | None = None
    tokens_evaluated: Count | None = None
    tokens_predicted: Count | None = None
    error: Any = None


SEVERAL: Final = msgspec.json.Decoder(list[msgspec.Raw])
"""A whole JSON body with several choices."""
PIECE: Final = msgspec.json.Decoder(Piece)
KNOWN: Final = frozenset({"prompt", *Piece.__struct_fields__})
"""The known fields. The others are passed on to who asked for them."""
