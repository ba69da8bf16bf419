"""The usage so far of a stream, for each of its chunks.

- A provider's report counts from the chunk with which it came. Output since the last report is
  estimated, as for billing.
- The counts never decrease, although an estimate may be corrected: clients take differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from completion import Batch, Started, Thought, Usage, Used
from endpoints import calls
from streams.stream import Stream
from streams.tally import Tally


class UsageSoFar:
    """A counter of what one stream's writer has sent. The reader may already be further."""

    def __init__(self, stream: Stream) -> None:
        self._stream, request = stream, stream.request
        self._tally = Tally(
            request.prompts,
            (request.n or 1) if request.echo else 0,
            choices=request.choices,
            silent=request.max_tokens == 0,
        )
        self._seen = False
        """True once an event that the client may see has been counted."""
        self._input = self._output = 0

    def counted(self, batch: Batch) -> Iterator[Batch]:
        """Yield the events one by one, each counted together with the reports that follow it."""
        for part in with_reports(batch):
            self._add(part)
            yield part

    def _add(self, part: Batch) -> None:
        if not self._seen:
            # The reader has counted the reasoning before the first text.
            part = [event for event in part if not isinstance(event, Thought)]
        self._tally.add(part)
        if not self._seen and self._tally.visible:
            self._seen = True
            pieces, size = self._stream.tally.early_thoughts
            self._tally.add([Thought(size, pieces)])

    def usage(self) -> Usage:
        input_tokens = self._stream.tally.input_tokens
        if self._tally.input_tokens is None and input_tokens is not None:
            self._tally.add([Started(input_tokens=input_tokens)])
        return self.at_least(self._tally.usage(failed=False))

    def at_least(self, usage: Usage) -> Usage:
        """Return a usage with at least the counts of those before it."""
        self._input = max(self._input, usage.input_tokens)
        self._output = max(self._output, usage.output_tokens)
        return msgspec.structs.replace(usage, input_tokens=self._input, output_tokens=self._output)


def with_reports(batch: Batch) -> Iterator[Batch]:
    """Yield each event, together with the usage reports that follow it."""
    part: Batch = []
    for event in batch:
        if part and not isinstance(event, Used):
            yield part
            part = []
        part.append(event)
    if part:
        yield part


class Frames(calls.Templates):
    """Frames of texts that are encoded one by one, because more than the text varies in them."""

    def __init__(self) -> None:
        """Make an encoder for any target."""

    def of(self, index: int, shape: Callable[[int, str], Any]) -> Callable[[str], bytes]:
        return lambda text: calls.frame(shape(index, text))
