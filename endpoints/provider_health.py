"""The providers' health, for admin keys: reachability, pauses, failures and latencies.

- The counts are those of all processes that share a Redis. The response says how many processes
  didn't answer.
- The response has no key and no text of a prompt, a completion or an error.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from flask import Blueprint, Response

from auth import admin_required
from endpoints.model_listing import fresh_catalog
from endpoints.responses import json_response
from endpoints.services import services
from endpoints.usage import parameters
from gateway.model_catalog import ModelCatalog
from providers.base import Provider
from quota.quota import instant
from routing.pauses import Pause
from telemetry.provider_health import WINDOW_S, ProviderCounts, merged, percentile

bp = Blueprint("provider_health", __name__, url_prefix="/api/v1/providers")

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
WORST_FIRST: Final = ("open", "half_open", "limited")
MOST_PAUSES, MOST_OF_A_NAME = 20, 128
"""The most pauses of a provider that are listed, and the most characters of a model's name: callers
choose names freely."""


@bp.get("")
@admin_required
def show_providers() -> Response:
    parameters()
    catalog = fresh_catalog()
    counts, processes = counts_of_all()
    pauses = services().gateway.pauses()
    rows = services().gateway.router.providers.values()
    return json_response(
        {
            "window_s": round(WINDOW_S),
            "processes": processes,
            "data": [
                described(
                    row, catalog, counts.get(row.name, ProviderCounts()), pauses.get(row.name, ())
                )
                for row in rows
            ],
        }
    )


def counts_of_all() -> tuple[dict[str, ProviderCounts], dict[str, int | None]]:
    """Return the counts of all processes by provider, and how many processes answered."""
    services().records.catch_up()
    parts = [services().records.health()]
    missing: int | None = 0
    cluster = services().cluster
    if cluster is not None:
        answers = cluster.ask_others("providers")
        kind = dict[str, ProviderCounts]
        parts += (msgspec.convert(one, kind, str_keys=True) for one in answers.found)
        missing = answers.missing
    return merged(parts), {"answered": len(parts), "missing": missing}


def described(
    row: Provider, catalog: ModelCatalog, counts: ProviderCounts, pauses: Iterable[Pause]
) -> dict[str, Any]:
    router = services().gateway.router
    reached, at = reachable(catalog.reached(row), counts)
    rate = counts.failures / counts.attempts if counts.attempts else None
    return {
        "name": row.name,
        "enabled": router.enabled(row),
        "needs": router.missing(row),
        "reachable": reached,
        "reachable_at": at and instant(at),
        "models": catalog.count(row),
        "breaker": breaker(row, pauses),
        "calls": counts.attempts,
        "failures": counts.failures,
        "error_rate": None if rate is None else round(rate, 4),
        "latency_ms": percentiles(counts.duration),
        "first_event_ms": percentiles(counts.first_event),
        "errors": errors(counts),
    }


def reachable(
    listed: tuple[bool, float] | None, counts: ProviderCounts
) -> tuple[bool | None, float | None]:
    """Return whether the latest call or list request reached the provider, and when that was.

    Args:
        listed: whether it could be reached for its list of models, and how many seconds ago.
        counts: the counts of its calls.
    """
    found = [(counts.answered_at, True), (counts.unreached_at, False)]
    if listed is not None:
        found.append((time.time() - listed[1], listed[0]))
    known = [(at, reached) for at, reached in found if at is not None]
    if not known:
        return None, None
    at, reached = max(known)
    return reached, at


def breaker(row: Provider, pauses: Iterable[Pause]) -> dict[str, Any]:
    found = sorted(pauses, key=lambda pause: (WORST_FIRST.index(pause.state), -pause.seconds))
    return {
        "state": found[0].state if found else "closed",
        "paused": [paused(row, pause) for pause in found[:MOST_PAUSES]],
        "paused_total": len(found),
    }


def paused(row: Provider, pause: Pause) -> dict[str, Any]:
    provider, model, number = pause.key
    return {
        "model": model[:MOST_OF_A_NAME] or None,
        "key_number": number or None,
        "replica": provider.removeprefix(row.name).removeprefix("@") or None,
        "state": pause.state,
        "seconds": round(pause.seconds, 1),
    }


def percentiles(buckets: Mapping[int, int]) -> dict[str, float | None]:
    found = {name: percentile(buckets, share) for name, share in PERCENTILES.items()}
    return {name: None if s is None else round(s * 1000, 1) for name, s in found.items()}


def errors(counts: ProviderCounts) -> list[dict[str, Any]]:
    """Return the errors by code, the latest first."""
    found = sorted(counts.errors.items(), key=lambda item: -item[1].last_at)
    return [
        {"code": code, "calls": seen.calls, "last_at": instant(seen.last_at), "model": seen.model}
        for code, seen in found
    ]
