"""What the data of the genai-prices package says about a model, besides its price."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

MOST_KEPT: Final = 10_000


@lru_cache(MOST_KEPT)
def about(price_id: str, model: str) -> tuple[str | None, int | None]:
    """Return a model's title and the size of its context window; None means unknown.

    The data may describe the model by the name of another one, such as the one without a date. That
    one's title isn't the model's.
    """
    from genai_prices.data_snapshot import get_snapshot

    try:
        _, info = get_snapshot().find_provider_model(model, None, price_id, None)
    except LookupError:
        return None, None
    return (info.name if info.id == model else None), info.context_window
