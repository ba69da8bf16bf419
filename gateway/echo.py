"""The emulation of echo: the caller's prompts before the text of an answer."""

from __future__ import annotations

from collections.abc import Iterator

from completion import PIECE, Batch, CompletionRequest, Delta, Finished, Started, cut
from concurrency.yielding import Yielder
from streams.tally import EVENT_WEIGHT


def echoed(batches: Iterator[Batch], request: CompletionRequest) -> Iterator[Batch]:
    """Emulate echo: insert each prompt before the text of its choices.

    The prompts wait for the first event that a client may see, because what comes before it may
    still be discarded. A long echo is yielded in several batches, and other greenlets may run
    between them.
    """
    waiting, yielder = True, Yielder()
    for batch in batches:
        if waiting and any(isinstance(event, Delta | Finished) for event in batch):
            waiting = False
            rest = [event for event in batch if not isinstance(event, Started)]
            batch, size = [event for event in batch if isinstance(event, Started)], 0
            for delta in echo_of(request):
                batch.append(delta)
                size += len(delta.text) + EVENT_WEIGHT
                if size >= PIECE:
                    yield batch
                    batch, size = [], 0
                    yielder.yield_if_due()
            batch += rest
        yield batch


def echo_of(request: CompletionRequest) -> Iterator[Delta]:
    n = request.n or 1
    for prompt_index, prompt in enumerate(request.prompts):
        if isinstance(prompt, str):
            for choice in range(n):
                for piece in cut(prompt):
                    yield Delta(prompt_index * n + choice, piece)
