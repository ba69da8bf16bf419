"""A call of the embedded model.

- The clock decides when to work, never what is written.
- All work is one generator that yields often. `events` runs it in time slices of 2 ms, one
  generator at a time. The lock is held for a slice only, never across a pause or a yield.
- The first slice of a call doesn't wait, so a short answer is immediate. Later slices are booked
  one after the other with a pause between any two, so that gevent's loop sees the network between
  them. (A pause of 0 s would starve the loop; if each answer took its own pause, the slices would
  coincide.)
- The index is built in slices too.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from itertools import chain, islice
from typing import Final, TypeAlias

import msgspec

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    Event,
    Finished,
    Started,
    Usage,
    Used,
)
from errors import ModelNotFound, UnsupportedParameter
from providers.base import Target
from providers.local import ngram
from providers.local.stop_strings import Piece, deltas

MODELS: Final = ("pydoc",)
MOST_TOKENS: Final = 4096
SLICE_S: Final = 0.002
PAUSE_S: Final = 0.0005

Generation: TypeAlias = Iterator[Event | None]
"""Events in order, and None where there is no event but the clock may be read."""


class _Shared:
    """The one model of the process. It is used only under the lock of the turns."""

    def __init__(self) -> None:
        self._model: ngram.Model | None = None
        self._build = _build()

    def get(self) -> Generator[None, None, ngram.Model]:
        """Return the model, after yielding while it is being built."""
        while self._model is None:
            try:
                self._model = next(self._build)
            except BaseException:
                self._build = _build()  # a generator that raised can't continue
                raise
            yield
        return self._model


class _Turns:
    """The schedule of time slices, in monotonic time. Call its methods with the lock held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._free = 0.0
        self._rested = 0.0

    def too_soon(self) -> bool:
        """Return True if a slice has just ended: slices coincide after the machine was held up."""
        return time.monotonic() < self._rested

    def book(self, *, worked: bool) -> float:
        """Return when the caller may work: after all slices that are booked, and a pause."""
        now = time.monotonic()
        if worked:
            self._rested = now + PAUSE_S / 2  # timers may fire a little early
        start = max(now + PAUSE_S, self._free)
        self._free = start + SLICE_S + PAUSE_S
        return start


def _build() -> Iterator[ngram.Model | None]:
    from pydoc_data.topics import topics  # late: half a megabyte

    yield None
    yield from ngram.build(topics.values())


_shared = _Shared()
_turns = _Turns()


class LocalCall:
    """An UpstreamCall (see base) of the embedded model."""

    def __init__(self, request: CompletionRequest, target: Target) -> None:
        self._request = request
        self._target = target
        self._aborted = threading.Event()
        self._input_tokens = 0
        self._output_tokens = 0

    def abort(self) -> None:
        """End the call within a time slice. Any thread may call this."""
        self._aborted.set()

    def wind_up(self) -> None:
        """Do nothing: there is nothing left to begin."""

    def close(self) -> None:
        """Do nothing: the call holds no resource."""

    def events(self) -> Iterator[Batch]:
        """Generate the events.

        Each batch ends with the usage so far: the tokens of the prompts, and all that were
        generated, including what a stop string cuts off or best_of leaves out.

        Raises:
            ModelNotFound: there is no such model.
            UnsupportedParameter: a prompt has token ids.
        """
        work = self._work(self._prompts())
        booked = ended = False
        while not (ended or self._aborted.is_set()):
            batch: Batch = []
            with _turns.lock:
                may_work = not (booked and _turns.too_soon())
                ended = may_work and _advance(work, batch)
                start = 0.0 if ended else _turns.book(worked=may_work)
                booked = True
            if batch:
                usage = Usage(input_tokens=self._input_tokens, output_tokens=self._output_tokens)
                yield [*batch, Used(usage)]
            if not ended:  # a sleep that an abort ends
                self._aborted.wait(max(PAUSE_S, start - time.monotonic()))

    def _prompts(self) -> list[str]:
        if self._target.model not in MODELS:
            asked = self._target.name[:100]
            raise ModelNotFound(f"Model {asked!r} was not found. Ask local/pydoc.", param="model")
        prompts = [prompt for prompt in self._request.prompts if isinstance(prompt, str)]
        if len(prompts) < len(self._request.prompts):
            raise UnsupportedParameter("Token ids can't be had here.", param="prompt")
        return prompts

    def _work(self, prompts: list[str]) -> Generation:
        tails = []
        for prompt in prompts:
            tail: deque[str] = deque(maxlen=ngram.ORDER)
            for token in ngram.tokens(prompt):
                tail.append(token)
                self._input_tokens += 1
                yield None
            tails.append(tail)
        yield Started(model=MODELS[0], input_tokens=self._input_tokens)
        model = yield from _shared.get()
        for number, prompt in enumerate(prompts):
            yield from self._answer(model, prompt, model.context(tails[number]), number)

    def _answer(self, model: ngram.Model, prompt: str, context: int, number: int) -> Generation:
        """Generate all choices of one prompt."""
        n, best_of = self._request.n or 1, self._request.best_of
        tries = best_of or n
        indexes = range(number * tries, (number + 1) * tries)
        choices = [self._choice(model, prompt, context, index) for index in indexes]
        best = range(number * n, (number + 1) * n)
        yield from chain(*choices) if best_of is None else self._best(choices, best)

    def _best(self, choices: list[Generation], indexes: range) -> Generation:
        """Yield the choices with the highest mean log probability, under these indexes."""
        best: list[list[Event]] = []
        for choice in choices:
            events = []
            for event in choice:
                if event is not None:
                    events.append(event)
                yield None
            best = sorted([*best, events], key=_mean_logprob, reverse=True)[: len(indexes)]
        for index, events in zip(indexes, best, strict=False):
            for event in events:
                if isinstance(event, Delta) and self._request.logprobs is None:
                    yield Delta(index, event.text)
                else:
                    yield msgspec.structs.replace(event, index=index)

    def _choice(self, model: ngram.Model, prompt: str, context: int, index: int) -> Generation:
        request = self._request
        limit = MOST_TOKENS if request.max_tokens is None else min(request.max_tokens, MOST_TOKENS)
        before, offset = self._output_tokens, 0
        if request.echo and prompt:
            yield Delta(index, prompt)
            offset = len(prompt)
        pieces = islice(self._pieces(model, context, index, offset), limit)
        stopped = yield from deltas(index, pieces, tuple(filter(None, request.stop)))
        ended = stopped or self._output_tokens - before < limit
        yield Finished(index, "stop" if ended else "length")

    def _pieces(self, model: ngram.Model, context: int, index: int, offset: int) -> Iterator[Piece]:
        """Generate tokens, with the log probabilities that the request and best_of need."""
        request = self._request
        alternatives = request.logprobs
        if alternatives is None and request.best_of is not None:
            alternatives = 0
        # Each choice has its own random source. A seed that is text doesn't depend on hash(), so it
        # gives the same answer in every process.
        seed = None if request.seed is None else f"{request.seed}/{index}"
        source = random.Random(seed)  # noqa: S311 - nothing secret
        walk = ngram.walk(model, context, ngram.Sampling.of(request), source)
        for place, (before, token) in enumerate(walk):
            self._output_tokens += 1
            text = model.texts[token]
            logprobs = None
            if alternatives is not None:
                likely = model.probabilities(before, first=not place)
                logprobs = model.logprobs(likely, token, alternatives, offset)
                offset += len(text)
            yield text, logprobs


def _advance(work: Generation, batch: Batch) -> bool:
    """Work for a time slice. Return True if the work has ended."""
    until = time.monotonic() + SLICE_S
    for event in work:
        if event is not None:
            batch.append(event)
        if time.monotonic() >= until:
            return False
    return True


def _mean_logprob(events: list[Event]) -> float:
    """Return the mean log probability of the tokens that were sent; -inf without any."""
    values = [
        value or 0.0
        for event in events
        if isinstance(event, Delta) and event.logprobs is not None
        for value in event.logprobs.token_logprobs
    ]
    return sum(values) / len(values) if values else -math.inf
