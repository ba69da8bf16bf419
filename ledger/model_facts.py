"""The data of the genai-prices package about a model.

- The package is loaded on first use, not on import, and never for a built-in local engine.
- A look-up of a model takes milliseconds, so the results are cached. Callers choose the names, so
  their number is bounded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

MOST_KEPT: Final = 10_000
UNLISTED: Final = frozenset(("llamacpp", "lmstudio", "local", "ollama", "sglang", "vllm"))
"""The built-in local engines, of which the package knows nothing. It takes 13 MB of memory, so a
server that has only these doesn't load it."""


@lru_cache(MOST_KEPT)
def look_up(price_id: str, model: str) -> ModelInfo | None:
    """Return the data of a model of a provider; None if there is none."""
    if price_id in UNLISTED:
        return None
    from genai_prices.data_snapshot import get_snapshot

    try:
        return get_snapshot().find_provider_model(model, None, price_id, None)[1]
    except LookupError:
        return None


def about(price_id: str, model: str) -> tuple[str | None, int | None]:
    """Return a model's title and the size of its context window; None means unknown.

    The data may describe the model by the name of another one, such as the one without a date. That
    one's title isn't the model's.
    """
    info = look_up(price_id, model)
    if info is None:
        return None, None
    return (info.name if info.id == model else None), info.context_window
