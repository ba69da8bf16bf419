"""What is written of a call: when it is opened, when it is settled, and what it takes of a budget.

Rules that hold here: values only. Money is nano-dollars, a moment microseconds since 1970 UTC.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from completion import Usage
from errors import InsufficientCredits


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it is opened. The tokens and the cost are estimates of its input; they stay when
    its process dies. model: the target's own name for it."""

    id: str
    request_id: str
    stream_id: str
    key_id: str
    endpoint: str
    provider: str
    model: str
    streamed: bool
    byok: bool
    started_us: int
    input_tokens: int
    cost_nano: int | None


class Budget(msgspec.Struct, frozen=True):
    """What a key may spend from a UTC day on (None: ever), in nano-dollars."""

    limit_nano: int
    since_day: str | None = None


class Claim(msgspec.Struct, frozen=True):
    """What a call takes of a budget while it is open: `most`, or what is left of the budget if
    that is at least `least`. Nano-dollars."""

    budget: Budget
    least_nano: int
    most_nano: int


class Opening(msgspec.Struct):
    entry: Entry
    claim: Claim | None = None
    refusal: InsufficientCredits | None = None
    """Set when the budget had no room: there is no row then."""
    failed: bool = False
    """Set when the row could not be written."""
    tried: bool = False
    """Set when it was written: the row may be there, if nobody heard of its commit."""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended, and what it came to."""

    entry: Entry
    provider: str
    model: str
    status: int
    end_reason: str
    error_code: str | None
    usage: Usage
    cost_nano: int | None
    attempts: int
    ended_us: int
    duration_us: int
    latency_us: int
    first_event_us: int | None
    tries: str | None = None
    """Of more than one attempt: what each came to, as JSON."""


class Withdrawal(msgspec.Struct, frozen=True):
    """A call that was refused after its row may have been written."""

    id: str


LedgerStep: TypeAlias = Opening | Settlement | Withdrawal
