"""Circuit breakers: targets that fail are not called for a while.

A circuit opens after FAILURES in a row, or when half of its target's last calls failed. While it is
open the target is not called. After its cool-down it is half-open: one call may go as a probe,
whose success closes the circuit and whose failure opens it again, for longer. A credential is left
alone for as long as its host's 429 says. With Redis the processes share what they know.

- No I/O but in `exchange`, so that no call waits for it.
- Only what a provider failed at counts, never what it refused.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from completion import TargetKey
from concurrency.native import BriefLock
from providers.base import Target
from routing.breaker_sync import BreakerEvent, BreakerSync, EventKind

if TYPE_CHECKING:
    from cluster.redis_client import RedisClient

FAILURES = 5
WINDOW_S, WINDOW_CALLS, WINDOW_SHARE = 60.0, 20, 0.5
FIRST_S, LONGEST_S = 10.0, 120.0
PROBE_S, PROBE_PAUSE_S = 15.0, 1.0
"""A probe without a result is forgotten after PROBE_S, and another one may go. PROBE_PAUSE_S is how
long the other calls are asked to wait meanwhile."""
MOST_CIRCUITS = 10_000
"""Circuits that are kept, the latest: the names of their targets come from callers."""


class Circuit:
    """The circuit of one target, since it last closed."""

    def __init__(self) -> None:
        self.failures = 0
        self.recent: deque[tuple[float, bool]] = deque(maxlen=WINDOW_CALLS)
        """When the target's last calls ended, and whether they succeeded."""
        self.until = 0.0
        """When the cool-down ends; 0: the circuit is closed."""
        self.began = -math.inf
        """When the circuit last opened."""
        self.probed = -math.inf
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
        """Count a failure. Return True if it opens the circuit."""
        self.recent.append((now, False))
        self.failures += 1
        if now < self.until:  # it was under way before
            return False
        if self.until:
            self.length = min(self.length * 2, LONGEST_S)
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
    """The circuits of one process, by target, and the credentials that a 429 holds for. A caller's
    own key has no circuit."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        enabled: bool = True,
        redis_client: RedisClient | None = None,
    ) -> None:
        """Make closed circuits.

        Args:
            clock: the time in seconds.
            enabled: whether circuits open at all.
            redis_client: the Redis through which processes share what they know.
        """
        self._clock = clock
        self._enabled = enabled
        self._lock = BriefLock()
        self._circuits: dict[TargetKey, Circuit] = {}
        self._limited: dict[TargetKey, float] = {}
        """Until when a host's 429 holds, by credential."""
        self._sync = (
            BreakerSync(redis_client, LONGEST_S) if enabled and redis_client is not None else None
        )
        self._unsent: dict[TargetKey, BreakerEvent] = {}
        self._ended: dict[TargetKey, float] = {}
        """When a circuit closed, for as long as an older event may still arrive that it opened."""

    def left(self, target: Target) -> float:
        """Return for how many seconds a target must not be called; 0: it may be called."""
        return self._ask(target, Circuit.left)

    def enter(self, target: Target) -> float:
        """Return as `left`, for a caller that then calls the target if it may: in a half-open
        circuit that call is the probe, and all others wait."""
        return self._ask(target, Circuit.enter)

    def _ask(self, target: Target, ask: Callable[[Circuit, float], float]) -> float:
        if target.byok or not (self._circuits or self._limited):
            return 0.0
        with self._lock:
            now = self._clock()
            limited = self._limited.get(credential_key(target), -math.inf) - now
            circuit = self._circuits.get(target_key(target))
            if limited > 0 or circuit is None:
                return max(0.0, limited)
            return ask(circuit, now)

    def is_limited(self, target: Target) -> bool:
        """Return True if a 429 holds for the target's credential."""
        return self._limited.get(credential_key(target), -math.inf) > self._clock()

    def succeeded(self, target: Target) -> None:
        """Note that a target answered, be it to refuse what was asked."""
        key = target_key(target)
        if target.byok or key not in self._circuits:
            return
        with self._lock:
            circuit, now = self._circuits.get(key), self._clock()
            if circuit is None:
                return
            if circuit.until:
                self._announce("well", key, now)
            circuit.succeeded(now)
            self._forget_closed(key, circuit)

    def failed(self, target: Target) -> None:
        """Note that a target could not be reached, broke off, or failed by itself."""
        key = target_key(target)
        if target.byok or not self._enabled:
            return
        with self._lock:
            circuit, now = self._circuit(key), self._clock()
            if circuit.failed(now):
                self._announce("cools", key, now, circuit.until, circuit.length)

    def limited(self, target: Target, seconds: float) -> None:
        """Note that a target asked its credential to wait, in seconds."""
        if self._enabled and not target.byok:
            with self._lock:
                now, key = self._clock(), credential_key(target)
                until = max(now + min(seconds, LONGEST_S), self._limited.get(key, now))
                self._limited[key] = until
                self._announce("limited", key, now, until)

    def open_circuits(self) -> dict[TargetKey, float]:
        """Return how many seconds each target or credential is still not called."""
        with self._lock:
            now = self._clock()
            ends = {key: circuit.until for key, circuit in self._circuits.items()}
            return {key: end - now for key, end in (ends | self._limited).items() if end > now}

    def exchange(self) -> None:
        """Send the other processes what is new here, and apply what is new there."""
        if self._sync is None:
            return
        with self._lock:
            now = self._clock()
            unsent, self._unsent = self._unsent, {}
            self._ended = {p: at for p, at in self._ended.items() if at > now - LONGEST_S}
        events = self._sync.exchange(unsent.values(), now)
        with self._lock:
            if events is None:
                late = {p: event for p, event in unsent.items() if event.at > now - LONGEST_S}
                self._unsent = dict(list((late | self._unsent).items())[-MOST_CIRCUITS:])
            now = self._clock()
            for event in events or ():
                self._apply(event, now)

    def _circuit(self, key: TargetKey) -> Circuit:
        if key not in self._circuits:
            if len(self._circuits) >= MOST_CIRCUITS:
                del self._circuits[next(iter(self._circuits))]
            self._circuits[key] = Circuit()
        return self._circuits[key]

    def _forget_closed(self, key: TargetKey, circuit: Circuit) -> None:
        if all(good for _, good in circuit.recent):
            del self._circuits[key]

    def _announce(self, kind: EventKind, key: TargetKey, now: float, *times: float) -> None:
        if self._sync is not None:
            if kind == "well":
                self._ended[key] = now
            self._unsent.pop(key, None)
            if len(self._unsent) >= MOST_CIRCUITS:
                del self._unsent[next(iter(self._unsent))]
            self._unsent[key] = BreakerEvent(kind, key, now, *times)

    def _apply(self, event: BreakerEvent, now: float) -> None:
        key = event.key
        until = min(event.until, now + LONGEST_S)
        if event.kind == "well":
            self._ended[key] = max(event.at, self._ended.get(key, event.at))
            circuit = self._circuits.get(key)
            if circuit is not None and circuit.began <= event.at:
                circuit.close()
                self._forget_closed(key, circuit)
        elif until <= now:
            return
        elif event.kind == "limited" and len(self._limited) < MOST_CIRCUITS:
            self._limited[key] = max(until, self._limited.get(key, until))
        elif event.kind == "cools" and event.at > self._ended.get(key, -math.inf):
            circuit = self._circuit(key)
            if until > circuit.until:
                circuit.open(event.at, until, min(max(event.length, circuit.length), LONGEST_S))


def target_key(target: Target) -> TargetKey:
    return (target.provider.name, target.model, target.key_number)


def credential_key(target: Target) -> TargetKey:
    """Return what a 429 is about: one key, whatever the model."""
    return (target.provider.name, "", target.key_number)
