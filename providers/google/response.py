"""Decoding of responses from the Gemini API into events.

- The module is pure.
- A chunk of a stream and a whole JSON body have one schema, so both take one code path.
- Some hosts put a finishReason on every chunk. Text after it still counts, and so does the last
  finishReason.
- Usage may come with every chunk. The last one counts. It is reported after the chunk's text, which
  it includes. Usage that lacks output tokens although text has arrived is held until the end,
  because it would make a stopped stream look free.
- Thoughts are not text.

Source: Gemini API reference, GenerateContentResponse, and the types of Google's own SDK (read
2026-11).
"""

from __future__ import annotations

from typing import Any, Final

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    Finished,
    FinishReason,
    Logprobs,
    Started,
    Thought,
    Usage,
    Used,
    utf8_size,
)
from errors import UpstreamError
from providers.decoding import lenient_json
from providers.decoding.error_bodies import broken_off
from providers.decoding.logprobs import LogprobsReader
from providers.google.errors import reported
from providers.google.schemas import CHUNK, Candidate, Chunk, LogprobsResult, Token, Tokens

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
"""The finish reason for each finishReason. Any other value, STOP or a new one, becomes "stop"."""

FAILURES: Final = frozenset(
    (
        *("OTHER", "IMAGE_OTHER", "NO_IMAGE", "MALFORMED_RESPONSE", "MISSING_THOUGHT_SIGNATURE"),
        *("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"),
    )
)
"""The values of finishReason that report a failure: the output is not the requested text, and no
filter removed it."""

NOT_YET: Final = frozenset(("", "FINISH_REASON_UNSPECIFIED"))
NOT_BLOCKED: Final = frozenset(("", "BLOCK_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED"))


class GoogleResponse:
    """The state of one response while it is decoded."""

    __slots__ = (
        *("blocked", "choices", "held", "logprobs", "readers", "reasons", "started", "texts"),
        "thought",
    )

    def __init__(self, request: CompletionRequest) -> None:
        self.choices = request.choices
        self.logprobs = request.logprobs
        self.readers: dict[int, LogprobsReader] = {}
        self.started = False
        self.blocked = False
        self.thought = False
        self.texts: dict[int, bool] = {}
        """The indexes of the candidates that have started. The value is True if there is text."""
        self.reasons: dict[int, FinishReason] = {}
        self.held: Usage | None = None
        """Usage that hasn't been reported yet."""

    def read(self, data: bytes, batch: Batch) -> None:
        """Decode a chunk, or a whole JSON body, and append its events.

        Raises:
            UpstreamError: The data reports an error or a failure, or isn't a JSON object.
        """
        self.take(lenient_json.decode(data, CHUNK), batch)

    def take(self, chunk: Chunk, batch: Batch) -> None:
        """Append the events of a chunk. Raises UpstreamError if it has an error or a failure."""
        if chunk.error:
            raise reported({"error": chunk.error})
        usage = chunk.usage_metadata and usage_of(chunk.usage_metadata)
        if not self.started and (chunk.candidates or chunk.prompt_feedback or usage):
            self.started = True
            batch.append(
                Started(chunk.model_version or None, usage.input_tokens if usage else None)
            )
        reasons = [self.candidate(each, batch) for each in chunk.candidates or ()]
        feedback = chunk.prompt_feedback
        if feedback and (feedback.block_reason or "") not in NOT_BLOCKED:
            if not (self.blocked or self.texts):
                batch.extend(Finished(index, "content_filter") for index in range(self.choices))
            self.blocked = True
        if usage and chunk.usage_metadata:
            self.count(usage, chunk.usage_metadata.candidates_token_count is not None, batch)
        if failures := FAILURES.intersection(reasons):
            self.append_usage(batch)
            raise UpstreamError(
                "The upstream reported a failed completion.", upstream_code=min(failures)
            )

    def candidate(self, candidate: Candidate, batch: Batch) -> str:
        """Append a candidate's events. Return its finishReason, or "" if it hasn't finished.

        Candidates beyond the requested number are ignored. They can come from a candidateCount
        in `extra`.
        """
        index = candidate.index
        if not 0 <= index < self.choices:
            return ""
        parts = (candidate.content and candidate.content.parts) or ()
        text = "".join([part.text for part in parts if part.text and not part.thought])
        thoughts = "".join([part.text for part in parts if part.text and part.thought])
        if thoughts:
            self.thought = True
            batch.append(Thought(utf8_size(thoughts)))
        result = candidate.logprobs_result
        logprobs = self.read_logprobs(index, result) if result else None
        if text or logprobs:
            self.texts[index] = True
            batch.append(Delta(index, text, logprobs))
        else:
            self.texts.setdefault(index, False)
        word = candidate.finish_reason or ""
        if word not in NOT_YET and word not in FAILURES:
            reason = self.reasons[index] = REASONS.get(word, "stop")
            batch.append(Finished(index, reason))
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
        """Append the usage, unless output has arrived that it lacks (then it isn't `final`)."""
        self.held = usage
        counted = usage.output_tokens or not self.thought
        if final or (counted and not any(self.texts.values())):
            self.append_usage(batch)

    def append_usage(self, batch: Batch) -> None:
        if self.held is not None:
            batch.append(Used(self.held))
            self.held = None

    def finish_all(self, batch: Batch, *, whole: bool) -> None:
        """Append the final events after the end of the body.

        Args:
            whole: True for a JSON body. It can't have been cut off, so a candidate without a
                finishReason counts as finished.

        Raises:
            UpstreamError: The response is incomplete.
        """
        blocked = self.blocked and not self.texts
        if not blocked:
            self.refuse_incomplete(whole=whole)
        self.append_usage(batch)
        batch.extend(
            Finished(index, "stop") for index in sorted(self.texts) if index not in self.reasons
        )

    def refuse_incomplete(self, *, whole: bool) -> None:
        if not whole and len(self.reasons) < self.choices:
            raise broken_off()
        if len(self.texts) < self.choices:
            raise UpstreamError(
                f"The upstream sent {len(self.texts)} of the {self.choices} requested choices."
            )
        if not self.reasons and not any(self.texts.values()):
            raise UpstreamError("The upstream sent no text and no finish reason.")


def usage_of(tokens: Tokens) -> Usage | None:
    """Return the usage, or None if all counts are zero or missing."""
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
    """Convert a token to OpenAI's chat shape."""
    return {"token": token.token, "logprob": token.log_probability}
