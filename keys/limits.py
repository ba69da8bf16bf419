"""The limits that keys and groups of keys may have: rates, and amounts of money."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias, get_args

Period: TypeAlias = Literal["total", "day", "month"]

PERIODS: tuple[Period, ...] = get_args(Period)
MAX_COUNT = 10**12
MAX_USD = 10**9
"""The largest limit and the largest budget: more than anyone needs, but no counter overflows."""


class Limits(NamedTuple):
    """The rate limits of a key. None means no limit, and 0 means that nothing is allowed."""

    requests_per_minute: int | None = None
    tokens_per_hour: int | None = None


@lru_cache(maxsize=1024)
def nano(usd: float) -> int:
    """Return an amount of US dollars in nano-dollars."""
    # Converted through its decimal text, so that 0.1 is exactly 100,000,000.
    return int(min(Decimal(str(usd)), Decimal(MAX_USD)).scaleb(9))
