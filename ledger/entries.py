"""The values that the ledger records for a call: its opening, its settlement, its budget claim.

- Amounts of money are in nano-dollars, and times in microseconds since 1970 UTC.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from completion import Usage
from errors import InsufficientCredits


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A call at the time when its row is opened.

    The tokens and the cost are estimates for its input, which become final if its process dies.
    """

    id: str
    request_id: str
    stream_id: str
    key_id: str
    endpoint: str
    provider: str
    model: str
    """The provider's own name for the model."""
    streamed: bool
    byok: bool
    started_us: int
    input_tokens: int
    cost_nano: int | None
    group_name: str | None = None
    """The group of the key when the row is opened."""


class Budget(msgspec.Struct, frozen=True):
    limit_nano: int
    since_day: str | None = None
    """The first UTC day whose spending counts, such as 2026-01-31; None: all spending counts."""


class Claim(msgspec.Struct, frozen=True):
    """The part of budgets that a call reserves while it is open.

    A call reserves `most_nano`, or the rest of a budget if that is less. If a rest is below
    `least_nano`, the call is refused.
    """

    budget: Budget | None
    """The key's budget, if it has one."""
    least_nano: int
    most_nano: int
    group: Budget | None = None
    """The budget of the key's group, if it has one."""


class Opening(msgspec.Struct):
    """A call whose row is to be written. The writer sets the last three fields."""

    entry: Entry
    claim: Claim | None = None
    refusal: InsufficientCredits | None = None
    """The error if the budget had no room for the claim; the call then has no row."""
    failed: bool = False
    """True if the row could not be written."""
    tried: bool = False
    """True after an attempt to write the row, which may exist even if the attempt failed."""


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
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
    """The outcome of each attempt as JSON, if there was more than one."""


class Withdrawal(msgspec.Struct, frozen=True):
    """A call that was refused after its row may have been written."""

    id: str


LedgerStep: TypeAlias = Opening | Settlement | Withdrawal
