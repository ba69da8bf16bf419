"""Decoding of responses from OpenAI-compatible hosts into events.

- The module is pure.
- Streams and JSON bodies of both endpoints take one code path, so that they can't drift apart. The
  text of a choice is read from its `text`, `delta` or `message`, whichever it has.

Source: OpenAI API reference, "Completions" and "Chat", with their streaming objects; the xAI and
DeepSeek references for usage (read 2026-11).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from completion import (
    Batch,
    CompletionRequest,
    Delta,
    Finished,
    Logprobs,
    Started,
    Thought,
    Usage,
    Used,
    has_output,
    utf8_size,
)
from errors import UpstreamError
from providers.decoding import finish_reasons
from providers.decoding.added_fields import append_added, decode_object, objects, unknown
from providers.decoding.error_bodies import (
    broken_off,
    choices_missing,
    decode_error,
    reported,
)
from providers.decoding.finish_reasons import meaning_of
from providers.decoding.lenient_json import NOT_JSON
from providers.decoding.logprobs import LogprobsReader
from providers.decoding.surrogates import SplitPairs
from providers.decoding.usage import believable, nano_dollars, usage, word
from providers.openai.schemas import (
    CHOICE,
    HIDDEN,
    TOP,
    Choice,
    Chunk,
    Details,
    KnownChunk,
    Message,
    Tokens,
    decode,
)

REASONS: Final = finish_reasons.REASONS
FAILURES: Final = finish_reasons.FAILURES
"""The words of OpenAI-compatible hosts, which are those of all hosts."""


class OpenAIResponse:
    """The state of one response while it is decoded."""

    __slots__ = (
        *("adds", "choices", "echo", "empty", "finished", "held", "logprobs", "pairs"),
        *("prompts", "raws", "readers", "started", "texts", "thought", "tier"),
    )

    def __init__(self, request: CompletionRequest) -> None:
        self.choices = request.choices
        self.adds = request.passes_on
        """True if fields that Sluice doesn't know are passed on."""
        self.raws: Iterator[dict[str, Any]] | None = None
        """The choices of the current chunk, with all their fields; None if none are passed on."""
        self.prompts = len(request.prompts)
        self.echo = request.echo
        self.empty = request.max_tokens == 0
        """True if no text was asked for, so that its absence is no failure."""
        self.logprobs = request.logprobs
        self.readers: dict[int, LogprobsReader] = {}
        self.pairs = SplitPairs()
        self.started = False
        self.thought = False
        """True if there is reasoning."""
        self.texts: dict[int, bool] = {}
        """The indexes of the choices that have started. The value is True if there is text."""
        self.finished: set[int] = set()
        self.held: Usage | None = None
        """Usage that hasn't been reported yet."""
        self.tier: str | None = None
        """The service tier, in the first chunks or in all."""

    def read(self, data: bytes, batch: Batch) -> None:
        """Decode a chunk, or a whole JSON body, and append its events.

        Raises:
            UpstreamError: The data reports an error or a failure, or isn't a valid JSON object. The
                events beside an error have been appended.
        """
        self.take(decode(data, self.pairs, adds=self.adds), data, batch)

    def take(self, chunk: Chunk, data: bytes, batch: Batch) -> None:
        """Append the events of a chunk that was decoded from `data`. Raises as `read` does.

        Most chunks have only text. They take a fast path, which looks at all other parts at once.
        """
        if self.started and chunk.choices and self.choices == 1 and not self.pairs.possible:
            choice = chunk.choices[0]
            delta = choice.delta
            text = choice.text or (delta and delta.content)
            if text and not (
                (choice.finish_reason or choice.native_finish_reason or choice.logprobs)
                or (choice.error or choice.reasoning_content or choice.reasoning)
                or (delta and (delta.error or delta.reasoning_content or delta.reasoning))
                or (chunk.usage or chunk.x_groq or chunk.error or chunk.errors)
                or (chunk.base_resp or chunk.error_code or chunk.error_msg)
                or (chunk.service_tier and chunk.service_tier != self.tier)
                or (self.adds and chunk.__class__ is not KnownChunk)
            ):
                self.texts[0] = True
                batch.append(Delta(0, text))
                return
        self.take_parts(chunk, data, batch)

    def take_parts(self, chunk: Chunk, data: bytes, batch: Batch) -> None:
        """Append the events of any chunk, as `take` does."""
        before = len(batch)
        failed = chunk.error or chunk.base_resp or chunk.error_code or chunk.error_msg
        if failed or chunk.errors or (chunk.x_groq and chunk.x_groq.error):
            failed = error_of(chunk, data)
        if not failed and not chunk.choices and chunk.usage is None:
            refuse_bare_error(data)
        self.tier = word(chunk.service_tier) or self.tier
        if not self.started and (chunk.choices or chunk.model or chunk.usage) and not failed:
            # This skips Azure's first chunk, which has a content filter's verdict but no model.
            self.started = True
            batch.append(Started(chunk.model or None, tier=self.tier))
        tokens = chunk.usage or (chunk.x_groq and chunk.x_groq.usage)
        if tokens and (found := usage_of(tokens)):
            self.held = found
        self.read_choices(chunk, data, batch, failed)
        if self.pairs.held and not chunk.choices:
            self.pairs.flush(batch)  # so that no text follows the usage
        # Next to one of several choices, vLLM's usage may count only that choice: hold it.
        if self.held is not None and (failed or self.choices == 1 or not chunk.choices):
            with_text = bool(self.finished) and has_output(batch[before:])
            self.append_usage(batch, with_text=with_text)
        if failed:
            raise reported(failed)

    def read_choices(self, chunk: Chunk, data: bytes, batch: Batch, failed: Any) -> None:
        self.raws = None
        if self.adds and not isinstance(chunk, KnownChunk):
            raw = {} if failed else decode_object(data)
            append_added(unknown(raw, TOP), batch)
            self.raws = iter(objects(raw.get("choices")))
        try:
            # If one choice was requested, ignore any further choices that the host sends.
            for choice in (chunk.choices or ()) if self.choices > 1 else (chunk.choices or ())[:1]:
                self.read_choice(choice, batch, failed)
        except UpstreamError:
            self.append_usage(batch)
            raise

    def insert_added(
        self, raw: dict[str, Any], index: int, batch: Batch, at: int, *, finishes: bool
    ) -> None:
        """Insert the fields of a choice that Sluice doesn't know before its text in the batch.

        Next to a finish reason, only lists belong to the text: other values describe the end, and
        follow the text. Fields of a chat message count as the choice's.
        """
        message = raw.get("delta") or raw.get("message")
        fields = {name: value for name, value in unknown(message, HIDDEN).items() if value}
        fields |= unknown(raw, CHOICE)
        last = {n: item for n, item in fields.items() if finishes and not isinstance(item, list)}
        around: Batch = []
        append_added(
            {n: item for n, item in fields.items() if n not in last}, around, index, top=False
        )
        around += batch[at:]
        append_added(last, around, index, top=False)
        batch[at:] = around

    def append_usage(self, batch: Batch, *, with_text: bool = False) -> None:
        found, self.held = self.held, None
        if found is None:
            return
        if self.tier is not None:
            found = msgspec.structs.replace(found, tier=self.tier)
        if not (found.input_tokens and found.output_tokens):
            # With echo, the text may be only the prompt.
            text = self.thought or (not self.echo and any(self.texts.values()))
            found = believable(found, text=text)
        batch.append(Used(found, with_text))

    def read_choice(self, choice: Choice, batch: Batch, failed: Any = None) -> None:
        """Append a choice's events. With `failed`, its chunk has an error: ignore its finish."""
        # Some hosts count tokens in `index`: ignore it if one choice was requested.
        index = choice.index if self.choices > 1 else 0
        if not 0 <= index < self.choices:
            raise UpstreamError(
                f"The upstream sent choice index {index} for {self.choices} requested choices."
            )
        message = choice.delta or choice.message
        text = choice.text or (message.content if message else None) or ""
        if thought := thought_of(choice) or (message and thought_of(message)):
            self.thought = True
            batch.append(Thought(utf8_size(thought)))
        if self.pairs.possible:
            text = self.pairs.join(index, text)
        logprobs = self.read_logprobs(index, choice.logprobs) if choice.logprobs else None
        at = len(batch)
        if text or logprobs:
            self.texts[index] = True
            batch.append(Delta(index, text, logprobs))
        elif index not in self.texts and not failed:
            self.texts[index] = False
        if self.raws is not None:
            raw = next(self.raws, {})
            self.insert_added(raw, index, batch, at, finishes=bool(choice.finish_reason))
        if failed:
            return
        error = choice.error or (message and message.error)
        if error:
            raise reported({"error": error})
        if choice.finish_reason or choice.native_finish_reason:
            self.finish(index, choice, batch, with_text=bool(text or logprobs or thought))

    def read_logprobs(self, index: int, raw: object) -> Logprobs | None:
        if self.logprobs is None:
            return None
        reader = self.readers.get(index)
        if reader is None:
            reader = self.readers[index] = LogprobsReader(self.logprobs)
        return reader.read(raw)

    def finish(self, index: int, choice: Choice, batch: Batch, *, with_text: bool) -> None:
        """Append the finish of a choice. The last one counts, and more text may follow it."""
        reason = meaning_of(choice.finish_reason, native=choice.native_finish_reason)
        if reason is not None:
            self.finished.add(index)
            batch.append(Finished(index, reason, with_text))

    def finish_all(self, batch: Batch) -> None:
        """Finish the completion at [DONE], or at the end of a JSON body.

        A choice without a finish_reason counts as finished, because some hosts never send one.

        Raises:
            UpstreamError: There is neither text nor a finish_reason, or a choice is missing. Hosts
                that ignore `n` or lists of prompts cause the latter.
        """
        if not self.finished and not (self.empty or any(self.texts.values())):
            raise UpstreamError("The upstream sent no text and no finish reason.")
        self.append_usage(batch)
        if len(self.texts) < self.choices:
            raise choices_missing(len(self.texts), self.prompts, self.choices)
        if self.pairs.held:
            self.pairs.flush(batch)
        batch.extend(
            Finished(index, "length" if self.empty else "stop")
            for index in sorted(self.texts)
            if index not in self.finished
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
    prompt = tokens.prompt_tokens_details or Details()
    reasoning = (tokens.completion_tokens_details or Details()).reasoning_tokens or 0
    searched = tokens.citation_tokens is not None or tokens.num_search_queries is not None
    if not reasoning and tokens.reasoning_tokens:
        # Perplexity counts reasoning separately, also from its total. SGLang doesn't.
        reasoning = tokens.reasoning_tokens
        if searched or reasoning > made:
            made += reasoning
    elif reasoning and tokens.total_tokens == given + made + reasoning:  # xAI counts it separately
        made += reasoning
    return usage(
        given,
        made,
        read=prompt.cached_tokens or tokens.prompt_cache_hit_tokens or 0,
        written=prompt.cache_write_tokens or 0,
        reasoning=reasoning,
        citation_tokens=tokens.citation_tokens or 0,
        searches=tokens.num_search_queries or 0,
        cost_nano=cost_of(tokens),
    )


TICKS: Final = 10_000_000_000
"""The number of xAI's ticks in a US dollar."""


def cost_of(tokens: Tokens) -> int | None:
    """Return the cost that the host reports, in nano-dollars, or None."""
    cost, ticks = tokens.cost, tokens.cost_in_usd_ticks
    if isinstance(cost, dict):
        cost = cost.get("total_cost")
    if cost is None:
        cost = tokens.estimated_cost
    if cost is None and isinstance(ticks, int):
        cost = ticks / TICKS
    found = nano_dollars(cost)
    if found is not None and tokens.is_byok is True and isinstance(tokens.cost_details, dict):
        # OpenRouter's own fee. The host behind it charges the operator's account there.
        found += nano_dollars(tokens.cost_details.get("upstream_inference_cost")) or 0
    return found


def error_of(chunk: Chunk, data: bytes) -> Any:
    """Return the error in one of a chunk's fields, as `reported` takes it, or None."""
    if chunk.error and not (isinstance(chunk.error, dict) and not any(chunk.error.values())):
        around = decode_object(data) if isinstance(chunk.error, str) else {}  # its code is there
        return around | {"error": chunk.error}
    if chunk.x_groq and chunk.x_groq.error:
        return {"error": chunk.x_groq.error}
    if isinstance(chunk.base_resp, dict) and chunk.base_resp.get("status_code"):
        return {"error": chunk.base_resp}
    if chunk.error_code or (chunk.error_msg and chunk.error_code is None):
        return {"error": {"code": chunk.error_code, "message": chunk.error_msg}}
    return {"error": chunk.errors} if chunk.errors else None


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
