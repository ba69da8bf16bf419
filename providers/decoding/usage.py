"""Token counts and costs that a host reported, made consistent.

- The module is pure.
- Cached tokens are part of the input and reasoning tokens part of the output, so no count exceeds
  the count that it is part of. `./sluice usage verify` checks that.
- Single counts are bounded by `lenient_json.Count`.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from completion import Usage

NANO: Final = 1_000_000_000
MOST_COST: Final = 1_000_000
"""The highest cost of a call, in USD, that is believed."""


def usage(
    given: int,
    made: int,
    *,
    read: int = 0,
    written: int = 0,
    written_1h: int = 0,
    reasoning: int = 0,
    **others: Any,
) -> Usage | None:
    """Return the usage, or None if there is neither input nor output.

    Args:
        given: the tokens of input, cached or not.
        made: the tokens of output.
        read: the tokens of input that were read from a cache.
        written: the tokens of input that were written to a cache.
        written_1h: those of them that the cache keeps for an hour.
        reasoning: the tokens of output that are reasoning.
        others: the fields of Usage that are part of neither.
    """
    if not given and not made:
        return None
    if read or written or reasoning:
        read = min(read, given)
        written, reasoning = min(written, given - read), min(reasoning, made)
    long = min(written_1h, written)
    return Usage(given, made, read, written, reasoning, cache_write_1h_tokens=long, **others)


def word(value: object) -> str | None:
    """Return the name of a service tier or speed in lower case, or None if there is none."""
    return value.lower() if isinstance(value, str) and value else None


def nano_dollars(value: object) -> int | None:
    """Return a cost in USD that a host reported in nano-dollars, rounded up.

    Return None unless it is a number from 0 to MOST_COST. Some hosts send it as a string.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        dollars = Decimal(str(value))
        if not dollars.is_finite() or not 0 <= dollars <= MOST_COST:
            return None
        return int((dollars * NANO).to_integral_value(ROUND_CEILING))
    except (InvalidOperation, ValueError):  # not a number, or one with thousands of digits
        return None


def believable(found: Usage, *, text: bool) -> Usage:
    """Return the usage, marked as an estimate if a count of 0 can't be true.

    Neither a prompt nor a text has 0 tokens. The tally replaces such a count by its own estimate.

    Args:
        text: True if the model has generated text.
    """
    if found.input_tokens and (found.output_tokens or not text):
        return found
    return msgspec.structs.replace(found, source="estimate")
