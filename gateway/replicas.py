"""The replicas of a row during a call: the order of its attempts, and the watch on lost replicas.

- A row without replicas passes through unchanged.
- A replica that can't be reached is checked every second, so that no call has to find out whether
  it is back.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final

import msgspec

from errors import SluiceError
from gateway.capabilities import Candidate
from providers.base import Target
from providers.transport.abort import Aborted
from providers.transport.exchange import Transport
from routing.circuit_breaker import CircuitBreakers
from routing.replicas import ReplicaKey, ReplicaLoads, affinity_of, replica_key
from routing.retries import classify, lost, unreachable
from streams.stream import Stream

CHECK_S: Final = 1.0
"""The seconds between two checks of a replica that can't be reached."""
CONNECT_S: Final = 2.0
"""The time that a check may take."""


def spread(group: list[Candidate]) -> list[Candidate]:
    """Return a candidate for each replica and key of one model's candidates."""
    if not group[0].target.provider.replicas:
        return group
    return [
        msgspec.structs.replace(candidate, target=target)
        for candidate in group
        for target in candidate.target.replicas
    ]


def without(group: Iterable[Candidate], failed: Candidate, *, whole: bool) -> list[Candidate]:
    """Return a model's candidates without one that failed.

    Args:
        whole: leave out the other keys of its replica too, if it has one.
    """
    replica = failed.target.replica if whole else ""
    return [
        other
        for other in group
        if other is not failed and not (replica and other.target.replica == replica)
    ]


def moves_on(target: Target, failure: SluiceError, losses: int) -> bool:
    """Return True if a call leaves a replica at once, without a back-off.

    A request on which engines break down gets to two of them at once, and further only as retries.

    Args:
        losses: the connections of this call that broke, with this one.
    """
    return bool(target.replica) and (unreachable(failure) or (lost(failure) and losses == 1))


def for_retry(
    group: list[Candidate], fresh: list[Candidate], failed: Candidate, failure: SluiceError
) -> list[Candidate]:
    """Return the candidates of a retry; an empty list if a retry is pointless.

    A replica that was too slow may be too slow again, so only others get the call.

    Args:
        group: a model's candidates.
        fresh: the candidates of replicas that the call hasn't tried, for a retry after a timeout.
    """
    verdict = classify(failure)
    if verdict.retry_same:
        return group
    slow = verdict.try_next and verdict.cools == "target"
    return fresh if slow and failed.target.replica else []


class Replicas:
    """The replicas of all rows, as one process sees them."""

    def __init__(self, transport: Transport, breakers: CircuitBreakers) -> None:
        self.loads = ReplicaLoads()
        self._transport, self._breakers = transport, breakers
        self._watched: set[ReplicaKey] = set()

    def in_order(self, stream: Stream, group: list[Candidate]) -> list[Candidate]:
        """Return a model's candidates in the order in which the next attempt should try them.

        Replicas that this call hasn't tried are first, those that must not be called now are last.
        """
        first = group[0].target
        if not first.replica:
            return group
        tried = {replica_key(attempt.target) for attempt in stream.attempts}
        fresh: list[Candidate] = []
        again: list[Candidate] = []
        paused: list[Candidate] = []
        for one in group:
            if self._breakers.left(one.target):
                paused.append(one)
            else:
                (again if replica_key(one.target) in tried else fresh).append(one)
        if not fresh:
            fresh, again = again, []
        affinity = affinity_of(stream.request, first.provider.name, stream.affinity)
        places = self.loads.ranks((one.target for one in fresh), affinity)
        fresh.sort(key=lambda one: places[one.target.replica])
        return fresh + again + paused

    def all_in_order(self, stream: Stream, chosen: list[Candidate]) -> Iterator[Candidate]:
        """Yield the candidates of all models, each model's as in `in_order`."""
        for _, group in groupby(chosen, lambda candidate: candidate.target.name):
            yield from self.in_order(stream, spread(list(group)))

    def shared(self, targets: Iterable[Target]) -> list[Target]:
        """Return targets of one model, with a target for each replica if the row has any.

        The first replica is a random one, by weight, that isn't much busier than the others.
        """
        found = [each for target in targets for each in target.replicas or (target,)]
        if found[0].replica:
            places = self.loads.ranks(found, os.urandom(8))
            found.sort(key=lambda target: places[target.replica])
        return found

    def lost(self, target: Target) -> None:
        """Note that a target's replica can't be reached, and watch it until it is back."""
        self._breakers.unreached(target)
        if self._breakers.is_unreached(target):
            self._watch(target, CHECK_S)

    def check(self, targets: Iterable[Target]) -> None:
        """Check the targets' replicas that other processes have reported as unreachable."""
        for target in self._breakers.suspected(targets):
            self._watch(target, 0.0)

    def _watch(self, target: Target, first: float) -> None:
        """Check a replica until it can be reached.

        Args:
            first: the seconds until the first check.
        """
        key = replica_key(target)
        if key in self._watched:
            return
        self._watched.add(key)
        watch = threading.Thread(
            target=self._run, args=(target, key, first), name="sluice-replica", daemon=True
        )
        try:
            watch.start()
        except RuntimeError:  # the system can't start another thread; calls will find out
            self._watched.discard(key)

    def _run(self, target: Target, key: ReplicaKey, wait: float) -> None:
        row = target.provider
        try:
            time.sleep(wait)
            while not self._transport.reaches(row.base_url, CONNECT_S, row.ca_bundle, row.proxy):
                self._breakers.unreached(target)
                time.sleep(CHECK_S)
            self._breakers.reached(target)
        except Aborted:  # the transport was closed
            return
        finally:
            self._watched.discard(key)
