"""Decoding of responses from OpenAI-compatible hosts into events.

- The module is pure.
- Streams and JSON bodies of both endpoints take one code path, so that they can't drift apart. The
  text of a choice is read from its `text`, `delta` or `message`, whichever it has.

Source: OpenAI API reference, "Completions" and "Chat", with their streaming objects; the xAI and
DeepSeek references for usage (read 2026-11).
"""

from __future__ import annotations

from typing import Final

import msgspec

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
from providers.decoding.error_bodies import broken_off, decode_error, reported
from providers.decoding.lenient_json import NOT_JSON
from providers.decoding.logprobs import LogprobsReader
from providers.openai.schemas import Choice, Chunk, Details, Message, Tokens, decode

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_length"), "length"),
    **dict.fromkeys(
        ("content_filter", "content-filter", "safety", "recitation", "sensitive", "blocklist"),
        "content_filter",
    ),
}
"""The finish reason for each finish_reason, in lower case. Any other value, known (stop, eos,
end_turn, stop_sequence, tool_calls, ...) or new, becomes "stop"."""

FAILURES: Final = frozenset({"error", "abort", "insufficient_system_resource"})
"""The values of finish_reason that report a failure: "error" comes from OpenRouter and Mistral,
"abort" from vLLM, and the third from DeepSeek."""

NOT_YET: Final = frozenset({"", "null"})
"""The values of finish_reason that some hosts send before a choice has finished."""


class OpenAIResponse:
    """The state of one response while it is decoded."""

    __slots__ = ("choices", "finished", "held", "logprobs", "readers", "started", "texts")

    def __init__(self, request: CompletionRequest) -> None:
        self.choices = request.choices
        self.logprobs = request.logprobs
        self.readers: dict[int, LogprobsReader] = {}
        self.started = False
        self.texts: dict[int, bool] = {}
        """The indexes of the choices that have started. The value is True if there is text."""
        self.finished: set[int] = set()
        self.held: Usage | None = None
        """Usage that hasn't been reported yet."""

    def read(self, data: bytes, batch: Batch) -> None:
        """Decode a chunk, or a whole JSON body, and append its events.

        Raises:
            UpstreamError: The data reports an error or a failure, or isn't a valid JSON object.
        """
        self.take(decode(data), data, batch)

    def take(self, chunk: Chunk, data: bytes, batch: Batch) -> None:
        """Append the events of a chunk that was decoded from `data`. Raises as `read` does."""
        if chunk.error:
            raise reported({"error": chunk.error})
        if chunk.choices is None and chunk.usage is None:
            refuse_bare_error(data)
        if not self.started and (chunk.choices or chunk.model or chunk.usage):
            # This skips Azure's first chunk, which has a content filter's verdict but no model.
            self.started = True
            batch.append(Started(chunk.model or None))
        if chunk.choices:
            # If one choice was requested, ignore any further choices that the host sends.
            for choice in chunk.choices if self.choices > 1 else chunk.choices[:1]:
                self.read_choice(choice, batch)
        tokens = chunk.usage or (chunk.x_groq and chunk.x_groq.usage)
        if tokens and (usage := usage_of(tokens)):
            self.held = usage
            # Next to one of several choices, vLLM's usage may count only that choice: hold it.
            if self.choices == 1 or not chunk.choices:
                self.append_usage(batch)

    def take_all(self, chunks: list[Chunk], data: list[bytes], batch: Batch) -> None:
        """Append the events of several chunks, with a fast path for chunks that hold only text."""
        for chunk, source in zip(chunks, data, strict=True):
            if chunk.choices and self.choices == 1 and self.started and not self.finished:
                choice = chunk.choices[0]
                delta = choice.delta or choice
                more = choice.finish_reason or choice.logprobs or choice.error
                more = more or delta.reasoning_content or delta.reasoning
                text = choice.text or (choice.delta.content if choice.delta else None)
                if text and not (more or chunk.usage or chunk.error or chunk.x_groq):
                    self.texts[0] = True
                    batch.append(Delta(0, text))
                    continue
            self.take(chunk, source, batch)

    def append_usage(self, batch: Batch) -> None:
        if self.held is not None:
            batch.append(Used(self.held))
            self.held = None

    def read_choice(self, choice: Choice, batch: Batch) -> None:
        # Some hosts count tokens in `index`: ignore it if one choice was requested.
        index = choice.index if self.choices > 1 else 0
        if index in self.finished:
            return
        if not 0 <= index < self.choices:
            raise UpstreamError(
                f"The upstream sent choice index {index} for {self.choices} requested choices."
            )
        if choice.error:
            raise reported({"error": choice.error})
        message = choice.delta or choice.message
        text = choice.text or (message.content if message else None) or ""
        if thought := thought_of(choice) or (message and thought_of(message)):
            batch.append(Thought(utf8_size(thought)))
        logprobs = self.read_logprobs(index, choice.logprobs) if choice.logprobs else None
        if text or logprobs:
            self.texts[index] = True
            batch.append(Delta(index, text, logprobs))
        elif index not in self.texts:
            self.texts[index] = False
        if choice.finish_reason:
            self.finish(index, choice.finish_reason, batch)

    def read_logprobs(self, index: int, raw: object) -> Logprobs | None:
        if self.logprobs is None:
            return None
        reader = self.readers.get(index)
        if reader is None:
            reader = self.readers[index] = LogprobsReader(self.logprobs)
        return reader.read(raw)

    def finish(self, index: int, word: str, batch: Batch) -> None:
        word = word.lower()
        if word in NOT_YET:
            return
        if word in FAILURES:
            raise UpstreamError("The upstream reported a failed completion.", upstream_code=word)
        self.finished.add(index)
        batch.append(Finished(index, REASONS.get(word, "stop")))

    def finish_all(self, batch: Batch) -> None:
        """Finish the completion at [DONE], or at the end of a JSON body.

        A choice without a finish_reason counts as finished, because some hosts never send one.

        Raises:
            UpstreamError: There is neither text nor a finish_reason, or a choice is missing. The
                row of a host that ignores `n` should list `n` in `cannot`.
        """
        if not self.finished and not any(self.texts.values()):
            raise UpstreamError("The upstream sent no text and no finish reason.")
        if len(self.texts) < self.choices:
            raise UpstreamError(
                f"The upstream sent {len(self.texts)} of the {self.choices} requested choices."
            )
        self.append_usage(batch)
        batch.extend(
            Finished(index, "stop") for index in sorted(self.texts) if index not in self.finished
        )

    def break_off(self, batch: Batch) -> None:
        """Handle an end without [DONE]. Raises UpstreamError unless each choice has finished."""
        if len(self.finished) < self.choices:
            raise broken_off()
        self.append_usage(batch)


def thought_of(part: Choice | Message) -> str | None:
    """Return the reasoning in a chunk. Hosts use one of two names for it, and some use both."""
    return part.reasoning_content or part.reasoning


def usage_of(tokens: Tokens) -> Usage | None:
    """Return the usage, or None if it is zero. Some hosts send zeros at first, others always."""
    given = tokens.prompt_tokens or 0
    made = tokens.completion_tokens or 0
    if not given and not made:
        return None
    prompt = tokens.prompt_tokens_details or Details()
    reasoning = (tokens.completion_tokens_details or Details()).reasoning_tokens or 0
    if tokens.total_tokens == given + made + reasoning:  # xAI counts reasoning separately
        made += reasoning
    return Usage(
        input_tokens=given,
        output_tokens=made,
        cache_read_tokens=prompt.cached_tokens or tokens.prompt_cache_hit_tokens or 0,
        cache_write_tokens=prompt.cache_write_tokens or 0,
        reasoning_tokens=reasoning,
    )


def refuse_bare_error(data: bytes) -> None:
    """Raise the error in data that isn't a chunk but has a message, such as {"detail": "..."}.

    Other data, such as a ping, is ignored.
    """
    try:
        value = msgspec.json.decode(data)
    except NOT_JSON:
        return
    if decode_error(value).message:
        raise reported(value)
