"""The search for stop sequences in a text that arrives in pieces, and which of them a host gets.

- A text ends before the stop sequence that is complete first. Of several that are complete at the
  same character, the longest counts.
- The search is an Aho-Corasick automaton. It takes a bounded number of steps per character on
  average, whatever the sequences are, and needs about 10 bytes for each of their characters.
- A state stands for the longest end of the text that could begin a stop sequence.
- Long work yields, and only one call at a time prepares long stop sequences (`turn`), so that a
  caller who sends other ones with each call doesn't hold up other calls.
"""

from __future__ import annotations

import re
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from concurrency.yielding import Yielder

COMPILED: Final = 16
"""How many automata are kept for later calls. Editors send equal stop sequences with each call."""
STEPS: Final = 1024
"""How many steps are made, or characters searched, between two checks whether to yield."""
SHORT: Final = 2048
"""Up to how many characters of stop sequences are prepared without waiting for a turn."""
LONG: Final = 32
"""From how many characters on a faster search for the next possible beginning pays off."""


class StopAutomaton:
    """Some stop sequences, ready to be searched for. It doesn't change, so that calls share it.

    A node is the beginning of a stop sequence, and its number is a state. Node 0 is the empty
    beginning. A node's first child has the next number, so that a long sequence needs no table.
    """

    __slots__ = ("_branches", "_fallback", "_next", "_root", "depth", "ends", "first")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._branches: dict[int, dict[str, int]] = {}
        """The children of a node that has several, without the first."""
        self.depth = array("H", [0])
        """The length of each node's text."""
        self.ends = array("H", [0])
        """The length of the longest stop sequence that is complete at each node, or 0."""
        following, parents, labels = [""], [0], [""]
        path, previous, yielder = [0], "", Yielder()
        for stop in sorted(set(stops)):
            yielder.yield_if_due()
            if previous and stop.startswith(previous):
                continue  # the previous one is always complete first
            shared = common_length(previous, stop)
            parent, node, length = path[shared], len(following), len(stop)
            if following[parent]:
                self._branches.setdefault(parent, {})[stop[shared]] = node
            else:
                following[parent] = stop[shared]
            added = range(node, node + length - shared)
            following += [*stop[shared + 1 :], ""]
            parents += [parent, *added[:-1]]
            labels += stop[shared:]
            self.depth.extend(range(shared + 1, length + 1))
            self.ends.extend([0] * (length - shared - 1) + [length])
            path[shared + 1 :] = added
            previous = stop
        self._next = "".join(char or "\0" for char in following)  # no search goes on from a leaf
        self._fallback = array("I", bytes(4 * len(following)))
        self._link(following, parents, labels)
        self._root = {following[0]: 1} | self._branches.get(0, {})
        self.first = re.compile(f"[{''.join(map(re.escape, sorted(self._root)))}]").search
        """Find the first character of a text that could begin a stop sequence."""

    def _link(self, following: list[str], parents: list[int], labels: list[str]) -> None:
        """Set each node's fallback: the node of the longest proper end of its text."""
        fallback, branches, ends, yielder = self._fallback, self._branches, self.ends, Yielder()
        for step, node in enumerate(sorted(range(1, len(parents)), key=self.depth.__getitem__)):
            if not step % STEPS:
                yielder.yield_if_due()
            label, at = labels[node], parents[node]
            while at:
                at = fallback[at]
                if following[at] == label:
                    fallback[node] = at + 1
                    break
                if at in branches and label in branches[at]:
                    fallback[node] = branches[at][label]
                    break
            ends[node] = ends[node] or ends[fallback[node]]

    def scan(self, state: int, text: str) -> tuple[int, int]:
        """Search a piece of text.

        Args:
            state: the state after the text before it, 0 at first.

        Returns:
            The state after the piece, and -1. If a stop sequence is complete in the piece: the
            state there, and the number of characters up to there.
        """
        following, branches, fallback = self._next, self._branches, self._fallback
        root, ends, at, size = self._root, self.ends, 0, len(text)
        if size > STEPS:
            return self._scan_long(state, text)
        while at < size:
            char = text[at]
            at += 1
            while following[state] != char:
                if not state:
                    state = root.get(char, 0)
                    break
                if state in branches and char in branches[state]:
                    state = branches[state][char]
                    break
                state = fallback[state]
            else:
                state += 1
            if ends[state]:
                return state, at
            if not state and size - at > LONG:
                found = self.first(text, at)
                at = size if found is None else found.start()
        return state, -1

    def _scan_long(self, state: int, text: str) -> tuple[int, int]:
        yielder = Yielder()
        for at in range(0, len(text), STEPS):
            state, end = self.scan(state, text[at : at + STEPS])
            if end >= 0:
                return state, at + end
            yielder.yield_if_due()
        return state, -1

    def path(self, stop: str) -> list[int]:
        """Return the nodes of a stop sequence, up to the first at which one is complete."""
        nodes, node = [], 0
        for char in stop:
            if self._next[node] == char:
                node += 1
            else:
                node = self._branches[node][char]
            nodes.append(node)
            if self.ends[node]:
                break
        return nodes

    def overlaps(self, node: int) -> list[int]:
        """Return the nodes of all proper ends of a node's text that begin a stop sequence."""
        found = []
        while node := self._fallback[node]:
            found.append(node)
        return found


def common_length(one: str, other: str) -> int:
    """Return the length of the beginning that two texts share."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


_preparing = threading.Lock()


@contextmanager
def turn(stops: tuple[str, ...]) -> Iterator[None]:
    """Wait until no other call prepares long stop sequences, if these are long.

    Their number of characters would otherwise let a few calls use all of the server's time.
    """
    if sum(map(len, stops)) <= SHORT:
        yield
        return
    with _preparing:
        yield


@lru_cache(COMPILED)
def compiled(stops: tuple[str, ...]) -> StopAutomaton:
    return StopAutomaton(stops)


@lru_cache(COMPILED)
def effective(stops: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stop sequences without those that can't be the first to be complete.

    These are the ones that have another one inside, before their own end.
    """
    automaton, yielder, found = compiled(stops), Yielder(), []
    for stop in dict.fromkeys(stops):
        yielder.yield_if_due()
        if len(automaton.path(stop)) == len(stop):
            found.append(stop)
    return tuple(found)


@lru_cache(COMPILED)
def for_host(stops: tuple[str, ...], most: int, *, blank: bool = True) -> tuple[str, ...]:
    """Return the stop sequences that a host gets, in their order: the first ones, if they are safe.

    A host removes the stop sequence at which it stops. So it must not get one that can begin inside
    another one that it doesn't get: that one's end would be lost.

    Args:
        stops: effective stop sequences.
        most: how many the host takes.
        blank: False if the host takes none of white space only.
    """
    if not most:
        return ()
    automaton, yielder, paths = compiled(stops), Yielder(), []
    through = [0] * len(automaton.depth)  # for each node, the bits of its stops
    for number, stop in enumerate(stops):
        yielder.yield_if_due()
        bit, path = 1 << number, automaton.path(stop)
        paths.append(path)
        for node in path:
            through[node] = through[node] | bit if through[node] else bit
    needs = [0] * len(stops)  # for each stop, the bits of those that the host must get too
    for number, path in enumerate(paths):
        yielder.yield_if_due()
        overlapping = 0
        for node in automaton.overlaps(path[-1]):
            overlapping |= through[node]
        for other in range(len(stops)):
            needs[other] |= (overlapping >> other & 1) << number
    unfit = sum(1 << n for n, stop in enumerate(stops) if not (blank or stop.strip()))
    chosen = 0
    for number in range(len(stops)):
        wanted = closure(chosen | 1 << number, needs)
        if wanted.bit_count() <= most and not wanted & unfit:
            chosen = wanted
    return tuple(stop for number, stop in enumerate(stops) if chosen >> number & 1)


def closure(chosen: int, needs: list[int]) -> int:
    """Return a set of numbers together with all that they need. Sets are bits."""
    while True:
        wider = chosen
        for number, needed in enumerate(needs):
            if chosen >> number & 1:
                wider |= needed
        if wider == chosen:
            return chosen
        chosen = wider
