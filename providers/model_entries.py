"""The parts that the decoding of several hosts' lists of models shares.

- The functions are pure, and a value of the wrong type counts as absent. Only a body without a list
  is an error.
- Only models that complete text are kept. If the list doesn't say what a model is for, the model's
  name decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from concurrency.yielding import paced
from errors import UpstreamError
from providers.base import ListedModel
from providers.decoding.lenient_json import NOT_JSON, garbage
from providers.request_parts import has_dot_segment

MOST_ENTRIES: Final = 5000
"""The most entries of a page to look at. Each takes tens of microseconds."""
LONGEST_NAME: Final = 256
LONGEST_CURSOR: Final = 4096
LARGEST_WINDOW: Final = (1 << 31) - 1
NANO: Final = 1_000_000_000
MTOK: Final = 1_000_000
DEAREST: Final = 1_000_000
"""The highest price to believe, in USD per million tokens."""

NOT_TEXT_NAMES: Final = re.compile(
    r"(^|[-._])"
    r"(\w*embed\w*|bge|gte|e5|colbert|rerank\w*|moderation|prompt-guard|safeguard"
    r"|whisper|parakeet|transcri(be|ption)|voxtral-(mini|small)-transcribe|asr|tts|stt|speech|audio"
    r"|realtime|live|sonic|orpheus|playai|kokoro|bark|lyria|music\w*|cosyvoice|sambert|paraformer"
    r"|image|imagen|dall-e|flux\.?\d?|stable-diffusion|sdxl|sd3|nano-banana|ideogram|seedream"
    r"|video|sora|veo|seedance|wanx?\d?|computer-use|mistral-ocr|aqa|reward|(nv)?clip)"
    r"($|[-._:0-9])"
)
"""The names of models that complete no text. Only the part after the last slash is searched."""
NOT_TEXT_KINDS: Final = frozenset(
    (
        *("audio", "embedding", "embeddings", "image", "moderation", "rerank", "speech"),
        *("text-to-image", "transcribe", "transcription", "tts", "video"),
        # Fireworks' kinds: models for images, for embeddings and for speculation.
        *("DRAFT_ADDON", "EMBEDDING_MODEL", "FLUMINA_ADDON", "FLUMINA_BASE_MODEL"),
    )
)
TEXT_ABILITIES: Final = frozenset(("chat", "completion", "completions", "generate"))
NOT_TEXT_ABILITIES: Final = frozenset(("embed", "embedding", "embeddings", "rerank"))
ABILITIES: Final = ("completion_chat", "completion_fim", "completion", "chat_completion")
"""The names in an object of capabilities that say whether a model completes text."""


def decode(body: bytes) -> Any:
    """Return a body's JSON. Raises UpstreamError."""
    try:
        return msgspec.json.decode(body)
    except NOT_JSON:
        pass
    try:  # some servers write NaN, and add a byte order mark
        return json.loads(body.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        raise garbage("The upstream sent a list of models that is not JSON.", body) from None


def entries(data: Any, *fields: str) -> Iterator[Mapping[str, Any]]:
    """Return the objects of a list, up to MOST_ENTRIES. The list is the data or one of its fields.

    Other greenlets run between entries, because a host decides how many there are.

    Raises:
        UpstreamError: There is no list.
    """
    lists = [data] if isinstance(data, list) else [member(data, field) for field in fields]
    found = next((one for one in lists if isinstance(one, list)), None)
    if found is None:
        raise UpstreamError("The upstream sent something else than a list of models.")
    return objects(found)


def objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the objects among the first MOST_ENTRIES of a list; nothing of another value."""
    for entry in paced(value[:MOST_ENTRIES] if isinstance(value, list) else ()):
        if isinstance(entry, dict):
            yield entry


def member(data: Any, *path: str) -> Any:
    """Return a value inside objects; None if there is none."""
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def text(value: Any) -> str | None:
    """Return a short text on one line; None for anything else."""
    good = isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()
    return value if good and value.strip() == value else None


def cursor(value: Any) -> str | None:
    """Return the cursor of the next page; None for anything that can't be part of a URL."""
    good = isinstance(value, str) and 0 < len(value) <= LONGEST_CURSOR and value.isprintable()
    return value if good else None


def whole(value: Any) -> int | None:
    """Return a positive whole number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 53:
        return None
    return int(value) or None


def window(entry: Mapping[str, Any], paths: Iterable[tuple[str, ...]]) -> int | None:
    """Return the first context window, in tokens, at one of the paths in an entry."""
    sizes = (whole(member(entry, *path)) for path in paths)
    return next((size for size in sizes if size and size <= LARGEST_WINDOW), None)


def usable(name: str | None) -> bool:
    """Return True if a model's name can be called, and isn't that of a model for something else."""
    if name is None or has_dot_segment(name):
        return False
    return not NOT_TEXT_NAMES.search(name.rpartition("/")[2].lower())


def completes_text(entry: Mapping[str, Any]) -> bool:
    """Return False if an entry of a list says that the model is for something else than text."""
    kinds = {entry.get(field) for field in ("type", "kind", "task") if text(entry.get(field))}
    outputs = member(entry, "architecture", "output_modalities") or entry.get("output_modalities")
    if kinds & NOT_TEXT_KINDS or entry.get("active") is False:
        return False
    if isinstance(outputs, list) and outputs and "text" not in outputs:
        return False
    return has_ability(entry.get("capabilities"))


def has_ability(abilities: Any) -> bool:
    """Return False if a list or an object of capabilities says that a model completes no text."""
    if isinstance(abilities, list):
        names = {name for name in abilities if isinstance(name, str)}
        return bool(names & TEXT_ABILITIES) or not names & NOT_TEXT_ABILITIES
    flags = [member(abilities, name) for name in ABILITIES]
    known = [flag for flag in flags if isinstance(flag, bool)]
    return any(known) or not known


def price(value: Any, tokens: int) -> int | None:
    """Return a price in nano-dollars per million tokens; None if it is unknown.

    Args:
        value: a number, or a text with one, in USD. OpenRouter's -1 means that it varies.
        tokens: the number of tokens that it buys.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = Decimal(str(value)[:64]) * MTOK / tokens
    except (ArithmeticError, ValueError):
        return None
    if not amount.is_finite() or not 0 <= amount <= DEAREST:
        return None
    return int(amount * NANO)


def prices(source: Any, tokens: int, names: Sequence[str]) -> tuple[int, int] | None:
    """Return the prices of input and output in an object; None unless both are known."""
    found = [price(member(source, name), tokens) for name in names]
    first, second = found
    return None if first is None or second is None else (first, second)


def distinct(models: Iterable[ListedModel]) -> tuple[ListedModel, ...]:
    """Return the models without those of a name that came before."""
    found: dict[str, ListedModel] = {}
    for model in models:
        found.setdefault(model.id, model)
    return tuple(found.values())
