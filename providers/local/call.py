"""A call to the embedded model.

- The clock decides when the model works, never what it generates.
- A call's work is one generator that yields often. `events` runs it in time slices of SLICE_S, one
  call at a time. The lock is held during a slice, never during a pause or a yield.
- A call's first slice doesn't wait, so that a short completion is immediate. Later slices are
  booked one after another, with a pause between any two, so that gevent's loop handles the network
  between them. A pause of 0 s would starve the loop; if each call paused without booking, the
  slices of several calls would coincide.
- The index is also built in slices.
- local/slow is the same model, for trying out streams and stops. It generates one token each
  TOKEN_S, and only max_tokens, a stop string or a deadline ends its text.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from itertools import chain, count, islice
from typing import Final, TypeAlias

import msgspec

from completion import (
    PIECE,
    Batch,
    CompletionRequest,
    Delta,
    Event,
    Finished,
    FinishReason,
    Started,
    Usage,
    Used,
    cut,
)
from errors import ModelNotFound, UnsupportedParameter
from providers.base import Target
from providers.local import ngram
from providers.local.stop_strings import Piece, deltas

MODELS: Final = ("pydoc", "slow")
MOST_TOKENS: Final = 4096
"""The most tokens of a pydoc completion. A slow one has no maximum."""
TOKEN_S: Final = 0.1
SLICE_S: Final = 0.002
PAUSE_S: Final = 0.0005

Generation: TypeAlias = Iterator[Event | None]
"""Events in order. None has no event: it only lets the caller check the clock."""


class _Shared:
    """The process's one model. It may be used only while holding the lock of `_turns`."""

    def __init__(self) -> None:
        self._model: ngram.Model | None = None
        self._build = _build()

    def get(self) -> Generator[None, None, ngram.Model]:
        """Return the model. Build it first if necessary, and yield None after each step."""
        while self._model is None:
            try:
                self._model = next(self._build)
            except BaseException:
                self._build = _build()  # a generator that has raised can't continue
                raise
            yield
        return self._model


class _Turns:
    """A schedule of time slices, in monotonic time. Call its methods only with the lock held."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._free = 0.0
        self._rested = 0.0

    def too_soon(self) -> bool:
        """Return True if another slice has just ended.

        When a stall of the machine ends, several booked slices are due at once.
        """
        return time.monotonic() < self._rested

    def book(self, *, worked: bool) -> float:
        """Return the time at which the caller may work: after all booked slices and a pause."""
        now = time.monotonic()
        if worked:
            self._rested = now + PAUSE_S / 2  # timers may fire a little early
        start = max(now + PAUSE_S, self._free)
        self._free = start + SLICE_S + PAUSE_S
        return start


def _build() -> Iterator[ngram.Model | None]:
    from pydoc_data.topics import topics  # imported here because it is half a megabyte

    yield None
    yield from ngram.build(topics.values())


_shared = _Shared()
_turns = _Turns()


class LocalCall:
    def __init__(self, request: CompletionRequest, target: Target) -> None:
        self._request = request
        self._target = target
        self._slow = target.model == "slow"
        self._next_token = 0.0
        self._aborted = threading.Event()
        self._input_tokens = 0
        self._output_tokens = 0

    def abort(self) -> None:
        """End the call within a time slice, or at once if it pauses. Any thread may call this."""
        self._aborted.set()

    @property
    def finished(self) -> Mapping[int, FinishReason]:
        """Return none: each Finished event comes at once."""
        return {}

    def end_if_finished(self) -> bool:
        """Return False: the call ends by itself."""
        return False

    def wind_up(self) -> None:
        """Do nothing: the call sends no requests."""

    def close(self) -> None:
        """Do nothing: the call holds no resources."""

    def events(self) -> Iterator[Batch]:
        """Generate the completion and yield its events.

        Each batch ends with the usage so far. It counts the tokens of the prompts and all
        generated tokens, including those that a stop string cuts off or best_of discards.

        Raises:
            ModelNotFound: There is no such model.
            UnsupportedParameter: A prompt consists of token ids.
        """
        work = self._work(self._prompts())
        booked = ended = False
        while not (ended or self._aborted.is_set()):
            batch: Batch = []
            with _turns.lock:
                may_work = not (booked and _turns.too_soon())
                ended = may_work and self._advance(work, batch)
                start = 0.0 if ended else _turns.book(worked=may_work)
                booked = True
            if batch:
                usage = Usage(input_tokens=self._input_tokens, output_tokens=self._output_tokens)
                yield [*batch, Used(usage)]
            if not ended:  # sleep, unless `abort` interrupts
                wake = max(start, self._next_token)
                self._aborted.wait(max(PAUSE_S, wake - time.monotonic()))

    def _advance(self, work: Generation, batch: Batch) -> bool:
        """Collect events for one time slice, up to a long piece of an echo, or one slow token.

        Return True if the work is done.
        """
        before, now = self._output_tokens, time.monotonic()
        until = now + SLICE_S
        for event in work:
            if event is not None:
                batch.append(event)
                if type(event) is Delta and len(event.text) >= PIECE:
                    return False
            if self._slow and self._output_tokens > before:
                due = self._next_token + TOKEN_S
                self._next_token = due if due > now else now + TOKEN_S  # never catch up in a burst
                return False
            if time.monotonic() >= until:
                return False
        return True

    def _prompts(self) -> list[str]:
        if self._target.model not in MODELS:
            asked = self._target.name[:100]
            message = f"Model {asked!r} was not found. There are local/pydoc and local/slow."
            raise ModelNotFound(message, param="model")
        prompts = [prompt for prompt in self._request.prompts if isinstance(prompt, str)]
        if len(prompts) < len(self._request.prompts):
            message = "The local model does not support prompts of token ids."
            raise UnsupportedParameter(message, param="prompt")
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
        yield Started(model=self._target.model, input_tokens=self._input_tokens)
        model = yield from _shared.get()
        answers = [
            self._answer(model, prompt, model.context(tails[number]), number)
            for number, prompt in enumerate(prompts)
        ]
        yield from self._joined(answers)

    def _answer(self, model: ngram.Model, prompt: str, context: int, number: int) -> Generation:
        n, best_of = self._request.n or 1, self._request.best_of
        tries = best_of or n
        indexes = range(number * tries, (number + 1) * tries)
        choices = [self._choice(model, prompt, context, index) for index in indexes]
        best = range(number * n, (number + 1) * n)
        yield from self._joined(choices) if best_of is None else self._best(choices, best)

    def _joined(self, works: list[Generation]) -> Generation:
        """Run works one after the other, or in turns if the first might never end."""
        return _in_turns(works) if self._slow else chain.from_iterable(works)

    def _best(self, choices: list[Generation], indexes: range) -> Generation:
        """Yield the choices with the highest mean log probability, renumbered to `indexes`."""
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
        limit, made, offset = self._most_tokens(), count(), 0
        if request.echo and prompt:
            yield from (Delta(index, piece) for piece in cut(prompt))
            offset = len(prompt)
        limited = islice(self._pieces(model, context, index, offset), limit)
        pieces = (piece for piece, _ in zip(limited, made, strict=False))
        stopped = yield from deltas(index, pieces, tuple(filter(None, request.stop)))
        ended = stopped or limit is None or next(made) < limit
        yield Finished(index, "stop" if ended else "length")

    def _most_tokens(self) -> int | None:
        asked = self._request.max_tokens
        if self._slow:
            return asked
        return MOST_TOKENS if asked is None else min(asked, MOST_TOKENS)

    def _pieces(self, model: ngram.Model, context: int, index: int, offset: int) -> Iterator[Piece]:
        """Yield tokens, with log probabilities if the request or best_of needs them."""
        request = self._request
        alternatives = request.logprobs
        if alternatives is None and request.best_of is not None:
            alternatives = 0
        # Each choice has its own random source. The seed is a string, which doesn't depend on
        # hash(), so that a seed gives identical completions in every process.
        seed = None if request.seed is None else f"{request.seed}/{index}"
        source = random.Random(seed)  # noqa: S311 - nothing secret
        sampling = ngram.Sampling.of(request)
        walk = ngram.walk(model, context, sampling, source, endless=self._slow)
        for place, (before, token) in enumerate(walk):
            self._output_tokens += 1
            text = model.texts[token]
            logprobs = None
            if alternatives is not None:
                likely = model.probabilities(before, may_end=bool(place) and not self._slow)
                logprobs = model.logprobs(likely, token, alternatives, offset)
                offset += len(text)
            yield text, logprobs


def _in_turns(works: list[Generation]) -> Generation:
    """Take an event from each work in turn until all have ended."""
    waiting = deque(works)
    while waiting:
        work = waiting.popleft()
        for event in work:
            waiting.append(work)
            yield event
            break


def _mean_logprob(events: list[Event]) -> float:
    """Return the mean log probability of the tokens, or -inf if there are none."""
    values = [
        value or 0.0
        for event in events
        if isinstance(event, Delta) and event.logprobs is not None
        for value in event.logprobs.token_logprobs
    ]
    return sum(values) / len(values) if values else -math.inf
