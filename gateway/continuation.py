"""Going on with a text where an answer broke off: which calls, and by which targets."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from completion import CompletionRequest
from gateway.capabilities import Candidate
from streams.stream import Stream


def continuations(stream: Stream, chosen: list[Candidate]) -> Iterator[Candidate]:
    """The candidates that go on from a text, with what is left to do: those that complete it as it
    stands, which chat models don't."""
    text = "".join(stream.text or ())
    if not text or ends_in_a_stop(text, stream.request):
        return
    for candidate in chosen:
        request, prompt = candidate.request, candidate.request.prompts[0]
        if not candidate.target.legacy or not isinstance(prompt, str):
            continue
        left = request.max_tokens
        if left is not None:
            left -= stream.output_tokens
            if left < 1:
                continue
        yield msgspec.structs.replace(
            candidate,
            request=msgspec.structs.replace(request, prompts=(prompt + text,), max_tokens=left),
        )


def continuable(request: CompletionRequest) -> bool:
    """Whether another call could go on with its text: one choice, as plain text. What a host's own
    parameters would mean for a second call (a grammar, a least length) nobody knows."""
    plain = request.logprobs is None and not request.echo and request.suffix is None
    ours = not (request.extra or request.openai_extra)
    single = request.choices == 1 and isinstance(request.prompts[0], str)
    return request.stream and single and plain and ours


def ends_in_a_stop(text: str, request: CompletionRequest) -> bool:
    """Whether the text ends with the beginning of a stop sequence: what goes on from there can't
    see it as one."""
    return any(text.endswith(stop[:n]) for stop in request.stop or () for n in range(1, len(stop)))
