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
    has_output,
    utf8_size,
)
from errors import UpstreamError
from providers.decoding import lenient_json
from providers.decoding.added_fields import append_added, decode_object, objects, unknown
from providers.decoding.error_bodies import broken_off, choices_missing
from providers.decoding.finish_reasons import GEMINI_FAILURES, GEMINI_FILTERS, meaning_of
from providers.decoding.logprobs import LogprobsReader
from providers.decoding.surrogates import SplitPairs
from providers.decoding.usage import believable, usage, word
from providers.google.errors import reported
from providers.google.schemas import (
    CANDIDATE_FIELDS,
    CHUNK,
    CHUNK_FIELDS,
    Candidate,
    Chunk,
    LogprobsResult,
    Token,
    Tokens,
)

REASONS: Final[dict[str, FinishReason]] = {
    "MAX_TOKENS": "length",
    **dict.fromkeys(GEMINI_FILTERS, "content_filter"),
}
"""The finish reason for each of Gemini's values of finishReason. Hosts that relay other models in
this format have words of their own; see finish_reasons.py."""

FAILURES: Final = frozenset(GEMINI_FAILURES)
"""The values of finishReason that report a failure."""

NOT_YET: Final = frozenset(("", "FINISH_REASON_UNSPECIFIED"))
NOT_BLOCKED: Final = frozenset(("", "BLOCK_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED"))


class GoogleResponse:
    """The state of one response while it is decoded."""

    __slots__ = (
        *("adds", "blocked", "choices", "empty", "held", "logprobs", "pairs"),
        *("readers", "reasons", "started", "texts", "thought"),
    )

    def __init__(self, request: CompletionRequest) -> None:
        self.choices = request.choices
        self.adds = request.passes_on
        """True if fields that Sluice doesn't know are passed on."""
        self.empty = request.max_tokens == 0
        """True if no text was asked for, so that its absence is no failure."""
        self.logprobs = request.logprobs
        self.readers: dict[int, LogprobsReader] = {}
        self.pairs = SplitPairs()
        self.started = False
        self.blocked = False
        self.thought = False
        """True if there is reasoning."""
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
        chunk = lenient_json.decode(data, CHUNK, self.pairs)
        if self.adds and not chunk.error:
            append_fields(decode_object(data), self.choices, batch)
        self.take(chunk, batch)

    def take(self, chunk: Chunk, batch: Batch) -> None:
        """Append the events of a chunk. Raises UpstreamError if it has an error or a failure."""
        before = len(batch)
        found = chunk.usage_metadata and usage_of(chunk.usage_metadata)
        failed = chunk.error and reported({"error": chunk.error})
        if not self.started and not failed and (chunk.candidates or chunk.prompt_feedback or found):
            self.started = True
            given = found.input_tokens if found else 0
            batch.append(Started(chunk.model_version or None, given or None))
        for candidate in chunk.candidates or ():
            try:
                self.candidate(candidate, batch, finishes=not failed)
            except UpstreamError as error:
                failed = failed or error
        feedback = chunk.prompt_feedback
        if feedback and (feedback.block_reason or "") not in NOT_BLOCKED:
            if not (self.blocked or self.texts):
                batch.extend(Finished(index, "content_filter") for index in range(self.choices))
            self.blocked = True
        if found and chunk.usage_metadata:
            final = bool(chunk.usage_metadata.candidates_token_count)
            with_text = bool(self.reasons) and has_output(batch[before:])
            self.count(found, final, batch, with_text=with_text)
        if failed:
            if self.held is not None:
                batch.append(Used(self.held))
            raise failed

    def candidate(self, candidate: Candidate, batch: Batch, *, finishes: bool) -> None:
        """Append a candidate's events.

        Candidates beyond the requested number are ignored. They can come from a candidateCount
        in `extra`.

        Args:
            finishes: False if the chunk has an error, so that a finishReason counts for nothing.

        Raises:
            UpstreamError: The candidate has failed. Its text has been appended.
        """
        index = candidate.index
        if not 0 <= index < self.choices:
            return
        parts = (candidate.content and candidate.content.parts) or ()
        text = "".join([part.text for part in parts if part.text and not part.thought])
        if thoughts := "".join([part.text for part in parts if part.text and part.thought]):
            self.thought = True
            batch.append(Thought(utf8_size(thoughts)))
        if self.pairs.possible:
            text = self.pairs.join(index, text)
        result = candidate.logprobs_result
        logprobs = self.read_logprobs(index, result) if result else None
        if text or logprobs:
            self.texts[index] = True
            batch.append(Delta(index, text, logprobs))
        elif finishes:
            self.texts.setdefault(index, False)
        if candidate.error:
            raise reported({"error": candidate.error})
        word = candidate.finish_reason
        if word and finishes:
            reason = meaning_of(word, REASONS, FAILURES)
            if reason is not None:
                self.reasons[index] = reason
                with_text = bool(text or logprobs or thoughts)
                batch.append(Finished(index, reason, with_text))

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

    def count(self, usage: Usage, final: bool, batch: Batch, *, with_text: bool) -> None:
        """Append the usage, unless text has arrived but output tokens are missing (not `final`)."""
        self.held = usage
        if final or not any(self.texts.values()):
            self.append_usage(batch, with_text=with_text)

    def append_usage(self, batch: Batch, *, with_text: bool = False) -> None:
        if self.held is not None:
            generated = self.thought or any(self.texts.values())
            batch.append(Used(believable(self.held, text=generated), with_text))
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
            self.refuse_broken_off(whole=whole)
        self.append_usage(batch)
        if not blocked:
            self.refuse_incomplete()
        self.pairs.flush(batch)
        batch.extend(
            Finished(index, "length" if self.empty else "stop")
            for index in sorted(self.texts)
            if index not in self.reasons
        )

    def refuse_broken_off(self, *, whole: bool) -> None:
        if not whole and len(self.reasons) < self.choices:
            raise broken_off()

    def refuse_incomplete(self) -> None:
        if len(self.texts) < self.choices:
            raise choices_missing(len(self.texts), 1, self.choices)
        if not self.reasons and not (self.empty or any(self.texts.values())):
            raise UpstreamError("The upstream sent no text and no finish reason.")


def append_fields(chunk: dict[str, Any], choices: int, batch: Batch) -> None:
    """Append the fields of a chunk and of its candidates that Sluice doesn't know."""
    append_added(unknown(chunk, CHUNK_FIELDS), batch)
    for candidate in objects(chunk.get("candidates")):
        index = candidate.get("index", 0)
        if type(index) is int and 0 <= index < choices:
            append_added(unknown(candidate, CANDIDATE_FIELDS), batch, index, top=False)


def usage_of(tokens: Tokens) -> Usage | None:
    """Return the usage, or None if all counts are zero or missing."""
    given = (tokens.prompt_token_count or 0) + (tokens.tool_use_prompt_token_count or 0)
    thoughts = tokens.thoughts_token_count or 0
    made = (tokens.candidates_token_count or 0) + thoughts
    read, tier = tokens.cached_content_token_count or 0, word(tokens.service_tier)
    return usage(given, made, read=read, reasoning=thoughts, tier=tier)


def _entry(token: Token) -> dict[str, Any]:
    """Convert a token to OpenAI's chat shape."""
    return {"token": token.token, "logprob": token.log_probability}
