"""Token counts that a host reported, made consistent.

- The module is pure.
- Cached tokens are part of the input and reasoning tokens part of the output, so no count exceeds
  the count that it is part of. `flask usage verify` checks that.
- Single counts are bounded by `lenient_json.Count`.
"""

from __future__ import annotations

import msgspec

from completion import Usage


def usage(
    given: int, made: int, *, read: int = 0, written: int = 0, reasoning: int = 0
) -> Usage | None:
    """Return the usage, or None if there is neither input nor output.

    Args:
        given: the tokens of input, cached or not.
        made: the tokens of output.
        read: the tokens of input that were read from a cache.
        written: the tokens of input that were written to a cache.
        reasoning: the tokens of output that are reasoning.
    """
    if not given and not made:
        return None
    if read or written or reasoning:
        read = min(read, given)
        written, reasoning = min(written, given - read), min(reasoning, made)
    return Usage(given, made, read, written, reasoning)


def believable(found: Usage, *, text: bool) -> Usage:
    """Return the usage, marked as an estimate if a count of 0 can't be true.

    Neither a prompt nor a text has 0 tokens. The tally replaces such a count by its own estimate.

    Args:
        text: True if the model has generated text.
    """
    if found.input_tokens and (found.output_tokens or not text):
        return found
    return msgspec.structs.replace(found, source="estimate")
