"""The count of an attempt's tokens. The reader counts, because billing depends on what the provider
sent, not on what the client received (see docs/decisions/0004-meter-on-the-reader.md)."""

from __future__ import annotations

from typing import Any

import msgspec

from completion import (
    Added,
    Batch,
    Delta,
    Finished,
    Opaque,
    Prompt,
    Started,
    Thought,
    Usage,
    Used,
    prompt_tokens,
    utf8_size,
)

EVENT_WEIGHT = 64
"""The bytes that each event adds to the backlog in addition to its text."""
MAX_BYTES_PER_TOKEN = 7
"""The maximum number of bytes of text per reported token. If there are more, the report covers only
some of the choices or prompts."""


class Tally:
    """A counter of an attempt's tokens.

    - The counts are exact if no output has arrived since the provider's last usage report.
      Otherwise, the output since that report is estimated.
    - Reasoning is output, like text.
    - A report that covers only one of several choices or prompts (as llama.cpp's does) is replaced
      by an estimate.
    - Counts of 0 in a report that is marked as an estimate can't be true, and are estimated.
    """

    def __init__(
        self,
        prompts: tuple[Prompt, ...],
        echoes: int = 0,
        *,
        choices: int = 1,
        silent: bool = False,
        echoed: tuple[Prompt, ...] | None = None,
        estimate: int | None = None,
    ) -> None:
        """Start at zero.

        Args:
            prompts: the prompts that are sent, for an estimate of the input.
            echoes: how many times the answer repeats each prompt. Echoed text is not output.
            choices: the number of choices in one response. If there are several, a usage report may
                cover only one of them.
            silent: True if no output was requested (max_tokens 0): all text is echoed.
            echoed: the prompts that are repeated, if they differ from those that are sent.
            estimate: the estimated tokens of input, if the prompts don't show them.
        """
        self._estimate = estimate
        self._prompts = prompts
        self._choices = choices
        self._silent = silent
        texts = prompts if echoed is None else echoed
        self._echoed = echoes * sum(utf8_size(p) for p in texts if isinstance(p, str))
        self._started: Started | None = None
        self._usage: Usage | None = None
        self.visible = 0
        """The number of events that a client may see: text, opaque pieces and finish reasons."""
        self.pieces = 0
        self._bytes = 0
        self._thoughts = self._thought_bytes = 0
        self.early_thoughts = (0, 0)
        """The pieces and bytes of reasoning before the first event that a client may see."""
        self._reported = (0, 0)  # the pieces and bytes of output at the last usage report

    def add(self, batch: Batch) -> int:
        """Count a batch. Return its weight in a mailbox, in bytes."""
        before, added = self._bytes, 0
        for event in batch:
            if event.__class__ is Delta:  # compared, because most events pay for it
                self.visible += 1
                self.pieces += 1
                text = event.text
                self._bytes += len(text) if text.isascii() else utf8_size(text)
            elif event.__class__ is Opaque:
                self.visible += event.visible
                self.pieces += event.text_size > 0
                self._bytes += event.text_size
                added += len(event.data) - event.text_size
            elif isinstance(event, Thought):
                self._thoughts += event.pieces
                self._thought_bytes += event.size
                if not self.visible:
                    self.early_thoughts = (self._thoughts, self._thought_bytes)
            elif isinstance(event, Finished):
                self.visible += 1
            elif isinstance(event, Used):
                self._report(event.usage)
            elif isinstance(event, Started):
                self._started = event
            elif isinstance(event, Added):
                added += event.size
        return self._bytes - before + added + EVENT_WEIGHT * len(batch)

    def _report(self, usage: Usage) -> None:
        exact = usage.source == "provider"
        if exact or usage.output_tokens:
            self._reported = (self.pieces + self._thoughts, self._output_bytes)
        self._usage = usage if exact else self._filled(usage)
        if self._choices > 1:
            self._usage = self._covering(self._usage)

    def _filled(self, usage: Usage) -> Usage:
        """Return an estimated usage in which counts of 0 are replaced by earlier counts."""
        before = self._usage or Usage()
        return msgspec.structs.replace(
            usage,
            input_tokens=usage.input_tokens or before.input_tokens,
            output_tokens=usage.output_tokens or before.output_tokens,
        )

    @property
    def _output_bytes(self) -> int:
        """The bytes of text and reasoning, without the echo that comes before the text."""
        return max(0, self._bytes - self._echoed) + self._thought_bytes

    @property
    def _unreported(self) -> int:
        """An estimate of the tokens of output since the last usage report."""
        if self._silent:
            return 0
        pieces, output = self._reported
        made = self.pieces + self._thoughts
        return max(made - pieces, -(-(self._output_bytes - output) // 4))

    @property
    def input_tokens(self) -> int | None:
        """The tokens of input that the provider reported; None if it hasn't reported any."""
        if self._usage and (self._usage.input_tokens or self._usage.source == "provider"):
            return self._usage.input_tokens
        return self._started.input_tokens if self._started else None

    @property
    def output_tokens(self) -> int:
        """The tokens of output so far: those reported, and an estimate of the rest."""
        return (self._usage.output_tokens if self._usage else 0) + self._unreported

    def _covering(self, usage: Usage) -> Usage:
        """Return a reported usage, or an estimate if it doesn't cover all prompts and choices."""
        pieces, output = self._reported
        most = MAX_BYTES_PER_TOKEN * usage.output_tokens
        changes: dict[str, Any] = {}
        tokenwise = pieces > self._choices and not self._echoed
        if output > most or (tokenwise and pieces > usage.output_tokens):
            changes["output_tokens"] = max(pieces, -(-output // 4))
        if len(self._prompts) > 1 and usage.input_tokens < sum(map(_least_tokens, self._prompts)):
            changes["input_tokens"] = sum(map(prompt_tokens, self._prompts))
        if changes:
            changes["cost_nano"] = None  # it doesn't cover them either
        return msgspec.structs.replace(usage, **changes, source="estimate") if changes else usage

    def _estimated_input(self) -> int:
        if self._estimate is not None:
            return self._estimate
        return sum(map(prompt_tokens, self._prompts))

    def usage(self, *, failed: bool) -> Usage:
        """Return the usage to bill. Whatever the provider hasn't reported is estimated.

        Args:
            failed: True if the attempt failed. It then costs nothing unless the provider has
                started to answer.
        """
        reported = self._usage
        if (
            reported
            and not self._unreported
            and (reported.input_tokens or reported.source == "provider")
        ):
            return reported
        if failed and self._started is None and reported is None:
            return Usage()
        known, started = self.input_tokens, self._started or Started()
        return msgspec.structs.replace(
            reported or Usage(tier=started.tier, speed=started.speed),
            input_tokens=self._estimated_input() if known is None else known,
            output_tokens=self.output_tokens,
            source="estimate",
        )


def _least_tokens(prompt: Prompt) -> int:
    """Return the smallest possible number of tokens of a prompt."""
    if isinstance(prompt, str):
        return -(-utf8_size(prompt) // MAX_BYTES_PER_TOKEN)
    return len(prompt)
