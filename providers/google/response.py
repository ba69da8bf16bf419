"""What the Gemini API answers, turned into events.

Rules that hold here: pure; a chunk of a stream and a whole answer are the same object, so both take
one path. A candidate's end is told when the body is at its own: some hosts put a finishReason on
every chunk, and text that follows one is text all the same; the last one counts. Usage may come
with every chunk; the last counts, and comes after the chunk's text, which it includes. One that
doesn't tell the output yet, although text came, is held until the end: it would make a stopped
stream look free. Thoughts are not text.

Source: Gemini API reference, GenerateContentResponse, and the types of Google's own SDK (read
2026-11).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    Finished,
    FinishReason,
    Logprobs,
    Started,
    Usage,
    Used,
)
from errors import UpstreamError
from providers.decoding import lenient_json
from providers.decoding.lenient_json import Count
from providers.decoding.logprobs import LogprobsReader
from providers.google.errors import reported

REASONS: Final[dict[str, FinishReason]] = {
    "MAX_TOKENS": "length",
    **dict.fromkeys(
        (
            *("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
            *("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR"),
        ),
        "content_filter",
    ),
}
"""A finishReason; any other, STOP or a new one, means that the model came to an end by itself."""

FAILURES: Final = frozenset(
    (
        *("OTHER", "IMAGE_OTHER", "NO_IMAGE", "MALFORMED_RESPONSE", "MISSING_THOUGHT_SIGNATURE"),
        *("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"),
    )
)
"""Ends that were none: what came is not what was asked for, and nobody filtered it."""

NOT_YET: Final = frozenset(("", "FINISH_REASON_UNSPECIFIED"))
NOT_BLOCKED: Final = frozenset(("", "BLOCK_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED"))


class Part(msgspec.Struct):
    text: str | None = None
    thought: bool | None = None


class Content(msgspec.Struct):
    parts: list[Part] | None = None


class Token(msgspec.Struct, rename="camel"):
    token: str | None = None
    log_probability: float | None = None


class Top(msgspec.Struct):
    candidates: list[Token] | None = None


class LogprobsResult(msgspec.Struct, rename="camel"):
    """Two lists with an entry a token."""

    chosen_candidates: list[Token] | None = None
    top_candidates: list[Top] | None = None


class Candidate(msgspec.Struct, rename="camel"):
    index: int = 0
    content: Content | None = None
    finish_reason: str | None = None
    logprobs_result: LogprobsResult | None = None


class Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class Tokens(msgspec.Struct, rename="camel"):
    """`usageMetadata`. The prompt includes what was cached; candidates don't include thoughts."""

    prompt_token_count: Count | None = None
    tool_use_prompt_token_count: Count | None = None
    cached_content_token_count: Count | None = None
    candidates_token_count: Count | None = None
    thoughts_token_count: Count | None = None


class Chunk(msgspec.Struct, rename="camel"):
    """GenerateContentResponse."""

    candidates: list[Candidate] | None = None
    prompt_feedback: Feedback | None = None
    usage_metadata: Tokens | None = None
    model_version: str | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(Chunk)


class Answer:
    """One answer, as far as it has come."""

    __slots__ = ("blocked", "choices", "held", "logprobs", "readers", "reasons", "started", "texts")

    def __init__(self, request: CompletionRequest) -> None:
        self.choices = request.choices
        self.logprobs = request.logprobs
        self.readers: dict[int, LogprobsReader] = {}
        self.started = False
        self.blocked = False
        self.texts: dict[int, bool] = {}
        """The candidates that began, and whether text of theirs came."""
        self.reasons: dict[int, FinishReason] = {}
        self.held: Usage | None = None

    def read(self, data: bytes, batch: Batch) -> None:
        """Decode a chunk, or a whole body, and append its events.

        Raises UpstreamError for an error that it holds, an end that was none, and what is not a
        JSON object.
        """
        self.take(lenient_json.decode(data, _decoder), batch)

    def take(self, chunk: Chunk, batch: Batch) -> None:
        if chunk.error:
            raise reported({"error": chunk.error})
        usage = chunk.usage_metadata and usage_of(chunk.usage_metadata)
        if not self.started and (chunk.candidates or chunk.prompt_feedback or usage):
            self.started = True
            batch.append(
                Started(chunk.model_version or None, usage.input_tokens if usage else None)
            )
        words = [self.candidate(each, batch) for each in chunk.candidates or ()]
        feedback = chunk.prompt_feedback
        if feedback and (feedback.block_reason or "") not in NOT_BLOCKED:
            self.blocked = True
        if usage and chunk.usage_metadata:
            self.count(usage, chunk.usage_metadata.candidates_token_count is not None, batch)
        if failures := FAILURES.intersection(words):
            self.tell_usage(batch)
            raise UpstreamError("The upstream gave up in the middle.", upstream_code=min(failures))

    def candidate(self, candidate: Candidate, batch: Batch) -> str:
        """Append the events of one, and return its finishReason ("": not yet). One that wasn't
        asked for (the caller's own candidateCount) is left out."""
        index = candidate.index
        if not 0 <= index < self.choices:
            return ""
        parts = (candidate.content and candidate.content.parts) or ()
        text = "".join([part.text for part in parts if part.text and not part.thought])
        result = candidate.logprobs_result
        logprobs = self.read_logprobs(index, result) if result else None
        if text or logprobs:
            self.texts[index] = True
            batch.append(Delta(index, text, logprobs))
        else:
            self.texts.setdefault(index, False)
        word = candidate.finish_reason or ""
        if word not in NOT_YET:
            self.reasons[index] = REASONS.get(word, "stop")
        return word

    def read_logprobs(self, index: int, result: LogprobsResult) -> Logprobs | None:
        if self.logprobs is None:
            return None
        reader = self.readers.get(index)
        if reader is None:
            reader = self.readers[index] = LogprobsReader(self.logprobs)
        top = [entry.candidates or [] for entry in result.top_candidates or ()]
        chosen = result.chosen_candidates or []
        top += [[]] * (len(chosen) - len(top))
        entries = [
            {**_entry(token), "top_logprobs": [_entry(other) for other in others]}
            for token, others in zip(chosen, top, strict=False)
        ]
        return reader.read({"content": entries})

    def count(self, usage: Usage, final: bool, batch: Batch) -> None:
        """Tell the usage, unless it lacks the output of text that came."""
        self.held = usage
        if final or not any(self.texts.values()):
            self.tell_usage(batch)

    def tell_usage(self, batch: Batch) -> None:
        if self.held is not None:
            batch.append(Used(self.held))
            self.held = None

    def end(self, batch: Batch, *, whole: bool) -> None:
        """The body is at its end. whole: it was one JSON body, which can't have been cut off, so
        that a candidate without a finishReason is finished.

        Raises UpstreamError where that can't be all.
        """
        blocked = self.blocked and not self.texts
        if not blocked:
            self.refuse_less(whole=whole)
        self.tell_usage(batch)
        if blocked:
            batch.extend(Finished(index, "content_filter") for index in range(self.choices))
        batch.extend(
            Finished(index, self.reasons.get(index, "stop")) for index in sorted(self.texts)
        )

    def refuse_less(self, *, whole: bool) -> None:
        if not whole and len(self.reasons) < self.choices:
            raise UpstreamError("The upstream's answer ended before its end.")
        if len(self.texts) < self.choices:
            raise UpstreamError(
                f"The upstream gave {len(self.texts)} of the {self.choices} choices asked for."
            )
        if not self.reasons and not any(self.texts.values()):
            raise UpstreamError("The upstream ended its answer without a word.")


def usage_of(tokens: Tokens) -> Usage | None:
    """None where it tells nothing."""
    given = (tokens.prompt_token_count or 0) + (tokens.tool_use_prompt_token_count or 0)
    thoughts = tokens.thoughts_token_count or 0
    made = (tokens.candidates_token_count or 0) + thoughts
    if not given and not made:
        return None
    return Usage(
        input_tokens=given,
        output_tokens=made,
        cache_read_tokens=tokens.cached_content_token_count or 0,
        reasoning_tokens=thoughts,
    )


def _entry(token: Token) -> dict[str, Any]:
    """A token as OpenAI's chat shape has it."""
    return {"token": token.token, "logprob": token.log_probability}
