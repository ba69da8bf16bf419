"""A Struct for the JSON of llama.cpp's /infill.

Source: llama.cpp, tools/server/README.md, "POST /infill" and "POST /completion" (read 2026-11).
"""

from __future__ import annotations

from typing import Any

import msgspec

from providers.decoding.lenient_json import Count


class Piece(msgspec.Struct):
    """A piece of a stream, or a whole JSON body."""

    content: str | None = None
    stop: bool | None = None
    stop_type: str | None = None
    model: str | None = None
    tokens_evaluated: Count = 0
    tokens_predicted: Count = 0
    error: Any = None
