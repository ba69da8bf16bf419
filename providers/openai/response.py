"""What an OpenAI-compatible host answers, turned into events.

Rules that hold here: pure; one path for both modes and both shapes (a chunk's `text`, `delta` or
whole `message` are the same thing to us), so that they can't drift apart.

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
    Usage,
    Used,
)
from errors import UpstreamError
from providers.decoding.error_bodies import decode_error, reported
from providers.decoding.lenient_json import NOT_JSON
from providers.decoding.logprobs import LogprobsReader
from providers.openai.schemas import Choice, Chunk, Details, Tokens, decode

REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_length"), "length"),
    **dict.fromkeys(
        ("content_filter", "content-filter", "safety", "recitation", "sensitive", "blocklist"),
        "content_filter",
    ),
}
"""A host's word (in lower case) for the end of a choice. Any other, known (stop, eos, end_turn,
stop_sequence, tool_calls, ...) or new, means that the model came to an end by itself: stop."""

FAILURES: Final = frozenset({"error", "abort", "insufficient_system_resource"})
"""Words for an end that was none: OpenRouter and Mistral, vLLM, DeepSeek."""

NOT_YET: Final = frozenset({"", "null"})


class Answer:
    """One answer, as far as it has come."""

    __slots__ = ("choices", "finished", "held", "logprobs", "readers", "started", "texts")

    def __init__(self, request: CompletionRequest) -> None:
        self.choices = request.choices
        self.logprobs = request.logprobs
        self.readers: dict[int, LogprobsReader] = {}
        self.started = False
        self.texts: dict[int, bool] = {}
        """The choices that began, and whether text of theirs came."""
        self.finished: set[int] = set()
        self.held: Usage | None = None

    def read(self, data: bytes, batch: Batch) -> None:
        """Decode a chunk, or a whole body, and append its events.

        Raises UpstreamError for an error that it holds and for what is not a JSON object.
        """
        self.take(decode(data), data, batch)

    def take(self, chunk: Chunk, data: bytes, batch: Batch) -> None:
        """Append the events of a chunk, which was decoded from that. Raises as `read`."""
        if chunk.error:
            raise reported({"error": chunk.error})
        if chunk.choices is None and chunk.usage is None:
            refuse_bare_error(data)
        if not self.started and (chunk.choices or chunk.model or chunk.usage):
            # Not for Azure's first chunk, which holds a content filter's verdict and no model.
            self.started = True
            batch.append(Started(chunk.model or None))
        if chunk.choices:
            # A host that gives more than the one choice asked for has a first one.
            for choice in chunk.choices if self.choices > 1 else chunk.choices[:1]:
                self.read_choice(choice, batch)
        tokens = chunk.usage or (chunk.x_groq and chunk.x_groq.usage)
        if tokens and (usage := usage_of(tokens)):
            self.held = usage
            # Beside one of several choices it may be that choice's alone (vLLM).
            if self.choices == 1 or not chunk.choices:
                self.tell_usage(batch)

    def take_all(self, chunks: list[Chunk], data: list[bytes], batch: Batch) -> None:
        """The same for several, most of which are a piece of the one choice's text alone."""
        for chunk, source in zip(chunks, data, strict=True):
            if chunk.choices and self.choices == 1 and self.started and not self.finished:
                choice = chunk.choices[0]
                more = choice.finish_reason or choice.logprobs or choice.error
                text = choice.text or (choice.delta.content if choice.delta else None)
                if text and not (more or chunk.usage or chunk.error or chunk.x_groq):
                    self.texts[0] = True
                    batch.append(Delta(0, text))
                    continue
            self.take(chunk, source, batch)

    def tell_usage(self, batch: Batch) -> None:
        if self.held is not None:
            batch.append(Used(self.held))
            self.held = None

    def read_choice(self, choice: Choice, batch: Batch) -> None:
        # Some hosts count tokens in `index`; with one choice it has nothing to tell.
        index = choice.index if self.choices > 1 else 0
        if index in self.finished:
            return
        if not 0 <= index < self.choices:
            raise UpstreamError(f"The upstream sent choice {index}; {self.choices} were asked for.")
        if choice.error:
            raise reported({"error": choice.error})
        words = choice.delta or choice.message
        text = choice.text or (words.content if words else None) or ""
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
            raise UpstreamError("The upstream gave up in the middle.", upstream_code=word)
        self.finished.add(index)
        batch.append(Finished(index, REASONS.get(word, "stop")))

    def end(self, batch: Batch) -> None:
        """The host said that this is all: [DONE], or the end of a JSON body. Some never give a
        finish_reason. Raises UpstreamError for a host that ignored n, too: its row should say
        that it can't."""
        if not self.finished and not any(self.texts.values()):
            raise UpstreamError("The upstream ended its answer without a word.")
        if len(self.texts) < self.choices:
            raise UpstreamError(
                f"The upstream gave {len(self.texts)} of the {self.choices} choices asked for."
            )
        self.tell_usage(batch)
        batch.extend(
            Finished(index, "stop") for index in sorted(self.texts) if index not in self.finished
        )

    def break_off(self, batch: Batch) -> None:
        """The body ended and nothing in it said so: all right only if each choice is finished."""
        if len(self.finished) < self.choices:
            raise UpstreamError("The upstream's answer ended before its end.")
        self.tell_usage(batch)


def usage_of(tokens: Tokens) -> Usage | None:
    """None where it tells nothing: some hosts send zeros until they know, some for ever."""
    given = tokens.prompt_tokens or 0
    made = tokens.completion_tokens or 0
    if not given and not made:
        return None
    prompt = tokens.prompt_tokens_details or Details()
    reasoning = (tokens.completion_tokens_details or Details()).reasoning_tokens or 0
    if tokens.total_tokens == given + made + reasoning:  # xAI counts reasoning beside the rest
        made += reasoning
    return Usage(
        input_tokens=given,
        output_tokens=made,
        cache_read_tokens=prompt.cached_tokens or tokens.prompt_cache_hit_tokens or 0,
        cache_write_tokens=prompt.cache_write_tokens or 0,
        reasoning_tokens=reasoning,
    )


def refuse_bare_error(data: bytes) -> None:
    """Raise for an object that is no chunk and has a message, such as {"detail": "..."}. Others,
    a ping for one, mean nothing to us."""
    try:
        value = msgspec.json.decode(data)
    except NOT_JSON:
        return
    if decode_error(value).message:
        raise reported(value)
