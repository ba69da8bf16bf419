"""The models that hosts list: asked for in the background, and cached.

- No call waits for a list, and no call depends on one: a model that isn't listed can be called.
- A process asks only while somebody asks it for models. Each process asks for itself.
- The last list is kept while a host can't be reached. No failure here reaches a circuit breaker.
- State is kept for each address of a provider, as a provider may get several.
- The operator's keys are used, never a caller's.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from errors import SluiceError, UpstreamError
from providers import model_entries, registry
from providers.base import Provider, Target
from providers.model_fetch import FoundItself, Listing
from routing.retries import unreachable
from routing.router import Router

log = logging.getLogger("sluice.discovery")

RETRY_S: Final = 15.0
"""The time until a host that failed is asked again. A local engine may just be starting."""
LONGEST_RETRY_S: Final = 300.0
OWN_S: Final = 3600.0
"""The time until an address is asked again that turned out to be Sluice's own."""
JITTER: Final = 0.1
"""The share by which intervals vary, so that processes don't ask at the same moment."""
STALE_INTERVALS: Final = 3
"""The age of a list, in intervals, from which on it is worth waiting for a newer one."""
MOST_ASKED_AT_ONCE: Final = 16
KEY_REJECTED: Final = (401, 403)

Lister: TypeAlias = Callable[[Target], Listing]


class Address(NamedTuple):
    """One of the places where a provider listens."""

    provider: str
    base_url: str


class AddressList:
    """The known models of one address."""

    def __init__(self, targets: Sequence[Target]) -> None:
        """Make the state of an address that hasn't been asked.

        Args:
            targets: one for each of the operator's keys.
        """
        self._targets, self._turn = targets, 0
        self.listing: Listing | None = None
        """The last list; None if there has been none."""
        self.listed_at: float | None = None
        self.due = 0.0
        """The time from which on the address may be asked again."""
        self.failures = 0
        """The number of failures since the last list."""
        self.asking = False
        self.reached: bool | None = None
        """True if the last request could connect; None: there was no request yet."""
        self.reached_at = 0.0

    @property
    def target(self) -> Target:
        """The target of the next request. Its key is the last that worked, or the next one."""
        return self._targets[self._turn % len(self._targets)]

    @property
    def keys(self) -> int:
        return len(self._targets)

    def turn(self) -> None:
        """Switch to the next key."""
        self._turn += 1

    def is_due(self, now: float) -> bool:
        return not self.asking and now >= self.due

    def listed(self, listing: Listing, now: float, interval: float) -> None:
        self.listing, self.listed_at, self.failures = listing, now, 0
        self.reached, self.reached_at = True, now
        self.due = now + interval

    def skipped(self, now: float) -> None:
        """Forget the list of an address that is Sluice's own."""
        self.listing, self.listed_at, self.failures = None, None, self.failures + 1
        self.due = now + OWN_S

    def failed(
        self,
        now: float,
        interval: float,
        retry_after: float | None = None,
        reached: bool | None = None,
    ) -> None:
        """Ask again after a while, but not before the host wants it.

        Args:
            now: the time.
            interval: the seconds between lists.
            retry_after: the seconds that the host asked to wait.
            reached: True if a connection could be made; None if that isn't known.
        """
        if reached is not None:
            self.reached, self.reached_at = reached, now
        wait = min(RETRY_S * 2.0 ** min(self.failures, 10), LONGEST_RETRY_S, interval)
        self.failures += 1
        self.turn()
        self.due = now + max(wait, min(retry_after or 0.0, OWN_S))


class ModelDiscovery:
    """The lists of all enabled providers."""

    def __init__(
        self,
        targets: Mapping[Address, Sequence[Target]],
        ask: Lister,
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Make a discovery that asks nobody yet.

        Args:
            targets: for each address, a target for each of the operator's keys.
            ask: returns a target's list, or raises SluiceError. It may take seconds.
            interval: the seconds until a list is asked for again; 0 for no discovery.
            clock: returns the seconds of a monotonic clock.
            jitter: returns a number between two numbers.
        """
        self._ask, self._interval = ask, interval
        self._clock, self._jitter = clock, jitter
        self._addresses = {
            address: AddressList(found) for address, found in targets.items() if interval and found
        }
        self._changed = threading.Condition()

    def models(self, provider: str) -> Listing | None:
        """Return a provider's models, at all of its addresses; None if no list is known."""
        found = [state.listing for state in self._states(provider) if state.listing]
        if not found:
            return None
        if len(found) == 1:
            return found[0]
        models = model_entries.distinct(model for one in found for model in one.models)
        instances = frozenset[str]().union(*(one.instances for one in found))
        return Listing(models, instances, all(one.complete for one in found))

    def reached(self, provider: str) -> tuple[bool, float] | None:
        """Return whether the last request reached a provider, and how long ago that was.

        Returns:
            True if any of its addresses could be reached, and the seconds since then; None if there
            was no request yet.
        """
        asked = [state for state in self._states(provider) if state.reached is not None]
        if not asked:
            return None
        last = max(asked, key=lambda state: (state.reached is True, state.reached_at))
        return last.reached is True, self._clock() - last.reached_at

    @property
    def instances(self) -> frozenset[str]:
        """The names of the instances of Sluice whose models are listed."""
        found = (state.listing.instances for state in self._states() if state.listing)
        return frozenset[str]().union(*found)

    def refresh(self, wait: float = 0.0) -> None:
        """Ask the addresses whose turn it is, in the background.

        Args:
            wait: the seconds to wait at most for lists that are missing or very old.
        """
        with self._changed:
            now = self._clock()
            due = deque(state for state in self._states() if state.is_due(now))
            for state in due:
                state.asking = True
        self._start(due)
        if wait:
            with self._changed:
                self._changed.wait_for(lambda: not any(self._worth_waiting()), wait)

    def _states(self, provider: str | None = None) -> list[AddressList]:
        return [
            state
            for address, state in self._addresses.items()
            if provider is None or address.provider == provider
        ]

    def _worth_waiting(self) -> Iterator[AddressList]:
        oldest = self._clock() - STALE_INTERVALS * self._interval
        for state in self._states():
            missing = state.listed_at is None and not state.failures
            old = state.listed_at is not None and state.listed_at <= oldest
            if state.asking and (missing or old):
                yield state

    def _start(self, due: deque[AddressList]) -> None:
        """Start threads for addresses to ask. They end as soon as all have been asked.

        Threads that waited for the next time would take memory in each process.
        """
        for number in range(min(len(due), MOST_ASKED_AT_ONCE)):
            work = threading.Thread(
                target=self._run, args=(due,), name="sluice-discovery", daemon=True
            )
            try:
                work.start()
            except RuntimeError:  # the system can't start another thread
                if number == 0:
                    for state in due:
                        state.asking = False
                return

    def _run(self, due: deque[AddressList]) -> None:
        while True:
            try:
                state = due.popleft()
            except IndexError:
                return
            self._update(state)

    def _list(self, state: AddressList) -> Listing:
        """Return the list of an address, with the first of the keys that the host doesn't reject.

        Raises SluiceError.
        """
        for _ in range(state.keys - 1):
            try:
                return self._ask(state.target)
            except UpstreamError as error:
                if error.upstream_status not in KEY_REJECTED:
                    raise
                state.turn()
        return self._ask(state.target)

    def _update(self, state: AddressList) -> None:
        """Ask an address, and remember what it answers."""
        interval = self._interval * self._jitter(1 - JITTER, 1 + JITTER)
        change: Callable[[float], None] = partial(state.failed, interval=interval)
        name = state.target.provider.name
        try:
            change = partial(state.listed, self._list(state), interval=interval)
        except FoundItself:
            change = state.skipped
            log.info("the models of %s are not listed: it is Sluice itself", name)
        except SluiceError as error:
            wanted = error.retry_after if isinstance(error, UpstreamError) else None
            change = partial(
                state.failed,
                interval=interval,
                retry_after=wanted,
                reached=not unreachable(error),
            )
            log.debug("no list of models from %s: %s", name, error.code)
        except Exception:  # a list of any shape must not end the thread
            log.exception("reading the models of %s failed", name)
        with self._changed:
            change(self._clock())
            state.asking = False
            self._changed.notify_all()


def addresses(router: Router, rows: Iterable[Provider]) -> dict[Address, list[Target]]:
    """Return the targets to ask for models: those of the enabled providers that have a list."""
    found: dict[Address, list[Target]] = {}
    for row in rows:
        if registry.model_list(row) is not None and router.enabled(row):
            for target in router.operator_targets(row, "models"):
                for one in target.replicas or (target,):
                    found.setdefault(Address(row.name, one.provider.base_url), []).append(one)
    return found
