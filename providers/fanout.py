"""Several prompts for a target that takes one a call: a call each, and their events as one.

Rules that hold here: at most AT_ONCE calls at a time; a bounded queue, so that a slow client slows
the providers down too; the first failure ends them all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol, TypeAlias

import msgspec

from completion import Batch, Delta, Event, Finished, Started, Usage, Used
from providers.base import Attempt

AT_ONCE = 8
QUEUE_SIZE = 32

Item: TypeAlias = tuple[int, Batch | BaseException | None]
"""Which call, and events of it, its failure, or None: it is complete."""


class Count(Protocol):
    """What keeps count of one call: what its provider told, and an estimate of the rest."""

    def add(self, batch: Batch) -> object: ...
    def usage(self, *, failed: bool) -> Usage: ...


class FanOut:
    """An Attempt made of several. makers: a function for each prompt that makes its attempt.
    counts: what counts it, for each prompt. n: choices a prompt; those of prompt p are numbered
    from p * n."""

    def __init__(
        self, makers: Sequence[Callable[[], Attempt]], counts: Sequence[Count], n: int
    ) -> None:
        self._waiting = deque(enumerate(makers))  # made when its turn comes: it holds a body
        self._running: set[Attempt] = set()
        self._merge = Merge(counts, n)
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._unfinished = len(self._waiting)
        self._ended = False

    def events(self) -> Iterator[Batch]:
        for _ in range(min(AT_ONCE, self._unfinished)):
            threading.Thread(target=self._work, daemon=True).start()
        while (taken := self._take()) is not None:
            number, item = taken
            if isinstance(item, BaseException):
                raise item
            if item is None:
                with self._changed:
                    self._unfinished -= 1
            elif batch := self._merge.add(number, item):
                yield batch

    def abort(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            self._waiting.clear()
            running = list(self._running)
        for attempt in running:
            attempt.abort()

    def wind_up(self) -> None:
        """Prompts whose turn has not come stay unasked."""
        with self._changed:
            self._unfinished -= len(self._waiting)
            self._merge.calls -= len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """Each worker closes its own attempt."""
        self.abort()

    def _take(self) -> Item | None:
        with self._changed:
            while not self._items and self._unfinished and not self._ended:
                self._changed.wait()
            if self._ended or not self._unfinished:
                return None
            self._changed.notify_all()
            return self._items.popleft()

    def _put(self, number: int, item: Batch | BaseException | None) -> bool:
        with self._changed:
            while len(self._items) >= QUEUE_SIZE and not self._ended:
                self._changed.wait()
            if self._ended:
                return False
            self._items.append((number, item))
            self._changed.notify_all()
            return True

    def _work(self) -> None:
        """Make one call after another, while there are any."""
        wanted = True
        while wanted and (begun := self._begin()) is not None:
            number, attempt = begun
            try:
                wanted = all(self._put(number, batch) for batch in attempt.events())
                wanted = wanted and self._put(number, None)
            except BaseException as failure:  # noqa: BLE001 - `events` raises it, where it is heard
                wanted = False
                self._put(number, failure)
            finally:
                with self._changed:
                    self._running.discard(attempt)
                attempt.close()

    def _begin(self) -> tuple[int, Attempt] | None:
        """The next call, made but not begun; None when there is none or all has ended."""
        with self._changed:
            if self._ended or not self._waiting:
                return None
            number, make = self._waiting.popleft()
            try:
                attempt = make()
            except Exception as failure:  # noqa: BLE001 - likewise
                self._items.append((number, failure))
                self._changed.notify_all()
                return None
            self._running.add(attempt)
            return number, attempt


class Merge:
    """The events of several calls as those of one."""

    def __init__(self, counts: Sequence[Count], n: int) -> None:
        self.calls = len(counts)
        self._counts = counts
        self._n = n
        self._usages: dict[int, Usage] = {}
        self._sums = dict.fromkeys(COUNTED, 0)
        self._exact = 0

    def add(self, number: int, batch: Batch) -> Batch:
        """A call's events, renumbered. When it tells its usage, that of all calls that began is
        told: an estimate until it is known of each."""
        self._count(number, batch)
        merged: Batch = []
        for event in batch:
            if isinstance(event, Started):
                merged.append(Started(event.model, self._sums["input_tokens"]))
            elif not isinstance(event, Used):
                merged.append(self._renumber(number, event))
        if any(isinstance(event, Used) for event in batch):
            exact = self._exact == self.calls
            merged.append(Used(Usage(**self._sums, source="provider" if exact else "estimate")))
        return merged

    def _renumber(self, number: int, event: Delta | Finished) -> Event:
        return msgspec.structs.replace(event, index=number * self._n + event.index)

    def _count(self, number: int, batch: Batch) -> None:
        self._counts[number].add(batch)
        before = self._usages.get(number, NOTHING)
        now = self._usages[number] = self._counts[number].usage(failed=False)
        for name in COUNTED:
            self._sums[name] += getattr(now, name) - getattr(before, name)
        self._exact += (now.source == "provider") - (before.source == "provider")


NOTHING: Final = Usage(source="estimate")
COUNTED: Final = [name for name in Usage.__struct_fields__ if name != "source"]
