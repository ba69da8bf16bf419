"""Which targets are in trouble, so that they are left alone for a while.

A target cools down after FAILURES in a row, or when half of its last calls failed; a credential
cools down for as long as its host's 429 says. When the time is over one call may go as a probe:
its success ends the matter, its failure begins it again, for longer. With Redis the processes tell
each other. Rules that hold here: no I/O but in the beat, so that no call waits for it; only what a
provider failed at counts, never what it refused.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from concurrency.native import BriefLock
from news import Fact, Kind, News, Place
from providers.base import Target

if TYPE_CHECKING:
    from cluster.redis_client import RedisClient

FAILURES = 5
WINDOW_S, WINDOW_CALLS, WINDOW_SHARE = 60.0, 20, 0.5
FIRST_S, LONGEST_S = 10.0, 120.0
PROBE_S, PROBE_PAUSE_S = 15.0, 1.0
"""A probe that hasn't come back by then is forgotten, and another may go; what the others are told
to wait meanwhile."""
MOST = 10_000
"""Targets in trouble that are remembered, the latest; their names are callers'."""


class Trouble:
    """Of one target, since it last was well."""

    def __init__(self) -> None:
        self.failures = 0
        self.recent: deque[tuple[float, bool]] = deque(maxlen=WINDOW_CALLS)
        """When its last calls ended, and whether well."""
        self.until = 0.0
        """When it has cooled down; 0: it isn't cooling down."""
        self.began = -math.inf
        """When it began to cool down, the last time."""
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
        """Whether it begins to cool down."""
        self.recent.append((now, False))
        self.failures += 1
        if now < self.until:  # it was under way before
            return False
        if self.until:
            self.length = min(self.length * 2, LONGEST_S)
        if self.until or self.failures >= FAILURES or self._mostly_bad(now):
            self.cool(now, now + self.length, self.length)
            return True
        return False

    def cool(self, now: float, until: float, length: float) -> None:
        self.began, self.until, self.length = now, until, length
        self.probed = -math.inf

    def succeeded(self, now: float) -> None:
        self.recent.append((now, True))
        self.heal()

    def heal(self) -> None:
        self.failures, self.until, self.length = 0, 0.0, FIRST_S

    def _mostly_bad(self, now: float) -> bool:
        bad = sum(not good for at, good in self.recent if at > now - WINDOW_S)
        return len(self.recent) == WINDOW_CALLS and bad >= WINDOW_SHARE * WINDOW_CALLS


class Cooldowns:
    """The targets and credentials of one process. A caller's own key is never among them."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        enabled: bool = True,
        redis_client: RedisClient | None = None,
    ) -> None:
        """enabled: whether anything is left alone at all. redis_client: the Redis through which the
        processes tell each other."""
        self._clock = clock
        self._enabled = enabled
        self._lock = BriefLock()
        self._troubles: dict[Place, Trouble] = {}
        self._limited: dict[Place, float] = {}
        """By credential: until when its host's 429 holds."""
        self._news = News(redis_client, LONGEST_S) if enabled and redis_client is not None else None
        self._untold: dict[Place, Fact] = {}
        self._ended: dict[Place, float] = {}
        """When a target was well again, for as long as somebody may tell that it had failed."""

    def left(self, target: Target) -> float:
        """Seconds that a target is to be left alone. 0: it may be called."""
        return self._look(target, Trouble.left)

    def enter(self, target: Target) -> float:
        """The same, by one who calls it if it may be called: of one that was in trouble, as its
        probe, while all others wait."""
        return self._look(target, Trouble.enter)

    def _look(self, target: Target, ask: Callable[[Trouble, float], float]) -> float:
        if target.byok or not (self._troubles or self._limited):
            return 0.0
        with self._lock:
            now = self._clock()
            limited = self._limited.get(key_of(target), -math.inf) - now
            trouble = self._troubles.get(place_of(target))
            if limited > 0 or trouble is None:
                return max(0.0, limited)
            return ask(trouble, now)

    def is_limited(self, target: Target) -> bool:
        """Whether it is its credential that is to be left alone."""
        return self._limited.get(key_of(target), -math.inf) > self._clock()

    def succeeded(self, target: Target) -> None:
        """It answered, were it to refuse what was asked."""
        place = place_of(target)
        if target.byok or place not in self._troubles:
            return
        with self._lock:
            trouble, now = self._troubles.get(place), self._clock()
            if trouble is None:
                return
            if trouble.until:
                self._tell("well", place, now)
            trouble.succeeded(now)
            self._forget_well(place, trouble)

    def failed(self, target: Target) -> None:
        """It could not be reached, broke off, or was in trouble itself."""
        place = place_of(target)
        if target.byok or not self._enabled:
            return
        with self._lock:
            trouble, now = self._trouble(place), self._clock()
            if trouble.failed(now):
                self._tell("cools", place, now, trouble.until, trouble.length)

    def limited(self, target: Target, seconds: float) -> None:
        """It asked this credential to wait."""
        if self._enabled and not target.byok:
            with self._lock:
                now, place = self._clock(), key_of(target)
                until = max(now + min(seconds, LONGEST_S), self._limited.get(place, now))
                self._limited[place] = until
                self._tell("limited", place, now, until)

    def cooling(self) -> dict[Place, float]:
        """Seconds that each target, or credential, still cools down."""
        with self._lock:
            now = self._clock()
            ends = {place: trouble.until for place, trouble in self._troubles.items()}
            return {place: end - now for place, end in (ends | self._limited).items() if end > now}

    def beat(self) -> None:
        """Each second: tell the other processes what is new here, and learn what is new there."""
        if self._news is None:
            return
        with self._lock:
            now = self._clock()
            untold, self._untold = self._untold, {}
            self._ended = {p: at for p, at in self._ended.items() if at > now - LONGEST_S}
        facts = self._news.exchange(untold.values(), now)
        with self._lock:
            if facts is None:
                late = {p: fact for p, fact in untold.items() if fact.at > now - LONGEST_S}
                self._untold = dict(list((late | self._untold).items())[-MOST:])
            now = self._clock()
            for fact in facts or ():
                self._learn(fact, now)

    def _trouble(self, place: Place) -> Trouble:
        if place not in self._troubles:
            if len(self._troubles) >= MOST:
                del self._troubles[next(iter(self._troubles))]
            self._troubles[place] = Trouble()
        return self._troubles[place]

    def _forget_well(self, place: Place, trouble: Trouble) -> None:
        if all(good for _, good in trouble.recent):
            del self._troubles[place]

    def _tell(self, kind: Kind, place: Place, now: float, *times: float) -> None:
        if self._news is not None:
            if kind == "well":
                self._ended[place] = now
            self._untold.pop(place, None)
            if len(self._untold) >= MOST:
                del self._untold[next(iter(self._untold))]
            self._untold[place] = Fact(kind, place, now, *times)

    def _learn(self, fact: Fact, now: float) -> None:
        place = fact.place
        until = min(fact.until, now + LONGEST_S)
        if fact.kind == "well":
            self._ended[place] = max(fact.at, self._ended.get(place, fact.at))
            trouble = self._troubles.get(place)
            if trouble is not None and trouble.began <= fact.at:
                trouble.heal()
                self._forget_well(place, trouble)
        elif until <= now:
            return
        elif fact.kind == "limited" and len(self._limited) < MOST:
            self._limited[place] = max(until, self._limited.get(place, until))
        elif fact.kind == "cools" and fact.at > self._ended.get(place, -math.inf):
            trouble = self._trouble(place)
            if until > trouble.until:
                trouble.cool(fact.at, until, min(max(fact.length, trouble.length), LONGEST_S))


def place_of(target: Target) -> Place:
    return (target.provider.name, target.model, target.key_number)


def key_of(target: Target) -> Place:
    """What a 429 is about: one key, whatever the model."""
    return (target.provider.name, "", target.key_number)
