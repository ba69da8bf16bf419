"""A toy language model: word n-grams with back-off over the reference text in every CPython.

- The model is pure and deterministic: no clock, no lock, and the caller passes the source of
  randomness.
- Tokenizing is lossless: joined tokens give the text again.
- A token is a small number. A context is the last three tokens packed into one integer, the latest
  in the highest bits.
- The index is one sorted array of (context, next token) rows. Rows of a context of three, two or
  one tokens are adjacent and found by bisection. A random one of these rows is a next token with
  the right probability.
"""

from __future__ import annotations

import math
import random
import re
from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from completion import CompletionRequest, Logprobs

UNKNOWN, BREAK, END, FULL_STOP = range(4)
SPECIAL: Final = ("", "\n\n", "<|endoftext|>", ".")
"""The texts of the tokens UNKNOWN, BREAK (a paragraph's end), END (the text's end), FULL_STOP."""
ORDER: Final = 3
"""The number of tokens in a context."""
TRUST: Final = 0.85
"""The weight of the longest known context. The next shorter context has the rest."""

_BITS: Final = 16
_NEXT: Final = (1 << _BITS) - 1
_LATEST: Final = (ORDER - 1) * _BITS
_START: Final = BREAK << _LATEST

_TOKEN = re.compile(
    r"\s*\n\s*"  # line ends and the white space around them
    r"|[^\S\n]*(?:\w+(?:[\u2019'.-]\w+)*(?:\(\))?|[^\w\s])"  # a word, name() or punctuation mark
    r"|\s+"
)
_HEADING = re.compile(r"\n.+\n[*=~-]{4,}\n")
_REMARK = re.compile(r" \([^()]+(?:\(\)[^()]*)*\)")
_SENTENCE_END = re.compile(r"\. (?=[A-Z])")
_PROSE = re.compile(r"[A-Z][\w ,.\u2019()-]*")
_ODD = re.compile(r"\([^)]| \(|  |\d\.\d| (?:-|[b-zB-HJ-Z][ ,]|import )|^(?:See|New|Changed) ")
_FEWEST_SPACES: Final = 4


def tokens(text: str) -> Iterator[str]:
    """Yield the tokens of a text: line ends, and words and marks with their leading white space."""
    return (match.group() for match in _TOKEN.finditer(text))


def follow(context: int, token: int) -> int:
    return token << _LATEST | context >> _BITS


class Model(NamedTuple):
    """An index of the tokens that follow each context."""

    texts: list[str]
    numbers: dict[str, int]
    rows: array[int]
    """Pairs of context and next token, each packed into a 64-bit integer, sorted."""

    def context(self, prompt: Iterable[str]) -> int:
        """Return the context after a prompt's tokens. A line end counts as a paragraph's end."""
        context = _START
        for token in deque(prompt, ORDER):
            number = BREAK if "\n" in token else self.numbers.get(token, UNKNOWN)
            context = follow(context, number)
        return context

    def draw(self, context: int, source: random.Random) -> int:
        """Return a random next token, distributed as `probabilities` says."""
        longest, shorter = self._spans(context)
        low, high = longest if source.random() < TRUST else shorter
        return self.rows[low + int(source.random() * (high - low))] & _NEXT

    def probabilities(self, context: int, *, may_end: bool = True) -> dict[int, float]:
        """Return the probability of each possible next token. The sum is 1.

        Args:
            may_end: False for a completion's first token, because a completion must not be empty,
                and in a text that never ends. END then becomes BREAK.
        """
        result: dict[int, float] = {}
        for (low, high), trust in zip(self._spans(context), (TRUST, 1 - TRUST), strict=True):
            for row in self.rows[low:high]:
                token = row & _NEXT
                result[token] = result.get(token, 0.0) + trust / (high - low)
        if not may_end and END in result:
            result[BREAK] = result.get(BREAK, 0.0) + result.pop(END)
        return result

    def logprobs(
        self, likely: Mapping[int, float], token: int, alternatives: int, offset: int
    ) -> Logprobs:
        """Return the log probabilities of one generated token.

        Args:
            likely: The probability of each token that was possible.
            alternatives: The number of possible tokens to list.
            offset: The token's start in the text of its choice, in characters.
        """
        top: list[dict[str, float] | None] = []
        if alternatives:
            ranked = sorted(likely, key=likely.__getitem__, reverse=True)[:alternatives]
            named = dict.fromkeys([*ranked, token])
            top.append({self.texts[each]: math.log(likely[each]) for each in named})
        return Logprobs([self.texts[token]], [math.log(likely[token])], top or None, [offset])

    def _spans(self, context: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return two spans of rows: of the longest known context, and of the next shorter one.

        A context's latest token always has rows, because of how `build` makes the index.
        """
        pair = self._span(context, 2, 0, len(self.rows))
        if pair[0] == pair[1]:
            single = self._span(context, 1, 0, len(self.rows))
            return single, single
        triple = self._span(context, 3, *pair)
        return (triple if triple[0] < triple[1] else pair), pair

    def _span(self, context: int, order: int, low: int, high: int) -> tuple[int, int]:
        """Return the span of the rows that match the latest `order` tokens of a context."""
        shift = (ORDER + 1 - order) * _BITS
        key = context << _BITS >> shift << shift
        low = bisect_left(self.rows, key, low, high)
        return low, bisect_left(self.rows, key + (1 << shift), low, high)


def build(texts: Iterable[str]) -> Iterator[Model | None]:
    """Build a model from texts. Yield None wherever the caller may pause, and at last the model."""
    numbers = {text: number for number, text in enumerate(SPECIAL)}
    rows = [BREAK]  # after an unknown word comes a new paragraph
    seen: set[str] = set()
    for text in texts:
        for section in _HEADING.split(text):
            context = _START
            for token in _TOKEN.findall("\n\n".join(_paragraphs(section, seen))):
                number = numbers.setdefault(token, len(numbers))
                rows.append(context << _BITS | number)
                context = follow(context, number)
            if context != _START:
                rows.append(context << _BITS | END)
            yield None
    rows.sort()
    yield None
    yield Model(list(numbers), numbers, array("Q", rows))


def _paragraphs(section: str, seen: set[str]) -> Iterator[str]:
    """Yield a section's prose, without code, grammar, lists and paragraphs that are in `seen`."""
    for paragraph in section.split("\n\n"):
        if paragraph in seen or not paragraph.rstrip().endswith("."):
            continue
        seen.add(paragraph)
        line = _REMARK.sub("", " ".join(paragraph.split()).replace("- ", "-"))
        line = line.replace('"', "").replace("*", "")
        kept = ". ".join(filter(_is_prose, _SENTENCE_END.split(line[:-1])))
        if kept:
            yield kept + "."


def _is_prose(sentence: str) -> bool:
    return (
        sentence.count(" ") >= _FEWEST_SPACES
        and _PROSE.fullmatch(sentence) is not None
        and _ODD.search(sentence) is None
    )


class Sampling(NamedTuple):
    """Sampling parameters, with OpenAI's names and defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @classmethod
    def of(cls, request: CompletionRequest) -> Sampling:
        return cls(
            1.0 if request.temperature is None else request.temperature,
            1.0 if request.top_p is None else request.top_p,
            request.presence_penalty or 0.0,
            request.frequency_penalty or 0.0,
        )

    @property
    def penalized(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty)

    @property
    def plain(self) -> bool:
        """Return True if the parameters leave the model's probabilities unchanged."""
        return self.temperature == 1 and self.top_p >= 1 and not self.penalized


def shape(
    probabilities: Mapping[int, float], counts: Mapping[int, int], sampling: Sampling
) -> dict[int, float]:
    """Return the probabilities after penalties, temperature and top_p, applied in this order.

    The result has at least one token, and its sum is 1. At temperature 0 only the likeliest token
    is left; of several equally likely ones, the first.

    Args:
        probabilities: The model's probabilities. Their order decides ties.
        counts: How often each token has been generated in this completion.
        sampling: The sampling parameters.
    """
    if sampling.temperature == 0 and not sampling.penalized:
        return {max(probabilities, key=probabilities.__getitem__): 1.0}
    logits = {
        token: math.log(probability) - _penalty(counts.get(token, 0), sampling)
        for token, probability in probabilities.items()
    }
    best = max(logits, key=logits.__getitem__)
    if sampling.temperature == 0:
        return {best: 1.0}
    weights = {
        token: math.exp((logit - logits[best]) / sampling.temperature)
        for token, logit in logits.items()
    }
    return _nucleus(weights, sampling.top_p)


def _penalty(count: int, sampling: Sampling) -> float:
    return sampling.presence_penalty * (count > 0) + sampling.frequency_penalty * count


def _nucleus(weights: dict[int, float], top_p: float) -> dict[int, float]:
    """Return the likeliest tokens that together reach top_p, scaled to a sum of 1."""
    total = math.fsum(weights.values())
    if top_p < 1:
        kept: dict[int, float] = {}
        wanted, reached = top_p * total, 0.0
        for token in sorted(weights, key=weights.__getitem__, reverse=True):
            kept[token] = weights[token]
            reached += weights[token]
            if reached >= wanted:
                break
        weights, total = kept, math.fsum(kept.values())
    return {token: weight / total for token, weight in weights.items()}


def walk(
    model: Model,
    context: int,
    sampling: Sampling,
    source: random.Random,
    *,
    endless: bool = False,
) -> Iterator[tuple[int, int]]:
    """Yield pairs of a context and its next token until the text ends.

    The text also ends when it returns to the context of an earlier full stop and had only one
    possible token at each step since then: it would repeat forever.

    Args:
        endless: True to start a new paragraph where the text would end, and to repeat forever what
            repeats itself.
    """
    counts: Counter[int] = Counter()
    certain: set[int] = set()
    while True:
        if sampling.plain:
            token = model.draw(context, source)
        else:
            now = model.probabilities(context, may_end=bool(counts) and not endless)
            weights = shape(now, counts, sampling)
            (token,) = source.choices(tuple(weights), tuple(weights.values()))
            if len(weights) > 1 or sampling.penalized:
                certain.clear()
            elif not endless and context >> _LATEST == FULL_STOP and context in certain:
                return
            certain.add(context)
        if token == END:
            if counts and not endless:
                return
            token = BREAK
        yield context, token
        counts[token] += 1
        context = follow(context, token)
