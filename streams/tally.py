"""What a call has brought so far, counted by its reader. Billing goes by it, whatever the client
received."""

from __future__ import annotations

import msgspec

from completion import Batch, Delta, Prompt, Started, Usage, Used, prompt_tokens, utf8_size

EVENT_WEIGHT = 64
"""Bytes that an event counts beside its text."""


class Tally:
    """What a call has brought so far, kept by its reader: what billing goes by, whatever the
    client received of it.

    It is exact as long as no text came after the usage that the provider told last; from there on
    the output is estimated.
    """

    def __init__(self, prompts: tuple[Prompt, ...], echoes: int = 0) -> None:
        """echoes: how often each prompt stands in the answer; that text is not output."""
        self._prompts = prompts
        self._echoed = echoes * sum(utf8_size(p) for p in prompts if isinstance(p, str))
        self._started: Started | None = None
        self._usage: Usage | None = None
        self.pieces = 0
        self._bytes = 0
        self._told = (0, 0)  # pieces and bytes of output by then

    def add(self, batch: Batch) -> int:
        """Count a batch. Returns its weight in a mailbox, in bytes."""
        before = self._bytes
        for event in batch:
            if isinstance(event, Delta):
                self.pieces += 1
                text = event.text
                self._bytes += len(text) if text.isascii() else utf8_size(text)
            elif isinstance(event, Used):
                self._usage = event.usage
                self._told = (self.pieces, self._output_bytes)
            elif isinstance(event, Started):
                self._started = event
        return self._bytes - before + EVENT_WEIGHT * len(batch)

    @property
    def _output_bytes(self) -> int:
        """An echo comes before the output."""
        return max(0, self._bytes - self._echoed)

    @property
    def _untold(self) -> int:
        """Tokens of output since the provider told its usage, about."""
        pieces, output = self._told
        return max(self.pieces - pieces, -(-(self._output_bytes - output) // 4))

    @property
    def input_tokens(self) -> int | None:
        """As the provider tells them; None until it does."""
        if self._usage is not None:
            return self._usage.input_tokens
        return self._started.input_tokens if self._started else None

    @property
    def output_tokens(self) -> int:
        """So far: what the provider told, and an estimate of what came since."""
        return (self._usage.output_tokens if self._usage else 0) + self._untold

    def usage(self, *, failed: bool) -> Usage:
        """What to account for. A provider that refused the call before it began bills nothing;
        in any other case what it didn't tell is estimated."""
        if self._usage is not None:
            if not self._untold:
                return self._usage
            return msgspec.structs.replace(
                self._usage, output_tokens=self.output_tokens, source="estimate"
            )
        if failed and self._started is None:
            return Usage()
        told = self.input_tokens
        return Usage(
            input_tokens=told if told is not None else sum(map(prompt_tokens, self._prompts)),
            output_tokens=self.output_tokens,
            source="estimate",
        )
