"""Prometheus metrics by key and by group of keys, for an operator who has enabled them.

- At most MOST_KEYS keys of a process have a label. The others are counted as "other".
- A label is a key's name, never its secret.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from completion import Usage
from keys.key import Key

if TYPE_CHECKING:
    from telemetry.metrics import Labelled

MOST_KEYS: Final = 200
OTHER: Final = "other"
LASTS_S: Final = 1.0
"""The seconds after which the labels are read again, so that changes of keys take effect."""
NANO: Final = 1_000_000_000
KEY_REQUESTS = ("key_requests", "Calls that have ended.", "key", "group", "status")
KEY_TOKENS = ("key_tokens", "Tokens of the calls that have ended.", "key", "group", "direction")
KEY_COST = ("key_cost_dollars", "What the calls that have ended cost, in USD.", "key", "group")
KEY_REFUSALS = ("key_refusals", "Calls that were refused.", "key", "group", "reason")


class KeyLabels(NamedTuple):
    key: str
    """The key's name, or its id if the key was deleted."""
    group: str
    """The group's name; empty if the key has no group."""


class CurrentLabels:
    """The labels of all keys, read again every LASTS_S at most."""

    def __init__(
        self, keys: Callable[[], Iterable[Key]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make the labels. `keys` returns the current keys."""
        self._keys, self._clock = keys, clock
        self._labels: dict[str, KeyLabels] = {}
        self._due = 0.0

    def __call__(self, key_id: str) -> KeyLabels:
        now = self._clock()
        if now >= self._due:
            self._due = now + LASTS_S
            self._labels = {key.id: KeyLabels(key.name, key.group or "") for key in self._keys()}
        return self._labels.get(key_id) or KeyLabels(key_id, "")


class KeyMetrics:
    """Metrics of the usage and the refused calls of each key."""

    def __init__(
        self, labelled: Callable[..., Labelled], labels_of: Callable[[str], KeyLabels]
    ) -> None:
        """Make the metrics.

        Args:
            labelled: a function that makes a counter from its name, its meaning and its labels.
            labels_of: a function that returns the labels of the key with an id.
        """
        self._requests = labelled(*KEY_REQUESTS)
        self._tokens = labelled(*KEY_TOKENS)
        self._cost = labelled(*KEY_COST)
        self._refusals = labelled(*KEY_REFUSALS)
        self._labels_of = labels_of
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def ended(self, key_id: str, status: int, usage: Usage, cost: int | None) -> None:
        """Count a call that has ended.

        Args:
            status: the HTTP status that the client received.
            cost: nano-dollars; None if the cost is unknown.
        """
        labels = self._labels(key_id)
        self._requests.inc(*labels, status)
        self._tokens.inc(*labels, "input", amount=usage.input_tokens)
        self._tokens.inc(*labels, "output", amount=usage.output_tokens)
        if cost:
            self._cost.inc(*labels, amount=cost / NANO)

    def refused(self, key_id: str, reason: str) -> None:
        """Count a call that was refused before it was admitted."""
        self._refusals.inc(*self._labels(key_id), reason)

    def _labels(self, key_id: str) -> KeyLabels:
        with self._lock:
            if key_id not in self._known:
                if len(self._known) >= MOST_KEYS:
                    return KeyLabels(OTHER, OTHER)
                self._known.add(key_id)
        return self._labels_of(key_id)
