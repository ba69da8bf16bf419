"""Circuit breakers: failing targets are not called for a while.

A circuit breaker opens after FAILURES consecutive failures, or when half of its target's last
WINDOW_CALLS calls failed within WINDOW_S. While it is open, the target is not called. After the
cool-down it is half-open: a single call may go through as a probe. If the probe succeeds, the
circuit breaker closes. If the probe fails, it opens again for twice as long. After a 429, the
credential isn't used for that model for as long as the host asks, because many hosts limit each
model separately. If another model gets a 429 meanwhile, the credential isn't used at all. A replica
that can't be reached isn't called for HOST_S, for any model or key. With Redis, processes share
429s, and the openings and closings of circuit breakers. Each process checks for itself whether a
replica can be reached. A report of another process only triggers a check, because a process that
is cut off from the network would otherwise disable all replicas for all others.

- Only `exchange` does I/O, so no call waits for Redis.
- Only a provider's failures count, never its refusals.
- A cool-down is at most MAX_COOL_DOWN_S long, even after a 429.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from completion import TargetKey
from concurrency.native import BriefLock
from providers.base import Target
from routing.breaker_sync import BreakerEvent, BreakerSync, EventKind
from routing.pauses import Pause, cooling, pauses

if TYPE_CHECKING:
    from cluster.redis_client import RedisClient

FAILURES = 5
WINDOW_S, WINDOW_CALLS, WINDOW_SHARE = 60.0, 20, 0.5
FIRST_S, MAX_COOL_DOWN_S = 10.0, 120.0
PROBE_S, PROBE_PAUSE_S = 15.0, 1.0
"""A probe without a result is forgotten after PROBE_S, and another call may be the probe. Until
then, the other calls are asked to wait for PROBE_PAUSE_S."""
HOST_S = 5.0
"""The cool-down of a replica that can't be reached. It stays that long, because gateway/replicas.py
looks every second whether the replica is back."""
MAX_CIRCUITS = 10_000
"""The maximum number of circuit breakers in memory. Callers choose the names of the models, so the
number must be bounded."""


class Circuit:
    """The circuit breaker of one target. Times are in seconds, by the clock of CircuitBreakers."""

    def __init__(self) -> None:
        self.failures = 0
        self.recent: deque[tuple[float, bool]] = deque(maxlen=WINDOW_CALLS)
        """The end times of the target's last calls, and whether the calls succeeded."""
        self.until = 0.0
        """The end of the cool-down; 0 if the circuit breaker is closed."""
        self.began = -math.inf
        """The time at which the circuit breaker last opened."""
        self.probed = -math.inf
        """The start of the last probe since then."""
        self.length = FIRST_S

    def left(self, now: float) -> float:
        if not self.until:
            return 0.0
        if now < self.until:
            return self.until - now
        return PROBE_PAUSE_S if now < self.probed + PROBE_S else 0.0

    def enter(self, now: float) -> float:
        left = self.left(now)
        if self.until and not left:
            self.probed = now
        return left

    def failed(self, now: float) -> bool:
        """Count a failure. Return True if it opens the circuit breaker."""
        self.recent.append((now, False))
        self.failures += 1
        if now < self.until:  # the call started before the circuit breaker opened
            return False
        if self.until:
            self.length = min(self.length * 2, MAX_COOL_DOWN_S)
        if self.until or self.failures >= FAILURES or self._mostly_failed(now):
            self.open(now, now + self.length, self.length)
            return True
        return False

    def open(self, now: float, until: float, length: float) -> None:
        self.began, self.until, self.length = now, until, length
        self.probed = -math.inf

    def succeeded(self, now: float) -> None:
        self.recent.append((now, True))
        self.close()

    def close(self) -> None:
        self.failures, self.until, self.length = 0, 0.0, FIRST_S

    def _mostly_failed(self, now: float) -> bool:
        bad = sum(not good for at, good in self.recent if at > now - WINDOW_S)
        return len(self.recent) == WINDOW_CALLS and bad >= WINDOW_SHARE * WINDOW_CALLS


class CircuitBreakers:
    """The circuit breakers of one process, and its rate-limited credentials.

    There is a circuit breaker for each target that has failed, but none for BYOK keys. A replica
    that can't be reached has one more, for all models and all keys, also BYOK keys.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        enabled: bool = True,
        redis_client: RedisClient | None = None,
    ) -> None:
        """Start with all circuit breakers closed.

        Args:
            clock: returns the time in seconds.
            enabled: whether circuit breakers can open, and 429s cause a pause.
            redis_client: the Redis that the processes share; None if there is none.
        """
        self._clock = clock
        self._enabled = enabled
        self._lock = BriefLock()
        self._circuits: dict[TargetKey, Circuit] = {}
        self._limited: dict[TargetKey, dict[str, float]] = {}
        """The ends of the waits after 429s, by credential and model. The model "" is the whole
        credential."""
        self._sync = (
            BreakerSync(redis_client, MAX_COOL_DOWN_S)
            if enabled and redis_client is not None
            else None
        )
        self._unsent: dict[tuple[bool, TargetKey], BreakerEvent] = {}
        """The events to send: for each target the last one of its circuit breaker (False), and the
        last one of its rate limit (True)."""
        self._suspected: set[TargetKey] = set()
        """The replicas that other processes have reported since the last check."""
        self._closed_at: dict[TargetKey, float] = {}
        """The times at which circuit breakers closed. They are kept for as long as an older event
        that opens the circuit breaker may still arrive."""

    def left(self, target: Target) -> float:
        """Return the seconds for which a target must not be called, or 0 if it may be called."""
        return self._ask(target, enters=False)

    def enter(self, target: Target) -> float:
        """Return the seconds for which a target must not be called, or 0 to call it now.

        If the circuit breaker is half-open and the result is 0, the call that follows is the probe.
        """
        return self._ask(target, enters=True)

    def _ask(self, target: Target, *, enters: bool) -> float:
        if not (self._circuits or self._limited) or (target.byok and not target.replica):
            return 0.0
        with self._lock:
            now = self._clock()
            limited = 0.0 if target.byok else self._limited_until(target) - now
            if limited > 0:
                return limited
            circuits = [self._circuits[key] for key in keys_of(target) if key in self._circuits]
            wait = max((circuit.left(now) for circuit in circuits), default=0.0)
            if enters and not wait:
                for circuit in circuits:
                    circuit.enter(now)
            return wait

    def is_limited(self, target: Target) -> bool:
        return self._limited_until(target) > self._clock()

    def _limited_until(self, target: Target) -> float:
        ends = self._limited.get(credential_key(target), {})
        return max(ends.get("", -math.inf), ends.get(target.model, -math.inf))

    def succeeded(self, target: Target) -> None:
        """Record that a target responded, even if it refused the request."""
        if not self._circuits:
            return
        for key in keys_of(target):
            if key in self._circuits:
                self._succeeded(key)

    def reached(self, target: Target) -> None:
        """Record that a target's replica can be reached again."""
        self._succeeded(host_key(target))

    def _succeeded(self, key: TargetKey) -> None:
        with self._lock:
            circuit, now = self._circuits.get(key), self._clock()
            if circuit is None:
                return
            if circuit.until and not is_host(key):
                self._announce("well", key, now)
            circuit.succeeded(now)
            self._forget_closed(key, circuit)

    def unreached(self, target: Target) -> None:
        """Record that a target's replica can't be reached. Its circuit breaker opens at once."""
        if not self._enabled:
            return
        key = host_key(target)
        with self._lock:
            is_news = key not in self._circuits
            circuit, now = self._circuit(key), self._clock()
            circuit.open(now, now + HOST_S, HOST_S)
            if is_news:
                self._announce("cools", key, now, circuit.until, circuit.length)

    def is_unreached(self, target: Target) -> bool:
        """Return True if the circuit breaker of a target's replica as a whole is open."""
        return host_key(target) in self._circuits

    def suspected(self, targets: Iterable[Target]) -> list[Target]:
        """Return the targets whose replicas another process has reported since the last call."""
        if not self._suspected:
            return []
        with self._lock:
            keys, self._suspected = self._suspected, set()
        return [target for target in targets if host_key(target) in keys]

    def is_away(self, target: Target) -> bool:
        """Return True if no call goes to a target's replica now, because it can't be reached."""
        circuit = self._circuits.get(host_key(target))
        return circuit is not None and circuit.left(self._clock()) > 0

    def failed(self, target: Target) -> None:
        """Record that a target failed, or closed the connection too early, or was unreachable
        although it is no replica."""
        key = target_key(target)
        if target.byok or not self._enabled:
            return
        with self._lock:
            circuit, now = self._circuit(key), self._clock()
            if circuit.failed(now):
                self._announce("cools", key, now, circuit.until, circuit.length)

    def limited(self, target: Target, seconds: float) -> None:
        """Record that a target's host asked to wait for some seconds, after a 429."""
        if self._enabled and not target.byok:
            with self._lock:
                now = self._clock()
                for key, end in self._limit(
                    target_key(target), now, now + min(seconds, MAX_COOL_DOWN_S)
                ):
                    self._announce("limited", key, now, end)

    def _limit(self, key: TargetKey, at: float, until: float) -> list[tuple[TargetKey, float]]:
        """Note a 429 of a model, or of a credential if the key's model is "".

        Args:
            key: the target, or the credential.
            at: the time of the 429.
            until: the end of the wait that the host asked for.

        Returns:
            The keys that wait now, and until when: the credential too, if another of its models
            was waiting at the time of the 429.
        """
        provider, model, number = key
        whole = (provider, "", number)
        now = self._clock()
        ends = {m: end for m, end in self._limited.get(whole, {}).items() if end > now}
        others = [end for other, end in ends.items() if other not in ("", model) and end > at]
        models = [model, ""] if model and others else [model]
        for name in models:
            if name in ends or len(ends) < MAX_CIRCUITS:
                ends[name] = max(until, ends.get(name, until))
        self._limited[whole] = ends
        return [((provider, name, number), ends.get(name, until)) for name in models]

    def open_circuits(self) -> dict[TargetKey, float]:
        """Return the targets and credentials that are cooling down, with the seconds left."""
        return cooling(self.pauses())

    def pauses(self) -> list[Pause]:
        """Return the circuit breakers that aren't closed, and the waits after 429s."""
        with self._lock:
            now, limited = self._clock(), [*self._limited.items()]  # `_limit` replaces the values
            circuits = {key: circuit.until for key, circuit in self._circuits.items()}
        return list(pauses(now, circuits, limited))

    def exchange(self) -> None:
        """Send new events to the other processes, and apply theirs."""
        if self._sync is None:
            return
        with self._lock:
            now = self._clock()
            unsent, self._unsent = self._unsent, {}
            self._closed_at = {
                p: at for p, at in self._closed_at.items() if at > now - MAX_COOL_DOWN_S
            }
        events = self._sync.exchange(unsent.values(), now)
        with self._lock:
            if events is None:
                late = {p: event for p, event in unsent.items() if event.at > now - MAX_COOL_DOWN_S}
                self._unsent = dict(list((late | self._unsent).items())[-MAX_CIRCUITS:])
            now = self._clock()
            for event in events or ():
                self._apply(event, now)

    def _circuit(self, key: TargetKey) -> Circuit:
        if key not in self._circuits:
            if len(self._circuits) >= MAX_CIRCUITS:
                del self._circuits[next(iter(self._circuits))]
            self._circuits[key] = Circuit()
        return self._circuits[key]

    def _forget_closed(self, key: TargetKey, circuit: Circuit) -> None:
        if all(good for _, good in circuit.recent):
            del self._circuits[key]

    def _announce(self, kind: EventKind, key: TargetKey, now: float, *times: float) -> None:
        if self._sync is not None:
            if kind == "well":
                self._closed_at[key] = now
            slot = (kind == "limited", key)
            self._unsent.pop(slot, None)
            if len(self._unsent) >= MAX_CIRCUITS:
                del self._unsent[next(iter(self._unsent))]
            self._unsent[slot] = BreakerEvent(kind, key, now, *times)

    def _apply(self, event: BreakerEvent, now: float) -> None:
        key = event.key
        until = min(event.until, now + MAX_COOL_DOWN_S)
        if is_host(key):
            if event.kind == "cools" and len(self._suspected) < MAX_CIRCUITS:
                self._suspected.add(key)
        elif event.kind == "well":
            self._closed_at[key] = max(event.at, self._closed_at.get(key, event.at))
            circuit = self._circuits.get(key)
            if circuit is not None and circuit.began <= event.at:
                circuit.close()
                self._forget_closed(key, circuit)
        elif until <= now:
            return
        elif event.kind == "limited" and len(self._limited) < MAX_CIRCUITS:
            self._limit(key, event.at, until)
        elif event.kind == "cools" and event.at > self._closed_at.get(key, -math.inf):
            circuit = self._circuit(key)
            if until > circuit.until:
                circuit.open(
                    event.at, until, min(max(event.length, circuit.length), MAX_COOL_DOWN_S)
                )


def target_key(target: Target) -> TargetKey:
    return (place(target), target.model, target.key_number)


def credential_key(target: Target) -> TargetKey:
    """Return the key of a target's credential, for all models."""
    return (place(target), "", target.key_number)


def host_key(target: Target) -> TargetKey:
    """Return the key of a target's replica, for all models and all keys."""
    return (place(target), "", 0)


def is_host(key: TargetKey) -> bool:
    """Return True for a key that `host_key` made."""
    return not key[2]


def keys_of(target: Target) -> tuple[TargetKey, ...]:
    """Return the keys of the circuit breakers that a call to a target depends on."""
    own = () if target.byok else (target_key(target),)
    return (*own, host_key(target)) if target.replica else own


def place(target: Target) -> str:
    """Return the provider in a target's key: PROVIDER, or PROVIDER@REPLICA.

    Processes of earlier versions take the latter for a provider that they don't know.
    """
    name = target.provider.name
    return f"{name}@{target.replica}" if target.replica else name
