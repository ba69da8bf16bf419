"""The health of each provider in this process: its recent attempts, failures and latencies.

- An attempt costs an append to a queue. The queue is counted when it is long, or when the counts
  are read.
- Latencies are counted in buckets, so the memory is bounded, and the counts of several processes
  can be added up.
- The counts hold no key, and no text of a prompt, a completion or an error.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from errors import SluiceError, UpstreamError
from routing.retries import classify, unreachable

WINDOW_S: Final = 300.0
"""The seconds that the counts cover."""
SLOT_S: Final = 10.0
"""The seconds whose counts are kept together. The window moves by this step."""
SLOTS: Final = round(WINDOW_S / SLOT_S)
MOST_NEW: Final = 500
"""The length of the queue at which it is counted at once."""
LEAST_S, GROWTH = 0.001, 1.1
BOUNDS: Final = tuple(LEAST_S * GROWTH**number for number in range(140))
"""The upper bounds of the buckets of latencies, in seconds, from 1 ms to 9 minutes. Each is a tenth
above the one before, so a percentile is exact to within 5%."""
LONGEST_MODEL: Final = 128
"""The most characters of a model's name that are kept: callers choose names freely."""


class EndedAttempt(NamedTuple):
    """An attempt at a provider. Durations are in seconds."""

    provider: str
    model: str
    at: float
    """The Unix time of the end."""
    error: SluiceError | None
    """The error that the provider caused; None if there was none."""
    own_fault: bool
    """True if the caller caused the error, with the provider key that the caller brought."""
    duration: float | None
    """None if the attempt didn't complete its answer."""
    first_event: float | None
    """None if there was no event."""


class ErrorSeen(msgspec.Struct):
    """The attempts that failed with one code."""

    calls: int = 0
    """The number of attempts in the window."""
    last_at: float = 0.0
    """The Unix time of the last one, which may be before the window."""
    model: str = ""
    """The model of the last one."""


class ProviderCounts(msgspec.Struct):
    """The counts of a provider in the window. The counts of several processes can be merged."""

    attempts: int = 0
    failures: int = 0
    """The attempts that failed through the provider's fault."""
    duration: dict[int, int] = {}
    """The number of attempts that completed, by the bucket of their duration."""
    first_event: dict[int, int] = {}
    """The number of attempts that had an event, by the bucket of the time to the first one."""
    errors: dict[str, ErrorSeen] = {}
    """The errors by their codes, also those from before the window."""
    answered_at: float | None = None
    """The Unix time at which the provider last answered, even if with an error."""
    unreached_at: float | None = None
    """The Unix time at which it last couldn't be reached."""


class Slot:
    """The counts of a provider in SLOT_S seconds."""

    def __init__(self) -> None:
        self.attempts = self.failures = 0
        self.duration: Counter[int] = Counter()
        self.first_event: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()


class Record:
    """The slots of a provider, and its latest errors and answers."""

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        """The slots by the number of SLOT_S since 1970."""
        self.last: dict[str, tuple[float, str]] = {}
        """The last error of each code: its time and its model."""
        self.answered_at: float | None = None
        self.unreached_at: float | None = None

    def add(self, ended: EndedAttempt) -> None:
        slot = self._slot(int(ended.at // SLOT_S))
        slot.attempts += 1
        if ended.duration is not None:
            slot.duration[bucket(ended.duration)] += 1
        if ended.first_event is not None:
            slot.first_event[bucket(ended.first_event)] += 1
        error = ended.error
        if error is not None:
            code = code_of(error)
            slot.errors[code] += 1
            slot.failures += not ended.own_fault and classify(error).cools != "nothing"
            self.last[code] = (ended.at, ended.model[:LONGEST_MODEL])
        if error is not None and unreachable(error):
            self.unreached_at = ended.at
        elif answered(ended):
            self.answered_at = ended.at

    def _slot(self, number: int) -> Slot:
        slot = self.slots.get(number)
        if slot is None:
            self.forget(number)
            slot = self.slots[number] = Slot()
        return slot

    def forget(self, now: int) -> None:
        """Drop the slots that are no longer in the window. now: the number of a slot."""
        self.slots = {number: s for number, s in self.slots.items() if number > now - SLOTS}

    def counts(self) -> ProviderCounts:
        slots = self.slots.values()
        errors = sum((slot.errors for slot in slots), Counter[str]())
        return ProviderCounts(
            attempts=sum(slot.attempts for slot in slots),
            failures=sum(slot.failures for slot in slots),
            duration=dict(sum((slot.duration for slot in slots), Counter[int]())),
            first_event=dict(sum((slot.first_event for slot in slots), Counter[int]())),
            errors={code: ErrorSeen(errors[code], *last) for code, last in self.last.items()},
            answered_at=self.answered_at,
            unreached_at=self.unreached_at,
        )


class ProviderHealth:
    """The health of all providers, as this process sees it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._new: deque[EndedAttempt] = deque()
        self._records: dict[str, Record] = {}
        self._lock = threading.Lock()

    def ended(self, attempt: EndedAttempt) -> None:
        self._new.append(attempt)
        if len(self._new) >= MOST_NEW:
            with self._lock:
                self._count()

    def counts(self) -> dict[str, ProviderCounts]:
        """Return the counts of each provider that was called."""
        with self._lock:
            self._count()
            now = int(self._clock() // SLOT_S)
            for record in self._records.values():
                record.forget(now)
            return {name: record.counts() for name, record in self._records.items()}

    def _count(self) -> None:
        for _ in range(len(self._new)):
            attempt = self._new.popleft()
            self._records.setdefault(attempt.provider, Record()).add(attempt)


def answered(ended: EndedAttempt) -> bool:
    """Return True if the provider answered, even if with an error."""
    error = ended.error
    if error is None:
        return ended.first_event is not None or ended.duration is not None
    return isinstance(error, UpstreamError) and error.upstream_status is not None


def code_of(error: SluiceError) -> str:
    """Return the provider's HTTP status if that is an error's, else the code of Sluice's error.

    The number of codes is bounded, whatever a provider sends.
    """
    status = error.upstream_status if isinstance(error, UpstreamError) else None
    return str(status) if status is not None and 400 <= status < 600 else error.code


def bucket(seconds: float) -> int:
    return bisect_left(BOUNDS, seconds)


def percentile(buckets: Mapping[int, int], share: float) -> float | None:
    """Return a percentile of latencies in seconds; None if there are none.

    Args:
        buckets: the number of latencies in each bucket.
        share: the share of the latencies that are at most as long, such as 0.5.
    """
    wanted = share * sum(buckets.values())
    for number, count in sorted(buckets.items()):
        wanted -= count
        if wanted <= 0:  # the geometric middle of the bucket
            return float(BOUNDS[min(number, len(BOUNDS) - 1)] / GROWTH**0.5)
    return None


def merged(several: Iterable[Mapping[str, ProviderCounts]]) -> dict[str, ProviderCounts]:
    """Return the counts of several processes together, by provider."""
    found: dict[str, ProviderCounts] = {}
    for counts in several:
        for name, one in counts.items():
            found[name] = both(found[name], one) if name in found else one
    return found


def both(one: ProviderCounts, other: ProviderCounts) -> ProviderCounts:
    return ProviderCounts(
        attempts=one.attempts + other.attempts,
        failures=one.failures + other.failures,
        duration=dict(Counter(one.duration) + Counter(other.duration)),
        first_event=dict(Counter(one.first_event) + Counter(other.first_event)),
        errors={
            code: both_seen(one.errors.get(code, ErrorSeen()), other.errors.get(code, ErrorSeen()))
            for code in one.errors | other.errors
        },
        answered_at=later(one.answered_at, other.answered_at),
        unreached_at=later(one.unreached_at, other.unreached_at),
    )


def both_seen(one: ErrorSeen, other: ErrorSeen) -> ErrorSeen:
    last = max(one, other, key=lambda seen: seen.last_at)
    return ErrorSeen(one.calls + other.calls, last.last_at, last.model)


def later(one: float | None, other: float | None) -> float | None:
    return max((at for at in (one, other) if at is not None), default=None)
