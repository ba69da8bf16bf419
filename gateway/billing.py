"""What a call costs its caller: quota, budget and ledger, at its beginning and at its end.

Rules that hold here: a call that isn't refused has one row in the ledger; what it reserved is
settled exactly once; a caller's own key bypasses limits and budget, and is recorded all the same.
"""

from __future__ import annotations

import logging

import msgspec

from completion import Usage
from errors import ModelForbidden
from gateway.call import Outcome
from gateway.capabilities import Candidate
from keys.key import Key
from ledger.entries import Claim, Entry, Settlement
from ledger.ledger import Ledger
from ledger.pricing import Price, Prices, cost
from ledger.schema import new_id, now_us
from providers.base import Target
from quota.memory import Hold
from quota.quota import Demand, Quota, budget_of, demand_of
from streams.stream import Stream

log = logging.getLogger("sluice.meter")
MICRO = 1_000_000


class Reservation(msgspec.Struct, frozen=True):
    """What was written down when a call began."""

    entry: Entry
    hold: Hold | None
    recorded: bool


class Billing:
    def __init__(self, prices: Prices, quota: Quota, ledger: Ledger) -> None:
        self._prices = prices
        self._quota = quota
        self._ledger = ledger

    def payable(self, key: Key, candidates: list[Candidate]) -> list[Candidate]:
        """The candidates that the key can pay for: a budget can't count what has no price. Raises
        ModelForbidden when there is none."""
        if budget_of(key) is None:
            return candidates
        found = [c for c in candidates if c.target.byok or self._price(c.target) is not None]
        if not found:
            raise ModelForbidden(
                f"The price of {candidates[0].target.name} is not known here, so a key with a "
                "budget can't use it: its operator can set one under [prices] in sluice.toml.",
                param="model",
            )
        return found

    def open(self, key: Key, stream: Stream, candidates: list[Candidate]) -> Reservation:
        """Reserve what the call may use and open its row; on return it is on disk.

        Raises RateLimited, InsufficientCredits and, when the ledger is away, Unavailable.
        """
        demand = demand_of(stream.request)
        entry = self._entry(stream, demand)
        if stream.target.byok:
            return Reservation(entry, None, self._ledger.open(entry, None))
        hold = self._quota.admit(key, demand)
        try:
            claim = self._claim(key, demand, candidates, continued=stream.text is not None)
            return Reservation(entry, hold, self._ledger.open(entry, claim))
        except BaseException:
            self._quota.settle(hold, 0)
            raise

    def settle(self, reservation: Reservation, stream: Stream, outcome: Outcome) -> None:
        """Account for a call that has ended; on return its row is on disk."""
        self._quota.settle(reservation.hold, outcome.usage.total_tokens)
        if reservation.recorded:
            self._ledger.settle(settlement(reservation.entry, stream, outcome))

    def cost(self, target: Target, usage: Usage) -> int | None:
        """In nano-dollars; None: no price is known. A caller's own key costs us nothing."""
        if target.byok:
            return 0
        price = self._price(target)
        return None if price is None else cost(usage, price)

    def _price(self, target: Target) -> Price | None:
        try:
            return self._prices.of(target)
        except Exception:  # a price list that is out of order is no reason to lose the record
            log.exception("pricing failed", extra={"model": target.name})
            return None

    def _claim(
        self, key: Key, demand: Demand, candidates: list[Candidate], *, continued: bool
    ) -> Claim | None:
        prices = [self._price(candidate.target) for candidate in candidates]
        known = [price for price in prices if price is not None]
        models = len({candidate.target.name for candidate in candidates})  # each may be late
        return self._quota.claim(key, demand, known, times=models, continued=continued)

    def _entry(self, stream: Stream, demand: Demand) -> Entry:
        target = stream.target
        return Entry(
            id=new_id(),
            request_id=stream.request_id,
            stream_id=stream.id,
            key_id=stream.key_id,
            endpoint=stream.endpoint,
            provider=target.provider.name,
            model=storable(target.model),
            streamed=stream.request.stream,
            byok=target.byok,
            started_us=now_us(),
            input_tokens=demand.input,
            cost_nano=self.cost(target, Usage(demand.input)),
        )


def settlement(entry: Entry, stream: Stream, outcome: Outcome) -> Settlement:
    now = now_us()
    first = outcome.first_event
    return Settlement(
        entry=entry,
        provider=stream.target.provider.name,
        model=storable(stream.target.model),
        status=outcome.status,
        end_reason=outcome.reason,
        error_code=outcome.error.code if outcome.error else None,
        usage=outcome.usage,
        cost_nano=outcome.cost,
        attempts=len(stream.attempts),
        tries=msgspec.json.encode(outcome.attempts).decode() if len(outcome.attempts) > 1 else None,
        ended_us=max(now, entry.started_us),  # a clock may be set back
        duration_us=round(outcome.duration * MICRO),
        latency_us=round(outcome.latency * MICRO),
        first_event_us=None if first is None else round(first * MICRO),
    )


def storable(name: str) -> str:
    """A name as every database takes it; it is a caller's."""
    return name.replace("\0", "\N{REPLACEMENT CHARACTER}")
