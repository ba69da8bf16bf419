"""Pauses of targets: circuit breakers that aren't closed, and waits after 429s."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from completion import TargetKey


class Pause(NamedTuple):
    key: TargetKey
    state: Literal["open", "half_open", "limited"]
    """limited: a wait after a 429."""
    seconds: float
    """The time that is left. 0 if the circuit breaker is half-open."""


def pauses(
    now: float,
    circuits: Mapping[TargetKey, float],
    limited: Iterable[tuple[TargetKey, Mapping[str, float]]],
) -> Iterator[Pause]:
    """Yield the pauses at a moment.

    Args:
        circuits: the end of each circuit breaker's cool-down; 0 if it is closed.
        limited: the ends of the waits of each credential, by model.
    """
    for key, until in circuits.items():
        if until:
            yield Pause(key, "open" if now < until else "half_open", max(0.0, until - now))
    for (provider, _, number), ends in limited:
        for model, end in ends.items():
            if end > now:
                yield Pause((provider, model, number), "limited", end - now)


def cooling(found: Iterable[Pause]) -> dict[TargetKey, float]:
    """Return the targets and credentials that must not be called, with the seconds left."""
    left: dict[TargetKey, float] = {}
    for key, _, seconds in found:
        if seconds:
            left[key] = max(seconds, left.get(key, 0.0))
    return left
