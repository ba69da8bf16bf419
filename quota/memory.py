"""Usage of keys, counted in the memory of one process: requests per minute and tokens per hour.

- A holder is a key or a group of keys. A call must fit the limits of all its holders. It counts for
  all of them, or for none.
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
from collections.abc import Sequence
from math import floor
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from concurrency.native import BriefLock
from keys.limits import Limits

MINUTE, HOUR = 60, 3600
TIDY_S = 30.0

LimitKind: TypeAlias = Literal["requests", "tokens"]


Holder: TypeAlias = tuple[str, Limits, str | None]
"""The id of a key or of a group of keys, its limits, and the group's name (None for a key)."""


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
    before: Hold | None = None
    """The reservation of the previous holder. A call has one for each of its holders, even for a
    holder without a token limit."""


class Admission(NamedTuple):
    """The decision on a call."""

    hold: Hold | None
    refused: LimitKind | None
    """The limit that the call would exceed; None if the call is admitted."""
    wanted: int
    """The tokens that the call wanted to reserve."""
    counts: tuple[Counts, ...]
    """The counts of each holder."""
    by: int = 0
    """The number of the holder whose limit the call would exceed."""


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
            refused: the number of requests that were refused together, or 0. If it isn't 0, `reset`
                is the time until there is room for them.
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


HolderUsage: TypeAlias = tuple[str, KeyUsage, Limits, int | None]
"""A holder during an admission: the name of its counters, its usage, its limits, and the tokens
that it has left (None: no limit)."""


class LocalCounters:
    """The counters of one process. A token window is an hour of the clock."""

    def __init__(self) -> None:
        self._used: defaultdict[str, KeyUsage] = defaultdict(KeyUsage)
        self._lock = BriefLock()
        self._tidy_at = 0.0

    def admit(self, holders: Sequence[Holder], ask: Ask) -> Admission:
        """Count a request and reserve its tokens."""
        now, wanted = time.time(), 0
        with self._lock:
            places: list[HolderUsage] = []
            least: int | None = None
            for id_, limits, _ in holders:
                used, left = self._now(window := window_of(id_, limits), now), None
                if limits.tokens_per_hour is not None:
                    left = used.tokens(now).left(limits.tokens_per_hour)
                    least = left if least is None or left < least else least
                places.append((window, used, limits, left))
            if least is not None:
                wanted = ask.tokens(least)
            refused, by = refusal_of(places, ask.requests, wanted)
            hold: Hold | None = None
            counts: tuple[Counts, ...] = ()
            for number, (window, used, limits, _) in enumerate(places):
                if refused is None:
                    used.current += wanted
                    if limits.requests_per_minute is not None:
                        used.requests.extend([now] * ask.requests)
                none = ask.requests if refused == "requests" and number == by else 0
                counted = used.counts(limits, now, none)
                counts = (*counts, counted)
                if refused is None and least is not None:
                    hold = Hold(window, wanted, counted, used.hour, before=hold)
        return Admission(hold, refused, wanted, counts, by)

    def settle(self, hold: Hold | None, tokens: int) -> None:
        """Replace the reserved tokens by the used tokens, if their window still counts."""
        while hold is not None:
            with self._lock:
                used = self._now(hold.window, time.time())
                if hold.hour == used.hour:
                    used.current += tokens - hold.tokens
                elif hold.hour == used.hour - 1:
                    used.before += tokens - hold.tokens
            hold = hold.before

    def counts(self, holders: Sequence[Holder]) -> tuple[Counts, ...]:
        now = time.time()
        with self._lock:
            return tuple(
                self._now(window_of(id_, limits), now).counts(limits, now)
                for id_, limits, _ in holders
            )

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


def refusal_of(
    places: Sequence[HolderUsage], requests: int, wanted: int
) -> tuple[LimitKind | None, int]:
    """Return the limit that a call would exceed (None: no limit), and the number of its holder.

    Args:
        places: the usage of each holder.
        requests: the number of requests that the call counts as.
        wanted: the tokens that it wants to reserve.
    """
    for number, (_, _, _, left) in enumerate(places):
        if left is not None and wanted > left:
            return "tokens", number
    for number, (_, used, limits, _) in enumerate(places):
        most = limits.requests_per_minute
        if most is not None and len(used.requests) + requests > most:
            return "requests", number
    return None, 0


def window_of(holder_id: str, limits: Limits) -> str:
    """Return the name of a holder's counters. When its limits change, counting starts again."""
    return f"{holder_id}/{limits.requests_per_minute}/{limits.tokens_per_hour}"
