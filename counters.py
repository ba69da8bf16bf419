"""What keys have used: requests of the last minute, tokens of the last hour.

Requests count in a moving window, tokens in a sliding-window counter (the last hour is the current
window and a share of the one before: an approximation). Rules that hold here: no I/O; the `limits`
package counts; a request that is refused takes nothing.
"""

from __future__ import annotations

import threading
import time
from math import floor
from typing import Literal, NamedTuple, TypeAlias

import msgspec
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from keys import Limits

MINUTE, HOUR = 60, 3600
TIDY_S = 30.0

Kind: TypeAlias = Literal["requests", "tokens"]


class Ask(NamedTuple):
    """What a call wants to reserve. output: None for what is left, `reserve` at most."""

    input: int
    output: int | None
    reserve: int

    def tokens(self, left: int) -> int:
        if self.output is None:
            return self.input + max(1, min(self.reserve, left - self.input))
        return self.input + self.output


class Requests(NamedTuple):
    """A key's requests. left: how many it may make now; reset: seconds until the oldest no longer
    counts."""

    left: int
    reset: float


class Tokens(NamedTuple):
    """A key's tokens. before, current: those of the two windows; fade: the seconds for which some
    of the window before still count; rest: seconds until the current window is over."""

    before: int
    fade: float
    current: int
    rest: float

    def left(self, limit: int) -> int:
        return max(0, limit - floor(self.before * self.fade / HOUR + self.current))


class Counts(NamedTuple):
    """What counts now; None where there is no limit."""

    requests: Requests | None
    tokens: Tokens | None


class Hold(msgspec.Struct, frozen=True):
    """Tokens that are reserved, and the window that they are counted in.

    window: the key of its counter. until: when it is too late to settle, by the clock of this
    process. counts: what counted when it was reserved, itself included. id: which reservation it
    is, where several processes share the counters; else "".
    """

    window: str
    tokens: int
    until: float
    counts: Counts
    id: str = ""


class Admission(NamedTuple):
    """Whether a call may go. refused: the limit that stands against it; wanted: its tokens."""

    hold: Hold | None
    refused: Kind | None
    wanted: int
    counts: Counts


class Storage(MemoryStorage):
    """MemoryStorage, which while it is in use looks through all its keys a hundred times a second:
    too often for thousands of them."""

    @property
    def timer(self) -> threading.Timer:
        return self._timer

    @timer.setter
    def timer(self, timer: threading.Timer) -> None:
        timer.interval, timer.daemon = TIDY_S, True
        # A thread's own asks a lock, and under gevent that lets all others work first: each time.
        timer.is_alive = lambda: not timer.finished.is_set()  # type: ignore[method-assign]
        self._timer = timer


class LocalCounters:
    """The counters of one process. Its token windows are the hours of the clock."""

    def __init__(self) -> None:
        self.storage = Storage()
        self._requests = MovingWindowRateLimiter(self.storage)
        self._tokens = SlidingWindowCounterRateLimiter(self.storage)
        # Two threads at once can lose each other's first count of a window in that storage.
        self._lock = threading.Lock()

    def admit(self, key_id: str, limits: Limits, ask: Ask) -> Admission:
        """Count a request and reserve its tokens."""
        window, wanted = "", 0
        refused: Kind | None = None
        now = time.time()
        with self._lock:
            if limits.tokens_per_hour is not None:  # first, because it can be given back
                window, wanted = self._reserve(key_id, limits.tokens_per_hour, ask, now)
                refused = None if window else "tokens"
            if refused is None and limits.requests_per_minute is not None:
                item = RateLimitItemPerMinute(limits.requests_per_minute)
                if not self._requests.hit(item, key_id):
                    refused = "requests"
                    self._give_back(window, wanted)
            counts = self._counts(key_id, limits)
        hold = Hold(window, wanted, now + HOUR, counts) if window and not refused else None
        return Admission(hold, refused, wanted, counts)

    def settle(self, hold: Hold | None, tokens: int) -> None:
        """Count what a call did use in the place of what it had reserved."""
        if hold is not None and time.time() < hold.until:
            with self._lock:
                self._give_back(hold.window, hold.tokens - tokens)

    def counts(self, key_id: str, limits: Limits) -> Counts:
        with self._lock:
            return self._counts(key_id, limits)

    def _give_back(self, window: str, tokens: int) -> None:
        # Not a hit: that counts in the window of now, and nothing at all above the limit.
        if window:
            self.storage.incr(window, 2 * HOUR, -tokens)

    def _counts(self, key_id: str, limits: Limits) -> Counts:
        requests = tokens = None
        if limits.requests_per_minute is not None:
            item = RateLimitItemPerMinute(limits.requests_per_minute)
            reset, left = self._requests.get_window_stats(item, key_id)
            requests = Requests(left, reset - time.time())
        if limits.tokens_per_hour is not None:
            tokens = self._hour(place_of(key_id, limits.tokens_per_hour))
        return Counts(requests, tokens)

    def _reserve(self, key_id: str, limit: int, ask: Ask, now: float) -> tuple[str, int]:
        """The window in which the tokens count, "" if they don't fit; and how many they are."""
        place = place_of(key_id, limit)
        wanted = ask.tokens(self._hour(place).left(limit)) if ask.output is None else ask.tokens(0)
        _, window = self.storage.sliding_window_keys(place, HOUR, now)
        taken = self._tokens.hit(RateLimitItemPerHour(limit), key_id, cost=wanted)
        return (window if taken else ""), wanted

    def _hour(self, place: str) -> Tokens:
        before, fade, current, _ = self.storage.get_sliding_window(place, HOUR)
        return Tokens(before, fade, current, HOUR - time.time() % HOUR)


def place_of(key_id: str, limit: int) -> str:
    """Where the package counts a key's tokens."""
    return RateLimitItemPerHour(limit).key_for(key_id)
