"""The end of an answer: finish reasons are held, because more text may follow them.

- The module is pure.
- Some hosts put a finish reason on every chunk, on reasoning, or on the chunk before the usage. So
  a reason is final only at the end of the response, and the last one counts.
- Some hosts don't end the response after the answer. So the module also detects when nothing more
  can follow.
"""

from __future__ import annotations

from typing import Final

from completion import (
    Added,
    Batch,
    Delta,
    Finished,
    FinishReason,
    Opaque,
    Started,
    Thought,
    Used,
)

BEFORE_FINISHING: Final = frozenset((Started, Delta, Thought, Used, Added))
"""The events whose order doesn't matter while there is no finish reason: nearly all batches have
only these, and are not searched event by event."""


class Finish:
    """The finish reasons of one response so far."""

    __slots__ = (
        *("_choices", "_early", "_plain", "_plain_reasons", "_spoke"),
        *("reasons", "settled", "shown"),
    )

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self.reasons: dict[int, FinishReason] = {}
        self.settled = False
        """True if nothing more can follow: the usage came, or a reason on a chunk without text."""
        self.shown = False
        """True if there was text."""
        self._spoke = False
        """True if there was text or reasoning."""
        self._plain = False
        """True if there was text on a chunk without a reason."""
        self._early = False
        """True if text followed a reason."""
        self._plain_reasons: dict[int, FinishReason] = {}
        """The reasons that came on a chunk without text."""

    @property
    def complete(self) -> bool:
        """Return True if each choice has a finish reason."""
        return len(self.reasons) >= self._choices

    @property
    def final(self) -> dict[int, FinishReason]:
        """The reasons that no text can follow, of the choices that have one."""
        return {} if self._early or not self._spoke else self._plain_reasons

    @property
    def watchful(self) -> bool:
        """Return True if `take` must see the next batch even if it has no Finished event."""
        return not self._plain or bool(self.reasons)

    def take(self, batch: Batch) -> Batch:
        """Return a batch without its Finished events."""
        kinds = {event.__class__ for event in batch}
        if self.reasons or not kinds <= BEFORE_FINISHING:
            self._look(batch)
            return [event for event in batch if event.__class__ is not Finished]
        if Delta in kinds or Thought in kinds:
            self._spoke, self.settled = True, False
        if Delta in kinds:
            self.shown = self._plain = True
        return batch

    def _look(self, batch: Batch) -> None:
        """Record what the events say about the end, in their order."""
        reasons = self.reasons
        plain = False
        for event in batch:
            kind = event.__class__
            if kind is Delta or kind is Thought or (kind is Opaque and event.text_size):  # type: ignore[union-attr]
                self._plain = self._plain or plain
                if reasons and getattr(event, "index", 0) in reasons:
                    self._early = True
                self._spoke, self.settled, plain = True, False, kind is not Thought
                self.shown = self.shown or plain
            elif isinstance(event, Finished):
                self._plain = self._plain or (plain and not event.with_text)
                plain = False
                reasons[event.index] = event.reason
                if not event.with_text:
                    self._plain_reasons[event.index] = event.reason
                elif event.index in self._plain_reasons:
                    del self._plain_reasons[event.index]
                self.settled = self._spoke and not (event.with_text or self._early)
            elif isinstance(event, Used) and reasons:
                # Some hosts send usage with every chunk, and some of those a reason, too.
                self.settled = not event.with_text or (self._plain and not self._early)
        self._plain = self._plain or plain

    def events(self) -> Batch:
        """Return a Finished event for each choice that has finished."""
        return [Finished(index, self.reasons[index]) for index in sorted(self.reasons)]
