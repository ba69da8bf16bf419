"""Sends a list of prompts as one request each, for targets that accept one prompt per request, and
merges their events.

- At most AT_ONCE requests are in flight.
- The queue of events is bounded, so a slow client slows down the providers too.
- The first failure ends all requests.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from completion import (
    COUNTS,
    Added,
    Batch,
    Delta,
    Event,
    Finished,
    Opaque,
    Started,
    Thought,
    Usage,
    Used,
    agreed,
)
from errors import UpstreamError
from providers.base import UpstreamCall

AT_ONCE = 8
QUEUE_SIZE = 32

Item: TypeAlias = tuple[int, Batch | BaseException | None]
"""The number of a call, with its events, its failure, or None when the call is complete."""


class UsageCounter(Protocol):
    """A counter of one call's tokens: reported by the provider, or estimated until then."""

    def add(self, batch: Batch) -> object: ...
    def usage(self, *, failed: bool) -> Usage: ...


class FanOut:
    """An UpstreamCall that consists of several calls."""

    def __init__(
        self, makers: Sequence[Callable[[], UpstreamCall]], counts: Sequence[UsageCounter], n: int
    ) -> None:
        """Prepare the calls.

        Args:
            makers: for each call, a function that constructs it.
            counts: for each call, a counter of its tokens.
            n: the number of choices per call. The choices of call c are numbered from c * n.
        """
        # Calls are constructed as late as possible, because each holds its request body in memory.
        self._waiting = deque(enumerate(makers))
        self._running: set[UpstreamCall] = set()
        self._merge = BatchMerge(counts, n)
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._unfinished = len(self._waiting)
        self._ended = False

    def events(self) -> Iterator[Batch]:
        for _ in range(min(AT_ONCE, self._unfinished)):
            threading.Thread(target=self._work, daemon=True).start()
        while (taken := self._take()) is not None:
            number, item = taken
            if isinstance(item, UpstreamError) and item.usage is not None:
                item.usage = self._merge.usage(number, item.usage)
            if isinstance(item, BaseException):
                raise item
            if item is None:
                with self._changed:
                    self._unfinished -= 1
            else:
                yield self._merge.add(number, item)

    def abort(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            self._waiting.clear()
            running = list(self._running)
        for call in running:
            call.abort()

    def end_if_finished(self) -> bool:
        """End the running calls that have finished. Return False if there are none."""
        with self._changed:
            running = list(self._running)
        ended = [call.end_if_finished() for call in running]  # a list, so that every call is ended
        return any(ended)

    def wind_up(self) -> None:
        """Drop the prompts whose calls haven't started."""
        with self._changed:
            self._unfinished -= len(self._waiting)
            self._merge.calls -= len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """End all calls. Each worker thread closes its own call."""
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
        wanted = True
        while wanted and (started := self._next_call()) is not None:
            number, call = started
            try:
                wanted = all(self._put(number, batch) for batch in call.events())
                wanted = wanted and self._put(number, None)
            except BaseException as failure:  # noqa: BLE001 - `events` raises it
                wanted = False
                self._put(number, failure)
            finally:
                with self._changed:
                    self._running.discard(call)
                call.close()

    def _next_call(self) -> tuple[int, UpstreamCall] | None:
        """Construct the next call without sending it. Return None if there is none."""
        with self._changed:
            if self._ended or not self._waiting:
                return None
            number, make = self._waiting.popleft()
            try:
                call = make()
            except Exception as failure:  # noqa: BLE001 - `events` raises it
                self._items.append((number, failure))
                self._changed.notify_all()
                return None
            self._running.add(call)
            return number, call


class BatchMerge:
    """The merging of several calls' events into one call's."""

    def __init__(self, counts: Sequence[UsageCounter], n: int) -> None:
        self.calls = len(counts)
        self._counts = counts
        self._n = n
        self._usages: dict[int, Usage] = {}
        self._sums = dict.fromkeys(COUNTS, 0)
        self._exact = 0

    def add(self, number: int, batch: Batch) -> Batch:
        """Return a call's events with the choices renumbered.

        A Used event gets the usage of all calls so far. Its source is "estimate" until the
        provider has reported the usage of every call.
        """
        self._count(number, batch)
        merged: Batch = []
        for event in batch:
            if isinstance(event, Started):
                given = self._sums["input_tokens"]
                merged.append(msgspec.structs.replace(event, input_tokens=given))
            elif isinstance(event, Thought):
                merged.append(event)
            elif not isinstance(event, Used):
                merged.append(self._renumber(number, event))
        if any(isinstance(event, Used) for event in batch):
            merged.append(Used(self._total()))
        return merged

    def usage(self, number: int, usage: Usage) -> Usage:
        """Return the usage of all calls so far, after a call's last report."""
        self._count(number, [Used(usage)])
        return self._total()

    def _total(self) -> Usage:
        exact = self._exact == self.calls
        found: dict[str, Any] = self._sums | agreed(self._usages.values())
        if len(self._usages) < self.calls:
            found["cost_nano"] = None
        return Usage(**found, source="provider" if exact else "estimate")

    def _renumber(self, number: int, event: Delta | Opaque | Finished | Added) -> Event:
        return msgspec.structs.replace(event, index=number * self._n + event.index)

    def _count(self, number: int, batch: Batch) -> None:
        self._counts[number].add(batch)
        before = self._usages.get(number, NOTHING)
        now = self._usages[number] = self._counts[number].usage(failed=False)
        for name in COUNTS:
            self._sums[name] += getattr(now, name) - getattr(before, name)
        self._exact += (now.source == "provider") - (before.source == "provider")


NOTHING: Final = Usage(source="estimate")
