"""Usage of keys, counted in the memory of one process: requests per minute and tokens per hour.

- Requests are counted in a moving window.
- Tokens are counted in a sliding-window counter: the last hour is the current window and a share of
  the previous one, which is an approximation.
- A refused request uses nothing.
- The module does no I/O.

docs/decisions/0011-the-cost-of-a-call.md says why this isn't left to a library.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from math import floor
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from concurrency.native import BriefLock
from keys.key import Limits

MINUTE, HOUR = 60, 3600
TIDY_S = 30.0

LimitKind: TypeAlias = Literal["requests", "tokens"]


class Ask(NamedTuple):
    """The amounts that a call wants to reserve."""

    input: int
    output: int | None
    """The tokens of output; None for those that are left, at most `reserve`."""
    reserve: int
    requests: int = 1
    """The number of requests that the call counts as. Either all of them count, or none."""

    def tokens(self, left: int) -> int:
        """Return the tokens to reserve, if the limit has `left` tokens left."""
        if self.output is None:
            return self.input + max(1, min(self.reserve, left - self.input))
        return self.input + self.output


class RequestCounts(NamedTuple):
    """The requests of a key."""

    left: int
    """The number of requests that the key may make now."""
    reset: float
    """The seconds until the oldest request no longer counts."""


class Tokens(NamedTuple):
    """The tokens of a key."""

    before: int
    """The tokens of the previous window."""
    fade: float
    """The seconds for which some tokens of the previous window still count."""
    current: int
    """The tokens of the current window."""
    rest: float
    """The seconds until the current window ends."""

    def left(self, limit: int) -> int:
        return max(0, limit - floor(self.before * self.fade / HOUR + self.current))


class Counts(NamedTuple):
    """The current counts of a key. A count is None if the key has no such limit."""

    requests: RequestCounts | None
    tokens: Tokens | None


class Hold(msgspec.Struct, frozen=True):
    """Reserved tokens, and the window in which they count."""

    window: str
    """The name of the counter."""
    tokens: int
    counts: Counts
    """The counts at the time of the reservation, including it."""
    hour: int = 0
    """The hour of the clock in which the tokens count, if they are counted in memory."""
    id: str = ""
    """The id of the reservation, if it is counted in Redis."""


class Admission(NamedTuple):
    """The decision on a call."""

    hold: Hold | None
    refused: LimitKind | None
    """The limit that the call would exceed; None if the call is admitted."""
    wanted: int
    """The tokens that the call wanted to reserve."""
    counts: Counts


class KeyUsage:
    """The usage of one key: the times of its requests, and its tokens by hours of the clock."""

    __slots__ = ("before", "current", "hour", "requests")

    def __init__(self) -> None:
        self.requests: deque[float] = deque()
        self.hour = self.before = self.current = 0

    def turn(self, now: float) -> None:
        """Forget usage that no longer counts.

        If the clock was set back, all requests count as made now.
        """
        made = self.requests
        if made and made[-1] > now:
            made = self.requests = deque([now] * len(made))
        while made and made[0] <= now - MINUTE:
            made.popleft()
        hour = int(now // HOUR)
        if hour > self.hour:
            self.before = self.current if hour == self.hour + 1 else 0
            self.current = 0
        self.hour = hour

    def tokens(self, now: float) -> Tokens:
        rest = HOUR - now % HOUR
        return Tokens(self.before, rest, self.current, rest)

    def counts(self, limits: Limits, now: float, refused: int = 0) -> Counts:
        """Return the current counts.

        Args:
            refused: how many requests had no room together. `reset` is then the seconds until they
                have.
        """
        requests = tokens = None
        if limits.requests_per_minute is not None:
            made = self.requests
            left = max(0, limits.requests_per_minute - len(made))
            last = min(max(refused - left, 1), len(made)) - 1  # the last that must no longer count
            reset = made[last] + MINUTE - now if made else MINUTE
            requests = RequestCounts(left, reset)
        if limits.tokens_per_hour is not None:
            tokens = self.tokens(now)
        return Counts(requests, tokens)

    @property
    def idle(self) -> bool:
        return not (self.requests or self.before or self.current)


class LocalCounters:
    """The counters of one process. A token window is an hour of the clock."""

    def __init__(self) -> None:
        self._used: defaultdict[str, KeyUsage] = defaultdict(KeyUsage)
        self._lock = BriefLock()
        self._tidy_at = 0.0

    def admit(self, key_id: str, limits: Limits, ask: Ask) -> Admission:
        """Count a request and reserve its tokens."""
        now, wanted = time.time(), 0
        refused: LimitKind | None = None
        with self._lock:
            used = self._now(window := window_of(key_id, limits), now)
            per_minute, per_hour = limits
            if per_hour is not None:
                left = used.tokens(now).left(per_hour)
                wanted = ask.tokens(left)
                if wanted > left:
                    refused = "tokens"
            full = per_minute is not None and len(used.requests) + ask.requests > per_minute
            if refused is None and full:
                refused = "requests"
            if refused is None:
                used.current += wanted
                if per_minute is not None:
                    used.requests.extend([now] * ask.requests)
            counts = used.counts(limits, now, ask.requests if refused == "requests" else 0)
        if refused is not None or per_hour is None:
            return Admission(None, refused, wanted, counts)
        return Admission(Hold(window, wanted, counts, used.hour), None, wanted, counts)

    def settle(self, hold: Hold | None, tokens: int) -> None:
        """Replace the reserved tokens by the used tokens, if their window still counts."""
        if hold is None:
            return
        with self._lock:
            used = self._now(hold.window, time.time())
            if hold.hour == used.hour:
                used.current += tokens - hold.tokens
            elif hold.hour == used.hour - 1:
                used.before += tokens - hold.tokens

    def counts(self, key_id: str, limits: Limits) -> Counts:
        now = time.time()
        with self._lock:
            return self._now(window_of(key_id, limits), now).counts(limits, now)

    def _now(self, window: str, now: float) -> KeyUsage:
        """Return a key's usage as of now. Every TIDY_S, forget the keys without any."""
        if now > self._tidy_at:
            self._tidy_at = now + TIDY_S
            for used in self._used.values():
                used.turn(now)
            for idle in [name for name, used in self._used.items() if used.idle]:
                del self._used[idle]
        used = self._used[window]
        used.turn(now)
        return used


def window_of(key_id: str, limits: Limits) -> str:
    """Return the name of a key's counters. When its limits change, counting starts again."""
    return f"{key_id}/{limits.requests_per_minute}/{limits.tokens_per_hour}"
