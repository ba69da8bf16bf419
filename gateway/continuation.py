"""The continuation of interrupted streams: the calls and the targets that allow it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from completion import CompletionRequest
from gateway.capabilities import Candidate
from streams.stream import Stream


def continuations(stream: Stream, chosen: list[Candidate]) -> Iterator[Candidate]:
    """Yield the candidates that can continue the stream's text, with the rest of the request.

    Chat models are left out: they would reply to their own text instead of continuing it.
    """
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
    """Return True if another attempt could continue the answer to this request.

    The answer must be a stream of one choice of plain text. Requests with host-specific parameters
    are excluded, because nobody knows how, say, a grammar or a minimum length would affect a second
    attempt.
    """
    plain = request.logprobs is None and not request.echo and request.suffix is None
    standard = not (request.extra or request.openai_extra or request.chat)
    single = request.choices == 1 and isinstance(request.prompts[0], str)
    return request.stream and single and plain and standard


def ends_in_a_stop(text: str, request: CompletionRequest) -> bool:
    """Return True if the text ends with the first part of a stop sequence.

    A continuation generates only the rest, so its provider would not recognize the sequence.
    """
    return any(text.endswith(stop[:n]) for stop in request.stop or () for n in range(1, len(stop)))
