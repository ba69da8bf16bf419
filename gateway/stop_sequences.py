"""The emulation of stop sequences: the events of an upstream call, up to each choice's first stop.

- The module is pure, but yields during long work. stopping_call.py applies it to a call.
- The longest end of a choice's text that could begin a stop sequence is held back. So a client
  never sees a part of a stop sequence.
- A choice ends with "stop" before the stop sequence that is complete first (stop_automaton.py).
- Reasoning isn't searched.
- Text with log probabilities is held by whole tokens. A token that reaches into a stop sequence
  loses its log probabilities, and its text from there on.
- What a client doesn't see is output all the same: Thought events count it, so that at the end of
  each batch the counts are those of the events that the provider sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Final

import msgspec

from completion import (
    Added,
    Batch,
    Delta,
    Finished,
    FinishReason,
    Logprobs,
    Thought,
    Used,
    join_logprobs,
    utf8_size,
)
from concurrency.yielding import paced
from gateway.stop_automaton import StopAutomaton
from streams.mailbox import BACKLOG
from streams.tally import EVENT_WEIGHT

MOST_TOKENS: Final = 4096
"""How many tokens may wait for their text. A host that sends more doesn't say where they belong."""


MANY: Final = 64
"""Above how many events a batch is searched with pauses: a whole answer may have many choices."""


class Scanner:
    """The search for stop sequences in the choices of one upstream call."""

    def __init__(self, stops: StopAutomaton, choices: int, *, logprobs: bool = False) -> None:
        """Start before the first event.

        Args:
            choices: the number of choices that the call has.
            logprobs: True if the text may have log probabilities.
        """
        self.shown = False
        """True if a client may have seen text."""
        self._stops, self._count, self._logprobs = stops, choices, logprobs
        self._choices: dict[int, _Choice] = {}
        self._output = _Output()

    def take(self, batch: Batch) -> Batch:
        """Return what a client gets of a batch."""
        output, choices, stops = self._output, self._choices, self._stops
        shown, first, scan = output.batch, stops.first, stops.scan
        for event in batch if len(batch) <= MANY else paced(batch):
            if isinstance(event, Delta):
                choice = choices.get(event.index) or self._choice(event.index)
                if choice.watched:
                    choice.take(event, None)
                elif first(event.text) is None:
                    shown.append(event)
                else:
                    found = scan(0, event.text)
                    if found[0]:
                        choice.take(event, found)
                    else:
                        shown.append(event)
            elif isinstance(event, Finished):
                self._choice(event.index).finish(event.reason)
            elif isinstance(event, Added) and not event.top:
                self._choice(event.index).hold(event)
            else:
                if isinstance(event, Used):
                    output.count_unseen()
                shown.append(event)
        return self._taken()

    def ended(self, finished: Mapping[int, FinishReason]) -> Batch | None:
        """Return the last events if all choices have ended, but not all of them at the host.

        Return None otherwise.

        Args:
            finished: the choices that the host has finished, without a Finished event so far.
        """
        output, ended = self._output, self._output.ended
        if not output.cut or len(ended) + len(finished) < self._count:
            return None
        rest = sorted(finished.keys() - ended)
        if len(ended) + len(rest) < self._count:
            return None
        for index in rest:
            self._choice(index).finish(finished[index])
        return self._taken()

    def flush(self) -> Batch:
        """Return what is held back, because no more events follow."""
        for choice in self._choices.values():
            choice.flush()
        return self._taken()

    def _taken(self) -> Batch:
        output = self._output
        if output.bytes or output.pieces:
            output.count_unseen()
        shown, output.batch = output.batch, []
        if not self.shown:
            self.shown = any(isinstance(event, Delta) for event in shown)
        return shown

    def _choice(self, index: int) -> _Choice:
        found = self._choices.get(index)
        if found is None:
            found = _Choice(self._stops, index, self._output, logprobs=self._logprobs)
            self._choices[index] = found
        return found


class _Output:
    """The events for the client, and which choices have ended."""

    __slots__ = ("batch", "bytes", "cut", "ended", "pieces")

    def __init__(self) -> None:
        self.batch: Batch = []
        self.ended: set[int] = set()
        self.cut: set[int] = set()
        """The choices that a stop sequence ended, and that the host hasn't finished."""
        self.bytes = self.pieces = 0
        """The text that the provider sent, less the text for the client."""

    def count_unseen(self) -> None:
        """Append an event that makes up the difference, and start again."""
        if self.bytes or self.pieces:
            self.batch.append(Thought(self.bytes, self.pieces))
            self.bytes = self.pieces = 0


class _Choice:
    """One choice. Positions are numbers of characters from the start of its text.

    Without log probabilities, text doesn't count if nothing was held before it.
    """

    __slots__ = (
        *("_added", "_added_size", "_held", "_index", "_logprobs", "_output", "_position"),
        *("_released", "_state", "_stops", "_tokens", "watched"),
    )

    def __init__(
        self, stops: StopAutomaton, index: int, output: _Output, *, logprobs: bool
    ) -> None:
        self.watched = logprobs
        """True if `take` must see the next text, whatever its characters are."""
        self._stops, self._index, self._output, self._state = stops, index, output, 0
        self._logprobs = logprobs
        self._held = ""
        self._released = self._position = 0
        """The positions at which the held text begins and ends."""
        self._tokens = _Tokens()
        self._added: list[tuple[Added, int]] = []
        """Added events, each with the position at which its text ends; -1 before it has come."""
        self._added_size = 0

    def take(self, event: Delta, found: tuple[int, int] | None) -> None:
        """Show what can be shown of a piece of text, and of the text that was held before it.

        Args:
            found: the result of the search in the piece, if it is known.
        """
        text, before, output = event.text, self._position, self._output
        output.pieces += 1
        output.bytes += len(text) if text.isascii() else utf8_size(text)
        if self._index in output.ended:
            return
        self._position += len(text)
        self._held += text
        if self._logprobs:
            self._tokens.add(event, before)
        if self._added:
            self._added = [(a, self._position if end < 0 else end) for a, end in self._added]
        self._state, end = found or self._stops.scan(self._state, text)
        if end >= 0:
            self._cut(before + end - self._stops.ends[self._state])
            return
        to = self._position - self._stops.depth[self._state]
        if self._logprobs or self._added:
            self._release(to)
        else:
            if to > self._released:
                self._show(to, 0)
            self.watched = self._state > 0

    def hold(self, event: Added) -> None:
        """Hold the fields that a provider added, until the text after them is shown."""
        if self._index in self._output.ended:
            self._show_prompt_fields(event)
            return
        self._added.append((event, -1))
        self._added_size += event.size + EVENT_WEIGHT
        self.watched = True
        if self._added_size > BACKLOG:
            self._show_added(None)

    def finish(self, reason: FinishReason) -> None:
        """Show the end of the choice that the provider reported, if it hasn't ended before."""
        output = self._output
        output.cut.discard(self._index)
        if self._index not in output.ended:
            self.flush()
            output.batch.append(Finished(self._index, reason))
            output.ended.add(self._index)
            self.watched = True

    def flush(self) -> None:
        """Show all that is held."""
        if self._index not in self._output.ended:
            self._show_added(None)
            self._show(self._position, self._tokens.count)

    def _release(self, to: int) -> None:
        """Show the text up to a position, with its complete tokens and its added fields."""
        count = 0
        if self._logprobs:
            to, count = self._tokens.complete(to, self._position)
            to = max(to, self._released)
        if self._added:
            self._show_added(to)
        self._show(to, count)
        self.watched = self._logprobs or self._state > 0 or len(self._added) > 0

    def _cut(self, to: int) -> None:
        """Show the text up to a stop sequence, and the end of the choice."""
        output = self._output
        for added, end in self._added:
            if 0 <= end <= to:
                output.batch.append(added)
            else:
                self._show_prompt_fields(added)
        self._show(to, self._tokens.before(to))
        output.batch.append(Finished(self._index, "stop"))
        output.ended.add(self._index)
        output.cut.add(self._index)
        self.watched = True
        self._held, self._added, self._tokens = "", [], _Tokens()

    def _show(self, to: int, count: int) -> None:
        """Show the text up to a position, with the log probabilities of some tokens."""
        length, output, held = to - self._released, self._output, self._held
        text, self._held, self._released = held[:length], held[length:], to
        logprobs = self._tokens.take(count) if count else None
        if text or logprobs:
            output.batch.append(Delta(self._index, text, logprobs))
            output.pieces -= 1
            output.bytes -= len(text) if text.isascii() else utf8_size(text)

    def _show_added(self, to: int | None) -> None:
        """Show the added fields of the text up to a position. None stands for all."""
        rest = []
        for added, end in self._added:
            if to is None or 0 <= end <= to:
                self._output.batch.append(added)
                self._added_size -= added.size + EVENT_WEIGHT
            else:
                rest.append((added, end))
        self._added = rest

    def _show_prompt_fields(self, event: Added) -> None:
        """Show those of the added fields that describe the prompt, which no stop sequence ends."""
        fields = {name: value for name, value in event.fields.items() if name.startswith("prompt")}
        if fields:
            self._output.batch.append(msgspec.structs.replace(event, fields=fields))


class _Tokens:
    """The tokens of a choice that weren't shown yet, with their log probabilities."""

    __slots__ = ("_ahead", "_end", "_parts", "_starts")

    def __init__(self) -> None:
        self._parts: list[Logprobs] = []
        self._starts: list[int] = []
        """The position at which each token begins. It ends where the next one begins."""
        self._end = 0
        """The position of the last token's end."""
        self._ahead = ""
        """The text of the tokens that came before their text did. vLLM holds text back, too."""

    @property
    def count(self) -> int:
        return len(self._starts)

    def add(self, event: Delta, before: int) -> None:
        """Add the tokens of a piece of text, and find their positions.

        The tokens' own text says them if it is the text of the choice. Otherwise (parts of
        characters, other names) their offsets do.

        Args:
            before: the position of the piece.
        """
        found, after = event.logprobs, before + len(event.text)
        names = found.tokens if found is not None else []
        text = self._ahead + "".join(names)
        if text.startswith(event.text):
            starts = list(accumulate(map(len, names), initial=before + len(self._ahead)))
            self._ahead = text[len(event.text) :]
        else:
            offsets = found.text_offset if found is not None else []
            given = offsets if len(offsets) == len(names) else [before] * len(names)
            starts = [min(max(offset, before), after) for offset in given] + [after]
            self._ahead = ""
        if found is None or not names:
            return
        least = self._starts[-1] if self._starts else 0
        *begun, self._end = accumulate(starts, max, initial=least)
        self._starts += begun[1:]
        self._parts.append(found)

    def before(self, to: int) -> int:
        """Return the number of tokens that end at a position or before it."""
        starts = self._starts
        ends = [*starts[1:], self._end]
        return next(
            (number for number, start in enumerate(starts) if ends[number] > to or start >= to),
            len(starts),
        )

    def complete(self, to: int, position: int) -> tuple[int, int]:
        """Return how far the text can be shown without a part of a token, and how many tokens.

        Args:
            to: the position up to which the text can be shown otherwise.
            position: the end of the text so far.
        """
        count = self.before(to)
        if count < len(self._starts):
            to = min(to, self._starts[count])
        if len(self._starts) - count > MOST_TOKENS and self._end > position:
            count, self._ahead = len(self._starts), ""
        return to, count

    def take(self, count: int) -> Logprobs:
        """Remove the first tokens and return their log probabilities."""
        joined, self._parts = join_logprobs(self._parts), []
        del self._starts[:count]
        if not self._starts:
            return joined
        self._parts = [_part(joined, slice(count, None))]
        return _part(joined, slice(count))


def _part(logprobs: Logprobs, part: slice) -> Logprobs:
    top = logprobs.top_logprobs
    return Logprobs(
        tokens=logprobs.tokens[part],
        token_logprobs=logprobs.token_logprobs[part],
        top_logprobs=None if top is None else top[part],
        text_offset=logprobs.text_offset[part],
    )
