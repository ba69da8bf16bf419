"""The vocabulary: what is asked of a provider and what it answers, whatever its wire format.

- Values only: no I/O, and nothing of HTTP, of a face or of a provider.
- A call is a sequence of events, and `fold` turns them into a Completion, so that streams and whole
  answers share one path.
- Events travel in batches (a list of what arrived together), so that one wake-up and one write
  serve many tokens.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec

Prompt: TypeAlias = str | tuple[int, ...]
FinishReason: TypeAlias = Literal["stop", "length", "content_filter", "cancelled"]
EndReason: TypeAlias = Literal[
    "completed", "stopped", "client_gone", "provider_error", "deadline", "shutdown"
]
"""Why a call ended."""

StreamKey: TypeAlias = tuple[str, str]
"""What an active call is found by: the id of its key, and its own id among that key's calls."""

TargetKey: TypeAlias = tuple[str, str, int]
"""What a target is found by: a provider, its model ("": all of them), and which of the operator's
keys."""


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to generate, validated and face-neutral. None, () or {} means: not asked for.

    A parameter equal to its no-op (n 1, best_of 1, penalties 0, top_p 1, empty logit_bias) is
    stored as not asked for, so a target that lacks it can still serve the request.
    """

    prompts: tuple[Prompt, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int | None = None
    best_of: int | None = None
    logprobs: int | None = None
    """How many alternatives per token; 0 asks for the chosen token's alone."""
    echo: bool = False
    suffix: str | None = None
    logit_bias: dict[str, float] = {}
    user: str | None = None
    stream: bool = False
    extra: dict[str, Any] = {}
    """Parameters that Sluice has no name for; sent to the provider as they are."""
    openai_extra: dict[str, Any] = {}
    """The same from the OpenAI face's top level; for OpenAI-compatible hosts alone."""

    @property
    def choices(self) -> int:
        """How many choices the answer has: prompts times n."""
        return len(self.prompts) * (self.n or 1)


FIELDS: Final = CompletionRequest.__struct_fields__
DEFAULTS: Final = msgspec.structs.astuple(CompletionRequest(prompts=()))


def asked_for(request: CompletionRequest) -> dict[str, Any]:
    """The fields by which a request asks for something, with their values: those that differ from
    what they are by default. 0 does; None, False, () and {} don't."""
    values = msgspec.structs.astuple(request)
    return {
        name: value
        for name, value, default in zip(FIELDS, values, DEFAULTS, strict=True)
        if value != default
    }


def named(
    request: CompletionRequest, names: Mapping[str, str], lacks: Container[str] = ()
) -> dict[str, Any]:
    """What a request asks for, by a host's names. names: ours -> theirs. lacks: ours of what the
    host can't do."""
    asked = asked_for(request)
    return {
        theirs: asked[ours] for ours, theirs in names.items() if ours in asked and ours not in lacks
    }


class Logprobs(msgspec.Struct, frozen=True):
    """OpenAI's legacy shape. The lists are parallel, an entry a token; a log probability is
    natural; text_offset counts characters from the start of the choice's text."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = []


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one call. Cached and reasoning tokens are parts of input and output."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    source: Literal["provider", "estimate"] = "provider"

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def total(usages: Iterable[Usage]) -> Usage:
    """The usage of several calls as one's; an estimate where one of them is."""
    several = list(usages)
    if len(several) == 1 and (several[0].total_tokens or several[0].source == "provider"):
        return several[0]
    counts = (name for name in Usage.__struct_fields__ if name != "source")
    sums = {name: sum(getattr(usage, name) for usage in several) for name in counts}
    estimated = any(usage.source == "estimate" and usage.total_tokens for usage in several)
    return Usage(**sums, source="estimate" if estimated else "provider")


class Started(msgspec.Struct, frozen=True):
    """The provider accepted the call. The model is the one it says it runs, if it says."""

    model: str | None = None
    input_tokens: int | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """More text of one choice."""

    index: int
    text: str
    logprobs: Logprobs | None = None


class Finished(msgspec.Struct, frozen=True):
    """One choice is complete."""

    index: int
    reason: FinishReason


class Used(msgspec.Struct, frozen=True):
    """What the call has used so far; the last one counts."""

    usage: Usage


Event: TypeAlias = Started | Delta | Finished | Used
Batch: TypeAlias = list[Event]


class Choice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: Logprobs | None = None


class Completion(msgspec.Struct, frozen=True):
    """A call's events, folded. usage is None when the provider told none."""

    model: str | None
    choices: tuple[Choice, ...]
    usage: Usage | None
    input_tokens: int | None = None


def fold(events: Iterable[Event]) -> Completion:
    """What a sequence of events amounts to; choices come in the order of their index."""
    model: str | None = None
    input_tokens: int | None = None
    usage: Usage | None = None
    texts: dict[int, list[str]] = {}
    logprobs: dict[int, list[Logprobs]] = {}
    reasons: dict[int, FinishReason] = {}
    for event in events:
        if isinstance(event, Delta):
            texts.setdefault(event.index, []).append(event.text)
            if event.logprobs is not None:
                logprobs.setdefault(event.index, []).append(event.logprobs)
        elif isinstance(event, Finished):
            reasons[event.index] = event.reason
        elif isinstance(event, Used):
            usage = event.usage
        else:
            model = event.model or model
            input_tokens = event.input_tokens
    choices = tuple(
        Choice(
            index,
            "".join(texts.get(index, ())),
            reasons.get(index),
            join_logprobs(logprobs[index]) if index in logprobs else None,
        )
        for index in sorted(texts.keys() | reasons.keys())
    )
    return Completion(model, choices, usage, input_tokens)


def join_logprobs(parts: list[Logprobs]) -> Logprobs:
    """One Logprobs of several that follow each other."""
    if len(parts) == 1:
        return parts[0]
    top = [part.top_logprobs or [None] * len(part.tokens) for part in parts]
    return Logprobs(
        tokens=[token for part in parts for token in part.tokens],
        token_logprobs=[value for part in parts for value in part.token_logprobs],
        top_logprobs=(
            [entry for entries in top for entry in entries]
            if any(part.top_logprobs is not None for part in parts)
            else None
        ),
        text_offset=[offset for part in parts for offset in part.text_offset],
    )


def flatten(batches: Iterable[Batch]) -> Iterator[Event]:
    """The events of some batches, one by one."""
    for batch in batches:
        yield from batch


def estimate_tokens(text: str, pieces: int = 0) -> int:
    """About how many tokens a text is, when nobody says: four UTF-8 bytes each, and at least
    one for each piece that the provider sent it in."""
    return max(pieces, -(-len(text.encode("utf-8", "surrogatepass")) // 4))


def utf8_size(text: str) -> int:
    """Return the size of a text in bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def prompt_tokens(prompt: Prompt) -> int:
    """Return how many tokens a prompt has: counted if it is token ids, estimated if text."""
    return estimate_tokens(prompt) if isinstance(prompt, str) else len(prompt)


class Summary(msgspec.Struct, frozen=True):
    """An active call as a list of active calls shows it. opened_at: seconds since 1970 UTC."""

    stream_id: str
    provider: str
    model: str
    opened_at: float
    input_tokens: int
    output_tokens: int
