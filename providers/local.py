"""The embedded provider: a toy model that makes a fresh checkout answer. No network, key, download.

Rules that hold here: the clock decides when to work, never what is written. All work is one
generator that passes often; `events` runs it in slices of 2 ms, one generator at a time, with the
lock held for a slice only, never across a pause or a yield. A first slice waits for nobody, so a
short answer comes at once; later ones are booked one after the other with a pause between any
two, so that gevent's loop sees the network between them. (A pause of 0 s would starve it; if each
answer took its own pause, the slices would fall together.) The index is built in slices as well.
"""

from __future__ import annotations

import math
import random
import sys
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
    Logprobs,
    Started,
    Usage,
    Used,
    join_logprobs,
)
from errors import ModelNotFound, UnsupportedParameter
from providers import ngram
from providers.base import Target

MODELS: Final = ("pydoc",)
UNSUPPORTED: Final = frozenset(
    {"suffix", "token_ids", "logit_bias", "echo_logprobs", "extra", "openai_extra"}
)
"""echo_logprobs: the model gives a word that it never saw no probability at all."""
MOST_TOKENS: Final = 4096
SLICE_S: Final = 0.002
PAUSE_S: Final = 0.0005

Piece: TypeAlias = tuple[str, Logprobs | None]
Work: TypeAlias = Iterator[Event | None]
"""Events in order; None: nothing yet, but a moment to look at the clock."""


class _Shared:
    """The one model of the process. Only touched by who holds the turn."""

    def __init__(self) -> None:
        self._model: ngram.Model | None = None
        self._build = _build()

    def get(self) -> Generator[None, None, ngram.Model]:
        """The model; yields while there is work to do on it."""
        while self._model is None:
            try:
                self._model = next(self._build)
            except BaseException:
                self._build = _build()  # a broken generator can't go on: the next one starts anew
                raise
            yield
        return self._model


class _Turns:
    """Who works when, in monotonic time. Its methods are for who holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._free = 0.0
        self._rested = 0.0

    def too_soon(self) -> bool:
        """Whether somebody has just worked: slices fall together when the machine is held up."""
        return time.monotonic() < self._rested

    def book(self, *, worked: bool) -> float:
        """When the caller may work (again): after everybody who asked before, and a pause."""
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


def unsupported(target: Target) -> frozenset[str]:
    """What it can't be asked; see base.Dialect."""
    return UNSUPPORTED.union(target.provider.cannot)


class LocalAttempt:
    """An Attempt (see base): one call of the embedded model."""

    def __init__(self, request: CompletionRequest, target: Target) -> None:
        self._request = request
        self._target = target
        self._aborted = threading.Event()
        self._input_tokens = 0
        self._output_tokens = 0

    def abort(self) -> None:
        """End it, from any thread; within a slice."""
        self._aborted.set()

    def wind_up(self) -> None:
        """Nothing is left to begin."""

    def close(self) -> None:
        """Nothing is held."""

    def events(self) -> Iterator[Batch]:
        """Generate. Each batch ends with the usage so far: the tokens of the prompts, and all that
        were generated, also what a stop string cuts off or best_of leaves out.

        Raises ModelNotFound, and UnsupportedParameter for prompts of token ids.
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
            if not ended:  # like a sleep, but an abort ends it
                self._aborted.wait(max(PAUSE_S, start - time.monotonic()))

    def _prompts(self) -> list[str]:
        if self._target.model not in MODELS:
            asked = self._target.name[:100]
            raise ModelNotFound(f"Model {asked!r} was not found. Ask local/pydoc.", param="model")
        prompts = [prompt for prompt in self._request.prompts if isinstance(prompt, str)]
        if len(prompts) < len(self._request.prompts):
            raise UnsupportedParameter("Token ids can't be had here.", param="prompt")
        return prompts

    def _work(self, prompts: list[str]) -> Work:
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

    def _answer(self, model: ngram.Model, prompt: str, context: int, number: int) -> Work:
        """All choices of one prompt."""
        n, best_of = self._request.n or 1, self._request.best_of
        tries = best_of or n
        indexes = range(number * tries, (number + 1) * tries)
        choices = [self._choice(model, prompt, context, index) for index in indexes]
        best = range(number * n, (number + 1) * n)
        yield from chain(*choices) if best_of is None else self._best(choices, best)

    def _best(self, choices: list[Work], indexes: range) -> Work:
        """Of all choices those with the highest mean log probability, under these indexes."""
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

    def _choice(self, model: ngram.Model, prompt: str, context: int, index: int) -> Work:
        request = self._request
        limit = MOST_TOKENS if request.max_tokens is None else min(request.max_tokens, MOST_TOKENS)
        before, offset = self._output_tokens, 0
        if request.echo and prompt:
            yield Delta(index, prompt)
            offset = len(prompt)
        pieces = islice(self._pieces(model, context, index, offset), limit)
        stopped = yield from _deltas(index, pieces, tuple(filter(None, request.stop)))
        ended = stopped or self._output_tokens - before < limit
        yield Finished(index, "stop" if ended else "length")

    def _pieces(self, model: ngram.Model, context: int, index: int, offset: int) -> Iterator[Piece]:
        """One token after another, with what the request and best_of want to know of it."""
        request = self._request
        alternatives = request.logprobs
        if alternatives is None and request.best_of is not None:
            alternatives = 0
        # Its own randomness, the same everywhere: a seed that is text doesn't go through hash().
        seed = None if request.seed is None else f"{request.seed}/{index}"
        source = random.Random(seed)  # noqa: S311 - it keeps no secret
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


def _advance(work: Work, batch: Batch) -> bool:
    """Work for a slice; whether that was the end."""
    until = time.monotonic() + SLICE_S
    for event in work:
        if event is not None:
            batch.append(event)
        if time.monotonic() >= until:
            return False
    return True


def _mean_logprob(events: list[Event]) -> float:
    """Per token that was sent; the lowest there is for none."""
    values = [
        value or 0.0
        for event in events
        if isinstance(event, Delta) and event.logprobs is not None
        for value in event.logprobs.token_logprobs
    ]
    return sum(values) / len(values) if values else -math.inf


def _deltas(
    index: int, pieces: Iterator[Piece], stops: tuple[str, ...]
) -> Generator[Delta | None, None, bool]:
    """The pieces as deltas, up to the first stop string; whether there was one.

    Tokens with text that could be the beginning of a stop string are held back.
    """
    held: list[Piece] = []
    for piece in pieces:
        if not stops:
            yield Delta(index, *piece)
            continue
        held.append(piece)
        sendable, found = cut("".join(text for text, _ in held), stops)
        yield _release(index, held, sendable, part=found)
        if found:
            return True
    yield _release(index, held, sys.maxsize, part=False)
    return False


def cut(text: str, stops: tuple[str, ...]) -> tuple[int, bool]:
    """How many characters of a text can be sent, and whether a stop string follows them.

    If none does, what follows could become one.
    """
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        return min(found), True
    for at in range(len(text)):
        rest = text[at:]
        if any(stop.startswith(rest) for stop in stops):
            return at, False
    return len(text), False


def _release(index: int, held: list[Piece], length: int, *, part: bool) -> Delta | None:
    """Take the pieces that fit into a length; with `part` also as much of the next as fits."""
    texts: list[str] = []
    known: list[Logprobs] = []
    while held and length > 0 and (part or len(held[0][0]) <= length):
        text, logprobs = held.pop(0)
        texts.append(text[:length])
        length -= len(text)
        if logprobs is not None:
            known.append(logprobs)
    logprobs = join_logprobs(known) if known else None
    return Delta(index, "".join(texts), logprobs) if texts else None
