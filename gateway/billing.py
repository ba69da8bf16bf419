"""The billing of a call: reserve quota and budget at its start, and settle them at its end.

- Each admitted call has one row in the ledger, unless the ledger is unavailable and not required.
- Each reservation is settled exactly once.
- A call with a BYOK key bypasses the limits and the budget, but is recorded.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from completion import CompletionRequest, Usage
from errors import ModelForbidden
from gateway.call import Outcome
from gateway.capabilities import Candidate
from keys.key import Key
from ledger.entries import Claim, Entry, Settlement
from ledger.ledger import Ledger
from ledger.price_terms import PriceTerms, possible_terms, requested_terms, served_terms
from ledger.pricing import Price, Prices, cost
from ledger.schema import new_id, now_us
from providers.base import Target
from quota.demand import Demand, demand_of
from quota.memory import Hold
from quota.quota import Quota
from streams.stream import Stream

if TYPE_CHECKING:
    from quota.redis import Claiming, Releasing

log = logging.getLogger("sluice.meter")
CostSource: TypeAlias = Literal["prices", "provider"]
MICRO = 1_000_000


class Reservation(msgspec.Struct, frozen=True):
    """The quota and the ledger row that a call reserved when it was admitted."""

    entry: Entry
    hold: Hold | None
    """None for a BYOK key, and for a key without limits."""
    recorded: bool
    """False if the ledger was unavailable and the call runs without a row."""


class Billing:
    def __init__(self, prices: Prices, quota: Quota, ledger: Ledger) -> None:
        self._prices = prices
        self._quota = quota
        self._ledger = ledger

    def payable(self, key: Key, candidates: list[Candidate]) -> list[Candidate]:
        """Return the candidates that the key can pay for. Raises ModelForbidden if there is none.

        If the key or its group has a budget, a candidate needs a known price or a BYOK key.
        """
        of_key, group = key.budget_nano is not None, key.shared
        if not (of_key or (group is not None and group.budget_nano is not None)):
            return candidates
        found = [c for c in candidates if c.target.byok or self._price(c.target) is not None]
        if not found:
            who = "a key with a budget" if of_key else "a key of a group with a budget"
            raise ModelForbidden(
                f"{candidates[0].target.name} has no known price, so {who} can't use "
                "it. The server's operator can set its price under [prices] in sluice.toml.",
                param="model",
            )
        return found

    def open(
        self,
        key: Key,
        stream: Stream,
        candidates: list[Candidate],
        claim: Claiming | None = None,
    ) -> Reservation:
        """Reserve the call's quota and budget, and open its ledger row, which is on disk on return.

        Args:
            claim: claims the call in the cluster; called once, before anything is reserved.

        Raises:
            RateLimited: the key or its group has reached a limit.
            InsufficientCredits: the budget of the key or its group has no room for the call.
            Unavailable: the ledger can't record the call, but must.
        """
        demand = demand_of(stream.request)
        terms = requested_terms(stream.request)
        entry = self._entry(key, stream, demand, terms)
        if stream.target.byok:
            if claim is not None:
                claim(None)
            return Reservation(entry, None, self._ledger.open(entry, None))
        requests = upstream_calls(stream.request, candidates)
        hold = self._quota.admit(key, demand, requests, claim)
        try:
            most = self._claim(key, demand, candidates, terms, continued=stream.text is not None)
            return Reservation(entry, hold, self._ledger.open(entry, most))
        except BaseException:
            self._quota.settle(hold, 0)
            raise

    def settle(self, reservation: Reservation, stream: Stream, outcome: Outcome) -> None:
        """Settle the ledger row of a call that has ended. The row is on disk on return."""
        if reservation.recorded:
            self._ledger.settle(settlement(reservation.entry, stream, outcome))

    def settle_quota(
        self, reservation: Reservation, tokens: int, release: Releasing | None = None
    ) -> None:
        """Settle the quota of a call that has ended.

        Args:
            tokens: the tokens that the call used.
            release: releases the call's claim in the cluster; called once.
        """
        self._quota.settle(reservation.hold, tokens, release)

    def cost(self, target: Target, usage: Usage, requested: PriceTerms = ()) -> int | None:
        """Return the cost in nano-dollars: 0 for a BYOK key, None if it isn't known."""
        return self.cost_and_source(target, usage, requested)[0]

    def cost_and_source(
        self, target: Target, usage: Usage, requested: PriceTerms = ()
    ) -> tuple[int | None, CostSource]:
        """Return the cost, and whether it is the price list's or the one that the provider reports.

        The provider's is used if there is no price, or if the provider's row says so.

        Args:
            requested: the terms that the request asked for. The usage has the terms that were
                served, if the provider reports them.
        """
        if target.byok:
            return 0, "prices"
        reported = usage.cost_nano
        if reported is not None and target.provider.trust_cost:
            return reported, "provider"
        price = self._price(target, served_terms(usage, requested))
        if price is None:
            return reported, "prices" if reported is None else "provider"
        return cost(usage, price), "prices"

    def _price(self, target: Target, terms: PriceTerms = ()) -> Price | None:
        try:
            return self._prices.of(target, terms)
        except Exception:  # a broken price list must not prevent the ledger row
            log.exception("pricing failed", extra={"model": target.name})
            return None

    def _claim(
        self,
        key: Key,
        demand: Demand,
        candidates: list[Candidate],
        requested: PriceTerms,
        *,
        continued: bool,
    ) -> Claim | None:
        """Return the claim at the highest price that may apply, whatever terms are served."""
        group = key.shared
        if key.budget_nano is None and (group is None or group.budget_nano is None):
            return None
        terms = possible_terms(requested)
        prices = [self._price(c.target, each) for c in candidates for each in terms]
        known = [price for price in prices if price is not None]
        # Each model may time out after its provider has charged for the prompt.
        models = len({candidate.target.name for candidate in candidates})
        return self._quota.claim(key, demand, known, times=models, continued=continued)

    def _entry(self, key: Key, stream: Stream, demand: Demand, requested: PriceTerms) -> Entry:
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
            cost_nano=self.cost(target, Usage(demand.input), requested),
            group_name=key.group,
        )


def upstream_calls(request: CompletionRequest, candidates: list[Candidate]) -> int:
    """Return the most calls that one attempt makes: one per prompt where a list is split."""
    return len(request.prompts) if any(candidate.split for candidate in candidates) else 1


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
        ended_us=max(now, entry.started_us),  # the clock may have been set back
        duration_us=round(outcome.duration * MICRO),
        latency_us=round(outcome.latency * MICRO),
        first_event_us=None if first is None else round(first * MICRO),
    )


def storable(name: str) -> str:
    """Replace NUL characters in a name that a caller chose: some databases reject them."""
    return name.replace("\0", "\N{REPLACEMENT CHARACTER}")
