"""The terms that a price depends on besides the model: service tier, speed and search type.

- The terms that the provider reports count. Where it reports none, the requested ones count.
- The module is pure.
"""

from __future__ import annotations

from itertools import combinations
from typing import Final, TypeAlias

from completion import CompletionRequest, Usage

PriceTerms: TypeAlias = tuple[tuple[str, str], ...]
"""The conditions that a price depends on besides the model: pairs of a name (service_tier, speed,
search_type) and a value in lower case. A standard value is left out."""

STANDARD: Final = frozenset(("auto", "default", "on_demand", "standard", "standard_only"))
"""The service tiers and speeds that have the standard price."""
ANY_TIER: Final = ("fast", "flex", "priority")
"""The service tiers that the provider may choose from if "auto" is requested."""


def requested_terms(request: CompletionRequest) -> PriceTerms:
    """Return the terms that a request asks for, "auto" included."""
    if not request.passes_on:
        return ()
    fields = request.chat.terms if request.chat else request.extra | request.openai_extra
    search = fields.get("web_search_options")
    asked = {
        "service_tier": fields.get("service_tier") or fields.get("serviceTier"),
        "speed": fields.get("speed"),
        "search_type": (search if isinstance(search, dict) else fields).get("search_type"),
    }
    return tuple(
        (name, value.lower()) for name, value in asked.items() if isinstance(value, str) and value
    )


def served_terms(usage: Usage, requested: PriceTerms) -> PriceTerms:
    """Return the terms of a price: what the provider reports, else what was requested."""
    if not requested and usage.tier is None and usage.speed is None:
        return ()
    reported = {"service_tier": usage.tier, "speed": usage.speed}
    served = {name: value for name, value in reported.items() if value is not None}
    found = dict(requested) | served
    return tuple((name, value) for name, value in found.items() if value not in STANDARD)


def possible_terms(requested: PriceTerms) -> list[PriceTerms]:
    """Return all terms that a provider may serve for a request, the standard ones first."""
    if not requested:
        return [()]
    wanted: list[tuple[str, str]] = []
    for name, value in requested:
        values = ANY_TIER if (name, value) == ("service_tier", "auto") else (value,)
        wanted += [(name, each) for each in values if each not in STANDARD]
    return [
        chosen
        for size in range(len(wanted) + 1)
        for chosen in combinations(wanted, size)
        if len(dict(chosen)) == size
    ]
