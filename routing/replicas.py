"""The choice between a row's replicas, by their calls in flight and by prompt prefix.

Each affinity key has a home among the replicas that can be called: rendezvous hashing gives the
same home in every process, and moves only the keys of a replica that comes or goes. The home gets
the call unless that would give it more than its bound. Otherwise the replica with the fewest calls
in flight, relative to its weight, gets it. This is consistent hashing with bounded loads, so the
engines' prefix caches stay useful.

- A call counts as one, however many upstream calls it makes.
- The module does no I/O.

Source: V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded Loads"
(arXiv:1608.01350).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple, TypeAlias

from completion import CompletionRequest
from concurrency.native import BriefLock
from providers.base import Target

BOUND, SLACK_CALLS = 1.25, 2
"""A replica's bound: BOUND times its share of the calls in flight, plus SLACK_CALLS."""
PREFIX: Final = 1024
"""The characters (or token ids) at the start of a prompt that make its affinity key."""
SPACE: Final = 2.0**64

ReplicaKey: TypeAlias = tuple[str, str]
"""A provider's name and the name of one of its replicas."""


class Load(NamedTuple):
    """The calls of one replica."""

    name: str
    weight: float
    calls: int
    """The calls in flight."""


def ranked(loads: Sequence[Load], affinity: bytes) -> list[str]:
    """Return the names of replicas in the order in which a call should try them.

    Args:
        affinity: the digest of the call's affinity key.
    """
    scores = {load.name: score(load, affinity) for load in loads}
    found = sorted(loads, key=lambda load: (load.calls / load.weight, scores[load.name]))
    home = min(loads, key=lambda load: scores[load.name])
    if home.calls + 1 <= bound(home, loads):
        found.remove(home)
        found.insert(0, home)
    return [load.name for load in found]


def bound(load: Load, loads: Iterable[Load]) -> float:
    """Return the most calls that a replica may have once it got one more.

    Args:
        load: the replica's load, which is one of `loads`.
    """
    calls, weights = 1, 0.0
    for one in loads:
        calls, weights = calls + one.calls, weights + one.weight
    return BOUND * calls * load.weight / weights + SLACK_CALLS


def score(load: Load, affinity: bytes) -> float:
    """Return a replica's score for an affinity key. The lowest score is the key's home.

    Over all keys, each replica has the lowest score as often as its weight says.
    """
    name = load.name.encode()[:64]  # the longest key that the hash takes
    drawn = int.from_bytes(blake2b(affinity, digest_size=8, key=name).digest())
    return -math.log((drawn + 1) / SPACE) / load.weight


def affinity_of(request: CompletionRequest, provider: str, named: str | None) -> bytes:
    """Return the digest of a call's affinity key.

    The hash is keyed by the provider alone, because all processes must find the same home. A caller
    who looks for prompts with one home gains nothing, because each replica's calls are bounded.

    Args:
        named: the caller's own affinity key; None or "" for the start of the prompt.
    """
    if named:
        text = named
    else:
        prompt = request.prompts[0] if request.prompts else ""
        start = prompt[:PREFIX]
        text = start if isinstance(start, str) else ",".join(map(str, start))
    data = text.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=16, key=provider.encode()[:64]).digest()


class ReplicaLoads:
    """The calls in flight at each replica, as far as this process knows."""

    def __init__(self) -> None:
        self._lock = BriefLock()
        self._own: dict[ReplicaKey, int] = {}
        self._others: Mapping[ReplicaKey, int] = {}

    def started(self, target: Target) -> None:
        key = replica_key(target)
        with self._lock:
            self._own[key] = self._own.get(key, 0) + 1

    def ended(self, target: Target) -> None:
        key = replica_key(target)
        with self._lock:
            self._own[key] -= 1
            if not self._own[key]:
                del self._own[key]

    def own(self) -> dict[ReplicaKey, int]:
        """Return this process's calls in flight, for the replicas that have any."""
        with self._lock:
            return dict(self._own)

    def others_have(self, calls: Mapping[ReplicaKey, int]) -> None:
        """Replace the counts of the other processes."""
        self._others = calls

    def ranks(self, targets: Iterable[Target], affinity: bytes) -> dict[str, int]:
        """Return the place of each replica in the order in which a call should try them.

        Args:
            targets: targets of one row's replicas. Several may have the same replica.
        """
        own, others = self._own, self._others
        loads = {}
        for target in targets:
            key = replica_key(target)
            calls = own.get(key, 0) + others.get(key, 0)
            loads[target.replica] = Load(target.replica, target.weight, calls)
        names = ranked(list(loads.values()), affinity) if loads else []
        return {name: place for place, name in enumerate(names)}


def replica_key(target: Target) -> ReplicaKey:
    return target.provider.name, target.replica
