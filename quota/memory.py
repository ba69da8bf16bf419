"""What keys have used: requests of the last minute, tokens of the last hour.

Requests count in a moving window, tokens in a sliding-window counter (the last hour is the current
window and a share of the one before: an approximation). Rules that hold here: no I/O; a request
that is refused takes nothing. Not the `limits` package, whose scripts count in Redis: each call
would cost a tenth of a millisecond there, and what is given back it has no word for.
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
    """None for the tokens that are left, at most `reserve`."""
    reserve: int
    requests: int = 1
    """The number of requests that the call counts as. None of them counts if they don't all fit."""

    def tokens(self, left: int) -> int:
        if self.output is None:
            return self.input + max(1, min(self.reserve, left - self.input))
        return self.input + self.output


class RequestCounts(NamedTuple):
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

    requests: RequestCounts | None
    tokens: Tokens | None


class Hold(msgspec.Struct, frozen=True):
    """Tokens that are reserved, and the window that they are counted in.

    window: whose counter it is; hour: which of its hours, where that is the clock's. counts: what
    counted when it was reserved, itself included. id: which reservation it is, where several
    processes share the counters; else "".
    """

    window: str
    tokens: int
    counts: Counts
    hour: int = 0
    id: str = ""


class Admission(NamedTuple):
    """Whether a call may go. refused: the limit that stands against it; wanted: its tokens."""

    hold: Hold | None
    refused: LimitKind | None
    wanted: int
    counts: Counts


class KeyUsage:
    """What one key has used: when it made its requests, and its tokens by the clock's hours."""

    __slots__ = ("before", "current", "hour", "requests")

    def __init__(self) -> None:
        self.requests: deque[float] = deque()
        self.hour = self.before = self.current = 0

    def turn(self, now: float) -> None:
        """What no longer counts goes. Where the clock was set back, all counts from now."""
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
        """Return what counts now.

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
    """The counters of one process. Its token windows are the hours of the clock."""

    def __init__(self) -> None:
        self._used: defaultdict[str, KeyUsage] = defaultdict(KeyUsage)
        self._lock = BriefLock()
        self._tidy_at = 0.0

    def admit(self, key_id: str, limits: Limits, ask: Ask) -> Admission:
        """Count a request and reserve its tokens."""
        now, wanted = time.time(), 0
        refused: LimitKind | None = None
        with self._lock:
            used = self._now(place := place_of(key_id, limits), now)
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
        return Admission(Hold(place, wanted, counts, used.hour), None, wanted, counts)

    def settle(self, hold: Hold | None, tokens: int) -> None:
        """Count what a call did use in the place of what it had reserved, as long as that counts
        at all."""
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
            return self._now(place_of(key_id, limits), now).counts(limits, now)

    def _now(self, place: str, now: float) -> KeyUsage:
        """What was used there, as of now. Each TIDY_S those are forgotten that have used
        nothing."""
        if now > self._tidy_at:
            self._tidy_at = now + TIDY_S
            for used in self._used.values():
                used.turn(now)
            for idle in [name for name, used in self._used.items() if used.idle]:
                del self._used[idle]
        found = self._used[place]
        found.turn(now)
        return found


def place_of(key_id: str, limits: Limits) -> str:
    """Where a key's calls count: anew, when its limits change."""
    return f"{key_id}/{limits.requests_per_minute}/{limits.tokens_per_hour}"
